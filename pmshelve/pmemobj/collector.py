"""Find what nothing leads to, and free it.  (docs/format-pmemobj.md, "References and garbage", R1-R7)

Reference counts free most garbage at once.  What is left for a collector:

    orphans   count 0, and no Python object stands for them: a process was killed, or nobody took them
    cycles    counts above 0, but only from one another

`Collector.collect` looks at everything:

    survey    every block is listed; from the root, then from living Python objects, whatever is held is
              counted.  What was not reached is garbage; what it holds is counted too.
    mend      stored counts that are lower than what was counted are corrected, and reported in the log
    sweep     garbage is freed, in transactions of about `BATCH` steps

Nothing is changed before the survey is done, so a class that cannot be imported costs nothing.  After
each transaction of the sweep every count is exact and nothing leads to what was freed: an object that
others of the garbage still hold becomes a *shell* (type code 0, holding nothing), and is freed when the
last of them let go of it.  A kill in between leaves garbage, which the next collection finds.

`Collector.collect_suspects`, at a clean end, looks only at what may have become garbage since the pool
was opened (`MemoryManager.suspects` and `fresh`).  Two searches take turns with growing budgets: one
from the root, which proves suspects alive, and one from the suspects, which proves, once it has seen all
they lead to, that nothing else holds them (trial deletion: Bacon and Rajan, "Concurrent cycle collection
in reference counted systems", ECOOP 2001, the synchronous variant).  Whichever ends first decides.
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.identity import refuse
from pmshelve.pmemobj.layout import (
    OBJECT_HEADER,
    POBJECT_TYPE_NUM,
    REFCOUNT_MASK,
    ROOT_OID,
    TYPE_CODE_SHIFT,
)
from pmshelve.pmemobj.reader import Reader
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN
from pmshelve.pmemobj.store import closed
from pmshelve.pmemobj.typetable import OWN_TYPE_NUMS
from pmshelve.storage.region import scratch

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["BATCH", "Collector"]

logger = logging.getLogger("pmshelve.pmemobj")

BATCH = 10_000
"""Objects freed, and references given up, in one transaction; about, as one object is not divided."""

_BUDGET = 2000
"""Words that the first turn of a search looks at."""

# What the survey knows of an object, in one word: flags, and above them how often it is held.
_OBJECT, _HELD, _ONE = 1, 2, 4

Counts = dict[str, int]


class Collector:
    """The collector of one pool.

    Parameters
    ----------
    manager
        The pool's.
    debug
        Log a warning for each orphan that is found.
    """

    def __init__(self, manager: MemoryManager, debug: bool = False) -> None:
        self._manager = manager
        self._debug = debug

    def collect(self, *, repair: bool = False) -> tuple[Counts, Counts]:
        """Free all that neither the root nor a living Python object leads to.

        Parameters
        ----------
        repair
            Also correct counts that are too high; nobody who was given an oid counts on them.

        Returns
        -------
        types
            Live objects by the name of their class.
        counts
            ``containers-total``, ``containers-live`` and ``collections-gced`` of those that may hold
            others; ``other-total``, ``other-live``, ``other-gced`` (freed with what held them) and
            ``orphans1-gced`` (held by nothing, but counted) of the rest; ``orphans0-gced`` of both (count
            0); ``structures-gced``, blocks that belonged to no object; ``counts-mended``.  The totals
            are what was found, orphans of count 0 left out.

        Raises
        ------
        UnknownTypeError
            The class of an object that is looked at cannot be imported; nothing was changed.
        CorruptionError
            Something leads to where no object is; nothing was changed.

        Notes
        -----
        Costs some 2 µs an object, and 4 bytes of memory for every 16 of the heap that objects take.
        """
        manager = self._manager
        with manager.lock:
            manager.identity.recent.clear()
            survey = _Survey(manager)
            survey.trace_root()
            kept = [set(filter(survey.is_unreached, which)) for which in self._watched()]
            survey.trace_living()
            types, counts = survey.sort_out()
            doomed = survey.garbage
            if self._debug:
                self._report(doomed)
            counts["counts-mended"] = self._mend(survey.wrong, repair=repair)
            for which, names in zip(self._watched(), kept, strict=True):
                which.clear()
                which.update(names.difference(doomed))
            manager.cleared.clear()
            manager.unowned.clear()
            _Sweep(manager).free(doomed)
            self._free_blocks(survey.lost)
            return types, counts

    def _watched(self) -> tuple[set[int], set[int]]:
        return self._manager.suspects, self._manager.fresh

    def _report(self, doomed: Iterable[int]) -> None:
        words = self._manager.words
        for offset in doomed:
            header = words[offset >> 3]
            if not header & REFCOUNT_MASK:
                name = self._manager.types.short_name(header >> TYPE_CODE_SHIFT)
                logger.warning("freeing an orphan: the %s at %#x has no references", name, offset)

    def _mend(self, wrong: dict[int, int], *, repair: bool) -> int:
        """Correct stored counts; return how many."""
        manager = self._manager
        words, snapshot = manager.words, manager.memory.snapshot
        done = 0
        todo = list(wrong.items())
        while todo:
            with manager.operation:
                for offset, count in todo[:BATCH]:
                    header = words[offset >> 3]
                    stored = header & REFCOUNT_MASK
                    if stored > count and not repair:
                        continue  # somebody may have called `incref`, and means to call `decref`
                    logger.warning(
                        "the object at %#x is held %d times, not %d: corrected",
                        offset,
                        count,
                        stored,
                    )
                    snapshot(offset, 8)
                    words[offset >> 3] = header - stored + count
                    done += 1
            del todo[:BATCH]
        return done

    def _free_blocks(self, blocks: list[int]) -> None:
        manager = self._manager
        for first in range(0, len(blocks), BATCH):
            with manager.operation:
                for offset in blocks[first : first + BATCH]:
                    manager.heap.free(offset)

    # At a clean end ---------------------------------------------------------------------------

    def collect_suspects(self) -> tuple[Counts, Counts]:
        """Free what has become garbage since the pool was opened; living Python objects do not count.

        Every Python object of the pool is refused that stands for something freed.

        Returns
        -------
        types
            Empty: live objects are not looked for.
        counts
            ``orphans0-gced`` and ``collections-gced``, as `collect` gives them.
        """
        manager = self._manager
        with manager.lock:
            manager.identity.recent.clear()
            orphans = self._orphans()
            if self._debug:
                self._report(orphans)
            sweep = _Sweep(manager, everything=True)
            self._sweep(sweep, orphans)
            suspects = self._objects(manager.suspects | manager.fresh)
            cycles = _find_garbage(manager, suspects) if suspects else []
            self._sweep(sweep, cycles)
            manager.suspects.clear()
            manager.fresh.clear()
            manager.unowned.clear()
            manager.cleared.clear()
            return {}, {"orphans0-gced": len(orphans), "collections-gced": len(cycles)}

    def _objects(self, offsets: Iterable[int]) -> set[int]:
        """Return those of some offsets at which there are objects."""
        heap = self._manager.heap
        return {
            offset
            for offset in offsets
            if heap.is_block(offset) and heap.type_num_of(offset) == POBJECT_TYPE_NUM
        }

    def _orphans(self) -> list[int]:
        """Return the offsets of objects of this session whose count is 0."""
        manager = self._manager
        words = manager.words
        named = manager.fresh | manager.suspects | manager.unowned
        named.update(manager.identity.references)
        return [
            offset
            for offset in sorted(self._objects(named))
            if not words[offset >> 3] & REFCOUNT_MASK
        ]

    def _sweep(self, sweep: _Sweep, doomed: list[int]) -> None:
        for offset in doomed:
            thing = self._manager.identity.forget(offset)
            if thing is not None:
                refuse(thing, closed)
        sweep.free(doomed)


def _root_offset(manager: MemoryManager) -> int:
    """Return the offset of the root object, 0 if the root is none."""
    index = (manager.heap.start >> 3) + ROOT_OID
    kind, payload = manager.words[index : index + 2]
    return payload if kind == manager.pool_kind else 0


def _damaged(manager: MemoryManager, offset: int, target: int = 0) -> CorruptionError:
    leads = f"leads to {target:#x}, where no object is" if target else "cannot be read"
    return CorruptionError(
        f"the object at {offset:#x} {leads}",
        manager.path,
        hint="see check(); nothing was freed",
        offset=offset,
        invariant="R1",
    )


# All objects ------------------------------------------------------------------------------------


class _Survey:
    """Every object of a pool, and how often each is held.

    Attributes
    ----------
    garbage
        Offsets of what was not reached, in the order to free it.
    lost
        Offsets of blocks of our own that belong to no object.
    wrong
        Offset -> references found, where the stored count is another.
    """

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self._reader = Reader(manager)
        self._refs = scratch(manager.memory.size // 4 & ~3).cast("I")
        self._objects = array("Q")
        self._structures = array("Q")
        self.garbage: list[int] = []
        self.lost: list[int] = []
        self.wrong: dict[int, int] = {}
        self._list_blocks()

    def _list_blocks(self) -> None:
        refs = self._refs
        add_object, add_structure = self._objects.append, self._structures.append
        for offset, size, type_num in self._manager.heap.blocks():
            if type_num == POBJECT_TYPE_NUM:
                if size < OBJECT_HEADER:
                    self.lost.append(offset)  # no room for a count, so nobody holds it
                    continue
                refs[offset >> 4] = _OBJECT
                add_object(offset)
            elif type_num in OWN_TYPE_NUMS:
                add_structure(offset)

    def is_unreached(self, offset: int) -> bool:
        """Whether there is an object, and nothing led to it so far."""
        index = offset >> 4
        return not offset & 15 and index < len(self._refs) and self._refs[index] == _OBJECT

    def trace_root(self) -> None:
        """Count all that the root leads to."""
        root = _root_offset(self._manager)
        if root:
            if not self.is_unreached(root):
                raise _damaged(self._manager, self._manager.heap.start, root)
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
        while waiting:
            offset = waiting.pop()
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
                raise _damaged(self._manager, offset) from error
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
            raise _damaged(self._manager, offset, child) from None
        except ValueError:  # a billion references to one object: it is counted no further
            return False
        return True

    def sort_out(self) -> tuple[Counts, Counts]:
        """Tell garbage from what lives; return the numbers of what there is, see `collect`."""
        manager, refs, words = self._manager, self._refs, self._manager.words
        codes: dict[int, int] = {}
        unsure = []
        garbage = []
        for offset in self._objects:
            count = refs[offset >> 4]
            if count == _OBJECT:
                garbage.append(offset)
                continue
            header = words[offset >> 3]
            code = header >> TYPE_CODE_SHIFT
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


# Freeing ----------------------------------------------------------------------------------------


class _Sweep:
    """Frees garbage in bounded transactions, see the module's text.

    Parameters
    ----------
    everything
        Free also what was not named, as soon as it has no references: nothing else keeps it.
    """

    def __init__(self, manager: MemoryManager, *, everything: bool = False) -> None:
        self._manager = manager
        self._everything = everything
        self._left: set[int] = set()
        self._shells: set[int] = set()
        self._ready: list[int] = []

    def free(self, doomed: list[int]) -> None:
        """Free objects, the last first."""
        doomed = doomed.copy()
        self._left.update(doomed)
        while doomed or self._ready:
            with self._manager.operation:
                work = 0
                while (doomed or self._ready) and work < BATCH:
                    offset = (self._ready or doomed).pop()
                    if offset in self._left:
                        self._left.remove(offset)
                        work += 1 + self._take_apart(offset)
        shells = list(self._shells)  # counts that were too high, and not mended
        self._shells.clear()
        for first in range(0, len(shells), BATCH):
            with self._manager.operation:
                for offset in shells[first : first + BATCH]:
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


# Only suspects ------------------------------------------------------------------------------------


class _Search:
    """Containers that some offsets lead to, a bounded number at a time.

    Attributes
    ----------
    seen
        Those found.
    edges
        Those looked into, and the containers each holds.
    """

    def __init__(self, reader: Reader, offsets: Iterable[int]) -> None:
        self._reader = reader
        self._waiting = deque(offsets)
        self._later: list[int] = []
        self.seen = set(self._waiting)
        self.edges: dict[int, list[int]] = {}

    def advance(self, budget: int, boundary: set[int], wanted: set[int]) -> bool:
        """Look at about so many words more; return whether there is nothing left to look at.

        Parameters
        ----------
        boundary
            Not looked into.
        wanted
            What is found is taken out; once it is empty, that is enough.
        """
        seen, waiting = self.seen, self._waiting
        spent = 0
        while waiting:
            if spent >= budget:
                return False
            offset = waiting.popleft()
            if offset in boundary:
                continue
            size = self._size(offset)
            if size > budget:
                self._later.append(offset)
                continue
            spent += size
            held = self.edges[offset] = self._containers(offset)
            for child in held:
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)
                    wanted.discard(child)
            if not wanted:
                return True
        waiting.extend(self._later)
        self._later.clear()
        return not waiting

    def _size(self, offset: int) -> int:
        try:
            return self._reader.size_of(offset)
        except (IndexError, ValueError) as error:
            raise _damaged(self._reader._manager, offset) from error

    def _containers(self, offset: int) -> list[int]:
        reader = self._reader
        words = reader.words
        try:
            children, _ = reader.functions_of(reader.code_of(offset))
            return [
                child
                for child in children(reader, offset)
                if words[child >> 3] >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN
            ]
        except (IndexError, ValueError) as error:
            raise _damaged(reader._manager, offset) from error


def _find_garbage(manager: MemoryManager, suspects: set[int]) -> list[int]:
    """Return the containers, among all that some lead to, that nothing else holds."""
    reader = Reader(manager)
    suspects = set(filter(reader.is_container, suspects))
    root = _root_offset(manager)
    roots = [root] if root and reader.is_container(root) else []
    alive = _Search(reader, roots)
    suspects.difference_update(roots)
    trial = _Search(reader, suspects)
    nothing: set[int] = set()
    everything = {-1}
    budget = _BUDGET
    done = not suspects
    while not done:
        alive.advance(budget, nothing, suspects)
        done = not suspects or trial.advance(budget, alive.seen, everything)
        budget *= 2
    if not suspects:
        return []
    return _only_held_inside(reader, trial, alive.seen)


def _only_held_inside(reader: Reader, trial: _Search, alive: set[int]) -> list[int]:
    """Return the containers of a finished search that have no references from outside of it."""
    words = reader.words
    inside: dict[int, int] = {}
    for held in trial.edges.values():
        for child in held:
            inside[child] = inside.get(child, 0) + 1
    waiting = [
        offset
        for offset in trial.seen
        if offset in alive or words[offset >> 3] & REFCOUNT_MASK > inside.get(offset, 0)
    ]
    garbage = trial.seen.difference(waiting)
    while waiting:
        for child in trial.edges.get(waiting.pop(), ()):
            if child in garbage:
                garbage.remove(child)
                waiting.append(child)
    return sorted(garbage)
