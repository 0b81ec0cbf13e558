"""The heap's pages: which extent each belongs to.  (docs/format-pmemobj.md, H1-H3)

The page table has two words a page, itself in a run of pages:

    word 0   bits  0-3    kind
             bits  4-11   size class, of slabs
             bits 12-63   count: pages of the extent, in its first entry; delta: pages back to the
                          first, in FREE_END and SLAB_INTERIOR
    word 1   bits  0-31   page before it in its list, 0 at the head
             bits 32-63   page after it, 0 at the tail; lists hold free extents, and slabs with room

    kind              where
    0 INTERIOR        pages of an extent other than its first, save the next two; both words 0
    1 FREE            first page of a free extent
    2 FREE_END        last page of a free extent of two pages and more
    3 RUN             first page of one block's own pages
    4 SLAB            first page of a slab
    5 SLAB_INTERIOR   other pages of a slab
    6 TABLE           first page of the page table
    7 ROOT            page 0

So a page's neighbours are all it takes to coalesce, and no stray address is taken for a block.

All of it is words in memory: rolled back, logged and replayed with whatever else a transaction did.
"""

from __future__ import annotations

from typing import NoReturn

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.layout import (
    HEAP_MAGIC,
    PAGE,
    ROOT_BINS,
    ROOT_CLASSES,
    ROOT_PAGE_COUNT,
    ROOT_TABLE,
    ROOT_TABLE_CAPACITY,
)
from pmshelve.pmemobj.memory import Memory
from pmshelve.pmemobj.sizeclass import bin_of

__all__ = [
    "ENTRIES",
    "ENTRY",
    "FREE",
    "FREE_END",
    "INTERIOR",
    "PAGES_MAX",
    "ROOT",
    "RUN",
    "SLAB",
    "SLAB_INTERIOR",
    "TABLE",
    "PageTable",
]

INTERIOR, FREE, FREE_END, RUN, SLAB, SLAB_INTERIOR, TABLE, ROOT = range(8)

ENTRY = 16
ENTRIES = PAGE // ENTRY
LOW = 0xFFFFFFFF
PAGES_MAX = LOW


class PageTable:
    """The pages of one heap.

    Parameters
    ----------
    memory
        The pool's.
    start
        Offset of the heap.
    path
        The pool file's name, for messages.

    Raises
    ------
    CorruptionError
        No sound heap root is there.
    """

    __slots__ = ("_bins", "_root", "_words", "memory", "path", "start")

    def __init__(self, memory: Memory, start: int, path: object = None) -> None:
        self.memory = memory
        self.start = start
        self.path = path
        self._words = memory.words
        self._root = start >> 3
        self._bins = self._root + ROOT_BINS
        self.check_root()

    @staticmethod
    def format(memory: Memory, start: int, count: int) -> None:
        """Make a heap of `count` pages, all free but the root and the table, in whatever is there.

        Outside of transactions nothing is made known to the memory: the pool file is being made.
        """
        table_pages = -(-count // ENTRIES)
        if count <= 1 + table_pages or start + count * PAGE > memory.size:
            raise ValueError(f"a heap of {count} pages does not fit")
        size = (1 + table_pages) * PAGE
        if memory.changes is not None:
            memory.snapshot(start, size)
        memory.map[start : start + size] = bytes(size)
        words = memory.words
        root = start >> 3
        words[root] = HEAP_MAGIC
        words[root + ROOT_PAGE_COUNT] = count
        words[root + ROOT_TABLE] = start + PAGE
        words[root + ROOT_TABLE_CAPACITY] = table_pages * ENTRIES
        first, free = 1 + table_pages, count - 1 - table_pages
        words[root + ROOT_BINS + bin_of(free)] = first
        table = (start + PAGE) >> 3
        words[table] = ROOT | 1 << 12
        words[table + 2] = TABLE | table_pages << 12
        if free > 1:
            words[table + 2 * (count - 1)] = FREE_END | (free - 1) << 12
        words[table + 2 * first] = FREE | free << 12

    def check_root(self) -> None:
        """Raise unless the words that everything else is found by are sound (H1)."""
        words, root = self._words, self._root
        if self.start % PAGE or self.start + 2 * PAGE > self.memory.size:
            self.damaged("the heap lies outside of the file", self.start, "H1")
        count, table, capacity = words[root + ROOT_PAGE_COUNT : root + ROOT_TABLE_CAPACITY + 1]
        if words[root] != HEAP_MAGIC:
            self.damaged("no heap begins where it should", self.start, "H1")
        if not 2 <= count <= PAGES_MAX or self.start + count * PAGE > self.memory.size:
            self.damaged(f"the heap's page count, {count}, does not fit the file", self.start, "H1")
        page, rest = divmod(table - self.start, PAGE)
        pages = capacity // ENTRIES
        if rest or capacity % ENTRIES or page < 1 or page + pages > count or capacity < count:
            self.damaged("the page table lies where it cannot", self.start, "H1")
        if words[(table >> 3) + 2 * page] != TABLE | pages << 12:
            self.damaged("the page table does not hold itself", table, "H1")

    def damaged(self, problem: str, offset: int, invariant: str) -> NoReturn:
        """Raise what says that memory holds what this module never writes."""
        raise CorruptionError(
            problem,
            self.path,
            hint="`python -m pmshelve check` tells what else is damaged",
            offset=offset,
            invariant=invariant,
        )

    # Entries ----------------------------------------------------------------------------------

    def count(self) -> int:
        """Return the heap's pages."""
        return self._words[self._root + ROOT_PAGE_COUNT]

    def entry(self, page: int) -> int:
        """Return word 0 of a page's entry."""
        return self._words[(self._words[self._root + ROOT_TABLE] >> 3) + 2 * page]

    def set(self, page: int, word: int) -> None:
        """Write a page's entry, in no list."""
        words = self._words
        at = (words[self._root + ROOT_TABLE] >> 3) + 2 * page
        self.memory.snapshot(at << 3, ENTRY)
        words[at] = word
        words[at + 1] = 0

    def set_slab(self, page: int, count: int, number: int) -> None:
        """Write the entries of a slab's pages, in no list."""
        words = self._words
        at = (words[self._root + ROOT_TABLE] >> 3) + 2 * page
        self.memory.snapshot(at << 3, count * ENTRY)
        words[at] = SLAB | number << 4 | count << 12
        words[at + 1] = 0
        for delta in range(1, count):
            words[at + 2 * delta] = SLAB_INTERIOR | number << 4 | delta << 12

    def clear_slab(self, page: int, count: int) -> None:
        """Write zeros to the entries of a slab's pages."""
        at = self._words[self._root + ROOT_TABLE] + page * ENTRY
        self.memory.snapshot(at, count * ENTRY)
        self.memory.map[at : at + count * ENTRY] = bytes(count * ENTRY)

    # Lists ------------------------------------------------------------------------------------

    def next(self, page: int) -> int:
        """Return the page that follows in a list; 0 at its end."""
        return self._words[(self._words[self._root + ROOT_TABLE] >> 3) + 2 * page + 1] >> 32

    def link(self, head: int, page: int, after: int = 0) -> None:
        """Put a page first in the list whose head is at word `head`, or after one that is in it."""
        words = self._words
        snapshot = self.memory.snapshot
        links = (words[self._root + ROOT_TABLE] >> 3) + 1
        if after:
            at = links + 2 * after
            following = words[at] >> 32
            snapshot(at << 3, 8)
            words[at] = words[at] & LOW | page << 32
        else:
            following = words[head]
            snapshot(head << 3, 8)
            words[head] = page
        if following:
            if following >= words[self._root + ROOT_PAGE_COUNT]:
                self._damaged_list(f"the list of page {page} leads out of the heap", head)
            at = links + 2 * following
            snapshot(at << 3, 8)
            words[at] = words[at] >> 32 << 32 | page
        at = links + 2 * page
        snapshot(at << 3, 8)
        words[at] = after | following << 32

    def unlink(self, head: int, page: int) -> None:
        """Take a page out of the list whose head is at word `head`."""
        words = self._words
        snapshot = self.memory.snapshot
        links = (words[self._root + ROOT_TABLE] >> 3) + 1
        at = links + 2 * page
        before, following = words[at] & LOW, words[at] >> 32
        count = words[self._root + ROOT_PAGE_COUNT]
        before_at, following_at = links + 2 * before, links + 2 * following
        if (
            before >= count
            or following >= count
            or (words[before_at] >> 32 if before else words[head]) != page
            or (following and words[following_at] & LOW != page)
        ):
            self._damaged_list(f"page {page} and its list do not agree", head)
        snapshot(at << 3, 8)
        words[at] = 0
        if before:
            snapshot(before_at << 3, 8)
            words[before_at] = words[before_at] & LOW | following << 32
        else:
            snapshot(head << 3, 8)
            words[head] = following
        if following:
            snapshot(following_at << 3, 8)
            words[following_at] = words[following_at] >> 32 << 32 | before

    def _damaged_list(self, problem: str, head: int) -> NoReturn:
        invariant = "H3" if head < self._root + ROOT_CLASSES else "H4"
        self.damaged(problem, head << 3, invariant)
