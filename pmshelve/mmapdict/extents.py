"""What lies where in an mmapdict file: its entries by what they are for.

    header    header and superblock
    live      a key and its value
    dead      what a vacuum gives back: replaced and deleted entries, tombstones, heads of batches
    index     checkpoints in use
    end       the terminator
    behind    what lies behind the terminator: reserved, or left there by a change cut short
    damage    what is no entry, and lies before others that are

Only reads, without a lock, and believes nothing: entries are taken for what their heads and trailers
say, and where that breaks `Recovery` goes on.  Of a batch that was cut short nothing counts.  Where a
vacuum in place is copying, or was killed meanwhile, its image counts; what that goes over is dead.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.check import FileView
from pmshelve.mmapdict.checkpoint import Checkpoint, open_chain
from pmshelve.mmapdict.footer import find_image
from pmshelve.mmapdict.frame import (
    DEAD,
    HEAD_SIZE,
    LIVE,
    REPLACED,
    TERMINATOR,
    TERMINATOR_SIZE,
    Read,
)
from pmshelve.mmapdict.recover import Gap, Recovery
from pmshelve.mmapdict.scan import Entry
from pmshelve.storage.extent import Extent
from pmshelve.storage.progress import Pace, Progress

__all__ = ["KINDS", "FileCutError", "Walk", "chain_of", "shifted"]

KINDS = ("header", "live", "dead", "index", "end", "behind", "damage")

_WINDOW_SIZE = 1 << 18
_FLAGS = (LIVE, DEAD, REPLACED)
_LIVE = bytes((LIVE,))
_BATCH_VALUE = b"C\x10"
_unpack_head = struct.Struct("<BQBB").unpack_from


class FileCutError(OSError):
    """Somebody made the file shorter while it was gone through: look again."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "the file was made shorter while it was read")


def _sure(read: Read, size: int) -> Read:
    """Return what reads a file of `size` bytes, and raises where it has fewer by then."""

    def sure(start: int, stop: int) -> bytes:
        data = read(start, stop)
        if len(data) < min(stop, size) - start:
            raise FileCutError
        return data

    return sure


def chain_of(read: Read, size: int) -> list[Checkpoint]:
    """Return the checkpoints that the superblock points to, newest first.

    Raises
    ------
    CorruptionError
        It points to something else.
    """
    if frame.decode_state(read(frame.STATE_START, frame.STATE_STOP)) is None:
        return []
    data = read(frame.INDEX_OFFSET, frame.INDEX_OFFSET + 28)
    pointer = frame.decode_pointer(data)
    if pointer is None:
        if any(data[:24]):
            raise CorruptionError(
                "the pointer's checksum is wrong", offset=frame.INDEX_OFFSET, invariant="L7"
            )
        return []
    return open_chain(FileView(read, size), pointer[0], pointer[1])


def shifted(read: Read, base: int, size: int) -> Read:
    """Return what reads `size` bytes at `base` of a file as if they were the file."""
    return lambda start, stop: read(base + start, base + min(stop, size)) if start < size else b""


class Walk:
    """Iterate over the extents of a file.

    Parameters
    ----------
    read
        Returns the file's bytes between two offsets, fewer at its end.
    size
        The file's size.
    start
        Where to begin: an entry, or 0 for all of the file.
    progress
        Called with the bytes gone through, and `size`.

    Raises
    ------
    FileCutError
        The file is shorter than `size` by now.

    Attributes
    ----------
    tail
        Once the iteration has ended: the terminator's offset, or None if there is none.
    problem, problem_offset
        The first thing that is wrong, or ""; where that is.
    damaged
        Whether that is damage: what a change that was cut short leaves is not.

    Notes
    -----
    Costs some 1 µs an entry, and no memory that grows with the file.
    """

    def __init__(
        self, read: Read, size: int, start: int = 0, *, progress: Progress | None = None
    ) -> None:
        self._read = _sure(read, size)
        self._size = size
        self._start = start
        self._pace = Pace(progress, size)
        self._index: set[int] = set()
        self.tail: int | None = None
        self.problem = ""
        self.problem_offset = 0
        self.damaged = False

    def __iter__(self) -> Iterator[Extent]:
        image = None if self._start else find_image(self._read, self._size)
        yield from self._content() if image is None else self._moved(*image)
        self._pace.end()

    def _moved(self, base: int, size: int) -> Iterator[Extent]:
        """Yield the extents of a file whose content is an image in it."""
        whole = self._size
        yield Extent(0, base, "dead", base)
        self._read, self._size = shifted(self._read, base, size), size
        for extent in self._content():
            yield extent._replace(offset=extent.offset + base)
        if self.tail is not None:
            self.tail += base
        yield Extent(base + size, whole - base - size, "behind", whole - base - size)
        self._note("a vacuum in place is not complete", 0)

    def _content(self) -> Iterator[Extent]:
        position = self._start
        try:
            self._index = {table.offset for table in chain_of(self._read, self._size)}
        except CorruptionError as error:
            self._note(error.problem, error.offset or 0)
            self.damaged = True
        if not position:
            position = min(frame.FIRST_ENTRY, self._size)
            yield Extent(0, position, "header", position)
        while self.tail is None and position < self._size:
            stop = position
            for extent in self._window(position):
                yield extent
                stop = extent.offset + extent.size
            if stop == position:
                yield from self._recover(position)
                break
            position = stop
            self._pace.at(position)
        if self.tail is None:
            self._note("there is no terminator", self._size)

    def _note(self, problem: str, offset: int) -> None:
        if not self.problem:
            self.problem, self.problem_offset = problem, offset

    def _window(self, start: int) -> Iterator[Extent]:
        """Yield the extents that begin in one window, from the entry or terminator at `start` on."""
        window = self._read(start, min(start + _WINDOW_SIZE, self._size))
        at = first = number = 0
        kind = ""
        broken = -1
        while (end := self._end_of(window, start, at)) > at:
            key_size = window[at + 10]
            if end <= len(window):
                flag = window[end - 2 : end - 1]
            else:
                flag = self._read(start + end - 2, start + end - 1)
            found = "live" if flag == _LIVE else "dead"
            if flag != _LIVE and key_size and not window[at + HEAD_SIZE]:
                stored = window[at + HEAD_SIZE : at + HEAD_SIZE + key_size]
                if stored == frame.BATCH_KEY and self._breaks_off(start + at):
                    broken = start + at
                    break
                found = self._kind(stored, start + at, end - at)
            if found != kind:
                if number:
                    yield Extent(start + first, at - first, kind, at - first, number)
                kind, first, number = found, at, 0
            number += 1
            at = end
        if number:
            yield Extent(start + first, at - first, kind, at - first, number)
        if broken >= 0:
            self._note("a batch breaks off", broken)
            yield Extent(broken, self._size - broken, "behind", self._size - broken)
        elif window.startswith(TERMINATOR, at):
            yield from self._end(start + at)

    def _end_of(self, window: bytes, start: int, at: int) -> int:
        """Return where the entry at a place of a window ends; 0 if none does that is known there."""
        size = len(window)
        if at + HEAD_SIZE > size:
            return 0
        tag, count, opcode, key_size = _unpack_head(window, at)
        end: int = at + 9 + count
        if tag != 0x95 or opcode != 0x8C or count < key_size + 11:
            return 0
        if end <= size:
            trailer = window[end - 8 : end]
        elif at or start + end > self._size:
            return 0  # in the next window, perhaps
        else:
            trailer = self._read(start + end - 8, start + end)
        # BININT memo POP flag POP
        sound = trailer[0] == 0x4A and trailer[5] == trailer[7] == 0x30 and trailer[6] in _FLAGS
        return end if sound else 0

    def _breaks_off(self, offset: int) -> bool:
        """Whether a sound head of a batch tells of more bytes than the file has."""
        start = offset + HEAD_SIZE + len(frame.BATCH_KEY)
        value = self._read(start, start + 18)
        if len(value) < 18 or not value.startswith(_BATCH_VALUE):
            return False
        if offset + frame.BATCH_ENTRY.unpack(value[2:])[0] <= self._size:
            return False
        return isinstance(next(iter(Recovery(self._read, self._size, offset)), None), Entry)

    def _kind(self, stored: bytes, offset: int, size: int) -> str:
        """Return the kind of an entry with a reserved key."""
        if stored == frame.SUPERBLOCK_KEY:
            return "header"
        if stored == frame.INDEX_KEY and any(
            offset <= table < offset + size for table in self._index
        ):
            return "index"
        return "dead"

    def _end(self, tail: int) -> Iterator[Extent]:
        self.tail = tail
        stop = tail + TERMINATOR_SIZE
        yield Extent(tail, TERMINATOR_SIZE, "end", TERMINATOR_SIZE)
        if stop < self._size:
            yield Extent(stop, self._size - stop, "behind", self._size - stop)

    # Damage -----------------------------------------------------------------------------------

    def _recover(self, position: int) -> Iterator[Extent]:
        """Yield what there is from the place on where the chain of entries breaks."""
        recovery = Recovery(self._read, self._size, position)
        held: Gap | None = None  # a gap is damage only if something follows it
        for found in recovery:
            if held is not None:
                yield self._damage(held)
            held = None
            if isinstance(found, Gap):
                self._note(found.problem, found.start)
                held = found
                self._pace.at(found.stop)
                continue
            size = found.end - found.offset
            kind = "live" if found.flag == LIVE else "dead"
            if found.key is None:
                kind = self._kind(found.stored, found.offset, size)
            yield Extent(found.offset, size, kind, size)
            self._pace.at(found.end)
        if recovery.tail is not None:
            if held is not None:
                yield self._damage(held)
            yield from self._end(recovery.tail)
        elif held is not None:
            size = held.stop - held.start
            yield Extent(held.start, size, "behind", size)

    def _damage(self, gap: Gap) -> Extent:
        self.damaged = True
        if gap.entry is not None:
            kind = "live" if gap.entry.flag == LIVE else "dead"
            return Extent(gap.start, gap.stop - gap.start, kind, gap.stop - gap.start)
        return Extent(gap.start, gap.stop - gap.start, "damage", gap.stop - gap.start)
