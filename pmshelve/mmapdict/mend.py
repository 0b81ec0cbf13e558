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
from pmshelve.mmapdict.soundness import FOREIGN_TRAILER_SIZE, Walker, find_unsoundness
from pmshelve.storage.binary import U32, U64, crc32

if TYPE_CHECKING:
    from pmshelve.mmapdict.frame import Read

__all__ = ["Poke", "mend"]

Poke = tuple[int, bytes]
"""Bytes to write, and where."""

_SEARCH_SIZE_MAX: Final = 1 << 17
"""Bytes of key and small value up to which key sizes and bits are tried."""

_CHUNK_SIZE: Final = 1 << 18
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


def mend(
    read: Read, start: int, stop: int, *, key_search: bool
) -> tuple[tuple[Poke, ...], Entry] | None:
    """Return what makes a damaged range one sound entry, and that entry.

    Parameters
    ----------
    start, stop
        Where the entry begins and, supposedly, ends.
    key_search
        Try every size of the key, where the one found proves wrong.

    Returns
    -------
    None where nothing does: the value, or more than one bit of the key, is damaged.
    """
    if start == frame.FIRST_ENTRY and stop == frame.SUPERBLOCK_END:
        return _mend_superblock(read)
    for pokes in _proposals(read, start, stop, key_search=key_search):
        patched = overlaid(read, pokes)
        try:
            entry = Walker(patched, start, stop).at(start)
        except Irregular:
            continue
        if entry is not None and entry.end == stop and not find_unsoundness(patched, entry):
            return tuple(
                poke for poke in pokes if read(poke[0], poke[0] + len(poke[1])) != poke[1]
            ), entry
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
    fields = old[56:76] + marks + face + bytes(2) + old[80:180]
    data = fresh[start:56] + fields + fresh[180:stop]
    entry = Walker(overlaid(read, [(start, data)]), start, stop).at(start)
    return None if entry is None else (((start, data),), entry)


def _proposals(read: Read, start: int, stop: int, *, key_search: bool) -> Iterator[list[Poke]]:
    """Yield what may make the range an entry; each is put to the proof."""
    size = stop - start
    if size < HEAD_SIZE + 1 + FOREIGN_TRAILER_SIZE:
        return
    key_size = read(start + 10, start + HEAD_SIZE)[0]
    yield from _own(read, start, stop, key_size)
    trailer = read(stop - FOREIGN_TRAILER_SIZE, stop)
    if trailer[0] == 0x4A and trailer[5] == trailer[7] == 0x30:
        flag = trailer[6] if trailer[6] in _FLAGS else frame.LIVE
        yield [(start, _head(size, key_size)), (stop - 2, bytes((flag,)))]
    if key_search and size <= _SEARCH_SIZE_MAX:
        for key_size in range(min(256, size - _OWN_SIZE_MIN + 1)):
            yield from _own(read, start, stop, key_size)


def _own(read: Read, start: int, stop: int, key_size: int) -> Iterator[list[Poke]]:
    """Yield what may make the range an entry of pmshelve with a key of this size."""
    if stop - start < _OWN_SIZE_MIN + key_size:
        return
    head = _head(stop - start, key_size)
    covered = _Covered(overlaid(read, [(start, head)]), start, stop, key_size)
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
            right = covered.flipped_key_bit(crc ^ stored)
        if right is not None:
            ending = _ending(read(stop - 15, stop - 14), stored, trailer[12], reducing=reducing)
            yield [(start, head), *right, (stop - 15, ending)]


def _ending(last: bytes, crc: int, flag: int, *, reducing: bool) -> bytes:
    """Return an entry's last 15 bytes; `reducing` if its value ends, or ended, in REDUCE."""
    if flag not in _FLAGS:
        # An entry that died lost its REDUCE: that tells what the flag was.
        flag = frame.DEAD if reducing and last == b"0" else frame.LIVE
    if reducing and flag == frame.LIVE:
        last = b"R"
    return b"".join((last, b"J", U32.pack(crc), b"0J\0\0\0\x000", bytes((flag,)), b"0"))


def _head(size: int, key_size: int) -> bytes:
    """Return the head of an entry of that size."""
    return b"\x95" + U64.pack(size - 9) + b"\x8c" + bytes((key_size,))


class _Covered:
    """The bytes of an entry of pmshelve that its crc covers."""

    def __init__(self, read: Read, start: int, stop: int, key_size: int) -> None:
        self._read = read
        self._start = start
        value = start + HEAD_SIZE + key_size
        last = stop - TRAILER_SIZE - 1
        try:
            blobs = list(frame.walk(read, value, last + 1))
        except (ValueError, IndexError):
            blobs = []  # the size of a long key may be what is damaged
        self._key_end = value
        if read(value - key_size, value) == frame.KEY_MARKER:
            size = U32.unpack(read(value + 2, value + 6).ljust(4, b"\0"))[0]
            self._key_end += 6 + min(size, last - value)
        self.size = 0
        crc = 0
        position = start
        for offset, size in blobs:
            crc = self._add(position, offset, crc)
            position = offset + size
        if position > last:  # the value is a blob and nothing else: no REDUCE
            self.crc = self.reducing_crc = crc
            return
        crc = self._add(position, last, crc)
        self.size += 1
        self.crc = crc32(read(last, last + 1), crc)
        self.reducing_crc = crc32(b"R", crc)

    def _add(self, start: int, stop: int, crc: int) -> int:
        self.size += stop - start
        for offset in range(start, stop, _CHUNK_SIZE):
            crc = crc32(self._read(offset, min(offset + _CHUNK_SIZE, stop)), crc)
        return crc

    def flipped_key_bit(self, difference: int) -> list[Poke] | None:
        """Return the one bit of the key that makes this difference to the crc, put right.

        A single bit changes the CRC-32 by a value of its own: what its byte contributes, moved on
        by one step for each byte behind it.  So the difference is moved back step by step.
        """
        if self.size > _SEARCH_SIZE_MAX:
            return None
        first = self.size - (self._key_end - self._start)
        origins = {_CRC_TABLE[1 << bit]: 1 << bit for bit in range(8)}
        for behind in range(self.size - HEAD_SIZE):
            if behind >= first and difference in origins:
                offset = self._start + self.size - 1 - behind
                old = self._read(offset, offset + 1)[0]
                return [(offset, bytes((old ^ origins[difference],)))]
            index = _CRC_INDEX[difference >> 24]
            difference = (difference ^ _CRC_TABLE[index]) << 8 | index
        return None


_CRC_TABLE: Final = tuple(crc32(bytes((byte,))) ^ crc32(b"\0") for byte in range(256))
_CRC_INDEX: Final = {value >> 24: index for index, value in enumerate(_CRC_TABLE)}
