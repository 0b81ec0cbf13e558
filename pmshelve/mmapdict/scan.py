"""Walk the chain of entries of a file, believing nothing.

A scan yields entries in file order and ends at the terminator.  Whatever does not fit raises
`Irregular`, which says where: what that means (a torn tail, a writer at work, damage) is for the
caller to decide, who knows which lock is held.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import HEAD_SIZE, OWN_TAIL, TRAILER_SIZE, Read
from pmshelve.mmapdict.picklers.generic import PICKLE_HEAD, decode_pickle
from pmshelve.mmapdict.wellformed import find_fault
from pmshelve.storage.binary import U32, crc32

__all__ = [
    "FOREIGN_TRAILER_SIZE",
    "Entry",
    "Irregular",
    "Scan",
    "find_entry",
    "find_foreign_fault",
    "place_of_bytes",
    "quick_entries",
    "read_entry",
]

CHUNK_SIZE = 1 << 18
FOREIGN_TRAILER_SIZE = 8
"""Bytes behind the value in entries of mmappickle."""
_HEAD = struct.Struct("<BQBB")
_unpack_head = _HEAD.unpack_from
_unpack_size = U32.unpack_from
_END = frame.TERMINATOR[9:]
# First opcodes of values that are covered by the crc as a whole, whatever follows.
_QUICK = frozenset(b"NKMJGCBX\x88\x89\x8a")


class Irregular(Exception):
    """What stands at `position` is not a sound entry, nor the terminator.

    From `resume` on, sound entries would be others than those of what broke.
    """

    def __init__(
        self, position: int, problem: str, invariant: str = "L2", resume: int | None = None
    ) -> None:
        super().__init__(position, problem, invariant, resume)
        self.resume = position + 1 if resume is None else resume
        self.position = position
        self.problem = problem
        self.invariant = invariant


class Entry(NamedTuple):
    """One entry as it stands in the file.

    `key` is None for reserved ones; `value` is the offset of the value's first opcode (behind the
    real key, where the stored one is a marker); `own` tells pmshelve's entries.
    """

    key: str | None
    offset: int
    end: int
    flag: int
    value: int
    own: bool
    stored: bytes


class Scan:
    """Iterate over the entries from `start` on.

    Parameters
    ----------
    read
        Returns the file's bytes between two offsets, fewer at its end.
    start
        Offset of an entry, or of the terminator.
    size
        The file's size; nothing may reach past it.
    verify
        Check each CRC, and let a batch through only when all of it is sound.
    own_only
        Take an entry without a CRC for irregular: it may be half written.
    stop
        Offset at which to end, where the terminator is known to be (or missing).

    Attributes
    ----------
    tail
        Once the iteration has ended: the terminator's offset.
    """

    def __init__(
        self,
        read: Read,
        start: int,
        size: int,
        *,
        verify: bool = False,
        own_only: bool = False,
        stop: int = -1,
    ) -> None:
        self._read = read
        self._size = size
        self._verify = verify
        self._own_only = own_only
        self._stop = stop
        self._base = start
        self._window = b""
        self.tail = start

    def __iter__(self) -> Iterator[Entry]:
        position = self.tail
        while position != self._stop and (entry := self._entry(position)) is not None:
            if entry.stored == frame.BATCH_KEY:
                yield from self._batch(entry)
            else:
                yield entry
            position = max(self.tail, entry.end)
            self.tail = position

    def _fill(self, position: int, size: int) -> int:
        """Make the window hold `size` bytes from `position` on if the file does; return where."""
        at = position - self._base
        if at < 0 or at + size > len(self._window):
            stop = min(position + max(CHUNK_SIZE, size), self._size)
            self._window = self._read(position, stop) if stop > position else b""
            self._base, at = position, 0
        return at

    def _entry(self, position: int) -> Entry | None:
        at = self._fill(position, HEAD_SIZE)
        window = self._window
        if len(window) - at < HEAD_SIZE:
            raise Irregular(position, "the file ends without a terminator", "L1")
        tag, size, op, key_size = _HEAD.unpack_from(window, at)
        if tag != 0x95:
            raise Irregular(position, "no entry and no terminator begins here")
        end = position + 9 + size
        if op != 0x8C:
            if size == 2 and window[at + 9 : at + HEAD_SIZE] == _END:
                return None
            raise Irregular(position, "the frame holds neither an entry nor the terminator")
        if size < 2 + key_size + 9 or end > self._size:
            raise Irregular(position, "the entry is longer than the file, or shorter than its key")
        if end - position <= CHUNK_SIZE:
            at = self._fill(position, end - position)
            window = self._window
            stop = at + end - position
            trailer = window[stop - TRAILER_SIZE : stop]
        else:
            trailer = self._read(end - TRAILER_SIZE, end)
        return self._decode(position, end, key_size, at, trailer)

    def _read_window(self, start: int, stop: int) -> bytes:
        """Read what is at hand already, if it is."""
        at, end = start - self._base, stop - self._base
        return (
            self._window[at:end]
            if at >= 0 and end <= len(self._window)
            else self._read(start, stop)
        )

    def _decode(self, position: int, end: int, key_size: int, at: int, trailer: bytes) -> Entry:
        if len(trailer) != TRAILER_SIZE or not frame.is_trailer(trailer):
            raise Irregular(position, "the entry does not end as one")
        own = frame.is_own_trailer(trailer)
        value = position + HEAD_SIZE + key_size
        if len(self._window) - at < HEAD_SIZE + key_size:
            at = self._fill(position, HEAD_SIZE + key_size)
        stored = self._window[at + HEAD_SIZE : at + HEAD_SIZE + key_size]
        try:
            key = frame.decode_key(stored)
            if stored == frame.KEY_MARKER:
                value, key = read_long_key(self._read, value, end)
        except UnicodeDecodeError:
            raise Irregular(position, "the key is not UTF-8") from None
        entry = Entry(key, position, end, trailer[12], value, own, stored)
        if self._own_only and not own:
            raise Irregular(position, "the entry has no checksum")
        if self._verify and own and stored != frame.SUPERBLOCK_KEY:
            self.verify(entry, trailer)
        elif self._verify and not own and entry.flag == frame.DEAD:
            fault = find_foreign_fault(self._read, entry)
            if fault is not None:
                raise Irregular(position, f"the value is broken: {fault}")
        return entry

    def verify(self, entry: Entry, trailer: bytes | None = None) -> None:
        """Raise `Irregular` unless the entry's CRC is right."""
        if trailer is None:
            trailer = self._read(entry.end - TRAILER_SIZE, entry.end)
        crc = int.from_bytes(trailer[1:5], "little")
        try:
            crcs = frame.entry_crc(
                self._read_window, entry.offset, entry.end, entry.value, plain=entry.key is not None
            )
        except (ValueError, IndexError) as error:
            raise Irregular(entry.offset, str(error)) from None
        if crc != crcs[0] and crc != crcs[1]:
            raise Irregular(entry.offset, "the checksum is wrong", "L3")

    def _batch(self, header: Entry) -> Iterator[Entry]:
        """Yield the batch's entries, its header first; all of them or none."""
        payload = self._read(header.value + 2, header.value + 18)
        size, _count = frame.BATCH_ENTRY.unpack(payload)
        stop = header.offset + size
        if stop > self._size or size < header.end - header.offset:
            raise Irregular(header.offset, "the batch is longer than the file", "L5", self._size)
        members: Iterable[Entry] = self._members(header, stop)
        if self._verify:
            members = list(members)
        yield header
        yield from members

    def _members(self, header: Entry, stop: int) -> Iterator[Entry]:
        position = header.end
        while position < stop:
            try:
                entry = self._entry(position)
            except Irregular as error:
                problem = f"in the batch that begins here, at {error.position}: {error.problem}"
                raise Irregular(header.offset, problem, "L5", stop) from None
            if entry is None or entry.end > stop or entry.stored == frame.BATCH_KEY:
                raise Irregular(header.offset, "the batch ends early", "L5", stop)
            position = entry.end
            self.tail = position
            yield entry


def quick_entries(data: bytes, base: int, *, plain: bool) -> tuple[list[tuple[str, int, Any]], int]:
    """Return the plain entries that `data`, the file's bytes from `base` on, begins with.

    These are entries of pmshelve with an ordinary key and a small value, whole and with a right
    CRC.  Costs a tenth of what a scan does: whoever follows a busy writer lives on it.

    Parameters
    ----------
    plain
        Whether the built-in picklers read the values.

    Returns
    -------
    Of each its key, its flag, and the place of its value (see `index.Place`) if it is bytes or a
    short pickle, or else the entry's offset; and the offset of the first bytes that are anything
    else, for a `Scan` to judge.
    """
    entries: list[tuple[str, int, Any]] = []
    at, size = 0, len(data)
    place: Any
    while at + HEAD_SIZE <= size:
        tag, count, op, key_size = _unpack_head(data, at)
        end = at + 9 + count
        value = at + HEAD_SIZE + key_size
        if tag != 0x95 or op != 0x8C or end > size or value + TRAILER_SIZE >= end:
            break
        stop = end - TRAILER_SIZE
        if data[end - 9 : end - 2] != OWN_TAIL or data[at + HEAD_SIZE] == 0:
            break
        if _unpack_size(data, stop + 1)[0] != crc32(data[at:stop]):
            break
        code = data[value]
        offset = place = base + at
        if code not in _QUICK:
            raw = value + len(PICKLE_HEAD)
            if not data.startswith(PICKLE_HEAD, value) or data[raw] == 0x8E:
                break
            if plain and data[raw] == 0x43:
                start = base + raw + 2
                place = base + end - 2, start, start + data[raw + 1], decode_pickle, offset, True
        elif code == 0x43 and plain:
            start = base + value + 2
            place = base + end - 2, start, start + data[value + 1], None, offset, False
        try:
            key = data[at + HEAD_SIZE : value].decode()
        except UnicodeDecodeError:
            break
        entries.append((key, data[end - 2], place))
        at = end
    return entries, base + at


def read_entry(read: Read, offset: int, limit: int) -> Entry:
    """Return the entry at `offset`, which must end at or before `limit`.

    Raises
    ------
    Irregular
        There is none.
    """
    head = read(offset, min(offset + HEAD_SIZE, limit))
    if len(head) < HEAD_SIZE or head[0] != 0x95 or head[9] != 0x8C:
        raise Irregular(offset, "no entry begins here")
    end = offset + 9 + int.from_bytes(head[1:9], "little")
    value = offset + HEAD_SIZE + head[10]
    if not value + 9 <= end <= limit:
        raise Irregular(offset, "the entry is longer than the file, or shorter than its key")
    trailer = read(end - TRAILER_SIZE, end)
    if not frame.is_trailer(trailer):
        raise Irregular(offset, "the entry does not end as one")
    stored = read(offset + HEAD_SIZE, value)
    try:
        key = frame.decode_key(stored)
        if stored == frame.KEY_MARKER:
            value, key = read_long_key(read, value, end)
    except UnicodeDecodeError:
        raise Irregular(offset, "the key is not UTF-8") from None
    own = frame.is_own_trailer(trailer)
    return Entry(key, offset, end, trailer[12], value, own, stored)


def place_of_bytes(
    view: Any, offset: int, limit: int
) -> tuple[int, int, int, None, int, bool] | None:
    """Return the place (see `index.Place`) of an own entry of small bytes; None for any other.

    What a first get of a small value costs is mostly this.
    """
    if offset + HEAD_SIZE > len(view):
        return None
    tag, size, op, key_size = _unpack_head(view, offset)
    end = offset + 9 + size
    if tag != 0x95 or op != 0x8C or end > limit or end > len(view):
        return None
    value = offset + HEAD_SIZE + key_size
    code = view[value]
    if code == 0x43:
        start = value + 2
        stop = start + view[value + 1]
    elif code == 0x42:
        start = value + 5
        stop = start + _unpack_size(view, value + 1)[0]
    else:
        return None
    if stop > end - TRAILER_SIZE or view[end - 9 : end - 2] != OWN_TAIL:
        return None
    return end - 2, start, stop, None, offset, False


def read_long_key(read: Read, position: int, end: int) -> tuple[int, str | None]:
    """Return where the value goes on behind a real key, and that key."""
    head = read(position, min(position + 6, end))
    size = int.from_bytes(head[2:], "little")
    if head[:2] != b"0X" or position + 6 + size > end - TRAILER_SIZE:
        return position, None
    key = read(position + 6, position + 6 + size)
    return position + 6 + size, key.decode("utf-8", "surrogatepass")


def find_foreign_fault(read: Read, entry: Entry) -> str | None:
    """Return what is wrong with the value of an entry that has no crc, or None.

    Nothing is if dead entries stand behind it: such is a run that was being buried (see `runs`).
    """
    fault = find_fault(read, entry.value, entry.end - FOREIGN_TRAILER_SIZE)
    if fault is None or (entry.flag == frame.DEAD and _holds_entries(read, entry)):
        return None
    return fault


def _holds_entries(read: Read, entry: Entry) -> bool:
    """Whether sound dead entries stand behind an entry's value: a run that was being buried."""
    window = read(entry.value, min(entry.value + CHUNK_SIZE, entry.end))
    at = window.find(b"\x95", TRAILER_SIZE)
    while at >= 0:
        trailer = at - TRAILER_SIZE
        if (
            _is_dead_trailer(window[trailer:at])
            and find_fault(read, entry.value, entry.value + trailer) is None
            and _are_dead_entries(read, entry.value + at, entry.end)
        ):
            return True
        at = window.find(b"\x95", at + 1)
    return False


def _are_dead_entries(read: Read, start: int, stop: int) -> bool:
    """Whether nothing but sound dead entries lies between two offsets."""
    while start < stop:
        try:
            entry = read_entry(read, start, stop)
            if entry.flag == frame.LIVE:
                return False
            if entry.own:
                Scan(read, start, stop).verify(entry)
            elif find_foreign_fault(read, entry) is not None:
                return False
        except Irregular:
            return False
        start = entry.end
    return start == stop


def _is_dead_trailer(trailer: bytes) -> bool:
    return frame.is_trailer(trailer) and trailer[12] != frame.LIVE


def find_entry(read: Read, start: int, size: int) -> Entry | None:
    """Return the first sound entry of pmshelve that begins at or behind `start`, or None.

    Only entries with a right CRC count, so that data that happens to look like an entry does not.
    """
    position = start
    while position + HEAD_SIZE < size:
        window = read(position, min(position + CHUNK_SIZE, size))
        at = window.find(b"\x95")
        while at >= 0 and at + HEAD_SIZE <= len(window):
            if window[at + 9] == 0x8C:
                try:
                    entry = read_entry(read, position + at, size)
                    if entry.own and entry.stored != frame.SUPERBLOCK_KEY:
                        Scan(read, position + at, size).verify(entry)
                        return entry
                except Irregular:
                    pass
            at = window.find(b"\x95", at + 1)
        if position + len(window) >= size:
            return None
        position += len(window) - HEAD_SIZE
    return None
