"""Survey: every object of a pool, how often each is held, and what nothing leads to.

Every block is listed.  From the root, then from living Python objects, whatever is held is counted.  What
was not reached is garbage; what it holds is counted too, so that every stored count can be compared.
Nothing is changed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pmshelve.pmemobj.layout import (
    OBJECT_HEADER,
    POBJECT_TYPE_NUM,
    REFCOUNT_MASK,
    TYPE_CODE_SHIFT,
)
from pmshelve.pmemobj.reader import Reader, damaged, root_offset
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN
from pmshelve.pmemobj.typetable import OWN_TYPE_NUMS
from pmshelve.storage.progress import Pace, Progress, part
from pmshelve.storage.region import scratch

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Counts", "Survey"]

# What is known of an object, in one word: flags, and above them how often it is held.
_OBJECT, _HELD, _ONE = 1, 2, 4

Counts = dict[str, int]


class Survey:
    """Every object of a pool, and how often each is held.

    Parameters
    ----------
    manager
        The pool's.
    progress
        Called with thousandths of what making this and `trace_root` cost.

    Attributes
    ----------
    garbage
        Offsets of what was not reached, in the order to free it.
    lost
        Offsets of blocks of our own that belong to no object.
    wrong
        Offset -> references found, where the stored count is another.
    """

    def __init__(self, manager: MemoryManager, *, progress: Progress | None = None) -> None:
        self._progress = progress
        self._manager = manager
        self._reader = Reader(manager)
        self._refs = scratch(manager.memory.size // 4 & ~3).cast("I")
        self._objects = array("Q")
        self._structures = array("Q")
        self.garbage: list[int] = []
        self.lost: list[int] = []
        self.wrong: dict[int, int] = {}
        self._done = 0
        self._pace = Pace(None, 0)
        self._list_blocks()

    def _list_blocks(self) -> None:
        refs = self._refs
        add_object, add_structure = self._objects.append, self._structures.append
        blocks = self._manager.heap.blocks()
        if self._progress is not None:
            blocks = self._followed(blocks, self._progress)
        for offset, size, type_num in blocks:
            if type_num == POBJECT_TYPE_NUM:
                if size < OBJECT_HEADER:
                    self.lost.append(offset)  # no room for a count, so nobody holds it
                    continue
                refs[offset >> 4] = _OBJECT
                add_object(offset)
            elif type_num in OWN_TYPE_NUMS:
                add_structure(offset)

    def _followed(
        self, blocks: Iterator[tuple[int, int, int]], progress: Progress
    ) -> Iterator[tuple[int, int, int]]:
        pace = Pace(part(progress, 0.0, 0.3), self._manager.memory.size)
        for block in blocks:
            pace.at(block[0])
            yield block
        self._pace = Pace(part(progress, 0.3, 1.0), len(self._objects))

    def is_unreached(self, offset: int) -> bool:
        """Whether there is an object, and nothing led to it so far."""
        index = offset >> 4
        return not offset & 15 and index < len(self._refs) and self._refs[index] == _OBJECT

    def trace_root(self) -> None:
        """Count all that the root leads to."""
        root = root_offset(self._manager)
        if root:
            if not self.is_unreached(root):
                raise damaged(self._manager, self._manager.heap.start, root)
            self._refs[root >> 4] += _ONE
            self._trace([root])
        for node, names in self._manager.types.nodes():
            for block in (node, *names):
                self._refs[block >> 4] = _HELD

    def trace_living(self) -> None:
        """Count all that living Python objects lead to."""
        waiting = []
        for offset, _ in self._manager.identity.living():
            if self.is_unreached(offset):
                self._refs[offset >> 4] |= _HELD
                waiting.append(offset)
        self._trace(waiting)

    def _trace(self, waiting: list[int]) -> None:
        """Count what some objects hold, and what those hold that nothing had led to before."""
        reader, refs = self._reader, self._refs
        words = reader.words
        functions: dict[int, Any] = {}
        followed = self._progress is not None
        while waiting:
            offset = waiting.pop()
            if followed:
                self._done += 1
                self._pace.at(self._done)
            code = words[offset >> 3] >> TYPE_CODE_SHIFT
            if code < CONTAINER_CODE_MIN:
                continue
            known = functions.get(code)
            if known is None:
                known = functions[code] = reader.functions_of(code)
            try:
                for block in known[1](reader, offset):
                    refs[block >> 4] |= _HELD
                children = iter(known[0](reader, offset))
            except (IndexError, ValueError) as error:
                raise damaged(self._manager, offset) from error
            while not self._count(children, waiting, offset):
                pass

    def _count(self, children: Iterator[int], waiting: list[int], offset: int) -> bool:
        """Count references of the object at `offset`; return whether that were all."""
        # The hot loop of a collection: 0.15 µs a reference.
        refs = self._refs
        try:
            for child in children:
                index = child >> 4
                count = refs[index]
                refs[index] = count + _ONE
                if count <= _OBJECT:
                    if not count:
                        raise IndexError
                    waiting.append(child)
        except IndexError:
            raise damaged(self._manager, offset, child) from None
        except ValueError:  # a billion references to one object: it is counted no further
            return False
        return True

    def sort_out(self) -> tuple[Counts, Counts]:
        """Tell garbage from what lives; return the numbers of what there is, see `collect`."""
        manager, refs, words = self._manager, self._refs, self._manager.words
        is_known = manager.types.is_known
        codes: dict[int, int] = {}
        unsure = []
        garbage: list[int] = []
        for offset in self._objects:
            count = refs[offset >> 4]
            header = words[offset >> 3]
            code = header >> TYPE_CODE_SHIFT
            if count == _OBJECT:
                # What a program allocated with the default type number and filled as it liked.
                (garbage if is_known(code) else self.lost).append(offset)
                continue
            codes[code] = codes.get(code, 0) + 1
            if header & REFCOUNT_MASK != count >> 2:
                unsure.append(offset)
        self._trace_garbage(garbage)
        for offset in unsure + garbage:
            count = refs[offset >> 4] >> 2
            if words[offset >> 3] & REFCOUNT_MASK != count:
                self.wrong[offset] = count
        self.lost += [offset for offset in self._structures if not refs[offset >> 4]]
        types: Counts = {}
        for code, number in sorted(codes.items()):
            name = manager.types.short_name(code)
            types[name] = types.get(name, 0) + number
        counts = self._count_garbage(garbage)
        live = sum(number for code, number in codes.items() if code >= CONTAINER_CODE_MIN)
        other = sum(codes.values()) - live
        counts["containers-live"] = live
        counts["containers-total"] = live + counts["collections-gced"]
        counts["other-live"] = other
        counts["other-total"] = other + counts["other-gced"] + counts["orphans1-gced"]
        counts["structures-gced"] = len(self.lost)
        return types, counts

    def _trace_garbage(self, garbage: list[int]) -> None:
        """Count what garbage holds."""
        # Marked as reached, so that each is looked at once.
        refs = self._refs
        for offset in garbage:
            refs[offset >> 4] |= _HELD
        self._trace(garbage.copy())

    def _count_garbage(self, garbage: list[int]) -> Counts:
        refs, words = self._refs, self._manager.words
        orphans, containers, others, counted = [], [], [], []
        for offset in garbage:
            header = words[offset >> 3]
            if not header & REFCOUNT_MASK:
                orphans.append(offset)
            elif header >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN:
                containers.append(offset)
            elif refs[offset >> 4] >> 2:
                others.append(offset)
            else:
                counted.append(offset)
        # Freed from the end: what has no references first, so that most of the rest follows.
        self.garbage = counted + others + containers + orphans
        return {
            "orphans0-gced": len(orphans),
            "orphans1-gced": len(counted),
            "collections-gced": len(containers),
            "other-gced": len(others),
        }
