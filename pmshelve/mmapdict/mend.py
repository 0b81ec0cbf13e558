"""Make an entry whole again where damage spared its value.

Once it is known where a damaged entry begins and ends, all of its head and trailer is known but the
size of the key, the flag and the crc; and the crc, which covers head, key and small values, proves
a reconstruction right.  So damage to these bytes costs nothing; nor does one flipped bit in the key
or in the crc itself.  A value is never changed.  Entries of mmappickle have no crc: their head is
put right, and their value must be `wellformed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import HEAD_SIZE, TRAILER_SIZE
from pmshelve.mmapdict.scan import Entry, Irregular
from pmshelve.mmapdict.soundness import FOREIGN_TRAILER_SIZE, Covered, Walker, find_unsoundness
from pmshelve.storage.binary import U32, U64, crc32

if TYPE_CHECKING:
    from pmshelve.mmapdict.frame import Read

__all__ = ["Poke", "mend"]

Poke = tuple[int, bytes]
"""Bytes to write, and where."""

_SEARCH_SIZE_MAX: Final = 1 << 17
"""Bytes of head, key and small value among which a flipped bit is looked for."""

_OWN_SIZE_MIN: Final = HEAD_SIZE + 1 + TRAILER_SIZE
_FLAGS: Final = (frame.LIVE, frame.DEAD, frame.REPLACED)


def overlaid(read: Read, pokes: Sequence[Poke]) -> Read:
    """Return a `read` that sees the bytes of `pokes` in place."""

    def patched(start: int, stop: int) -> bytes:
        data = read(start, stop)
        for offset, piece in pokes:
            low, high = max(start, offset), min(start + len(data), offset + len(piece))
            if low < high:
                middle = piece[low - offset : high - offset]
                data = data[: low - start] + middle + data[high - start :]
        return data

    return patched


def mend(read: Read, start: int, stop: int) -> tuple[tuple[Poke, ...], Entry] | None:
    """Return what makes a damaged range one sound entry, and that entry.

    Parameters
    ----------
    start, stop
        Where the entry begins and, supposedly, ends.

    Returns
    -------
    None where nothing does: the value, or more than one bit of the key, is damaged.
    """
    if start == frame.FIRST_ENTRY and stop == frame.SUPERBLOCK_END:
        return _mend_superblock(read)
    for pokes in _proposals(read, start, stop):
        patched = overlaid(read, pokes)
        try:
            entry = Walker(patched, start, stop).at(start)
        except Irregular:
            continue
        if entry is not None and entry.end == stop and not find_unsoundness(patched, entry):
            return tuple(pokes), entry
    return None


def _mend_superblock(read: Read) -> tuple[tuple[Poke, ...], Entry] | None:
    """Write what is constant in a superblock anew, if this was one."""
    start, stop = frame.FIRST_ENTRY, frame.SUPERBLOCK_END
    old = read(0, stop)
    stored = old[start + HEAD_SIZE : start + HEAD_SIZE + len(frame.SUPERBLOCK_KEY)]
    if old[48:56] != frame.MAGIC and stored != frame.SUPERBLOCK_KEY:
        return None
    fresh = frame.encode_fresh(bytes(16))
    marks = bytes((old[frame.MARKS_OFFSET] & frame.MARK_EXCLUSIVE,))
    face = bytes((old[frame.FACE_OFFSET] % len(frame.FACES),))
    fields = old[56:76] + marks + face + old[78 : stop - TRAILER_SIZE]
    data = fresh[start:56] + fields + fresh[-TRAILER_SIZE:]
    entry = Walker(overlaid(read, [(start, data)]), start, stop).at(start)
    return None if entry is None else (((start, data),), entry)


def _proposals(read: Read, start: int, stop: int) -> Iterator[list[Poke]]:
    """Yield what may make the range an entry; each is put to the proof."""
    size = stop - start
    if size < HEAD_SIZE + 1 + FOREIGN_TRAILER_SIZE:
        return
    head = read(start, start + HEAD_SIZE)
    key_size = head[10]
    yield from _own(read, start, stop, key_size)
    yield from _foreign(read, start, stop, key_size)
    if head[:10] == _head(size, 0)[:10]:
        for bit in range(8):
            yield from _own(read, start, stop, key_size ^ 1 << bit)


def _own(read: Read, start: int, stop: int, key_size: int) -> Iterator[list[Poke]]:
    """Yield what may make the range an entry of pmshelve with a key of this size."""
    if stop - start < _OWN_SIZE_MIN + key_size:
        return
    head = _head(stop - start, key_size)
    covered = Covered(overlaid(read, [(start, head)]), start, stop, key_size)
    trailer = read(stop - TRAILER_SIZE, stop)
    stored = U32.unpack_from(trailer, 1)[0]
    rest_is_right = frame.is_own_trailer(trailer) and head == read(start, start + HEAD_SIZE)
    rest_is_right = rest_is_right and frame.is_trailer(trailer)
    for reducing, crc in ((False, covered.crc), (True, covered.reducing_crc)):
        right: list[Poke] | None = None
        if crc == stored:
            right = []
        elif rest_is_right and (crc ^ stored).bit_count() == 1:
            stored, right = crc, []
        elif rest_is_right:
            right = _flipped_key_bit(read, covered, crc ^ stored)
        if right is not None:
            ending = _ending(read(stop - 15, stop - 14), stored, trailer[12], reducing=reducing)
            yield [(start, head), *right, (stop - 15, ending)]


def _foreign(read: Read, start: int, stop: int, key_size: int) -> Iterator[list[Poke]]:
    """Yield what may make the range an entry of mmappickle; its ends must be nearly right."""
    head = _head(stop - start, key_size)
    old = read(stop - FOREIGN_TRAILER_SIZE, stop)
    trailer = b"J" + old[1:5] + b"0" + bytes((_nearest_flag(old[6]),)) + b"0"
    wrong = sum(map(int.__ne__, old, trailer))
    if wrong == 0 or (wrong == 1 and head == read(start, start + HEAD_SIZE)):
        yield [(start, head), (stop - FOREIGN_TRAILER_SIZE, trailer)]


def _ending(last: bytes, crc: int, flag: int, *, reducing: bool) -> bytes:
    """Return an entry's last 15 bytes; `reducing` if its value ends, or ended, in REDUCE."""
    flag = _nearest_flag(flag)
    if reducing:
        last = b"R" if flag == frame.LIVE else b"0"
    return b"".join((last, b"J", U32.pack(crc), frame.OWN_TAIL, bytes((flag,)), b"0"))


def _nearest_flag(flag: int) -> int:
    """Return the flag that differs in the fewest bits; any two of them differ in three or more."""
    return min(_FLAGS, key=lambda right: (right ^ flag).bit_count())


def _head(size: int, key_size: int) -> bytes:
    """Return the head of an entry of that size."""
    return b"\x95" + U64.pack(size - 9) + b"\x8c" + bytes((key_size,))


def _flipped_key_bit(read: Read, covered: Covered, difference: int) -> list[Poke] | None:
    """Return the one bit of the key that makes this difference to the crc, put right.

    A single bit changes the CRC-32 by a value of its own: what its byte contributes, moved on by
    one step for each byte behind it.  So the difference is moved back step by step.
    """
    if covered.size > _SEARCH_SIZE_MAX:
        return None
    first = covered.size - (covered.key_end - covered.start)
    origins = {_CRC_TABLE[1 << bit]: 1 << bit for bit in range(8)}
    for behind in range(covered.size - HEAD_SIZE):
        if behind >= first and difference in origins:
            offset = covered.start + covered.size - 1 - behind
            old = read(offset, offset + 1)[0]
            return [(offset, bytes((old ^ origins[difference],)))]
        index = _CRC_INDEX[difference >> 24]
        difference = (difference ^ _CRC_TABLE[index]) << 8 | index
    return None


_CRC_TABLE: Final = tuple(crc32(bytes((byte,))) ^ crc32(b"\0") for byte in range(256))
_CRC_INDEX: Final = {value >> 24: index for index, value in enumerate(_CRC_TABLE)}
