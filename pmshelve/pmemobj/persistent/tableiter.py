"""Iteration over a dict or set that may change meanwhile, in this thread or another.

    state       `_owner`   `_used`   what `next` does
    running     the table  its size  gives out what was read, or reads more
    failed      the table  -1        RuntimeError: the size changed
    exhausted   None                 StopIteration, for ever

Some entries are read at a time, with the lock held.  They are given out as long as the table's counters say
that nothing moved and no value was replaced; else they are read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pmshelve.pmemobj.persistent.hashtable import Table

__all__ = ["Entries"]

_CHUNK_MAX = 256
"""Entries read at a time."""
_SKIP = 4096
"""Entries looked at together where all are dead."""


class Entries(Iterator[Any]):
    """Iterator over a table's keys, values or pairs.

    Reads some entries at a time; anything that changes meanwhile makes it look again.

    Parameters
    ----------
    owner
        The collection.
    places
        Where in an entry the oids stand that are wanted: one, or two for pairs.
    backwards
        From the last entry to the first.
    """

    __slots__ = (
        "_at",
        "_backwards",
        "_batch",
        "_changes",
        "_chunk",
        "_edits",
        "_left",
        "_numbers",
        "_owner",
        "_places",
        "_used",
        "_word",
    )

    def __init__(
        self, owner: Table, places: tuple[int, ...], word: str, backwards: bool = False
    ) -> None:
        with owner._p_lock:
            self._used = self._left = owner._p_words[owner._p_index + 1]
            fill = owner._p_words[owner._p_index + 2]
        self._owner: Table | None = owner
        self._places = places
        self._word = word
        self._backwards = backwards
        self._at = fill if backwards else 0  # the next entry, or the one behind it
        self._batch: list[Any] = []  # what was read and not given out yet, last first
        self._numbers: list[int] = []  # the entries read, in order
        self._chunk = 4
        self._changes = self._edits = -1

    def __next__(self) -> Any:
        owner = self._owner
        if owner is None:
            raise StopIteration
        batch = self._batch
        if batch and owner._p_changes == self._changes and owner._p_edits == self._edits:
            return batch.pop()
        with owner._p_lock:
            self._read(owner)
        if not self._batch:
            self._owner = None
            raise StopIteration
        return self._batch.pop()

    def _read(self, owner: Table) -> None:
        """Read the next entries."""
        words = owner._p_words
        if words[owner._p_index + 1] != self._used:
            self._used = -1
            raise RuntimeError(f"{self._word} changed size during iteration")
        rest = len(self._batch)
        if rest:  # they may have changed: read them again
            number = self._numbers[-rest]
            self._at = number + 1 if self._backwards else number
            self._left += rest
            self._batch.clear()
            self._chunk = 1
        else:
            self._chunk = min(self._chunk * 2, _CHUNK_MAX)
        self._numbers = numbers = self._next_numbers(owner)
        if numbers and not self._left:
            if self._word == "Set":
                numbers.clear()  # as many as there were have been seen
                return
            raise RuntimeError(f"{self._word} keys changed during iteration")
        del numbers[self._left :]
        self._changes, self._edits = owner._p_changes, owner._p_edits
        values = self._load(owner, numbers)
        del numbers[len(values) :]
        if numbers:
            self._at = numbers[-1] + (not self._backwards)
        self._left -= len(values)
        values.reverse()
        self._batch = values

    def _next_numbers(self, owner: Table) -> list[int]:
        """Return the numbers of the next entries that live, none at the end."""
        first, stop = owner._p_span()
        width = owner._p_width
        words = owner._p_words
        fill = (stop - first) // width
        at, chunk = self._at, self._chunk
        while True:
            if self._backwards:
                low, high = max(min(at, fill) - chunk, 0), min(at, fill)
            else:
                low, high = at, min(at + chunk, fill)
            if low >= high:
                return []
            kinds = words[first + width * low + 1 : first + width * high : width].tolist()
            numbers = [low + place for place, kind in enumerate(kinds) if kind]
            if numbers:
                if self._backwards:
                    numbers.reverse()
                return numbers
            at = low if self._backwards else high
            chunk = _SKIP

    def _load(self, owner: Table, numbers: list[int]) -> list[Any]:
        words, width, loaders = owner._p_words, owner._p_width, owner._p_loaders
        base = owner._p_before + width
        values: list[Any] = []
        place = self._places[0]
        other = self._places[-1]
        changes = self._changes
        try:
            for number in numbers:
                at = base + width * number
                kind = words[at + place]
                value = loaders[kind & 0xFF](kind, words[at + place + 1])
                if other != place:
                    kind = words[at + other]
                    value = value, loaders[kind & 0xFF](kind, words[at + other + 1])
                values.append(value)
                if owner._p_changes != changes:
                    break  # loading ran foreign code: what follows is read when it is due
        except Exception:
            if not values:
                raise  # else it is raised again, when it is due
        return values

    def __length_hint__(self) -> int:
        owner = self._owner
        if owner is None or len(owner) != self._used:  # type: ignore[arg-type]
            return 0
        return self._left + len(self._batch)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot pickle an iterator over a pool's {self._word}")
