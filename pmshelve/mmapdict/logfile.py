"""The file as a log: place entries, in the safe order; flip flags; count commits.

State of a file, as anybody can read it (bytes 18 to 116, see docs/format-mmapdict.md):

    settled    commit number = stamp: nothing is under way
    unsettled  a change is under way, or its writer died; whoever holds the lock knows which

The order of an append, under the exclusive lock (T = terminator's offset):

    1  bump the commit number            unsettled: a crash from here on is noticed
    2  write entry[11:] + terminator     at T+11; the old terminator at T still ends the file
    3  store entry[1:11] over T+1        published (in two stores, the second one counts)
    4  flag of the older entry           replaced; in between both live and the later one counts
    5  stamp commit number and counts    settled

A deletion is 1, 4, 5.  Without a superblock, 5 is a second bump.  A batch is one append of many
entries, the first a batch header.  An exclusive store leaves out 1 and 5: its mark in the
superblock says unsettled for as long as it is open.

A failure in 2 is undone (truncate to T+11, put the commit number back); a failure after 3, or of
a sync, leaves the disk's state unknown, and the log refuses work until it is opened again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from pmshelve.errors import (
    ClosedError,
    CorruptionError,
    ForkedError,
    ReadOnlyError,
    StorageError,
    StoreFailedError,
)
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import (
    COMMIT,
    COMMIT_MAX,
    COMMIT_OFFSET,
    COUNTS_OFFSET,
    DEAD,
    HEAD_SIZE,
    REPLACED,
    STATE_START,
    STATE_STOP,
    TERMINATOR,
    TERMINATOR_SIZE,
    UNKNOWN,
    Layout,
    State,
    next_commit,
)
from pmshelve.storage import file as disk
from pmshelve.storage.binary import PAGE_SIZE, align_up
from pmshelve.storage.lock import FileLock

_open_logs: weakref.WeakSet[Log] = weakref.WeakSet()

__all__ = ["Log", "Stage", "open_descriptor"]

CAN_MAP_BEYOND_END = sys.platform.startswith("linux")
"""Whether a file may be shrunk under a map, so that one map serves while the file grows."""

_pack_commit = COMMIT.pack
_pack_counts = struct.Struct("<QQ").pack

MAP_SIZE_MIN = 1 << 16
STAGE_SIZE_MAX = 1 << 20
COUNT_MAX = 1 << 62
"""From here on a count is unknown, or not sound."""
BOOT_UNKNOWN = b"\xff" * 16
UNSOUND = b"?"
"""A value of `Log.state` and `Log.sound` that equals no file's."""
CLEAN = bytes(16)


class Log:
    """One open mmapdict file.

    Everything that changes the file wants the lock held exclusively and the state known
    (`state == map[18:116]`); the mapping above sees to both.

    Attributes
    ----------
    map
        Shared map of the file from offset 0; may be longer than the file, never read there.
    tail
        T, the terminator's offset.
    state
        Bytes 18 to 116 as of the last look; a difference means that somebody changed the file.
    sound
        The same, if a writer may go on from there: settled, and marked as being written.
    live_count, dead_size
        Live entries, bytes in dead ones; None when not known.
    ready
        Whether nothing but the state stands between a caller and a write: the fast way.
    exclusive, exclusive_from
        Whether the lock is held for the log's lifetime, and since which value of `tail`.
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
        self.state = self.sound = UNSOUND
        self.commit = 0
        self.superblock: State | None = None
        self.live_count: int | None = None
        self.dead_size: int | None = None
        self.exclusive = False
        self.exclusive_from = 0
        self.ready = writable and file is None
        self.closed = False
        self.failed = False
        self.forked = False
        self.damage: CorruptionError | None = None
        self.staging: Stage | None = None
        _open_logs.add(self)

    # Bytes ------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return disk.size_of(self.fd)

    def pread(self, start: int, stop: int) -> bytes:
        """Return the file's bytes between two offsets; never faults, fewer at the file's end."""
        try:
            return disk.read_at(self.fd, stop - start, start)
        except OSError as error:
            raise disk.storage_error(error, "the file could not be read", self.name) from error

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes below the tail, from the map where it reaches."""
        stage = self.staging
        if stage is not None and stop > self.tail:
            stage.flush()  # a batch reads what it wrote itself
        elif stop <= len(self.map) and stop <= self.tail + TERMINATOR_SIZE:
            return self.map[start:stop]  # type: ignore[no-any-return]
        return self.pread(start, stop)

    def byte(self, offset: int) -> int:
        """Return one byte below the tail."""
        return self.read(offset, offset + 1)[0]

    def poke(self, offset: int, data: bytes) -> None:
        """Store bytes in place, below the tail."""
        if offset + len(data) <= len(self.map):
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

    # Coming and going -------------------------------------------------------------------------

    def attach(self, fd: int) -> None:
        """Go over to another descriptor; what was known of the file is void."""
        if self.fd >= 0 and self.file is None and fd != self.fd:
            disk.system.close(self.fd)
        self.fd = fd
        self.ready = self.writable and self.file is None
        self.map = b""
        self.state = self.sound = UNSOUND

    def close(self) -> None:
        """Let go of the file.  Views keep their own maps alive."""
        if self.closed:
            return
        self.closed = True
        self.exclusive = self.ready = False
        self.map = b""
        self.state = self.sound = UNSOUND
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
        self.state = self.sound = UNSOUND
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

    def adopt(self, state: bytes) -> None:
        """Take `state`, whose changes have been dealt with, for the present one."""
        block = frame.decode_state(state)
        self.superblock = block
        self.commit = COMMIT.unpack(state[:4])[0]
        if block is None or not block.settled:
            self.live_count = self.dead_size = None
        else:
            # A count that was damaged must not reach len(), whose value list() believes.
            self.live_count = block.live_count if block.live_count <= self.size // 20 else None
            self.dead_size = block.dead_size if block.dead_size < COUNT_MAX else None
        self.state = state
        self.sound = (
            state if block is not None and block.settled and block.boot != CLEAN else UNSOUND
        )

    def field(self, offset: int) -> tuple[int, int, int] | None:
        """Return a pointer field of the superblock; None where it is unset or unsound."""
        if self.superblock is None:
            return None
        return frame.decode_pointer(self.read(offset, offset + 28))

    def is_same(self, m: Any, state: bytes) -> bool:
        """Whether, although others have committed since `state`, a live flag still tells the truth.

        It does if the content was not replaced as a whole and no change is under way: whoever
        replaces a value has turned the older one off by the time the file is settled again.
        """
        return (
            self.superblock is not None
            and m[18:22] == m[80:84]
            and m[48:80] == state[30:62]
            and m[18:22] == m[80:84]
        )

    # Changing ---------------------------------------------------------------------------------

    def begin(self) -> None:
        """Step 1: from now on a crash is noticed."""
        if not self.exclusive:
            commit = self.commit
            self.map[18:22] = _pack_commit(commit + 1 if 0 <= commit < COMMIT_MAX else 1)

    def settle(self) -> None:
        """Step 5: the change is complete."""
        commit = self.commit
        self.commit = commit = commit + 1 if 0 <= commit < COMMIT_MAX else 1
        if self.exclusive:
            return
        m = self.map
        if self.superblock is not None:
            live, dead = self.live_count, self.dead_size
            # The stamp goes last and by itself: a store of over 8 bytes can be cut in two by a kill.
            m[84:100] = _pack_counts(
                UNKNOWN if live is None else live, UNKNOWN if dead is None else dead
            )
            m[80:84] = _pack_commit(commit)
        else:
            self.commit = commit = next_commit(commit)
            m[18:22] = _pack_commit(commit)
        self.state = self.sound = m[18:116]

    def undo(self, error: OSError, tail: int) -> StorageError:
        """Take back an append that failed before it was published; return what to raise."""
        try:
            disk.truncate(self.fd, tail + TERMINATOR_SIZE)
            if not self.exclusive:
                self.map[18:22] = COMMIT.pack(self.commit)
        except OSError:
            self.fail()
        return disk.storage_error(error, "the value could not be written", self.name)

    def fail(self) -> None:
        """Refuse all further work: the disk's state is unknown."""
        self.failed = True
        self.exclusive = self.ready = False
        self.state = self.sound = UNSOUND

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

    def append(self, data: bytes, old: tuple[int, bool, int] | None) -> None:
        """Publish one small entry encoded for offset `tail`, and retire the older one.

        Parameters
        ----------
        old
            Flag offset, whether the value ends in REDUCE, and size of the entry it replaces.
        """
        tail = self.tail
        end = tail + len(data)
        m = self.map
        if not self.exclusive:  # 1
            commit = self.commit
            m[18:22] = _pack_commit(commit + 1 if 0 <= commit < COMMIT_MAX else 1)
        try:
            if end > len(m):
                self.remap(end)
                m = self.map
            disk.write_at(self.fd, data[11:] + TERMINATOR, tail + 11)  # 2
        except OSError as error:
            raise self.undo(error, tail) from error
        if tail + 11 <= len(m):  # 3, see `_store_head`
            m[tail + 1 : tail + 9] = data[1:9]
            m[tail + 9 : tail + 11] = data[9:11]
        else:
            self._store_head(tail, data)
        self.tail = end
        if old is not None:
            self.retire(old, REPLACED)  # 4
        elif self.live_count is not None:
            self.live_count += 1
        self.settle()  # 5
        if self.synced:
            self.datasync()

    def _store_head(self, tail: int, head: bytes) -> None:
        """Step 3: store an entry's first 11 bytes over the terminator.

        Size first, then opcode and key size: a store of more than 8 bytes can be cut in two by a
        kill, and this way what lies between is the old terminator with another FRAME size, which
        ends the pickle all the same.
        """
        self.poke(tail + 1, head[1:9])
        self.poke(tail + 9, head[9:11])

    def _publish(
        self, head: bytes, end: int, old: tuple[int, bool, int] | None, live: int = 1
    ) -> None:
        """Do steps 3 to 5; `live` is 0 for an entry that is dead from the start."""
        self._store_head(self.tail, head)
        self.tail = end
        if old is not None:
            self.retire(old, REPLACED)
        elif self.live_count is not None:
            self.live_count += live
        self.settle()
        if self.synced:
            self.datasync()

    def retire(self, old: tuple[int, bool, int], flag: int) -> None:
        """Step 4: turn an entry off.  (Its REDUCE goes second: L8 keeps both in one sector.)"""
        offset, reduces, size = old
        m = self.map
        if offset < len(m):
            m[offset] = flag
            if reduces:
                m[offset - 13] = DEAD
        else:
            self.poke(offset, bytes((flag,)))
            if reduces:
                self.poke(offset - 13, b"0")
        if self.dead_size is not None:
            self.dead_size += size

    def revive(self, offset: int, reduces: bool) -> None:
        """Turn an entry on again whose replacement never arrived."""
        if reduces:
            self.poke(offset - 13, b"R")
        self.poke(offset, b"\x88")

    def append_layout(
        self, layout: Layout, old: tuple[int, bool, int] | None, *, live: bool = True
    ) -> None:
        """Publish one entry with blobs, laid out for offset `tail`."""
        tail = self.tail
        self.begin()
        try:
            self._write_layout(layout, tail, HEAD_SIZE)
            disk.write_at(self.fd, TERMINATOR, tail + layout.size)
        except BaseException as error:
            failure = self.undo(_as_os_error(error), tail)
            raise (failure if isinstance(error, OSError) else error) from error
        if self.synced:
            self.datasync()  # blobs carry no CRC: they must be down before the entry exists
        first = layout.parts[0]
        assert isinstance(first, bytes)
        end = tail + layout.size
        if end > len(self.map):
            self.remap(end)
        if not live and self.dead_size is not None:
            self.dead_size += layout.size
        self._publish(first[:HEAD_SIZE], end, old, int(live))

    def _write_layout(self, layout: Layout, offset: int, skip: int) -> None:
        """Write an entry's parts from `offset` on, less its first `skip` bytes."""
        pending: list[Any] = []
        start = position = offset + skip

        def flush() -> None:
            nonlocal start
            if pending:
                disk.writev_at(self.fd, pending, start)
                pending.clear()
            start = position

        for part in layout.parts:
            if isinstance(part, bytes):
                pending.append(part[skip:] if skip else part)
                position += len(part) - skip
                skip = 0
            elif part.chunks is None:
                flush()
                if part.reserve:
                    disk.allocate(self.fd, position, part.size)
                start = position = position + part.size
            else:
                for chunk in part.chunks():
                    view = memoryview(chunk).cast("B") if len(chunk) else memoryview(b"")
                    pending.append(view)
                    position += len(view)
                    flush()  # the next chunk may be made in the same memory
        flush()

    def append_foreign(
        self, stored: bytes, write: Callable[[int], tuple[int, int]], old: Any
    ) -> int:
        """Publish an entry whose value opcodes `write(offset)` puts into the file by itself.

        `write` returns the value's size and the memo index reached, as mmappickle's picklers do.
        Returns the entry's offset.
        """
        tail = self.tail
        value = tail + HEAD_SIZE + len(stored)
        self.begin()
        try:
            size, memo = write(value)
            end = value + size + 8
            trailer = b"J" + memo.to_bytes(4, "little") + b"0\x880"
            head = b"\x95" + (end - tail - 9).to_bytes(8, "little") + b"\x8c"
            head += bytes((len(stored),)) + stored
            disk.write_at(self.fd, trailer + TERMINATOR, value + size)
            disk.write_at(self.fd, head[HEAD_SIZE:], tail + HEAD_SIZE)
        except BaseException as error:
            failure = self.undo(_as_os_error(error), tail)
            raise (failure if isinstance(error, OSError) else error) from error
        if self.synced:
            self.datasync()
        if end > len(self.map):
            self.remap(end)
        self._publish(head[:HEAD_SIZE], end, old)
        return tail

    def delete(self, old: tuple[int, bool, int]) -> None:
        """Turn an entry off for good."""
        self.begin()
        self.retire(old, DEAD)
        if self.live_count is not None:
            self.live_count -= 1
        self.settle()
        if self.synced:
            self.datasync()

    # Batches ----------------------------------------------------------------------------------

    def begin_batch(self) -> Stage:
        """Start to stage entries behind the terminator; nothing is published yet."""
        self.begin()
        self.staging = Stage(self)
        return self.staging

    def publish_batch(self, olds: Iterable[tuple[int, bool, int]], live_change: int) -> None:
        """Publish all staged entries at once, then retire the older ones."""
        stage = self.staging
        assert stage is not None
        tail = self.tail
        header = frame.encode_batch_entry(tail, stage.position - tail, stage.count)
        try:
            stage.add_terminator()
            disk.write_at(self.fd, header[HEAD_SIZE:], tail + HEAD_SIZE)
        except OSError as error:
            self.abort_batch()
            raise disk.storage_error(error, "the batch could not be written", self.name) from error
        self.staging = None
        if self.synced:
            self.datasync()
        end = stage.position
        if end > len(self.map):
            self.remap(end)
        self._store_head(tail, header)
        self.tail = end
        if self.dead_size is not None:
            self.dead_size += len(header) + stage.dead_size
        if self.live_count is not None:
            self.live_count += live_change
        for old in olds:
            self.retire(old, REPLACED)
        self.settle()
        if self.synced:
            self.datasync()

    def abort_batch(self) -> None:
        """Forget all that was staged."""
        self.staging = None
        with contextlib.suppress(StorageError):
            self._cut(self.tail)
        if not self.exclusive and not self.failed:
            self.map[18:22] = COMMIT.pack(self.commit)

    def _cut(self, tail: int) -> None:
        try:
            disk.truncate(self.fd, tail + TERMINATOR_SIZE)
        except OSError as error:
            self.fail()
            raise disk.storage_error(error, "the file could not be truncated", self.name) from error

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
        if self.superblock is not None:
            self.poke(frame.SYNC_OFFSET + 16, self.tail.to_bytes(8, "little"))

    @property
    def synced_end(self) -> int:
        """Offset before which all entries are known to be on the disk."""
        if self.superblock is None:
            return 0
        start = frame.SYNC_OFFSET + 16
        return int.from_bytes(self.read(start, start + 8), "little")


class Stage:
    """Entries of a batch, behind the terminator; `position` is where the next one goes."""

    __slots__ = ("_log", "_pending", "count", "dead_size", "on_fork", "position", "written")

    def __init__(self, log: Log) -> None:
        self._log = log
        self._pending = bytearray()
        self.position = self.written = log.tail + len(frame.encode_batch_entry(log.tail, 0, 0))
        self.count = 0
        self.dead_size = 0
        self.on_fork: Callable[[], None] | None = None

    def add(self, data: bytes) -> None:
        """Stage an entry encoded for offset `position`."""
        self._pending += data
        self.position += len(data)
        self.count += 1
        if len(self._pending) > STAGE_SIZE_MAX:
            self.flush()

    def add_layout(self, layout: Layout) -> None:
        """Stage an entry with blobs laid out for offset `position`."""
        self.flush()
        try:
            self._log._write_layout(layout, self.position, 0)
        except OSError as error:
            raise self._failure(error) from error
        self.position = self.written = self.position + layout.size
        self.count += 1

    def add_terminator(self) -> None:
        """Write what is pending, and the new terminator behind it."""
        self._pending += TERMINATOR
        disk.write_at(self._log.fd, self._pending, self.written)
        self._pending.clear()
        self.written = self.position

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            try:
                disk.write_at(self._log.fd, self._pending, self.written)
            except OSError as error:
                raise self._failure(error) from error
            self._pending.clear()
            self.written = self.position

    def _failure(self, error: OSError) -> StorageError:
        return disk.storage_error(error, "the batch could not be written", self._log.name)


def _as_os_error(error: BaseException) -> OSError:
    return error if isinstance(error, OSError) else OSError(str(error))


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
    for log in list(_open_logs):
        log.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
