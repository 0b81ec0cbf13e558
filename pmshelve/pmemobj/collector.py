"""Find what nothing leads to, and free it.  (docs/format-pmemobj.md, "References and garbage", R1-R7)

Reference counts free most garbage at once.  What is left for a collector:

    orphans   count 0, and no Python object stands for them: a process was killed, or nobody took them
    cycles    counts above 0, but only from one another

`Collector.collect` looks at everything:

    survey    every block is listed; from the root, then from living Python objects, whatever is held is
              counted.  What was not reached is garbage; what it holds is counted too.
    mend      stored counts that are lower than what was counted are corrected, and reported in the log
    sweep     garbage is freed, in transactions of about `BATCH` steps

Nothing is changed before the survey is done, so a class that cannot be imported costs nothing.

`Collector.collect_suspects`, at a clean end, looks only at what may have become garbage since the pool
was opened (`MemoryManager.suspects` and `fresh`): a search decides which of it nothing else leads to, and
a sweep frees that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pmshelve.pmemobj.identity import refuse
from pmshelve.pmemobj.layout import POBJECT_TYPE_NUM, REFCOUNT_MASK, TYPE_CODE_SHIFT
from pmshelve.pmemobj.search import find_garbage
from pmshelve.pmemobj.store import closed
from pmshelve.pmemobj.survey import Counts, Survey
from pmshelve.pmemobj.sweep import Sweep
from pmshelve.storage.progress import Progress, part

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["BATCH", "Collector"]

logger = logging.getLogger("pmshelve.pmemobj")

BATCH = 10_000
"""Objects freed, and references given up, in one transaction; about, as one object is not divided."""


class Collector:
    """The collector of one pool.

    Parameters
    ----------
    manager
        The pool's.
    debug
        Log a warning for each orphan that is found.

    Attributes
    ----------
    has_begun
        Whether `collect` came to where it changes the pool.
    """

    def __init__(self, manager: MemoryManager, debug: bool = False) -> None:
        self.has_begun = False
        self._manager = manager
        self._debug = debug

    def collect(
        self, *, repair: bool = False, progress: Progress | None = None
    ) -> tuple[Counts, Counts]:
        """Free all that neither the root nor a living Python object leads to.

        Parameters
        ----------
        repair
            Also correct counts that are too high; nobody who was given an oid counts on them.
        progress
            Called with thousandths of the work, of which looking is 800.  If it raises while that
            goes on nothing has been changed; later, what was freed by then is.

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
            if progress is not None:
                progress(0, 1000)
            survey = Survey(manager, progress=part(progress, 0.0, 0.8))
            survey.trace_root()
            kept = [set(filter(survey.is_unreached, which)) for which in self._watched()]
            survey.trace_living()
            types, counts = survey.sort_out()
            doomed = survey.garbage
            if self._debug:
                self._report(doomed)
            self.has_begun = True
            counts["counts-mended"] = self._mend(survey.wrong, repair=repair)
            for which, names in zip(self._watched(), kept, strict=True):
                which.clear()
                which.update(names.difference(doomed))
            manager.cleared.clear()
            manager.unowned.clear()
            Sweep(manager, BATCH).free(doomed, part(progress, 0.8, 1.0))
            self._free_blocks(survey.lost)
            if progress is not None:
                progress(1000, 1000)
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
            sweep = Sweep(manager, BATCH, everything=True)
            self._sweep(sweep, orphans)
            suspects = self._objects(manager.suspects | manager.fresh)
            cycles = find_garbage(manager, suspects) if suspects else []
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

    def _sweep(self, sweep: Sweep, doomed: list[int]) -> None:
        for offset in doomed:
            thing = self._manager.identity.forget(offset)
            if thing is not None:
                refuse(thing, closed)
        sweep.free(doomed)
