"""Extents: what lies where in a file, as the stores tell it to whoever draws or counts it.

A store yields its extents in file order, with no gap and no overlap.  `split_holes` then takes out
of them what has no disk blocks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["HOLE", "Extent", "disk_size", "holes", "split_holes"]

HOLE = "hole"
"""Kind of a range that has no disk blocks, whatever it belongs to."""

_BLOCK = 512  # the unit of st_blocks


class Extent(NamedTuple):
    """A range of a file, or several of a kind that are neighbours.

    Attributes
    ----------
    offset, size
        Where, in bytes.
    kind
        What lies there; the words are the store's.
    used
        Bytes of it that hold something, spread all over it.
    number
        How many there are.
    size_class
        Of a slab; else -1.
    """

    offset: int
    size: int
    kind: str
    used: int
    number: int = 1
    size_class: int = -1


def disk_size(fd: int) -> int:
    """Return the bytes of disk that an open file takes."""
    return os.fstat(fd).st_blocks * _BLOCK


def holes(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the ranges of an open file that have no disk blocks, in order.

    Moves the descriptor's position.  Nothing is yielded where the system cannot tell.
    """
    seek_data = getattr(os, "SEEK_DATA", None)
    position = 0
    while seek_data is not None and position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_HOLE)
        except OSError:
            return
        if start >= size:
            return
        try:
            stop = os.lseek(fd, start, seek_data)
        except OSError:  # ENXIO: nothing but a hole up to the end
            stop = size
        yield start, min(stop, size)
        position = stop


def split_holes(extents: Iterable[Extent], gaps: Iterable[tuple[int, int]]) -> Iterator[Extent]:
    """Yield extents, with those ranges of them that lie in `gaps` as extents of the kind `HOLE`.

    What an extent holds lies in the rest of it, evenly; that it is one, or many, is for the first
    part to tell that is no hole.

    Parameters
    ----------
    gaps
        (start, stop) of ranges, in order.
    """
    ahead = _Gaps(gaps)
    for extent in extents:
        pieces: Iterable[tuple[int, int, bool]] = ahead.cut(extent.offset, extent.size)
        room = extent.size
        if 0 < extent.used < extent.size:
            pieces = list(pieces)
            room = sum(size for _, size, is_hole in pieces if not is_hole)
        number = extent.number
        for offset, size, is_hole in pieces:
            if is_hole:
                yield Extent(offset, size, HOLE, 0, 0)
                continue
            used = min(extent.used * size // room, size)
            yield extent._replace(offset=offset, size=size, used=used, number=number)
            number = 0


class _Gaps:
    """Ranges to be cut out of others; both in order."""

    def __init__(self, gaps: Iterable[tuple[int, int]]) -> None:
        self._ahead = iter(gaps)
        self._start = self._stop = 0

    def cut(self, offset: int, size: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, size, whether it is in a gap) of the pieces of a range."""
        end = offset + size
        while offset < end:
            while self._stop <= offset:
                self._start, self._stop = next(self._ahead, (sys.maxsize, sys.maxsize))
            is_hole = self._start <= offset
            stop = min(self._stop if is_hole else self._start, end)
            yield offset, stop - offset, is_hole
            offset = stop
