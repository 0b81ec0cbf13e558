"""When a worker spills, by dask's configuration: `distributed.worker.memory.target`, `max-spill`."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import dask.config
from dask.utils import parse_bytes
from distributed import system
from distributed.worker import Worker

__all__ = ["configured_max_spill", "configured_target", "limit_of_worker"]


def limit_of_worker(data: MutableMapping[Any, Any]) -> int | None:
    """Return the memory limit of the worker that keeps its results in `data`; None if it has none.

    A worker hands its local directory to what makes its `data`, but not its memory limit, which can
    come from an argument, an option or a nanny.  So it is asked for once the worker is there.  Where
    there is no worker, the limit is the system's memory.
    """
    for worker in list(Worker._instances):  # noqa: SLF001 (there is no other list of them)
        manager = getattr(worker, "memory_manager", None)
        if manager is not None and manager.data is data:
            limit: int | None = manager.memory_limit
            return limit
    return int(system.MEMORY_LIMIT)


def configured_target(memory_limit: int | None) -> int:
    """Return the bytes of results from which on a worker with this limit spills."""
    fraction = dask.config.get("distributed.worker.memory.target")
    if memory_limit is None or not fraction:
        return sys.maxsize  # what is spilled then is what the worker's memory monitor evicts
    return int(memory_limit * fraction)


def configured_max_spill() -> int | Literal[False]:
    """Return the most bytes to have on disk; False for no limit."""
    return size_or_false(dask.config.get("distributed.worker.memory.max-spill"))


def size_or_false(size: int | str | Literal[False]) -> int | Literal[False]:
    """Return a size that may be written as dask's options are: 1000, '10 GB', False."""
    return False if size is False else parse_bytes(size)
