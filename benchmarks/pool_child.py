"""What the processes of `pools.py` run: `python -m benchmarks.pool_child ROLE ENGINE DIRECTORY ...`.

    open     open a store: how long that took, and how much memory
    close    open it, make one change, close it: how long the close took
    collect  open it, look for garbage everywhere
    durable  commits, and overwriting 200 bytes of a file with fdatasync, in turns

Each prints one line of JSON, times in milliseconds, those of `durable` in microseconds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES
from benchmarks.machine import memory_used
from benchmarks.pool_engines import PoolEngine

WRITTEN = 200


def clock(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return how many milliseconds a call took, and what it returned."""
    start = time.perf_counter()
    result = function(*arguments)
    return (time.perf_counter() - start) * 1e3, result


def open_(engine: PoolEngine, directory: Path) -> dict[str, float]:
    """Open and close."""
    before = memory_used()
    duration, handle = clock(engine.open, directory)
    after = memory_used()
    engine.close(handle)
    kind = "private" if "private" in after else "total"
    return {"open": duration, "memory": (after[kind] - before[kind]) / 2**20}


def close(engine: PoolEngine, directory: Path) -> dict[str, float]:
    """Change one thing."""
    handle = engine.open(directory)
    engine.change_one(handle)
    duration, _ = clock(engine.close, handle)
    return {"close": duration}


def collect(engine: PoolEngine, directory: Path) -> dict[str, float]:
    """Collect all."""
    handle = engine.open(directory)
    duration, _ = clock(engine.collect, handle)
    engine.close(handle)
    return {"collect": duration}


def durable(engine: PoolEngine, directory: Path, count: int) -> dict[str, float]:
    """Do both in turns: what the disk does at the time then meets both."""
    handle = engine.open(directory)
    fd = os.open(directory / "overwritten", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, bytes(1 << 16), 0)
    os.fsync(fd)

    def overwrite(number: int) -> None:
        os.pwrite(fd, b"%8d" % number + bytes(WRITTEN - 8), number * WRITTEN % (1 << 15))
        getattr(os, "fdatasync", os.fsync)(fd)

    commits, overwrites = [], []
    for number in range(count):
        commits.append(clock(engine.fill, handle, [(f"{number % 100:016d}", number)])[0])
        overwrites.append(clock(overwrite, number)[0])
    os.close(fd)
    engine.close(handle)
    ours, floor = statistics.median(commits), statistics.median(overwrites)
    return {
        "commit": ours * 1e3,
        "overwrite": floor * 1e3,
        "ratio": ours / floor,
        "count": count,
    }


def main(arguments: list[str]) -> None:
    """Run one role and print what it measured."""
    role, name, place, *rest = arguments
    engine, directory = ENGINES[name], Path(place)
    assert isinstance(engine, PoolEngine)
    engine.prepare()
    roles: dict[str, Callable[..., dict[str, float]]] = {
        "open": open_,
        "close": close,
        "collect": collect,
        "durable": durable,
    }
    print(json.dumps(roles[role](engine, directory, *map(int, rest))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
