"""What one pool holds comes out the same in another, whatever it is and however it hangs together."""

from __future__ import annotations

import datetime
import decimal
import io
import math
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmshelve import pmemobj
from pmshelve.errors import (
    CorruptionError,
    NoSpaceError,
    NotAStoreError,
    ObjectError,
    StateError,
    TransactionError,
    UnknownTypeError,
    UnsupportedTypeError,
    VersionError,
)
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
    dumpstream,
    transfer,
)
from pmshelve.storage.binary import crc32
from tests.support.pools import assert_nothing_leaked, assert_sound, plain
from tests.support.userclasses import Counter, Hashed, LinkedList, Mute, MyDict, MyList, Point

LONG = "a string that is too long to stand in an oid"


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """A second, empty pool, of another size."""
    pool = pmemobj.create(tmp_path / "other.pool", 10 << 20, durability="lazy")
    yield pool
    if not pool.closed:
        assert_sound(pool)
        assert_nothing_leaked(pool)
        pool.close()


def dumped(pool: Any) -> bytes:
    file = io.BytesIO()
    pool.dump(file)
    return file.getvalue()


def move(pool: Any, other: Any) -> Any:
    """Dump one pool, load the other, return its root."""
    file = io.BytesIO()
    count = pool.dump(file)
    file.seek(0)
    assert other.load(file) == count
    assert_sound(other)
    return other.root


# Values -----------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    (1 << 63) - 1,
    -(1 << 63),
    1 << 63,
    -(10**40),
    2.5,
    -0.0,
    math.inf,
    3 - 4j,
    "",
    "short",
    "a\0b",
    "\ud800 alone",
    LONG,
    "x" * 300,
    "\N{SNOWMAN}" * 100_000,
    b"",
    b"short",
    bytes(range(256)),
    b"y" * 3_000_000,
    datetime.datetime(2020, 2, 29, 1, 2, 3, tzinfo=datetime.timezone.utc),
    decimal.Decimal("1.10"),
    Path("/a/b"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
def test_any_value_is_a_root(pool: Any, other: Any, value: Any) -> None:
    pool.root = value
    found = move(pool, other)
    assert type(found) is type(value)
    assert found == value
    assert repr(found) == repr(value)


def test_a_nan_keeps_its_bits(pool: Any, other: Any) -> None:
    (nan,) = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF))
    pool.root = pool.new(PersistentList, [nan])
    found = move(pool, other)[0]
    assert struct.pack("<d", found) == struct.pack("<d", nan)


def test_a_pool_without_root(make: Callable[..., Any], other: Any) -> None:
    assert move(make(), other) is None


def test_all_values_in_all_collections(pool: Any, other: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, VALUES)
    pool.root["dict"] = pool.new(PersistentDict, {value: value for value in VALUES})
    pool.root["set"] = pool.new(PersistentSet, VALUES)
    pool.root["tuple"] = pool.new(PersistentTuple, VALUES)
    pool.root["frozenset"] = frozenset(VALUES)
    pool.root["point"] = pool.new(Point, LONG, VALUES[-1])
    before = plain(pool.root)
    found = move(pool, other)
    assert plain(found) == before
    assert list(found["dict"]) == list(pool.root["dict"])
    assert list(map(type, found["list"])) == list(map(type, VALUES))
    assert type(found["frozenset"]) is PersistentFrozenSet
    other.close()
    again = pmemobj.open(other.filename)
    assert plain(again.root) == before
    again.close()


def test_empty_collections(pool: Any, other: Any) -> None:
    for cls in (PersistentList, PersistentDict, PersistentSet, PersistentTuple, PersistentObject):
        pool.root[cls.__name__] = pool.new(cls)
    pool.root["PersistentFrozenSet"] = pool.new(PersistentFrozenSet)
    found = move(pool, other)
    for name, thing in found.items():
        assert type(thing).__name__ == name
        if name != "PersistentObject":
            assert len(thing) == 0


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12.0).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=">i2").reshape(3, 4)),
        np.array(5),
        np.zeros((0, 3)),
        np.array([(1, 2.5, "ab")], dtype=[("a", "<i4"), ("b", "<f8", ()), ("c", "<U2")]),
        np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
        np.arange(500_000),
    ],
    ids=["2d", "fortran", "0d", "empty", "structured", "dates", "large"],
)
def test_arrays(pool: Any, other: Any, array: Any) -> None:
    pool.root["array"] = pool.new(PersistentArray, array)
    found = move(pool, other)["array"]
    assert type(found) is PersistentArray
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found.view(), array)
    assert found.view().flags.f_contiguous == array.flags.f_contiguous
    del found


# Shape ------------------------------------------------------------------------------------------


def test_what_is_shared_stays_shared(pool: Any, other: Any) -> None:
    shared = pool.new(PersistentList, [1])
    pair = pool.new(PersistentTuple, [shared, LONG])
    pool.root["a"] = shared
    pool.root["b"] = pool.new(PersistentList, [shared, pair, pair])
    pool.root["c"] = frozenset([pool.new(Point), 1])
    found = move(pool, other)
    assert found["b"][0] is found["a"]
    assert found["b"][1] is found["b"][2]
    assert found["b"][1][0] is found["a"]


def test_a_scalar_that_is_held_often_is_stored_once(pool: Any, other: Any) -> None:
    many = pool.root["many"] = pool.new(PersistentList, ["z" * 100_000, decimal.Decimal("0.25")])
    many *= 20
    kinds = pool.stats(walk=True).objects
    assert kinds["str"] == kinds["pickle"] == 1
    found = move(pool, other)
    assert found["many"] == many
    assert other.stats(walk=True).objects["str"] == kinds["str"]
    assert other.stats(walk=True).objects["pickle"] == kinds["pickle"]


def test_cycles(pool: Any, other: Any) -> None:
    top = pool.root
    top["self"] = top
    inner = pool.new(PersistentList, [top])
    inner.append(pool.new(PersistentTuple, [inner, top, 1]))
    top["inner"] = inner
    point = top["point"] = pool.new(Point)
    point.x = point
    top[pool.new(PersistentTuple, ["key", point])] = inner
    found = move(pool, other)
    assert found["self"] is found
    assert found["inner"][0] is found
    assert found["inner"][1][0] is found["inner"]
    assert found["point"].x is found["point"]
    assert next(reversed(found))[1] is found["point"]


@pytest.mark.parametrize(
    ("cls", "levels"),
    [
        (PersistentList, 10_000),
        (PersistentTuple, 10_000),
        (PersistentDict, 10_000),
        (PersistentFrozenSet, 200),  # each level's hash is that of all below
    ],
)
def test_depth_does_not_matter(pool: Any, other: Any, cls: Any, levels: int) -> None:
    inner: Any = LONG
    with pool.transaction():
        for _ in range(levels):
            inner = pool.new(cls, {"k": inner} if cls is PersistentDict else [inner])
        pool.root["deep"] = inner
    found = move(pool, other)["deep"]
    depth = 0
    while isinstance(found, cls):
        found = found["k"] if cls is PersistentDict else next(iter(found))
        depth += 1
    assert (depth, found) == (levels, LONG)


def test_large_collections_go_in_pieces(pool: Any, other: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, range(20_000))
    pool.root["dict"] = pool.new(PersistentDict, {f"{LONG}{i}": i for i in range(7000)})
    del pool.root["dict"][LONG + "5"]
    pool.root["set"] = pool.new(PersistentSet, range(9000))
    found = move(pool, other)
    assert found["list"] == list(range(20_000))
    assert found["dict"] == pool.root["dict"]
    assert list(found["dict"]) == list(pool.root["dict"])
    assert found["set"] == set(range(9000))


nested = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner).map(tuple) | st.frozensets(inner),
    max_leaves=20,
)


@given(st.lists(nested, max_size=5))
@settings(max_examples=25)
def test_any_nested_value(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    home = tmp_path_factory.mktemp("nested")
    with pmemobj.create(home / "a", durability="lazy") as pool:
        pool.root = pool.new(PersistentList, values)
        with pmemobj.create(home / "b", durability="lazy") as other:
            assert move(pool, other) == values


# Classes ----------------------------------------------------------------------------------------


def test_subclasses_and_users_classes(pool: Any, other: Any) -> None:
    pool.root["list"] = pool.new(MyList, [1, LONG])
    pool.root["dict"] = pool.new(MyDict, a=1)
    pool.root["point"] = pool.new(Point, LONG, pool.root["list"])
    pool.root["counter"] = pool.new(Counter, -5)
    queue = pool.root["queue"] = pool.new(LinkedList, [1, LONG, pool.root["counter"]])
    queue.append(queue)
    queue.append(datetime.date(2020, 1, 1))
    found = move(pool, other)
    assert type(found["list"]) is MyList
    assert found["list"] == [1, LONG]
    assert type(found["dict"]) is MyDict
    assert type(found["point"]) is Point
    assert found["point"].y is found["list"]
    assert found["counter"].value == -5
    values = list(found["queue"])
    assert values[:2] == [1, LONG]
    assert values[2] is found["counter"]
    assert values[3] is found["queue"]
    assert values[4] == datetime.date(2020, 1, 1)
    del values, queue, found


def test_keys_whose_hash_depends_on_what_they_hold(pool: Any, other: Any) -> None:
    ada, eve = pool.new(Hashed, "ada"), pool.new(Hashed, "eve")
    pool.root[ada] = 1
    pool.root["set"] = pool.new(PersistentSet, [eve, ada])
    pool.root["inner"] = pool.new(PersistentDict, {(eve, 1): pool.root})
    found = move(pool, other)
    by_name = {key.name: key for key in found["set"]}
    assert found[by_name["ada"]] == 1
    assert by_name["eve"] in found["set"]
    assert found["inner"][by_name["eve"], 1] is found


def test_a_constructor_is_not_called(
    pool: Any, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.root["point"] = pool.new(Point, 1, 2)
    monkeypatch.setattr(Point, "__init__", lambda self: pytest.fail("called"))
    assert move(pool, other)["point"].y == 2


def test_a_class_that_says_nothing_cannot_be_dumped(pool: Any) -> None:
    pool.root["mute"] = pool.new(Mute)
    with pytest.raises(ObjectError, match=r"Mute cannot be dumped; give the class _p_dump"):
        dumped(pool)


def test_a_class_that_says_nonsense_cannot_be_dumped(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.root["counter"] = pool.new(Counter)
    monkeypatch.setattr(Counter, "_p_dump", lambda self: [[1, 2]])
    with pytest.raises(UnsupportedTypeError, match=r"Counter._p_dump gave a list"):
        dumped(pool)


def test_a_class_that_is_gone(pool: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import userclasses

    pool.root["point"] = pool.new(Point)
    stream = dumped(pool)
    monkeypatch.delattr(userclasses, "Point")
    with pytest.raises(UnknownTypeError, match="userclasses:Point"):
        other.load(io.BytesIO(stream))
    assert other.root is None
    monkeypatch.undo()
    other.load(io.BytesIO(stream))
    assert type(other.root["point"]) is Point


def test_a_dump_unpickles_nothing(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.root["date"] = datetime.date(2020, 1, 1)
    pool.close()
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    with pmemobj.PersistentObjectPool(pool.filename, "r") as reader:
        assert len(dumped(reader)) > 50


# State ------------------------------------------------------------------------------------------


def test_a_read_only_pool_can_be_dumped(pool: Any, other: Any) -> None:
    pool.root["counter"] = pool.new(Counter, 3)
    pool.root["point"] = pool.new(Point, 1, LONG)
    pool.close()
    with pmemobj.PersistentObjectPool(pool.filename, "r") as reader:
        found = move(reader, other)
    assert found["counter"].value == 3


def test_a_pool_that_is_not_empty_is_left_alone(pool: Any, other: Any) -> None:
    other.root = other.new(PersistentList, [1])
    with pytest.raises(StateError, match="not empty"):
        other.load(io.BytesIO(dumped(pool)))
    assert other.root == [1]
    with other.lock:
        transfer.load(other.mm, io.BytesIO(dumped(pool)), replace=True)
    assert other.root == {}


def test_not_in_a_transaction(pool: Any, other: Any) -> None:
    stream = dumped(pool)
    with other.transaction(), pytest.raises(TransactionError, match="load called inside"):
        other.load(io.BytesIO(stream))


def test_load_stops_where_the_stream_ends(pool: Any, other: Any) -> None:
    pool.root["a"] = LONG
    file = io.BytesIO(dumped(pool) + b"what follows")
    other.load(file)
    assert file.read() == b"what follows"


class Trickle(io.RawIOBase):
    """A pipe: gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 7))


def test_a_pipe_gives_what_it_likes(pool: Any, other: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, VALUES[:15])
    other.load(Trickle(dumped(pool)))
    assert other.root["list"] == VALUES[:15]


# Damage -----------------------------------------------------------------------------------------


def test_a_stream_of_something_else(other: Any) -> None:
    for data in (b"", b"PMSH", b"something else altogether"):
        with pytest.raises(NotAStoreError, match="not a dump"):
            other.load(io.BytesIO(data))


def test_a_stream_of_a_newer_version(other: Any) -> None:
    head = dumpstream.MAGIC + struct.pack("<I", 2)
    with pytest.raises(VersionError, match="dump format 2 is not known"):
        other.load(io.BytesIO(head + struct.pack("<I", crc32(head))))


def small_stream(pool: Any) -> bytes:
    pool.root["list"] = pool.new(MyList, [1, LONG, (2, 3), 2.5])
    pool.root["point"] = pool.new(Point, pool.root, 10**30)
    pool.root["array"] = pool.new(PersistentArray, np.arange(3))
    return dumped(pool)


def test_every_cut_and_every_flipped_byte_is_seen(pool: Any, other: Any) -> None:
    stream = small_stream(pool)
    for place in range(len(stream)):
        flipped = bytearray(stream)
        flipped[place] ^= 0x41
        for data in (stream[:place], bytes(flipped)):
            with pytest.raises((CorruptionError, NotAStoreError, VersionError)):
                other.load(io.BytesIO(data))
            assert other.root is None
    assert_nothing_leaked(other)
    other.load(io.BytesIO(stream))
    assert plain(other.root["list"]) == plain(pool.root["list"])


def rebuilt(stream: bytes, payload: bytes) -> bytes:
    """Return a stream of one chunk whose checksums are right."""
    head = stream[:16]
    crc = crc32(payload, crc32(head[:12]))
    return head + struct.pack("<II", len(payload), crc) + payload + struct.pack("<II", 0, crc)


def test_nonsense_with_the_right_checksums_is_an_error_or_a_value(pool: Any, other: Any) -> None:
    stream = small_stream(pool)
    payload = stream[24:-8]
    assert rebuilt(stream, payload) == stream
    errors = 0
    for place in range(len(payload)):
        for change in (0x01, 0x80):
            flipped = bytearray(payload)
            flipped[place] ^= change
            try:
                other.load(io.BytesIO(rebuilt(stream, bytes(flipped))))
            except (CorruptionError, ObjectError, ValueError, TypeError):
                errors += 1
                assert other.root is None
            else:
                other.root = None
    assert errors > len(payload) // 2
    assert_nothing_leaked(other)


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"?", "no record has code"),
        (b"R?", "no value has code"),
        (b"Rr" + bytes(8), "an object was not defined"),
        (b"M" + struct.pack("<Q", 77), "a class was not defined"),
        (b"M" + struct.pack("<Q", 2), "a PersistentTuple cannot be made of this record"),
        (b"M" + bytes(8) + b"T" + bytes(8), "a PersistentList cannot be made of this record"),
        (b"M" + struct.pack("<Q", 1) + b"X" + struct.pack("<QQ", 0, 1), "a key has no value"),
        (b"SN", "needs no definition"),
        (b"C" + struct.pack("<Q", 12) + b"builtins:int", "no class of persistent objects"),
        (b"C" + struct.pack("<Q", 1) + b"\xff", "no UTF-8"),
        (b"RNN", "does not end"),
        (b"T" + struct.pack("<QQ", 2, 0) + b"X" + struct.pack("<QQ", 0, 0), "cannot be filled"),
    ],
)
def test_records_that_cannot_be(pool: Any, other: Any, payload: bytes, problem: str) -> None:
    with pytest.raises(CorruptionError, match=problem):
        other.load(io.BytesIO(rebuilt(dumped(pool), payload)))
    assert other.root is None
    assert_nothing_leaked(other)


def test_a_load_that_runs_out_of_room_leaves_nothing(pool: Any, tmp_path: Path) -> None:
    pool.root["bytes"] = pool.new(PersistentList, [bytes([i]) * 100_000 for i in range(200)])
    stream = dumped(pool)
    with pmemobj.create(tmp_path / "s.pool", max_size=12 << 20, durability="lazy") as small:
        with pytest.raises(NoSpaceError):
            small.load(io.BytesIO(stream))
        assert small.root is None
        assert_nothing_leaked(small)
        assert_sound(small)


def test_a_class_without_load(pool: Any, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.root["counter"] = pool.new(Counter)
    stream = dumped(pool)
    monkeypatch.delattr(Counter, "_p_load")
    with pytest.raises(CorruptionError, match="Counter cannot be filled"):
        other.load(io.BytesIO(stream))


def test_recursion_is_not_needed(pool: Any, other: Any) -> None:
    inner = pool.root
    with pool.transaction():
        for _ in range(3000):
            inner["k"] = pool.new(PersistentDict)
            inner = inner["k"]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit // 2)
    try:
        move(pool, other)
    finally:
        sys.setrecursionlimit(limit)
