"""Walk a heap: its extents, its blocks, and each broken invariant.  (docs/format-pmemobj.md, H1-H6)

Everything goes by the page table, from page 0 on, and changes nothing.  `problems` takes nothing for
granted but the root (H1) and ends on any content whatever; the other functions are for a sound heap
and skip what they cannot make sense of.
"""

from __future__ import annotations

from collections.abc import Iterator

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.layout import (
    BIN_COUNT,
    CLASS_COUNT_MAX,
    PAGE,
    ROOT_BINS,
    ROOT_CLASSES,
    ROOT_TABLE,
    ROOT_TABLE_CAPACITY,
    RUN_DATA,
    SLAB_DATA,
    TYPE_NUM_SHIFT,
)
from pmshelve.pmemobj.pagetable import (
    FREE,
    FREE_END,
    INTERIOR,
    ROOT,
    RUN,
    SLAB,
    SLAB_INTERIOR,
    TABLE,
    PageTable,
)
from pmshelve.pmemobj.sizeclass import (
    BLOCK_COUNTS,
    BLOCK_SIZES,
    RUN_CLASS,
    SLAB_BITMAPS,
    SLAB_HEADS,
    SLAB_PAGES,
    bin_of,
    class_of,
    run_pages,
)

__all__ = ["blocks", "extents", "free_bytes", "page_counts", "problems", "used_bytes"]

_SIZE_MASK = (1 << TYPE_NUM_SHIFT) - 1
_NAMES = {FREE: "free", RUN: "run", SLAB: "slab", TABLE: "table", ROOT: "root"}

Problem = tuple[str, int, str]


# Walking --------------------------------------------------------------------------------------


def _walk(table: PageTable) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first page, pages, kind, class) of each extent."""
    page, total = 0, table.count()
    while page < total:
        entry = table.entry(page)
        kind, count = entry & 15, entry >> 12
        if kind not in _NAMES or not 0 < count <= total - page:
            page += 1  # damaged
            continue
        number = entry >> 4 & 255
        if kind != SLAB or (number < len(SLAB_PAGES) and SLAB_PAGES[number] == count):
            yield page, count, kind, number
        page += count


def _bitmap(table: PageTable, page: int, number: int) -> int:
    """Return the bits of a slab's used blocks."""
    at = table.start + page * PAGE + 8
    bits = int.from_bytes(table.memory.map[at : at + 32], "little")
    return bits & ((1 << BLOCK_COUNTS[number]) - 1)


def _used_blocks(table: PageTable, page: int, number: int) -> Iterator[int]:
    """Yield the offset of the header of each of a slab's blocks."""
    bits = _bitmap(table, page, number)
    offset = table.start + page * PAGE + SLAB_DATA
    size = BLOCK_SIZES[number]
    while bits:
        lowest = bits & -bits
        yield offset + (lowest.bit_length() - 1) * size
        bits ^= lowest


def _count_bits(bits: int) -> int:
    return bits.bit_count()


def blocks(table: PageTable) -> Iterator[tuple[int, int, int]]:
    """Yield (offset of the data, size, type number) of each block."""
    words = table.memory.words
    for page, _, kind, number in _walk(table):
        if kind == SLAB:
            for offset in _used_blocks(table, page, number):
                header = words[offset >> 3]
                yield offset + 8, header & _SIZE_MASK, header >> TYPE_NUM_SHIFT
        elif kind == RUN:
            offset = table.start + page * PAGE + RUN_DATA
            header = words[(offset - 8) >> 3]
            yield offset, header & _SIZE_MASK, header >> TYPE_NUM_SHIFT


def extents(table: PageTable) -> Iterator[tuple[int, int, str, str]]:
    """Yield (offset, size, kind, detail) of each extent."""
    for page, count, kind, number in _walk(table):
        offset = table.start + page * PAGE
        detail = ""
        if kind == SLAB:
            used = _count_bits(_bitmap(table, page, number))
            detail = f"{used} of {BLOCK_COUNTS[number]} blocks of {BLOCK_SIZES[number]} bytes"
        elif kind == RUN:
            header = table.memory.words[(offset + RUN_DATA - 8) >> 3]
            detail = f"{header & _SIZE_MASK} bytes of type {header >> TYPE_NUM_SHIFT}"
        yield offset, count * PAGE, _NAMES[kind], detail


def page_counts(table: PageTable) -> dict[str, int]:
    """Return the pages of each kind of extent."""
    counts = dict.fromkeys(_NAMES.values(), 0)
    for _, count, kind, _ in _walk(table):
        counts[_NAMES[kind]] += count
    return counts


def used_bytes(table: PageTable) -> int:
    """Return the bytes that blocks take, whole runs included."""
    total = 0
    for page, count, kind, number in _walk(table):
        if kind == SLAB:
            total += _count_bits(_bitmap(table, page, number)) * BLOCK_SIZES[number]
        elif kind == RUN:
            total += count * PAGE
    return total


def free_bytes(table: PageTable) -> int:
    """Return the bytes of free pages and of free blocks."""
    total = 0
    for page, count, kind, number in _walk(table):
        if kind == SLAB:
            free = BLOCK_COUNTS[number] - _count_bits(_bitmap(table, page, number))
            total += free * BLOCK_SIZES[number]
        elif kind == FREE:
            total += count * PAGE
    return total


# Checking -------------------------------------------------------------------------------------


def problems(table: PageTable) -> Iterator[Problem]:
    """Yield (problem, offset, invariant) of each broken invariant."""
    try:
        table.check_root()
    except CorruptionError as error:
        yield error.problem, error.offset or table.start, error.invariant
        return
    yield from _Check(table).run()


class _Check:
    """One walk, and what it found for the lists to be compared with."""

    def __init__(self, table: PageTable) -> None:
        self.table = table
        self.words = table.memory.words
        self.total = table.count()
        root = table.start >> 3
        self.root = root
        self.entries = self.words[root + ROOT_TABLE]
        self.capacity = self.words[root + ROOT_TABLE_CAPACITY]
        self.free: dict[int, int] = {}  # page -> bin
        self.slabs: dict[int, int] = {}  # page -> class, of slabs with room
        self.empty: set[int] = set()

    def run(self) -> Iterator[Problem]:
        yield from self._extents()
        yield from self._lists(ROOT_BINS, BIN_COUNT, self.free, "free extent", "H3")
        yield from self._lists(ROOT_CLASSES, CLASS_COUNT_MAX, self.slabs, "slab with room", "H4")
        for page in self.empty:
            head = self.words[self.root + ROOT_CLASSES + self.slabs[page]]
            if head != page or self._links(page):
                yield "an empty slab is not the only one with room", self._at(page), "H5"

    def _at(self, page: int) -> int:
        return self.table.start + page * PAGE

    def _entry(self, page: int) -> int:
        return self.words[(self.entries >> 3) + 2 * page]

    def _links(self, page: int) -> int:
        return self.words[(self.entries >> 3) + 2 * page + 1]

    def _extents(self) -> Iterator[Problem]:
        page = 0
        before = INTERIOR
        while page < self.total:
            entry = self._entry(page)
            kind, count = entry & 15, entry >> 12
            if kind not in _NAMES or not 0 < count <= self.total - page:
                lost = page
                while page < self.total and (page == lost or self._entry(page) & 15 not in _NAMES):
                    page += 1
                yield f"{page - lost} pages belong to no extent", self._at(lost), "H2"
                before = INTERIOR
                continue
            if kind == FREE == before:
                yield "two free extents are neighbours", self._at(page), "H3"
            yield from self._extent(page, count, kind, entry >> 4 & 255)
            before = kind
            page += count
        unused = self.table.memory.map[
            self.entries + 16 * self.total : self.entries + 16 * self.capacity
        ]
        if any(unused):
            yield "the page table goes on behind the heap's last page", self.entries, "H2"

    def _extent(self, page: int, count: int, kind: int, number: int) -> Iterator[Problem]:
        offset = self._at(page)
        if kind != SLAB and number:
            yield f"a {_NAMES[kind]} extent has a size class", offset, "H2"
        table_page = (self.entries - self.table.start) // PAGE
        if (kind == ROOT) != (page == 0) or (kind == TABLE) != (page == table_page):
            yield f"a {_NAMES[kind]} extent is where none can be", offset, "H2"
        if kind not in (FREE, SLAB) and self._links(page):
            yield f"a {_NAMES[kind]} extent is in a list", offset, "H2"
        if self._interior(page, count) != self._interior_due(count, kind, number):
            which = "H3" if kind == FREE else "H2"
            yield f"the entries of a {_NAMES[kind]} extent do not agree", offset, which
        if kind == FREE:
            self.free[page] = bin_of(count)
        elif kind == SLAB:
            yield from self._slab(page, count, number)
        elif kind == RUN:
            size = self.words[(offset + RUN_DATA - 8) >> 3] & _SIZE_MASK
            if class_of(size) != RUN_CLASS or run_pages(size) != count:
                yield f"a block of {size} bytes in a run of {count} pages", offset, "H6"

    def _interior(self, page: int, count: int) -> bytes:
        return self.table.memory.map[
            self.entries + 16 * (page + 1) : self.entries + 16 * (page + count)
        ]

    @staticmethod
    def _interior_due(count: int, kind: int, number: int) -> bytes:
        if kind == SLAB:
            return b"".join(
                (SLAB_INTERIOR | number << 4 | delta << 12).to_bytes(16, "little")
                for delta in range(1, count)
            )
        if kind == FREE and count > 1:
            return bytes(16 * (count - 2)) + (FREE_END | (count - 1) << 12).to_bytes(16, "little")
        return bytes(16 * (count - 1))

    def _slab(self, page: int, count: int, number: int) -> Iterator[Problem]:
        offset = self._at(page)
        if number >= len(SLAB_PAGES) or SLAB_PAGES[number] != count:
            yield f"a slab of class {number} with {count} pages", offset, "H4"
            return
        if self.words[offset >> 3] != SLAB_HEADS[number]:
            yield "a slab's head is not that of its class", offset, "H4"
        bitmap = tuple(self.words[(offset >> 3) + 1 : (offset >> 3) + 5])
        surplus = SLAB_BITMAPS[number]
        if any(due & ~word for word, due in zip(bitmap, surplus, strict=True)):
            yield "a slab's bitmap says that blocks past its last are free", offset, "H4"
        used = _bitmap(self.table, page, number)
        if used + 1 != 1 << BLOCK_COUNTS[number]:
            self.slabs[page] = number
        elif self._links(page):
            yield "a full slab is in a list", offset, "H4"
        if not used:
            self.empty.add(page)
        for header in _used_blocks(self.table, page, number):
            size = self.words[header >> 3] & _SIZE_MASK
            if class_of(size) != number:
                yield f"a block of {size} bytes in a slab of class {number}", header, "H6"

    def _lists(
        self, heads: int, head_count: int, due: dict[int, int], what: str, invariant: str
    ) -> Iterator[Problem]:
        """Compare the lists with what should be in each."""
        seen: set[int] = set()
        for number in range(head_count):
            at = self.root + heads + number
            before, page = 0, self.words[at]
            while page:
                if due.get(page) != number or page in seen:
                    yield f"page {page} is no {what} of list {number}", at << 3, invariant
                    break
                seen.add(page)
                links = self._links(page)
                if links & 0xFFFFFFFF != before:
                    yield f"a {what} is linked wrongly", self._at(page), invariant
                before, page = page, links >> 32
        for page in due.keys() - seen:
            yield f"a {what} is in no list", self._at(page), invariant
