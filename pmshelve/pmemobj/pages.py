"""Free pages: taken, given back, added at the heap's end and cut off again.  (docs, "Heap", H3)

Free extents are in lists by page count (`bin_of`).  A request takes the best of those looked at, and
from it the lowest pages, so that what is free gathers at the end; what is given back becomes one
with its free neighbours.

When no extent is large enough the heap grows, by an eighth or by what is needed.  A page table that
becomes too small then moves to the first of the new pages, twice as large, and its old pages become
free.  `trim` goes the other way.
"""

from __future__ import annotations

from collections.abc import Callable

from pmshelve.errors import NoSpaceError
from pmshelve.pmemobj.layout import (
    BIN_COUNT,
    PAGE,
    ROOT_PAGE_COUNT,
    ROOT_TABLE,
    ROOT_TABLE_CAPACITY,
)
from pmshelve.pmemobj.memory import Memory
from pmshelve.pmemobj.pagetable import (
    ENTRIES,
    ENTRY,
    FREE,
    FREE_END,
    PAGES_MAX,
    RUN,
    TABLE,
    PageTable,
)
from pmshelve.pmemobj.sizeclass import bin_of

__all__ = ["Pages", "claim"]

_GROWTH_MIN = (1 << 20) // PAGE
_LOOK_MAX = 16
"""Free extents of one bin that a request compares."""


def claim(memory: Memory, first: int, end: int) -> None:
    """Make a range known before it is stored into, whose pages held nothing until now."""
    low, high = first & -PAGE, (end + PAGE - 1) & -PAGE
    if high - low >= memory.fresh_min and memory.is_untouched(low, high - low):
        memory.add_fresh(low, high - low)
    else:
        memory.snapshot(first, end - first)


class Pages(PageTable):
    """The page table, and who gets the pages that are free.

    Attributes
    ----------
    extend
        Called with the bytes that the whole file needs; it may raise `NoSpaceError`.
    prepare
        Called with offset and size of free pages that are about to be taken; it may raise
        `NoSpaceError`.
    """

    __slots__ = ("extend", "prepare")

    def __init__(self, memory: Memory, start: int, path: object = None) -> None:
        super().__init__(memory, start, path)
        self.extend: Callable[[int], None] = _no_growth
        self.prepare: Callable[[int, int], None] = _nothing

    # Taking and giving --------------------------------------------------------------------------

    def take(self, count: int, word: int, look: int = _LOOK_MAX) -> int:
        """Take `count` neighbouring pages, lowest first, and write `word` to the first's entry.

        Returns 0 where no free extent is that large, or none of those looked at: `look` bounds the
        search of extents that are about as large.
        """
        page = self._find(count, look)
        if page:
            self.prepare(self.start + page * PAGE, count * PAGE)
            self._cut(page, count, word)
        return page

    def _find(self, count: int, look: int = _LOOK_MAX) -> int:
        """Return the first page of the best free extent for `count` pages, or 0."""
        number = bin_of(count)
        for page in self._words[self._bins + number : self._bins + BIN_COUNT]:
            if page:
                best = self._best(page, count, look)
                if best:
                    return best
        return 0

    def _best(self, page: int, count: int, look: int) -> int:
        """Return the smallest fitting one of the first extents of a bin, or 0."""
        words = self._words
        links = (words[self._root + ROOT_TABLE] >> 3) + 1
        best = best_size = 0
        for _ in range(look):
            size = self._free_size(page)
            if size == count:
                return page
            if size > count and (size < best_size or not best):
                best, best_size = page, size
            page = words[links + 2 * page] >> 32
            if not page:
                break
        return best

    def _free_size(self, page: int) -> int:
        """Return the pages of the free extent that begins at a page."""
        total = self.count()
        entry = self.entry(page) if page < total else 0
        size = entry >> 12
        if entry & 15 != FREE or not 0 < size <= total - page:
            self.damaged(f"page {page} is in a list of free pages, but not free", self.start, "H3")
        return size

    def _cut(self, page: int, count: int, word: int = 0) -> None:
        """Take the first `count` pages of the free extent at `page`; all entries 0 but `word`."""
        size = self._free_size(page)
        self.unlink(self._bins + bin_of(size), page)
        self.set(page, word)
        if size > count:
            self._set_free(page + count, size - count)
        elif size > 1:
            self.set(page + size - 1, 0)

    def _set_free(self, page: int, count: int) -> None:
        """Write and list a free extent."""
        self.set(page, FREE | count << 12)
        if count > 1:
            self.set(page + count - 1, FREE_END | (count - 1) << 12)
        self.link(self._bins + bin_of(count), page)

    def give(self, page: int, count: int) -> None:
        """Give back `count` pages, whose entries are 0, save that of the first."""
        self.memory.note_freed(self.start + page * PAGE, count * PAGE)
        self._add_free(page, count)

    def _add_free(self, page: int, count: int) -> None:
        """Make pages free, together with free neighbours."""
        before = self._free_before(page)
        behind = page + count
        if before:
            self._cut_all(page - before)
            self.set(page, 0)
        if behind < self.count() and self.entry(behind) & 15 == FREE:
            count += self._cut_all(behind)
        self._set_free(page - before, before + count)

    def _cut_all(self, page: int) -> int:
        """Unlist the free extent at a page and clear its entries; return its pages."""
        size = self._free_size(page)
        self._cut(page, size)
        return size

    def _free_before(self, page: int) -> int:
        """Return the pages of the free extent that ends before a page; 0 where none does."""
        entry = self.entry(page - 1)
        kind = entry & 15
        if kind == FREE:
            size = 1
        elif kind == FREE_END:
            size = (entry >> 12) + 1
        else:
            return 0
        if size >= page or self._free_size(page - size) != size:
            self.damaged(f"the free pages before page {page} do not agree", self.start, "H3")
        return size

    def free_runs(self, count: int) -> list[tuple[int, int]]:
        """Return (offset, size) in bytes of the free extents of `count` pages and more, in order."""
        words = self._words
        links = (words[self._root + ROOT_TABLE] >> 3) + 1
        runs = []
        for page in words[self._bins + bin_of(count) : self._bins + BIN_COUNT]:
            while page:
                runs.append((self.start + page * PAGE, self._free_size(page) * PAGE))
                page = words[links + 2 * page] >> 32
                if len(runs) > self.count():
                    self.damaged("a list of free pages does not end", self.start, "H3")
        runs.sort()
        return runs

    # Runs that change their size ----------------------------------------------------------------

    def grow_run(self, page: int, count: int, more: int) -> bool:
        """Add the `more` pages behind a run to it; False where they are not to be had."""
        behind = page + count
        total = self.count()
        free = self._free_size(behind) if behind < total and self.entry(behind) & 15 == FREE else 0
        if free < more and behind + free == total:
            try:
                self.grow(more)
            except NoSpaceError:
                return False
            free = self._free_size(behind) if self.entry(behind) & 15 == FREE else 0
        if free < more:
            return False
        self.prepare(self.start + behind * PAGE, more * PAGE)
        self._cut(behind, more)
        self.set(page, RUN | (count + more) << 12)
        return True

    def shrink_run(self, page: int, count: int) -> None:
        """Give back the pages of a run behind its first `count`."""
        old = self.entry(page) >> 12
        self.set(page, RUN | count << 12)
        self.give(page + count, old - count)

    # The heap's end -----------------------------------------------------------------------------

    def grow(self, count: int) -> None:
        """Add pages, so that there are at least `count` free ones at the end."""
        total = self.count()
        capacity = self._words[self._root + ROOT_TABLE_CAPACITY]
        need = count - self._free_before(total)
        modest = max(need, _GROWTH_MIN, total >> 3)
        if total + need <= capacity:
            modest = min(modest, capacity - total)  # the table stays, and so the end is free
        added, table_capacity = self._plan(total, modest, count)
        try:
            self.extend(self.start + (total + added) * PAGE)
        except NoSpaceError:
            if modest == need:
                raise
            added, table_capacity = self._plan(total, need, count)
            self.extend(self.start + (total + added) * PAGE)
        self._append(total, added, table_capacity if table_capacity != capacity else 0)

    def _plan(self, total: int, wanted: int, count: int) -> tuple[int, int]:
        """Return the pages to add, those of a new table included, and the table's capacity."""
        capacity = self._words[self._root + ROOT_TABLE_CAPACITY]
        if total + wanted > capacity:
            wanted = max(wanted, count)  # the free pages at the end are not next to the new ones
            while total + wanted + capacity // ENTRIES > capacity:
                capacity *= 2
            wanted += capacity // ENTRIES
        if total + wanted > PAGES_MAX:
            raise MemoryError(f"a heap has at most {PAGES_MAX} pages of {PAGE} bytes")
        return wanted, capacity

    def _append(self, total: int, added: int, table_capacity: int) -> None:
        """Make pages behind the heap's end its own; with a capacity, move the table there."""
        table_pages = table_capacity // ENTRIES
        if table_pages:
            old_page, old_pages = self._copy_table(total, table_capacity)
        self._set_count(total + added)
        if table_pages:
            self.set(total, TABLE | table_pages << 12)
            self.give(old_page, old_pages)
        self._add_free(total + table_pages, added - table_pages)

    def _set_count(self, count: int) -> None:
        at = self._root + ROOT_PAGE_COUNT
        self.memory.snapshot(at << 3, 8)
        self._words[at] = count

    def _copy_table(self, page: int, capacity: int) -> tuple[int, int]:
        """Copy the table to other pages and use it there; return its old first page and pages."""
        words, memory = self._words, self.memory
        at = self._root + ROOT_TABLE
        old = words[at]
        old_pages = words[at + 1] // ENTRIES
        new = self.start + page * PAGE
        used = self.count() * ENTRY
        claim(memory, new, new + capacity * ENTRY)
        memory.map[new : new + used] = memory.map[old : old + used]
        memory.map[new + used : new + capacity * ENTRY] = bytes(capacity * ENTRY - used)
        memory.snapshot(at << 3, 16)
        words[at] = new
        words[at + 1] = capacity
        return (old - self.start) // PAGE, old_pages

    def trim(self, floor: int) -> int:
        """Cut free pages off the end, but keep `floor` pages; return the pages left."""
        self._shrink(floor)
        while self._shorten_table() or self._lower_table(floor):
            self._shrink(floor)
        return self.count()

    def _shorten_table(self) -> bool:
        """Give back the end of a table that was made for a heap twice as large."""
        words = self._words
        at = self._root + ROOT_TABLE
        page, pages = (words[at] - self.start) // PAGE, words[at + 1] // ENTRIES
        enough = -(-self.count() // ENTRIES)
        if pages <= 2 * enough:
            return False
        self.memory.snapshot((at + 1) << 3, 8)
        words[at + 1] = enough * ENTRIES
        self.set(page, TABLE | enough << 12)
        self.give(page + enough, pages - enough)
        return True

    def _lower_table(self, floor: int) -> bool:
        """Move a table that alone keeps the heap's end where it is."""
        words = self._words
        at = self._root + ROOT_TABLE
        page, pages = (words[at] - self.start) // PAGE, words[at + 1] // ENTRIES
        if page + pages < self.count() or page + pages <= floor:
            return False
        try:
            lower = self.take(pages, TABLE | pages << 12)
        except NoSpaceError:
            return False
        if not lower:
            return False
        self._copy_table(lower, pages * ENTRIES)
        self.give(page, pages)
        return True

    def _shrink(self, floor: int) -> None:
        count = self.count()
        free = self._free_before(count)
        kept = max(count - free, floor)
        if kept < count:
            self._cut_all(count - free)
            self._set_count(kept)
            if kept > count - free:
                self._set_free(count - free, kept - (count - free))


def _nothing(*_: int) -> None:
    return None


def _no_growth(size: int) -> None:
    raise NoSpaceError(f"the heap cannot grow to {size} bytes")
