"""The file as a log: place entries, in the safe order; flip flags; count commits.

The order of an append, under the exclusive lock (T = terminator's offset):

    1  bump the commit number            unsettled: a crash from here on is noticed
    2  write entry[11:] + terminator     at T+11; the old terminator at T still ends the file
    3  store entry[1:11] over T+1        published (in two stores, the second one counts)
    4  flag of the older entry           replaced; in between both live and the later one counts
    5  stamp commit number and counts    settled

A deletion is 1, 4, 5.  Without a superblock, 5 is a second bump.  A batch is one append of many
entries, the first a batch header.  An exclusive store leaves out 1 and 5: its mark in the
superblock says unsettled for as long as it is open.  It also reserves disk blocks ahead of T
(`OpenFile.reserve`), in which 2 is a store through the map, and cuts off what it has not used (`trim`).

A failure in 2 is undone (truncate to T+11, put the commit number back); a failure after 3, or of
a sync, leaves the disk's state unknown, and the log refuses work until it is opened again.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable
from typing import Any

from pmshelve.errors import StorageError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import (
    COMMIT,
    COMMIT_MAX,
    DEAD,
    HEAD_SIZE,
    REPLACED,
    TERMINATOR,
    TERMINATOR_SIZE,
    UNKNOWN,
    Layout,
    encode_last_entry,
    next_commit,
)
from pmshelve.mmapdict.openfile import OpenFile
from pmshelve.storage import file as disk
from pmshelve.storage.binary import PAGE_SIZE
from pmshelve.storage.file import system

__all__ = ["STAGE_SIZE_MAX", "Log", "Stage"]

_pack_commit = COMMIT.pack
_pack_counts = struct.Struct("<QQ").pack

STAGE_SIZE_MAX = 1 << 20
"""Bytes of a batch that are kept until they are written together."""


class Log(OpenFile):
    """One open mmapdict file, to be changed.

    Everything here wants the lock held exclusively and the state known (`state == map[18:116]`);
    the mapping above sees to both.
    """

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
        self.reserved = 0
        try:
            disk.truncate(self.fd, tail + TERMINATOR_SIZE)
            if not self.exclusive:
                self.map[18:22] = COMMIT.pack(self.commit)
        except OSError:
            self.fail()
        return disk.storage_error(error, "the value could not be written", self.name)

    def append(  # noqa: C901, PLR0912 (hot: `begin`, `_store_head`, `settle` are written out)
        self, stored: bytes, body: bytes, reduces: bool, old: tuple[int, bool, int] | None
    ) -> None:
        """Publish one small entry, and retire the older one.

        Parameters
        ----------
        stored, body, reduces
            The stored key, the value's opcodes, and whether REDUCE follows them.
        old
            Flag offset, whether the value ends in REDUCE, and size of the entry it replaces.
        """
        tail = self.tail
        head, rest = encode_last_entry(stored, body, reduces, tail)
        size = len(rest)  # the entry's: the terminator is as long as the head
        end = tail + size
        m = self.map
        commit = self.commit
        commit = commit + 1 if 0 <= commit < COMMIT_MAX else 1
        exclusive = self.exclusive
        if exclusive and (end + 11 <= self.reserved or self.reserve(end + 11)):
            m = self.map
            m[tail + 11 : end + 11] = rest  # 2
        else:
            if not exclusive:
                m[18:22] = packed = _pack_commit(commit)  # 1
            try:
                if end > len(m):
                    self.remap(end)
                    m = self.map
                if system.pwrite(self.fd, rest, tail + 11) != size:  # 2
                    disk.write_at(self.fd, rest, tail + 11)
            except OSError as error:
                raise self.undo(error, tail) from error
        if tail + 11 <= len(m):  # 3
            m[tail + 1 : tail + 9] = head[1:9]
            m[tail + 9 : tail + 11] = head[9:]
        else:
            self._store_head(tail, head)
        self.tail = end
        live = self.live_count
        if old is not None:
            self.retire(old, REPLACED)  # 4
        elif live is not None:
            self.live_count = live = live + 1
        if exclusive:
            self.commit = commit
        elif live is None or self.superblock is None or (dead := self.dead_size) is None:
            self.settle()
        else:
            self.commit = commit
            m[84:100] = _pack_counts(live, dead)  # 5
            m[80:84] = packed
            self.state = self.sound = m[18:116]
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
        self,
        head: bytes,
        end: int,
        old: tuple[int, bool, int] | None,
        live: int = 1,
        *,
        touched: bool = True,
    ) -> None:
        """Do steps 3 to 5.

        Parameters
        ----------
        live
            0 for an entry that is dead from the start.
        touched
            Whether the map's page is likely to be there: a first store costs more than a call.
        """
        tail = self.tail
        if touched or tail & (PAGE_SIZE - 1) > PAGE_SIZE - HEAD_SIZE:
            self._store_head(tail, head)
        else:
            try:
                # All at once, in one page: no kill comes between the bytes of such a write.
                disk.write_at(self.fd, head, tail)
            except OSError:
                self._store_head(tail, head)
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
        if self.buries and self.exclusive and self.loose_from <= offset not in self.shadows:
            flag = DEAD  # its successor may be buried first, and must not be missed then
        if self.cold <= offset < len(m):
            m[offset] = flag
            if reduces:
                m[offset - 13] = DEAD
        else:
            self._write_flag(offset, bytes((flag,)), reduces)
        if self.dead_size is not None:
            self.dead_size += size

    def _write_flag(self, offset: int, flag: bytes, reduces: bool) -> None:
        """Turn an entry off by a call: the map does not reach so far, or is not used there."""
        try:
            if system.pwrite(self.fd, flag, offset) != 1:
                disk.write_at(self.fd, flag, offset)
            if reduces:
                self.poke(offset - 13, b"0")
        except OSError as error:
            self.fail()
            problem = "an entry could not be turned off"
            raise disk.storage_error(error, problem, self.name) from error

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
            if self.reserved and any(blob.chunks is None for _, blob in layout.blobs):
                self.trim()  # what is never written shall take no blocks
            self._write_layout(layout, tail, HEAD_SIZE, TERMINATOR)
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
        self._publish(first[:HEAD_SIZE], end, old, int(live), touched=False)

    def _write_layout(self, layout: Layout, offset: int, skip: int, last: bytes = b"") -> None:
        """Write an entry's parts from `offset` on, less its first `skip` bytes, and then `last`."""
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
                chunks = part.chunks()
                for chunk in chunks:
                    view = memoryview(chunk).cast("B") if len(chunk) else memoryview(b"")
                    pending.append(view)
                    position += len(view)
                    if chunks.__class__ is not tuple:
                        flush()  # the next chunk may be made in the same memory
        pending.append(last)
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
        offset, reduces, size = old
        m = self.map
        live, dead = self.live_count, self.dead_size
        if live is None or dead is None or self.superblock is None:
            self.begin()
            self.retire(old, DEAD)
            if live is not None:
                self.live_count = live - 1
            self.settle()
        else:  # the same, written out
            commit = self.commit
            commit = commit + 1 if 0 <= commit < COMMIT_MAX else 1
            packed = _pack_commit(commit)
            exclusive = self.exclusive
            if not exclusive:
                m[18:22] = packed
            if not self.cold <= offset < len(m):
                self._write_flag(offset, b"0", reduces)
            else:
                m[offset] = DEAD
                if reduces:
                    m[offset - 13] = DEAD
            self.live_count = live = live - 1
            self.dead_size = dead = dead + size
            self.commit = commit
            if not exclusive:
                m[84:100] = _pack_counts(live, dead)
                m[80:84] = packed
                self.state = self.sound = m[18:116]
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
        m = self.map
        for old in olds:
            offset, reduces, size = old
            if not self.cold <= offset < len(m) or reduces or self.dead_size is None or self.buries:
                self.retire(old, REPLACED)
            else:
                m[offset] = REPLACED
                self.dead_size += size
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
        self.reserved = 0
        try:
            disk.truncate(self.fd, tail + TERMINATOR_SIZE)
        except OSError as error:
            self.fail()
            raise disk.storage_error(error, "the file could not be truncated", self.name) from error


class Stage:
    """Entries of a batch, behind the terminator.

    Attributes
    ----------
    position
        Where the next one goes.
    pending, written
        Entries that are not written yet, and where they go.
    """

    __slots__ = ("_log", "count", "dead_size", "on_fork", "pending", "position", "written")

    def __init__(self, log: Log) -> None:
        self._log = log
        self.pending: list[bytes] = []
        self.position = self.written = log.tail + len(frame.encode_batch_entry(log.tail, 0, 0))
        self.count = 0
        self.dead_size = 0
        self.on_fork: Callable[[], None] | None = None

    def add(self, data: bytes) -> None:
        """Stage an entry encoded for offset `position`."""
        self.pending.append(data)
        self.position += len(data)
        self.count += 1
        if self.position - self.written > STAGE_SIZE_MAX:
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
        self.pending.append(TERMINATOR)
        disk.write_at(self._log.fd, b"".join(self.pending), self.written)
        self.pending.clear()
        self.written = self.position

    def flush(self) -> None:
        """Write what is pending."""
        if self.pending:
            try:
                disk.write_at(self._log.fd, b"".join(self.pending), self.written)
            except OSError as error:
                raise self._failure(error) from error
            self.pending.clear()
            self.written = self.position

    def _failure(self, error: OSError) -> StorageError:
        return disk.storage_error(error, "the batch could not be written", self._log.name)


def _as_os_error(error: BaseException) -> OSError:
    return error if isinstance(error, OSError) else OSError(str(error))
