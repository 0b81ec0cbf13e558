"""How an open pool ends: made safe, closed, or left to the parent after a fork."""

from __future__ import annotations

import os
import weakref

from pmshelve.errors import ClosedError, ForkedError, TransactionError
from pmshelve.pmemobj.checkpoint import PoolCheckpoints
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import Memory
from pmshelve.pmemobj.poolfile import PoolFile
from pmshelve.pmemobj.superblock import CLEAN, UNSYNCED
from pmshelve.storage.binary import align_up

__all__ = ["PoolEnding"]

_pools: weakref.WeakSet[PoolEnding] = weakref.WeakSet()


class PoolEnding(PoolCheckpoints):
    """The end of a `RawPool`, in order or by a fork."""

    def __init__(
        self, file: PoolFile, memory: Memory, *, durability: str, max_size: int | None
    ) -> None:
        super().__init__(file, memory, durability=durability, max_size=max_size)
        _pools.add(self)

    def sync(self) -> None:
        """Return when all that was committed is on the disk.

        Raises
        ------
        StoreFailedError
            It may not be.
        """
        with self.lock:
            if self.readonly and not self.closed:
                return
            self._check()
            if self._file.lax:
                self._settle()
                return
            try:
                self._file.sync_if_needed()
            except OSError as error:
                self._raise(error, "")

    def _settle(self) -> None:
        """Make all that syncs were left out of last; the pool is not in use then (see `_begin_use`)."""
        if self.memory.changes is not None:
            raise TransactionError("a pool with durability='none' is synced between transactions")
        file = self._file
        file.be_strict()
        try:
            self._checkpoint(0, self.memory.size)
        finally:
            file.lax = self._in_use = bool(file.block.flags & UNSYNCED)
            self._plain = self._plain and self._in_use

    def close(self, *, clean: bool = True, size: int | None = None) -> None:
        """Make a last checkpoint and close the file.  Twice is fine.

        A transaction under way is rolled back.

        Parameters
        ----------
        clean
            Whether the next opener may take it that all is in order.
        size
            Bytes that the pool needs; the file is cut to that, unless a view of memory lives.

        Raises
        ------
        StorageError
            The checkpoint could not be made, or the pool had no space for it.  It is closed; what
            was committed is in the journal, for the next opener.
        """
        with self.lock:
            if self.closed:
                return
            self.closed = True
            memory = self.memory
            memory.rollback_all()
            file = self._file
            size = memory.size if size is None else align_up(size, PAGE)
            finished = False
            try:
                if self._refused is None:
                    self._close_file(CLEAN if clean else 0, size)
                    finished = True
            finally:
                forked = isinstance(self._refused, ForkedError)
                self._refuse(ClosedError("the pool is closed", self.path))
                if memory.release() and finished and file.end > file.block.file_size:
                    file.cut(file.block.file_size)
                file.close(unlock=not forked)
                _pools.discard(self)

    def _close_file(self, flags: int, size: int) -> None:
        if self._file.is_gone():
            return  # nobody will open it again
        block = self._file.block
        unfinished = self._in_use or flags != block.flags & CLEAN
        self._file.be_strict()
        if unfinished or size < block.file_size or self.max_size != block.max_size:
            self._checkpoint(flags, size)

    def _after_fork_in_child(self) -> None:
        """Leave everything to the parent: the lock, the file, a transaction of another thread."""
        transaction = self.transaction
        hint = "open it here anew"
        self._refuse(
            ForkedError("the pool belongs to the process that opened it", self.path, hint=hint)
        )
        if not self.lock._is_owned():
            self.lock._at_fork_reinit()
            transaction.depth = 0
            self.memory.outer.clear()
            self.memory.changes = None
        self._file.close(unlock=False)


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
