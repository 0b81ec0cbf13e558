"""A new file's bytes, from header to terminator: what a vacuum makes of the live entries.

Entries keep their bytes where they may: padding and alignment depend on the place (invariant L8).
An entry without large data moves as it is if it needs padding neither there nor here; any other is
taken apart and laid out anew.  Each one's CRC is checked first, so that a new one hides no damage.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.checkpoint import hash_key
from pmshelve.mmapdict.checkpoint_writer import build
from pmshelve.mmapdict.frame import DEAD, HEAD_SIZE, LIVE, REPLACED, TERMINATOR, TRAILER_SIZE
from pmshelve.mmapdict.logfile import Log
from pmshelve.mmapdict.opcodes import find_buffers
from pmshelve.mmapdict.opening import current_boot
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.generic import (
    BUFFERS_END,
    BUFFERS_HEAD,
    PARTIAL_HEAD,
    PICKLE_HEAD,
)
from pmshelve.mmapdict.scan import Entry, Irregular, Scan, read_entry
from pmshelve.storage import file as disk
from pmshelve.storage.binary import U32, crc32

__all__ = ["Image", "copy_data", "take_apart"]

_BUFFER_SIZE = 1 << 20
_MOVABLE_MAX = 1 << 16
"""Size of an entry that is too small to hold data outside its CRC, unless it has buffers."""
_unpack_head = struct.Struct("<BQBB").unpack_from
_unpack_crc = U32.unpack_from


class _Span(Blob):
    """Data to be copied from a place in the old file."""

    __slots__ = ("_read", "source")

    def __init__(self, read: frame.Read, source: int, size: int, opcode: bytes) -> None:
        super().__init__(size, self._chunks, opcode, aligned=opcode == b"\x96")
        self._read = read
        self.source = source

    def data(self) -> bytes:
        """Return all of it."""
        return self._read(self.source, self.source + self.size)

    def _chunks(self) -> Iterator[bytes]:
        """Read it, for the CRC of an entry where that covers the data."""
        stop = self.source + self.size
        for start in range(self.source, stop, _BUFFER_SIZE):
            yield self._read(start, min(start + _BUFFER_SIZE, stop))


class Image:
    """Writes the image into a file; nothing of it counts before `finish`.

    Parameters
    ----------
    fd
        Descriptor of the file.
    base
        Where in the file the image begins; a multiple of 512.
    source
        Descriptor that large data is copied from.
    chunk_size
        Bytes to copy at a time.
    tell
        Called now and then with the offset in the old file up to which it is done.

    Attributes
    ----------
    position
        Size of what there is so far, from the header on.
    count
        Entries added.
    """

    def __init__(
        self,
        fd: int,
        base: int,
        source: int,
        chunk_size: int = 1 << 20,
        tell: Callable[[int], None] | None = None,
    ) -> None:
        self.tell = tell
        self.fd = fd
        self.base = base
        self._source = source
        self._chunk_size = chunk_size
        self._pending = bytearray()
        self._written = frame.SUPERBLOCK_END
        self._hashes: list[int] = []
        self._offsets: list[int] = []
        self.position = frame.SUPERBLOCK_END

    @property
    def count(self) -> int:
        """Entries added."""
        return len(self._offsets)

    # Entries ----------------------------------------------------------------------------------

    def add_live(self, log: Log) -> None:
        """Add all live entries of a log, in order.

        Raises
        ------
        CorruptionError
            One of them is damaged.
        """
        position = frame.HEADER_SIZE
        try:
            while position < log.tail:
                position = self._add_window(log, position)
                if self.tell is not None:
                    self.tell(position)
        except Irregular as error:
            raise CorruptionError(
                error.problem,
                log.name,
                hint="fsck() keeps every entry that is whole",
                offset=error.position,
                invariant=error.invariant,
            ) from None

    def _add_window(self, log: Log, start: int) -> int:
        """Add the live ones of some entries from `start` on; return where the next one begins."""
        window = log.read(start, min(start + _BUFFER_SIZE, log.tail))
        at = kept = 0  # what lies between them is to be moved as it is
        position = self.position
        while at + HEAD_SIZE <= len(window):
            tag, size, _opcode, key_size = _unpack_head(window, at)
            end = at + 9 + size
            if tag != 0x95 or end > len(window) or size < key_size + 11:
                break
            value = at + HEAD_SIZE + key_size
            flag = window[end - 2]
            if flag == LIVE and _is_plain(window, at, end, value):
                # Sound, so it goes on as it is, unless there is padding in it or must be there.
                if not (
                    window[end - 15] != 0x30  # padding ends in POP
                    and window[end - 16 : end - 14] != b"0R"
                    and 15 <= (position + end - at) & 511 <= 501
                ):
                    moved = _lay_out_anew(window, at, value, position)
                    if moved is None:
                        self._write(window[kept:at])
                        self._add_entry(log, start + at)
                        position = self.position
                        at = kept = end
                        continue
                    self._write(window[kept:at])
                    self._write(moved)
                    kept = end
                    size = len(moved) - 9
                self._hashes.append(hash_key(window[at + HEAD_SIZE : value]))
                self._offsets.append(position)
                position += size + 9
            else:
                if kept != at:
                    self._write(window[kept:at])
                if flag not in (DEAD, REPLACED):
                    self._add_entry(log, start + at)
                    position = self.position
                kept = end
            at = end
        self._write(window[kept:at])
        return start + at if at else self._add_entry(log, start)

    def _add_entry(self, log: Log, offset: int) -> int:
        """Add one entry, if it is live, wherever it goes; return its end."""
        entry = read_entry(log.read, offset, log.tail)
        if entry.key is None or entry.flag != LIVE:
            return entry.end
        self._note(entry.key)
        if not entry.own:
            self._move(entry)
            return entry.end
        Scan(log.read, offset, log.tail).verify(entry)
        pieces, reduces = take_apart(log.read, entry.value, entry.end - TRAILER_SIZE)
        prefix = log.read(offset + HEAD_SIZE + len(entry.stored), entry.value)
        self._add(entry.stored, [prefix, *pieces], reduces)
        return entry.end

    def _move(self, entry: Entry) -> None:
        """Add an entry as it is: one of mmappickle, which may stand anywhere."""
        self._flush()
        size = entry.end - entry.offset
        self._copy(entry.offset, size)
        self.position = self._written = self.position + size

    def add_value(self, key: str, body: bytes | list[bytes | Blob], reduces: bool) -> None:
        """Add a value that was never in a file."""
        stored, prefix = frame.encode_key(key)
        self._note(key)
        self._add(stored, [prefix, body] if isinstance(body, bytes) else [prefix, *body], reduces)

    def _add(self, stored: bytes, pieces: list[bytes | Blob], reduces: bool) -> None:
        if all(isinstance(piece, bytes) for piece in pieces):
            body = b"".join(pieces)  # type: ignore[arg-type]
            self._write(frame.encode_entry(stored, body, reduces, self.position))
        else:
            self._place(frame.lay_out(stored, pieces, reduces, self.position))

    def _note(self, key: str) -> None:
        self._hashes.append(hash_key(key.encode("utf-8", "surrogatepass")))
        self._offsets.append(self.position)

    # Bytes ------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        self._pending += data
        self.position += len(data)
        if len(self._pending) >= _BUFFER_SIZE:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            disk.write_at(self.fd, self._pending, self.base + self._written)
            self._pending.clear()
        self._written = self.position

    def _place(self, layout: frame.Layout) -> None:
        for part in layout.parts:
            if isinstance(part, bytes):
                self._write(part)
                continue
            if isinstance(part, _Span) and part.size < _MOVABLE_MAX:
                self._write(part.data())
                continue
            self._flush()
            if isinstance(part, _Span):
                self._copy(part.source, part.size)
            else:
                self._write_chunks(part)
            self.position = self._written = self._written + part.size

    def _write_chunks(self, blob: Blob) -> None:
        offset = self.base + self.position
        for chunk in blob.chunks() if blob.chunks is not None else ():
            offset += disk.writev_at(self.fd, [chunk], offset)

    def _copy(self, source: int, size: int) -> None:
        target = self.base + self.position
        copy_data(
            self._source, self.fd, source, target, size, chunk_size=self._chunk_size, tell=self.tell
        )

    # The end ----------------------------------------------------------------------------------

    def finish(
        self, identity: bytes, *, commit: int, generation: int, face: int, indexed: bool
    ) -> None:
        """Add a checkpoint (if `indexed`), the terminator, and in front header and superblock."""
        end = self.position
        pointer = self._add_checkpoint() if indexed else b""
        dead_size = self.position - end
        self._write(TERMINATOR)
        self._flush()
        head = bytearray(
            frame.encode_fresh(
                identity,
                commit=commit,
                generation=generation,
                face=face,
                live_count=self.count,
                dead_size=dead_size,
                boot=current_boot(),
                synced_end=self.position - len(TERMINATOR),
            )
        )
        head[frame.INDEX_OFFSET : frame.INDEX_OFFSET + len(pointer)] = pointer
        disk.write_at(self.fd, head, self.base)

    def _add_checkpoint(self) -> bytes:
        """Add an index of the entries; return the superblock's field that points to it."""
        end = self.position
        data = build(self._hashes, self._offsets, start=frame.HEADER_SIZE, end=end)
        blob = Blob(len(data), lambda: [data])
        layout = frame.lay_out(frame.INDEX_KEY, [blob], False, end, live=False)
        self._place(layout)
        return frame.encode_pointer(layout.blobs[0][0], len(data), end)


def _is_plain(window: bytes, at: int, end: int, value: int) -> bool:
    """Whether an entry is one of pmshelve, sound, and holds no data that wants to be aligned."""
    return (
        window[end - 9 : end] == frame.TAIL_LIVE
        and window[end - 14] == 0x4A
        and end - at < _MOVABLE_MAX
        and window[at + 9] == 0x8C
        and not window.startswith(frame.RESERVED, at + HEAD_SIZE)
        and not window.startswith(PARTIAL_HEAD, value)
        and _unpack_crc(window, end - 13)[0] == crc32(window[at : end - 14])
    )


def _lay_out_anew(window: bytes, at: int, value: int, position: int) -> bytes | None:
    """Return a plain entry for another place, if it holds bytes or a pickle of less than 256."""
    raw, reduces = value, False
    if window.startswith(PICKLE_HEAD, value):
        raw, reduces = value + len(PICKLE_HEAD), True
    if window[raw] != 0x43:
        return None
    stop = raw + 2 + window[raw + 1] + reduces  # with TUPLE1
    return frame.encode_entry(window[at + HEAD_SIZE : value], window[value:stop], reduces, position)


def take_apart(read: frame.Read, value: int, stop: int) -> tuple[list[bytes | Blob], bool]:
    """Return an own entry's value opcodes as pieces, without padding, and whether it reduces."""
    opening = read(value, min(value + len(BUFFERS_HEAD), stop))
    pieces: list[bytes | Blob] = []
    position = value
    if opening == BUFFERS_HEAD:
        buffers, position = find_buffers(read, value + len(opening), stop)
        pieces.append(opening)
        pieces += [_Span(read, offset, size, b"\x96") for offset, size in buffers]
        pieces.append(BUFFERS_END)
        position += len(BUFFERS_END)
    elif opening.startswith(PICKLE_HEAD):
        pieces.append(PICKLE_HEAD)
        position += len(PICKLE_HEAD)
    reduces = bool(pieces)
    opcode, size = frame.opcode_at(read, position)
    if opcode in (b"\x8d", b"\x8e", b"\x96"):
        pieces.append(_Span(read, position + 9, size - 9, opcode))
    else:
        pieces.append(read(position, position + size))
    if reduces:
        pieces.append(b"\x85")
    return pieces, reduces


def copy_data(
    source: int,
    target: int,
    start: int,
    to: int,
    size: int,
    *,
    chunk_size: int = 1 << 20,
    tell: Callable[[int], None] | None = None,
) -> None:
    """Copy a range between two files, leaving holes where there are holes.

    Parameters
    ----------
    tell
        Called after each chunk with the offset in `source` behind it.
    """
    for offset, length in _data_ranges(source, start, size):
        stop = offset + length
        while offset < stop:
            count = min(stop - offset, chunk_size)
            disk.copy_range(source, target, count, offset, to + offset - start)
            offset += count
            if tell is not None:
                tell(offset)


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
