"""The file of a pool: transactions in, the same memory again after any crash.

`RawPool` joins memory, journal and superblock.  Between two checkpoints

    home     the heap's pages in the file: as at the last checkpoint, and never torn, but what was
             free space then may hold what a later transaction put there
    journal  one record for each transaction since
    memory   home, with all records applied: the present

and a checkpoint makes home what memory is:

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

    state      entered by                   commit, checkpoint
    open       create, open                 work
    failed     a failed sync; a checkpoint  StoreFailedError; what is in memory can be read
               that could not be finished
    forked     fork, in the child           ForkedError; the parent goes on
    closed     close                        ClosedError

The pool's lock is held through commit and checkpoint; the file's from open to close.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from pmshelve.errors import (
    ClosedError,
    ForkedError,
    NoSpaceError,
    PmshelveError,
    ReadOnlyError,
    StoreFailedError,
    TransactionError,
)
from pmshelve.pmemobj import journal, superblock
from pmshelve.pmemobj.journal import HEADER, MOVE, OVERFLOW, RANGE, SIZE, Item, Scan, Tail
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import Changes, Memory, runs_of
from pmshelve.pmemobj.poolfile import PoolFile
from pmshelve.pmemobj.superblock import CLEAN, ORDERED, Superblock
from pmshelve.pmemobj.transaction import Transaction
from pmshelve.storage import file as disk
from pmshelve.storage.binary import U64, align_up
from pmshelve.storage.region import RESERVE_MAX, address_of, drop_inner_pages, drop_pages

__all__ = ["RawPool", "create", "open"]

DIRTY_PAGES_MAX = 1 << 15
"""Pages of memory that may differ from the file's before a checkpoint is made."""

DIRECT_SIZE_MIN = 1 << 18
"""Bytes of fresh ranges from which writing them home (and a sync) is cheaper than logging them."""

JOURNAL_SIZE_MIN = 1 << 16
JOURNAL_SIZE_MAX = 1 << 25

_POINTER_SIZE = HEADER + 16 + 8
"""Bytes of a record that points to an extent.  Room for two of them is kept free in the journal: one
for a commit, one for step 1 of the checkpoint that follows."""

_Run = tuple[int, int]
"""Offset and size."""

Format = Callable[[Memory, int, int], None]
"""Makes an empty heap, in a transaction, given memory, the heap's offset and its pages."""

_pools: weakref.WeakSet[RawPool] = weakref.WeakSet()


class RawPool:
    """The open file of a pool.  Made by `create` and `open`.

    Attributes
    ----------
    memory, transaction
        The pool's words; the transactions that change them.
    path
        The file's name.
    readonly
        Whether nothing is ever written.
    was_clean
        Whether the pool had been closed in order when it was opened.
    pool_kind
        Kind word of the pool's oids.
    heap_offset
        Where the heap begins.
    failed
        Why nothing more can be committed until the pool is opened again; or None.
    change_size_max
        Bytes that one transaction may change.
    checkpoint_count
        Checkpoints made since the pool was opened.
    """

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
        # Whether an ordinary record is all that a commit needs: the superblock says already that
        # the pool is in use, and the journal or it what the file's size is.
        self._plain = False
        self._in_use = False
        self._size = block.file_size
        self._room = block.journal_size - 2 * _POINTER_SIZE
        self._high = block.journal_size * 3 // 4
        self._moved: dict[int, int] = {}
        self._extents = False
        self._refused: Exception | None = None
        if file.readonly:
            self._refuse(ReadOnlyError("the pool is open for reading only", file.path))
        elif not self._full:
            file.map_journal()
        _pools.add(self)

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

    # Commit -----------------------------------------------------------------------------------

    def write(self) -> None:
        """Make the changes of the running transaction last: its commit.

        Raises
        ------
        NoSpaceError, StorageError, TransactionError
            Nothing was committed; the pool works on.
        StoreFailedError
            Whether they last is not known; the pool has to be opened again.
        """
        memory = self.memory
        changes = memory.changes
        if changes is None:
            self._check()  # closed or failed while the transaction was under way
            raise AssertionError("no transaction")
        if changes.moves or changes.fresh or not self._plain:
            self._write_any(changes)
            return
        if not changes.saved:
            memory.changes = None
            return
        file = self._file
        record, tail = journal.encode_ranges(memory, changes.saved, file.tail)
        if tail[0] > self._room:
            self._write_any(changes)
            return
        self._append(record, tail)
        if tail[0] > self._high or len(memory.dirty) > DIRTY_PAGES_MAX:
            self._checkpoint_after_commit()

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

    def _write_any(self, changes: Changes) -> None:
        """Commit what an ordinary record cannot hold, or the first one since the pool was opened."""
        memory = self.memory
        file = self._file
        self._check()  # after a fork in the middle of the transaction
        if not changes.saved and not changes.fresh:
            memory.changes = None
            return
        items: list[Item] = []
        if memory.size != self._size:
            items.append((SIZE, memory.size, 0, b""))
        items += journal.changed_items(memory, changes.saved)
        direct, logged = self._sorted_fresh(changes.fresh)
        items += (
            (RANGE, start, size, memory.bytes[start : start + size]) for start, size in logged
        )
        self._limit(sum(item[2] for item in items))
        end = file.end, self._extents
        try:
            if not self._in_use:
                self._begin_use()
            if direct:
                # Before the record that gives them a meaning, and never in the journal.
                file.write_home(memory.bytes, direct)
                file.sync()
            buffers, tail = journal.encode(items, file.tail)
            if tail[0] > self._room:
                buffers, tail = self._extent(buffers, tail)
            self._note(items)
            self._append(b"".join(buffers), tail)
        except BaseException as error:
            if memory.changes is not None:
                self._drop_extent(*end)
                self._raise(error, "the transaction could not be written")
            raise
        self._size = memory.size
        self._plain = True
        items.clear()
        drop_inner_pages(memory.map, direct)
        if self._extents or file.tail[0] > self._high or len(memory.dirty) > DIRTY_PAGES_MAX:
            self._checkpoint_after_commit()

    def _sorted_fresh(self, fresh: dict[int, int]) -> tuple[list[_Run], list[_Run]]:
        """Return which fresh ranges may be written home at once, and which are to be logged."""
        everything = sorted(fresh.items())
        total = sum(fresh.values())
        if total < DIRECT_SIZE_MIN and total < self.journal_size // 8:
            return [], everything
        untouched = self.memory.is_untouched
        direct = {run for run in everything if untouched(*run)}
        return sorted(direct), [run for run in everything if run not in direct]

    def _limit(self, size: int) -> None:
        if size > self.change_size_max:
            raise TransactionError(
                f"the transaction changes {size} bytes, more than {self.change_size_max}",
                self.path,
                hint="nothing was changed; make several transactions of it",
            )

    def _begin_use(self) -> None:
        """Say in the superblock, before the first record, that the pool is in use.

        The `start` is a new one.  What an earlier use left in the journal cannot follow a record of
        this one then, although nothing of it may have been found when the pool was opened.  No sync
        is needed in between: whichever of the two reaches the disk alone, the journal is empty.
        """
        file = self._file
        block = self._next_block(0, self._size)
        file.write_superblock(block)
        file.adopt(block)
        self._in_use = True

    def _next_block(self, flags: int, size: int) -> Superblock:
        block = self._file.block
        return block._replace(
            flags=flags | (ORDERED if self._full else 0),
            sequence=block.sequence + 1,
            file_size=size,
            start=superblock.new_start(),
            max_size=self.max_size,
        )

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
        if file.tail[0] + _POINTER_SIZE > self.journal_size - _POINTER_SIZE and self.memory.changes:
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

    def _note(self, items: list[Item]) -> None:
        """Take note, for the next checkpoint, of what a record changes."""
        dirty = self.memory.dirty
        for kind, target, size, _ in items:
            if kind == MOVE:
                self._moved[target] = max(size, self._moved.get(target, 0))
            if size:
                dirty.update(range(target // PAGE, (target + size - 1) // PAGE + 1))

    # Checkpoint -------------------------------------------------------------------------------

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
            self._publish(self._next_block(flags, size))
        except OSError as error:
            file.broken = True  # home may be torn, and whether the journal counts is not known
            self._raise(error, "")
        except BaseException as error:
            if file.broken:
                self._raise(error, "")
            raise
        self.checkpoint_count += 1
        drop_pages(memory.map, runs_of(memory.dirty | memory.copied))
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
        self._in_use = not block.flags & CLEAN
        self._plain = self._plain and self._in_use
        self._extents = False
        self._size = block.file_size
        self._moved.clear()

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
        if found.records or found.torn:
            self._checkpoint(0, self.memory.size)
        elif self._file.end > self.memory.size:
            self._file.cut(self.memory.size)

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

    # Ending -----------------------------------------------------------------------------------

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
            try:
                self._file.sync_if_needed()
            except OSError as error:
                self._raise(error, "")

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
        block = self._file.block
        unfinished = self._in_use or flags != block.flags & CLEAN
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


def _merged(moved: dict[int, int]) -> list[tuple[int, int]]:
    """Return (start, stop) of the union of ranges given as start -> size."""
    merged: list[tuple[int, int]] = []
    for start, size in sorted(moved.items()):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], start + size)
        else:
            merged.append((start, start + size))
    return merged


def _change_size_max() -> int:
    """Return how much one transaction may change: a quarter of the machine's memory."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        memory = 0
    return max(1 << 28, memory // 4)


# Opening --------------------------------------------------------------------------------------


def create(
    path: str | os.PathLike[str],
    pool_size: int,
    mode: int = 0o666,
    journal_size: int | None = None,
    durability: str = "full",
    max_size: int | None = None,
    *,
    timeout: float | None = 0.0,
    format: Format | None = None,  # noqa: A002
) -> RawPool:
    """Make a pool and open it.  It appears under its name whole, or not at all.

    Parameters
    ----------
    pool_size
        Bytes of the file, rounded up to pages.
    mode
        Permissions, from which the umask takes some.
    journal_size
        Bytes of it for the journal; None: half, but at least 64 KiB and at most 32 MiB.
    durability, max_size, timeout
        See `open`.
    format
        Makes the heap.

    Raises
    ------
    FileExistsError
        There is such a file.
    OSError
        As the built-in `open` does; NoSpaceError where the disk is full.
    """
    _check_durability(durability)
    name = os.path.realpath(os.fsdecode(path))
    if disk.exists(name):
        raise _exists(path)
    if journal_size is None:
        journal_size = min(max(pool_size // 2, JOURNAL_SIZE_MIN), JOURNAL_SIZE_MAX)
    block = superblock.create(
        align_up(pool_size, PAGE), align_up(journal_size, PAGE), max_size or 0
    )
    if block.file_size <= block.heap_offset:
        raise ValueError(f"a pool of {pool_size} bytes has no room behind its journal")
    temporary = f"{name}.{superblock.random_bytes(4).hex()}.new"
    file = PoolFile.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        with disk.reporting("the pool could not be created", name):
            file.lock(timeout)
            file.format(block)
            pool = _mapped(file, block.file_size, durability, max_size)
            if format is not None:
                with pool.transaction:
                    pages = (block.file_size - block.heap_offset) // PAGE
                    format(pool.memory, block.heap_offset, pages)
            pool._checkpoint(CLEAN, block.file_size)
            named = file.name(name)
        if not named:
            raise _exists(path)
    except BaseException:
        file.close()
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    pool.path = name
    pool.was_clean = True
    return pool


def _exists(path: str | os.PathLike[str]) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fsdecode(path))


def _check_durability(durability: str) -> None:
    if durability not in ("full", "lazy"):
        raise ValueError(f"durability must be 'full' or 'lazy', not {durability!r}")


def open(
    path: str | os.PathLike[str],
    *,
    readonly: bool = False,
    durability: str = "full",
    max_size: int | None = None,
    timeout: float | None = 0.0,
) -> RawPool:
    """Open the pool in a file, and bring it to its last committed state.

    Parameters
    ----------
    readonly
        Nothing is written, and others may read too.
    durability
        "full": a transaction is on the disk when it has been committed.  "lazy": a power cut may
        take the last ones.
    max_size
        Bytes that the pool may grow to; None: as before.
    timeout
        Seconds to wait for somebody who has it open; None for ever.

    Raises
    ------
    FileNotFoundError, OSError
        As the built-in `open` does.
    LockTimeoutError
        Somebody has it open.
    NotAStoreError, VersionError, CorruptionError
        The file was left as it was.
    """
    _check_durability(durability)
    name = os.path.realpath(os.fsdecode(path))
    file = PoolFile.open(name, os.O_RDONLY if readonly else os.O_RDWR)
    try:
        with disk.reporting("the pool could not be opened", name):
            file.lock(timeout)
            found = file.load()
            clean = bool(file.block.flags & CLEAN) and not found.records and not found.torn
            pool = _mapped(file, found.size, durability, max_size)
            pool.was_clean = clean
            pool.recover(found)
    except BaseException:
        file.close()
        raise
    return pool


def _mapped(file: PoolFile, size: int, durability: str, max_size: int | None) -> RawPool:
    limit = file.block.max_size if max_size is None else max_size
    reserve = align_up(limit, PAGE) if limit else max(RESERVE_MAX, 4 * size)
    if file.readonly:
        reserve = 0
    private = file.map_private(size, reserve)
    return RawPool(file, Memory(private, size), durability=durability, max_size=max_size)
