"""`SpillBuffer`: what a dask worker keeps its results in, for the worker's argument `data=`."""

from __future__ import annotations

import os
from typing import Any, Literal

from dask.utils import parse_bytes
from distributed import spill

from pmshelve.dask.limits import (
    configured_max_spill,
    configured_target,
    limit_of_worker,
    size_or_false,
)
from pmshelve.dask.slow import Slow, check_backend

__all__ = ["SpillBuffer"]


class SpillBuffer(spill.SpillBuffer):
    """Dask's spill buffer, over a store of ours instead of a directory of files.

    Parameters
    ----------
    worker_local_directory
        Where the worker keeps its files; dask gives this argument.  The store is one file in a
        directory `pmshelve` in it.
    target
        Bytes of results in memory from which on older ones are spilled, also written as '2 GB'.
        None stands for `distributed.worker.memory.target` (a fraction) of the worker's memory
        limit; without a worker, of the system's memory.
    max_spill
        The most bytes to have on disk, False for no limit.  None stands for
        `distributed.worker.memory.max-spill`.
    backend
        'mmapdict', or 'pmemobj' for a store in a pool.

    Raises
    ------
    ValueError
        There is no such backend, or a size cannot be read.
    StorageError
        (`OSError`) The store could not be made.

    Notes
    -----
    Values are written as dask serialises them, without a copy, and come back as views of private
    copy-on-write memory: changing one never changes what is stored.  They are compressed only if
    `distributed.worker.memory.spill-compression` names an algorithm; 'auto', dask's default, leaves
    the choice to this class.

    As in dask, a value that cannot be written (a full disk, `max_spill`, no pickle) stays in memory,
    and is logged.  The file is removed with the worker's local directory, or by `close()`.

    As thread-safe as `distributed.spill.SpillBuffer` is.

    Examples
    --------
    >>> from distributed import Client, LocalCluster
    >>> cluster = LocalCluster(data=SpillBuffer)  # doctest: +SKIP
    >>> cluster = LocalCluster(data=(SpillBuffer, {"max_spill": "50 GB"}))  # doctest: +SKIP
    """

    def __init__(
        self,
        worker_local_directory: str | os.PathLike[str],
        target: int | str | None = None,
        max_spill: int | str | Literal[False] | None = None,
        backend: str = "mmapdict",
    ) -> None:
        check_backend(backend)
        limit = configured_max_spill() if max_spill is None else size_or_false(max_spill)
        self._target_open = target is None
        known = configured_target(limit_of_worker(self)) if target is None else parse_bytes(target)
        slow = Slow(worker_local_directory, limit, backend)
        super().__init__(slow.directory, known, limit)
        self.slow.data = slow

    def __setitem__(self, key: Any, value: object) -> None:
        if self._target_open:  # the worker is there by now
            self._target_open = False
            self.n: float = configured_target(limit_of_worker(self))
        super().__setitem__(key, value)

    def __getitem__(self, key: Any) -> object:
        try:
            return super().__getitem__(key)
        except (OSError, spill.MaxSpillExceeded, spill.PickleError):
            # The value came back; another one, which was to make room for it, could not be spilled.
            try:
                with self._handle_errors(None):
                    raise
            except spill.HandledError:
                value: object = self.fast[key] if key in self.fast else self.slow[key]
                return value

    def close(self) -> None:
        """Close the store and remove its file."""
        if hasattr(self, "slow"):  # also called when one is garbage that could not be made
            super().close()
