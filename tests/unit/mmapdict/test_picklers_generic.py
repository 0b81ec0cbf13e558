"""Objects of all kinds: what pickles comes back, large buffers as views of the file."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import datetime
import decimal
import pickle
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import CorruptionError, PickleRefusedError, UnsupportedTypeError
from pmshelve.mmapdict.picklers import codec, generic
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.codec import encode
from tests.support.codec import (
    FakeSource,
    address,
    both,
    global_names,
    lies_in,
    load_body,
    place,
    stored,
)
from tests.support.processes import run_isolated
from tests.support.values import assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


class Owner:
    """Hands out its memory when it is pickled, as arrays do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: int) -> Any:
        return Owner, (pickle.PickleBuffer(self.data),)


_shared = [1, 2, 3]
OBJECTS: dict[str, Any] = {
    "list": [1, "a", None, 1.5],
    "dict": {"a": {1: (2, 3)}},
    "set": {1, 2},
    "shared": [_shared, _shared],
    "ordered": collections.OrderedDict(z=1, a=2),
    "date": datetime.datetime(2018, 3, 5, tzinfo=datetime.timezone.utc),
    "decimal": decimal.Decimal("1.10"),
    "complex": 1 - 2j,
    "bytearray": bytearray(b"abc"),
    "long bytearray": bytearray(100_000),
    "long bytes inside": [bytes(300_000), b"x"],
    "long text inside": {"t": "é" * 100_000},
    "class": collections.OrderedDict,
    "dataclass": Point(1, [2]),
    "many": list(range(50_000)),
    "ellipsis": ...,
    "range": range(3, 9),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_round_trip(path: Path, name: str) -> None:
    value = OBJECTS[name]
    for read in both(path, value):
        assert read == value
        assert type(read) is type(value)


@given(
    value=st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    )
)
def test_any_nest_of_builtins_round_trips(tmp_path_factory: Any, value: Any) -> None:
    for read in both(tmp_path_factory.mktemp("generic") / "value", [value]):
        assert_same(read, [value])


def test_sharing_and_cycles_are_kept(path: Path) -> None:
    cyclic: list[Any] = [1]
    cyclic.append(cyclic)
    for read in both(path, {"a": cyclic, "b": cyclic}):
        assert read["a"] is read["b"]
        assert read["a"][1] is read["a"]


def test_opcodes_of_the_format() -> None:
    body, reduces = encode({"a": 1})
    assert isinstance(body, bytes)
    raw = pickle.dumps({"a": 1}, 5)
    assert body == b"\x8c\x06pickle\x8c\x05loads\x93" + b"C" + bytes([len(raw)]) + raw + b"\x85"
    assert reduces


@pytest.mark.parametrize("size", [100, 200, 210, 220, 230, 240, 250, 60_000, 65_500, 65_600])
def test_raw_of_every_size(path: Path, size: int) -> None:
    for read in both(path, [b"b" * size]):
        assert read == [b"b" * size]


def test_large_parts_of_raw_are_not_copied() -> None:
    data, text = bytes(1_000_000), "é" * 100_000
    (_, blob, _), reduces = encode([data, text, data])
    assert reduces
    assert isinstance(blob, Blob)
    assert (blob.opcode, blob.aligned) == (b"\x8e", False)
    assert blob.chunks is not None
    chunks = list(blob.chunks())
    assert sum(map(len, chunks)) == blob.size
    assert any(chunk is data for chunk in chunks)
    assert pickle.loads(b"".join(chunks)) == [data, text, data]


# Buffers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r+", "r", "c", None])
def test_large_buffers_are_views_of_the_file(path: Path, mode: Any) -> None:
    source = stored(path, [Owner(bytearray(b"a" * 5000)), Owner(bytearray(b"b" * 1024))], mode)
    first, second = source.get()
    assert bytes(first.data) == b"a" * 5000
    assert bytes(second.data) == b"b" * 1024
    assert memoryview(first.data).readonly == (mode == "r")
    if mode in ("r", "r+"):
        assert lies_in(first.data, source.map)
        assert lies_in(second.data, source.map)
    if mode != "r":
        memoryview(first.data)[:1] = b"x"
        assert (b"xaaa" in source.content()) == (mode == "r+")
        assert bytes(source.get()[0].data[:1]) == (b"x" if mode == "r+" else b"a")
    owners = load_body(source.content())
    assert [len(owner.data) for owner in owners] == [5000, 1024]
    assert not memoryview(owners[0].data).readonly


def test_buffers_start_at_multiples_of_64(path: Path) -> None:
    source = stored(path, [Owner(bytearray([i]) * (2000 + i)) for i in range(40)])
    for number, owner in enumerate(source.get()):
        assert address(owner.data) % 64 == 0
        assert bytes(owner.data) == bytes([number]) * (2000 + number)


def test_small_buffers_stay_in_the_pickle(path: Path) -> None:
    body, _ = encode([Owner(bytearray(generic.BUFFER_SIZE_MIN - 1))])
    assert isinstance(body, bytes)
    for read in both(path, [Owner(bytearray(b"small"))]):
        assert bytes(read[0].data) == b"small"
        assert not memoryview(read[0].data).readonly


def test_read_only_buffers_stay_read_only(path: Path) -> None:
    for read in both(path, Owner(bytes(5000))):
        assert memoryview(read.data).readonly


def test_buffers_and_large_raw_together(path: Path) -> None:
    value = [Owner(bytearray(5000)), bytes(200_000), np.arange(3000)]
    for owner, data, array in both(path, value):
        assert bytes(owner.data) == bytes(5000)
        assert data == bytes(200_000)
        assert_same(np.asarray(array), np.arange(3000))


def test_a_buffer_that_cannot_be_written_is_a_type_error() -> None:
    with pytest.raises(UnsupportedTypeError):
        encode(Owner(memoryview(bytearray(5000))[::2]))


def test_raw_in_a_private_mode_is_read_apart(path: Path) -> None:
    for mode in ("r+", "r", "c", None):
        assert stored(path, {"many": "x" * 500_000}, mode).get() == {"many": "x" * 500_000}


# What does not pickle ---------------------------------------------------------------------------


def _nested() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda: (i for i in range(3)), TypeError),
        (lambda: lambda: None, (AttributeError, pickle.PicklingError)),
        (threading.Lock, TypeError),
        (lambda: {"a": [threading.Lock()]}, TypeError),
        (_nested, RecursionError),
    ],
)
def test_what_does_not_pickle_is_a_type_error_with_its_cause(make: Any, cause: Any) -> None:
    value = make()
    with pytest.raises(UnsupportedTypeError, match="cannot be stored") as caught:
        encode(value)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value.__cause__, cause)


class Failing:
    def __reduce__(self) -> Any:
        raise OSError("its own error")


def test_errors_of_the_object_itself_are_its_own() -> None:
    with pytest.raises(OSError, match="its own error"):
        encode([1, Failing()])


def test_after_a_failure_the_next_value_is_right(path: Path) -> None:
    for bad in (Failing(), lambda: None):
        with pytest.raises((OSError, UnsupportedTypeError)):
            encode(["memoized text", np.zeros(5000), [bad]])
        value = ["memoized text", "memoized text"]
        for read in both(path, value):
            assert read == value


def test_nothing_is_kept_of_a_value() -> None:
    for others in ([], [Owner(bytearray(5000))], [bytes(100_000)], [np.zeros(10)]):
        point = Point(others)
        gone = weakref.ref(point)
        encoded = encode([point])
        del point
        assert gone() is None
        del encoded


# Its surroundings -------------------------------------------------------------------------------


class Storing:
    """Encodes another value while it is being encoded."""

    def __reduce__(self) -> Any:
        return Point, (place(encode({"inner": [1, 2, "text"]})), "text")


def test_an_object_may_use_the_store_while_it_is_pickled(path: Path) -> None:
    for read in both(path, ["text", Storing(), Storing(), "text"]):
        assert read[0] == read[3] == "text"
        assert load_body(read[1].x) == {"inner": [1, 2, "text"]}


def test_threads_do_not_mix_their_values() -> None:
    failures: list[Any] = []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(300):
            value = {"thread": number, "turn": turn, "array": np.full(400, number)}
            read = load_body(place(encode(value)))
            if read["thread"] != number or read["turn"] != turn or set(read["array"]) != {number}:
                failures.append(read)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Registered:
    def __init__(self, value: int) -> None:
        self.value = value


def test_registrations_of_the_program_count(path: Path) -> None:
    encode([np.zeros(3)])  # a pickler was made before
    copyreg.pickle(Registered, lambda item: (Registered, (item.value + 1,)))
    try:
        for read in both(path, [Registered(1)]):
            assert read[0].value == 2
    finally:
        del copyreg.dispatch_table[Registered]


_WITHOUT_NUMPY = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
from pmshelve.mmapdict.picklers.codec import encode, resolve

class Owner:
    def __reduce_ex__(self, protocol):
        return bytearray, (pickle.PickleBuffer(bytearray(5000)),)

small, _ = encode({"a": [1]})
large, _ = encode([Owner()])
assert type(small) is bytes and len(large) == 3 and large[1].size == 5000, (small, large)
assert "numpy" not in sys.modules
if len(sys.argv) > 2:
    import numpy
    body, _ = encode([numpy.arange(10000)])
    assert b"numpy" in body[-1] and b"_core" not in body[-1], body
    assert body[1].size == 80000
"""


def test_numpy_is_not_needed() -> None:
    run_isolated(_WITHOUT_NUMPY, Path(__file__).parents[3], block=("numpy",))


def test_numpy_may_come_later() -> None:
    run_isolated(_WITHOUT_NUMPY, Path(__file__).parents[3], "later", block=())


# Reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [[1], [np.zeros(5000)], Point(1), {"x": bytes(100_000)}])
def test_the_unpickler_runs_only_if_it_may(path: Path, value: Any) -> None:
    source = stored(path, value, allow_pickle=False)
    with pytest.raises(PickleRefusedError, match="allow_pickle=True") as caught:
        source.get()
    assert caught.value.path == source.path


def _raise(kind: Any, text: str) -> Any:
    raise kind(text)


class Loading:
    """Fails when it is loaded."""

    def __init__(self, kind: Any, text: str) -> None:
        self.arguments = kind, text

    def __reduce__(self) -> Any:
        return _raise, self.arguments


@pytest.mark.parametrize("kind", [KeyError, EOFError, ValueError, AttributeError, ImportError])
def test_errors_of_loading_are_the_objects_own(path: Path, kind: Any) -> None:
    with pytest.raises(kind, match="its own") as caught:
        stored(path, Loading(kind, "its own")).get()
    assert type(caught.value) is kind


@pytest.mark.parametrize("raw", [b"", b"\x80\x05", b"\x80\x05N", b"\x80\x055", b"rubbish", b"."])
def test_raw_that_is_no_pickle_is_corrupt(path: Path, raw: bytes) -> None:
    opcodes = b"\x8c\x06pickle\x8c\x05loads\x93C" + bytes([len(raw)]) + raw + b"\x85R"
    with pytest.raises(CorruptionError) as caught:
        FakeSource(path, opcodes).get()
    assert caught.value.offset is not None


@pytest.mark.parametrize("last", [b"R", b"0"])
def test_a_dying_entry_is_still_read(path: Path, last: bytes) -> None:
    for value in ([1, 2], {"a": np.arange(1000)}, np.arange(5)):
        opcodes = place(encode(value))[:-1] + last
        assert_same_array_or(FakeSource(path, opcodes).get(), value)
    with pytest.raises((CorruptionError, PickleRefusedError)):
        FakeSource(path, place(encode([1]))[:-1] + b"N", allow_pickle=False).get()


def assert_same_array_or(read: Any, value: Any) -> None:
    if isinstance(value, dict):
        assert_same(np.asarray(read["a"]), value["a"])
    elif isinstance(value, np.ndarray):
        assert_same(np.asarray(read), value)
    else:
        assert read == value


def test_a_call_of_loads_by_somebody_else_is_run(path: Path) -> None:
    raw = pickle.dumps([1, 2], 2)
    opcodes = b"(cpickle\nloads\nC" + bytes([len(raw)]) + raw + b"\x85RK\x05t0N"
    assert FakeSource(path, opcodes).get(own=False) is None
    opcodes = b"\x8c\x06pickle\x8c\x05loads\x93C" + bytes([len(raw)]) + raw + b"\x85RK\x05\x86"
    assert FakeSource(path, opcodes).get(own=False) == ([1, 2], 5)


@pytest.mark.parametrize("argument", [b"N", b"C\x05abc", b"B\xff\xff\xff\x7f", b"]", b""])
def test_a_call_of_loads_with_something_else_is_corrupt_or_refused(
    path: Path, argument: bytes
) -> None:
    for head in (generic.PICKLE_HEAD, generic.BUFFERS_HEAD + generic.BUFFERS_END):
        opcodes = head + argument + b"\x85R"
        with pytest.raises(PickleRefusedError):
            FakeSource(path, opcodes, allow_pickle=False).get()


def test_modules_that_are_not_loaded_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    generic.forget_writers()
    with monkeypatch.context() as patch:
        patch.setitem(codec._unseen, "no such module", pytest.fail)
        patch.delitem(sys.modules, "numpy")
        body, _ = encode(Point(1))
        assert load_body(place((body, True))) == Point(1)
    generic.forget_writers()


def test_names_in_a_pickle_of_builtins() -> None:
    body, _ = encode({"a": [np.arange(3), np.arange(3000)]})
    names = set().union(*(global_names(place(([piece], False)) + b".") for piece in body[-1:]))
    assert names <= {"numpy.ndarray"}
