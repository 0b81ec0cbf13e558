"""An open mmapdict file: its descriptor, its map, and what is known of its state.

State of a file, as anybody can read it (bytes 18 to 116, see docs/format-mmapdict.md):

    settled    commit number = stamp: nothing is under way
    unsettled  a change is under way, or its writer died; whoever holds the lock knows which

How it is changed is the business of `logfile.Log`, which is an `OpenFile`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from typing import TYPE_CHECKING, Any, BinaryIO

from pmshelve.errors import (
    ClosedError,
    CorruptionError,
    ForkedError,
    ReadOnlyError,
    StoreFailedError,
)
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import (
    COMMIT,
    COMMIT_OFFSET,
    COUNTS_OFFSET,
    STATE_START,
    STATE_STOP,
    TERMINATOR,
    TERMINATOR_SIZE,
    State,
)
from pmshelve.storage import file as disk
from pmshelve.storage.binary import PAGE_SIZE, align_up
from pmshelve.storage.lock import FileLock

if TYPE_CHECKING:
    from pmshelve.mmapdict.logfile import Stage

_open_files: weakref.WeakSet[OpenFile] = weakref.WeakSet()

__all__ = ["BOOT_UNKNOWN", "CLEAN", "UNSOUND", "OpenFile", "open_descriptor"]

CAN_MAP_BEYOND_END = sys.platform.startswith("linux")
"""Whether a file may be shrunk under a map, so that one map serves while the file grows."""

MAP_SIZE_MIN = 1 << 16
RESERVE_SIZE_MIN = 1 << 16
RESERVE_SIZE_MAX = 1 << 20
"""Bytes that an exclusive store reserves ahead of its end: as many as there are, within these."""
ZEROS_SIZE = 1 << 17
"""Zeros written at once.  The system keeps the pages of one write together, and goes through all of
them when one byte there is written later."""
COUNT_MAX = 1 << 62
"""From here on a count is unknown, or not sound."""
BOOT_UNKNOWN = b"\xff" * 16
_LOOKS_MAX = 20
_NO_COMMIT = b"\xff\xff\xff\xff"
UNSOUND = b"?"
"""A value of `OpenFile.state` and `OpenFile.sound` that equals no file's."""
CLEAN = bytes(16)


class OpenFile:
    """One open mmapdict file, seen through a map.

    Attributes
    ----------
    map
        Shared map of the file from offset 0; may be longer than the file, never read there.
    tail
        T, the terminator's offset.
    state
        Bytes 18 to 116 as of the last look; a difference means that somebody changed the file.
    busy
        The same, if a change was under way then, in which case `state` is no file's.
    sound
        The same, if a writer may go on from there: settled, and marked as being written.
    live_count, dead_size
        Live entries, bytes in dead ones; None when not known.
    ready
        Whether nothing but the state stands between a caller and a write: the fast way.
    exclusive, exclusive_from
        Whether the lock is held for the log's lifetime, and since which value of `tail`.
    loose_from
        Offset from which no entry is known to be on the disk, nor to a checkpoint.
    reserved
        Offset up to which the file has disk blocks, and is mapped: in an exclusive store, entries
        that end before it are stored through the map.  0: none ahead of the terminator.
    cold
        Offset before which the map is not touched (its first page excepted), so that the file's
        pages do not stay in this process's memory: see `cool`.  0: all of it is used.
    buries
        Whether neighbouring dead entries become one while it is held exclusively (see `runs`).
    shadows
        Then: flag of a live entry, to that of an older one of its key that is marked as replaced.
    cools
        Whether `cool` is called now and then.
    """

    def __init__(
        self,
        fd: int,
        path: str | None,
        *,
        writable: bool,
        timeout: float | None = None,
        sync: bool = False,
        file: BinaryIO | None = None,
    ) -> None:
        self.fd = fd
        self.path = path
        self.file = file
        self.name: object = path if path is not None else getattr(file, "name", None)
        self.writable = writable
        self.synced = sync
        self.lock = FileLock(fd, self.name, timeout)
        self.map: Any = b""
        self.tail = frame.HEADER_SIZE
        self.state = self.sound = self.busy = UNSOUND
        self.commit = 0
        self.superblock: State | None = None
        self.live_count: int | None = None
        self.dead_size: int | None = None
        self.exclusive = False
        self.exclusive_from = self.loose_from = 0
        self.reserved = 0
        self._reserve_from = 0
        self.cold = 0
        self.cools = self.buries = False
        self.shadows: dict[int, int] = {}
        self.ready = writable and file is None
        self.closed = False
        self.failed = False
        self.forked = False
        self.damage: CorruptionError | None = None
        self.staging: Stage | None = None
        _open_files.add(self)

    # Bytes ------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return disk.size_of(self.fd)

    @property
    def end(self) -> int:
        """The file's size in bytes, less what is reserved behind the terminator."""
        return self.tail + TERMINATOR_SIZE if self.reserved else disk.size_of(self.fd)

    def pread(self, start: int, stop: int) -> bytes:
        """Return the file's bytes between two offsets; never faults, fewer at the file's end."""
        try:
            return disk.read_at(self.fd, stop - start, start)
        except OSError as error:
            raise disk.storage_error(error, "the file could not be read", self.name) from error

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes below the tail, from the map where it reaches."""
        stage = self.staging
        m, tail = self.map, self.tail
        if stage is not None and stop > tail:
            stage.flush()  # a batch reads what it wrote itself
        elif (
            self.cold <= start
            and stop <= len(m)
            and stop <= tail + TERMINATOR_SIZE
            and m is self.map  # so the tail is not another file's, and the map's file goes so far
        ):
            return m[start:stop]  # type: ignore[no-any-return]
        return self.pread(start, stop)

    def byte(self, offset: int) -> int:
        """Return one byte below the tail."""
        return self.read(offset, offset + 1)[0]

    def poke(self, offset: int, data: bytes) -> None:
        """Store bytes in place, below the tail."""
        if offset + len(data) <= len(self.map) and not PAGE_SIZE <= offset < self.cold:
            self.map[offset : offset + len(data)] = data
        else:
            disk.write_at(self.fd, data, offset)

    def remap(self, needed: int = 0) -> None:
        """Map the file anew; with `needed` (and the exclusive lock), room for it to grow to that.

        The old map stays valid for the views that hold it.
        """
        size = disk.size_of(self.fd)
        capacity = align_up(max(2 * needed, MAP_SIZE_MIN), PAGE_SIZE)
        if needed and capacity > size and CAN_MAP_BEYOND_END:
            try:
                disk.truncate(self.fd, capacity)
                try:
                    self.map = disk.map_file(self.fd, capacity, writable=True)
                    return
                finally:
                    disk.truncate(self.fd, size)
            except OSError:
                pass  # a file size limit, or a file system that cannot: the exact map will do
        self.map = self._map_exactly(size)

    def _map_exactly(self, size: int) -> Any:
        try:
            while size:
                try:
                    return disk.map_file(self.fd, size, writable=self.writable)
                except ValueError:
                    size = disk.size_of(self.fd)  # shrunk meanwhile: another handle made room
        except OSError as error:
            raise disk.storage_error(error, "the file could not be mapped", self.name) from error
        return b""

    # Room ahead -------------------------------------------------------------------------------

    def reserve(self, needed: int) -> bool:
        """Have disk blocks up to `needed` and some way beyond, mapped; False where that fails.

        Nobody looks at the file's end while it is held exclusively, and nothing behind the
        terminator counts, so the file may be longer than it is.  The blocks are allocated, for a
        full disk must be an error and not the end of the process; that there are none is for the
        write to tell, which is then made as in any other store.  Zeros are written into them, so
        that the system has their pages at hand: it takes several times as long to make these one
        by one, where they are first stored into.
        """
        if disk.system.posix_fallocate is None or self.file is not None:
            return False
        start = max(self.tail + TERMINATOR_SIZE, self.reserved)
        if needed < self._reserve_from:
            return False
        step = min(max(self.tail, RESERVE_SIZE_MIN), RESERVE_SIZE_MAX)
        target = align_up(max(needed, start) + step, PAGE_SIZE)
        try:
            disk.allocate(self.fd, start, target - start)
            for offset in range(start, target, ZEROS_SIZE):
                disk.write_at(self.fd, bytes(min(ZEROS_SIZE, target - offset)), offset)
            if target > len(self.map):
                self.remap(target)
        except OSError:
            # A call that fails may have allocated, and appended, a part of it.
            self._reserve_from = needed + RESERVE_SIZE_MIN
            with contextlib.suppress(OSError):
                disk.truncate(self.fd, start)
            return False
        self.reserved = target
        return True

    def trim(self) -> None:
        """Give back what was reserved and not used: the file ends with its terminator."""
        if self.reserved:
            self.reserved = 0
            disk.truncate(self.fd, self.tail + TERMINATOR_SIZE)

    def cool(self, size: int) -> None:
        """Keep no more than the last `size` bytes of the file's map in this process's memory.

        What lies before them is read and written by calls from now on: one store into a page that
        is not there brings back all the pages that the system keeps together with it.
        """
        self.cools = True
        start = max(self.cold, PAGE_SIZE)
        stop = max(self.tail - size, start) & -PAGE_SIZE
        if start < stop <= len(self.map):
            disk.release(self.map, start, stop - start)
            self.cold = stop

    def chill(self) -> None:
        """Let go of what was used of the map before `cold` nevertheless."""
        if self.cold > PAGE_SIZE:
            disk.release(self.map, PAGE_SIZE, self.cold - PAGE_SIZE)

    # Coming and going -------------------------------------------------------------------------

    def attach(self, fd: int) -> None:
        """Go over to another descriptor; what was known of the file is void."""
        if self.fd >= 0 and self.file is None and fd != self.fd:
            self.map = b""  # first: who reads by the descriptor sees in time that it is another's
            disk.system.close(self.fd)
        self.fd = fd
        self.reserved = self._reserve_from = self.cold = 0
        self.ready = self.writable and self.file is None
        self.map = b""
        self.state = self.sound = self.busy = UNSOUND

    def close(self) -> None:
        """Let go of the file.  Views keep their own maps alive."""
        if self.closed:
            return
        self.closed = True
        self.exclusive = self.ready = False
        self.map = b""
        self.state = self.sound = self.busy = UNSOUND
        if self.fd >= 0 and not self.forked:
            # Unlocked explicitly: a living view's duplicate of the descriptor would keep the lock.
            self.lock.unpin()
            if self.file is None:
                disk.system.close(self.fd)
        self.fd = -1

    def after_fork(self) -> None:
        """In a forked child: drop what belongs to the parent, without unlocking it."""
        if self.closed:
            return
        self.lock.renew()
        if self.staging is not None and self.staging.on_fork is not None:
            self.staging.on_fork()
        self.staging = None
        self.state = self.sound = self.busy = UNSOUND
        if self.file is not None:
            self.forked = True
            return
        self.exclusive = self.ready = False
        self.map = b""
        disk.system.close(self.fd)
        self.fd = -1

    # Being usable -----------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise what keeps the store from being read."""
        if self.closed:
            raise ClosedError("the store is closed", self.name, hint="open it again")
        if self.failed:
            raise StoreFailedError(
                "an earlier write or sync failed, what is on the disk is unknown",
                self.name,
                hint="close this store and open it again: that checks and repairs it",
            )
        if self.damage is not None:
            raise self.damage

    def check_writable(self) -> None:
        """Raise what keeps the store from being written."""
        self.check_usable()
        if not self.writable:
            raise ReadOnlyError("not writable", self.name, hint="open it without readonly=True")
        if self.forked:
            raise ForkedError(
                "this store was opened on a file object by the parent process",
                self.name,
                hint="open the file by its name in the child",
            )

    # The state --------------------------------------------------------------------------------

    def look(self) -> State | None:
        """Read the state, without adopting it; None where there is no superblock."""
        return frame.decode_state(bytes(self.map[STATE_START:STATE_STOP]))

    def adopt(self, state: bytes, block: State | None = None, *, busy: bool = False) -> None:
        """Take `state`, whose changes have been dealt with, for the present one.

        Parameters
        ----------
        block
            Its fields, where they are known.
        busy
            A change is under way.  Its entry may be published at any moment, which the state does
            not tell, so `self.state` will equal no file's.
        """
        if block is None:
            block = frame.decode_state(state)
        self.superblock = block
        self.commit = block.commit if block is not None else COMMIT.unpack(state[:4])[0]
        if block is None or not block.settled:
            self.live_count = self.dead_size = None
        else:
            # A count that was damaged must not reach len(), whose value list() believes.
            self.live_count = block.live_count if block.live_count <= self.tail // 20 else None
            self.dead_size = block.dead_size if block.dead_size < COUNT_MAX else None
        self.busy = state if busy else UNSOUND
        self.state = state if not busy else _NO_COMMIT + state[4:]
        self.sound = state if block is not None and block.settled and block.is_marked else UNSOUND

    def field(self, offset: int) -> tuple[int, int, int] | None:
        """Return a pointer field of the superblock; None where it is unset or unsound."""
        if self.superblock is None:
            return None
        return frame.decode_pointer(self.read(offset, offset + 28))

    def is_same(self, m: Any, state: bytes) -> bool:
        """Whether, although others have committed since `state`, a live flag still tells the truth.

        It does if the content was not replaced as a whole and no change is under way: whoever
        replaces a value has turned the older one off by the time the file is settled again.  A
        change takes some microseconds, so a few looks at it cost less than the other way.
        """
        if self.superblock is None:
            return False
        for _ in range(_LOOKS_MAX):
            commit = m[18:22]
            if commit == m[80:84]:
                return bool(m[48:80] == state[30:62])
            if commit == self.busy[:4]:
                break
        return False

    def is_kept(self, m: Any, state: bytes) -> bool:
        """Whether the content was not replaced as a whole since `state`."""
        return self.superblock is not None and bool(m[48:80] == state[30:62])

    def is_waiting(self) -> bool:
        """Whether the change that was under way at the last look still has published nothing."""
        m, tail = self.map, self.tail
        return bool(m[18:116] == self.busy and m[tail : tail + TERMINATOR_SIZE] == TERMINATOR)

    def fail(self) -> None:
        """Refuse all further work: the disk's state is unknown."""
        self.failed = True
        self.exclusive = self.ready = False
        self.state = self.sound = self.busy = UNSOUND

    def datasync(self) -> None:
        """Wait for the disk; a failure ends the log's work."""
        try:
            disk.datasync(self.fd)
        except OSError as error:
            self.fail()
            raise StoreFailedError(
                "the data could not be synced to the disk",
                self.name,
                hint="what is on the disk is unknown: close this store and open it again",
                cause=error,
            ) from error

    # Superblock fields ------------------------------------------------------------------------

    def set_commit(self, commit: int) -> None:
        """Set the commit number itself; the counts stay valid."""
        self.commit = commit
        self.poke(COMMIT_OFFSET, COMMIT.pack(commit))
        if self.superblock is not None:
            self.poke(COUNTS_OFFSET, COMMIT.pack(commit))
        self._reread()

    def _reread(self) -> None:
        """Know the state again after a field of it was set, under the exclusive lock."""
        live, dead = self.live_count, self.dead_size
        self.adopt(self.read(STATE_START, STATE_STOP))
        self.live_count, self.dead_size = live, dead

    def set_byte(self, offset: int, value: int) -> None:
        """Set the marks or the face."""
        if self.superblock is not None:
            self.poke(offset, bytes((value,)))
            self._reread()

    def set_boot(self, boot: bytes) -> None:
        """Say in which boot the file is being written, or that it is clean."""
        if self.superblock is None:
            return
        self.poke(frame.SYNC_OFFSET, boot)
        self._reread()

    def set_field(self, offset: int, first: int, second: int, third: int) -> None:
        """Set a pointer field of the superblock."""
        self.poke(offset, frame.encode_pointer(first, second, third))

    def set_synced_end(self) -> None:
        """Say that all there is now is on the disk."""
        self.loose_from = self.tail
        if self.superblock is not None:
            self.poke(frame.SYNC_OFFSET + 16, self.tail.to_bytes(8, "little"))

    @property
    def synced_end(self) -> int:
        """Offset before which all entries are known to be on the disk."""
        if self.superblock is None:
            return 0
        start = frame.SYNC_OFFSET + 16
        return int.from_bytes(self.read(start, start + 8), "little")


def open_descriptor(path: str, *, readonly: bool, mode: int, create: bool = True) -> int:
    """Open (unless `readonly`: or create) the file at `path`; return the descriptor.

    Raises
    ------
    OSError
        As `open` does: FileNotFoundError, IsADirectoryError, PermissionError ...
    """
    # Not blocking: opening a pipe would wait for its other end (regular files do not care).
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_NONBLOCK
    if create and not readonly:
        flags |= os.O_CREAT
    return disk.system.open(path, flags | getattr(os, "O_CLOEXEC", 0), mode)


def _after_fork_in_child() -> None:
    for log in list(_open_files):
        log.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
