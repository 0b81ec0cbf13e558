"""Runs of small dead entries: each becomes one entry, whose disk blocks are given back.

Small entries share their pages, so that none of them can be given back by itself.  An exclusive
store whose values are never seen through the shared map (modes `c` and None) notes those that die.
Neighbours make a run; when it has grown by enough, it is *buried*: its first entry is made to reach
to the run's end, as a dead entry of the same key with one large value, and a hole is punched into
that.  In this order, each a store of at most 8 bytes, so that a kill in between leaves a whole file:

    B1  flag of the last entry: dead         it may have been replaced
    B2  its memo field: 1                    what ends here has no crc
    B3  FRAME of the first entry: as long    for whoever walks the entries it is one now, whose value
        as the run                           has complete dead entries behind it
    B4  its value: BINBYTES, as long as up   and for whoever runs the opcodes
        to the last trailer
    B5  the hole

A dead entry says no more than that its key was not there at its place.  The ones that vanish said so
of keys whose older entries are dead as well.  Those must not be marked as replaced, for that means
that a newer one was lost.  So an entry that is replaced is marked as dead at once, unless there is one
of its key that a sync has made durable: then it is marked as replaced, is not buried, and marked as
dead when its successor dies (`OpenFile.shadows`).

A power cut may lose the flags of older entries, and these steps may reach the disk in part; so only
entries that no sync has made durable are buried, of which a power cut may take what it likes.  Nor are
those that a checkpoint points at.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pmshelve.mmapdict.frame import HEAD_SIZE, KEY_MARKER, TRAILER_SIZE
from pmshelve.mmapdict.scan import read_long_key
from pmshelve.storage import file as disk
from pmshelve.storage.binary import PAGE_SIZE, U64

if TYPE_CHECKING:
    from pmshelve.mmapdict.logfile import Log
    from pmshelve.mmapdict.views import Views

__all__ = ["GAIN_MAX", "GAIN_MIN", "Runs"]

logger = logging.getLogger("pmshelve.mmapdict")

GAIN_MIN = 1 << 14
"""Bytes by which a run must grow before it is buried (again); and by an eighth of its size."""
GAIN_MAX = 1 << 20
"""Bytes by which no run needs to grow any further."""
_RUN_SIZE_MAX = 1 << 31
"""Size that no run exceeds: BINBYTES has a size of 4 bytes."""


class Runs:
    """The dead entries of one open file, joined where they touch.

    Parameters
    ----------
    log, views
        Of the store; its lock is held whenever this is used.
    """

    __slots__ = ("_by_start", "_by_stop", "_kept", "_log", "_views")

    def __init__(self, log: Log, views: Views) -> None:
        self._log = log
        self._views = views
        self._by_start: dict[int, tuple[int, int]] = {}
        self._by_stop: dict[int, int] = {}
        self._kept: set[int] = set()

    def __len__(self) -> int:
        return len(self._by_start)

    def forget(self) -> None:
        """Start anew: the file's content is another."""
        self._by_start.clear()
        self._by_stop.clear()
        self._kept.clear()
        self._log.shadows.clear()

    def pass_on(self, flag: int, successor: int) -> None:
        """Note that the entry with a flag at `flag` is dead, before it may be buried.

        Parameters
        ----------
        successor
            Where the flag of the entry is that has replaced it; 0: it was deleted.
        """
        log = self._log
        older = log.shadows.pop(flag, 0) if log.shadows else 0
        if successor and (older or flag < log.loose_from):
            # It is marked as replaced itself, and stays where it is for as long as that matters.
            self._kept.add(flag)
            log.shadows[successor] = flag
        elif older:
            try:
                log.poke(older, b"0")
            except OSError as error:
                log.fail()
                problem = "an entry could not be turned off"
                raise disk.storage_error(error, problem, log.name) from error

    def add(self, start: int, stop: int, gain: int) -> None:
        """Note that the entry from `start` to `stop` is dead; bury its run if that is due.

        Parameters
        ----------
        gain
            Bytes of it that still have disk blocks.
        """
        if stop - 2 in self._kept:
            return
        by_start, by_stop = self._by_start, self._by_stop
        before = by_stop.pop(start, None)
        if before is not None:
            gain += by_start.pop(before)[1]
            start = before
        after = by_start.pop(stop, None)
        if after is not None:
            stop, more = after
            gain += more
        if gain >= GAIN_MIN and self._is_due(start, stop, gain):
            if stop - start > _RUN_SIZE_MAX:
                by_stop.pop(stop, None)
                return  # long enough: its neighbours make a run of their own
            gain = self._give_back(start, stop, gain)
        by_start[start] = stop, gain
        by_stop[stop] = start

    def give_back(self, gain_min: int = GAIN_MIN) -> None:
        """Bury all runs that have grown by so much, where that is due."""
        for start, (stop, gain) in list(self._by_start.items()):
            if gain >= gain_min and (gain_min < GAIN_MIN or self._is_due(start, stop, gain)):
                self._by_start[start] = stop, self._give_back(start, stop, gain)

    def _is_due(self, start: int, stop: int, gain: int) -> bool:
        """Whether a run has grown by enough, and is where no more is stored through the map.

        A store brings the blocks back of all pages that the system keeps together.
        """
        log = self._log
        return (gain >= GAIN_MAX or gain >= (stop - start) >> 3) and (
            not log.cools or gain >= 2 * (stop - log.cold)
        )

    def _give_back(self, start: int, stop: int, gain: int) -> int:
        """Bury a run unless somebody looks at what is in it; return what is left to gain."""
        views = self._views
        if views.ended:
            views.settle()
        if start < self._log.loose_from or views.is_held(start, stop):
            return gain
        try:
            self._bury(start, stop)
        except OSError as error:
            logger.warning("%s: disk blocks not given back: %s", self._log.name, str(error))
        views.given_back += gain
        return 0

    def _bury(self, start: int, stop: int) -> None:
        log = self._log
        value = start + HEAD_SIZE + log.byte(start + 10)
        if log.read(start + HEAD_SIZE, value) == KEY_MARKER:
            value, _key = read_long_key(log.read, value, stop)
        trailer = stop - TRAILER_SIZE
        log.poke(stop - 2, b"0")  # B1
        log.poke(stop - 7, b"\1")  # B2
        self._store(start + 1, U64.pack(stop - start - 9))  # B3
        size = (trailer - value - 5).to_bytes(4, "little")
        self._store(value, b"B" + size + log.read(value + 5, value + 8))  # B4
        self._views.punch(log.map, value + 8, trailer)  # B5

    def _store(self, offset: int, data: bytes) -> None:
        """Store 8 bytes at once: a write would be cut at the edge of a page."""
        if offset & (PAGE_SIZE - 1) > PAGE_SIZE - 8:
            self._log.map[offset : offset + 8] = data
        else:
            self._log.poke(offset, data)
