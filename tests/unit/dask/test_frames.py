"""Values packed for the store: read back as they were, by dask's own functions too, and aligned."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

pytest.importorskip("distributed")

from distributed.protocol import deserialize_bytes
from distributed.protocol.serialize import serialize_bytelist

from pmshelve.dask import frames

LARGE = 1 << 17


def aligned_copy(parts):
    """What a store gives back: writable memory that begins where a page may."""
    size = sum(memoryview(part).nbytes for part in parts)
    memory = np.empty(size + frames.ALIGNMENT, "u1")
    start = -memory.ctypes.data % frames.ALIGNMENT
    view = memoryview(memory)[start : start + size]
    offset = 0
    for part in parts:
        flat = memoryview(part).cast("B")
        view[offset : offset + len(flat)] = flat
        offset += len(flat)
    return view


class Record:
    def __init__(self, **fields):
        self.__dict__.update(fields)

    def __eq__(self, other):
        return all(
            np.array_equal(value, getattr(other, name)) for name, value in vars(self).items()
        )

    __hash__ = None


VALUES = {
    "none": None,
    "number": 12,
    "text": "é" * 5_000,
    "bytes": b"b" * 5_000,
    "small array": np.arange(4.0),
    "array": np.arange(512.0),
    "empty array": np.arange(0),
    "zero dimensions": np.array(7),
    "strided": np.arange(10_000)[::3],
    "Fortran": np.asfortranarray(np.arange(10_000.0).reshape(100, 100)),
    "broadcast": np.broadcast_to(np.arange(1_000), (50, 1_000)),
    "structured": np.zeros(1_000, [("a", "i2"), ("b", "f8")]),
    "times": np.arange(1_000).astype("M8[s]"),
    "objects": np.array([{}, "x", 1] * 100, object),
    "list of arrays": [np.arange(3_001, dtype="u1"), np.arange(1_000.0), np.arange(3.0)],
    "dict": {"x": np.arange(LARGE), "y": bytearray(5_000), "z": {"deep": np.ones(300)}},
    "object": Record(a=np.arange(999.0), b="text", c=np.zeros((3, 500), "c8")),
    "Fortran in an object": Record(a=np.asfortranarray(np.arange(10_000.0).reshape(100, 100))),
}


def same(found, value):
    if isinstance(value, np.ndarray):
        assert found.dtype == value.dtype
        assert found.shape == value.shape
        return np.array_equal(found, value)
    if isinstance(value, dict):
        return found.keys() == value.keys() and all(same(found[key], value[key]) for key in value)
    if isinstance(value, list):
        return len(found) == len(value) and all(map(same, found, value))
    return found == value


@pytest.mark.parametrize("read", [frames.load, deserialize_bytes])
@pytest.mark.parametrize("name", VALUES)
def test_what_is_packed_comes_back(name, read):
    assert same(read(aligned_copy(frames.dump(VALUES[name]))), VALUES[name])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("name", VALUES)
def test_what_dask_packed_is_read(name, compression):
    dump = partial(serialize_bytelist, on_error="raise", compression=compression)
    assert same(frames.load(aligned_copy(dump(VALUES[name]))), VALUES[name])


def arrays_of(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from arrays_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from arrays_of(item)
    elif isinstance(value, Record):
        yield from arrays_of(vars(value))


@pytest.mark.parametrize("name", ["array", "Fortran", "list of arrays", "dict", "object", "times"])
def test_large_arrays_are_views_of_what_was_read_and_aligned(name):
    packed = aligned_copy(frames.dump(VALUES[name]))
    memory = np.frombuffer(packed, "u1")
    found = [array for array in arrays_of(frames.load(packed)) if array.nbytes >= 1024]
    assert found
    for array in found:
        assert np.shares_memory(array, memory)
        assert array.flags.writeable
        assert array.ctypes.data % frames.ALIGNMENT == 0


def test_large_buffers_are_handed_on_as_they_are():
    array = np.arange(LARGE)
    assert any(
        np.shares_memory(np.frombuffer(part, "u1"), array)
        for part in frames.dump(array)
        if len(part)
    )


def test_an_array_that_dask_splits_comes_back_as_one(monkeypatch):
    monkeypatch.setattr("distributed.protocol.utils.BIG_BYTES_SHARD_SIZE", 1 << 16)
    value = {"a": np.arange(LARGE), "b": np.arange(30_000.0), "c": "text"}
    parts = frames.dump(value)
    assert max(memoryview(part).nbytes for part in parts) == 1 << 16
    packed = aligned_copy(parts)
    for read in frames.load, deserialize_bytes:
        found = read(packed)
        assert same(found, value)
        for array in arrays_of(found):
            assert np.shares_memory(array, np.frombuffer(packed, "u1"))
            assert array.ctypes.data % frames.ALIGNMENT == 0


def test_data_frames_come_back_aligned():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"a": np.arange(1_000.0), "b": np.arange(1_000), "c": ["x", "y"] * 500}
    )
    packed = aligned_copy(frames.dump(frame))
    found = frames.load(packed)
    assert found.equals(frame)
    values = found["a"].to_numpy()
    assert np.shares_memory(values, np.frombuffer(packed, "u1"))
    assert values.ctypes.data % 64 == 0


def test_an_error_in_serialising_is_raised():
    with pytest.raises(TypeError):
        frames.dump(number for number in range(3))
