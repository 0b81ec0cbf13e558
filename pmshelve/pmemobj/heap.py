"""Blocks of any size, in memory that can be taken back.  (docs/format-pmemobj.md, "Heap", H1-H6)

    block    offset  size  field
                  0     8  header   size of the data (40 bits), type number (24 bits)
                  8        data     its offset, a multiple of 16, names the block

A small block lies in a slab among its like (`slabs`), any other in a run of pages of its own, with
its header at 56 and its data at 64.  `sizeclass` says which sizes do what; `pagetable` knows of each
page what it belongs to; `pages` has those that are free.

Free blocks and pages are words as all others: there is nothing to build when a pool is opened, and
nothing to do when a transaction is rolled back.  Every method that changes the heap is called within
a transaction, with the pool's lock held.  One that raises leaves every block as it was, save that a
`CorruptionError` may come half way: what called it rolls back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

from pmshelve.errors import CorruptionError, StateError
from pmshelve.pmemobj import heapcheck
from pmshelve.pmemobj.layout import (
    BLOCK_SIZE_MAX,
    PAGE,
    POBJECT_TYPE_NUM,
    ROOT_CLASSES,
    ROOT_PAGE_COUNT,
    ROOT_TABLE,
    RUN_DATA,
    SLAB_DATA,
    TYPE_NUM_MAX,
    TYPE_NUM_SHIFT,
)
from pmshelve.pmemobj.memory import Memory
from pmshelve.pmemobj.pages import Pages, claim
from pmshelve.pmemobj.pagetable import RUN, SLAB, SLAB_INTERIOR
from pmshelve.pmemobj.sizeclass import (
    ALL_USED,
    BLOCK_COUNTS,
    BLOCK_SIZES,
    CLASS_OF,
    RUN_CLASS,
    SLAB_BITMAPS,
    SLAB_HEADS,
    SMALL_MAX,
    class_of,
    run_pages,
)
from pmshelve.pmemobj.slabs import Slabs

__all__ = ["Heap"]

_FIRST_DATA = SLAB_DATA + 8
_SIZE_MASK = (1 << TYPE_NUM_SHIFT) - 1
_ZEROS_MAX = 1 << 20
_LARGE_PAGES = 16


class Heap:
    """The heap of one pool.

    Parameters
    ----------
    memory
        The pool's.
    start
        Offset of the heap.
    path
        The pool file's name, for messages.

    Attributes
    ----------
    memory, start
        As given.

    Raises
    ------
    CorruptionError
        No sound heap root is there.

    Notes
    -----
    Costs nothing that depends on what the heap holds.
    """

    __slots__ = (
        "_base",
        "_classes",
        "_count_at",
        "_pages",
        "_path",
        "_slabs",
        "_snapshot",
        "_table_at",
        "_words",
        "memory",
        "start",
    )

    def __init__(self, memory: Memory, start: int, path: object = None) -> None:
        self.memory: Memory = memory
        self._snapshot = memory.snapshot
        self._words = memory.words
        self.start: int = start
        self._base = start >> 3
        self._classes = self._base + ROOT_CLASSES
        self._count_at = self._base + ROOT_PAGE_COUNT
        self._table_at = self._base + ROOT_TABLE
        self._path = path
        self._pages = Pages(memory, start, path)
        self._slabs = Slabs(self._pages)

    @classmethod
    def format(cls, memory: Memory, start: int, pages: int, path: object = None) -> Heap:
        """Make an empty heap of so many pages; needs no transaction while a pool is made."""
        Pages.format(memory, start, pages)
        return cls(memory, start, path)

    @property
    def extend(self) -> Callable[[int], None]:
        """Called with the bytes that the whole file needs; it may raise `NoSpaceError`."""
        return self._pages.extend

    @extend.setter
    def extend(self, extend: Callable[[int], None]) -> None:
        self._pages.extend = extend

    @property
    def prepare(self) -> Callable[[int, int], None]:
        """Called with offset and size of free pages before they are used; it may raise `NoSpaceError`."""
        return self._pages.prepare

    @prepare.setter
    def prepare(self, prepare: Callable[[int, int], None]) -> None:
        self._pages.prepare = prepare

    # Allocating -------------------------------------------------------------------------------

    def alloc(self, size: int, type_num: int = POBJECT_TYPE_NUM) -> int:
        """Return the offset of the data of a new block.

        Its content is whatever was there; all of it is known to the memory already, so the caller
        stores into it at will until the operation ends.

        Raises
        ------
        ValueError
            The size is negative, or the type number has more than 24 bits.
        MemoryError
            No heap could hold that much.
        NoSpaceError
            The pool cannot grow.
        """
        if not 0 <= size <= SMALL_MAX or not 0 <= type_num <= TYPE_NUM_MAX:
            _check_request(size, type_num)
            return self._alloc_run(size, type_num)
        number = CLASS_OF[(size + 23) >> 4]
        if number == RUN_CLASS:
            return self._alloc_run(size, type_num)
        header = size | type_num << TYPE_NUM_SHIFT
        words = self._words
        head = self._classes + number
        page = words[head] or self._slabs.new(number)
        slab = self._base + (page << 9)
        if page >= words[self._count_at] or words[slab] != SLAB_HEADS[number]:
            self._pages.damaged("a list of slabs leads elsewhere", head << 3, "H4")
        at = slab + 1
        bits = words[at]
        while bits == ALL_USED:
            at += 1
            if at > slab + 4:
                self._pages.damaged("a full slab is listed as one with room", slab << 3, "H4")
            bits = words[at]
        bit = ~bits & (bits + 1)  # the lowest free
        snapshot = self._snapshot
        snapshot(at << 3, 8)
        bits |= bit
        words[at] = bits
        if bits == ALL_USED and words[slab + 4] == ALL_USED:
            self._slabs.leave_if_full(head, page, at)
        index = ((at - slab - 1) << 6) + bit.bit_length() - 1
        offset = (slab << 3) + SLAB_DATA + index * BLOCK_SIZES[number]
        snapshot(offset, (size + 15) & -8)
        words[offset >> 3] = header
        return offset + 8

    def zalloc(self, size: int, type_num: int = POBJECT_TYPE_NUM) -> int:
        """As `alloc`; the data is zero."""
        offset = self.alloc(size, type_num)
        self._zero(offset, size)
        return offset

    def _zero(self, offset: int, size: int) -> None:
        memory = self.memory.map
        end = offset + size
        if size > _ZEROS_MAX:
            zeros = bytes(_ZEROS_MAX)
            while end - offset > _ZEROS_MAX:
                memory[offset : offset + _ZEROS_MAX] = zeros
                offset += _ZEROS_MAX
        memory[offset:end] = bytes(end - offset)

    def _alloc_run(self, size: int, type_num: int) -> int:
        header = size | type_num << TYPE_NUM_SHIFT
        count = run_pages(size)
        page = self._slabs.take(count, RUN | count << 12)
        offset = self.start + page * PAGE + RUN_DATA
        claim(self.memory, offset - 8, offset + ((size + 7) & -8))
        self._words[(offset - 8) >> 3] = header
        return offset

    # Freeing ----------------------------------------------------------------------------------

    def free(self, offset: int) -> None:
        """Free a block.

        Raises
        ------
        StateError
            No block is there: it was freed already, or never made.  Nothing was changed.
        """
        words = self._words
        page = (offset - self.start) >> 12
        if offset & 15 or not 0 < page < words[self._count_at]:
            self._refuse(offset)
        entry = words[(words[self._table_at] >> 3) + 2 * page]
        kind = entry & 15
        if kind == SLAB_INTERIOR:
            page -= entry >> 12
        elif kind != SLAB:
            self._free_run(offset, page, entry)
            return
        number = entry >> 4 & 255
        slab = self._slabs.at(page, number)
        index, rest = divmod(offset - (slab << 3) - _FIRST_DATA, BLOCK_SIZES[number])
        if rest or not 0 <= index < BLOCK_COUNTS[number]:
            self._refuse(offset)
        at = slab + 1 + (index >> 6)
        bit = 1 << (index & 63)
        bits = words[at]
        if not bits & bit:
            self._refuse(offset)
        self._snapshot(at << 3, 8)
        words[at] = left = bits ^ bit
        if bits == ALL_USED:
            self._slabs.enter_if_was_full(page, number, at)
        if left == SLAB_BITMAPS[number][index >> 6]:
            self._slabs.release_if_empty(page, number)

    def _free_run(self, offset: int, page: int, entry: int) -> None:
        if entry & 15 != RUN or (offset - self.start) & (PAGE - 1) != RUN_DATA:
            self._refuse(offset)
        self._pages.give(page, self._run_count(page, entry))

    def _run_count(self, page: int, entry: int) -> int:
        """Return the pages of a run."""
        count = entry >> 12
        if not 0 < count <= self._words[self._count_at] - page:
            self._pages.damaged("a run ends outside of the heap", self.start + page * PAGE, "H2")
        return count

    def _refuse(self, offset: int) -> NoReturn:
        raise StateError(
            f"no block is at offset {offset}: it was freed already, or never allocated",
            self._path,
        )

    # Resizing ---------------------------------------------------------------------------------

    def realloc(self, offset: int, size: int, type_num: int | None = None) -> int:
        """Change a block's size, and its type number if one is given; return its new offset.

        The data stays, up to the smaller of both sizes; what is new holds whatever was there.  The
        block stays in place if its new size is of the same class, or if it is a run with free pages
        behind it or pages to give back.  As with `alloc`, what is new is known to the memory; what
        was there is not, if the block stayed in place.

        Raises
        ------
        StateError, ValueError, MemoryError, NoSpaceError
            As `free` and `alloc`; the block is as it was.
        """
        entry = self._entry_of(offset)
        header = self._words[(offset - 8) >> 3]
        if type_num is None:
            type_num = header >> TYPE_NUM_SHIFT
        _check_request(size, type_num)
        old = header & _SIZE_MASK
        number = class_of(size)
        if entry & 15 == RUN:
            pages = self._run_count((offset - self.start) // PAGE, entry)
            stays = number == RUN_CLASS and self._resize_run(offset, pages, old, size)
        else:
            stays = number == entry >> 4 & 255
            if stays and size > old:
                self._snapshot(offset + (old & -8), ((size + 7) & -8) - (old & -8))
        if stays:
            self._snapshot(offset - 8, 8)
            self._words[(offset - 8) >> 3] = size | type_num << TYPE_NUM_SHIFT
            return offset
        target = self.alloc(size, type_num)
        kept = min(old, size)
        self.memory.map.move(target, offset, kept)
        self.free(offset)
        return target

    def zrealloc(self, offset: int, size: int, type_num: int | None = None) -> int:
        """As `realloc`; the new part of the data is zero."""
        old = self.size_of(offset)
        target = self.realloc(offset, size, type_num)
        if size > old:
            self._zero(target + old, size - old)
        return target

    def _resize_run(self, offset: int, pages: int, old: int, size: int) -> bool:
        """Make a run in place as large as it has to be, if that can be done."""
        page = (offset - self.start) // PAGE
        count = run_pages(size)
        if count > pages and not self._pages.grow_run(page, pages, count - pages):
            return False
        if count < pages:
            self._pages.shrink_run(page, count)
        if size > old:
            first = offset + (old & -8)
            end = offset + ((size + 7) & -8)
            edge = min(end, self.start + (page + pages) * PAGE)
            if first < edge:
                self._snapshot(first, edge - first)
            if edge < end:
                claim(self.memory, edge, end)
        return True

    # Looking ----------------------------------------------------------------------------------

    def is_block(self, offset: int) -> bool:
        """Whether a block's data begins at an offset; any integer may be asked about."""
        words = self._words
        page = (offset - self.start) >> 12
        if offset & 15 or not 0 < page < words[self._count_at]:
            return False
        entry = words[(words[self._table_at] >> 3) + 2 * page]
        kind = entry & 15
        if kind == SLAB_INTERIOR:
            page -= entry >> 12
        elif kind != SLAB:
            return kind == RUN and (offset - self.start) & (PAGE - 1) == RUN_DATA
        number = entry >> 4 & 255
        slab = self._base + (page << 9)
        if page <= 0 or number >= len(SLAB_HEADS) or words[slab] != SLAB_HEADS[number]:
            return False  # damaged
        index, rest = divmod(offset - (slab << 3) - _FIRST_DATA, BLOCK_SIZES[number])
        if rest or not 0 <= index < BLOCK_COUNTS[number]:
            return False
        return bool(words[slab + 1 + (index >> 6)] >> (index & 63) & 1)

    def _entry_of(self, offset: int) -> int:
        """Return word 0 of the page table's entry for a block; raise if there is no block."""
        if not self.is_block(offset):
            self._refuse(offset)
        return self._pages.entry((offset - self.start) >> 12)

    def size_of(self, offset: int) -> int:
        """Return the size that a block was asked with.

        Raises
        ------
        StateError
            No block is there.
        CorruptionError
            It would reach beyond the pool.
        """
        if not self.is_block(offset):
            self._refuse(offset)
        size = self._words[(offset - 8) >> 3] & _SIZE_MASK
        if offset + size > self.memory.size:
            raise CorruptionError(
                "a block is larger than the pool", self._path, offset=offset, invariant="H6"
            )
        return size

    def type_num_of(self, offset: int) -> int:
        """Return a block's type number.

        Raises
        ------
        StateError
            No block is there.
        """
        if not self.is_block(offset):
            self._refuse(offset)
        return self._words[(offset - 8) >> 3] >> TYPE_NUM_SHIFT

    def base_address(self) -> int:
        """Return the address, in this process, of offset 0."""
        import ctypes

        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory.map))

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yield (offset, size, type number) of each block, by offset; nothing may change meanwhile."""
        return heapcheck.blocks(self._pages)

    def extents(self) -> Iterator[tuple[int, int, str, str]]:
        """Yield (offset, size, kind, detail) of each extent, in order.

        The kinds are "root", "table", "free", "run" and "slab"; the detail says what a run or a
        slab holds.
        """
        return heapcheck.extents(self._pages)

    def problems(self) -> Iterator[tuple[str, int, str]]:
        """Yield (problem, offset, invariant) of all that is wrong with the heap's structure."""
        return heapcheck.problems(self._pages)

    def free_runs(self) -> list[tuple[int, int]]:
        """Return (offset, size) of the free extents of 64 KiB and more, in order."""
        return self._pages.free_runs(_LARGE_PAGES)

    def page_counts(self) -> dict[str, int]:
        """Return the pages of each kind of extent."""
        return heapcheck.page_counts(self._pages)

    def used_bytes(self) -> int:
        """Return the bytes of all blocks, headers and what rounding added included."""
        return heapcheck.used_bytes(self._pages)

    def free_bytes(self) -> int:
        """Return the bytes that can be allocated before the heap grows: free pages and blocks."""
        return heapcheck.free_bytes(self._pages)

    def trim(self, floor: int) -> int:
        """Give free memory at the heap's end back; return the bytes that the file needs now.

        Parameters
        ----------
        floor
            Bytes of the file that stay in any case.
        """
        self._slabs.release_empty()
        pages = self._pages.trim(-(-(floor - self.start) // PAGE))
        return self.start + pages * PAGE


def _check_request(size: int, type_num: int) -> None:
    if size < 0:
        raise ValueError(f"a block cannot have {size} bytes")
    if size > BLOCK_SIZE_MAX:
        raise MemoryError(f"a block of {size} bytes; at most {BLOCK_SIZE_MAX} are possible")
    if not 0 <= type_num <= TYPE_NUM_MAX:
        raise ValueError(f"type number {type_num} is not within 0 to {TYPE_NUM_MAX}")
