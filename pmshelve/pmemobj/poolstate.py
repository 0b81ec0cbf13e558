"""An open pool: what is known of it and of its file, how it takes a record, and how it fails.

    state      entered by                   commit, checkpoint
    open       create, open                 work
    failed     a failed sync; a checkpoint  StoreFailedError; what is in memory can be read
               that could not be finished
    forked     fork, in the child           ForkedError; the parent goes on
    closed     close                        ClosedError

An error that leaves the file as it was, or a record that could be taken back, is no failure.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

from pmshelve.errors import NoSpaceError, PmshelveError, ReadOnlyError, StoreFailedError
from pmshelve.pmemobj.journal import HEADER, Tail
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import Memory, pages_of, runs_of
from pmshelve.pmemobj.poolfile import PoolFile
from pmshelve.pmemobj.superblock import HOLES
from pmshelve.pmemobj.transaction import Transaction
from pmshelve.storage import file as disk
from pmshelve.storage.binary import align_up
from pmshelve.storage.region import address_of

__all__ = ["POINTER_SIZE", "PoolState"]

_FRESH_UNSYNCED_MIN = 16 << 10
"""Bytes from which it costs less to write a fresh range home at once, if it needs no sync."""
POINTER_SIZE = HEADER + 16 + 8
"""Bytes of a record that points to an extent.  Room for two of them is kept free in the journal: one
for a commit, one for step 1 of the checkpoint that follows."""


class PoolState(ABC):
    """What `RawPool` knows, and what it does without a checkpoint; its attributes are told there."""

    def __init__(
        self, file: PoolFile, memory: Memory, *, durability: str, max_size: int | None
    ) -> None:
        block = file.block
        self.path = file.path
        self.readonly = file.readonly
        self.memory = memory
        self.transaction = Transaction(memory, self.write)
        self.was_clean = False
        self.closed = False
        self.failed: StoreFailedError | None = None
        self.change_size_max = _change_size_max()
        self.checkpoint_count = 0
        self.pool_kind = block.pool_id
        self.uuid = block.uuid
        self.heap_offset = block.heap_offset
        self.pool_size = block.pool_size
        self.max_size = block.max_size if max_size is None else max_size
        self.journal_size = block.journal_size
        self.durability = durability
        self._file = file
        self._full = durability == "full"
        # No sync is needed where a power cut can be noticed.
        self._boot = disk.boot_id()
        self.unsynced = durability == "none" and any(self._boot)
        if self.unsynced:
            memory.fresh_min = _FRESH_UNSYNCED_MIN
        self._holes = bool(block.flags & HOLES)
        self.free_runs: Callable[[], list[tuple[int, int]]] | None = None
        self.freed: set[int] = set()
        self.leading = False
        # Whether an ordinary record is all that a commit needs: the superblock says already that
        # the pool is in use, and the journal or it what the file's size is.
        self._plain = False
        self._in_use = False
        self._size = block.file_size
        self._room = block.journal_size - 2 * POINTER_SIZE
        self._high = block.journal_size * 3 // 4
        self._moved: dict[int, int] = {}
        self._extents = False
        self._refused: Exception | None = None
        if file.readonly:
            self._refuse(ReadOnlyError("the pool is open for reading only", file.path))
        elif not self._full:
            file.map_journal()

    @property
    def lock(self) -> Any:
        """The pool's lock, that of its transactions."""
        return self.transaction.lock

    @property
    def file_size(self) -> int:
        """Bytes that the pool has of its file."""
        return self.memory.size

    @property
    def journal_used(self) -> int:
        """Bytes of the journal that hold records."""
        return self._file.tail[0]

    @property
    def address(self) -> int:
        """Address of the file's first byte in this process."""
        return address_of(self.memory.map)

    def is_current(self) -> bool:
        """Whether the file has the pool's name still."""
        return self._file.is_named()

    @abstractmethod
    def write(self) -> None:
        """Make the changes of the running transaction last: its commit."""

    # Records ----------------------------------------------------------------------------------

    def _append(self, record: bytes, tail: Tail) -> None:
        """Put a record into the journal: the commit point."""
        file = self._file
        memory = self.memory
        try:
            if self._full:
                file.store(record)
                file.sync()
            elif file.map is not None:
                start = file.base + file.tail[0]
                file.map[start : start + len(record)] = record
            else:
                file.store(record)
            # A signal may strike anywhere; what it finds here tells how the commit ended.
            memory.changes = None
            file.tail = tail
        except BaseException as error:
            if memory.changes is not None:
                self._take_back(error)
            file.tail = tail
            raise
        if self._full:
            file.synced = tail

    def _take_back(self, error: BaseException) -> NoReturn:
        """Make sure that a record which may be in the journal does not count; raise."""
        try:
            self._file.wipe()
        except OSError:
            # What failed to be written is not whole; what a signal interrupted may be.
            self._file.broken |= not isinstance(error, OSError)
        self._raise(error, "the transaction could not be written")

    # Failing ----------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._refused is not None:
            raise self._refused.with_traceback(None)

    def _refuse(self, error: Exception) -> None:
        """Let every transaction that begins from now on raise, and the one under way when it ends."""
        self._refused = self.transaction.refusal = error
        self._plain = False

    def _raise(self, error: BaseException, problem: str) -> NoReturn:
        """Raise what the caller is to be told; the pool has failed if the file is broken."""
        if self._file.broken and self.failed is None:
            self.failed = StoreFailedError(
                "a write or a sync failed, so what is on the disk is not known",
                self.path,
                hint="open the pool again",
                cause=error if isinstance(error, OSError) else None,
            )
            self._refuse(self.failed)
            if isinstance(error, OSError):
                raise self.failed from error
        if isinstance(error, PmshelveError) or not isinstance(error, OSError):
            raise error
        raise disk.storage_error(error, problem, self.path) from error

    # Size -------------------------------------------------------------------------------------

    def extend(self, size: int) -> None:
        """Make the pool at least `size` bytes large.  What the new ones hold is not defined.

        If the transaction under way is rolled back, the pool keeps them.

        Raises
        ------
        NoSpaceError
            The disk is full, or `max_size` or the address space is used up.
        """
        memory = self.memory
        size = align_up(size, PAGE)
        if size <= memory.size:
            return
        self._check()
        if self.max_size and size > self.max_size:
            raise NoSpaceError(
                f"the pool is full: its max_size is {self.max_size} bytes",
                self.path,
                hint="open it with a larger max_size=",
            )
        if size > len(memory.map):
            raise NoSpaceError(
                f"the {len(memory.map)} bytes of address space reserved for the pool are used up",
                self.path,
                hint="close the pool and open it again",
            )
        file = self._file
        if self._extents:
            # In the way, and still there because there was no space for a checkpoint.
            raise NoSpaceError(
                "the journal could not be emptied for want of space",
                self.path,
                hint="free some space and try again",
            )
        with disk.reporting("the pool could not grow", self.path):
            if file.end > memory.size:
                file.cut(memory.size)
            file.grow(size)
        memory.size = size
        self._plain = False

    def prepare(self, start: int, size: int) -> None:
        """Give blocks to free pages that are about to be used, where they may have lost theirs.

        While `leading` is set, only to the first of pages that `RawPool.place` can write.

        Raises
        ------
        NoSpaceError, StorageError
            It could not be done.

        Notes
        -----
        Else the next checkpoint might find no room for them.  And where a page of the file is a page of
        memory (tmpfs), touching one that cannot be had is a SIGBUS.
        """
        if self._holes:
            memory = self.memory
            if self.leading and memory.is_untouched(start, size):
                size = PAGE
            # What was in use since the last checkpoint has its blocks, and its bytes may count still.
            pages = set(pages_of(start, size)).difference(memory.dirty, memory.recent)
            with disk.reporting("the transaction could not be written", self.path):
                self._file.fill(runs_of(pages))

    def trim(self, trim: Callable[[int], int], operation: Any) -> int:
        """Let the heap give back what is free at its end; return the bytes of file that it needs.

        Parameters
        ----------
        trim
            `Heap.trim`.
        operation
            What it runs in.
        """
        with operation:
            return trim(self.pool_size)


def _change_size_max() -> int:
    """Return how much one transaction may change: a quarter of the machine's memory."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        memory = 0
    return max(1 << 28, memory // 4)
