"""Mend a damaged file in place, keeping every entry whose value is whole.

What `Recovery` finds becomes a chain again where it stands: entries that can be mended are, other
gaps become dead entries (their bytes stay, as data), a batch that lost a member becomes ordinary
entries, and a terminator follows the last entry.  Nothing sound is moved or changed, so after a crash
on the way all this can be done again.  What depends on the content as a whole (flags, counts,
checkpoints) is left to the reload, which finds the file unsettled and of another generation.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Final

from pmshelve.errors import CorruptionError, PmshelveError, StateError, StorageError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.check import Problem, check
from pmshelve.mmapdict.frame import TERMINATOR, TERMINATOR_SIZE
from pmshelve.mmapdict.recover import Gap, Recovery
from pmshelve.storage import file as disk
from pmshelve.storage.binary import U32, U64
from pmshelve.storage.progress import Pace, Progress, part

if TYPE_CHECKING:
    from pmshelve.mmapdict.logfile import Log
    from pmshelve.mmapdict.mapping import mmapdict
    from pmshelve.mmapdict.scan import Entry

__all__ = ["encode_gap", "fsck"]

logger = logging.getLogger("pmshelve.mmapdict")

_GAP_TRAILER: Final = b"J\1\0\0\0" + b"0" + bytes((frame.DEAD,)) + b"0"
_GAP_OVERHEAD: Final = frame.HEAD_SIZE + len(_GAP_TRAILER)
_GAP_SIZE_MIN: Final = _GAP_OVERHEAD + 1
_KEYS_RESERVED: Final = (frame.FILL_KEY, frame.RESERVED)


def fsck(store: mmapdict, *, progress: Progress | None = None) -> bool:
    """Check the file of `store` and mend what is broken; return whether it was sound.

    Parameters
    ----------
    progress
        Called with thousandths of the work: half of it looks, half mends.

    Raises
    ------
    ReadOnlyError
        The store is not writable.
    StorageError
        The file could not be written; what was mended so far stays so.
    """
    log = store._log
    damage, log.damage = log.damage, None
    try:
        log.check_writable()
        log.lock.acquire()
    finally:
        log.damage = damage
    exclusive = log.exclusive
    try:
        if store._batch is not None:
            raise StateError("fsck() cannot run inside a batch", log.name)
        if damage is None and not log.exclusive:
            _catch_up(store)
        log.trim()
        problems = list(check(log, progress=part(progress, 0.0, 0.5)))
        for problem in problems:
            logger.warning("%s: %s", log.name, problem)
        sound = not problems and log.damage is None and not _cut_rubbish(log)
        if problems or log.damage is not None:
            try:
                _mend(log, problems, part(progress, 0.5, 1.0))
                _reload(store)
            except BaseException:
                log.exclusive = exclusive
                with contextlib.suppress(PmshelveError, OSError):
                    store._distrust()  # another fsck goes on from here
                raise
        if progress is not None:
            progress(1000, 1000)
        return sound
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise disk.storage_error(error, "the file could not be mended", log.name) from error
    finally:
        log.lock.release()


def _catch_up(store: mmapdict) -> None:
    """Let an ordinary torn tail be cut first."""
    try:
        store._catch_up()
    except CorruptionError:
        assert store._log.damage is not None


def _cut_rubbish(log: Log) -> bool:
    """Cut what follows the terminator; return whether there was anything."""
    end = log.tail + TERMINATOR_SIZE
    size = log.size
    if size > end:
        logger.warning("%s: %d bytes behind the terminator cut off", log.name, size - end)
        disk.truncate(log.fd, end)
    return size > end


def _reload(store: mmapdict) -> None:
    """Read the file anew, which puts flags and counts right."""
    log = store._log
    exclusive = log.exclusive
    log.exclusive = False
    store._load()
    if log.damage is not None:
        raise log.damage
    if exclusive:
        store._seize()
    log.datasync()


# The chain ------------------------------------------------------------------------------------


def _mend(log: Log, problems: list[Problem], progress: Progress | None) -> None:
    """Make the file one chain of sound entries and a terminator, unsettled."""
    log.remap()
    log.adopt(log.pread(frame.STATE_START, frame.STATE_STOP))
    header = frame.encode_header(log.commit)
    if log.pread(0, len(header)) != header:
        disk.write_at(log.fd, header, 0)
    _unsettle(log)
    batches = {problem.offset for problem in problems if problem.invariant == "L5"}
    end = _Chain(log, batches, progress).mend()
    disk.write_at(log.fd, TERMINATOR, end)
    if log.size > end + TERMINATOR_SIZE:
        disk.truncate(log.fd, end + TERMINATOR_SIZE)
    log.datasync()


def _unsettle(log: Log) -> None:
    """Have everybody read the file anew, and nobody believe what was counted."""
    block = log.superblock
    commit = frame.next_commit(log.commit)
    log.poke(frame.COMMIT_OFFSET, frame.COMMIT.pack(commit))
    if block is not None:
        log.set_field(frame.INDEX_OFFSET, 0, 0, 0)
        log.poke(frame.GENERATION_OFFSET, U32.pack((block.generation + 1) & 0xFFFFFFFF))
    log.adopt(log.pread(frame.STATE_START, frame.STATE_STOP))


class _Chain:
    """The entries of a file being mended."""

    def __init__(self, log: Log, broken_batches: set[int], progress: Progress | None) -> None:
        self._progress = progress
        self._log = log
        self._broken_batches = broken_batches
        self._size = log.size

    def mend(self) -> int:
        """Write what is needed; return where the terminator belongs."""
        recovery = Recovery(self._log.pread, self._size)
        gap_start: int | None = None
        pace = Pace(self._progress, self._size)
        for found in recovery:
            pace.at(recovery.end)
            start = found.start if isinstance(found, Gap) else found.offset
            if gap_start is None:
                gap_start = start
            if isinstance(found, Gap) and found.pokes is None:
                continue
            if 0 < start - gap_start < _GAP_SIZE_MIN:
                continue  # no entry is that small: what follows was none
            if start > gap_start:
                self._bridge(gap_start, start)
            self._keep(found)
            gap_start = None
        return recovery.end if gap_start is None else gap_start

    def _keep(self, found: Entry | Gap) -> None:
        if isinstance(found, Gap):
            logger.warning("%s: mended the entry at %d", self._log.name, found.start)
            for offset, data in found.pokes or ():
                disk.write_at(self._log.fd, data, offset)
        elif found.offset in self._broken_batches:
            self._bridge(found.offset, found.end)

    def _bridge(self, start: int, stop: int) -> None:
        """Turn a range into a dead entry."""
        size = stop - start
        keys = [key for key in _KEYS_RESERVED if _GAP_OVERHEAD + len(key) < size]
        key = keys[0] if keys else self._unused_key(size - _GAP_SIZE_MIN)
        head, trailer = encode_gap(key, size)
        # Between the two the range is no sound entry, and would be bridged again.
        disk.write_at(self._log.fd, head, start)
        disk.write_at(self._log.fd, trailer, stop - len(trailer))

    def _unused_key(self, size: int) -> bytes:
        """Return a key of `size` bytes that no entry has."""
        used = {
            entry.stored
            for found in Recovery(self._log.pread, self._size)
            if (entry := found.entry if isinstance(found, Gap) else found) is not None
            and len(entry.stored) == size
        }
        candidates = (bytes((byte,)) * size for byte in range(1, 128))
        # A gap with no room for a key held the entry of the empty one.
        return next((key for key in candidates if key not in used), b"")


def encode_gap(key: bytes, size: int) -> tuple[bytes, bytes]:
    """Return how a dead entry of `size` bytes begins and ends; anything may stand between.

    Such an entry has no crc, and may end anywhere (its memo index, 1, says so).
    """
    room = size - _GAP_OVERHEAD - len(key)
    head = b"\x95" + U64.pack(size - 9) + b"\x8c" + bytes((len(key),)) + key
    if room > 9:
        value = b"\x8e" + U64.pack(room - 9)
    elif room > 1:
        value = b"C" + bytes((room - 2,))
    else:
        value = b"N"
    return head + value, _GAP_TRAILER
