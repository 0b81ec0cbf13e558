"""A pool's file as the journal needs it: superblock, records, extents, home pages, syncs, the lock.

Nothing here knows of transactions or decides when to do what (see `rawpool`).  An `OSError` leaves
as it is; one of a sync also sets `broken`, because what is on the disk is not known any more.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from pmshelve.errors import CorruptionError, NotAStoreError, StorageError
from pmshelve.pmemobj import journal, superblock
from pmshelve.pmemobj.journal import HEADER, Scan, Tail
from pmshelve.pmemobj.layout import JOURNAL_OFFSET, PAGE
from pmshelve.pmemobj.superblock import CLEAN, COPY_OFFSETS, ORDERED, UNSYNCED, Superblock
from pmshelve.storage import file as disk
from pmshelve.storage.binary import align_up
from pmshelve.storage.lock import EXCLUSIVE, SHARED, FileLock
from pmshelve.storage.region import map_region

__all__ = ["PoolFile"]

_WRITE_SIZE = 1 << 23
_PUNCH_SIZE_MIN = 1 << 16
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_STORES_REACH_FILE = sys.platform == "linux"
"""Whether a sync of the file is known to cover stores into a shared map of it."""


class PoolFile:
    """One open pool file, locked.

    Attributes
    ----------
    block
        The superblock that counts; the one on the disk may still be the one before.
    tail
        Where the next record goes.
    synced
        The tail up to which everything written is on the disk; None if anything else is not.
    base
        Where the journal begins.
    map
        A shared map of the file up to the journal's end, or None.
    end
        Bytes the file has, extents included.
    broken
        Whether a sync failed.
    lax
        Whether syncs are left out: the superblock on the disk says that the pool is unsynced (S9).
    """

    __slots__ = (
        "__weakref__",
        "_backup",
        "_fd",
        "_finalizer",
        "_lock",
        "_unlocked",
        "base",
        "block",
        "broken",
        "end",
        "lax",
        "map",
        "path",
        "readonly",
        "synced",
        "tail",
    )

    def __init__(self, fd: int, path: str, *, readonly: bool) -> None:
        self._fd = fd
        self._finalizer = weakref.finalize(self, _close, fd)
        self._finalizer.atexit = False  # a pool that is open at exit is closed by then, or left
        self._lock = FileLock(fd, path, 0.0)
        self._unlocked: Any = None
        self.map: Any = None
        self._backup = b""
        self.base = JOURNAL_OFFSET
        self.block: Superblock
        self.tail: Tail
        self.synced: Tail | None = None
        self.end = 0
        self.path = path
        self.readonly = readonly
        self.broken = False
        self.lax = False

    @classmethod
    def open(cls, path: str, flags: int, mode: int = 0o666) -> PoolFile:
        """Open (or create) a file."""
        # Not blocking: opening a pipe would wait for its other end (regular files do not care).
        fd = disk.system.open(path, flags | os.O_NONBLOCK | _CLOEXEC, mode)
        return cls(fd, path, readonly=flags & os.O_ACCMODE == os.O_RDONLY)

    def lock(self, timeout: float | None) -> None:
        """Take the file's lock, shared where nothing is written, until `close`.

        Raises
        ------
        LockTimeoutError
            Somebody else has it.
        """
        self._lock.timeout = timeout
        self._lock.acquire(SHARED if self.readonly else EXCLUSIVE)
        self._lock.pin()
        self._lock.release()

    def close(self, *, unlock: bool = True) -> None:
        """Unlock and close the file; maps of it stay."""
        if self.map is not None:
            self.map.close()
            self.map = None
        if unlock:
            # A map that lives on shares the lock with a descriptor of its own.
            with contextlib.suppress(OSError):
                self._lock.unpin()
        if self._unlocked is not None:
            self._unlocked()
        self._finalizer()

    # Reading ----------------------------------------------------------------------------------

    def load(self) -> Scan:
        """Read superblock and journal.

        Raises
        ------
        FormatError
            The file is not a pool, or damaged.
        """
        if not disk.is_regular(self._fd):
            raise NotAStoreError("not a regular file, so it cannot be a pool", self.path)
        self.end = disk.size_of(self._fd)
        head = disk.read_at(self._fd, JOURNAL_OFFSET + HEADER, 0)
        block = self.block = superblock.read(head[:JOURNAL_OFFSET], self.end, self.path)
        if block.flags & UNSYNCED and block.boot != disk.boot_id():
            raise CorruptionError(
                "the machine was stopped while the pool was open with durability='none', so what is "
                "in it cannot be relied on",
                self.path,
                hint="delete the file and begin anew",
                offset=0,
                invariant="S9",
            )
        tail = self.tail = self.synced = journal.first_tail(block.start)
        content = b""
        in_use = block.flags & ORDERED and not block.flags & CLEAN
        if in_use or journal.begins(head[JOURNAL_OFFSET:], tail):
            content = self.read(block.journal_size, self.base)
        found = journal.scan(
            content, tail, block.file_size, self.end, block.heap_offset, self.read, self.path
        )
        if block.flags & ORDERED and journal.holds_later(content, found.tail):
            raise CorruptionError(
                "a record of the journal is damaged",
                self.path,
                hint="the file was left as it was",
                offset=self.base + found.tail[0],
                invariant="J6",
            )
        self.tail = self.synced = found.tail
        return found

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes of the file."""
        return disk.read_at(self._fd, size, offset)

    def map_private(self, size: int, reserve: int) -> Any:
        """Return a private map, over a descriptor of its own: forks inherit it without the lock."""
        fd = self._reopen(os.O_RDONLY if self.readonly else os.O_RDWR)
        try:
            return map_region(fd, size, reserve, self.end)
        finally:
            disk.system.close(fd)

    def _reopen(self, flags: int) -> int:
        fd = disk.system.open(self.path, flags | _CLOEXEC)
        try:
            if disk.is_named(fd, self.path) and disk.is_named(self._fd, self.path):
                return fd
            raise StorageError("the file was replaced while it was opened", self.path)
        except BaseException:
            disk.system.close(fd)
            raise

    def map_journal(self) -> None:
        """Let records be stored through a shared map: a tenth of the cost of a call."""
        if _STORES_REACH_FILE:
            size = self.base + self.block.journal_size
            self.map = disk.map_file(self._fd, size, writable=True)

    # Making -----------------------------------------------------------------------------------

    def format(self, block: Superblock) -> None:
        """Make an empty pool of an empty file, all its blocks reserved.

        The journal's are written too: overwriting them costs no change of the file's metadata later.
        """
        self.grow(block.file_size)
        disk.write_zeros(self._fd, block.journal_offset, block.journal_size)
        self.adopt(block)
        self.write_superblock(block)
        self.sync()

    def name(self, name: str) -> bool:
        """Give the file, which is synced, the name that it is to have; False if that is taken."""
        try:
            try:
                disk.link(self.path, name)
            except FileExistsError:
                raise
            except OSError:
                # No links on this file system: the name is claimed first.
                claim = disk.system.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC)
                disk.system.close(claim)
                disk.replace(self.path, name)
        except FileExistsError:
            return False
        if disk.exists(self.path):
            with contextlib.suppress(OSError):
                disk.unlink(self.path)
        self.path = self._lock.path = name
        disk.sync_directory(name)
        return True

    # Writing ----------------------------------------------------------------------------------

    def store(self, record: bytes) -> None:
        """Put a record at the tail, which stays."""
        start = self.base + self.tail[0]
        if self.map is not None:
            self.map[start : start + len(record)] = record
        else:
            disk.write_at(self._fd, record, start)

    def wipe(self) -> None:
        """Make sure that there is no record at the tail."""
        self.synced = None
        self.store(bytes(HEADER))

    def sync(self) -> None:
        """Return when all that was written is on the disk; at once, if syncs are left out."""
        if not self.lax:
            try:
                disk.datasync(self._fd)
            except OSError:
                self.broken = True
                raise
        self.synced = self.tail
        if self._backup:
            self._back_up()

    def sync_if_needed(self) -> None:
        """As `sync`, unless that is known."""
        if self.synced is not self.tail:
            self.sync()

    def write_superblock(self, block: Superblock) -> None:
        """Write copy 0; what it says counts once it is on the disk."""
        self.synced = None
        self._backup = data = superblock.encode(block)
        disk.write_at(self._fd, data, COPY_OFFSETS[0])

    def adopt(self, block: Superblock) -> None:
        """Go by a superblock from now on: the journal begins anew."""
        self.block = block
        self.tail = journal.first_tail(block.start)
        self.synced = None

    def _back_up(self) -> None:
        # A copy that is damaged later then has one beside it that says the same.  It is not needed
        # for anything else, so failing here changes nothing.
        with contextlib.suppress(OSError):
            disk.write_at(self._fd, self._backup, COPY_OFFSETS[1])
        self._backup = b""

    def write_home(self, content: memoryview, runs: Iterable[tuple[int, int]]) -> None:
        """Write ranges of memory to their places in the file."""
        self.synced = None
        for offset, size in runs:
            stop = offset + size
            for start in range(offset, stop, _WRITE_SIZE):
                chunk = content[start : min(start + _WRITE_SIZE, stop)]
                disk.write_at(self._fd, chunk, start)

    def write_through(self, buffers: Sequence[Any], offset: int) -> None:
        """Write buffers, one behind the other, to their home."""
        self.synced = None
        disk.writev_at(self._fd, buffers, offset)

    def be_strict(self) -> None:
        """Leave no sync out from now on; none of those left out before counts."""
        if self.lax:
            self.lax = False
            self.synced = None

    def reserve(self, runs: Iterable[tuple[int, int]]) -> None:
        """Make sure that ranges of the file have blocks, where blocks can be given back."""
        for offset, size in runs:
            disk.refill(self._fd, offset, size)

    def fill(self, runs: Iterable[tuple[int, int]]) -> None:
        """Make sure that ranges which mean nothing have blocks, or are promised some: write zeros.

        `reserve` would have them allocated at once, which costs more to give back later than all else.
        """
        for offset, size in runs:
            disk.write_zeros(self._fd, offset, size)

    def punch(self, runs: Iterable[tuple[int, int]]) -> None:
        """Give back the blocks of ranges of whole pages, where the system can."""
        for offset, size in runs:
            if size < _PUNCH_SIZE_MIN:
                continue
            with contextlib.suppress(OSError):
                shared = disk.map_file(self._fd, size, writable=True, offset=offset)
                try:
                    disk.discard(shared, 0, size)
                finally:
                    shared.close()

    def is_gone(self) -> bool:
        """Whether the file has no name any more."""
        return disk.link_count(self._fd) == 0

    def is_named(self) -> bool:
        """Whether the file has the name that it was opened by."""
        return disk.is_named(self._fd, self.path) is True

    def window(self, offset: int, size: int) -> Any:
        """Return a private map of a range of the file that begins with a page.

        Raises
        ------
        OSError
            There can be none; also where the file has not its name any more.
        """
        return disk.map_private(self._descriptor(), size, offset)

    def _descriptor(self) -> int:
        """Return a descriptor for maps that others keep: a fork's child must not inherit the lock."""
        if not disk.MAPS_HOLD_DESCRIPTORS:
            return self._fd
        if self._unlocked is None:
            self._unlocked = weakref.finalize(self, _close, self._reopen(os.O_RDONLY))
            self._unlocked.atexit = False
        return int(self._unlocked.peek()[2][0])

    def write_extent(self, buffers: Sequence[Any], size: int) -> int:
        """Write a record behind all that the file holds; return its offset.

        Raises
        ------
        OSError
            The file has its old length again, if the system lets it.
        """
        self.synced = None
        offset = self.end
        try:
            self.grow(offset + align_up(size, PAGE))
            disk.writev_at(self._fd, buffers, offset)
        except OSError:
            self.cut(offset)
            raise
        return offset

    def grow(self, size: int) -> None:
        """Make the file longer, with blocks that can be relied on.

        Raises
        ------
        OSError
            The file has its old length again, if the system lets it.
        """
        end = self.end
        try:
            disk.allocate(self._fd, end, size - end)
        except BaseException:
            self.cut(end)
            raise
        self.synced = None
        self.end = size

    def cut(self, size: int) -> None:
        """Make the file shorter; where the system refuses, the next opener does it."""
        with contextlib.suppress(OSError):
            disk.truncate(self._fd, size)
            self.end = size


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        disk.system.close(fd)
