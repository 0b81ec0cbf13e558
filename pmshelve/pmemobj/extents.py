"""What lies where in a pool file.

superblock  both copies
journal     the records in it
journal room  the rest of it
table       the heap's root and the page table
slab        blocks of one size class, of which some are used
run         one large block
free        free pages
behind      what lies behind the pool's end: a large record, or room that was never used
damage      pages that the page table cannot account for
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.layout import JOURNAL_OFFSET, PAGE, RUN_DATA, SLAB_DATA
from pmshelve.pmemobj.pagetable import FREE, ROOT, RUN, SLAB, TABLE
from pmshelve.pmemobj.sizeclass import BLOCK_COUNTS, BLOCK_SIZES, SLAB_PAGES
from pmshelve.storage.extent import Extent
from pmshelve.storage.progress import Pace, Progress

if TYPE_CHECKING:
    from pmshelve.pmemobj.peek import Peek

__all__ = ["KINDS", "Walk"]

KINDS = (
    "superblock",
    "journal",
    "journal room",
    "table",
    "slab",
    "run",
    "free",
    "behind",
    "damage",
)

_NAMES = {FREE: "free", RUN: "run", SLAB: "slab", TABLE: "table", ROOT: "table"}

_unpack_two = struct.Struct("<QQ").unpack_from


class Walk:
    """Iterate over the extents of a file.

    Parameters
    ----------
    peek
        The file.
    blocks
        Look at every block, too.
    progress
        Called with the bytes gone through, of the file's.

    Attributes
    ----------
    blocks
        With `blocks`: (header's offset, header, first word) of each block of the last extent.
    problem, problem_offset
        The first thing that is wrong, or ""; where that is.

    Notes
    -----
    Costs some 5 µs an extent; with `blocks`, 1.5 µs a block more.
    """

    def __init__(
        self, peek: Peek, *, blocks: bool = False, progress: Progress | None = None
    ) -> None:
        self._peek = peek
        self._wants_blocks = blocks
        self._pace = Pace(progress, peek.end)
        self.blocks: list[tuple[int, int, int]] = []
        self.problem = ""
        self.problem_offset = 0

    def __iter__(self) -> Iterator[Extent]:
        peek = self._peek
        block = peek.block
        yield Extent(0, JOURNAL_OFFSET, "superblock", JOURNAL_OFFSET)
        used = min(peek.found.tail[0], block.journal_size)
        if used:
            yield Extent(JOURNAL_OFFSET, used, "journal", used, len(peek.found.records))
        if used < block.journal_size:
            yield Extent(JOURNAL_OFFSET + used, block.journal_size - used, "journal room", 0, 0)
        stop = start = block.heap_offset
        try:
            for extent in self._heap(start):
                yield extent
                stop = extent.offset + extent.size
                self._pace.at(stop)
        except CorruptionError as error:
            self._note(error.problem, error.offset or 0)
        if stop < peek.size:
            self._note("pages belong to no extent", stop)
            yield Extent(stop, peek.size - stop, "damage", 0)
        if peek.end > peek.size:
            yield Extent(peek.size, peek.end - peek.size, "behind", peek.end - peek.size)
        self._pace.end()

    def _note(self, problem: str, offset: int) -> None:
        if not self.problem:
            self.problem, self.problem_offset = problem, offset

    def _heap(self, start: int) -> Iterator[Extent]:
        total = self._peek.page_count()
        following = 0  # the first page that is not accounted for
        for page, entry in self._peek.entries():
            if page < following:
                continue
            kind, count, number = entry & 15, entry >> 12, entry >> 4 & 255
            if (
                kind not in _NAMES
                or not 0 < count <= total - page
                or not _fits(kind, count, number)
            ):
                continue
            if following < page:
                yield self._lost(start, following, page)
            yield self._extent(start + page * PAGE, count, kind, number)
            following = page + count
        if following < total:
            yield self._lost(start, following, total)

    def _lost(self, start: int, first: int, last: int) -> Extent:
        offset = start + first * PAGE
        self._note(f"{last - first} pages belong to no extent", offset)
        return Extent(offset, (last - first) * PAGE, "damage", 0)

    def _extent(self, offset: int, count: int, kind: int, number: int) -> Extent:
        size = count * PAGE
        self.blocks.clear()
        if kind == SLAB:
            used = self._slab(offset, number)
            return Extent(offset, size, "slab", used * BLOCK_SIZES[number], size_class=number)
        if kind == RUN and self._wants_blocks:
            header, word = self._peek.words(offset + RUN_DATA - 8, 2)
            self.blocks.append((offset + RUN_DATA - 8, header, word))
        return Extent(offset, size, _NAMES[kind], 0 if kind == FREE else size)

    def _slab(self, offset: int, number: int) -> int:
        """Return the used blocks of a slab."""
        blocks = BLOCK_COUNTS[number]
        size = SLAB_PAGES[number] * PAGE if self._wants_blocks else SLAB_DATA
        data = self._peek.read(offset, size)
        bits = int.from_bytes(data[8:SLAB_DATA], "little") & ((1 << blocks) - 1)
        used = bits.bit_count()
        while bits and self._wants_blocks:
            lowest = bits & -bits
            at = SLAB_DATA + (lowest.bit_length() - 1) * BLOCK_SIZES[number]
            header, word = _unpack_two(data, at)
            self.blocks.append((offset + at, header, word))
            bits ^= lowest
        return used


def _fits(kind: int, count: int, number: int) -> bool:
    return kind != SLAB or (number < len(SLAB_PAGES) and SLAB_PAGES[number] == count)
