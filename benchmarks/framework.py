"""What a workload is made of: its keys and values, a clock, and the table of all workloads.

Keys have 16 characters, values 100 bytes; what looks a key up brings a copy of it, never the object
that was stored.  A workload is a function of an engine and a `Job` that yields `Sample`s.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engines import Engine, Item
from benchmarks.machine import warm_memory

__all__ = [
    "KEY_SIZE",
    "VALUE_SIZE",
    "WARM_SIZE",
    "WORKLOADS",
    "Job",
    "Sample",
    "Workload",
    "check",
    "measure",
    "mix",
    "workload",
]

KEY_SIZE = 16
VALUE_SIZE = 100
WARM_SIZE = 128 << 20


@dataclass(frozen=True)
class Sample:
    """One measurement.

    Attributes
    ----------
    metric
        Which of the workload's figures it is.
    value
        In `unit`, wall-clock.
    unit
        "us" a single operation, "1/s", "ms", "MiB", "B", "count"; "x" a ratio of which more is
        better, "ratio" one of which less is.
    cpu
        The same in CPU time of this process, where that says anything: other load on the machine
        adds less to it.
    count
        Operations that were timed.
    """

    metric: str
    value: float
    unit: str = "us"
    cpu: float | None = None
    count: int = 1


@dataclass
class Job:
    """What a workload may use: a directory of its own, the keys, and what earlier repeats built."""

    directory: Path
    count: int
    quick: bool = False
    shared: dict[str, Any] = field(default_factory=dict)

    def warm(self, size: int = WARM_SIZE) -> None:
        """Make sure that `size` bytes of memory can be had at its usual price."""
        warm_memory(size >> 5 if self.quick else size)

    def items(self, engine: Engine, count: int | None = None) -> list[Item]:
        """Return keys and values, in the order of the keys."""
        numbers = range(self.count if count is None else count)
        values = [(b"%020d" % number) * (VALUE_SIZE // 20) for number in numbers]
        return list(zip(_keys(engine, numbers), values, strict=True))

    def keys(self, engine: Engine, *, absent: bool = False, mixed: bool = False) -> list[Any]:
        """Return fresh copies of the keys of `items`, or as many others that lie between them."""
        keys = _keys(engine, range(self.count), int(absent))
        if mixed:
            mix(keys)
        return keys


def mix(items: list[Any]) -> None:
    """Bring a list into an order without order, always the same one."""
    random.Random(1).shuffle(items)


def _keys(engine: Engine, numbers: Iterable[int], distance: int = 0) -> list[Any]:
    if engine.text_keys:
        return [f"{2 * number + distance:016d}" for number in numbers]
    return [b"%016d" % (2 * number + distance) for number in numbers]


Run = Callable[[Engine, Job], Iterator[Sample]]


@dataclass(frozen=True)
class Workload:
    """A named measurement and the engines that take part in it.

    Attributes
    ----------
    shared_files
        Whether what one repeat built serves the next ones, so that it stays until the end.
    """

    name: str
    about: str
    run: Run
    engines: tuple[str, ...]
    shared_files: bool = False


WORKLOADS: dict[str, Workload] = {}


def workload(
    name: str, about: str, engines: Iterable[str], *, shared_files: bool = False
) -> Callable[[Run], Run]:
    """Register a function as the workload `name`."""

    def decorate(function: Run) -> Run:
        WORKLOADS[name] = Workload(name, about, function, tuple(engines), shared_files)
        return function

    return decorate


def measure(metric: str, count: int, function: Callable[..., Any], *args: Any) -> Sample:
    """Time one call that does `count` operations, without the garbage collector in between."""
    gc.collect()
    gc.disable()
    try:
        wall, cpu = time.perf_counter(), time.process_time()
        function(*args)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    finally:
        gc.enable()
    scale = 1e6 / count
    return Sample(metric, wall * scale, "us", cpu * scale, count)


def check(engine: Engine, handle: Any, items: list[Item]) -> None:
    """Raise unless the engine holds some of the items: a broken engine has no figures."""
    for key, value in items[:: max(1, len(items) // 50)]:
        found = engine.fetch(handle, key)
        if found != value:
            raise RuntimeError(f"{engine.name} returned {found!r} for {key!r}")
