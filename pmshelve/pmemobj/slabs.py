"""Slabs: extents of equal blocks, made when a class has none with room, given back when empty.

    offset  size  field
         0     8  head     b"SLAB", size class (1 byte at 4), pages (1 byte at 5), zeros
         8    32  bitmap   a bit a block, lowest first, 1 for used; bits past the last block are 1
        40        blocks   all of the class's size

Little-endian.  A slab with room is in the list of its class, a full one in none.  Blocks come from
the list's head until that is full.  One that gets room again enters behind the head, so that the
others may become empty; an empty one goes back to the pages, unless it is alone in its list (H5).
"""

from __future__ import annotations

from pmshelve.pmemobj.layout import ROOT_CLASSES, ROOT_PAGE_COUNT, SLAB_DATA
from pmshelve.pmemobj.pages import Pages
from pmshelve.pmemobj.sizeclass import ALL_USED, SLAB_BITMAPS, SLAB_HEADS, SLAB_PAGES

__all__ = ["Slabs"]


class Slabs:
    """The slabs of one heap, as wholes; `Heap` itself takes and frees their blocks."""

    __slots__ = ("_base", "_classes", "_count_at", "_pages", "_words")

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._words = pages.memory.words
        self._base = pages.start >> 3
        self._classes = self._base + ROOT_CLASSES
        self._count_at = self._base + ROOT_PAGE_COUNT

    def take(self, count: int, word: int) -> int:
        """Take pages: free ones, or those of empty slabs, or new ones."""
        pages = self._pages
        page = pages.take(count, word)
        if not page:
            self.release_empty()
            page = pages.take(count, word, pages.count())
        if not page:
            pages.grow(count)
            page = pages.take(count, word)
        return page

    def leave_if_full(self, head: int, page: int, at: int) -> None:
        """Take the slab at the list's head out if no bitmap word from `at` on has room."""
        words = self._words
        last = self._base + (page << 9) + 4
        while at < last:
            at += 1
            if words[at] != ALL_USED:
                return
        self._pages.unlink(head, page)

    def new(self, number: int) -> int:
        """Make a slab, the only one in its class's list, and return its first page."""
        pages = self._pages
        count = SLAB_PAGES[number]
        page = self.take(count, 0)
        pages.set_slab(page, count, number)
        slab = self._base + (page << 9)
        pages.memory.snapshot(slab << 3, SLAB_DATA)
        words = self._words
        words[slab] = SLAB_HEADS[number]
        words[slab + 1], words[slab + 2], words[slab + 3], words[slab + 4] = SLAB_BITMAPS[number]
        pages.link(self._classes + number, page)
        return page

    def at(self, page: int, number: int) -> int:
        """Return the word number of the slab that the page table says is at a page."""
        slab = self._base + (page << 9)
        if (
            not 0 < page < self._words[self._count_at]
            or number >= len(SLAB_HEADS)
            or self._words[slab] != SLAB_HEADS[number]
        ):
            self._pages.damaged("a slab and the page table do not agree", slab << 3, "H4")
        return slab

    def enter_if_was_full(self, page: int, number: int, at: int) -> None:
        """List a slab if the bitmap word `at`, full until now, was the only one with room."""
        words = self._words
        slab = self._base + (page << 9)
        for other in range(slab + 1, slab + 5):
            if other != at and words[other] != ALL_USED:
                return
        head = self._classes + number
        first = words[head]
        if first:
            self.release_if_empty(first, number, alone=True)
            first = words[head]
        self._pages.link(head, page, first)

    def release_if_empty(self, page: int, number: int, *, alone: bool = False) -> None:
        """Give a slab's pages back if it is empty, and not alone in its list or `alone` is true."""
        words = self._words
        slab = self.at(page, number)
        if tuple(words[slab + 1 : slab + 5]) != SLAB_BITMAPS[number]:
            return
        pages = self._pages
        head = self._classes + number
        if not alone and words[head] == page and not pages.next(page):
            return
        pages.unlink(head, page)
        pages.clear_slab(page, SLAB_PAGES[number])
        pages.give(page, SLAB_PAGES[number])

    def release_empty(self) -> None:
        """Give the pages of the empty slabs that are alone in their lists back."""
        for number in range(len(SLAB_HEADS)):
            page = self._words[self._classes + number]
            if page:
                self.release_if_empty(page, number, alone=True)
