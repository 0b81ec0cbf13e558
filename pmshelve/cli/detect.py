"""What kind of file is it, and opening it so that nothing in it is changed or run."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from pmshelve.dbm_compat import mmapdict as mmapdict_door
from pmshelve.errors import NotAStoreError, PmshelveError
from pmshelve.mmapdict import mmapdict
from pmshelve.storage import file as storage

if TYPE_CHECKING:
    from pmshelve.cli.pool import PoolFile
    from pmshelve.storage.progress import Progress

__all__ = ["detect", "open_file", "open_pool", "refuse_directory"]


def detect(path: str) -> str:
    """Return the kind of store in the file, by the bytes it begins with.

    Returns
    -------
    str
        ``'mmapdict'``, or ``'pmemobj'`` for a pool.

    Raises
    ------
    NotAStoreError
        It is another kind of file, an ordinary pickle among them.
    OSError
        It cannot be read.
    """
    refuse_directory(path)
    if not stat.S_ISREG(storage.system.stat(path).st_mode):  # opening a pipe waits for its writer
        raise NotAStoreError("not a regular file", path)
    if mmapdict_door.recognizes(path):
        return "mmapdict"
    from pmshelve.dbm_compat import pools

    if pools.recognizes(path):
        return "pmemobj"
    raise NotAStoreError("not a pmshelve file", path)


def refuse_directory(path: str) -> None:
    """Raise NotAStoreError where the system would only say that a directory cannot be read."""
    if os.path.isdir(path):
        raise NotAStoreError("a directory, not a store", path)


def open_file(
    path: str,
    *,
    writable: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> mmapdict | PoolFile:
    """Open the store in the file; one that does not exist is not created, a pickle not converted.

    Parameters
    ----------
    path
        The file's name.
    writable
        Open for writing; else nothing is written at all.
    allow_pickle
        Let reading a value run the unpickler, and a pool import the classes of its objects.
    progress
        Called with thousandths of what a pool needs that was not closed in order.
    """
    if detect(path) == "mmapdict":
        return mmapdict(path, readonly=not writable, convert=False, allow_pickle=allow_pickle)
    from pmshelve.cli.pool import PoolFile

    return PoolFile(path, writable=writable, trusted=allow_pickle, progress=progress)


def open_pool(path: str, *, writable: bool = False, progress: Progress | None = None) -> PoolFile:
    """Open a pool, as `open_file` does.

    Raises
    ------
    PmshelveError
        It is another store.
    """
    if detect(path) == "mmapdict":
        hint = "vacuum is for those" if writable else "it is a pickle: copy it as it is"
        raise PmshelveError("an mmapdict file, not a pool", path, hint=hint)
    from pmshelve.cli.pool import PoolFile

    return PoolFile(path, writable=writable, progress=progress)
