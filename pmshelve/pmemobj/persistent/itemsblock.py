"""The words of a PersistentList: an anchor, and one block with a run of oids.

    anchor   word  field
             0     object header, type code 16
             1     length: number of items
             2     offset of the items block, 0 if there is none
             3     capacity: number of items the block has room for

    items block (type number 31): `capacity` oids of 16 bytes; those from `length` on mean nothing (Q1, Q2)

Insertion and deletion are one `move` of what follows, which the journal keeps as a move, and the slots that
changed.  The block grows by an eighth, as CPython's does.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pmshelve.errors import CorruptionError, NoSpaceError
from pmshelve.pmemobj.layout import BLOCK_SIZE_MAX, OID_SIZE
from pmshelve.pmemobj.persistent.base import Container
from pmshelve.pmemobj.persistent.items import children, load_all, problems

if TYPE_CHECKING:
    from pmshelve.pmemobj.protocol import Oid
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["FORGOTTEN", "ITEMS_TYPE_NUM", "LENGTH_MAX", "ItemsBlock"]

ITEMS_TYPE_NUM = 31

LENGTH_MAX = BLOCK_SIZE_MAX // OID_SIZE
_KEEP_MAX = 8
"""Capacity up to which a block is not made smaller."""

FORGOTTEN = 1 << 40
"""Added to a list's version by a rollback, which is not the change that `sort` looks for."""


class ItemsBlock(Container):
    """What a PersistentList knows of its memory.  Every method is called with the lock held.

    Attributes
    ----------
    _p_version
        Another number after each change, and after whatever may have been one.
    """

    __slots__ = ("_p_version",)

    _p_code: ClassVar[int] = 16
    _p_size: ClassVar[int] = 32

    def _p_attach(self, manager: MemoryManager, offset: int) -> None:
        super()._p_attach(manager, offset)
        self._p_version = 0

    def _p_resurrect(self, manager: MemoryManager, oid: Oid) -> None:
        problem = _head_problem(manager, oid[1])
        if problem is not None:
            raise CorruptionError(problem[0], manager.path, offset=oid[1], invariant=problem[1])
        self._p_attach(manager, oid[1])

    def _p_forget(self) -> None:
        self._p_version += FORGOTTEN

    def _p_values(self, start: int, stop: int) -> list[Any]:
        """Return a run of the items, which are there."""
        at = (self._p_words[self._p_index + 2] >> 3) + 2 * start
        return load_all(self._p_mm, at, stop - start)

    def _p_read(self, start: int, stop: int) -> array[int]:
        """Return the words of a run of items."""
        at = (self._p_words[self._p_index + 2] >> 3) + 2 * start
        return array("Q", self._p_words[at : at + 2 * (stop - start)].tobytes())

    def _p_write(self, start: int, run: array[int]) -> None:
        """Store the words of a run of items, whose number does not change."""
        if run:
            at = self._p_words[self._p_index + 2] + 16 * start
            self._p_mm.memory.snapshot(at, 8 * len(run))
            at >>= 3
            self._p_words[at : at + len(run)] = memoryview(run)
        self._p_version += 1

    def _p_release(self, run: array[int]) -> None:
        """Give the references of a run up."""
        manager = self._p_mm
        kind = manager.pool_kind
        kinds = run[0::2]
        if kind in kinds:
            payloads = run[1::2]
            manager.release_many([payloads[i] for i, each in enumerate(kinds) if each == kind])

    def _p_splice(self, start: int, stop: int, run: array[int]) -> None:
        """Put a run, held already, in the place of the items from `start` to `stop`; release those."""
        words = self._p_words
        base = self._p_index
        old = self._p_read(start, stop)
        block, capacity = words[base + 2], words[base + 3]
        at = self._p_gap(start, stop, len(run) // 2)
        if run:
            if words[base + 2] == block:  # else it is new, and known as a whole
                size = min(8 * len(run), block + 16 * capacity - at)
                if size > 0:
                    self._p_mm.memory.snapshot(at, size)
            at >>= 3
            words[at : at + len(run)] = memoryview(run)
        self._p_release(old)

    def _p_gap(self, start: int, stop: int, count: int) -> int:
        """Make room for `count` items in the place of those from `start` to `stop`.

        Returns the offset of the room; what is in it is undefined, and the caller snapshots it.
        """
        words = self._p_words
        base = self._p_index
        memory = self._p_mm.memory
        old_length = words[base + 1]
        length = old_length - (stop - start) + count
        if length > words[base + 3]:
            self._p_reserve(length)
        at = words[base + 2] + 16 * start
        if stop < old_length and count != stop - start:
            memory.move(at + 16 * count, at + 16 * (stop - start), 16 * (old_length - stop))
        if length != old_length:
            memory.snapshot(self._p_offset + 8, 8)
            words[base + 1] = length
            if length < words[base + 3] >> 1 and words[base + 3] > _KEEP_MAX:
                self._p_shrink(length)
                at = words[base + 2] + 16 * start
        self._p_version += 1
        return at

    def _p_reserve(self, length: int) -> None:
        """Make the block large enough for so many items, and some to come."""
        words = self._p_words
        base = self._p_index
        if length > LENGTH_MAX:
            raise MemoryError
        capacity = _capacity(length, words[base + 1])
        block = words[base + 2]
        heap = self._p_mm.heap
        if block:
            block = heap.realloc(block, OID_SIZE * capacity)
        else:
            block = heap.alloc(OID_SIZE * capacity, ITEMS_TYPE_NUM)
        self._p_set_block(block, capacity)

    def _p_shrink(self, length: int) -> None:
        words = self._p_words
        block = words[self._p_index + 2]
        heap = self._p_mm.heap
        if not length:
            heap.free(block)
            self._p_set_block(0, 0)
            return
        capacity = _capacity(length, length)
        try:
            block = heap.realloc(block, OID_SIZE * capacity)
        except NoSpaceError:
            return  # a full disk is no reason not to delete
        self._p_set_block(block, capacity)

    def _p_set_block(self, block: int, capacity: int) -> None:
        self._p_mm.memory.snapshot(self._p_offset + 16, 16)
        self._p_words[self._p_index + 2] = block
        self._p_words[self._p_index + 3] = capacity

    # Without an object ------------------------------------------------------------------------

    @staticmethod
    def _p_children(manager: MemoryManager, offset: int) -> list[int]:
        words = manager.words
        index = offset >> 3
        return children(manager, words[index + 2] >> 3, words[index + 1])

    @staticmethod
    def _p_blocks(manager: MemoryManager, offset: int) -> list[int]:
        block = manager.words[(offset >> 3) + 2]
        return [block] if block else []

    @staticmethod
    def _p_problems(manager: MemoryManager, offset: int) -> Iterator[tuple[str, int, str]]:
        """Yield (problem, offset, invariant) of all that is wrong with the list at `offset`."""
        problem = _head_problem(manager, offset)
        if problem is not None:
            yield problem[0], offset, problem[1]
            return
        length, block = manager.words[(offset >> 3) + 1 : (offset >> 3) + 3].tolist()
        yield from problems(manager, block >> 3, length, "Q3")


def _head_problem(manager: MemoryManager, offset: int) -> tuple[str, str] | None:
    """Return what is wrong with a list's anchor, and the broken invariant."""
    heap, words = manager.heap, manager.words
    if heap.size_of(offset) < ItemsBlock._p_size:
        return "the anchor of a list is too short", "Q1"
    length, block, capacity = words[(offset >> 3) + 1 : (offset >> 3) + 4].tolist()
    if not block:
        if capacity:
            return f"a list without items block has room for {capacity}", "Q1"
    elif not heap.is_block(block) or heap.type_num_of(block) != ITEMS_TYPE_NUM:
        return f"no items block is at {block:#x}", "Q1"
    elif heap.size_of(block) != OID_SIZE * capacity:
        return f"the items block at {block:#x} does not hold {capacity} oids", "Q1"
    if length > capacity:
        return f"a list of {length} items has room for {capacity}", "Q2"
    return None


def _capacity(length: int, before: int) -> int:
    """Return the number of items to make room for, as CPython's list does."""
    capacity = (length + (length >> 3) + 6) & ~3
    if length - before > capacity - length:
        capacity = (length + 3) & ~3
    return min(capacity, LENGTH_MAX)
