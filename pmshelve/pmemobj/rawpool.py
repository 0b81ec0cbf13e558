"""The file of a pool: transactions in, the same memory again after any crash.

`RawPool` joins memory, journal and superblock.  Between two checkpoints

    home     the heap's pages in the file: as at the last checkpoint, and never torn, but what was
             free space then may hold what a later transaction put there
    journal  one record for each transaction since
    memory   home, with all records applied: the present

A commit appends a record, and a checkpoint makes home what memory is.  Here is the commit, and how files are
made and opened.  Below it, upwards: the states of a pool (`poolstate`), the checkpoint (`checkpoint`),
and how a pool ends (`poolending`).

The pool's lock is held through commit and checkpoint; the file's from open to close.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pmshelve.errors import TransactionError
from pmshelve.pmemobj import journal, superblock
from pmshelve.pmemobj.journal import RANGE, SIZE, Item
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import Changes, Memory
from pmshelve.pmemobj.poolending import PoolEnding
from pmshelve.pmemobj.poolfile import PoolFile
from pmshelve.pmemobj.superblock import CLEAN
from pmshelve.storage import file as disk
from pmshelve.storage.binary import align_up
from pmshelve.storage.file import forget
from pmshelve.storage.region import RESERVE_MAX, drop_inner_pages

__all__ = ["RawPool", "create", "open"]

DIRTY_PAGES_MAX = 1 << 15
"""Pages of memory that may differ from the file's before a checkpoint is made."""

DIRECT_SIZE_MIN = 1 << 18
"""Bytes of fresh ranges from which writing them home (and a sync) is cheaper than logging them."""

JOURNAL_SIZE_MIN = 1 << 16
JOURNAL_SIZE_MAX = 1 << 25

_Run = tuple[int, int]
"""Offset and size."""

Format = Callable[[Memory, int, int], None]
"""Makes an empty heap, in a transaction, given memory, the heap's offset and its pages."""


class RawPool(PoolEnding):
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
                file.write_home(memory.bytes, _without(direct, _unchanged(changes)))
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
        if not self.unsynced and total < DIRECT_SIZE_MIN and total < self.journal_size // 8:
            return [], everything
        untouched = self.memory.is_untouched
        direct = {run for run in everything if untouched(*run)}
        return sorted(direct), [run for run in everything if run not in direct]

    def place(self, start: int, buffers: Sequence[Any], size: int) -> bool:
        """Write what a fresh range is to hold into the file, past memory; False: store it instead.

        Parameters
        ----------
        start
            A page's offset, within a range that `Memory.add_fresh` was told of in this transaction.
        buffers
            Of bytes; so many that whole pages are filled, save the last.
        size
            Their bytes.

        Raises
        ------
        NoSpaceError, StorageError
            Nothing has changed: the range still holds nothing.
        """
        memory = self.memory
        self._check()
        if not self.places(size) or not forget(memory.map, start, align_up(size, PAGE)):
            return False
        with disk.reporting("the transaction could not be written", self.path):
            self._file.write_through(buffers, start)
        memory.changes.placed[start] = align_up(size, PAGE)  # type: ignore[union-attr]
        return True

    def places(self, size: int) -> bool:
        """Whether a fresh range of this size goes to the file at once, and never to the journal."""
        return self.unsynced or size >= DIRECT_SIZE_MIN

    def window(self, start: int, size: int) -> Any:
        """Return a private map of a range of the file, which sees no later stores into memory."""
        return self._file.window(start, size)

    def _limit(self, size: int) -> None:
        if size > self.change_size_max:
            raise TransactionError(
                f"the transaction changes {size} bytes, more than {self.change_size_max}",
                self.path,
                hint="nothing was changed; make several transactions of it",
            )


def _unchanged(changes: Changes) -> dict[int, int]:
    """Return the ranges of `placed` into which nothing was stored since."""
    if not changes.placed:
        return changes.placed
    stored = [
        (key, key + len(old)) if key.__class__ is int else (key[0], key[0] + key[2])
        for key, old in changes.saved.items()
    ]
    return {
        start: size
        for start, size in changes.placed.items()
        if not any(first < start + size and start < stop for first, stop in stored)
    }


def _without(runs: list[_Run], placed: dict[int, int]) -> Iterator[_Run]:
    """Yield what of runs is not among the ranges of `placed`, each of which ends where a run does."""
    ends = {start + size: start for start, size in placed.items()}
    for start, size in runs:
        yield start, ends.get(start + size, start + size) - start


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
            file.be_strict()
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
    if durability not in ("full", "lazy", "none"):
        raise ValueError(f"durability must be 'full', 'lazy' or 'none', not {durability!r}")


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
        take the last ones.  "none": nothing is synced but by `sync` and `close`; after a power cut
        before these the pool is refused.
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
