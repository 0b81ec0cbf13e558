"""Find the entries of a damaged file again: fsck's eyes.

`Recovery` walks the chain of entries as `Scan` does, believes nothing, and does not stop where the
chain breaks:

* an entry that is not sound, but whose head tells where it ends, ends there if the chain goes on
  there (with a sound entry, or the terminator);
* else entry heads are searched for, byte by byte.  An entry found that way must be sound as a
  whole: right CRC-32, or for entries of mmappickle a value that is `wellformed`.  Bytes within a
  damaged value that are such an entry (a copy of another file, say) cannot be told from one;
* what lies between is a `Gap`, and `mend` tells what makes an entry of it where that is possible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import HEAD_SIZE, TERMINATOR, TERMINATOR_SIZE, TRAILER_SIZE
from pmshelve.mmapdict.mend import Poke, mend
from pmshelve.mmapdict.scan import Entry, Irregular
from pmshelve.mmapdict.soundness import Walker, find_unsoundness
from pmshelve.storage.binary import U64

if TYPE_CHECKING:
    from pmshelve.mmapdict.frame import Read

__all__ = ["Gap", "Recovery"]

_CHUNK_SIZE: Final = 1 << 18
_SMALL_SIZE: Final = 1 << 12
_TERMINATORS_MAX: Final = 8
# The two high bytes of the size are zero in any file there is.
_HEAD: Final = re.compile(rb"(?=\x95.{6}\0\0\x8c)", re.DOTALL)


@dataclass(frozen=True)
class Gap:
    """A range that is not a sound entry.

    Attributes
    ----------
    start, stop
        The range, in bytes from the file's start.
    problem, invariant
        What is wrong at `start`.
    pokes
        What makes the range one sound entry again; None where nothing does.
    entry
        That entry.
    """

    start: int
    stop: int
    problem: str
    invariant: str
    pokes: tuple[Poke, ...] | None = None
    entry: Entry | None = None


class _Reader:
    """`read` with a window, for many small reads near each other; counts what it reads."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size
        self._base = 0
        self._window = b""
        self.spent = 0

    def __call__(self, start: int, stop: int) -> bytes:
        """Return the bytes between two offsets; fewer at the file's end."""
        at = start - self._base
        size = stop - start
        if at >= 0 and at + size <= len(self._window):
            self.spent += max(size, 0)
            return self._window[at : at + size]
        return self._read_more(max(start, 0), min(stop, self._size))

    def _read_more(self, start: int, stop: int) -> bytes:
        size = max(stop - start, 0)
        self.spent += size
        if size > _CHUNK_SIZE // 4:
            return self._read(start, stop)
        # A little of what lies before: trailers are read after heads.
        self._base = max(start - _SMALL_SIZE, 0)
        self._window = self._read(self._base, min(self._base + _CHUNK_SIZE, self._size))
        at = start - self._base
        return self._window[at : at + size]


class Recovery:
    """Iterate over the sound entries of a file, and over the gaps between them.

    Parameters
    ----------
    read
        Returns the file's bytes between two offsets, fewer at its end.
    size
        The file's size.
    start
        Where the first entry is.

    Attributes
    ----------
    tail
        Once the iteration has ended: the terminator's offset, or None if there is none.
    end
        The offset behind the last entry, or mendable gap: where a terminator should be.

    Notes
    -----
    Time is linear in the size, in memory of a fixed size, whatever the bytes.  A search that
    validated more than sixteen times the file's size (a file made to provoke that) goes on with
    small entries only.
    """

    def __init__(self, read: Read, size: int, start: int = frame.FIRST_ENTRY) -> None:
        self.read = _Reader(read, size)
        self.tail: int | None = None
        self.end = start
        self._size = size
        self._walker = Walker(self.read, start, size)
        self._searched = False
        self._sound_at = -1
        self._budget = 16 * size

    def __iter__(self) -> Iterator[Entry | Gap]:
        position: int | None = self.end
        while position is not None:
            found = self._step(position)
            if found is None:
                return
            if isinstance(found, Gap):
                position = found.stop if found.stop < self._size else None
                if position is not None or found.pokes is not None:
                    self.end = found.stop
            else:
                position = self.end = found.end
            yield found

    def _step(self, position: int) -> Entry | Gap | None:
        """Return what begins at `position`; None for the end."""
        try:
            entry = self._walker.at(position)
        except Irregular as error:
            if position >= self._size:
                return None
            return self._gap(position, error.problem, error.invariant)
        if entry is None:
            return self._terminator(position)
        fault = None if position == self._sound_at else find_unsoundness(self.read, entry)
        return entry if fault is None else self._gap(position, *fault)

    def _terminator(self, position: int) -> Gap | None:
        """Believe a terminator, unless the way to it was searched for and entries follow."""
        if self._searched:
            following = self._find(position + TERMINATOR_SIZE, self._size)
            if following is not None:
                return Gap(position, following, "a terminator stands amid the entries", "L1")
        self.tail = position
        return None

    # Gaps -------------------------------------------------------------------------------------

    def _gap(self, position: int, problem: str, invariant: str) -> Gap:
        stop = self._size
        for stop in self._stops(position):
            mended = mend(self.read, position, stop)
            if mended is not None:
                return Gap(position, stop, problem, invariant, *mended)
        return Gap(position, stop, problem, invariant)

    def _stops(self, position: int) -> Iterator[int]:
        """Yield where what begins at `position` may end, likeliest first; the last is a fallback."""
        head = self.read(position, position + HEAD_SIZE)
        if len(head) == HEAD_SIZE:
            stop = position + 9 + U64.unpack_from(head, 1)[0]
            if position + HEAD_SIZE < stop <= self._size and self._joins(stop):
                yield stop
                # The size may be wrong, and lead over entries to the end of another one.
                following = self._find(position + 1, stop)
                if following is not None and self._leads(following, stop):
                    yield following
                return
        if position == frame.FIRST_ENTRY and self._joins(frame.SUPERBLOCK_END):
            yield frame.SUPERBLOCK_END
            return
        self._searched = True
        following = self._find(position + 1, self._size)
        if following is not None:
            yield following
        else:
            yield from self._terminators(position + 1)

    def _leads(self, position: int, stop: int) -> bool:
        """Whether sound entries lead from `position` to `stop`.

        They do not where the first one is part of a value: that ends before its entry does.
        """
        while position < stop and self._is_sound(position):
            position += 9 + U64.unpack(self.read(position + 1, position + 9))[0]
        return position == stop

    def _joins(self, position: int) -> bool:
        """Whether the chain can go on at `position`."""
        if position == self._size:
            return True
        try:
            entry = self._walker.at(position)
        except Irregular:
            return False
        if entry is None:
            return True
        if find_unsoundness(self.read, entry) is not None:
            return False
        self._sound_at = position
        return True

    def _find(self, start: int, limit: int) -> int | None:
        """Return where the next sound entry begins that ends at or before `limit`."""
        chunk_size = _SMALL_SIZE
        while start < limit:
            window = self.read(start, start + chunk_size + HEAD_SIZE - 2)
            for match in _HEAD.finditer(window):
                size = 9 + U64.unpack_from(window, match.start() + 1)[0]
                position = start + match.start()
                if size > _SMALL_SIZE and self.read.spent > self._budget:
                    continue
                if position + size <= limit and self._is_sound(position):
                    return position
            start += chunk_size
            chunk_size = min(2 * chunk_size, _CHUNK_SIZE)
        return None

    def _is_sound(self, position: int) -> bool:
        """Whether a sound entry begins at `position`; quick where not even its ends look like it."""
        head = self.read(position, position + HEAD_SIZE)
        if len(head) < HEAD_SIZE or head[9] != 0x8C:
            return False
        end = position + 9 + U64.unpack_from(head, 1)[0]
        trailer = self.read(end - TRAILER_SIZE, end) if end <= self._size else b""
        if len(trailer) < TRAILER_SIZE or not frame.is_trailer(trailer):
            return False
        return self._joins(position) and self._sound_at == position

    def _terminators(self, start: int) -> Iterator[int]:
        """Yield the offsets of some terminators, and at last the file's size."""
        count = 0
        for chunk in range(start, self._size, _CHUNK_SIZE):
            window = self.read(chunk, chunk + _CHUNK_SIZE + TERMINATOR_SIZE - 1)
            at = window.find(TERMINATOR)
            while at >= 0 and count < _TERMINATORS_MAX:
                count += 1
                yield chunk + at
                at = window.find(TERMINATOR, at + 1)
        yield self._size
