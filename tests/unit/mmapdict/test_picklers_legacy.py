"""Values as mmappickle writes them: arrays are recognised and mapped, never run."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import CorruptionError, PickleRefusedError
from pmshelve.mmapdict.picklers.codec import resolve
from pmshelve.mmapdict.picklers.memo import renumber_memo
from tests.support.codec import OFFSET, FakeSource, address, lies_in
from tests.support.layout import read_layout
from tests.support.stores import DATA
from tests.support.values import assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value"


# mmappickle's opcodes ---------------------------------------------------------------------------


def text(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


ARRAY_HEAD = (
    text("numpy.core.fromnumeric")
    + text("reshape")
    + b"\x93"
    + text("numpy.core.multiarray")
    + text("fromstring")
    + b"\x93"
)
MASKED_HEAD = text("numpy.ma.core") + text("MaskedArray") + b"\x93"


def shape_opcodes(shape: tuple[int, ...]) -> bytes:
    items = b"".join(map(number, shape))
    if len(shape) < 4:
        return items + [b")", b"\x85", b"\x86", b"\x87"][len(shape)]
    return b"(" + items + b"t"


def legacy_array(array: Any, dtype: str | None = None) -> bytes:
    data = np.asarray(array).tobytes()
    return (
        ARRAY_HEAD
        + b"\x8e"
        + len(data).to_bytes(8, "little")
        + data
        + text(dtype or str(array.dtype))
        + b"\x86R"
        + shape_opcodes(array.shape)
        + b"\x86R"
    )


def legacy_masked(data: Any, mask: Any) -> bytes:
    return MASKED_HEAD + legacy_array(data) + legacy_array(mask) + b"\x86R"


# Arrays -----------------------------------------------------------------------------------------

ARRAYS = [
    np.arange(3, dtype="u1"),
    np.arange(24, dtype=">f4").reshape(2, 3, 4),
    np.ones((1, 2, 1, 2, 1)),
    np.array(5.0),
    np.zeros((0, 3)),
    np.zeros((300, 2), "i2"),
    np.zeros(70_000, "?"),
    np.array(["2020", "NaT"], "M8[D]"),
    np.array(["a", "世"]),
    np.array([b"a", b"bc"]),
    np.ones(2, np.longdouble),
    np.ones(2, "c8"),
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda value: f"{value.dtype}{value.shape}")
@pytest.mark.parametrize("mode", ["r+", "r", "c", None])
def test_arrays_are_mapped(path: Path, value: Any, mode: Any) -> None:
    source = FakeSource(path, legacy_array(value), mode, allow_pickle=False)
    read = source.get(own=False)
    assert_same(np.asarray(read), value)
    assert type(read) is (np.ndarray if mode is None else np.memmap)
    assert read.flags.writeable == (mode != "r")
    if mode in ("r+", "r") and value.size:
        assert lies_in(read, source.map)
        assert read.offset == address(read) - address(source.map)
    assert sum(stop - start for start, stop in source.reads) < 20_000


def test_an_array_on_no_boundary_can_be_used(path: Path) -> None:
    value = np.arange(100.0)
    read = FakeSource(path, legacy_array(value)).get(own=False)
    assert read.offset % 8 != 0
    assert read.sum() == value.sum()
    read[5] = -1
    assert FakeSource(path, legacy_array(read)).get(own=False)[5] == -1


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("a", "<i4"), ("b", ">f8", (2,))]),
        np.dtype([("a", "u1"), ("b", "f8")], align=True),
        np.dtype({"names": ["a"], "formats": ["<i4"], "offsets": [3], "itemsize": 9}),
    ],
    ids=str,
)
def test_structured_arrays_are_read_though_mmappickle_could_not(path: Path, dtype: Any) -> None:
    value = np.zeros(3, dtype)
    value["a"] = [1, 2, 3]
    read = FakeSource(path, legacy_array(value)).get(own=False)
    assert read.dtype == dtype
    assert read["a"].tolist() == [1, 2, 3]


def test_masked_arrays_are_mapped(path: Path) -> None:
    data, mask = np.arange(6.0).reshape(2, 3), np.eye(2, 3, dtype=bool)
    source = FakeSource(path, legacy_masked(data, mask), allow_pickle=False)
    read = source.get(own=False)
    assert type(read) is np.ma.MaskedArray
    assert_same(np.asarray(read.data), data)
    assert_same(np.asarray(read.mask), mask)
    assert lies_in(read.data, source.map)
    assert lies_in(read.mask, source.map)
    read[0, 1] = np.ma.masked
    assert source.get(own=False).mask[0].tolist() == [True, True, False]


def test_a_mask_that_was_none(path: Path) -> None:
    read = FakeSource(path, legacy_masked(np.arange(3), np.array(False))).get(own=False)
    assert read.mask is np.ma.nomask
    assert read.tolist() == [0, 1, 2]
    read = FakeSource(path, legacy_masked(np.array(3), np.array(True))).get(own=False)
    assert read.shape == ()
    assert read.mask.tolist() is True


# Everything else --------------------------------------------------------------------------------

OBJECTS: list[Any] = [
    *(None, True, False, 42, -7, 2**80, 1.5, "héllo 世", b"\x00\xff", "t" * 300, b"b" * 70_000),
    *([1, [2]], {"a": (1, 2)}, {1, 2}, OrderedDict(z=1), datetime.date(2018, 3, 5)),
    *(decimal.Decimal("1.10"), frozenset({1, 2})),
]


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("memo", [1, 300])
def test_other_values_are_unpickled(path: Path, value: Any, memo: int) -> None:
    shared = [value, value]
    for item in (value, shared):
        opcodes, last = renumber_memo(pickle.dumps(item, 4), memo)
        assert last >= memo
        read = FakeSource(path, opcodes).get(own=False)
        assert read == item
        assert type(read) is type(item)


def test_plain_values_need_no_unpickler(path: Path) -> None:
    for value in OBJECTS[:11]:
        opcodes, _ = renumber_memo(pickle.dumps(value, 4), 1)
        assert FakeSource(path, opcodes, allow_pickle=False).get(own=False) == value
    for value in OBJECTS[11:]:
        opcodes, _ = renumber_memo(pickle.dumps(value, 4), 1)
        with pytest.raises(PickleRefusedError):
            FakeSource(path, opcodes, allow_pickle=False).get(own=False)


# Fixtures ---------------------------------------------------------------------------------------


def fixture_values(name: str) -> dict[str, Any]:
    """Return the live values of a fixture, each read through the codec."""
    data = (DATA / name).read_bytes()
    values = {}
    for entry in read_layout(data).entries:
        if entry.live:
            start = entry.start + 11 + len(entry.stored_key)
            source = FileBytes(data)
            first, last, decoder = resolve(source, start, entry.end - 8, own=False)
            found = data[first:last] if decoder is None else decoder(source, first, last)
            values[entry.key] = found
    return values


class FileBytes:
    path = None
    mmap_mode = None
    allow_pickle = True
    keep_pickles = False

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]

    def window(self, start: int, stop: int) -> tuple[Any, int]:
        return bytearray(self.data), start


def test_fixture_of_generic_values() -> None:
    shared = [1, 2, 3]
    assert fixture_values("generic.mmdpickle") == {
        "none": None,
        "true": True,
        "int": 42,
        "negative": -7,
        "big": 2**80,
        "float": 1.5,
        "bytes": b"\x00\xff",
        "text": "héllo 世",
        "nested": {"a": [shared, shared, {"k": "shared"}], "b": ("shared", "shared"), 3: None},
        "ordered": OrderedDict(z=1, a=2),
        "date": datetime.date(2018, 3, 5),
        "decimal": decimal.Decimal("1.10"),
        "set": frozenset({1, 2}),
        "é-key": "unicode key",
        "k" * 255: "longest key",
    }
    nested = fixture_values("generic.mmdpickle")["nested"]
    assert nested["a"][0] is nested["a"][1]


def test_fixture_of_arrays() -> None:
    expected = {
        "u8": np.array([1, 2, 3], "u1"),
        "f8_2d": np.arange(12.0).reshape(3, 4),
        "i4_3d": np.arange(24, dtype="i4").reshape(2, 3, 4),
        "bool": np.array([True, False]),
        "c16": np.array([1 + 2j]),
        "f4_big_endian": np.arange(4, dtype=">f4"),
        "empty": np.zeros((0, 3)),
        "wide": np.zeros((300, 2), "i2"),
        "text_after": "mixed with a generic value",
    }
    values = fixture_values("arrays.mmdpickle")
    assert list(values) == list(expected)
    for key, value in expected.items():
        assert_same(values[key], value)


def test_fixture_of_masked_arrays() -> None:
    values = fixture_values("masked.mmdpickle")
    mask = [[False, True, False], [True, False, True]]
    assert_same(values["masked"], np.ma.MaskedArray([[1, 2, 3], [4, 5, 6]], mask))
    assert_same(values["unmasked"], np.ma.zeros((2, 3), "i8"))
    assert_same(values["invalid"], np.ma.masked_invalid([1, np.nan, 3]))


def test_fixture_with_a_history() -> None:
    values = fixture_values("history.mmdpickle")
    assert values["k02"] == {"i": 2, "shared": ["shared", "shared"]}
    assert values["k02"]["shared"][0] is values["k02"]["shared"][1]
    assert values["k01"] == "replaced 1"
    assert_same(values["array"], np.arange(6))


# Files that lie ---------------------------------------------------------------------------------

_VALUE = np.arange(3, dtype="<i4")
_SIZE_AT = len(ARRAY_HEAD) + 1
_GOOD = legacy_array(_VALUE)


@pytest.mark.parametrize(
    "opcodes",
    {
        "object dtype": legacy_array(_VALUE, "object"),
        "object code": legacy_array(_VALUE, "O"),
        "other dtype": legacy_array(_VALUE, "int64"),
        "no dtype": legacy_array(_VALUE, "nonsense"),
        "a call as dtype": legacy_array(_VALUE, "[__import__('os').getpid()]"),
        "an object field": legacy_array(_VALUE, "[('a', 'O')]"),
        "a field of a shape": legacy_array(_VALUE, "('<i4', (1,))"),
        "other shape": _GOOD.replace(number(3) + b"\x85", number(4) + b"\x85"),
        "negative shape": _GOOD.replace(number(3) + b"\x85", number(-3) + b"\x85"),
        "no shape": _GOOD.replace(number(3) + b"\x85", b"N"),
        "one argument": ARRAY_HEAD + b"C\x00\x85R)\x86R",
        "past the end": _GOOD[:_SIZE_AT] + (2**40).to_bytes(8, "little") + _GOOD[_SIZE_AT + 8 :],
        "cut": _GOOD[:-1],
        "dtype not text": ARRAY_HEAD + b"C\x00N\x86R" + b")\x86R",
        "cut in the shape": _GOOD[:-4],
        "mask of another shape": legacy_masked(_VALUE, np.array([True])),
        "mask of numbers": legacy_masked(_VALUE, _VALUE),
        "half a mask": MASKED_HEAD + legacy_array(_VALUE) + b"N\x86R",
    }.items(),
    ids=lambda item: item[0],
)
def test_what_does_not_fit_is_corrupt(path: Path, opcodes: tuple[str, bytes]) -> None:
    for allow_pickle in (False, True):
        with pytest.raises(CorruptionError) as caught:
            FakeSource(path, opcodes[1], allow_pickle=allow_pickle).get(own=False)
        assert caught.value.path == str(path)
        assert caught.value.offset >= OFFSET


def test_other_opcodes_that_hold_such_an_array_are_not_run_as_one(path: Path) -> None:
    for opcodes in (b"]" + _GOOD + b"a", _GOOD + b"0N", ARRAY_HEAD + b"N\x86", _GOOD * 3):
        with pytest.raises((CorruptionError, PickleRefusedError)):
            FakeSource(path, opcodes, allow_pickle=False).get(own=False)


@given(
    at=st.integers(0, 2000),
    byte=st.integers(0, 255),
    opcodes=st.sampled_from([_GOOD, legacy_masked(_VALUE, _VALUE == 1), b"\x8c\x03abc"]),
)
def test_a_changed_byte_is_another_value_or_refused(
    tmp_path_factory: Any, at: int, byte: int, opcodes: bytes
) -> None:
    data = bytearray(opcodes)
    data[at % len(data)] = byte
    source = FakeSource(tmp_path_factory.mktemp("flip") / "value", bytes(data), allow_pickle=False)
    with contextlib.suppress(CorruptionError, PickleRefusedError):
        source.get(own=False)
    assert source.stop == OFFSET + len(data)
