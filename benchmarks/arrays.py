"""NumPy arrays of several sizes: put, get, and get and sum.

Each put goes into a file that grows by it.  A baseline is measured between each two operations of
an engine: a bare `os.pwrite` of the array's buffer at the end of another file for a put; for a get
and sum, summing a `numpy.memmap` of the same data that is open already, and opening and summing
one.  How near an engine comes is the baseline's time divided by its own.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.engines import ENGINES, Engine, call, register
from benchmarks.framework import WARM_SIZE, Job, Sample, measure, workload

SIZES = {"64 KiB": 1 << 16, "1 MiB": 1 << 20, "64 MiB": 1 << 26}
_TOTAL_SIZE = 256 << 20
_COUNT_MAX = 400
_ROUNDS = 3


class _Arrays(Engine):
    """An engine of this module only: arrays under keys."""

    def put_array(self, handle: Any, key: str, array: Any) -> None:
        """Store one array."""
        handle[key] = array

    def get_array(self, handle: Any, key: str) -> Any:
        """Return one array, mapped if the engine can."""
        return handle[key]


class _Adapted(_Arrays):
    """Another module's engine, holding arrays as it does by itself."""

    base: ClassVar[str]

    def prepare(self) -> None:
        ENGINES[self.base].prepare()
        call("importlib", "import_module", "numpy")

    def open(self, directory: Path) -> Any:
        return ENGINES[self.base].open(directory)

    def close(self, handle: Any) -> None:
        ENGINES[self.base].close(handle)


@register
class OurArrays(_Adapted):
    """The mmapdict; arrays come back as `numpy.memmap`."""

    name = "pmshelve-arrays"
    ours = True
    base = "pmshelve"


@register
class OurArraysExclusive(_Adapted):
    """The mmapdict with its lock held."""

    name = "pmshelve-arrays-exclusive"
    ours = True
    base = "pmshelve-exclusive"


@register
class MmapPickleArrays(_Adapted):
    """mmappickle; arrays come back as `numpy.memmap`."""

    name = "mmappickle-arrays"
    note = "data not aligned"
    base = "mmappickle"


@register
class ZictArrays(_Arrays):
    """`zict.File(memmap=True)`; a get returns a memoryview."""

    name = "zict.File-memmap"
    note = "a file each, as bytes"
    modules = ("zict", "numpy")

    def open(self, directory: Path) -> Any:
        return call("zict", "File", str(directory / "store.zict"), memmap=True)

    def close(self, handle: Any) -> None:
        del handle

    def put_array(self, handle: Any, key: str, array: Any) -> None:
        handle[key] = array.data.cast("B")

    def get_array(self, handle: Any, key: str) -> Any:
        return call("numpy", "frombuffer", handle[key])


@register
class NumpyFiles(_Arrays):
    """`numpy.save` and `numpy.load(mmap_mode="r")`."""

    name = "numpy.load"
    note = "a file each"
    modules = ("numpy",)

    def open(self, directory: Path) -> Any:
        return directory

    def close(self, handle: Any) -> None:
        del handle

    def put_array(self, handle: Any, key: str, array: Any) -> None:
        call("numpy", "save", handle / f"{key}.npy", array)

    def get_array(self, handle: Any, key: str) -> Any:
        return call("numpy", "load", handle / f"{key}.npy", mmap_mode="r")


@register
class LmdbArrays(_Adapted):
    """LMDB with `buffers=True`; the array is valid inside the transaction only."""

    name = "lmdb-arrays"
    note = "valid inside a transaction only"
    base = "lmdb-writemap"

    def put_array(self, handle: Any, key: str, array: Any) -> None:
        with handle.begin(write=True) as transaction:
            transaction.put(key.encode(), array.data.cast("B"))

    def get_array(self, handle: Any, key: str) -> Any:
        with handle.begin(buffers=True) as transaction:
            return call("numpy", "frombuffer", transaction.get(key.encode()))


_ENGINES = (
    "pmshelve-arrays",
    "pmshelve-arrays-exclusive",
    "lmdb-arrays",
    "zict.File-memmap",
    "numpy.load",
    "mmappickle-arrays",
)


class _Bare:
    """The baseline of one job: a file that grows by one array a put, and maps of its parts."""

    def __init__(self, path: Path, array: Any) -> None:
        self._path = path
        self._array = array
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._size = 0

    def put(self) -> None:
        """Append the array's buffer."""
        self._size += os.pwrite(self._fd, self._array.data.cast("B"), self._size)

    def map(self, position: int) -> Any:
        """Return a `numpy.memmap` of the array at a position."""
        array = self._array
        return call(
            "numpy",
            "memmap",
            self._path,
            dtype=array.dtype,
            mode="r",
            offset=position * array.nbytes,
            shape=array.shape,
        )

    def close(self) -> None:
        os.close(self._fd)


@workload("arrays", "arrays of 64 KiB, 1 MiB and 64 MiB: put, get, get and sum", _ENGINES)
def arrays(engine: Engine, job: Job) -> Iterator[Sample]:
    """Measure one engine at each size, the baseline between each two of its operations."""
    assert isinstance(engine, _Arrays)
    for label, size in SIZES.items():
        if job.quick and size > _TOTAL_SIZE >> 3:
            continue
        directory = job.directory / label.replace(" ", "-")
        directory.mkdir()
        yield from _one_size(engine, job, directory, label, size)
        shutil.rmtree(directory)


def _one_size(
    engine: _Arrays, job: Job, directory: Path, label: str, size: int
) -> Iterator[Sample]:
    count = min((_TOTAL_SIZE >> 3 if job.quick else _TOTAL_SIZE) // size, _COUNT_MAX)
    array = call("numpy", "arange", size // 8, dtype="float64")
    bare = _Bare(directory / "bare", array)
    keys = [f"{position:016d}" for position in range(count)]
    job.warm(2 * size * count + WARM_SIZE)
    handle = engine.open(directory)
    try:
        yield from _put(engine, handle, bare, label, keys, array)
        engine.close(handle)
        handle = engine.open(directory)
        yield measure(f"get first, {label}", count, _get_all, engine, handle, keys)
        rounds = -(-_COUNT_MAX // count)
        yield measure(f"get, {label}", count * rounds, _get_all, engine, handle, keys * rounds)
        yield from _sum(engine, handle, bare, label, keys, float(array.sum()))
    finally:
        engine.close(handle)
        bare.close()


def _get_all(engine: _Arrays, handle: Any, keys: list[str]) -> None:
    get = engine.get_array
    for key in keys:
        get(handle, key)


def _put(
    engine: _Arrays, handle: Any, bare: _Bare, label: str, keys: list[str], array: Any
) -> Iterator[Sample]:
    ours, base = [], []
    for key in keys:
        base.append(_seconds(bare.put))
        ours.append(_seconds(engine.put_array, handle, key, array))
    yield from _pair(f"put, {label}", ours, ("of pwrite", base))


def _sum(
    engine: _Arrays, handle: Any, bare: _Bare, label: str, keys: list[str], expected: float
) -> Iterator[Sample]:
    held = [bare.map(position) for position in range(len(keys))]
    ours, base, opened = [], [], []
    for _ in range(_ROUNDS):
        for position, key in enumerate(keys):
            base.append(_seconds(held[position].sum))
            ours.append(_seconds(lambda key=key: engine.get_array(handle, key).sum()))
            opened.append(_seconds(lambda position=position: bare.map(position).sum()))
    if abs(engine.get_array(handle, keys[-1]).sum() - expected) > 1e-6 * expected:
        raise RuntimeError(f"{engine.name} returned another array")
    yield from _pair(
        f"sum, {label}", ours, ("of memmap", base), ("of opening memmap", opened), skip=len(keys)
    )


def _pair(
    metric: str, ours: list[float], *bases: tuple[str, list[float]], skip: int = 0
) -> Iterator[Sample]:
    """Yield a median time, and each baseline's median as a multiple of it (more is better)."""
    middle = statistics.median(ours[skip:])
    yield Sample(metric, middle * 1e6, count=len(ours))
    for name, times in bases:
        yield Sample(f"{metric}, {name}", statistics.median(times[skip:]) / middle, "x")


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start
