"""Whether what is laid out as an entry is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmshelve.errors import CorruptionError, PmshelveError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import HEAD_SIZE, TRAILER_SIZE
from pmshelve.mmapdict.scan import (
    FOREIGN_TRAILER_SIZE,
    Entry,
    Irregular,
    Scan,
    find_foreign_fault,
    read_entry,
)
from pmshelve.storage.binary import U32, crc32

if TYPE_CHECKING:
    from pmshelve.mmapdict.frame import Read

__all__ = ["FOREIGN_TRAILER_SIZE", "Covered", "Walker", "explain", "find_unsoundness"]

_CHUNK_SIZE = 1 << 18


class Walker(Scan):
    """A scan that is led from position to position."""

    def at(self, position: int) -> Entry | None:
        """Return the entry at `position`, None for the terminator; raise `Irregular` for others."""
        return self._entry(position)


def find_unsoundness(read: Read, entry: Entry) -> tuple[str, str] | None:
    """Return what is wrong with an entry that is laid out as one, and the invariant; or None."""
    if entry.stored == frame.SUPERBLOCK_KEY and entry.offset == frame.FIRST_ENTRY:
        return None if _is_superblock(read) else ("the superblock is laid out otherwise", "L2")
    if entry.key is None and entry.flag == frame.LIVE:
        return "an entry with a reserved key is live", "L2"
    if not entry.own:
        fault = find_foreign_fault(read, entry)
        return None if fault is None else (f"the value is broken: {fault}", "L2")
    covered = Covered(read, entry.offset, entry.end, len(entry.stored))
    if not covered.fits:
        return "the value's opcodes do not fit into the entry", "L2"
    stored = U32.unpack(read(entry.end - 13, entry.end - 9))[0]
    if stored == covered.crc:
        return None
    if stored == covered.reducing_crc:
        # A dead entry's last REDUCE was turned into POP; the crc is that of the entry alive.
        if entry.flag != frame.LIVE and read(entry.end - 15, entry.end - 14) == b"0":
            return None
        return "the value has lost its last opcode, REDUCE", "L3"
    return "the checksum is wrong", "L3"


def explain(read: Read, offset: int, limit: int, error: Exception) -> Exception:
    """Return what to raise where decoding the value of the entry at `offset` raised `error`.

    That is `error` itself if the entry is whole: then a class is missing, or refuses what it gets.

    Notes
    -----
    An entry of mmappickle has no crc to tell; of it, only a missing name is believed.
    """
    if isinstance(error, PmshelveError):
        return error
    try:
        entry = read_entry(read, offset, limit)
    except Irregular as irregular:
        return CorruptionError(
            irregular.problem, offset=offset, invariant=irregular.invariant, hint="run fsck()"
        )
    found = find_unsoundness(read, entry)
    if found is None and (entry.own or isinstance(error, ImportError | AttributeError)):
        return error
    problem, invariant = found or (f"the value does not load ({error})", "")
    return CorruptionError(problem, key=entry.key, offset=offset, invariant=invariant)


def _is_superblock(read: Read) -> bool:
    """Whether a superblock has what is the same in all of them (not the bytes yet unused)."""
    fresh = frame.encode_fresh(bytes(16))
    found = read(0, frame.SUPERBLOCK_END)
    return found[24:56] == fresh[24:56] and found[-TRAILER_SIZE:] == fresh[-TRAILER_SIZE:]


class Covered:
    """The bytes of an entry of pmshelve that its crc covers.

    Attributes
    ----------
    start, key_end
        Offset of the entry, and behind its key (the real one, if that is long).
    size
        How many bytes are covered.
    crc, reducing_crc
        Their CRC-32 as they stand, and with REDUCE as the last of them.
    fits
        Whether the value's opcodes end where the value does; if not, blobs were not left out.
    """

    __slots__ = ("_read", "crc", "fits", "key_end", "reducing_crc", "size", "start")

    def __init__(self, read: Read, start: int, stop: int, key_size: int) -> None:
        self._read = read
        self.start = start
        value = start + HEAD_SIZE + key_size
        last = stop - TRAILER_SIZE - 1
        self.key_end = value
        if read(value - key_size, value) == frame.KEY_MARKER:
            size = U32.unpack(read(value + 2, value + 6).ljust(4, b"\0"))[0]
            self.key_end += 6 + min(size, max(last - value, 0))
        self.fits, blobs = True, []
        reduces = frame.reduces_at(read(self.key_end, min(self.key_end + 300, last)))
        try:
            for offset, size in frame.walk(read, value, last + 1):
                if not frame.is_covered(read(offset - 9, offset - 8), reduces):
                    blobs.append((offset, size))
        except (ValueError, IndexError):
            self.fits = False
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
