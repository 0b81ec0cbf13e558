"""Masked arrays: data and mask mapped, with fill value and hard mask."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmshelve.errors import CorruptionError, PickleRefusedError
from pmshelve.mmapdict.opcodes import Buffer, Call, Global, emit
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.codec import encode
from pmshelve.mmapdict.picklers.generic import encode_buffers
from tests.support.codec import FakeSource, both, lies_in, load_body, place, stored


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value"


_structured = np.dtype([("a", "<i4"), ("b", "<f8", (2,))])
MASKED: dict[str, Any] = {
    "masked": np.ma.array([[1.0, 2.0], [3.0, 4.0]], mask=[[0, 1], [0, 0]]),
    "no mask": np.ma.zeros((2, 3)),
    "no mask, fill": np.ma.array([1, 2], fill_value=7),
    "all masked": np.ma.masked_all((3, 4), "<i2"),
    "fill": np.ma.array([1, 2, 3], mask=[0, 1, 0], fill_value=-5),
    "hard": np.ma.array([1, 2, 3], mask=[0, 1, 0], hard_mask=True),
    "text": np.ma.array(["a", "bcd"], mask=[1, 0]),
    "text fill": np.ma.array(["a", "bcd"], mask=[1, 0], fill_value="?"),
    "dates": np.ma.array(np.array(["2020", "2021"], "M8[D]"), mask=[0, 1]),
    "structured": np.ma.array(np.ones(3, _structured), mask=[(0, (1, 0))] * 3),
    "structured fill": np.ma.array([(1, 2.0)], dtype="i4,f8", mask=[(0, 1)], fill_value=(7, 8)),
    "0-d": np.ma.array(5, mask=True),
    "0-d unmasked": np.ma.array(5),
    "empty": np.ma.zeros((0, 3)),
    "empty mask": np.ma.array(np.zeros((0, 3)), mask=np.zeros((0, 3), bool)),
    "fortran": np.ma.array(np.ones((3, 4), order="F"), mask=np.eye(3, 4, dtype=bool)),
    "strided": np.ma.array(np.arange(40.0).reshape(4, 10), mask=np.eye(4, 10))[::2, ::3],
    "large": np.ma.array(np.arange(5000), mask=np.arange(5000) % 3 == 0),
}


def assert_equal(read: Any, value: Any) -> None:
    assert type(read) is np.ma.MaskedArray
    assert read.dtype == value.dtype
    assert read.shape == value.shape
    assert np.asarray(read.data).tobytes() == np.asarray(value.data).tobytes()
    assert (read.mask is np.ma.nomask) == (value.mask is np.ma.nomask)
    assert np.array_equal(np.ma.getmaskarray(read), np.ma.getmaskarray(value))
    assert np.ma.getmaskarray(read).dtype == np.ma.getmaskarray(value).dtype
    assert read.hardmask == value.hardmask
    assert (read._fill_value is None) == (value._fill_value is None)
    copies = read.copy(), value.copy()
    assert repr(copies[0].fill_value) == repr(copies[1].fill_value)
    assert copies[0].fill_value.dtype == copies[1].fill_value.dtype


@pytest.mark.parametrize("name", MASKED)
def test_round_trip(path: Path, name: str) -> None:
    value = MASKED[name].copy() if MASKED[name].flags.contiguous else MASKED[name]
    for read in both(path, value):
        assert_equal(read, value)
        assert read.data.flags.writeable
    for read in both(path, {"inside": value}):
        assert_equal(read["inside"], value)


@pytest.mark.parametrize("mode", ["r+", "r", "c", None])
@pytest.mark.parametrize("name", ["masked", "structured", "large", "hard"])
def test_data_and_mask_are_maps(path: Path, name: str, mode: Any) -> None:
    value = MASKED[name]
    source = stored(path, value, mode, allow_pickle=False)
    read = source.get()
    assert_equal(read, value)
    kind = np.ndarray if mode is None else np.memmap
    for part in (read.data, read.mask):
        assert type(part) is kind
        assert part.flags.writeable == (mode != "r")
        if mode is not None:
            assert part.filename == str(path)
            assert part.mode == mode
            assert part.offset % 64 == 0
            assert part.tobytes() in source.content()
    if mode in ("r+", "r"):
        assert lies_in(read.data, source.map)
        assert lies_in(read.mask, source.map)


def test_masking_an_item_writes_to_the_file(path: Path) -> None:
    source = stored(path, np.ma.array([1, 2, 3], mask=[1, 0, 0]))
    read = source.get()
    read[1] = np.ma.masked
    read[2] = 9
    read.mask[0] = False
    for again in (source.get(), load_body(source.content())):
        assert again.mask.tolist() == [False, True, False]
        assert again.data.tolist() == [1, 2, 9]


def test_in_a_private_mode_it_does_not(path: Path) -> None:
    source = stored(path, np.ma.array([1, 2, 3], mask=[1, 0, 0]), "c")
    read = source.get()
    read[1] = np.ma.masked
    assert read.mask.tolist() == [True, True, False]
    assert source.get().mask.tolist() == [True, False, False]


def test_a_hard_mask_is_hard(path: Path) -> None:
    for read in both(path, MASKED["hard"]):
        read[1] = 99
        assert read[1] is np.ma.masked


@given(
    data=hnp.arrays(
        hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0), elements={"allow_nan": False}
    ),
    mask=st.data(),
    fill=st.booleans(),
    hard=st.booleans(),
)
def test_any_masked_array_round_trips(
    tmp_path_factory: Any, data: Any, mask: Any, fill: bool, hard: bool
) -> None:
    drawn = mask.draw(st.just(np.ma.nomask) | hnp.arrays(bool, data.shape))
    value = np.ma.MaskedArray(data, mask=drawn, hard_mask=hard)
    if fill and data.size:
        value.fill_value = data.flat[0]
    path = tmp_path_factory.mktemp("masked") / "value"
    for read in both(path, value):
        assert_equal(read, value)
    for read in both(path, [value]):
        assert_equal(read[0], value)


class Tagged(np.ma.MaskedArray):
    pass


def test_other_masked_arrays_are_stored_generically(path: Path) -> None:
    objects = np.ma.array([1, "a", None], mask=[0, 1, 0], dtype=object)
    over_matrix = np.ma.array(np.ones((2, 2)).view(np.matrix), mask=np.eye(2))
    for value in (objects, over_matrix, np.ma.array([1, 2], mask=[0, 1]).view(Tagged)):
        source = stored(path, value)
        for read in (source.get(), load_body(source.content())):
            assert type(read) is type(value)
            assert type(read.data) is type(value.data)
            assert np.asarray(read.data).tolist() == np.asarray(value.data).tolist()
            assert read.mask.tolist() == value.mask.tolist()
        source.allow_pickle = False
        with pytest.raises(PickleRefusedError):
            source.get()


def test_the_masked_constant_stays_one(path: Path) -> None:
    for value in (np.ma.masked, [np.ma.masked]):
        for read in both(path, value):
            assert (read[0] if isinstance(read, list) else read) is np.ma.masked


# Files that lie ---------------------------------------------------------------------------------


GOOD_DATA = ((3,), "<i8", Buffer(0), 0, None, "C")
GOOD_MASK = ((3,), "|b1", Buffer(1), 0, None, "C")


def forged(
    data: Any = GOOD_DATA,
    mask: Any = GOOD_MASK,
    fill: Any = None,
    between: Any = (None, False, True, 0),
    end: Any = (True, False),
    sizes: tuple[int, ...] = (24, 3),
) -> bytes:
    """Return the value opcodes of a masked array of three with these parts."""
    ndarray = Global("numpy", "ndarray")
    calls = [Call(ndarray, part) if type(part) is tuple else part for part in (data, mask, fill)]
    arguments = (*calls[:2], *between, calls[2], *end)
    raw = b"\x80\x05" + emit(Call(Global("numpy.ma", "MaskedArray"), arguments)) + b"."
    blobs = [Blob(size, None) for size in sizes]
    return place((encode_buffers(blobs, [emit(raw)]), True))


def test_the_forger_can_make_a_good_one(path: Path) -> None:
    assert forged() == place(encode(np.ma.array([0, 0, 0], mask=[0, 0, 0])))
    fill = ((), "<i8", b"\5" + bytes(7), 0, None, "C")
    assert FakeSource(path, forged(fill=fill)).get().fill_value == 5


@pytest.mark.parametrize(
    "parts",
    [
        {"data": ((4,), "<i8", Buffer(0), 0, None, "C")},
        {"data": ((3,), "|O8", Buffer(0), 0, None, "C")},
        {"data": ((3,), "<i8", None, 0, None, "C")},
        {"data": None},
        {"data": Global("numpy.ma", "nomask")},
        {"mask": ((2,), "|b1", Buffer(1), 0, None, "C")},
        {"mask": ((3, 1), "|b1", Buffer(1), 0, None, "C")},
        {"mask": ((3,), "|u1", Buffer(1), 0, None, "C")},
        {"mask": ((), "|b1", Buffer(1), 0, None, "C"), "sizes": (24, 1)},
        {"mask": True},
        {"mask": Global("numpy.ma", "masked")},
        {"mask": Global("numpy.ma", "nomask")},
        {"sizes": (24,)},
        {"sizes": (24, 4)},
        {"sizes": (24, 3, 0)},
        {"fill": 5},
        {"fill": ((), "<i8", b"short", 0, None, "C")},
        {"fill": ((1,), "<i8", bytes(8), 0, None, "C")},
        {"fill": ((), "|O8", bytes(8), 0, None, "C")},
        {"fill": ((), "<i8")},
        {"fill": ((), "<U2", bytes(8), 0, None, "C")},
        {"between": (None, True, True, 0)},
        {"between": (None, False, True)},
        {"end": (True, False, None)},
        {"end": (False, False)},
        {"end": (True, 7)},
    ],
    ids=repr,
)
def test_parts_that_do_not_fit_are_corrupt(path: Path, parts: dict[str, Any]) -> None:
    for allow_pickle in (False, True):
        with pytest.raises(CorruptionError):
            FakeSource(path, forged(**parts), allow_pickle=allow_pickle).get()


@given(at=st.integers(0, 2000), byte=st.integers(0, 255), name=st.sampled_from(list(MASKED)))
def test_a_changed_byte_is_another_array_or_refused(
    tmp_path_factory: Any, at: int, byte: int, name: str
) -> None:
    opcodes = bytearray(place(encode(MASKED[name]), padding=5))
    opcodes[at % len(opcodes)] = byte
    path = tmp_path_factory.mktemp("flip") / "value"
    with contextlib.suppress(CorruptionError, PickleRefusedError):
        FakeSource(path, bytes(opcodes), allow_pickle=False).get().tobytes()
