"""Whether what is laid out as an entry is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmshelve.mmapdict import frame
from pmshelve.mmapdict.scan import Entry, Scan
from pmshelve.mmapdict.wellformed import find_fault
from pmshelve.storage.binary import U32

if TYPE_CHECKING:
    from pmshelve.mmapdict.frame import Read

__all__ = ["FOREIGN_TRAILER_SIZE", "Walker", "find_unsoundness"]

FOREIGN_TRAILER_SIZE = 8
"""Bytes behind the value in entries of mmappickle."""


class Walker(Scan):
    """A scan that is led from position to position."""

    def at(self, position: int) -> Entry | None:
        """Return the entry at `position`, None for the terminator; raise `Irregular` for others."""
        return self._entry(position)


def find_unsoundness(read: Read, entry: Entry) -> tuple[str, str] | None:
    """Return what is wrong with an entry that is laid out as one, and the invariant; or None."""
    if entry.stored == frame.SUPERBLOCK_KEY and entry.offset == frame.FIRST_ENTRY:
        if entry.end != frame.SUPERBLOCK_END or read(48, 56) != frame.MAGIC:
            return "the superblock has another size, or another magic", "L2"
        return None
    if not entry.own:
        fault = find_fault(read, entry.value, entry.end - FOREIGN_TRAILER_SIZE)
        return None if fault is None else (f"the value is broken: {fault}", "L2")
    try:
        as_is, reducing = frame.entry_crc(read, entry.offset, entry.end, entry.value)
    except (ValueError, IndexError):
        return "data reaches past the entry's end", "L2"
    stored = U32.unpack(read(entry.end - 13, entry.end - 9))[0]
    # A dead entry's last REDUCE was turned into POP; the crc is that of the entry alive.
    if stored == as_is or (stored == reducing and entry.flag != frame.LIVE):
        return None
    if stored == reducing:
        return "the value has lost its last opcode, REDUCE", "L3"
    return "the checksum is wrong", "L3"
