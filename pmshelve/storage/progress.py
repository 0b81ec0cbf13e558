"""How far long work is: a callback that is called now and then, and never too often.

A method that may take long has a keyword `progress`, a function of two integers: how much is done,
of how much, in the unit that the method's docstring names.  It is called at the beginning, at most
every ten milliseconds meanwhile, and at the end (done is then total); in the thread that does the
work, often while that holds the store's lock, so it must not use the store.  What it raises ends
the work as a `KeyboardInterrupt` anywhere in it would: nothing is lost, nothing is half done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["INTERVAL", "Pace", "Progress", "paced", "part"]

Progress = Callable[[int, int], object]
"""Called as ``progress(done, total)``; what it returns is ignored."""

INTERVAL = 0.01
"""Seconds from one call to the next, at least."""

T = TypeVar("T")


class Pace:
    """Hands on how far work is, at most once in `INTERVAL`; costs one comparison without callback.

    Parameters
    ----------
    progress
        The callback, or None.
    total
        How much there is to do; it may be corrected later.

    Examples
    --------
    >>> calls = []
    >>> pace = Pace(lambda done, total: calls.append((done, total)), 3)
    >>> for number in range(3):
    ...     pace.at(number)
    >>> pace.end()
    >>> calls[0], calls[-1]
    ((0, 3), (3, 3))
    """

    __slots__ = ("_done", "_due", "_progress", "total")

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._due = 0.0
        self._done = -1
        self.total = total

    def at(self, done: int) -> None:
        """Tell that `done` is done, of which `end` alone says that it is all."""
        if self._progress is None:
            return
        now = time.monotonic()
        if now >= self._due:
            self._due = now + INTERVAL
            # What is told never goes back, nor over the total, whatever was estimated.
            self._done = max(self._done, min(done, self.total - 1), 0)
            self._progress(self._done, self.total)

    def end(self) -> None:
        """Tell that all is done, once."""
        if self._progress is not None and self._done != self.total:
            self._done = self.total
            self._progress(self.total, self.total)


def paced(items: Iterable[T], progress: Progress | None, total: int) -> Iterable[T]:
    """Return `items`, one step of progress each; the very same object without callback.

    Parameters
    ----------
    total
        How many there are, or about.
    """
    return items if progress is None else _paced(items, Pace(progress, total))


def _paced(items: Iterable[T], pace: Pace) -> Iterator[T]:
    for done, item in enumerate(items):
        pace.at(done)
        yield item
    pace.end()


def part(progress: Progress | None, start: float, stop: float) -> Progress | None:
    """Return the callback of one stage of a longer work, which is from `start` to `stop` of it.

    The whole is told in thousandths, since the stages have units of their own.

    Examples
    --------
    >>> half = part(lambda done, total: print(done, total), 0.5, 1.0)
    >>> half(7, 10)
    850 1000
    """
    if progress is None:
        return None
    tell = progress

    def stage(done: int, total: int) -> object:
        share = done / total if total else 1.0
        return tell(round(1000 * (start + (stop - start) * share)), 1000)

    return stage
