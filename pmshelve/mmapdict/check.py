"""State the invariants of a file as code, and yield each that is broken.

The invariants L1 to L9 are those of docs/format-mmapdict.md, section 5; an auditor below stands for
each group and sees all entries, and all gaps between them, in file order.  L9 says that what is not
published may be anything: nothing behind the terminator is looked at.

Checking only reads; it never runs the unpickler and never calls what a file names.  It needs memory
for one small number per key and, where there is a checkpoint, 13 bytes per entry.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.checkpoint import BUCKET_SIZE, Checkpoint, hash_key, open_chain
from pmshelve.mmapdict.recover import Gap, Recovery
from pmshelve.mmapdict.scan import Entry, Irregular, read_entry
from pmshelve.mmapdict.wellformed import find_fault
from pmshelve.storage.binary import SECTOR_SIZE
from pmshelve.storage.progress import Pace, Progress

if TYPE_CHECKING:
    from pmshelve.mmapdict.frame import Read, State
    from pmshelve.mmapdict.logfile import Log

__all__ = ["FileView", "Problem", "check", "check_bytes"]

_BATCH_VALUE: Final = b"C\x10"
_BLOB_SIZE_MIN: Final = 9
_COUNTS_OFFSET: Final = 80  # their stamp before them


@dataclass(frozen=True)
class Problem:
    """One broken invariant.

    Attributes
    ----------
    invariant
        Its number in the format document, such as "L3".
    offset
        Where, in bytes from the file's start.
    key
        The key concerned, or None.
    problem
        What is wrong.
    """

    invariant: str
    offset: int
    key: str | None
    problem: str

    def __str__(self) -> str:
        of = "" if self.key is None else f" (key {self.key!r})"
        return f"{self.invariant}: {self.problem}{of} at offset {self.offset}"


def check(log: Log, *, progress: Progress | None = None) -> Iterator[Problem]:
    """Yield every broken invariant of a file whose lock is held.

    Parameters
    ----------
    progress
        Called with the bytes gone through, and how many there are: of entries, and of checkpoints
        once more.

    Notes
    -----
    Reads all of the file but the data that no crc covers: some 20 µs an entry, 1 s a GB.
    """
    return check_bytes(log.pread, log.end, exclusive=log.exclusive, progress=progress)


def check_bytes(
    read: Read, size: int, *, exclusive: bool = False, progress: Progress | None = None
) -> Iterator[Problem]:
    """Yield every broken invariant of a file.

    Parameters
    ----------
    read
        Returns the file's bytes between two offsets, fewer at its end.
    size
        The file's size.
    exclusive
        The store is open exclusively, by the caller: its counts are not in the file.
    progress
        See `check`.
    """
    if not size:
        return  # a store that was never written to
    yield from _check_header(read)
    state = frame.decode_state(read(frame.STATE_START, frame.STATE_STOP))
    settled = exclusive or state is None or state.settled
    recovery = Recovery(read, size)
    pace = Pace(progress, size)
    auditors = [
        _Layout(read),
        _Keys(read, settled=settled),
        _Batches(read),
        _Counts(None if exclusive else state),
        _Slots(read, size, state, pace),
    ]
    pace.at(0)
    for found in recovery:
        for auditor in auditors:
            if isinstance(found, Gap):
                yield from auditor.gap(found)
                if found.entry is not None:
                    yield from auditor.entry(found.entry)
            else:
                yield from auditor.entry(found)
        pace.at(recovery.end)
    for auditor in auditors:
        yield from auditor.end(recovery.end)
    if recovery.tail is None:
        yield Problem("L1", recovery.end, None, "there is no terminator")
    pace.end()


def _check_header(read: Read) -> Iterator[Problem]:
    found, right = read(0, frame.HEADER_SIZE), frame.encode_header(0)
    if found[: frame.COMMIT_OFFSET] != right[: frame.COMMIT_OFFSET] or found[22:] != right[22:]:
        yield Problem("L1", 0, None, "the header is broken")


class _Auditor:
    """One group of invariants."""

    def entry(self, entry: Entry) -> Iterator[Problem]:
        """Take the next entry."""
        yield from ()

    def gap(self, gap: Gap) -> Iterator[Problem]:
        """Take a range that is no sound entry; if it can be mended, its entry follows."""
        yield from ()

    def end(self, offset: int) -> Iterator[Problem]:
        """Take the end of the chain."""
        yield from ()


class _Layout(_Auditor):
    """L2, L3, L8: each entry by itself."""

    def __init__(self, read: Read) -> None:
        self._read = read
        # mmappickle's vacuum drops the superblock, and moves entries by any number of bytes.
        self._placed = False
        self._mended: Entry | None = None

    def gap(self, gap: Gap) -> Iterator[Problem]:
        key = gap.entry.key if gap.entry is not None else None
        can = "" if gap.entry is not None else f"; {gap.stop - gap.start} bytes are lost"
        yield Problem(gap.invariant, gap.start, key, gap.problem + can)
        self._mended = gap.entry

    def entry(self, entry: Entry) -> Iterator[Problem]:
        if entry.stored == frame.SUPERBLOCK_KEY:
            self._placed = entry.offset == frame.FIRST_ENTRY
            return
        if not entry.own or entry is self._mended:
            return
        stop = entry.end - frame.TRAILER_SIZE
        fault = find_fault(self._read, entry.value, stop)
        if fault is not None:
            yield Problem("L2", entry.offset, entry.key, f"the value is broken: {fault}")
        elif self._placed:
            yield from self._places(entry, stop)

    def _places(self, entry: Entry, stop: int) -> Iterator[Problem]:
        if not 15 <= entry.end % SECTOR_SIZE <= 501:
            problem = f"the entry ends at {entry.end}, too near the edge of a sector"
            yield Problem("L8", entry.offset, entry.key, problem)
        if stop - entry.value < _BLOB_SIZE_MIN:
            return
        for offset, _size in frame.walk(self._read, entry.value, stop):
            if offset % 64 and self._read(offset - 9, offset - 8) == b"\x96":
                problem = f"data at {offset} is not aligned to 64 bytes"
                yield Problem("L8", entry.offset, entry.key, problem)


class _Keys(_Auditor):
    """L4: the newest entry of a key decides."""

    def __init__(self, read: Read, *, settled: bool) -> None:
        self._read = read
        self._settled = settled
        self._newest: dict[int, int] = {}

    def entry(self, entry: Entry) -> Iterator[Problem]:
        if entry.key is None:
            return
        # Keys may be long: their hash (64 bits, and another one in each process) stands for them.
        name = hash(entry.key)
        older = self._newest.get(name)
        if self._settled and older is not None and older & 0xFF == frame.LIVE:
            problem = f"is live, although a newer entry of its key is at {entry.offset}"
            yield Problem("L4", older >> 8, entry.key, problem)
        self._newest[name] = entry.offset << 8 | entry.flag

    def end(self, offset: int) -> Iterator[Problem]:
        for newest in self._newest.values():
            if self._settled and newest & 0xFF == frame.REPLACED:
                problem = "is marked as replaced, and there is no newer entry of its key"
                yield Problem("L4", newest >> 8, self._key_at(newest >> 8, offset), problem)

    def _key_at(self, offset: int, limit: int) -> str | None:
        try:
            return read_entry(self._read, offset, limit).key
        except Irregular:
            return None  # its head is to be mended


class _Batches(_Auditor):
    """L5: a batch is whole."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._start = self._stop = self._count = 0

    def entry(self, entry: Entry) -> Iterator[Problem]:
        if self._stop:
            if entry.end > self._stop or entry.stored == frame.BATCH_KEY:
                yield from self._broken(entry.offset)
            else:
                self._count -= 1
                if entry.end == self._stop:
                    yield from self._broken(entry.end) if self._count else ()
                    self._stop = 0
        if entry.stored == frame.BATCH_KEY:
            yield from self._begin(entry)

    def _begin(self, entry: Entry) -> Iterator[Problem]:
        value = self._read(entry.value, entry.value + 18)
        if len(value) != 18 or not value.startswith(_BATCH_VALUE):
            yield Problem("L5", entry.offset, None, "a batch does not tell its size")
            return
        size, self._count = frame.BATCH_ENTRY.unpack(value[2:])
        self._start, self._stop = entry.offset, entry.offset + size
        if self._stop <= entry.end:
            yield from self._broken(entry.end) if self._count or self._stop < entry.end else ()
            self._stop = 0

    def gap(self, gap: Gap) -> Iterator[Problem]:
        if self._stop and gap.entry is None:
            yield from self._broken(gap.start)

    def end(self, offset: int) -> Iterator[Problem]:
        if self._stop:
            yield from self._broken(offset)

    def _broken(self, offset: int) -> Iterator[Problem]:
        problem = f"a batch is not whole: it breaks off at {offset}"
        yield Problem("L5", self._start, None, problem)
        self._stop = 0


class _Counts(_Auditor):
    """L6: the counts in the superblock."""

    def __init__(self, state: State | None) -> None:
        self._state = state if state is not None and state.settled else None
        self._live_count = 0
        self._dead_size = 0

    def entry(self, entry: Entry) -> Iterator[Problem]:
        if entry.flag == frame.LIVE:
            self._live_count += 1
        elif entry.stored != frame.SUPERBLOCK_KEY:
            self._dead_size += entry.end - entry.offset
        yield from ()

    def gap(self, gap: Gap) -> Iterator[Problem]:
        if gap.entry is None:
            self._state = None  # what the counts counted cannot be known
        yield from ()

    def end(self, offset: int) -> Iterator[Problem]:
        state = self._state
        if state is None:
            return
        for name, told, found in (
            ("live entries", state.live_count, self._live_count),
            ("bytes in dead entries", state.dead_size, self._dead_size),
        ):
            if told not in (found, frame.UNKNOWN):
                problem = f"the superblock tells of {told} {name}, and there are {found}"
                yield Problem("L6", _COUNTS_OFFSET, None, problem)


class _Slots(_Auditor):
    """L7: the checkpoints."""

    def __init__(self, read: Read, size: int, state: State | None, pace: Pace) -> None:
        self._pace = pace
        self._done = size
        self._pointer = read(frame.INDEX_OFFSET, frame.INDEX_OFFSET + 28) if state else bytes(28)
        self._view = FileView(read, size)
        self._offsets = array("Q")
        self._hashes = array("I")
        self._wanting = bytearray()
        where = frame.decode_pointer(self._pointer)
        self._end = 0 if where is None else where[2]
        pace.total += 0 if where is None else min(where[1], size)  # about: of the newest one

    def entry(self, entry: Entry) -> Iterator[Problem]:
        if entry.offset < self._end:
            stored = b"" if entry.key is None else entry.key.encode("utf-8", "surrogatepass")
            self._offsets.append(entry.offset)
            self._hashes.append(0 if entry.key is None else hash_key(stored))
            self._wanting.append(entry.flag == frame.LIVE)
        yield from ()

    def end(self, offset: int) -> Iterator[Problem]:
        where = frame.decode_pointer(self._pointer)
        if where is None:
            if any(self._pointer[:24]):
                yield Problem("L7", frame.INDEX_OFFSET, None, "the pointer's checksum is wrong")
            return
        try:
            chain = open_chain(self._view, where[0], where[1])
        except CorruptionError as error:
            yield Problem("L7", error.offset or 0, None, error.problem)
            return
        if chain[0].end != self._end:
            yield Problem("L7", chain[0].offset, None, "covers another range than the pointer says")
        for table in chain:
            yield from self._check_table(table)
        for index, wanting in enumerate(self._wanting):
            if wanting:
                yield Problem("L7", self._offsets[index], None, "the entry is in no checkpoint")

    def _check_table(self, table: Checkpoint) -> Iterator[Problem]:
        for offset, problem in table.verify():
            yield Problem("L7", offset, None, problem)
        try:
            for hashes, offsets in table.slots():
                self._done += BUCKET_SIZE
                self._pace.at(self._done)
                for hash_, offset in zip(hashes, offsets, strict=True):
                    if hash_ and not self._claim(hash_, offset):
                        problem = f"a slot points at {offset}, where no key has its hash"
                        yield Problem("L7", table.offset, None, problem)
        except CorruptionError:
            pass  # said above

    def _claim(self, hash_: int, offset: int) -> bool:
        """Note that the entry at `offset` has a slot; False if there is none with that hash."""
        index = bisect_left(self._offsets, offset)
        if index == len(self._offsets) or self._offsets[index] != offset:
            return False
        self._wanting[index] = 0
        return self._hashes[index] == hash_


class FileView:
    """A file as `Checkpoint` wants it: sliced by absolute offset, without a map."""

    def __init__(self, read: Read, size: int) -> None:
        self._read = read
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: Any) -> bytes:
        stop = min(where.stop, self._size)
        return self._read(where.start, stop) if where.start < stop else b""
