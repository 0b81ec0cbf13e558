"""The disk side of a worker's spill buffer: dask's own, over one of our stores."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from time import perf_counter
from typing import Any, Literal

import dask.config
from distributed import spill
from distributed.metrics import context_meter
from distributed.sizeof import safe_sizeof
from distributed.utils import nbytes

from pmshelve import zict_compat
from pmshelve.dask import frames
from pmshelve.dask.handover import Handover
from pmshelve.storage import file

__all__ = ["BACKENDS", "Slow", "check_backend", "disk_side", "give_back", "take_over"]

DIRECTORY = "pmshelve"
"""Where in a worker's local directory the stores are."""

BACKENDS = {"mmapdict": ".mmapdict", "pmemobj": ".pool"}
"""What a store can be, and how its file's name ends."""


def check_backend(backend: str) -> str:
    """Return `backend`, or raise ValueError."""
    if backend not in BACKENDS:
        raise ValueError(f"backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    return backend


class Slow(spill.Slow):
    """What a spill buffer has on disk, in one file.

    Parameters
    ----------
    local_directory
        The worker's; the file is made in a directory `pmshelve` in it, under a name of its own.
    max_weight
        The most bytes to hold; False for no limit.
    backend
        'mmapdict' or 'pmemobj'.

    Notes
    -----
    Sizes, limits and metrics are those of `distributed.spill.Slow`.  Values are not compressed, and
    come back over the store's own memory, unless `distributed.worker.memory.spill-compression`
    names an algorithm: dask's default, 'auto', leaves the choice to us.
    """

    def __init__(
        self,
        local_directory: str | os.PathLike[str],
        max_weight: int | Literal[False] = False,
        backend: str = "mmapdict",
    ) -> None:
        self.store: Any = None
        self.directory = directory = os.path.join(local_directory, DIRECTORY)
        super().__init__(directory, max_weight)  # makes the directory; its own store stays unused
        self.backend = check_backend(backend)
        self.d = self.store = _make_store(directory, backend)
        self.replaced: spill.Slow | None = None
        if dask.config.get("distributed.worker.memory.spill-compression") in ("auto", None, False):
            self.dump = frames.dump
        self.load = frames.load

    # As the base class does, save that nothing is metered within what is timed here, which is what
    # its way of timing costs several times as much for.

    def __getitem__(self, key: Any) -> Any:
        start = perf_counter()
        packed = self.d[key]
        digest = context_meter.digest_metric
        digest("disk-read", perf_counter() - start, "seconds")
        digest("disk-read", 1, "count")
        digest("disk-read", len(packed), "bytes")
        return self.load(packed)

    def __setitem__(self, key: Any, value: Any) -> None:
        try:
            packed = self.dump(value)
        except Exception as error:
            raise spill.PickleError(key) from error
        size = sum(map(nbytes, packed))
        if self.max_weight is not False and self.total_weight.disk + size > self.max_weight:
            raise spill.MaxSpillExceeded(key)
        start = perf_counter()
        try:
            self.d[key] = packed
        except (
            TypeError
        ) as error:  # no key of dask's: to be kept in memory, as what cannot be pickled
            raise spill.PickleError(key) from error
        digest = context_meter.digest_metric
        digest("disk-write", perf_counter() - start, "seconds")
        digest("disk-write", 1, "count")
        digest("disk-write", size, "bytes")
        weight = spill.SpilledSize(safe_sizeof(value), size)
        self.weight_by_key[key] = weight
        self.total_weight += weight

    def close(self) -> None:
        """Close the store and remove its file: without the sizes in memory it is no use."""
        if self.store is not None:  # neither given back, nor failed to be made
            super().close()
            remove(self.store)


def _make_store(directory: str, backend: str) -> Any:
    path = os.path.join(directory, f"spill-{uuid.uuid4().hex}{BACKENDS[backend]}")
    if backend == "mmapdict":
        return zict_compat.MmapDict(path, scratch=True)
    return zict_compat.PmemDict(path, scratch=True)


def remove(store: Any) -> None:
    """Close a store of ours and remove its file; views of its values stay valid."""
    store.close()
    if file.exists(str(store.path)):
        file.unlink(str(store.path))


def disk_side(buffer: spill.SpillBuffer) -> Any:
    """Return what a buffer of dask's, or ours, writes to: a `distributed.spill.Slow`."""
    return buffer.slow.data  # `slow` is a cache around it


def take_over(buffer: spill.SpillBuffer, slow: Slow) -> None:
    """Make `slow` the disk side of dask's buffer; what is spilled already is served from there."""
    theirs = disk_side(buffer)
    slow.replaced = theirs
    slow.weight_by_key, slow.total_weight = theirs.weight_by_key, theirs.total_weight
    _exchange(slow, slow.store, theirs.d, None)
    buffer.slow.data = slow


def give_back(buffer: spill.SpillBuffer) -> None:
    """Put dask's own disk side back; what is in our store is served from there until it is gone."""
    slow = disk_side(buffer)
    if not isinstance(slow, Slow) or slow.replaced is None:
        return
    theirs = slow.replaced
    theirs.weight_by_key, theirs.total_weight = slow.weight_by_key, slow.total_weight
    store, slow.store = slow.store, None
    _exchange(theirs, theirs.d, store, remove)
    buffer.slow.data = theirs


def _exchange(slow: spill.Slow, new: Any, old: Any, done: Callable[[Any], object] | None) -> None:
    """Let `slow` write to `new`, and read from `old` too as long as there is something in it."""

    def drained(store: Any) -> None:
        if slow.d is both:  # else there was another exchange meanwhile, and `both` is within that
            slow.d = _simplified(new)
        if done:
            done(store)

    both = slow.d = Handover(new, old, drained)
    if not old:
        drained(old)


def _simplified(store: Any) -> Any:
    """Return what is left of a handover that is over."""
    while isinstance(store, Handover) and not store.old:
        store = store.new
    return store
