"""Spill into our store from a worker's start on: `dask worker --preload pmshelve.dask.preload`.

With `--preload-nanny` the nanny does it, by giving `data=` to the workers it starts.  The backend is
`pmshelve.spill-backend` of dask's configuration, "mmapdict" if that is not set.
"""

from __future__ import annotations

from typing import Any

import dask.config
from distributed import Nanny, Worker

from pmshelve.dask.buffer import SpillBuffer
from pmshelve.dask.plugin import SpillPlugin

__all__ = ["dask_setup"]


async def dask_setup(server: Any) -> None:
    """Set a worker, or the workers of a nanny, up.

    Raises
    ------
    TypeError
        The module was preloaded into something else, such as the scheduler.
    """
    backend = dask.config.get("pmshelve.spill-backend", "mmapdict")
    if isinstance(server, Worker):
        await server.plugin_add(SpillPlugin(backend), catch_errors=False)
    elif isinstance(server, Nanny):
        server.worker_kwargs.setdefault("data", (SpillBuffer, {"backend": backend}))
    else:
        raise TypeError(f"{__name__} is for workers and nannies, not for a {type(server).__name__}")
