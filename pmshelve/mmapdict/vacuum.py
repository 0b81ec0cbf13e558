"""Rewrite a store without its dead entries, and the other ways to replace all of its content.

By replacement, where the file has a path of its own (R, in this order):

    R1  write the live entries to a new file beside, lock it, sync it
    R2  mark the old inode as replaced and bump its commit number
    R3  rename the new file over the old name; sync the directory
    R4  break the old superblock's key opcode; unlock both

A crash before R3 leaves the old file, whose mark the next opener clears; after it, the new one.
Whoever has the old inode open sees the mark, compares it with the path, and goes over.  R4 makes a
mmappickle handle on the old inode fail instead of writing into nothing.

In place, where the file cannot be replaced (P):

    P1  write the image (header to terminator) behind the file's end
    P2  write a footer that says where it is; sync
    P3  change the old generation, so that readers without a lock stop and wait
    P4  copy the image to offset 0; sync
    P5  truncate behind it

A crash before P2 is complete leaves the old content with rubbish behind it; after that, the next
writable opener finds the footer and does P4 and P5 again.  The image never overlaps its target.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import uuid
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import CorruptionError, StateError, StorageError
from ..storage import file as disk
from ..storage.binary import U32, align_up, crc32
from . import frame
from .checkpoint import hash_key
from .checkpoint_writer import build
from .frame import COMMIT, MARK_REPLACED, MARKS_OFFSET, TERMINATOR
from .index import CHECKPOINT_CLOSE_MIN, walk
from .logfile import Log
from .opcodes import find_buffers
from .opening import current_boot
from .picklers.base import Blob
from .scan import Entry, read_entry

if TYPE_CHECKING:
    from .mapping import mmapdict

__all__ = ["clear", "convert", "finish_move", "rewrite", "vacuum"]

_FOOTER = struct.Struct("<8sQQ")
_FOOTER_MAGIC = b"PMSIMAGE"
FOOTER_SIZE = _FOOTER.size + 8
_BUFFER_SIZE = 1 << 20


# What to do -----------------------------------------------------------------------------------


def vacuum(store: mmapdict, *, chunk_size: int = 1 << 20, force: bool = False) -> None:
    """Rewrite `store`, whose lock is held, if there is something to reclaim (or by `force`)."""
    log = store._log
    if store._in_batch():
        raise StateError("a store cannot be vacuumed inside a batch", log.name)
    if force or _is_reclaimable(store):
        live = (read_entry(log.read, offset, log.tail) for offset in _live_offsets(store))
        rewrite(store, live, chunk_size=chunk_size)


def clear(store: mmapdict) -> None:
    """Make `store`, whose lock is held, an empty one."""
    rewrite(store, ())


def convert(store: mmapdict, content: dict[str, Any]) -> None:
    """Make a store of a file that holds an ordinary pickle of `content`; its lock is held."""
    image = Image(0)
    try:
        for key, value in content.items():
            image.add_value(key, store._codec.encode(value))
        image.finish(uuid.uuid4().bytes, commit=1, generation=0, face=1)
        _install(store, image)
    finally:
        image.close()


def rewrite(store: mmapdict, live: Iterable[Entry], *, chunk_size: int = 1 << 20) -> None:
    """Replace the file's content by these entries of it; the lock is held exclusively."""
    log = store._log
    block = log.superblock
    image = Image(log.fd, chunk_size)
    try:
        for entry in live:
            image.add_entry(log, entry)
        image.finish(
            block.identity if block else uuid.uuid4().bytes,
            commit=frame.next_commit(log.commit),
            generation=(block.generation + 1) & 0xFFFFFFFF if block else 0,
            face=block.face if block else 1,
        )
        _install(store, image)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise disk.storage_error(error, "the store could not be rewritten", log.name) from error
    finally:
        image.close()


def _is_reclaimable(store: mmapdict) -> bool:
    """Whether there is a dead entry other than the superblock and the checkpoints in use."""
    log = store._log
    in_use = store._index.checkpoint_offsets
    for entry in walk(log):
        if entry.flag == frame.LIVE or entry.stored == frame.SUPERBLOCK_KEY:
            continue
        if entry.stored == frame.INDEX_KEY and any(
            entry.offset < offset < entry.end for offset in in_use
        ):
            continue
        return True
    return False


def _live_offsets(store: mmapdict) -> Iterator[int]:
    log = store._log
    for entry in walk(log):
        if entry.key is not None and entry.flag == frame.LIVE:
            yield entry.offset


# The image ------------------------------------------------------------------------------------


class _Span(Blob):
    """Data to be copied from a place in the old file."""

    __slots__ = ("source",)

    def __init__(self, source: int, size: int, opcode: bytes) -> None:
        super().__init__(size, None, opcode, aligned=opcode == b"\x96")
        self.source = source


class Image:
    """A new file's bytes, from header to terminator, in a file without a name or beside the store.

    Parameters
    ----------
    source
        Descriptor that entries are copied from.
    """

    def __init__(self, source: int, chunk_size: int = 1 << 20) -> None:
        self._source = source
        self._chunk_size = chunk_size
        self._pending = bytearray()
        self._written = frame.SUPERBLOCK_END
        self._hashes: list[int] = []
        self._offsets: list[int] = []
        self._start = frame.SUPERBLOCK_END
        self.fd = disk.open_scratch()
        self.position = frame.SUPERBLOCK_END
        self.dead_size = 0

    def close(self) -> None:
        """Drop the scratch file."""
        disk.system.close(self.fd)

    def add_entry(self, log: Log, entry: Entry) -> None:
        """Add a live entry of the old file."""
        if entry.key is None:
            return
        if not entry.own:
            self._note(entry.key)
            self.flush()
            size = entry.end - entry.offset
            self._copy(entry.offset, self.position, size)
            disk.write_at(self.fd, b"\x880", self.position + size - 2)
            self.position = self._written = self.position + size
            return
        stop = entry.end - frame.TRAILER_SIZE
        pieces, reduces = take_apart(log.read, entry.value, stop)
        prefix = log.read(entry.offset + frame.HEAD_SIZE + len(entry.stored), entry.value)
        self._add(entry.key, entry.stored, prefix, pieces, reduces)

    def add_value(self, key: str, encoded: Any) -> None:
        """Add a value that was never in a file."""
        stored, prefix = frame.encode_key(key)
        body, reduces = encoded
        self._add(key, stored, prefix, [body] if isinstance(body, bytes) else body, reduces)

    def _add(
        self, key: str, stored: bytes, prefix: bytes, pieces: list[bytes | Blob], reduces: bool
    ) -> None:
        self._note(key)
        if all(isinstance(piece, bytes) for piece in pieces):
            body = prefix + b"".join(pieces)  # type: ignore[arg-type]
            self._write(frame.encode_entry(stored, body, reduces, self.position))
            return
        if prefix:
            pieces = [prefix, *pieces]
        self._place(frame.lay_out(stored, pieces, reduces, self.position))

    def _note(self, key: str) -> None:
        self._hashes.append(hash_key(key.encode("utf-8", "surrogatepass")))
        self._offsets.append(self.position)

    def _write(self, data: bytes) -> None:
        self._pending += data
        self.position += len(data)
        if len(self._pending) >= _BUFFER_SIZE:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            disk.write_at(self.fd, self._pending, self._written)
            self._pending.clear()
        self._written = self.position

    def _place(self, layout: frame.Layout) -> None:
        for part in layout.parts:
            if isinstance(part, bytes):
                self._write(part)
                continue
            self.flush()
            if isinstance(part, _Span):
                self._copy(part.source, self.position, part.size)
            elif part.chunks is not None:
                disk.writev_at(self.fd, [memoryview(c) for c in part.chunks()], self.position)
            self.position = self._written = self.position + part.size

    def _copy(self, source: int, target: int, size: int) -> None:
        """Copy data, leaving holes where there are holes."""
        for start, length in _data_ranges(self._source, source, size):
            while length:
                count = min(length, self._chunk_size)
                disk.copy_range(self._source, self.fd, count, start, target + start - source)
                start, length = start + count, length - count

    def finish(self, identity: bytes, *, commit: int, generation: int, face: int) -> None:
        """Add the checkpoint, the terminator, and in front the header and the superblock."""
        count = len(self._offsets)
        pointer = b""
        if count >= CHECKPOINT_CLOSE_MIN:
            end = self.position
            data = build(self._hashes, self._offsets, start=frame.HEADER_SIZE, end=end)
            blob = Blob(len(data), lambda: [data])
            layout = frame.lay_out(frame.INDEX_KEY, [blob], False, end, live=False)
            self._place(layout)
            self.dead_size = layout.size
            pointer = frame.encode_pointer(layout.blobs[0][0], len(data), end)
        self._write(TERMINATOR)
        self.flush()
        head = bytearray(
            frame.encode_fresh(
                identity,
                commit=commit,
                generation=generation,
                face=face,
                live_count=count,
                dead_size=self.dead_size,
                boot=current_boot(),
                synced_end=self.position - len(TERMINATOR),
            )
        )
        if pointer:
            head[frame.INDEX_OFFSET : frame.INDEX_OFFSET + len(pointer)] = pointer
        disk.write_at(self.fd, head, 0)


def take_apart(read: frame.Read, value: int, stop: int) -> tuple[list[bytes | Blob], bool]:
    """Return an own entry's value opcodes as pieces, without padding, and whether it reduces."""
    opening = read(value, min(value + len(frame.BUFFERS_HEAD), stop))
    pieces: list[bytes | Blob] = []
    position = value
    if opening == frame.BUFFERS_HEAD:
        buffers, position = find_buffers(read, value + len(opening), stop)
        pieces.append(opening)
        pieces += [_Span(offset, size, b"\x96") for offset, size in buffers]
        pieces.append(frame.BUFFERS_END)
        position += len(frame.BUFFERS_END)
    elif opening.startswith(frame.GENERIC_PREFIX):
        pieces.append(frame.GENERIC_PREFIX)
        position += len(frame.GENERIC_PREFIX)
    reduces = bool(pieces)
    opcode, size = frame.opcode_at(read, position)
    if opcode in (b"\x8d", b"\x8e", b"\x96"):
        pieces.append(_Span(position + 9, size - 9, opcode))
    else:
        pieces.append(read(position, position + size))
    if reduces:
        pieces.append(b"\x85")
    return pieces, reduces


def _data_ranges(fd: int, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of what is not a hole in a range of a file."""
    seek_data = getattr(os, "SEEK_DATA", None)
    if size < _BUFFER_SIZE or seek_data is None:
        yield offset, size
        return
    stop = offset + size
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        while offset < stop:
            try:
                start = os.lseek(fd, offset, seek_data)
            except OSError:  # ENXIO: nothing but a hole up to the end
                return
            if start >= stop:
                return
            offset = min(os.lseek(fd, start, os.SEEK_HOLE), stop)
            yield start, offset - start
    finally:
        os.lseek(fd, position, os.SEEK_SET)


# Putting it in place --------------------------------------------------------------------------


def _install(store: mmapdict, image: Image) -> None:
    """Make the image the store's content, and read it anew."""
    log = store._log
    exclusive = log.exclusive
    log.exclusive = False
    if not (log.path is not None and _replace(store, image)):
        _move_in_place(log, image)
    store._views.forget()
    store._load()
    if exclusive:
        store._seize()


def _replace(store: mmapdict, image: Image) -> bool:
    """R1 to R4; False where the file cannot be replaced."""
    log = store._log
    path = log.path
    assert path is not None
    info = os.fstat(log.fd)
    if info.st_nlink != 1 or not disk.is_named(log.fd, path):
        return False
    beside = os.path.join(
        os.path.dirname(path), f".{os.path.basename(path)}.{secrets.token_hex(4)}.vacuum"
    )
    try:
        fd = disk.system.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    done = False
    try:
        if not disk.copy_owner(fd, info):
            return False
        disk.system.flock(fd, disk.LOCK_EXCLUSIVE)
        for start, length in _data_ranges(image.fd, 0, image.position):
            disk.copy_range(image.fd, fd, length, start, start)
        disk.truncate(fd, image.position)
        disk.datasync(fd)  # R1
        done = _swap_names(log, beside, path)
    finally:
        if not done:
            disk.system.close(fd)
            with contextlib.suppress(OSError):
                disk.unlink(beside)
    if done:
        log.lock.move(fd)
        log.attach(fd)
    return done


def _swap_names(log: Log, beside: str, path: str) -> bool:
    """R2 to R4."""
    block = log.superblock
    if log.map:
        log.map[18:22] = COMMIT.pack(frame.next_commit(log.commit))
    if block is not None and log.map:
        log.poke(MARKS_OFFSET, bytes((block.marks | MARK_REPLACED,)))  # R2
    try:
        disk.replace(beside, path)  # R3
    except OSError:
        if block is not None and log.map:
            log.poke(MARKS_OFFSET, bytes((block.marks,)))
            log.map[18:22] = COMMIT.pack(log.commit)
        return False
    try:
        disk.sync_directory(path)
    except OSError as error:
        raise disk.storage_error(error, "the directory could not be synced", log.name) from error
    if log.tail > frame.FIRST_ENTRY:
        log.poke(frame.KEY_OPCODE_OFFSET, b"\x8d")  # R4
    return True


def _move_in_place(log: Log, image: Image) -> None:
    """P1 to P5."""
    end = log.size
    size = image.position
    base = align_up(max(end, size), 512)
    try:
        for start, length in _data_ranges(image.fd, 0, size):
            disk.copy_range(image.fd, log.fd, length, start, base + start)  # P1
        footer = _FOOTER.pack(_FOOTER_MAGIC, base, size)
        disk.write_at(log.fd, footer + U32.pack(crc32(footer)) + bytes(4), base + size)
        disk.datasync(log.fd)  # P2
    except OSError:
        disk.truncate(log.fd, end)
        raise
    if log.map and len(log.map) >= frame.HEADER_SIZE:
        if log.superblock is not None:
            generation = (log.superblock.generation + 1) & 0xFFFFFFFF
            log.poke(frame.GENERATION_OFFSET, U32.pack(generation))
        log.poke(frame.COMMIT_OFFSET, COMMIT.pack(frame.next_commit(log.commit)))  # P3
    _copy_down(log, base, size)
    log.remap()


def _copy_down(log: Log, base: int, size: int) -> None:
    try:
        # Holes are copied as zeros here: what they go over is not empty.
        disk.copy_range(log.fd, log.fd, size, base, 0)
        disk.datasync(log.fd)  # P4
        disk.truncate(log.fd, size)  # P5
    except OSError as error:
        log.fail()
        raise disk.storage_error(
            error, "the vacuum in place was interrupted; reopening completes it", log.name
        ) from error


def finish_move(log: Log) -> None:
    """Complete a move in place that was cut short, if there was one; the lock is held."""
    end = log.size
    footer = log.pread(max(0, end - FOOTER_SIZE), end)
    if len(footer) != FOOTER_SIZE or not footer.startswith(_FOOTER_MAGIC):
        return
    _, base, size = _FOOTER.unpack(footer[:24])
    if footer[24:28] != U32.pack(crc32(footer[:24])) or base + size + FOOTER_SIZE != end:
        return
    if size > base:
        return
    if not log.writable:
        raise CorruptionError(
            "a vacuum in place was cut short", log.name, hint="open it writable once: that ends it"
        )
    _copy_down(log, base, size)

