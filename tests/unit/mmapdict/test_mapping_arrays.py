"""Arrays in an mmapdict: mapped, aligned, in the mode that was asked for."""

from __future__ import annotations

import gc
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.mmapdict import EmptyNDArray, mmapdict
from tests.support.layout import TERMINATOR
from tests.support.stores import assert_sound, descriptors, stock_load
from tests.support.values import arrays, assert_same, masked_arrays


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


# Maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, value in arrays().items() if value.size])
def test_array_is_an_aligned_memmap_of_the_file(path: Path, name: str) -> None:
    value = arrays()[name]
    with mmapdict(path) as store:
        store["padding"] = "x" * 37
        store["a"] = value
        got = store["a"]
        assert type(got) is np.memmap
        assert os.fspath(got.filename) == str(path)
        assert got.mode == "r+"
        assert got.offset % 64 == 0
        assert got.ctypes.data % 64 == 0
        assert got.flags.writeable
        order = "F" if got.flags.f_contiguous and not got.flags.c_contiguous else "C"
        again = np.memmap(path, got.dtype, "r", got.offset, got.shape or (1,), order)
        assert again.tobytes() == got.tobytes()
        got.flush()
        assert_same(got, value)


def test_fortran_order_is_kept(path: Path) -> None:
    with mmapdict(path) as store:
        store["f"] = np.asfortranarray(np.arange(6).reshape(2, 3))
        store["c"] = np.arange(6).reshape(2, 3)
        assert store["f"].flags.f_contiguous
        assert store["c"].flags.c_contiguous


def test_writing_to_an_array_writes_to_the_file(path: Path) -> None:
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader:
        store["a"] = np.zeros(1000)
        seen = reader["a"]
        store["a"][10] = 5
        view = store["a"]
        view[11] = 6
        view.flush()
        assert seen[10] == 5
        assert stock_load(path)["a"][11] == 6
        assert list(store.check()) == []
    with mmapdict(path) as store:
        assert store["a"][:12].tolist() == [0] * 10 + [5, 6]


def test_mode_r_cannot_be_written_to(path: Path) -> None:
    with mmapdict(path, mmap_mode="r") as store:
        store["a"] = np.arange(5)
        got = store["a"]
        assert got.mode == "r"
        assert isinstance(got, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            got[0] = 1
        store["b"] = got
        assert_sound(store, {"a": np.arange(5), "b": np.arange(5)})


def test_mode_c_keeps_changes_to_itself(path: Path) -> None:
    for size in (5, 500_000):
        with mmapdict(path, mmap_mode="c") as store:
            store["a"] = np.arange(size)
            got = store["a"]
            got[0] = 99
            assert got[0] == 99
            assert store["a"][0] == 0
            assert stock_load(path)["a"][0] == 0


def test_mode_c_view_does_not_hide_what_happens_later(path: Path) -> None:
    with mmapdict(path, mmap_mode="c") as store, mmapdict(path) as writer:
        writer["a"] = np.zeros(100_000)
        view = store["a"]
        view[:] = 1
        writer["a"] = np.full(100_000, 2.0)
        writer["b"] = 1
        assert store["a"][0] == 2
        assert store["b"] == 1
        del writer["a"]
        assert "a" not in store
        assert (view == 1).all()


def test_mode_none_loads_into_memory(path: Path) -> None:
    with mmapdict(path, mmap_mode=None) as store:
        store["a"] = np.arange(100_000)
        store["f"] = np.asfortranarray(np.ones((3, 4)))
        got = store["a"]
        assert type(got) is np.ndarray
        assert got.flags.writeable
        got[0] = 5
        assert store["a"][0] == 0
        assert store["f"].flags.f_contiguous
        store["m"] = np.ma.zeros(3)
        assert type(store["m"].data) is np.ndarray


def test_modes_of_a_read_only_store(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = np.arange(10)
    with mmapdict(path, readonly=True) as store:
        assert store["a"].mode == "r"
        assert not store["a"].flags.writeable
    with mmapdict(path, readonly=True, mmap_mode="c") as store:
        got = store["a"]
        got[0] = 7
        assert store["a"][0] == 0
    with mmapdict(path, readonly=True, mmap_mode=None) as store:
        assert type(store["a"]) is np.ndarray


def test_mode_r_plus_of_a_read_only_store_is_mode_r(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = np.arange(3)
    with mmapdict(path, readonly=True, mmap_mode="r+") as store:
        assert store["a"].mode == "r"
        assert not store["a"].flags.writeable


@pytest.mark.parametrize("mode", ["r+", "r", "c", None])
def test_buffers_inside_objects_follow_the_mode(path: Path, mode: Any) -> None:
    value = {"a": np.arange(100_000), "b": [bytearray(100_000)], "c": 1}
    with mmapdict(path, mmap_mode=mode) as store:
        store["v"] = value
        got = store["v"]
        assert_same(np.asarray(got["a"]), value["a"])
        assert bytes(got["b"][0]) == bytes(100_000)
        if mode != "r":
            got["a"][0] = 77
            assert got["a"][0] == 77
        else:
            with pytest.raises(ValueError, match="read-only"):
                got["a"][0] = 77
        assert stock_load(path)["v"]["a"][0] == (77 if mode == "r+" else 0)


@pytest.mark.parametrize("name", masked_arrays())
def test_masked_array_is_mapped(path: Path, name: str) -> None:
    value = masked_arrays()[name]
    with mmapdict(path) as store:
        store["m"] = value
        got = store["m"]
        assert type(got) is np.ma.MaskedArray
        assert isinstance(got.data, np.memmap)
        assert_same(got, value)
        if value.mask is not np.ma.nomask:
            assert isinstance(got.mask, np.memmap)
            got[...] = 5
            got[0] = np.ma.masked
            assert np.ma.getmaskarray(store["m"])[0].all()
            assert np.array_equal(store["m"].mask, got.mask)
        got.data[...] = 4
        assert_same(np.asarray(store["m"].data), np.asarray(got.data))


def test_array_outlives_store_and_file_name(path: Path) -> None:
    store = mmapdict(path)
    store["a"] = np.arange(1000)
    got = store["a"]
    inside = mmapdict(path)
    inside["o"] = {"x": np.arange(50_000)}
    nested = inside["o"]["x"]
    inside.close()
    store.close()
    del store, inside
    gc.collect()
    path.unlink()
    assert got.sum() == 499_500
    assert nested[-1] == 49_999


def test_old_value_stays_readable_while_it_is_held(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = np.full(10_000, 1)
        old = store["a"]
        store["a"] = np.full(10_000, 2)
        middle = store["a"]
        del store["a"]
        store["b"] = bytes(1_000_000)
        assert (old == 1).all()
        assert (middle == 2).all()


def test_many_live_copy_on_write_views_do_not_use_up_descriptors(path: Path) -> None:
    with mmapdict(path, mmap_mode="c") as store:
        store["a"] = np.arange(20_000)
        before = len(descriptors())
        views = [store["a"] for _ in range(3000)]
        assert len(descriptors()) - before < 1000
        for number, view in enumerate(views):
            view[0] = -number
        assert [view[0] for view in views] == [-number for number in range(3000)]
        assert store["a"][0] == 0
        del views, view
        assert len(descriptors()) - before < 10
        assert isinstance(store["a"], np.ndarray)


def test_many_live_shared_views_cost_no_descriptors(path: Path) -> None:
    with mmapdict(path) as store:
        before = len(descriptors())
        views = []
        for number in range(300):
            store[str(number)] = np.full(1000, number)
            views.append(store[str(number)])
        assert len(descriptors()) - before < 50
        assert all((view == number).all() for number, view in enumerate(views))


# EmptyNDArray -----------------------------------------------------------------------------------


def test_stub_tells_shape_and_dtype() -> None:
    stub = EmptyNDArray((3, 4), np.float32)
    assert stub.shape == (3, 4)
    assert stub.dtype == np.dtype("f4")
    assert EmptyNDArray((3,)).dtype == np.dtype(float)
    assert EmptyNDArray(shape=(3,), dtype="i2", reserve=True).dtype == np.dtype("i2")


@pytest.mark.parametrize("shape", [(10, 9), (), (0, 3), (7,)])
def test_stub_becomes_zeros(path: Path, shape: tuple[int, ...]) -> None:
    with mmapdict(path) as store:
        store["a"] = EmptyNDArray(shape, dtype=np.float32)
        assert isinstance(store["a"], np.memmap)
        assert_sound(store, {"a": np.zeros(shape, "f4")})
        store["a"][...] = 3
        store["b"] = 1
        assert_sound(store, {"a": np.full(shape, 3, "f4"), "b": 1})


def test_stub_is_filled_where_old_bytes_lay_behind_the_end(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
        with pytest.raises(RuntimeError), store.batch():
            store["junk"] = b"\xff" * 200_000
            raise RuntimeError
    with open(path, "ab") as file:
        file.write(b"\xee" * 100_000)
    with mmapdict(path) as store:
        store["z"] = EmptyNDArray((20_000,), "u1")
        assert not store["z"].any()


def test_stub_takes_no_disk_until_written_to(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = EmptyNDArray((1 << 27,))
        assert path.stat().st_size > 1 << 30
        assert path.stat().st_blocks * 512 < 1 << 22


def test_reserved_stub_has_its_disk(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = EmptyNDArray((1 << 20,), reserve=True)
        assert path.stat().st_blocks * 512 >= 8 << 20
        assert not store["a"].any()


def test_value_of_more_than_four_gib(path: Path) -> None:
    size = (4 << 30) + 12345
    with mmapdict(path) as store:
        store["small"] = 1
        store["huge"] = EmptyNDArray((size,), "u1")
        store["after"] = np.arange(10)
        store["huge"][-1] = 7
        store["huge"][4 << 30] = 8
        assert list(store) == ["small", "huge", "after"]
    with mmapdict(path) as store:
        huge = store["huge"]
        assert huge.shape == (size,)
        assert (huge[0], huge[-1], huge[4 << 30]) == (0, 7, 8)
        assert store["after"].sum() == 45
        store["after"] = 2
        store["more"] = "text"
        assert store["after"] == 2
        del huge
        del store["huge"]
        assert dict(store) == {"small": 1, "after": 2, "more": "text"}
    with open(path, "rb") as file:  # loading it the stock way would take that much memory
        file.seek(-11, io.SEEK_END)
        assert file.read() == TERMINATOR


@pytest.mark.parametrize("dtype", [object, [("a", object)]])
def test_stub_of_objects_is_type_error(path: Path, dtype: Any) -> None:
    with mmapdict(path) as store:
        before = path.read_bytes()
        with pytest.raises(TypeError):
            store["a"] = EmptyNDArray((3,), dtype)
        assert path.read_bytes() == before


def test_stub_of_negative_shape_is_value_error(path: Path) -> None:
    with mmapdict(path) as store:
        with pytest.raises(ValueError):  # noqa: PT011
            store["a"] = EmptyNDArray((-3,))
        assert_sound(store, {})


def test_stub_that_no_disk_holds_is_a_clean_error(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
        with pytest.raises((OSError, ValueError)):
            store["b"] = EmptyNDArray((1 << 62,))
        assert_sound(store, {"a": 1})
        store["c"] = 2
        assert_sound(store, {"a": 1, "c": 2})


# Objects of other packages ----------------------------------------------------------------------


def _address_range(path: Path) -> list[tuple[int, int]]:
    """Return where in memory the file is mapped."""
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip().endswith(str(path)):
                first, last = line.split()[0].split("-")
                found.append((int(first, 16), int(last, 16)))
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
def test_columns_of_a_data_frame_are_views_of_the_map(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": np.arange(100_000.0), "y": np.arange(100_000)})
    with mmapdict(path) as store:
        store["frame"] = frame
        got = store["frame"]
        pandas.testing.assert_frame_equal(got, frame)
        pandas.testing.assert_frame_equal(stock_load(path)["frame"], frame)
        for name in "xy":
            address = got[name].to_numpy().ctypes.data
            assert any(first <= address < last for first, last in _address_range(path))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs /proc")
def test_buffers_of_an_arrow_table_are_views_of_the_map(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"x": np.arange(100_000.0), "t": ["text"] * 100_000})
    with mmapdict(path) as store:
        store["table"] = table
        got = store["table"]
        assert got.equals(table)
        assert stock_load(path)["table"].equals(table)
        address = got["x"].chunk(0).buffers()[1].address
        assert any(first <= address < last for first, last in _address_range(path))
