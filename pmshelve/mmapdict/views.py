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

from ..storage import file as disk
from ..storage.binary import align_up
from .logfile import Log

__all__ = ["COPY_SIZE_MAX", "MAPS_MAX", "PUNCH_SIZE_MIN", "Views"]

COPY_SIZE_MAX = 1 << 14
"""Bytes up to which copying is cheaper than a private map and its page faults."""
MAPS_MAX = 512
"""Live private maps, each of which holds a descriptor, beyond which values are copied."""
PUNCH_SIZE_MIN = 1 << 16
"""Size from which a value's disk blocks are worth giving back one by one."""


class Views:
    """What decoders read from (see `picklers.base.Source`)."""

    def __init__(self, log: Log, mmap_mode: str | None, *, allow_pickle: bool) -> None:
        self._log = log
        self.mmap_mode = mmap_mode
        self.allow_pickle = allow_pickle
        self._live: dict[int, int] = {}
        self._refs: set[Any] = set()
        self._ended: deque[tuple[Any, int]] = deque()
        self._doomed: dict[int, int] = {}

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
        if mode == "c":
            if stop - start > COPY_SIZE_MAX and len(self._refs) < MAPS_MAX:
                return self._own_map(start, stop, private=True)
            return bytearray(log.read(start, stop)), 0
        if mode is None:
            return bytearray(log.read(start, stop)), 0
        if log.exclusive and stop - start >= PUNCH_SIZE_MIN:
            return self._own_map(start, stop, private=False)
        if stop > len(log.map):
            log.read(start, stop) if log.staging else None
            log.remap()
        return log.map, start

    def _own_map(self, start: int, stop: int, *, private: bool) -> tuple[Any, int]:
        """Return a map of this range alone, counted until its last view is gone."""
        if self._ended:
            self.settle()
        base = start - start % mmap.ALLOCATIONGRANULARITY
        stage = self._log.staging
        if stage is not None:
            stage.flush()
        size = stop - base
        shared = disk.map_file(
            self._log.fd, size, offset=base, private=private, writable=self._log.writable
        )
        # The callback may run at any moment, in any thread: it only enqueues.
        self._live[start] = self._live.get(start, 0) + 1
        ended = self._ended
        self._refs.add(weakref.ref(shared, lambda ref: ended.append((ref, start))))
        return shared, start - base

    # Disk blocks of deleted values ------------------------------------------------------------

    def settle(self) -> None:
        """Deal with the maps that ended; the store's lock is held by this thread or not needed."""
        while self._ended:
            ref, start = self._ended.popleft()
            self._refs.discard(ref)
            count = self._live.get(start, 0) - 1
            if count > 0:
                self._live[start] = count
                continue
            self._live.pop(start, None)
            stop = self._doomed.pop(start, None)
            if stop is not None:
                self._punch(start, stop)

    def doom(self, start: int, stop: int) -> None:
        """Give back the blocks of a dead value's data, now or when its last view is gone."""
        self.settle()
        if self._live.get(start):
            self._doomed[start] = stop
        else:
            self._punch(start, stop)

    def forget(self) -> None:
        """Drop all accounts: the maps live on by themselves."""
        self._refs.clear()
        self._live.clear()
        self._doomed.clear()

    def _punch(self, start: int, stop: int) -> None:
        page = mmap.PAGESIZE
        first, last = align_up(start, page), stop - stop % page
        log = self._log
        if first < last and not log.closed and log.exclusive:
            if last > len(log.map):
                log.remap(last)
            disk.discard(log.map, first, last - first)
