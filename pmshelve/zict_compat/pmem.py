"""`PmemDict`: a pool as the mapping of buffers that zict and dask take.

Small values lie in the pool's heap and are copied out.  Large ones (64 KiB and more) are written to the
file from the buffers that are handed in, and come back as private maps of the file; see
`pmshelve.pmemobj.blobs`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

try:
    from zict.common import ZictBase
except ImportError as error:
    raise ImportError(
        "PmemDict needs zict, which is not installed: pip install pmshelve[zict]"
    ) from error

from pmshelve.errors import UnsupportedTypeError
from pmshelve.pmemobj.layout import MIN_POOL_SIZE
from pmshelve.zict_compat import pmemstore
from pmshelve.zict_compat.keys import Key, decode_key, encode_key, text_of
from pmshelve.zict_compat.parts import Value, parts_of

if TYPE_CHECKING:
    from pmshelve.pmemobj.check import PoolStats, Problem

    Base = ZictBase[Key, Any]
else:
    Base = ZictBase

__all__ = ["PmemDict"]

Buffer = bytearray | memoryview
"""What a get returns."""


class PmemDict(Base):
    """A mapping of buffers in a pool file: for `zict.Buffer`, `zict.Cache` and the like.

    Parameters
    ----------
    path
        The file's name; made if it is missing.
    pool_size
        Bytes allocated up front if the file is made; it grows beyond by itself.
    max_size
        Bytes the file may grow to; None for as far as the disk goes.
    durability
        What a machine that stops takes with it; a killed process loses nothing in any case.
        ``'lazy'`` (default): the last changes, each as a whole.  ``'full'``: nothing.  Both sync each
        large value.  ``'none'``: all, for a store in use then is refused afterwards; nothing is synced
        but by `sync` and `close`.
    timeout
        Seconds to wait for another process that has the file open.
    mode
        Permissions of a file that is made, subject to the umask.
    scratch
        The file is for this process alone, and is removed by `close`, or at exit: nothing is ever synced,
        as with durability ``'none'``.

    Attributes
    ----------
    path
        The file's real path.

    Raises
    ------
    LockTimeoutError
        Another process has the file open.
    NotAStoreError, VersionError, CorruptionError
        The file is no pool, of a newer format, damaged, or not to be relied on after a power cut; it is
        left as it was.
    WrongDoorError
        The pool was made by another interface.
    OSError

    Notes
    -----
    Keys are str, bytes, int, float, bool, None and tuples of these, nested as you like; 1, 1.0 and True are
    one key.  Values are anything with the buffer interface, or a list or tuple of such: their bytes one
    behind the other.  What comes back is a bytearray or a writable memoryview, the caller's own: changing it
    never changes the store, and nothing that happens to the store changes it.

    A set or delete is a transaction: if it raises, nothing has changed.  All methods may be called from any
    thread.  Keys come in order of insertion, those that are there when the iteration begins.

    One process has a file open at a time; within it any number of PmemDicts of one file share one open
    pool, with the options of the first.  Pickling passes path and options; unpickling opens the file, which
    must be there.  A forked child is refused (`ForkedError`): it opens the file anew, once the parent has
    closed it.  What is open still when the process exits is closed then.
    """

    path: str

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        pool_size: int = MIN_POOL_SIZE,
        max_size: int | None = None,
        durability: Literal["none", "lazy", "full"] = "lazy",
        timeout: float | None = 60.0,
        mode: int = 0o666,
        scratch: bool = False,
    ) -> None:
        super().__init__()
        self.path = os.path.realpath(os.fsdecode(path))
        self._options: dict[str, Any] = {
            "pool_size": pool_size,
            "max_size": max_size,
            "durability": "none" if scratch else durability,
            "timeout": timeout,
            "mode": mode,
            "scratch": scratch,
        }
        self._closed = True
        self._open("c")

    def _open(self, flag: Literal["w", "c"]) -> None:
        self._store = pmemstore.acquire(self.path, flag, self._options)
        self._closed = False

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ZictBase.__init__(self)
        self.path, self._options = state["path"], state["options"]
        self._closed = True
        self._open("w")

    # One key ----------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> Buffer:
        value = self._store.get(text_of(key))
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Key, value: Value) -> None:
        text = encode_key(key)
        self._store.set(text, *parts_of(value))

    def __delitem__(self, key: Key) -> None:
        if not self._store.delete(text_of(key)):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        try:
            return encode_key(key) in self._store  # type: ignore[arg-type]
        except UnsupportedTypeError:
            return False

    # All keys ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Key]:
        return map(decode_key, self._store.keys())

    def __len__(self) -> int:
        return len(self._store)

    def clear(self) -> None:
        """Remove all keys, in one transaction."""
        self._store.clear()

    # Looking after ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything stored so far is on the disk.

        With ``durability='none'`` that holds until the next change: see there.
        """
        self._store.sync()

    def stats(self) -> PoolStats:
        """Return sizes and counts of the pool."""
        return self._store.pool.stats()

    def check(self) -> list[Problem]:
        """Return every broken invariant of the pool; empty if it is sound."""
        return self._store.pool.check()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Close the store; the last that has the file open closes the file.  Twice is fine.

        Buffers that were read stay as they are: their pages are copied into memory where they were not
        yet.
        """
        if not getattr(self, "_closed", True):
            store, self._store = self._store, pmemstore.Store(self.path)
            self._closed = True
            try:
                pmemstore.release(store)
            except BaseException:
                if store.is_open:  # as before; else it is given up
                    self._store, self._closed = store, False
                raise

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self)} elements"
        return f"<{type(self).__name__}: {self.path}, {state}>"
