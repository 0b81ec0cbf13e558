"""Picklers as users see them: the classes to derive from, and how a store uses what it finds."""

from __future__ import annotations

import gc
import io
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import CorruptionError, UnsupportedTypeError
from pmshelve.mmapdict import EmptyNDArray, picklers
from pmshelve.mmapdict.picklers import (
    ArrayPickler,
    BasePickler,
    GenericPickler,
    MaskedArrayPickler,
)
from pmshelve.mmapdict.picklers import codec as tables
from pmshelve.mmapdict.picklers.base import FileSource, Foreign
from pmshelve.mmapdict.picklers.builtin import Codec
from tests.support.codec import OFFSET, FakeSource, load_body, place, stored
from tests.support.values import all_values, assert_same

BUILTIN = [ArrayPickler, MaskedArrayPickler, GenericPickler]


class Store:
    """What picklers need of a store: its file."""

    def __init__(self, path: Path, mode: str = "w+b") -> None:
        self._file = open(path, mode, buffering=0)  # noqa: SIM115

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def _no_class_outlives_its_test() -> Iterator[None]:
    yield
    gc.collect()


def classes(codec: Codec) -> list[type]:
    return [type(pickler) for pickler in codec.picklers]


# The base class ---------------------------------------------------------------------------------


def test_the_base_class_takes_nothing(store: Store) -> None:
    pickler = BasePickler(store)
    assert pickler.priority == 0
    assert not pickler.is_valid(0, 10)
    assert not pickler.is_picklable(5)
    with pytest.raises(NotImplementedError):
        pickler.read(0, 10)
    with pytest.raises(NotImplementedError):
        pickler.write(5, 0)


def test_a_pickler_does_not_keep_its_store_alive(path: Path) -> None:
    store = Store(path)
    pickler = BasePickler(store)
    assert pickler._file is store._file
    store.close()
    del store
    with pytest.raises(ReferenceError):
        pickler._file  # noqa: B018


def test_a_codec_does_not_keep_its_store_alive(path: Path) -> None:
    class Own(BasePickler):
        pass

    for chosen in (None, BUILTIN, [Own, GenericPickler]):
        store: Any = Store(path)
        store.codec = Codec(store, chosen)
        store.codec.encode(5)
        file = store._file
        gc.collect()
        gc.disable()
        try:
            pickler = store.codec.picklers[0]
            del store
            assert pickler._parent_object() is None
        finally:
            gc.enable()
        file.close()


@pytest.mark.parametrize("start", [0, 1, 250, 256, 70_000])
def test_bodies_with_their_memo_from_an_index_on(store: Store, start: int) -> None:
    pickler = BasePickler(store)
    shared = ["text", ("a", 1)]
    value = [shared, shared, "text", {"k": shared}, shared[1]]
    body, end = pickler._pickle_dump_fix(value, start)
    assert end == start + 3  # the list, the text and the tuple are used again
    read = pickler._pickle_load_fix(body)
    assert read == value
    assert read[0] is read[1] is read[3]["k"]
    assert read[4] is read[0][1]
    first = pickler._pickle_dump_fix(["x"], start)
    assert first == (b"]\x8c\x01xa", start)


def test_two_bodies_in_one_pickle_do_not_share_their_memo(store: Store) -> None:
    pickler = BasePickler(store)
    a, b = ["a"], ["b"]
    first, end = pickler._pickle_dump_fix([a, a], 5)
    second, _ = pickler._pickle_dump_fix([b, b], end)
    assert pickle.loads(b"\x80\x04" + first + second + b"\x86.") == ([a, a], [b, b])


# The built-in ones ------------------------------------------------------------------------------


def test_what_is_public() -> None:
    assert set(picklers.__all__) == {"BasePickler", *(kind.__name__ for kind in BUILTIN)}


def test_priorities() -> None:
    assert [kind.priority for kind in BUILTIN] == [100, 100, -100]


@pytest.mark.parametrize("name", all_values())
def test_the_first_that_takes_a_value_writes_and_reads_it(store: Store, name: str) -> None:
    value = all_values()[name]
    made = Codec(store).picklers[:3]
    writer = next(pickler for pickler in made if pickler.is_picklable(value))
    store._file.write(b"x" * 100)
    store._file.seek(33)
    length, memo = writer.write(value, OFFSET, 7)
    assert memo == 7
    assert store._file.tell() == 33
    reader = next(pickler for pickler in made if pickler.is_valid(OFFSET, length))
    assert type(reader) is type(writer)
    read, read_length = reader.read(OFFSET, length)
    assert store._file.tell() == 33
    assert_same(read, value)
    assert read_length == length
    store._file.seek(OFFSET)
    assert_same(load_body(store._file.read(length)), value)


def test_which_takes_what(store: Store) -> None:
    array, masked, generic = (kind(store) for kind in BUILTIN)
    objects = np.array([None])
    for value in (np.zeros(3), EmptyNDArray(3), np.zeros(3, "S2")):
        assert array.is_picklable(value)
        assert not masked.is_picklable(value)
    for value in (objects, 5, "a", np.float64(1), np.ma.zeros(3), np.zeros(3).view(np.matrix)):
        assert not array.is_picklable(value)
    assert masked.is_picklable(np.ma.zeros(3))
    for value in (np.ma.array([None]), np.zeros(3), 5):
        assert not masked.is_picklable(value)
    assert generic.is_picklable(object())


def test_without_numpy_nothing_is_an_array(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    array, masked, _ = (kind(store) for kind in BUILTIN)
    monkeypatch.delitem(sys.modules, "numpy.ma")
    assert not masked.is_picklable(5)
    monkeypatch.delitem(sys.modules, "numpy")
    assert not array.is_picklable(5)


def test_an_array_of_zeros_is_allocated(store: Store, path: Path) -> None:
    length, _ = ArrayPickler(store).write(EmptyNDArray((1000, 1000), "u1"), 0)
    assert path.stat().st_size == length
    array, _ = ArrayPickler(store).read(0, length)
    assert array.shape == (1000, 1000)
    array[5] = 1
    assert path.read_bytes().count(1) >= 1000


def test_a_read_only_file_is_mapped_read_only(store: Store, path: Path) -> None:
    length, _ = ArrayPickler(store).write(np.arange(5), 0)
    reader = Store(path, "rb")
    array, _ = ArrayPickler(reader).read(0, length)
    assert array.mode == "r"
    assert not array.flags.writeable
    assert array.filename == str(path)
    reader.close()


def test_an_unbuffered_file_may_take_little_at_a_time(path: Path) -> None:
    class Slow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:1000])

    store = Store(path)
    store._file.close()
    store._file = Slow(path, "w+")  # type: ignore[assignment]
    length, _ = ArrayPickler(store).write(np.arange(5000), 0)
    array, _ = ArrayPickler(store).read(0, length)
    assert_same(np.asarray(array), np.arange(5000))
    store.close()


def test_what_is_no_value_is_not_valid_to_any(store: Store) -> None:
    store._file.write(b"\x8e" + b"\xff" * 8)
    for kind in BUILTIN:
        assert not kind(store).is_valid(0, 9)
        with pytest.raises(CorruptionError):
            kind(store).read(0, 9)
    store._file.write(b"K\x05")
    assert not ArrayPickler(store).is_valid(9, 2)
    with pytest.raises(CorruptionError, match="ArrayPickler"):
        ArrayPickler(store).read(9, 2)


def test_a_file_as_a_source(store: Store, path: Path) -> None:
    store._file.write(bytes(range(100)) * 100)
    store._file.seek(5)
    source = FileSource(store._file)
    assert (source.path, source.mmap_mode, source.allow_pickle) == (str(path), "r+", True)
    assert source.read(10, 20) == bytes(range(10, 20))
    window, position = source.window(5000, 5010)
    assert window[position : position + 10] == bytes(range(10))
    assert store._file.tell() == 5
    assert FileSource(io.BytesIO()).path is None


# The codec --------------------------------------------------------------------------------------


def test_the_built_in_ones_are_there_and_the_tables_used(store: Store) -> None:
    codec = Codec(store, BUILTIN)
    assert classes(codec) == BUILTIN
    assert codec.encode is tables.encode
    assert codec.resolve is tables.resolve


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Celsius) and other.degrees == self.degrees

    __hash__ = None  # type: ignore[assignment]


def own_pickler(rank: int) -> type[BasePickler]:
    """Return a pickler which writes temperatures as a text and a number."""

    class CelsiusPickler(BasePickler):
        priority = rank

        def is_picklable(self, obj: Any) -> bool:
            return type(obj) is Celsius

        def is_valid(self, offset: int, length: int) -> bool:
            self._file.seek(offset)
            return bool(self._file.read(9) == b"\x8c\x07celsius")

        def write(self, obj: Any, offset: int, memo_start_idx: int = 0) -> tuple[int, int]:
            self._file.seek(offset)
            data = self._pickle_dump_fix(("celsius", obj.degrees))[0]
            return self._file.write(data), memo_start_idx

        def read(self, offset: int, length: int) -> tuple[Any, int]:
            self._file.seek(offset)
            name, degrees = self._pickle_load_fix(self._file.read(length))
            assert name == "celsius"
            return Celsius(degrees), length

    return CelsiusPickler


@pytest.mark.parametrize("rank", [1000, 0, -99])
def test_a_pickler_of_the_users_own(path: Path, rank: int) -> None:
    kind = own_pickler(rank)
    store = Store(path)
    codec = Codec(store)
    assert set(BUILTIN) < set(classes(codec))
    foreign = codec.encode(Celsius(21.5))
    assert type(foreign) is Foreign
    assert type(foreign.pickler) is kind
    store._file.write(b"\xff" * OFFSET)
    length, memo = foreign.pickler.write(foreign.value, OFFSET, 3)
    assert memo == 3
    source = FileSource(store._file)
    start, stop, decoder = codec.resolve(source, OFFSET, OFFSET + length, own=False)
    assert decoder is not None
    assert decoder(source, start, stop) == Celsius(21.5)
    assert load_body(path.read_bytes()[OFFSET:]) == ("celsius", 21.5)
    store.close()


def test_others_values_go_the_usual_way(store: Store, path: Path) -> None:
    own = own_pickler(0)
    codec = Codec(store, [own, *BUILTIN])
    for value in (5, "a", b"b", [1], np.arange(5), np.ma.zeros(3), EmptyNDArray(3)):
        encoded = codec.encode(value)
        assert type(encoded) is tuple
        source = FakeSource(path, place(encoded))
        start, stop, decoder = codec.resolve(source, OFFSET, source.stop)
        read = source.read(start, stop) if decoder is None else decoder(source, start, stop)
        assert_same(read, np.zeros(3) if isinstance(value, EmptyNDArray) else value)


def test_order_is_by_falling_priority(store: Store) -> None:
    high, middle, low = own_pickler(500), own_pickler(0), own_pickler(-500)
    assert classes(Codec(store, [low, middle, *BUILTIN, high])) == [
        high,
        *BUILTIN[:2],
        middle,
        GenericPickler,
        low,
    ]


def test_one_below_the_generic_one_is_never_asked(store: Store) -> None:
    assert type(Codec(store, [own_pickler(-500), *BUILTIN]).encode(Celsius(1))) is tuple


def test_subclasses_of_subclasses_are_found(store: Store) -> None:
    own = own_pickler(50)

    class Derived(own):  # type: ignore[misc, valid-type]
        priority = 60

    class Arrays(ArrayPickler):
        priority = 200

    found = classes(Codec(store))
    assert found.index(Arrays) < found.index(ArrayPickler) < found.index(Derived) < found.index(own)
    assert len(found) == len(set(found))
    assert all(kind.__name__[0] != "_" for kind in found)


def test_a_subclass_of_a_built_in_one_writes_itself(store: Store) -> None:
    class Doubling(ArrayPickler):
        priority = 200

        def write(self, obj: Any, offset: int, memo_start_idx: int = 0) -> tuple[int, int]:
            return super().write(obj * 2, offset, memo_start_idx)

    codec = Codec(store, [Doubling, *BUILTIN])
    foreign = codec.encode(np.arange(5))
    assert type(foreign) is Foreign
    length, _ = foreign.pickler.write(foreign.value, 0)
    source = FileSource(store._file)
    start, stop, decoder = codec.resolve(source, 0, length, own=False)
    assert decoder is not None
    assert decoder(source, start, stop).tolist() == [0, 2, 4, 6, 8]


def test_only_the_generic_one(store: Store, path: Path) -> None:
    codec = Codec(store, [GenericPickler])
    assert classes(codec) == [GenericPickler]
    for value in (np.arange(5), np.arange(5000), np.ma.array([1, 2], mask=[0, 1]), 5, b"b", "t"):
        for opcodes in (place(codec.encode(value)), place(tables.encode(value))):
            source = FakeSource(path, opcodes)
            start, stop, decoder = codec.resolve(source, OFFSET, source.stop)
            read = source.read(start, stop) if decoder is None else decoder(source, start, stop)
            assert type(read) is not np.memmap
            assert_same(read, value)


def test_without_the_generic_one_little_can_be_stored(store: Store, path: Path) -> None:
    codec = Codec(store, [ArrayPickler])
    assert type(codec.encode(np.arange(5))) is tuple
    for value in (5, "a", [1], np.ma.zeros(3), np.array([None])):
        with pytest.raises(UnsupportedTypeError, match="no pickler"):
            codec.encode(value)
        source = stored(path, value)
        with pytest.raises(CorruptionError, match="no pickler"):
            codec.resolve(source, OFFSET, source.stop)


def test_no_picklers_at_all(store: Store) -> None:
    with pytest.raises(UnsupportedTypeError):
        Codec(store, []).encode(None)
