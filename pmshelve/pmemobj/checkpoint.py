"""Checkpoint: make home what memory is, and begin the journal anew.  (see `rawpool` for the words)

    1  the final bytes of whatever was moved go into the journal  replaying a move over a home that
                                                                  is newer in part gives nonsense;
                                                                  these bytes, coming last, mend it
    2  sync         no page is written home while a record that touched it may be lost
    3  write home   the dirty pages
    4  sync         from now on the journal is not needed
    5  superblock   with a new `start`: the journal is empty
    6  sync         else, after a power cut, the old superblock could find old records, cut off by
                    new ones, and replay them over home pages that are newer

A crash before 5 is on the disk replays the journal over whatever is home, with the same result.
Step 2 is left out where it is known to be done.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from pmshelve.errors import NoSpaceError, PmshelveError, TransactionError
from pmshelve.pmemobj import journal, superblock
from pmshelve.pmemobj.journal import MOVE, OVERFLOW, RANGE, Item, Scan, Tail
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import runs_of
from pmshelve.pmemobj.poolstate import POINTER_SIZE, PoolState
from pmshelve.pmemobj.superblock import CLEAN, HOLES, ORDERED, UNSYNCED, Superblock
from pmshelve.storage import file as disk
from pmshelve.storage.binary import U64
from pmshelve.storage.region import drop_pages

__all__ = ["PoolCheckpoints"]

_Run = tuple[int, int]
"""Offset and size."""


class PoolCheckpoints(PoolState):
    """The checkpoints of a `RawPool`, and the records that it writes behind the heap."""

    def checkpoint(self) -> None:
        """Write home what changed, and begin the journal anew; between transactions.

        Raises
        ------
        NoSpaceError, StorageError
            Nothing changed; the pool works on.
        StoreFailedError
            It could not be finished.  What was committed is safe, and there when the pool is opened
            again, unless the disk lost it.
        """
        with self.lock:
            self._check()
            if self.memory.changes is not None:
                raise TransactionError("a checkpoint within a transaction", self.path)
            self._checkpoint(0, self.memory.size)

    def give_back(self) -> None:
        """Give the disk blocks of what was freed since the last time back to the file system.

        Between transactions, where `free_runs` is known.  Only what a checkpoint has made free counts,
        so one is made where it has to be.
        """
        with self.lock:
            if self.memory.recent:
                self.checkpoint()
            self._check()
            if self.free_runs is not None and self.freed:
                self._file.punch(_common(runs_of(self.freed), self.free_runs()))
                self.freed.clear()

    def _checkpoint_after_commit(self) -> None:
        # The commit is made, whatever becomes of this.  Where there was no space it is tried again
        # after the next one; and if the pool failed, that one will be told.
        with contextlib.suppress(PmshelveError):
            self._checkpoint(0, self.memory.size)

    def _checkpoint(self, flags: int, size: int) -> None:
        file = self._file
        memory = self.memory
        self._log_moved()
        try:
            file.sync_if_needed()
            file.write_home(memory.bytes, memory.dirty_runs())
            file.sync()
            self._publish(self._next_block(flags, size, lax=file.lax))
        except OSError as error:
            file.broken = True  # home may be torn, and whether the journal counts is not known
            self._raise(error, "")
        except BaseException as error:
            if file.broken:
                self._raise(error, "")
            raise
        self.checkpoint_count += 1
        drop_pages(memory.map, runs_of(memory.dirty | memory.copied))
        if self.free_runs is not None:
            self.freed.update(memory.recent)
        memory.dirty.clear()
        memory.copied.clear()
        memory.recent.clear()
        if file.end > memory.size:
            file.cut(memory.size)

    def _publish(self, block: Superblock) -> None:
        """Make a superblock count: steps 5 and 6."""
        file = self._file
        try:
            file.write_superblock(block)
            file.sync()
            self._adopt(block)
        except OSError:
            raise
        except BaseException:
            # A signal may not leave it open which journal counts: to the end, and then it goes on.
            file.broken = True
            file.write_superblock(block)
            file.sync()
            self._adopt(block)
            file.broken = False
            raise

    def _adopt(self, block: Superblock) -> None:
        file = self._file
        file.adopt(block)
        file.synced = file.tail
        # Without syncs the pool is in use once the superblock says so: see `_begin_use`.
        self._in_use = bool(block.flags & UNSYNCED) if self.unsynced else not block.flags & CLEAN
        self._plain = self._plain and self._in_use
        self._extents = False
        self._size = block.file_size
        self._moved.clear()

    def _fill_holes(self) -> None:
        """Give blocks to what is to be written home: a power cut may have taken what `prepare` gave.

        Raises
        ------
        NoSpaceError, StorageError
            It could not be done, and nothing has changed.
        """
        if self._holes:
            with disk.reporting("the journal could not be emptied", self.path):
                self._file.reserve(self.memory.dirty_runs())

    def _log_moved(self) -> None:
        """Step 1: see the module's text.

        Raises
        ------
        NoSpaceError, StorageError
            It could not be done, and nothing has changed.
        """
        file = self._file
        memory = self.memory
        if not self._moved:
            return
        end = file.end, self._extents
        before = file.tail
        items: list[Item] = [
            (RANGE, start, stop - start, memory.bytes[start:stop])
            for start, stop in _merged(self._moved)
        ]
        try:
            buffers, tail = journal.encode(items, file.tail)
            if tail[0] > self.journal_size:
                buffers, tail = self._extent(buffers, tail)
            if tail[0] > self.journal_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.store(b"".join(buffers))
            file.tail = tail
        except BaseException as error:  # noqa: BLE001 (raised again, by a name that fits)
            if file.tail is before:
                self._drop_extent(*end)
            self._raise(error, "the journal could not be emptied")
        self._moved.clear()

    def recover(self, found: Scan) -> None:
        """Bring memory to the last committed state, and, if it may be written, the file too.

        What was found in the journal is cut off by that: nothing is ever appended to it.
        """
        for items in found.records:
            journal.apply(self.memory, items)
            self._note(items)
        self._size = found.size
        if self.readonly:
            return
        if found.records or found.torn or self._file.block.flags & UNSYNCED:
            self._file.synced = None  # a killed process may have left it unsynced
            self._fill_holes()
            self._checkpoint(0, self.memory.size)
        elif self._file.end > self.memory.size:
            self._file.cut(self.memory.size)

    def _begin_use(self) -> None:
        """Say in the superblock, before the first record, that the pool is in use.

        The `start` is a new one.  What an earlier use left in the journal cannot follow a record of
        this one then, although nothing of it may have been found when the pool was opened.  No sync
        is needed in between: whichever of the two reaches the disk alone, the journal is empty.
        """
        file = self._file
        lax = self.unsynced
        block = self._next_block(0, self._size, lax=lax)
        # First, so that `close` makes it a clean one again, whatever comes in between.
        file.adopt(block)
        file.write_superblock(block)
        if lax:
            # Both copies, before anything that is not synced may reach the disk.
            file.sync()
            file.sync()
        file.lax = lax
        self._in_use = True

    def _next_block(self, flags: int, size: int, *, lax: bool) -> Superblock:
        block = self._file.block
        flags |= ORDERED if self._full else UNSYNCED if lax else 0
        self._holes = self._holes or self.free_runs is not None
        return block._replace(
            flags=flags | (HOLES if self._holes else 0),
            boot=self._boot if lax else bytes(16),
            sequence=block.sequence + 1,
            file_size=size,
            start=superblock.new_start(),
            max_size=self.max_size,
        )

    def _note(self, items: list[Item]) -> None:
        """Take note, for the next checkpoint, of what a record changes."""
        dirty = self.memory.dirty
        for kind, target, size, _ in items:
            if kind == MOVE:
                self._moved[target] = max(size, self._moved.get(target, 0))
            if size:
                dirty.update(range(target // PAGE, (target + size - 1) // PAGE + 1))

    # Extents ----------------------------------------------------------------------------------

    def _extent(self, buffers: list[Any], tail: Tail) -> tuple[list[Any], Tail]:
        """Write a record that does not fit behind the heap; return one that points to it.

        Both may reach the disk by one sync, in any order: the pointer has the extent's crc.

        Raises
        ------
        NoSpaceError
            There is no room in the file, or not even for the pointer in the journal.
        """
        file = self._file
        size = sum(map(len, buffers))
        if file.tail[0] + POINTER_SIZE > self.journal_size - POINTER_SIZE and self.memory.changes:
            self._make_room()
        self._extents = True  # before it counts: a signal may strike at once
        offset = file.write_extent(buffers, size)
        item = OVERFLOW, offset, size, U64.pack(tail[2])
        return journal.encode([item], file.tail)

    def _drop_extent(self, end: int, extents: bool) -> None:
        """Forget an extent that nothing points to."""
        if self._file.end > end:
            self._file.cut(end)
        self._extents = extents

    def _make_room(self) -> NoReturn:
        """Roll the transaction back, since a checkpoint is overdue; raise in any case."""
        self.memory.rollback_all()
        self._checkpoint(0, self.memory.size)
        raise NoSpaceError(
            "the journal was full, for want of space to empty it", self.path, hint="try again"
        )


def _common(runs: Iterable[_Run], others: Iterable[_Run]) -> Iterator[_Run]:
    """Yield what is in both of two sequences of runs, each in order."""
    ahead = iter(others)
    other, other_stop = 0, 0
    for start, size in runs:
        stop = start + size
        while other_stop < stop:
            if max(start, other) < other_stop:
                yield max(start, other), other_stop - max(start, other)
            found = next(ahead, None)
            if found is None:
                return
            other, other_stop = found[0], found[0] + found[1]
        if max(start, other) < stop:
            yield max(start, other), stop - max(start, other)


def _merged(moved: dict[int, int]) -> list[tuple[int, int]]:
    """Return (start, stop) of the union of ranges given as start -> size."""
    merged: list[tuple[int, int]] = []
    for start, size in sorted(moved.items()):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], start + size)
        else:
            merged.append((start, start + size))
    return merged
