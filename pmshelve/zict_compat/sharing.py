"""One open mmapdict for each file in a process, however many `MmapDict` use it.

An exclusive store keeps everybody else out, and that would be the process's own second one too.  So
the first that is opened opens the file, the last that is closed closes it.  Lock order: a file's
`opening`, then that of the table.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from pmshelve.errors import ClosedError, StateError
from pmshelve.mmapdict import mmapdict
from pmshelve.storage import file as disk

__all__ = ["Closed", "Shared", "acquire", "release"]


class Shared:
    """An open store, and what those who use it have in common.

    Attributes
    ----------
    store
        The store; None before it is opened.
    users
        How many use it.
    opening
        Held while it is opened or closed.
    exclusive, scratch
        As whoever came first has asked.
    """

    def __init__(self, path: str, *, exclusive: bool, scratch: bool) -> None:
        self.path = path
        self.store: mmapdict[Any] | None = None
        self.users = 0
        self.opening = threading.RLock()
        self.exclusive = exclusive
        self.scratch = scratch

    def is_current(self) -> bool:
        """Whether the store is that of the file which now has the name."""
        store = self.store
        if store is None:
            return True  # somebody is opening it
        if store.closed:
            return False
        log = store._log  # noqa: SLF001 (a part of the package)
        # A child of a fork opens it anew; and others may have replaced it, which the store follows.
        return log.fd < 0 or not self.exclusive or disk.is_named(log.fd, self.path) is True


class Closed:
    """Stands for the store of a mapping that was closed."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _refuse(self, *_: object) -> NoReturn:
        raise ClosedError("the store is closed", self._path, hint="open it again")

    __getattr__ = __getitem__ = __setitem__ = __delitem__ = __iter__ = __len__ = _refuse
    __contains__ = _refuse


_shared: dict[str, Shared] = {}
_lock = threading.RLock()


def acquire(
    path: str, make: Callable[[], mmapdict[Any]], *, exclusive: bool, scratch: bool
) -> tuple[Shared, mmapdict[Any]]:
    """Return the open store of the file at a real path, to be given up by `release`.

    Raises
    ------
    StateError
        It is open in this process already, and not exclusively where that is asked for.
    """
    with _lock:
        shared = _shared.get(path)
        if shared is None or not shared.is_current():
            shared = _shared[path] = Shared(path, exclusive=exclusive, scratch=scratch)
        elif exclusive and not shared.exclusive:
            raise StateError(
                "this process has the file open with exclusive=False",
                path,
                hint="close that one first, or open it with exclusive=False",
            )
        shared.users += 1
    try:
        with shared.opening:
            if shared.store is None:
                shared.store = make()
            return shared, shared.store
    except BaseException:
        _give_up(shared)
        raise


def release(shared: Shared) -> None:
    """Close a store that nobody else uses; remove its file if that was only made to be removed."""
    with shared.opening:
        store = shared.store
        if not _give_up(shared) or store is None:
            return
        log = store._log  # noqa: SLF001
        if shared.scratch and log.fd >= 0:
            store._index.fresh = 0  # noqa: SLF001 (nobody will open it again: no index is due)
            if disk.is_named(log.fd, shared.path):
                disk.unlink(shared.path)
        store.close()


def _give_up(shared: Shared) -> bool:
    """Count one user less; return whether none is left."""
    with _lock:
        shared.users -= 1
        if shared.users:
            return False
        if _shared.get(shared.path) is shared:
            del _shared[shared.path]
        return True


def _after_fork_in_child() -> None:
    """Renew the locks, which other threads may have held; the stores themselves open anew."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for shared in _shared.values():
        shared.opening = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
