"""Search: which containers, of those that some suspects lead to, are garbage; without looking at all.

Two searches take turns with growing budgets: one from the root, which proves suspects alive, and one from
the suspects, which proves, once it has seen all they lead to, that nothing else holds them (trial
deletion: Bacon and Rajan, "Concurrent cycle collection in reference counted systems", ECOOP 2001, the
synchronous variant).  Whichever ends first decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pmshelve.pmemobj.layout import REFCOUNT_MASK, TYPE_CODE_SHIFT
from pmshelve.pmemobj.reader import Reader, damaged, root_offset
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Search", "find_garbage"]

_BUDGET = 2000
"""Words that the first turn of a search looks at."""


class Search:
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
            raise damaged(self._reader, offset) from error

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
            raise damaged(reader, offset) from error


def find_garbage(manager: MemoryManager, suspects: set[int]) -> list[int]:
    """Return the containers, among all that some lead to, that nothing else holds."""
    reader = Reader(manager)
    suspects = set(filter(reader.is_container, suspects))
    root = root_offset(manager)
    roots = [root] if root and reader.is_container(root) else []
    alive = Search(reader, roots)
    suspects.difference_update(roots)
    trial = Search(reader, suspects)
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


def _only_held_inside(reader: Reader, trial: Search, alive: set[int]) -> list[int]:
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
