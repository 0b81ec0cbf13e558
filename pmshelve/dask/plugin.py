"""`SpillPlugin`: one of our stores under the spill buffers of a running cluster's workers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from distributed import spill
from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin

from pmshelve.dask.slow import Slow, check_backend, disk_side, give_back, take_over

__all__ = ["SpillPlugin"]

logger = logging.getLogger("distributed.worker.memory")


class SpillPlugin(WorkerPlugin):
    """A worker plugin that lets dask's own spill buffer spill into a store of ours.

    Parameters
    ----------
    backend
        'mmapdict', or 'pmemobj' for a store in a pool.

    Notes
    -----
    Workers that join later get it too, and registering it again changes nothing.  Limits, metrics
    and everything else stay as the worker has them.  Nothing is moved: what a worker had spilled
    before is read from dask's files until it is deleted or read back, and after
    `client.unregister_worker_plugin("pmshelve-spill")` what is in our store is read from there,
    while new values are spilled as dask does it.

    A worker that does not spill (no memory limit, or `target` and `spill` are False) or has another
    `data=` is left alone, and says so in its log.

    Examples
    --------
    >>> client.register_plugin(SpillPlugin())  # doctest: +SKIP
    """

    name = "pmshelve-spill"
    idempotent = True

    def __init__(self, backend: str = "mmapdict") -> None:
        self.backend: str = check_backend(backend)
        self._closing: asyncio.Task[None] | None = None

    def setup(self, worker: Any) -> None:
        """Put the store under the worker's buffer."""
        data = worker.data
        if not isinstance(data, spill.SpillBuffer):
            logger.warning(
                "Worker %s keeps its results in a %s, not in dask's spill buffer: "
                "they are not spilled into a pmshelve store",
                worker.address,
                type(data).__name__,
            )
            return
        theirs = disk_side(data)
        if isinstance(theirs, Slow):
            logger.info("Worker %s spills into a pmshelve store already", worker.address)
            return
        slow = Slow(worker.local_directory, theirs.max_weight, self.backend)
        take_over(data, slow)
        logger.info("Worker %s spills into %s", worker.address, slow.store.path)

    def teardown(self, worker: Any) -> None:
        """Put dask's own files back; or close the store, where the worker is about to end."""
        data = worker.data
        if not isinstance(data, spill.SpillBuffer):
            return
        if worker.status in (Status.closing, Status.closed, Status.failed):
            # Others may still fetch results.
            self._closing = asyncio.ensure_future(_close_after(worker, data))
        else:
            give_back(data)


async def _close_after(worker: Any, data: spill.SpillBuffer) -> None:
    await worker.finished()
    slow = disk_side(data)
    if isinstance(slow, Slow):
        slow.close()
