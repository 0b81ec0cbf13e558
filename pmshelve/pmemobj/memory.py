"""A pool's memory: words that can be taken back.

The pool file is mapped privately, so a store changes this process's memory and never the file.
What a transaction changes is made known first, and that is all that makes rollback and commit
possible:

* `snapshot` keeps the old bytes of a range.  Whoever stores into a range has called it before, in
  the same transaction.
* `move` copies a range within memory, and is undone by moving back.
* `add_fresh` names a large range that held nothing: no old bytes are kept.

All offsets and sizes are multiples of 8.  A `Changes` holds what one transaction, or one operation
inside of one, has changed so far, in order; undoing it backwards restores every byte, because the
first snapshot of a range, which has the oldest bytes, is undone last.

Reads need no call: `words`, `signed` and `doubles` are the same memory as unsigned and signed
64-bit integers and as floats, indexed by offset / 8 (about 25 ns); `map` gives bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

from pmshelve.pmemobj.layout import PAGE

__all__ = ["FRESH_MIN", "Changes", "Memory"]

FRESH_MIN = 64 << 10

_MOVE_SEARCH_MAX = 64
"""Ranges of a transaction that `move` compares itself with before it gives up being a move."""


class Changes:
    """What was changed since a transaction, or an operation inside of it, began.

    Attributes
    ----------
    saved
        In order: offset -> the bytes that were there; or a `(target, source, size)` move -> the
        bytes of the target that the source did not cover, as (offset, bytes).
    fresh
        offset -> size of ranges that held nothing before.
    moves
        Number of moves in `saved`.
    placed
        offset -> size of parts of `fresh` whose bytes are in the file already, and not in memory.
    """

    __slots__ = ("fresh", "moves", "placed", "saved")

    def __init__(self) -> None:
        self.saved: dict[Any, Any] = {}
        self.fresh: dict[int, int] = {}
        self.placed: dict[int, int] = {}
        self.moves: int = 0


class Memory:
    """Words of a privately mapped pool file.

    Parameters
    ----------
    private
        The mapping, writable without the file being changed.
    size
        Bytes of it that the file has now; the rest is reserved address space.

    Attributes
    ----------
    map, bytes, words, signed, halves, doubles
        The same memory as a mmap, and as memoryviews of formats ``B Q q I d``.
    changes
        What the running operation changed; None outside of transactions.
    size
        Bytes that may be touched.
    dirty
        Numbers of the pages that differ from the file's since the last checkpoint.
    fresh_min
        Bytes from which a range that held nothing is worth being told of by `add_fresh`.
    copied
        Likewise of pages whose content does not matter, but which take memory of their own.
    recent
        Numbers of pages freed since the last checkpoint: a record that the journal would replay may
        write there still.
    """

    __slots__ = (
        "bytes",
        "changes",
        "copied",
        "dirty",
        "doubles",
        "fresh_min",
        "halves",
        "map",
        "outer",
        "recent",
        "signed",
        "size",
        "words",
    )

    def __init__(self, private: mmap.mmap, size: int) -> None:
        self.map: mmap.mmap = private
        self.bytes: memoryview[int] = memoryview(private)
        self.words: memoryview[int] = self.bytes.cast("Q")
        self.signed: memoryview[int] = self.bytes.cast("q")
        self.halves: memoryview[int] = self.bytes.cast("I")
        self.doubles: memoryview[float] = self.bytes.cast("d")
        self.size: int = size
        self.changes: Changes | None = None
        self.outer: list[Changes] = []
        self.fresh_min: int = FRESH_MIN
        self.dirty: set[int] = set()
        self.copied: set[int] = set()
        self.recent: set[int] = set()

    # Changing ---------------------------------------------------------------------------------

    def snapshot(self, offset: int, size: int) -> None:
        """Keep the bytes of a range; it may be stored into from now on."""
        saved = self.changes.saved  # type: ignore[union-attr]
        old = saved.get(offset)
        if old is None:
            saved[offset] = self.map[offset : offset + size]
        elif len(old) < size:
            self._snapshot_rest(offset, offset + size)

    def _snapshot_rest(self, offset: int, stop: int) -> None:
        """Keep what of a range is not kept yet, which begins with a range that is.

        A loop: the items appended to a list one by one are as many ranges, each behind the other.
        """
        saved = self.changes.saved  # type: ignore[union-attr]
        old = saved[offset]
        while old is not None and offset < stop:
            if old:
                offset += len(old)
            else:  # an empty range: its place in the order says nothing about what comes now
                del saved[offset]
            old = saved.get(offset)
        if offset < stop:
            saved[offset] = self.map[offset:stop]

    def move(self, target: int, source: int, size: int) -> None:
        """Copy `size` bytes within memory; source and target may overlap.

        Only the move itself reaches the journal, if nothing near was changed before in the same
        transaction; else the target's bytes do.
        """
        changes = self.changes
        assert changes is not None
        low, high = min(target, source), max(target, source) + size
        if self._is_changed(low, high):
            self.snapshot(target, size)
            self.map.move(target, source, size)
            return
        # Bytes of the target outside of the source would be lost; those inside are in the target.
        if target >= source:
            lost = max(target, source + size)
            kept = (lost, self.map[lost : target + size])
        else:
            kept = (target, self.map[target : min(target + size, source)])
        changes.saved[target, source, size] = kept
        changes.moves += 1
        self.map.move(target, source, size)

    def add_fresh(self, offset: int, size: int) -> None:
        """Take note of a large range that held nothing; it may be stored into from now on."""
        self.changes.fresh[offset] = size  # type: ignore[union-attr]

    def _is_changed(self, low: int, high: int) -> bool:
        """Whether the transaction may have changed anything in a range."""
        for changes in (*self.outer, self.changes):
            assert changes is not None
            if len(changes.saved) > _MOVE_SEARCH_MAX:
                return True
            for key, old in changes.saved.items():
                if key.__class__ is tuple:
                    start, stop = min(key[:2]), max(key[:2]) + key[2]
                else:
                    start, stop = key, key + len(old)
                if start < high and low < stop:
                    return True
            for start, size in changes.fresh.items():
                if start < high and low < start + size:
                    return True
        return False

    # Nesting ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to remember; a second call begins an operation that can be undone by itself."""
        if self.changes is not None:
            self.outer.append(self.changes)
        self.changes = Changes()

    def merge(self) -> None:
        """End an operation inside of a transaction: what it changed belongs to the whole.

        An exception in the middle (of a signal) finds the operation still there to be rolled back.
        """
        inner = self.changes
        assert inner is not None
        outer = self.outer[-1]
        saved = outer.saved
        try:
            for key, old in inner.saved.items():
                known = saved.setdefault(key, old)
                if known is not old and key.__class__ is int:
                    done = len(known)
                    while done < len(old):  # the outer one kept less: keep the rest too
                        tail = saved.setdefault(key + done, old[done:])
                        done += len(tail)
            outer.fresh.update(inner.fresh)
            outer.placed.update(inner.placed)
        except BaseException:
            if inner.moves:  # bytes may be put back twice, and logged though nothing changed them
                for key in inner.saved:
                    if key.__class__ is tuple:
                        saved.pop(key, None)
            raise
        outer.moves += inner.moves
        self.changes = outer  # no call from here on, where a signal might come in between
        del self.outer[-1:]

    def _leave(self) -> None:
        # In this order a signal in between leaves one level twice, and undoing it twice is harmless.
        outer = self.outer
        self.changes = outer[-1] if outer else None
        del outer[-1:]

    def rollback(self) -> None:
        """Put every byte back that was changed since the matching `begin`, and end it."""
        changes = self.changes
        assert changes is not None
        self._undo(changes)
        self._leave()

    def cut(self, count: int) -> None:
        """Roll operations back until only `count` others are around the innermost one."""
        while len(self.outer) > count:
            self.rollback()

    def rollback_all(self) -> None:
        """Put every byte back that the whole transaction changed, and end it."""
        while self.changes is not None:
            self.rollback()

    def end(self) -> Changes:
        """End the outermost transaction; return its changes."""
        changes = self.changes
        assert changes is not None
        assert not self.outer
        self.changes = None
        return changes

    def _undo(self, changes: Changes) -> None:
        memory = self.map
        copied = self.copied
        saved = changes.saved
        for key, old in reversed(list(saved.items())):
            if key.__class__ is tuple:
                target, source, size = key
                if len(old) == 2:
                    old = saved[key] = (*old, memory[target : target + size])
                start, kept, moved = old
                memory[source : source + size] = moved
                memory[start : start + len(kept)] = kept
                copied.update(pages_of(min(target, source), abs(target - source) + size))
            else:
                memory[key : key + len(old)] = old
                copied.update(pages_of(key, len(old)))
            del saved[key]  # a signal may let what is left be undone again
        for offset, size in changes.fresh.items():
            copied.update(pages_of(offset, size))

    # The state since the last checkpoint --------------------------------------------------------

    def note_freed(self, offset: int, size: int) -> None:
        """Take note of whole pages that were freed, see `recent`."""
        self.recent.update(pages_of(offset, size))

    def is_untouched(self, offset: int, size: int) -> bool:
        """Whether no record since the last checkpoint writes, or may be replayed, into a range."""
        pages = pages_of(offset, size)
        return self.dirty.isdisjoint(pages) and self.recent.isdisjoint(pages)

    def dirty_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, size) of each run of dirty pages, in order."""
        return runs_of(self.dirty)

    def clean_runs(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, size) of the runs of pages that are as in the file; between transactions."""
        start = 0
        for offset, size in runs_of(self.dirty):
            if offset > start:
                yield start, offset - start
            start = offset + size
        if self.size > start:
            yield start, self.size - start

    # Ending -----------------------------------------------------------------------------------

    def release(self) -> bool:
        """Give the address space back; False where somebody still holds a view of it."""
        try:
            for view in (self.words, self.signed, self.halves, self.doubles, self.bytes):
                view.release()
            self.map.close()
        except BufferError:
            return False  # the last view frees it
        return True


def runs_of(pages: set[int]) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) in bytes of each run of neighbouring pages, in order."""
    first = last = -2
    for page in sorted(pages):
        if page != last + 1:
            if last >= 0:
                yield first * PAGE, (last + 1 - first) * PAGE
            first = page
        last = page
    if last >= 0:
        yield first * PAGE, (last + 1 - first) * PAGE


def pages_of(offset: int, size: int) -> range:
    """Return the numbers of the pages that a range touches."""
    return range(offset // PAGE, (offset + size - 1) // PAGE + 1)
