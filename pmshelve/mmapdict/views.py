"""Memory for values that come back mapped; disk blocks of dead ones, once nobody looks at them.

With `r+` and `r` values are slices of the one shared map of the file.  With `c` each large value
gets a private map of its own, so that what its holder changes never shows elsewhere; Python
duplicates a descriptor per map, so their number is capped and what comes beyond is copied.  In an
exclusive store large values of shared modes get maps of their own too.

A private map shows what the file holds in every page that its holder has not changed, so in both
cases the end of a value's last map tells when its disk blocks may be given back.  A reader registers
its map and then looks whether the value still lives; a writer turns the value off and then looks for
maps.  So one of them sees the other.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from collections import deque
from typing import Any, NamedTuple

from pmshelve.mmapdict.logfile import Log
from pmshelve.mmapdict.runs import Runs
from pmshelve.storage import file as disk
from pmshelve.storage.binary import align_up

__all__ = ["COPY_SIZE_MAX", "MAPS_MAX", "PUNCH_SIZE_MIN", "Views"]

COPY_SIZE_MAX = 1 << 14
"""Bytes up to which copying is cheaper than a private map and its page faults."""
MAPS_MAX = 512
"""Maps of single values in this process, each of which holds a descriptor; beyond, values of mode
`c` are copied."""
PUNCH_SIZE_MIN = 1 << 16
"""Size from which a value's disk blocks are worth giving back one by one."""

_maps: set[Any] = set()  # of all stores of this process


class _Doomed(NamedTuple):
    """A dead entry with large data, and the maps of that which are still in use."""

    entry: tuple[int, int]
    blobs: list[tuple[int, int]]
    holders: set[Any]


class Views:
    """What decoders read from (see `picklers.base.Source`).

    Attributes
    ----------
    ended
        Maps that are gone, and not yet dealt with.
    parted
        Dead entries whose large data was given back: start, stop, bytes that still have blocks.
    runs
        What is known of small dead values whose blocks may be given back; None where they may not.
    given_back
        Bytes of this file whose disk blocks were given back since it was opened.
    """

    def __init__(self, log: Log, mmap_mode: str | None, *, allow_pickle: bool) -> None:
        self._log = log
        self.mmap_mode = mmap_mode
        self.allow_pickle = allow_pickle
        self.keep_pickles = False
        # Where views are slices of the shared map, small values keep their place for them.
        log.buries = mmap_mode in ("c", None) and not log.synced
        self.runs = Runs(log, self) if log.buries else None
        self.forget()

    @property
    def path(self) -> str | None:
        """Absolute path of the file, or None."""
        return self._log.path

    def read(self, start: int, stop: int) -> bytes:
        """Return the file's bytes between two offsets."""
        return self._log.read(start, stop)

    def window(self, start: int, stop: int) -> tuple[Any, int]:
        """Return a buffer that holds these bytes, and the place of the first in it."""
        mode = self.mmap_mode
        log = self._log
        if log.staging is not None and stop > log.tail:
            # Of a batch under way: should it fail, the file shrinks, and a map of this would kill.
            return bytearray(log.read(start, stop)), 0
        if mode == "c":
            own = self._own_map(start, stop, private=True) if stop - start > COPY_SIZE_MAX else None
            return own or (self._copy(start, stop), 0)
        if mode is None:
            return self._copy(start, stop), 0
        if log.exclusive and stop - start >= PUNCH_SIZE_MIN:
            own = self._own_map(start, stop, private=False)
            if own is not None:
                return own
            # The end of this view will not be noticed, so the blocks stay until a vacuum.
            self._held[object()] = start
        if stop > len(log.map):
            log.remap()
        return log.map, start

    def _own_map(self, start: int, stop: int, *, private: bool) -> tuple[Any, int] | None:
        """Return a map of this range alone, counted until its last view is gone.

        None where there are too many of them in this process, or no descriptor is left for one.
        """
        if self.ended:
            self.settle()
        if len(_maps) >= MAPS_MAX:
            return None
        base = start - start % mmap.ALLOCATIONGRANULARITY
        size = stop - base
        try:
            shared = disk.map_file(
                self._log.fd, size, offset=base, private=private, writable=self._log.writable
            )
        except (OSError, ValueError):  # the latter: another thread has replaced the file just now
            return None
        ended = self.ended

        # The callback may run at any moment, in any thread: it only enqueues.
        def tell(ref: Any) -> None:
            _maps.discard(ref)
            ended.append(ref)

        ref = weakref.ref(shared, tell)
        self._held[ref] = start
        _maps.add(ref)
        return shared, start - base

    def _copy(self, start: int, stop: int) -> bytearray:
        log = self._log
        if stop - start <= COPY_SIZE_MAX or stop > log.tail:
            return bytearray(log.read(start, stop))
        data = bytearray(stop - start)  # filled by a call: through the map it would be held twice
        with disk.reporting("the file could not be read", log.name):
            disk.read_into(log.fd, data, start)
        return data

    # Disk blocks of deleted values ------------------------------------------------------------

    def settle(self) -> None:
        """Deal with the maps that ended, unless another thread is just doing so."""
        # The map first: if what is to go is of this file, so is the map.  (See `forget`.)
        m, ended, held, all_doomed = self._log.map, self.ended, self._held, self._doomed
        settling = self._settling
        if not settling.acquire(blocking=False):
            return
        try:
            while ended:
                ref = ended.popleft()
                held.pop(ref, None)
                for doomed in all_doomed.pop(ref, ()):
                    doomed.holders.discard(ref)
                    if not doomed.holders:
                        self._give_up(m, doomed)
        finally:
            settling.release()

    def is_held(self, start: int, stop: int) -> bool:
        """Whether a map of a value within a range may still be in use."""
        return any(start <= held < stop for held in list(self._held.values()))

    def doom(self, start: int, stop: int, blobs: list[tuple[int, int]]) -> None:
        """Give back the blocks of a dead entry, now or when its last view is gone.

        Parameters
        ----------
        start, stop
            Its range.
        blobs
            Offset and size of each of its data.
        """
        self.settle()
        # Smaller ones share their pages, and their views are slices of the one map.
        blobs = [blob for blob in blobs if blob[1] >= PUNCH_SIZE_MIN]
        with self._settling:
            holders = {ref for ref, held in list(self._held.items()) if start <= held < stop}
            doomed = _Doomed((start, stop), blobs, holders)
            for ref in holders:
                self._doomed.setdefault(ref, []).append(doomed)
        if not holders:
            self._give_up(self._log.map, doomed)

    def join_parted(self) -> None:
        """Take the dead entries that lost their data for parts of runs; the lock is held."""
        while self.parted:
            start, stop, left = self.parted.popleft()
            if self.runs is not None and start >= self._log.loose_from:
                self.runs.add(start, stop, left)

    def forget(self) -> None:
        """Drop all accounts: the maps live on by themselves.

        Called before there is a map of other content.
        """
        self.ended: deque[Any] = deque()
        self.parted: deque[tuple[int, int, int]] = deque()
        self._held: dict[Any, int] = {}
        self._doomed: dict[Any, list[_Doomed]] = {}
        self._settling = threading.Lock()
        self.given_back = 0
        if self.runs is not None:
            self.runs.forget()

    def _give_up(self, m: Any, doomed: _Doomed) -> None:
        start, stop = doomed.entry
        left = stop - start
        for offset, size in doomed.blobs:
            left -= self.punch(m, offset, offset + size)
        self.given_back += stop - start - left
        self.parted.append((start, stop, left))

    def punch(self, m: Any, start: int, stop: int) -> int:
        """Give back the blocks of a range, at once; return how many bytes that may be.

        Parameters
        ----------
        m
            The map of the file that is meant.
        """
        page = mmap.PAGESIZE
        first, last = align_up(start, page), stop - stop % page
        if not (first < last <= len(m) and self._log.exclusive):
            return 0
        return last - first if disk.discard(m, first, last - first) else 0
