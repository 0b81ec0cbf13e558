"""Move what a pool holds, by way of a stream, into another: of another size, version or machine.

`dump` writes everything the root leads to.  An object is defined before anything refers to it, so that
both sides go through the stream once:

    tuples and frozensets    after what they hold, complete (they cannot be in a cycle by themselves)
    arrays                   complete
    all others               empty, when they are first met; filled later, piece by piece

Neither side recurses.  What each does is in `dumper` and `loader`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from pmshelve.errors import PmshelveError, StateError, TransactionError
from pmshelve.pmemobj.collector import Collector
from pmshelve.pmemobj.dumpclasses import BATCH, root_of
from pmshelve.pmemobj.dumper import Dumper
from pmshelve.pmemobj.dumpstream import Source, Target
from pmshelve.pmemobj.layout import OID_NULL
from pmshelve.pmemobj.loader import Loader
from pmshelve.storage.progress import Progress, part

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["BATCH", "dump", "load"]


def dump(manager: MemoryManager, file: IO[bytes], *, progress: Progress | None = None) -> int:
    """Write everything that the root leads to; return the number of objects.

    Parameters
    ----------
    file
        Has `write`; a binary file, a pipe.
    progress
        Called with the bytes written, and about how many that will be.

    Raises
    ------
    UnknownTypeError
        A class cannot be imported.
    ObjectError
        A class on the bare protocol has no `_p_dump`.

    Notes
    -----
    The pool's lock is held meanwhile: other threads wait.  A class that derives from none of this package's
    collections takes part by two methods: `_p_dump` returns an iterable of whatever can be persisted, and
    `_p_load`, called on an object just made with `_p_new`, is given a list of the same.
    """
    with manager.lock:
        return Dumper(manager, Target(file), progress=progress).run()


def load(
    manager: MemoryManager,
    file: IO[bytes],
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> int:
    """Build what `dump` wrote, and make it the root; return the number of objects.

    Parameters
    ----------
    file
        Has `read`.
    replace
        Also if the pool has a root: the new one takes its place.
    progress
        Called with thousandths of the work, about; with 0 of 0 where `file` cannot be sought in, so
        that its size is not known.

    Raises
    ------
    StateError
        The pool is not empty.
    NotAStoreError, VersionError, CorruptionError
        The stream cannot be read.
    UnknownTypeError
        A class cannot be imported.

    Notes
    -----
    If it fails, the root is what it was.  The classes that the stream names are imported, and what it
    holds as pickles is loaded when it is read or used as a key: do not load what strangers made.
    """
    with manager.lock:
        if not replace and root_of(manager) not in (OID_NULL, (1, 0)):
            raise StateError(
                "the pool is not empty", manager.path, hint="load into a new pool, or replace=True"
            )
        if manager.transaction().depth:
            raise TransactionError("load called inside of a transaction", manager.path)
        size = 0 if progress is None else _size_left(file)
        reading = part(progress, 0.0, 0.9) if size else progress
        loading = Loader(manager, Source(file), size, progress=reading)
        try:
            count = loading.run()
        except BaseException:
            with suppress(PmshelveError):  # what is left then is garbage, which `gc` finds
                loading.let_go()
            raise
        loading.let_go()
        Collector(manager).collect(progress=part(progress, 0.9, 1.0))
        return count


def _size_left(file: IO[bytes]) -> int:
    """Return the bytes from a file's position on; 0 if that cannot be told."""
    try:
        if not file.seekable():
            return 0
        position = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(position)
    except (AttributeError, OSError, ValueError):
        return 0
    return end - position
