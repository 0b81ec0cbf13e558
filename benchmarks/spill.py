"""Spilling of dask workers: dask's own buffer and ours, on the same values.

`python -m benchmarks.spill [--quick] [--json FILE]` runs the workloads of this module and prints how
many times as fast ours is; they are part of `python -m benchmarks.run` too.

``spill-bytes``, ``spill-arrays`` and ``spill-large`` drive a `SpillBuffer` as a worker does, with a
target so low that every value is spilled when it is set, and is read back from disk.  ``spill-cluster`` is a computation on a cluster with one
worker process whose memory holds a quarter of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.engines import Engine, call, register
from benchmarks.framework import WORKLOADS, Job, Sample, measure, workload

__all__ = ["main"]

SMALL = 4096
LARGE = 1 << 20
LARGE_COUNT = 2_000


class _Buffer(Engine):
    """A spill buffer, as an engine of this module only."""

    modules: ClassVar[tuple[str, ...]] = ("numpy", "distributed.spill")
    limits: ClassVar[dict[str, int]] = dict.fromkeys(
        ("spill-bytes", "spill-arrays", "spill-large"), 20_000
    )
    backend: ClassVar[str | None] = None

    def open(self, directory: Path) -> Any:
        if self.backend is None:
            return call("distributed.spill", "SpillBuffer", str(directory / "storage"), target=1)
        return call("pmshelve.dask", "SpillBuffer", directory, target=1, backend=self.backend)


@register
class DaskSpill(_Buffer):
    """`distributed.spill.SpillBuffer`."""

    name = "dask"
    note = "a file for each value"


@register
class OurSpill(_Buffer):
    """`pmshelve.dask.SpillBuffer`."""

    name = "pmshelve-dask"
    ours = True
    modules = (*_Buffer.modules, "pmshelve.dask.buffer")
    backend = "mmapdict"


@register
class OurPoolSpill(_Buffer):
    """`pmshelve.dask.SpillBuffer(backend="pmemobj")`."""

    name = "pmshelve-dask-pool"
    note = "in a pool"
    ours = True
    modules = (*_Buffer.modules, "pmshelve.dask.buffer")
    backend = "pmemobj"


ENGINES = ("dask", "pmshelve-dask", "pmshelve-dask-pool")


# The buffer alone ----------------------------------------------------------------------------------


def _bytes(count: int) -> list[Any]:
    return [os.urandom(SMALL) for _ in range(count)]


def _arrays(size: int) -> Callable[[int], list[Any]]:
    def make(count: int) -> list[Any]:
        return [call("numpy", "full", size // 8, float(number)) for number in range(count)]

    return make


@workload("spill-bytes", "bytes of 4 KiB through a worker's spill buffer", ENGINES)
def spill_bytes(engine: Engine, job: Job) -> Iterator[Sample]:
    """Values that cannot be referred to weakly: each get reads."""
    return _rounds(engine, job, _bytes, job.count)


@workload("spill-arrays", "arrays of 4 KiB through a worker's spill buffer", ENGINES)
def spill_arrays(engine: Engine, job: Job) -> Iterator[Sample]:
    """Small arrays."""
    return _rounds(engine, job, _arrays(SMALL), job.count)


@workload("spill-large", "arrays of 1 MiB through a worker's spill buffer", ENGINES)
def spill_large(engine: Engine, job: Job) -> Iterator[Sample]:
    """Arrays that ours maps; a get touches none of their data."""
    job.warm()
    return _rounds(engine, job, _arrays(LARGE), max(20, min(LARGE_COUNT, job.count // 10)))


def _rounds(
    engine: Engine, job: Job, make: Callable[[int], list[Any]], count: int
) -> Iterator[Sample]:
    buffer = engine.open(job.directory)
    keys = [("x-0123456789abcdef", number) for number in range(count)]
    some = slice(None, None, max(1, count // 50))
    values = make(count)
    yield measure("set", count, _set, buffer, keys, values)
    if len(buffer.slow) != count:
        raise RuntimeError(f"{len(buffer.slow)} of {count} values were spilled")
    expected = [_content(value) for value in values[some]]
    size = count * len(expected[0])
    values.clear()  # what is still in use is not read from disk
    if [_content(buffer[key]) for key in keys[some]] != expected:
        raise RuntimeError("a value came back changed")
    files, blocks = _held(job.directory)
    yield measure("get", count, _get, buffer, keys)
    yield measure("delete", count, _delete, buffer, keys)
    values = make(count)
    yield measure("set again", count, _set, buffer, keys, values)
    yield Sample("files", files, "count")
    yield Sample("disk, of the bytes", blocks / size, "ratio")
    buffer.close()


def _content(value: Any) -> bytes:
    return bytes(memoryview(value).cast("B"))


def _set(buffer: Any, keys: list[Any], values: list[Any]) -> None:
    for key, value in zip(keys, values, strict=True):
        buffer[key] = value


def _get(buffer: Any, keys: list[Any]) -> None:
    for key in keys:
        buffer[key]


def _delete(buffer: Any, keys: list[Any]) -> None:
    for key in keys:
        del buffer[key]


def _held(directory: Path) -> tuple[int, int]:
    """Return how many files there are below a directory, and the bytes of their blocks."""
    count = size = 0
    for home, _, names in os.walk(directory):
        for name in names:
            try:
                size += os.stat(os.path.join(home, name)).st_blocks * 512
            except OSError:
                continue  # deleted meanwhile
            count += 1
    return count, size


# A cluster -----------------------------------------------------------------------------------------


@workload("spill-cluster", "a computation on a worker whose memory holds a quarter of it", ENGINES)
def spill_cluster(engine: Engine, job: Job) -> Iterator[Sample]:
    """Make arrays of 8 MiB on one worker, then use each of them twice."""
    backend = engine.backend if isinstance(engine, _Buffer) else None
    blocks = 40 if job.quick else 200
    limit = 160 << 20 if job.quick else 400 << 20
    distributed = __import__("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        memory_limit=limit + _idle_size(),
        local_directory=str(job.directory),
        dashboard_address=":0",
        **({} if backend is None else {"data": _data(backend)}),
    )
    with cluster, distributed.Client(cluster) as client, _Watch(client, job.directory) as watch:
        start = time.perf_counter()
        wrong = _compute(client, blocks)
        seconds = time.perf_counter() - start
    if wrong:
        raise RuntimeError(f"{wrong} of {blocks} results are wrong")
    yield Sample("wall", seconds * 1e3, "ms")
    yield Sample("memory, peak", watch.memory / (1 << 20), "MiB")
    yield Sample("disk, peak", watch.disk / (1 << 20), "MiB")
    yield Sample("files, peak", watch.files, "count")
    yield Sample("paused", watch.paused, "count")


def _data(backend: str) -> Any:
    return call("importlib", "import_module", "pmshelve.dask").SpillBuffer, {"backend": backend}


def _idle_size() -> int:
    """Return about what a worker takes that does nothing."""
    return 160 << 20


def _compute(client: Any, blocks: int) -> int:
    made = client.map(_make, range(blocks), pure=False)
    call("distributed", "wait", made)
    sums = client.map(_first_and_sum, made, pure=False)
    again = client.map(_first_and_sum, list(reversed(made)), pure=False)
    expected = [(float(number), float(number) * (1 << 20)) for number in range(blocks)]
    results = client.gather(sums), list(reversed(client.gather(again)))
    return sum(e != a or e != b for e, a, b in zip(expected, *results, strict=True))


def _make(number: int) -> Any:
    return call("numpy", "full", 1 << 20, float(number))


def _first_and_sum(array: Any) -> tuple[float, float]:
    return float(array[0]), float(array.sum())


class _Watch:
    """Looks at a worker and its files all the time, from a thread of its own."""

    def __init__(self, client: Any, directory: Path) -> None:
        self.memory = self.disk = self.files = self.paused = 0
        ((address, _),) = client.run(os.getpid).items()
        self._client = client
        self._process = call("psutil", "Process", client.run(os.getpid)[address])
        self._directory = directory
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.memory = max(self.memory, self._process.memory_info().rss)
            files, size = _held(self._directory)
            self.files, self.disk = max(self.files, files), max(self.disk, size)
            workers = self._client.scheduler_info()["workers"].values()
            self.paused += any(worker["status"] == "paused" for worker in workers)


# How many times as fast ----------------------------------------------------------------------------


def speedups(outcome: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each figure: dask's time divided by ours, the medians over the repeats."""
    entries = {(e["workload"], e["metric"], e["engine"]): e for e in outcome["results"]}
    for (where, metric, engine), ours in entries.items():
        theirs = entries.get((where, metric, "dask"))
        if engine == "dask" or theirs is None or ours["unit"] not in ("us", "ms"):
            continue
        bases = dict(zip(theirs["repeats"], theirs["samples"], strict=True))
        ratios = [
            bases[repeat] / sample
            for repeat, sample in zip(ours["repeats"], ours["samples"], strict=True)
            if repeat in bases
        ]
        if ratios:
            yield (
                f"{where}, {metric}, {engine}: {statistics.median(ratios):.2f} times as fast"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this module's workloads through `benchmarks.run`, and compare."""
    from benchmarks import run

    given = list(sys.argv[1:] if arguments is None else arguments)
    if not any(option.startswith("--workload") for option in given):
        given += [f"--workload={name}" for name in WORKLOADS if name.startswith("spill-")]
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--json", type=Path)
    known, others = parser.parse_known_args(given)
    with tempfile.TemporaryDirectory() as home:
        output = known.json or Path(home, "result.json")
        status = run.main([*others, f"--json={output}"])
        print("\n".join(speedups(json.loads(output.read_text()))))
    return status


if __name__ == "__main__":
    sys.exit(main())
