"""What the tests let dask's workers do: functions that worker processes can import."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def block(number: int, size: int = 1 << 20) -> Any:
    """Return an array of `size` bytes that tells its number."""
    return np.arange(size // 8, dtype="i8") + number


def is_block(array: Any, number: int) -> bool:
    """Whether an array is what `block` made."""
    return bool(array[0] == number and np.array_equal(array - number, np.arange(len(array))))


def spoil(array: Any, number: int) -> bool:
    """Change a task's input; return whether it was right before."""
    right = is_block(array, number)
    array[:] = -1
    return right


def record(number: int) -> dict[str, Any]:
    """Return a small object."""
    return {"number": number, "text": f"record {number}" * 20, "list": list(range(number % 50))}


def is_record(value: Any, number: int) -> bool:
    """Whether a value is what `record` made."""
    return bool(value == record(number))


def spilled(dask_worker: Any) -> dict[str, Any]:
    """Return how a worker of the cluster is doing."""
    data = dask_worker.data
    slow = data._slow_uncached
    return {
        "kind": type(data).__module__,
        "store": type(slow).__module__,
        "count": len(data.slow),
        "spilled": data.spilled_total.disk,
        "target": data.n,
        "rss": dask_worker.monitor.get_process_memory(),
        "directory": dask_worker.local_directory,
        "pid": os.getpid(),
        "status": dask_worker.status.name,
    }


def watch(dask_worker: Any) -> None:
    """Count from now on how often the worker is paused, and note its peak memory."""
    from tornado.ioloop import PeriodicCallback

    seen = dask_worker.seen_by_test = {"paused": 0, "rss": 0}

    def look() -> None:
        seen["paused"] += dask_worker.status.name == "paused"
        seen["rss"] = max(seen["rss"], dask_worker.monitor.get_process_memory())

    callback = dask_worker.periodic_callbacks["test"] = PeriodicCallback(look, 20)
    callback.start()


def watched(dask_worker: Any) -> dict[str, int]:
    """Return what `watch` has seen."""
    return dict(dask_worker.seen_by_test)
