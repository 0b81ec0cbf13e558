"""A pool that holds buffers by key, open at most once in a process.

    root    a `Buffers`: str, as `keys.encode_key` writes keys, to bytes

`Store` is what all `PmemDict` of one file share: the first that is opened opens the pool, the last
that is closed closes it.  Lock order: a store's own lock, while it is opened or closed, then that of the
table of stores; the pool's lock is taken inside of the first, never the other way round.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from pmshelve.errors import (
    ClosedError,
    CorruptionError,
    ForkedError,
    ObjectError,
    PmshelveError,
    WrongDoorError,
)
from pmshelve.pmemobj.blobs import Blobs
from pmshelve.pmemobj.identity import Guard
from pmshelve.pmemobj.layout import KIND_POOL, OID_NULL
from pmshelve.pmemobj.oid import SHORT_MAX, encode_immediate
from pmshelve.pmemobj.persistent import PersistentDict
from pmshelve.pmemobj.pool import PersistentObjectPool
from pmshelve.storage import file as disk

__all__ = ["Buffers", "Store", "acquire", "release"]

logger = logging.getLogger("pmshelve.pmemobj")

NONE = 1, 0
"""The oid of None."""


def _closed() -> ClosedError:
    return ClosedError("the store was closed", hint="open it again")


def _forked() -> ForkedError:
    return ForkedError("the store belongs to the process that opened it", hint="open it here anew")


class Buffers(PersistentDict[str, bytes]):
    """The content of a `PmemDict`: str to bytes.  Its name is in pool files, and stays."""

    __slots__ = ()

    def _p_put(self, key: str, oid: tuple[int, int]) -> tuple[int, int]:
        """Set a key to an oid that has a reference to spare; return the old one, which keeps its own."""
        at = self._p_find(key)
        if at < 0:
            self._p_add(key, oid)
            return OID_NULL
        words = self._p_words
        old = words[at + 3], words[at + 4]
        self._p_mm.memory.snapshot((at + 3) << 3, 16)
        words[at + 3], words[at + 4] = oid
        self._p_edits += 1
        return old

    def _p_pop(self, key: str) -> tuple[int, int]:
        """Remove a key, which is there; return the oid of its value, which keeps its reference."""
        at = self._p_find(key)
        words = self._p_words
        own = words[at + 1], words[at + 2]
        old = words[at + 3], words[at + 4]
        self._p_remove(at, key)
        self._p_mm.release(*own)
        return old

    def _p_get(self, key: str) -> tuple[int, int]:
        """Return the oid of a key's value, or OID_NULL."""
        at = self._p_find(key)
        return (self._p_words[at + 3], self._p_words[at + 4]) if at >= 0 else OID_NULL

    def _p_offsets(self) -> list[tuple[str, int]]:
        """Return (key, offset of the value) of the keys whose values are objects."""
        words = self._p_words
        return [
            (key, words[at + 4])
            for at, _, key in self._p_entries()
            if words[at + 3] & 0xFF == KIND_POOL
        ]


class Store:
    """One open pool of buffers; keys are text.  All methods may be called from any thread.

    Parameters
    ----------
    path
        Its real path.

    Attributes
    ----------
    users
        How many have it open.
    opening
        Held while the pool is opened or closed.
    scratch
        Whether the file is removed when the pool is closed.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.users = 0
        self.opening = threading.RLock()
        self.scratch = False
        self._refuse(_closed)
        _all.add(self)

    def _refuse(self, why: Callable[[], PmshelveError]) -> None:
        self._why = why
        self._pool: PersistentObjectPool | None = None
        refuse: Any = Guard(why)
        self.lock = self._mm = self._root = self._blobs = self._transaction = refuse

    def after_fork_in_child(self) -> None:
        """Leave the pool to the parent: what is in memory here need not fit together any more."""
        self.opening = threading.RLock()
        if self._pool is not None:
            self._refuse(_forked)

    # Opening and closing ----------------------------------------------------------------------

    def open(self, flag: Literal["r", "w", "c"], options: dict[str, Any]) -> None:
        """Open the pool, if it is not open; `options` are the pool's, and ``scratch``."""
        if self._pool is not None:
            return
        given = {"allow_pickle": False, **options}
        scratch = given.pop("scratch", False)
        pool = PersistentObjectPool(self.path, flag, **given)
        self.scratch = scratch
        try:
            self._root = _root_of(pool)
            blobs = self._blobs = Blobs(pool.mm, pool._raw)
            pool._before_close = blobs.part_for_good
            self._mm = pool.mm
            self._transaction = pool.mm.transaction()
        except BaseException:
            pool.close()
            raise
        self.lock = pool.lock
        self._pool = pool

    def close(self) -> None:
        """Close the pool; buffers that were read stay as they are.

        Raises
        ------
        MemoryError
            There is none for them; the pool is open still.
        """
        pool = self._pool
        if pool is None:
            return
        with pool.lock:
            try:
                if not pool.closed:
                    self._blobs.part_for_good()
                    if self.scratch and pool._raw.is_current():
                        disk.unlink(self.path)
                    pool.close()
            finally:
                if pool.closed:
                    self._refuse(_closed)

    def is_current(self) -> bool:
        """Whether the pool is, or is going to be, that of the file which has the name now."""
        pool = self._pool
        try:
            return pool is None or pool._raw.is_current()
        except OSError:  # it has been closed just now
            return False

    @property
    def is_open(self) -> bool:
        """Whether the pool is open."""
        return self._pool is not None

    @property
    def pool(self) -> PersistentObjectPool:
        """The open pool."""
        if self._pool is None:
            raise self._why()
        return self._pool

    def _clear_up(self) -> None:
        """Roll back what a signal left open (see `pmshelve.pmemobj.transaction`), lest it be read."""
        if self._transaction.opener is not None:
            self._transaction.drop_leftovers()

    # One key ----------------------------------------------------------------------------------

    def get(self, key: str) -> bytearray | memoryview | None:
        """Return a key's value in memory of the caller's own, or None."""
        with self.lock:
            self._clear_up()
            root = self._root
            kind, payload = root._p_get(key)
            if kind & 0xFF == KIND_POOL:
                blobs: Blobs = self._blobs
                return blobs.read(kind, payload)
            if not kind:
                return None
            value = root._p_loaders[kind & 0xFF](kind, payload)
            if value.__class__ is not bytes:
                raise CorruptionError("a value is not bytes", self.path, key)
            return bytearray(value)

    def set(self, key: str, parts: Sequence[memoryview], size: int) -> None:
        """Store buffers, of `size` bytes in all, as a key's value."""
        with self.lock:
            self._clear_up()
            blobs, mm = self._blobs, self._mm
            blobs.begin(size)
            with mm.operation:
                if size > SHORT_MAX:
                    oid = mm.pool_kind, blobs.store(parts, size)
                else:
                    oid = encode_immediate(b"".join(parts)) or OID_NULL
                blobs.remove(self._root._p_put(key, oid))
            blobs.end()

    def delete(self, key: str) -> bool:
        """Remove a key; return whether it was there."""
        with self.lock:
            self._clear_up()
            blobs, root = self._blobs, self._root
            blobs.begin()
            if root._p_find(key) < 0:
                return False
            with self._mm.operation:
                blobs.remove(root._p_pop(key))
            blobs.end()
            return True

    # All keys ---------------------------------------------------------------------------------

    def __contains__(self, key: str) -> bool:
        with self.lock:
            self._clear_up()
            return bool(self._root._p_find(key) >= 0)

    def __len__(self) -> int:
        with self.lock:
            self._clear_up()
            return len(self._root)

    def keys(self) -> Iterator[str]:
        """Return an iterator over the keys there are now, in order of insertion."""
        with self.lock:
            self._clear_up()
            return iter(self._root._p_values(1))

    def clear(self) -> None:
        """Remove all keys, in one transaction."""
        with self.lock:
            self._clear_up()
            root, blobs = self._root, self._blobs
            blobs.begin()
            with self._mm.operation:
                for key in blobs.keys_read(root):
                    blobs.remove(root._p_put(key, NONE))
                root.clear()
            blobs.end()
            blobs.give_back()

    def sync(self) -> None:
        """Return when all that was stored is on the disk, and what was freed is given back."""
        with self.lock:
            self._clear_up()
            self._blobs.settle()
            self._blobs.give_back()
            self.pool.sync()


def _root_of(pool: PersistentObjectPool) -> Buffers:
    """Return the pool's content, made if there is nothing in the pool."""
    try:
        root = pool.root
        if root is None:
            with pool.transaction():
                pool.root = root = pool.new(Buffers)
    except ObjectError:
        root = None  # of a class that is not ours
    if type(root) is not Buffers:
        raise WrongDoorError(
            "the pool was not made by PmemDict", pool.filename, hint="use pmshelve.pmemobj.open()"
        )
    return root


# One store for each file ------------------------------------------------------------------------

_stores: dict[str, Store] = {}
_all: weakref.WeakSet[Store] = weakref.WeakSet()
_lock = threading.RLock()


def acquire(path: str, flag: Literal["w", "c"], options: dict[str, Any]) -> Store:
    """Return the open store of a file, to be given up by `release`.

    Parameters
    ----------
    path
        Its real path.
    flag
        ``'c'`` to make the file if it is missing, ``'w'`` not to.
    options
        Of `Store.open`, if nobody has it open yet.
    """
    with _lock:
        store = _stores.get(path)
        if store is None or not store.is_current():
            store = _stores[path] = Store(path)
        store.users += 1
    try:
        with store.opening:
            store.open(flag, options)
    except BaseException:
        _give_up(store)
        raise
    return store


def release(store: Store) -> None:
    """Give a store up, and close it if nobody else has it open.

    Raises
    ------
    MemoryError, KeyboardInterrupt
        There is none for the buffers that are in use; or it was interrupted.  If the store is open still
        it was not given up.
    OSError
        It could not be closed in order; it is closed, and the next that is opened recovers it.
    """
    with store.opening:
        try:
            if store.users == 1:
                store.close()
        except BaseException:
            if not store.is_open:
                _give_up(store)
            raise
        _give_up(store)


def _give_up(store: Store) -> None:
    """Count one user less."""
    with _lock:
        store.users -= 1
        if not store.users and _stores.get(store.path) is store:
            del _stores[store.path]


def _after_fork_in_child() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()
    for store in list(_all):
        store.after_fork_in_child()
    _stores.clear()  # they are the parent's; the child opens the files anew


def _close_all() -> None:
    """Close at exit what is open still, while there are modules to do it with."""
    for store in list(_stores.values()):
        with contextlib.suppress(ClosedError):
            lock = store.lock
            if lock.acquire(timeout=1.0):  # else some thread is busy with it for ever
                try:
                    store.close()
                except (PmshelveError, MemoryError, OSError):
                    logger.exception("%s: could not be closed at exit", store.path)
                finally:
                    lock.release()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
