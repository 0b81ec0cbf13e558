"""Mappings of buffers as zict has them: ours beside zict's own.

``zict-bytes``, ``zict-large`` set, get and delete buffers as they are; ``zict-dask`` the same arrays
through `zict.Func` with the functions that dask serialises by, which a dict shows the cost of.  Each
value is set once more after all were deleted.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.engines import Engine, call, register
from benchmarks.framework import Job, Sample, measure, workload

SMALL = 4096
LARGE = 1 << 20
LARGE_COUNT = 2_000


class _Mapping(Engine):
    """A zict mapping, as an engine of this module only."""

    modules: ClassVar[tuple[str, ...]] = ("zict", "numpy")
    text_keys = True
    limits: ClassVar[dict[str, int]] = dict.fromkeys(("zict-bytes", "zict-dask"), 50_000)
    joins: ClassVar[bool] = False
    """Whether values must be joined to one object first."""

    def close(self, handle: Any) -> None:
        if hasattr(handle, "close"):
            handle.close()


@register
class OurMapping(_Mapping):
    """`pmshelve.zict_compat.MmapDict`."""

    name = "pmshelve-zict"
    ours = True
    modules = (*_Mapping.modules, "pmshelve.zict_compat.mmap")

    def open(self, directory: Path) -> Any:
        return call("pmshelve.zict_compat", "MmapDict", directory / "store", scratch=True)


@register
class OurShared(OurMapping):
    """`pmshelve.zict_compat.MmapDict(exclusive=False)`."""

    name = "pmshelve-zict-shared"
    note = "for any number of processes"

    def open(self, directory: Path) -> Any:
        return call("pmshelve.zict_compat", "MmapDict", directory / "store", exclusive=False)


@register
class OurPool(_Mapping):
    """`pmshelve.zict_compat.PmemDict`."""

    name = "pmshelve-zict-pool"
    note = "in a pool"
    ours = True
    modules = (*_Mapping.modules, "pmshelve.zict_compat.pmem")

    def open(self, directory: Path) -> Any:
        return call("pmshelve.zict_compat", "PmemDict", directory / "pool")


@register
class ZictFile(_Mapping):
    """`zict.File`."""

    name = "zict-file"
    note = "a file for each value, read"
    keep_files = True

    def open(self, directory: Path) -> Any:
        return call("zict", "File", str(directory / "store"))


@register
class ZictFileMapped(ZictFile):
    """`zict.File(memmap=True)`."""

    name = "zict-file-memmap"
    note = "a file for each value, mapped"

    def open(self, directory: Path) -> Any:
        return call("zict", "File", str(directory / "store"), memmap=True)


@register
class ZictLMDB(_Mapping):
    """`zict.LMDB`."""

    name = "zict-lmdb"
    note = "values joined, and come back read-only"
    modules = (*_Mapping.modules, "lmdb")
    joins = True

    def open(self, directory: Path) -> Any:
        return call("zict", "LMDB", str(directory / "store"))


@register
class Dict(_Mapping):
    """A dict, which keeps what it is given."""

    name = "zict-dict"
    note = "in memory"
    joins = True

    def open(self, directory: Path) -> Any:
        return {}


_ALL = (
    "pmshelve-zict",
    "pmshelve-zict-shared",
    "pmshelve-zict-pool",
    "zict-file",
    "zict-file-memmap",
    "zict-lmdb",
)


def _keys(count: int) -> list[str]:
    return [f"('random-sample-0123456789abcdef', {number}, 0)" for number in range(count)]


@workload("zict-bytes", "buffers of 4 KiB in a zict mapping", _ALL)
def zict_bytes(engine: Engine, job: Job) -> Iterator[Sample]:
    """Bytes in, one buffer out."""
    value = os.urandom(SMALL)
    job.warm()
    handle = engine.open(job.directory)
    try:
        yield from _rounds(engine, handle, _keys(job.count), value, job)
    finally:
        engine.close(handle)


@workload("zict-large", "buffers of 1 MiB, in two parts, in a zict mapping", _ALL)
def zict_large(engine: Engine, job: Job) -> Iterator[Sample]:
    """Take a list of buffers, return one, whose data nobody looks at."""
    count = max(20, min(LARGE_COUNT, job.count // 10))
    parts = [os.urandom(200), os.urandom(LARGE - 200)]
    job.warm()
    handle = engine.open(job.directory)
    assert isinstance(engine, _Mapping)
    value = b"".join(parts) if engine.joins else parts
    try:
        yield from _rounds(engine, handle, _keys(count), value, job)
    finally:
        engine.close(handle)


@workload(
    "zict-dask", "arrays of 4 KiB under zict.Func with dask's serialiser", (*_ALL, "zict-dict")
)
def zict_dask(engine: Engine, job: Job) -> Iterator[Sample]:
    """Set, get and delete arrays as dask's worker would."""
    serialize = call("importlib", "import_module", "distributed.protocol")
    numpy = call("importlib", "import_module", "numpy")
    dump = functools.partial(serialize.serialize_bytelist, on_error="raise")
    assert isinstance(engine, _Mapping)
    if engine.joins:
        parts = dump
        dump = lambda value: b"".join(parts(value))  # noqa: E731
    job.warm()
    handle = engine.open(job.directory)
    values = call("zict", "Func", dump, serialize.deserialize_bytes, handle)
    keys, value = _keys(job.count), numpy.frombuffer(os.urandom(SMALL), "u1")
    try:
        total = cpu = 0.0
        for sample in _rounds(engine, values, keys, value, job):
            yield sample
            if sample.metric in ("set", "get", "delete"):
                total += sample.value
                cpu += sample.cpu or 0.0
        yield Sample("set, get, delete", total, "us", cpu, job.count)
    finally:
        engine.close(handle)


def _rounds(engine: Engine, handle: Any, keys: list[str], value: Any, job: Job) -> Iterator[Sample]:
    items = [(key, value) for key in keys]
    count = len(keys)
    yield measure("set", count, engine.fill, handle, items)
    expected = b"".join(value) if isinstance(value, list) else bytes(value)
    for key in keys[:: max(1, count // 50)]:
        if bytes(handle[key]) != expected:
            raise RuntimeError(f"{engine.name} returned another value")
    yield measure("get", count, engine.read, handle, keys)
    yield measure("delete", count, engine.remove, handle, keys)
    yield Sample(
        "disk after, of the bytes", _blocks(job.directory) / (count * len(expected)), "ratio"
    )
    start = time.perf_counter()
    engine.fill(handle, items)
    yield Sample("set again", (time.perf_counter() - start) * 1e6 / count, "us", None, count)


def _blocks(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
