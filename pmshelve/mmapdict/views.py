"""Memory for values that come back mapped.

With `r+` and `r` values are slices of the one shared map of the file.  With `c` each large value
gets a private map of its own, so that what its holder changes never shows elsewhere; Python
duplicates a descriptor per map, so their number is capped and what comes beyond is copied.  In an
exclusive store large values of shared modes get maps of their own too: the end of the last one
tells when the disk blocks of a deleted value may be given back.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from typing import Any

from pmshelve.mmapdict.logfile import Log
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

_FOR_EVER = 1 << 60
_maps: set[Any] = set()  # of all stores of this process


class Views:
    """What decoders read from (see `picklers.base.Source`)."""

    def __init__(self, log: Log, mmap_mode: str | None, *, allow_pickle: bool) -> None:
        self._log = log
        self.mmap_mode = mmap_mode
        self.allow_pickle = allow_pickle
        self.ended: deque[tuple[Any, int]] = deque()
        self._refs: set[Any] = set()
        self._live: dict[int, int] = {}
        self._doomed: list[tuple[set[int], list[tuple[int, int]]]] = []

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
            return own or (bytearray(log.read(start, stop)), 0)
        if mode is None:
            return bytearray(log.read(start, stop)), 0
        if log.exclusive and stop - start >= PUNCH_SIZE_MIN:
            own = self._own_map(start, stop, private=False)
            if own is not None:
                return own
            # The end of this view will not be noticed, so the blocks stay until a vacuum.
            self._live[start] = _FOR_EVER
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
        except OSError:
            return None
        # The callback may run at any moment, in any thread: it only enqueues.
        self._live[start] = self._live.get(start, 0) + 1
        ended = self.ended

        def tell(ref: Any) -> None:
            _maps.discard(ref)
            ended.append((ref, start))

        ref = weakref.ref(shared, tell)
        self._refs.add(ref)
        _maps.add(ref)
        return shared, start - base

    # Disk blocks of deleted values ------------------------------------------------------------

    def settle(self) -> None:
        """Deal with the maps that ended."""
        while self.ended:
            ref, start = self.ended.popleft()
            if ref not in self._refs:
                continue
            self._refs.discard(ref)
            self._live[start] -= 1
            if not self._live[start]:
                del self._live[start]
                for holders, blobs in self._doomed:
                    holders.discard(start)
                    if not holders:
                        self._punch(blobs)
                self._doomed = [doomed for doomed in self._doomed if doomed[0]]

    def doom(self, start: int, stop: int, blobs: list[tuple[int, int]]) -> None:
        """Give back the blocks of a dead value, now or when its last view is gone.

        Parameters
        ----------
        start, stop
            Range of the value's opcodes.
        blobs
            Offset and size of each of its data.
        """
        self.settle()
        # Smaller ones share their pages, and their views are slices of the one map.
        blobs = [blob for blob in blobs if blob[1] >= PUNCH_SIZE_MIN]
        holders = {held for held in self._live if start <= held < stop}
        if holders:
            self._doomed.append((holders, blobs))
        else:
            self._punch(blobs)

    def forget(self) -> None:
        """Drop all accounts: the maps live on by themselves."""
        self._refs = set()
        self._live = {}
        self._doomed = []

    def _punch(self, blobs: list[tuple[int, int]]) -> None:
        page = mmap.PAGESIZE
        log = self._log
        for start, size in blobs:
            stop = start + size
            first, last = align_up(start, page), stop - stop % page
            if first < last and not log.closed and log.exclusive:
                if last > len(log.map):
                    log.remap(last)
                disk.discard(log.map, first, last - first)
