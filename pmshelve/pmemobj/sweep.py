"""Sweep: free garbage, a bounded number of objects in each transaction.

After each transaction every count is exact and nothing leads to what was freed: an object that others of
the garbage still hold becomes a *shell* (type code 0, holding nothing), and is freed when the last of
them let go of it.  A kill in between leaves garbage, which the next collection finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmshelve.pmemobj.layout import REFCOUNT_MASK, TYPE_CODE_SHIFT
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN
from pmshelve.storage.progress import Pace, Progress

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Sweep"]


class Sweep:
    """Frees garbage in bounded transactions, see the module's text.

    Parameters
    ----------
    batch
        Objects freed, and references given up, in one transaction; about.
    everything
        Free also what was not named, as soon as it has no references: nothing else keeps it.
    """

    def __init__(self, manager: MemoryManager, batch: int, *, everything: bool = False) -> None:
        self._manager = manager
        self._batch = batch
        self._everything = everything
        self._left: set[int] = set()
        self._shells: set[int] = set()
        self._ready: list[int] = []

    def free(self, doomed: list[int], progress: Progress | None = None) -> None:
        """Free objects, the last first.

        Parameters
        ----------
        progress
            Called between transactions with the objects freed, and how many were named.
        """
        doomed = doomed.copy()
        pace = Pace(progress, len(doomed))
        self._left.update(doomed)
        while doomed or self._ready:
            pace.at(pace.total - len(doomed))
            with self._manager.operation:
                work = 0
                while (doomed or self._ready) and work < self._batch:
                    offset = (self._ready or doomed).pop()
                    if offset in self._left:
                        self._left.remove(offset)
                        work += 1 + self._take_apart(offset)
        shells = list(self._shells)  # counts that were too high, and not mended
        self._shells.clear()
        for first in range(0, len(shells), self._batch):
            with self._manager.operation:
                for offset in shells[first : first + self._batch]:
                    self._free(offset)

    def _take_apart(self, offset: int) -> int:
        """Free one object, or make it a shell; return the number of references it gave up."""
        manager = self._manager
        words = manager.words
        index = offset >> 3
        code = words[index] >> TYPE_CODE_SHIFT
        if code < CONTAINER_CODE_MIN:
            self._free(offset)
            return 0
        manager.memory.snapshot(offset, 8)
        children = self._strip(offset, code)
        words[index] &= REFCOUNT_MASK
        self._shells.add(offset)
        for child in children:
            self._release(child)
        if offset in self._shells and not words[index]:
            self._shells.remove(offset)
            self._free(offset)
        return len(children)

    def _strip(self, offset: int, code: int) -> list[int]:
        """Free an object's blocks; return what it held."""
        manager = self._manager
        cls = manager.types.class_of(code)
        children = manager.children_of(offset)
        if not hasattr(cls, "_p_deallocate"):
            for block in manager.blocks_of(offset):
                manager.heap.free(block)
            return children
        # It calls `decref` itself; one more reference keeps what is freed in our hands.
        words, snapshot = manager.words, manager.memory.snapshot
        kept = set(children)
        for child in kept:
            snapshot(child, 8)
            words[child >> 3] += 1
        manager.load(manager.pool_kind, offset)._p_deallocate()
        return list(kept)

    def _release(self, child: int) -> None:
        manager = self._manager
        words = manager.words
        header = words[child >> 3]
        count = header & REFCOUNT_MASK
        if not count:
            return  # too low, and not mended: there was none to give up
        manager.memory.snapshot(child, 8)
        words[child >> 3] = header - 1
        if child in self._shells:
            if count == 1:
                self._shells.remove(child)
                self._free(child)
        elif count == 1 and (child in self._left or self._everything):
            self._left.add(child)
            self._ready.append(child)
        elif header >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN and child not in self._left:
            manager.suspects.add(child)

    def _free(self, offset: int) -> None:
        self._manager.heap.free(offset)
        self._manager._forget_object(offset)
