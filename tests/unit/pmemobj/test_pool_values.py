"""What can be kept in a pool, comes back as it was, and is freed when nobody has it any more."""

# ruff: noqa: DTZ001, PLR0124
# Values without a time zone are values too; a NaN is what differs from itself.

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import gc
import math
import pathlib
import random
import struct
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import ObjectError, UnsupportedTypeError
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
)
from tests.support.guard import time_limit
from tests.support.pools import assert_nothing_leaked, assert_sound, block_sizes, plain, used

Make = Callable[..., Any]


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class Nested:
    class Shade(enum.Enum):
        DARK = ()


class Pair:
    """Immutable, and ours to nominate."""

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and (self.a, self.b) == (other.a, other.b)

    def __hash__(self) -> int:
        return hash((self.a, self.b))


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


NAN = struct.unpack("<d", b"\x01\x02\x03\x04\x05\x06\xf8\x7f")[0]

VALUES: list[Any] = [
    None, True, False,
    *(sign * 2**power + delta for power in (0, 7, 8, 31, 32, 53, 62, 63, 64, 127, 128, 1000)
      for sign in (1, -1) for delta in (-1, 0, 1)),
    10**5000, -(10**5000), 1 << 100_000,
    0.0, -0.0, 1.0, -1.5, math.inf, -math.inf, math.nan, NAN, sys.float_info.max, 5e-324, 1e16,
    0j, complex(-0.0, 0.0), complex(0.0, -0.0), complex(math.nan, math.inf), 3 + 4j,
    *(("x" * size) for size in (*range(20), 100, 5_000, 100_000)),
    *((b"y" * size) for size in (*range(20), 100, 5_000, 100_000)),
    "\0", "a\0b", "\0" * 30, "é", "é" * 7, "é" * 8, "€" * 4 + "ab", "€" * 5, "\U0001f600" * 3,
    "\U0001f600" * 4, "\ud800", "\udfff" * 4, "\ud800\udc00", "a\udcffb" * 10, "e\u0301", "\u00e9",
    b"\0", b"\0\0\0", bytes(range(256)), b"\xff" * 14, b"\xff" * 15,
    datetime.datetime(2024, 2, 29, 23, 59, 59, 999999),
    datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
    datetime.datetime(2024, 10, 27, 2, 30, fold=1),
    datetime.date(1, 1, 1), datetime.time(1, 2, 3, 4), datetime.timedelta(-1, 5, 7),
    datetime.timezone(datetime.timedelta(hours=2), "X"),
    decimal.Decimal("1.10"), decimal.Decimal("NaN"), decimal.Decimal("-Infinity"),
    fractions.Fraction(-3, 7), uuid.UUID(int=5),
    pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:/x"),
    Colour.RED, Colour.GREEN, Bits.ONE | Bits.TWO, Nested.Shade.DARK,
    range(5), range(10, -10, -3), range(10**30),
    (), (1,), (1, "two", (3.0, (None,))), ((((),),),), frozenset(), frozenset([1, "two"]),
    frozenset([frozenset([(1, 2)])]), (frozenset([1]), b"x" * 50),
]  # fmt: skip


def same(found: Any, value: Any) -> bool:
    """Whether two values are alike in type and every bit."""
    if isinstance(value, tuple):
        return len(found) == len(value) and all(map(same, found, value))
    if isinstance(value, frozenset):
        return bool(found == value) and len(found) == len(value)
    if type(found) is not type(value):
        return False
    if isinstance(value, float):
        return struct.pack("<d", found) == struct.pack("<d", value)
    if isinstance(value, complex):
        return same(found.real, value.real) and same(found.imag, value.imag)
    if isinstance(value, decimal.Decimal):
        return repr(found) == repr(value)
    if isinstance(value, datetime.datetime):
        return bool(found == value) and found.fold == value.fold
    return bool(found == value)


def test_every_value_comes_back_as_it_was(make: Make) -> None:
    pool = make()
    pool.root = pool.new(PersistentList, VALUES)
    for value, found in zip(VALUES, pool.root, strict=True):
        assert same(found, value), value if len(repr(value)) < 200 else type(value)
    for number, value in enumerate(VALUES):
        pool.root[number] = value
        assert same(pool.root[number], value)
        assert same(pool.mm.resurrect(pool.mm.persist(value)), value)
    assert_sound(pool)
    pool.close()
    pool = make()
    for value, found in zip(VALUES, pool.root, strict=True):
        assert same(found, value), value if len(repr(value)) < 200 else type(value)
    assert_nothing_leaked(pool)


def test_every_value_is_a_root_and_an_attribute(pool: Any) -> None:
    thing = pool.new(PersistentObject)
    for value in VALUES:
        pool.root = value
        assert same(pool.root, value)
        thing.value = value
        assert same(thing.value, value)
    assert_sound(pool)


def test_every_value_is_a_key(make: Make) -> None:
    expected = {value: number for number, value in enumerate(VALUES)}
    pool = make()
    pool.root = pool.new(PersistentDict)
    for number, value in enumerate(VALUES):
        pool.root[value] = number
    for turn in range(2):
        assert len(pool.root) == len(expected)
        assert [number for _, number in pool.root.items()] == list(expected.values())
        for key, found in zip(expected, pool.root, strict=True):
            assert same(found, key)
        for value in VALUES:
            if value == value:
                assert pool.root[value] == expected[value]
                assert value in pool.root
            elif not turn:
                pass  # NaN: found by identity only, as in dict
        pool.close()
        pool = make()
    for value in VALUES:
        if value == value and value in pool.root:
            del pool.root[value]
    assert all(key != key for key in pool.root)
    pool.root.clear()
    assert_nothing_leaked(pool)


def test_equal_numbers_are_one_key_and_distinct_values(pool: Any) -> None:
    for values in (
        [1, 1.0, True, 1 + 0j, decimal.Decimal(1), fractions.Fraction(1)],
        [0, 0.0, -0.0, False, 0j, decimal.Decimal(0), fractions.Fraction(0)],
        [2**70, float(2**70), decimal.Decimal(2**70), fractions.Fraction(2**70)],
        [0.5, decimal.Decimal("0.5"), fractions.Fraction(1, 2), 0.5 + 0j],
    ):
        keys = pool.new(PersistentDict)
        members = pool.new(PersistentSet)
        items = pool.new(PersistentList, values)
        for number, value in enumerate(values):
            keys[value] = number
            members.add(value)
        assert [type(item) for item in items] == [type(value) for value in values]
        assert len(keys) == len(members) == 1
        assert same(next(iter(keys)), values[0]), "the first key stays, as in dict"
        assert same(next(iter(members)), values[0])
        assert all(keys[value] == len(values) - 1 for value in values)
        for value in values[1:]:
            other = pool.new(PersistentDict, {value: 1})
            assert values[0] in other
            assert same(next(iter(other)), value)


def test_one_and_one_point_nought_and_true_stay_what_they_are(pool: Any) -> None:
    """pynvm keeps a cache by value, in which they are one."""
    for values in ([1, 1.0, True], [True, 1, 1.0], [1.0, True, 1], [0.0, -0.0, 0, False]):
        items = pool.new(PersistentList)
        for value in values:
            items.append(value)
            assert same(pool.mm.resurrect(pool.mm.persist(value)), value)
        assert all(map(same, items, values))
    large = [2**80, float(2**80)]
    assert all(map(same, pool.new(PersistentList, large), large))
    nested = [(1, (2**80,)), (1.0, (float(2**80),)), (True, (2**80,))]
    assert all(map(same, pool.new(PersistentList, nested), nested))


def test_a_nan_is_found_by_identity_only(pool: Any) -> None:
    nan = math.nan
    pool.root["list"] = pool.new(PersistentList, [nan])
    assert pool.root["list"][0] != pool.root["list"][0]
    keys = pool.new(PersistentDict)
    keys[math.nan] = 1
    assert len(keys) == 1
    assert math.isnan(next(iter(keys)))
    keys.clear()
    assert_sound(pool)


def test_ints_near_the_limits(make: Make) -> None:
    rng = random.Random(1)
    values = [rng.getrandbits(bits) * sign for bits in range(1, 300) for sign in (1, -1)]
    pool = make()
    pool.root = pool.new(PersistentList, values)
    assert pool.root == values
    pool.close()
    assert list(make().root) == values


# Nominated for pickling -------------------------------------------------------------------------


def test_a_nominated_class_is_persisted(make: Make) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict)
    with pytest.raises(TypeError, match=r"Don't know how to persist .*Pair") as caught:
        pool.root["p"] = Pair(1, "x")
    assert "persist_via_pickle" in str(caught.value)
    pool.persist_via_pickle(Pair, Text)
    pool.root["p"] = Pair(1, "x")
    pool.root[Pair(2, 3)] = Text("text")
    pool.close()
    pool = make()  # reading needs no nomination, writing does
    assert pool.root["p"] == Pair(1, "x")
    assert pool.root[Pair(2, 3)] == "text"
    assert type(pool.root[Pair(2, 3)]) is Text
    with pytest.raises(TypeError, match="Don't know how to persist"):
        pool.root["q"] = Pair(1, "x")
    pool.mm.persist_via_pickle(Pair)
    pool.root["q"] = Pair(5, 6)
    assert pool.root["q"] == Pair(5, 6)


def test_subclasses_of_what_is_supported_are_other_classes(pool: Any) -> None:
    for value in (Text("x"), Whole(5), type("T", (tuple,), {})((1,))):
        with pytest.raises(TypeError, match="Don't know how to persist"):
            pool.root["x"] = value
    assert pool.root == {}


def test_a_class_of_a_function_cannot_be_nominated(pool: Any) -> None:
    class Local:
        pass

    with pytest.raises(TypeError, match="function"):
        pool.persist_via_pickle(Local)
    with pytest.raises(TypeError, match="class"):
        pool.persist_via_pickle(5)


def test_members_of_an_enum_of_a_function_are_refused_at_once(pool: Any) -> None:
    class Local(enum.Enum):
        ONE = 1

    with pytest.raises(TypeError, match="Local"):
        pool.root["x"] = Local.ONE
    assert pool.root == {}


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ([1], "PersistentList"),
        ({1: 2}, "PersistentDict"),
        ({1}, "PersistentSet"),
        (bytearray(b"x"), "bytes"),
        (object(), "persist_via_pickle"),
        (lambda: 1, ""),
        (iter([]), ""),
        (len, ""),
        (sys, ""),
        (int, ""),
        (Text("x"), "persist_via_pickle"),
        (NotImplemented, ""),
        (..., ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_persisted_is_a_type_error_with_a_hint(
    pool: Any, value: Any, hint: str
) -> None:
    name = type(value).__qualname__
    pool.root["kept"] = 1
    before = used(pool)
    for attempt in (
        lambda: pool.root.__setitem__("x", value),
        lambda: pool.root.setdefault("x", value),
        lambda: pool.root.update(x=value),
        lambda: pool.mm.persist(value),
        lambda: pool.new(PersistentList, [value]),
        lambda: pool.new(PersistentTuple, [value]),
        lambda: setattr(pool, "root", value),
        lambda: pool.mm.persist((1, (value,))),
    ):
        with pytest.raises(TypeError, match="Don't know how to persist") as caught:
            attempt()
        assert name in str(caught.value)
        assert hint in str(caught.value)
        assert isinstance(caught.value, UnsupportedTypeError)
    assert pool.root == {"kept": 1}
    gc.collect()
    pool.gc()
    assert used(pool) <= before + 64


def test_an_array_is_told_of_persistent_array(pool: Any) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="PersistentArray"):
        pool.root["x"] = numpy.arange(3)
    pool.root["x"] = pool.new(PersistentArray, numpy.arange(3))
    assert (numpy.asarray(pool.root["x"]) == numpy.arange(3)).all()


def test_unhashable_keys_are_refused_as_in_dict(pool: Any) -> None:
    for key in ([], {}, set(), pool.new(PersistentList), pool.new(PersistentDict), ([],)):
        for attempt in (
            lambda: pool.root.__setitem__(key, 1),
            lambda: pool.root[key],
            lambda: pool.root.get(key),
            lambda: key in pool.root,
            lambda: pool.root.pop(key, None),
            lambda: pool.new(PersistentSet, [key]),
        ):
            with pytest.raises(TypeError):
                attempt()
    assert pool.root == {}


def test_an_object_that_is_in_no_pool(pool: Any) -> None:
    with pytest.raises((ObjectError, TypeError)):
        pool.root["x"] = PersistentList.__new__(PersistentList)
    with pytest.raises(TypeError, match=r"pool\.new|pool"):
        PersistentList([1])
    assert pool.root == {}


# Freed at once ----------------------------------------------------------------------------------

BIG = [
    "x" * 5000,
    b"y" * 5000,
    7**5000,
    complex(1, 2),
    decimal.Decimal("1." + "3" * 3000),
    tuple(range(500)),
    frozenset(range(500)),
    ("x" * 1000, (b"y" * 1000, ("z" * 1000,))),
]


@pytest.mark.parametrize("value", BIG, ids=lambda value: type(value).__name__)
def test_an_overwritten_value_is_freed_at_once(pool: Any, value: Any) -> None:
    root = pool.root
    root["list"] = pool.new(PersistentList, [0])
    root["object"] = pool.new(PersistentObject)
    root["object"].x = 0
    root["set"] = pool.new(PersistentSet, range(5))
    root["x"] = 0
    root["set"].update(range(50))  # its table has room
    root["set"].difference_update(range(5, 50))
    before = block_sizes(pool)
    for _ in range(3):
        root["x"] = value
        assert block_sizes(pool) != before
        root["x"] = 0
        assert block_sizes(pool) == before
        root["list"][0] = value
        root["list"][0] = 0
        assert block_sizes(pool) == before
        root["object"].x = value
        root["object"].x = 0
        assert block_sizes(pool) == before
        root["list"][0:1] = [value, value]
        del root["list"][1]
        root["list"][0] = 0
        root["list"].pop()
        root["list"].append(0)
        pool.root["set"].add(value)
        pool.root["set"].remove(value)
        with pool.transaction():
            root["x"] = value
            root["x"] = 0
    assert sum(block_sizes(pool).values()) <= sum(before.values()) + 2
    assert used(pool) - sum(size * n for (size, _), n in before.items()) < 4096
    assert_nothing_leaked(pool)


def test_containers_that_nobody_holds_are_freed_at_once(pool: Any) -> None:
    def graph() -> Any:
        inner = pool.new(PersistentDict, {"deep": pool.new(PersistentSet, [1, "y" * 50])})
        return pool.new(PersistentList, [inner, inner, pool.new(PersistentObject), "x" * 100])

    root = pool.root
    root["x"] = 0
    before = sum(block_sizes(pool).values())
    for _ in range(3):
        root["x"] = graph()
        gc.collect()
        root["x"] = 0
        root["tick"] = 0  # what only Python held goes with the next transaction
        assert sum(block_sizes(pool).values()) <= before
    assert_nothing_leaked(pool)


def test_what_is_held_in_python_lives_as_long_as_it_is_held(pool: Any) -> None:
    root = pool.root
    before = sum(block_sizes(pool).values())
    root["x"] = pool.new(PersistentList, ["x" * 100])
    held = root.pop("x")
    assert held == ["x" * 100]
    held.append("still here " * 9)
    assert_sound(pool)
    assert held == ["x" * 100, "still here " * 9]
    pool.gc()
    assert held == ["x" * 100, "still here " * 9]
    root["again"] = held
    assert root["again"] is held
    del root["again"]
    del held
    gc.collect()
    root["tick"] = 0
    assert sum(block_sizes(pool).values()) <= before + 1
    assert_nothing_leaked(pool)


def test_updating_one_key_forever_takes_no_space(pool: Any) -> None:
    pool.root["counter"] = "0" * 100
    size = used(pool)
    for number in range(2000):
        pool.root["counter"] = str(number).zfill(100)
    assert used(pool) <= size + 1000
    assert_sound(pool)


# Identity ---------------------------------------------------------------------------------------


def test_one_stored_container_is_one_python_object(pool: Any) -> None:
    root = pool.root
    root["a"] = pool.new(PersistentList, [pool.new(PersistentDict)])
    assert root["a"] is root["a"]
    assert root["a"][0] is root["a"][0]
    assert pool.root is pool.root
    root["b"] = root["a"]
    root["a"][0]["up"] = root["a"]
    assert root["b"] is root["a"] is root["a"][0]["up"]
    assert next(iter(root["a"])) is root["a"][0]
    assert root.get("a") is root.setdefault("a", 5) is dict(root)["a"]
    assert pool.mm.resurrect(root["a"]._p_oid) is root["a"]
    first = root["a"]
    pool.mm.identity.recent.clear()
    gc.collect()
    assert root["a"] is first
    name = pool.filename
    pool.close()
    with pmemobj.open(name) as again:
        assert again.root["a"] is again.root["b"]
        assert again.root["a"] is not first
        again.root["a"].clear()


def test_what_is_stored_is_not_the_plain_object_given(pool: Any) -> None:
    items = [1, 2]
    stored = pool.new(PersistentList, items)
    items.append(3)
    assert stored == [1, 2]


def test_attributes_of_the_python_object_are_no_part_of_it(pool: Any) -> None:
    thing = pool.root
    for name in ("arbitrary", "x"):
        with pytest.raises(AttributeError):
            setattr(thing, name, 1)


# Deep -------------------------------------------------------------------------------------------

DEPTH = 10_000


@pytest.mark.parametrize("kind", ["list", "dict", "object", "tuple"])
def test_ten_thousand_levels(make: Make, kind: str) -> None:
    def wrap(pool: Any, inner: Any) -> Any:
        if kind == "list":
            return pool.new(PersistentList, [inner])
        if kind == "dict":
            return pool.new(PersistentDict, {"down": inner})
        if kind == "tuple":
            return pool.new(PersistentTuple, [inner])
        thing = pool.new(PersistentObject)
        thing.down = inner
        return thing

    def down(thing: Any) -> Any:
        return thing.down if kind == "object" else thing["down"] if kind == "dict" else thing[0]

    def build(pool: Any) -> Any:
        with pool.transaction():
            thing: Any = "bottom"
            for _ in range(DEPTH):
                thing = wrap(pool, thing)
        return thing

    with time_limit(120):
        pool = make()
        pool.root = pool.new(PersistentList, [build(pool), build(pool)])
        if kind != "object":
            assert pool.root[0] == pool.root[1]
            assert pool.root[0] != down(pool.root[1])
        assert pool.check() == []
        pool.gc()
        pool.close()
        pool = make()
        thing, depth = pool.root[1], 0
        while thing != "bottom":
            thing, depth = down(thing), depth + 1
        assert depth == DEPTH
        del thing
        pool.root.pop()
        pool.gc()
        cycle = build(pool)
        if kind == "list":
            bottom = cycle
            while bottom[0] != "bottom":
                bottom = bottom[0]
            bottom[0] = cycle
            del bottom
        del cycle
        gc.collect()
        pool.gc()
        pool.root.clear()
        assert_nothing_leaked(pool)
        pool.close()


@pytest.mark.parametrize("depth", [10, 2000, 10_000])
def test_a_deep_plain_tuple_is_persisted_and_compared(pool: Any, depth: int) -> None:
    value: Any = ("bottom",)
    for _ in range(depth):
        value = (value,)
    pool.root["deep"] = value
    pool.root["again"] = value
    assert pool.root["deep"] == pool.root["again"]
    found = pool.root["deep"]
    for _ in range(depth):
        found = found[0]
    assert found == ("bottom",)
    del found
    del pool.root["deep"]
    assert_sound(pool)


def test_repr_of_cycles(pool: Any) -> None:
    items = pool.new(PersistentList, [1])
    items.append(items)
    assert repr(items) == "PersistentList([1, [...]])" or "..." in repr(items)
    keys = pool.new(PersistentDict, {1: items})
    keys[2] = keys
    assert "..." in repr(keys)
    items.append(keys)
    assert "..." in repr(items)
    thing = pool.new(PersistentObject)
    thing.me = thing
    repr(thing)
    deep = pool.new(PersistentList)
    with pool.transaction():
        for _ in range(5000):
            deep = pool.new(PersistentList, [deep])
    try:
        text = repr(deep)
    except RecursionError:
        pass
    else:
        assert text.count("[") >= 5000


@pytest.mark.parametrize(
    ("kind", "argument", "expected"),
    [
        (PersistentList, [1, "a", None], "PersistentList([1, 'a', None])"),
        (PersistentList, [], "PersistentList([])"),
        (PersistentDict, {1: "a"}, "PersistentDict({1: 'a'})"),
        (PersistentDict, {}, "PersistentDict({})"),
        (PersistentSet, [5], "PersistentSet({5})"),
        (PersistentSet, [], "PersistentSet()"),
        (PersistentFrozenSet, [5], "PersistentFrozenSet({5})"),
        (PersistentTuple, [1], "PersistentTuple((1,))"),
        (PersistentTuple, [1, 2], "PersistentTuple((1, 2))"),
    ],
)
def test_repr_says_what_it_is(pool: Any, kind: Any, argument: Any, expected: str) -> None:
    thing = pool.new(kind, argument)
    assert repr(thing) == expected
    assert str(thing) == expected
    assert f"{thing}" == expected


def test_plain_copies(pool: Any) -> None:
    pool.root["a"] = pool.new(PersistentList, [pool.new(PersistentSet, [1]), (1, 2)])
    assert plain(pool.root) == {"a": [{1}, (1, 2)]}
