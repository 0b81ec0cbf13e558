"""Header, entry, superblock and terminator: values <-> bytes.  (docs/format-mmapdict.md, sections 1-3)

Pure: no file is touched here.  An entry, with `end` the offset behind it:

    where      size  field
    +0            9  FRAME n, n = size of the entry less 9
    +9            2  SHORT_BINUNICODE k
    +11           k  stored key
    +11+k            value opcodes, padding, REDUCE if the value ends in one (then at end-15)
    end-14        6  BININT crc POP
    end-8         6  BININT memo POP, memo = 0
    end-2         2  flag, POP

The 11 bytes at +0 go over the old terminator: that publishes the entry (see `logfile`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pmshelve.mmapdict.opcodes import pad
from pmshelve.mmapdict.picklers.generic import PARTIAL_HEAD, PICKLE_HEAD
from pmshelve.storage.binary import U64, crc32

if TYPE_CHECKING:
    from pmshelve.mmapdict.picklers.base import Blob

Read = Callable[[int, int], bytes]
"""Returns the file's bytes from the first offset up to the second."""

__all__ = [
    "BATCH_KEY",
    "COMMIT_MAX",
    "DEAD",
    "FACES",
    "FIRST_ENTRY",
    "FRESH_SIZE",
    "HEADER_SIZE",
    "HEAD_SIZE",
    "INDEX_KEY",
    "LIVE",
    "MARK_EXCLUSIVE",
    "MARK_REPLACED",
    "OWN_TAIL",
    "REPLACED",
    "STATE_START",
    "STATE_STOP",
    "SUPERBLOCK_END",
    "TAIL_LIVE",
    "TERMINATOR",
    "TERMINATOR_SIZE",
    "TRAILER_SIZE",
    "UNKNOWN",
    "Layout",
    "Read",
    "State",
    "decode_key",
    "encode_batch_entry",
    "encode_entry",
    "encode_fresh",
    "encode_key",
    "encode_last_entry",
    "entry_crc",
    "is_own_trailer",
    "is_trailer",
    "lay_out",
    "next_commit",
    "reduces_at",
]

HEADER_SIZE = 24
HEAD_SIZE = 11
TRAILER_SIZE = 14
TERMINATOR = b"\x95" + U64.pack(2) + b"d."
TERMINATOR_SIZE = len(TERMINATOR)
assert TERMINATOR_SIZE == HEAD_SIZE  # one goes over the other

COMMIT_OFFSET = 18
COMMIT_MAX = 2**30
STATE_START, STATE_STOP = 18, 116
"""The bytes any change changes: commit number, identity, generation, marks, counts, boot."""

LIVE, DEAD, REPLACED = 0x88, 0x30, 0x86

RESERVED = b"\0pmshelve"
SUPERBLOCK_KEY = b"\0pmshelve/1"
KEY_MARKER = b"\0pmshelve:key"
BATCH_KEY = b"\0pmshelve/batch"
INDEX_KEY = b"\0pmshelve/index"
FILL_KEY = b"\0pmshelve/fill"

FIRST_ENTRY = 24
SUPERBLOCK_END = 254
FRESH_SIZE = SUPERBLOCK_END + TERMINATOR_SIZE
MARK_REPLACED, MARK_EXCLUSIVE = 1, 2
FACES = ("unset", "native", "bytes")
UNKNOWN = 2**64 - 1
MAGIC = b"PMSHELVE"

_REDUCING_HEADS = (PICKLE_HEAD, PARTIAL_HEAD)

_ENTRY_HEAD = struct.Struct("<BQBB")
_TRAILER = struct.Struct("<BI9s")
OWN_TAIL = b"0J\0\0\0\x000"
"""The bytes of a trailer from end-9 up to the flag, in entries of pmshelve."""
TAIL_LIVE = OWN_TAIL + b"\x880"
_TAIL_DEAD = OWN_TAIL + b"00"
_LAST = struct.Struct("<BI20s")
_LAST_LIVE = TAIL_LIVE + TERMINATOR
"""A trailer and the terminator behind it."""
_pack_head = _ENTRY_HEAD.pack
_pack_trailer = _TRAILER.pack
_pack_last = _LAST.pack
_PADS = [pad(size) if size != 1 else b"" for size in range(67)]
_BIG = 1 << 17

assert _ENTRY_HEAD.size == HEAD_SIZE and _TRAILER.size == TRAILER_SIZE


def next_commit(commit: int) -> int:
    """Return the commit number after `commit`; it wraps from 2**30 to 1."""
    return commit + 1 if 0 <= commit < COMMIT_MAX else 1


# Header and superblock ------------------------------------------------------------------------


class State(NamedTuple):
    """The superblock's changing fields, as they stand in bytes 18 to 116 of the file."""

    commit: int
    identity: bytes
    generation: int
    marks: int
    face: int
    unsynced: int
    stamp: int
    live_count: int
    dead_size: int
    boot: bytes

    @property
    def face_name(self) -> str:
        """The interface through which the file is written."""
        return "bytes" if self.face == FACES.index("bytes") else "native"

    @property
    def is_marked(self) -> bool:
        """Whether the file says, on the disk too, that it is being written."""
        return any(self.boot) and not self.unsynced

    @property
    def settled(self) -> bool:
        """Whether no change was under way (or cut short) when these bytes were read."""
        return self.commit == self.stamp and not self.marks & MARK_EXCLUSIVE


_STATE = struct.Struct("<i 26x 8s 16s I B B B x i Q Q 16s")
assert _STATE.size == STATE_STOP - STATE_START


def decode_state(data: bytes) -> State | None:
    """Return the fields of bytes 18 to 116, or None where there is no superblock."""
    if len(data) != _STATE.size:
        return None
    (commit, magic, identity, generation, marks, face, unsynced, stamp, live, dead, boot) = (
        _STATE.unpack(data)
    )
    if magic != MAGIC or data[17:28] != SUPERBLOCK_KEY:
        return None
    if face >= len(FACES):
        face = 0
    return State(commit, identity, generation, marks, face, unsynced, stamp, live, dead, boot)


COUNTS = struct.Struct("<iQQ")
"""stamp, live entries, bytes in dead entries: 20 bytes at offset 80."""
COUNTS_OFFSET = 80
KEY_OPCODE_OFFSET = FIRST_ENTRY + 9
MARKS_OFFSET = 76
FACE_OFFSET = 77
UNSYNCED_OFFSET = 78
GENERATION_OFFSET = 72
COMMIT = struct.Struct("<i")

SYNC = struct.Struct("<16sQ")
"""boot, synced end: 24 bytes at offset 100."""
SYNC_OFFSET = 100
POINTER = struct.Struct("<QQQ")
"""Three offsets or sizes, followed by their CRC-32."""
INDEX_OFFSET = 124


def encode_pointer(first: int, second: int, third: int) -> bytes:
    """Return three numbers and their CRC-32: the checkpoint field of the superblock."""
    data = POINTER.pack(first, second, third)
    return data + crc32(data).to_bytes(4, "little")


def decode_pointer(data: bytes) -> tuple[int, int, int] | None:
    """Return the three numbers, or None where they are unset or their CRC-32 is wrong."""
    if len(data) != 28 or crc32(data[:24]).to_bytes(4, "little") != data[24:]:
        return None
    first, second, third = POINTER.unpack(data[:24])
    return (first, second, third) if first else None


def encode_header(commit: int) -> bytes:
    """Return the 24 bytes a file begins with."""
    return (
        b"\x80\x04\x95" + U64.pack(13) + b"J" + COMMIT.pack(1) + b"0J" + COMMIT.pack(commit) + b"0("
    )


def encode_fresh(
    identity: bytes,
    *,
    commit: int = 0,
    generation: int = 0,
    face: int = 1,
    live_count: int = 0,
    dead_size: int = 0,
    boot: bytes = bytes(16),
    synced_end: int = 0,
    marks: int = 0,
) -> bytes:
    """Return an empty file's bytes less the terminator: header and superblock."""
    payload = (
        MAGIC
        + identity
        + struct.pack("<IBBxx", generation, marks, face)
        + COUNTS.pack(commit, live_count, dead_size)
        + SYNC.pack(boot, synced_end)
        + encode_pointer(0, 0, 0)
    ).ljust(192, b"\0")
    head = _ENTRY_HEAD.pack(0x95, SUPERBLOCK_END - FIRST_ENTRY - 9, 0x8C, len(SUPERBLOCK_KEY))
    trailer = _TRAILER.pack(0x4A, 0, _TAIL_DEAD)
    data = encode_header(commit) + head + SUPERBLOCK_KEY + b"C\xc0" + payload + trailer
    assert len(data) == SUPERBLOCK_END
    return data


def is_torn_creation(data: bytes) -> bool:
    """Whether `data`, all of a file, is what an unfinished creation may leave of a fresh file.

    That is nothing at all, or a beginning of header and superblock, or zeros where the system
    had extended the file but not yet written it.
    """
    if len(data) > FRESH_SIZE:
        return False
    kept = data.rstrip(b"\0")
    if not kept:
        return True
    fresh = encode_fresh(bytes(16))
    return (len(kept) < FIRST_ENTRY and fresh.startswith(kept)) or (
        len(data) < FRESH_SIZE
        and data[:17] == fresh[:17]
        and len(data) > FIRST_ENTRY
        and fresh[FIRST_ENTRY : FIRST_ENTRY + 32].startswith(data[FIRST_ENTRY : FIRST_ENTRY + 32])
    )


# Keys -----------------------------------------------------------------------------------------


def encode_key(key: str) -> tuple[bytes, bytes]:
    """Return the stored key and the opcodes that begin the value (empty for an ordinary key)."""
    try:
        stored = key.encode()
        if len(stored) <= 255 and (key >= "\x01" or not stored.startswith(RESERVED)):
            return stored, b""
    except UnicodeEncodeError:
        stored = key.encode("utf-8", "surrogatepass")
    return KEY_MARKER, b"0X" + len(stored).to_bytes(4, "little") + stored


def decode_key(stored: bytes) -> str | None:
    """Return the key of an ordinary stored key; None for a reserved one."""
    return None if stored.startswith(RESERVED) else stored.decode()


# Entries --------------------------------------------------------------------------------------


def _end_padding(end: int) -> int:
    """Return the padding that takes `end` to a place allowed by invariant L8."""
    edge = end & 511
    if edge > 501:
        return 527 - edge
    if edge < 15:
        return max(2, 15 - edge)
    return 0


def encode_entry(stored: bytes, body: bytes, reduces: bool, offset: int) -> bytes:
    """Return a live entry of a small value, for `offset`."""
    size = 25 + len(stored) + len(body)
    if reduces:
        size += 1
    edge = (offset + size) & 511
    if not 15 <= edge <= 501:
        padding = _end_padding(edge)
        body += _PADS[padding]
        size += padding
    data = _pack_head(0x95, size - 9, 0x8C, len(stored)) + stored + body
    if reduces:
        data += b"R"
    return data + _pack_trailer(0x4A, crc32(data), TAIL_LIVE)


def encode_last_entry(
    stored: bytes, body: bytes, reduces: bool, offset: int
) -> tuple[bytes, bytes]:
    """Return a live entry of a small value with the terminator behind it, for `offset`.

    As it is appended: the first 11 bytes, and then the rest, which is written before them.
    """
    size = 25 + len(stored) + len(body)
    if reduces:
        size += 1
    edge = (offset + size) & 511
    if not 15 <= edge <= 501:
        padding = _end_padding(edge)
        body += _PADS[padding]
        size += padding
    head = _pack_head(0x95, size - 9, 0x8C, len(stored))
    rest = stored + body
    if reduces:
        rest += b"R"
    return head, rest + _pack_last(0x4A, crc32(rest, crc32(head)), _LAST_LIVE)


def encode_dead(stored: bytes, body: bytes, offset: int) -> bytes:
    """Return an entry that is dead from the start: a tombstone, or one with a reserved key."""
    return encode_entry(stored, body, False, offset)[:-2] + b"00"


BATCH_ENTRY = struct.Struct("<QQ")


def encode_batch_entry(offset: int, size: int, count: int) -> bytes:
    """Return the entry that begins a batch; its own size depends on `offset` alone."""
    return encode_dead(BATCH_KEY, b"C\x10" + BATCH_ENTRY.pack(size, count), offset)


class Layout(NamedTuple):
    """A large entry, placed: `parts` are bytes and blobs, whose data the caller writes, in turns."""

    size: int
    parts: Sequence[bytes | Blob]
    blobs: Sequence[tuple[int, Blob]]
    """File offset of each blob's data."""


def lay_out(
    stored: bytes,
    pieces: Sequence[bytes | Blob],
    reduces: bool,
    offset: int,
    *,
    live: bool = True,
) -> Layout:
    """Place an entry with blobs at `offset`: alignment, sizes, CRC-32."""
    position = offset + HEAD_SIZE + len(stored)
    between: list[bytes] = []
    """What precedes each blob, less the head; and what follows the last, less the trailer."""
    blobs: list[tuple[int, Blob]] = []
    pending = stored
    for piece in pieces:
        if isinstance(piece, bytes):
            pending += piece
            position += len(piece)
            continue
        gap = -(position + 9) % 64 if piece.aligned else 0
        if gap == 1:
            gap = 65
        header = _PADS[gap] + piece.opcode + U64.pack(piece.size)
        between.append(pending + header)
        pending = b""
        position += len(header)
        blobs.append((position, piece))
        position += piece.size
    last = _PADS[_end_padding(position + reduces + TRAILER_SIZE)] + (b"R" if reduces else b"")
    between.append(pending + last)
    size = position + len(last) + TRAILER_SIZE - offset
    between[0] = _pack_head(0x95, size - 9, 0x8C, len(stored)) + between[0]
    crc = crc32(between[0])
    parts: list[bytes | Blob] = between[:1]  # type: ignore[assignment]
    for (_, blob), text in zip(blobs, between[1:], strict=True):
        if is_covered(blob.opcode, reduces):
            for chunk in blob.chunks() if blob.chunks is not None else ():
                crc = crc32(chunk, crc)
        crc = crc32(text, crc)
        parts += [blob, text]
    parts[-1] = between[-1] + _pack_trailer(0x4A, crc, TAIL_LIVE if live else _TAIL_DEAD)
    return Layout(size, parts, blobs)


def is_trailer(trailer: bytes) -> bool:
    """Whether an entry may end in these 14 bytes, by whomever it was written."""
    return (
        trailer[6] == 0x4A
        and trailer[11] == 0x30
        and trailer[13] == 0x30
        and trailer[12] in (LIVE, DEAD, REPLACED)
    )


def is_own_trailer(trailer: bytes) -> bool:
    """Whether these last 14 bytes are those of an entry of pmshelve, which carries a crc."""
    return trailer[0] == 0x4A and trailer[5:12] == OWN_TAIL


def reduces_at(value: bytes) -> bool:
    """Whether the value that begins with these bytes ends in REDUCE (entries of pmshelve)."""
    return value.startswith(_REDUCING_HEADS)


_SIZED_1 = {0x8C: 2, 0x43: 2, 0x8A: 2}
_SIZED_4 = {0x58: 5, 0x42: 5, 0x8B: 5}
_SIZED_8 = {0x8D: 9, 0x8E: 9, 0x96: 9}
_FIXED = {0x4A: 5, 0x4B: 2, 0x4D: 3, 0x47: 9}


def walk(read: Read, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of the data of each blob in the value opcodes of [start, stop).

    Raises
    ------
    ValueError
        An opcode reaches past `stop`.
    """
    position = start
    base, window = start, read(start, min(stop, start + 4096))
    while position < stop:
        at = position - base
        if at < 0 or at + 9 > len(window):
            base, window, at = position, read(position, min(stop, position + 4096)), 0
        op = window[at]
        if op in _FIXED:
            position += _FIXED[op]
        elif op in _SIZED_1:
            position += 2 + window[at + 1]
        elif op in _SIZED_4:
            position += 5 + int.from_bytes(window[at + 1 : at + 5], "little")
        elif op in _SIZED_8:
            size = int.from_bytes(window[at + 1 : at + 9], "little")
            position += 9
            if position + size > stop:
                raise ValueError("data reaches past the entry's end")
            yield position, size
            position += size
        else:
            position += 1
    if position != stop:
        raise ValueError("an opcode reaches past the entry's end")


def opcode_at(read: Read, position: int) -> tuple[bytes, int]:
    """Return the opcode at `position`, and its size with its argument."""
    head = read(position, position + 9)
    op = head[0]
    if op in _FIXED:
        return head[:1], _FIXED[op]
    if op in _SIZED_1:
        return head[:1], 2 + head[1]
    if op in _SIZED_4:
        return head[:1], 5 + int.from_bytes(head[1:5], "little")
    if op in _SIZED_8:
        return head[:1], 9 + int.from_bytes(head[1:9], "little")
    return head[:1], 1


def is_covered(opcode: bytes, reduces: bool) -> bool:
    """Whether the crc covers the data behind an opcode with an 8-byte size.

    It does where half-written data would break the value, or the whole pickle: text must be UTF-8,
    and raw (the bytes of a value that reduces) must be a pickle.
    """
    return opcode == b"\x8d" or (opcode == b"\x8e" and reduces)


def entry_crc(read: Read, offset: int, end: int, value: int, *, plain: bool) -> tuple[int, int]:
    """Return the CRC-32 of an entry as it stands, and as if its byte at end-15 were REDUCE.

    Parameters
    ----------
    value
        Offset of the value's first opcode.
    plain
        Whether the entry is a user's, whose first opcode tells if it has large data.
    """
    stop = end - TRAILER_SIZE
    reduces = reduces_at(read(value, min(value + 26, stop)))
    crc = 0
    position = offset
    if not plain or reduces or read(value, value + 1) in (b"\x8d", b"\x8e", b"\x96"):
        for start, size in walk(read, value, stop):
            if not is_covered(read(start - 9, start - 8), reduces):
                crc = _crc_of(read, position, start, crc)
                position = start + size
    if position == stop:  # the value is a blob and nothing else: no REDUCE
        return crc, crc
    crc = _crc_of(read, position, stop - 1, crc)
    return crc32(read(stop - 1, stop), crc), crc32(b"R", crc)


def _crc_of(read: Read, start: int, stop: int, crc: int) -> int:
    for position in range(start, stop, _BIG):
        crc = crc32(read(position, min(position + _BIG, stop)), crc)
    return crc
