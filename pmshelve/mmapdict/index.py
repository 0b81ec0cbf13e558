"""Key -> entry: the checkpoints in the file, and what came after them.

`entries` maps a key to where its newest entry is: a tuple once it was used (`Place`), the entry's
offset before that, None for a key known to be gone.  A *complete* index knows all keys; a partial
one knows those changed since the last checkpoint and those used, and asks the checkpoints for the
rest.

The newest entry of a key decides (invariant L4).  REPLACED on the newest one means that its
successor was lost in a power cut: it counts as live, and the next writer turns it on again.
"""

from __future__ import annotations

import logging
import struct
from typing import Any

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.checkpoint import Checkpoint, hash_key, open_chain
from pmshelve.mmapdict.checkpoint_writer import merge, plan_merge
from pmshelve.mmapdict.frame import (
    DEAD,
    HEAD_SIZE,
    LIVE,
    REPLACED,
    TERMINATOR,
    TERMINATOR_SIZE,
    TRAILER_SIZE,
)
from pmshelve.mmapdict.logfile import Log
from pmshelve.mmapdict.openfile import BOOT_UNKNOWN, CLEAN, UNSOUND
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.scan import Entry, Irregular, Scan, find_entry, quick_entries, read_entry
from pmshelve.storage import file as disk
from pmshelve.storage.binary import U32, U64, crc32
from pmshelve.storage.lock import EXCLUSIVE, SHARED

__all__ = ["CHECKPOINT_CLOSE_MIN", "CHECKPOINT_COUNT", "Index", "NeedsLock", "walk"]

logger = logging.getLogger("pmshelve.mmapdict")

CHECKPOINT_COUNT = 1 << 17
"""Entries behind the last checkpoint at which a put writes one: what a crash costs to scan."""
CHECKPOINT_CLOSE_MIN = 512
"""Entries behind the last checkpoint at which closing writes one: what opening costs to scan."""
TAIL_READ_SIZE = 1 << 16
"""Bytes read at once of what others appended."""
MERGE_MAX = 1 << 19
"""Slots that a merge from within a put may rewrite."""

Place = tuple[int, int, int, Any, int, bool]
"""Offset of the flag; start and end of the value, and its decoder; offset of the entry; reduces."""
Old = tuple[int, bool, int]
"""Offset of the flag, reduces, size: what retiring an entry needs."""

_LOOKS_MAX = 3
_pack_hash = U32.pack
_unpack_offset = struct.Struct("<Q").unpack_from
_unpack_head = struct.Struct("<BQBB").unpack_from
_MISSING: Any = object()


class NeedsLock(Exception):
    """What changed cannot be understood without keeping writers out."""


class Index:
    """Where the entries of a log are.

    Attributes
    ----------
    entries
        Key to `Place`, offset, or None.
    complete
        Whether `entries` holds every live key.
    fresh, limit
        Entries behind the last checkpoint, and how many of them make a put write another.
    disordered
        Whether `entries` is no more in file order.
    unswept
        Whether others may have deleted what `entries` holds.
    plain
        Whether the built-in picklers alone read the values.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Place | int | None] = {}
        self.complete = True
        self.fresh = 0
        self.limit = CHECKPOINT_COUNT
        self._chain: list[Checkpoint] = []
        self._doubles: list[int] = []
        self.unswept = False
        self.disordered = False
        self._trusting = True
        self.plain = True

    def forget(self) -> None:
        """Drop all that is known, and with it the maps of the file."""
        self.entries.clear()
        self._chain = []

    # Reading the whole file -------------------------------------------------------------------

    def load(self, log: Log, *, locked: bool) -> None:
        """Build the index anew, repairing the file if the lock is held exclusively (`locked`).

        Raises
        ------
        CorruptionError
            The file is damaged, not just torn; nothing was changed.
        """
        # Whoever reads without the lock meanwhile waits for it.
        log.state = log.sound = log.busy = UNSOUND
        if not log.exclusive:
            log.reserved = 0
        size = log.size
        log.remap()
        state = bytes(log.map[frame.STATE_START : frame.STATE_STOP])
        block = log.superblock = frame.decode_state(state)
        boot = disk.boot_id() if any(disk.boot_id()) else BOOT_UNKNOWN
        suspect = (
            block is not None
            and block.boot != CLEAN
            and (block.boot != boot or boot == BOOT_UNKNOWN)
        )
        chain = self._open_chain(log, size) if self._trusting and not suspect else []
        start = chain[0].end if chain else frame.HEADER_SIZE
        loader = _Loader(log, start, size, suspect=suspect)
        loader.run()
        self._chain = chain
        self.complete = not chain
        self.fresh = loader.count
        self._doubles = []
        if self.complete:
            entries: dict[str, Place | int | None] = {
                key: offset for key, offset in loader.entries.items() if offset is not None
            }
        else:
            entries = dict(loader.entries)
        self.entries.clear()
        self.entries.update(entries)
        log.tail = log.loose_from = loader.tail
        log.adopt(state)
        if loader.torn or suspect:
            log.live_count = log.dead_size = None
        self.unswept = self.disordered = False
        if chain and (block is None or not block.settled):
            self._doubles = [
                offset for key in loader.entries if (offset := self.find(log, key)) is not None
            ]
        if locked:
            with disk.reporting("the file could not be repaired", log.name):
                self._repair(log, loader, size, boot, suspect=suspect)

    def _open_chain(self, log: Log, size: int) -> list[Checkpoint]:
        pointer = log.field(frame.INDEX_OFFSET)
        if pointer is None or max(pointer[0] + pointer[1], pointer[2]) > size:
            return []
        if pointer[0] + pointer[1] > len(log.map):
            log.remap()
        try:
            return open_chain(log.map, pointer[0], pointer[1])
        except CorruptionError as error:
            logger.warning("%s: index checkpoint ignored: %s", log.name, str(error))
            return []

    def _repair(  # noqa: C901 (a straight run of steps)
        self, log: Log, loader: _Loader, size: int, boot: bytes, *, suspect: bool
    ) -> None:
        """Bring the file to a settled state that holds every invariant."""
        block = log.superblock
        unsettled = block is not None and not block.settled
        if loader.torn or suspect or unsettled or loader.doubles or self._doubles or loader.lost:
            log.begin()  # whoever dies from here on leaves the file unsettled, for the next one
        if loader.torn:
            logger.warning(
                "%s: torn tail of %d bytes cut off at %d", log.name, size - log.tail, log.tail
            )
            if size > log.tail:
                disk.truncate(log.fd, log.tail)
            disk.write_at(log.fd, TERMINATOR, log.tail)
            log.remap()
            if log.tail < frame.SUPERBLOCK_END:
                block = log.superblock = None
        elif size != log.tail + TERMINATOR_SIZE:
            disk.truncate(log.fd, log.tail + TERMINATOR_SIZE)
            log.remap()
        doubles = loader.doubles + self._doubles
        self._doubles = []
        if not (loader.torn or suspect or unsettled or doubles or loader.lost):
            if block is None:
                log.live_count, log.dead_size = len(self.entries), loader.dead_size
            log.sound = log.state if block is None or block.is_marked else UNSOUND
            return
        self._line_up(log, doubles, loader.lost)
        if block is not None:
            if self.complete:
                log.set_field(frame.INDEX_OFFSET, 0, 0, 0)  # while the file is still suspect
            if suspect:
                log.datasync()
                log.set_synced_end()
                log.poke(frame.SYNC_OFFSET, boot)
            log.poke(frame.MARKS_OFFSET, bytes((block.marks & ~frame.MARK_EXCLUSIVE,)))
        log.live_count = len(self.entries) if self.complete else None
        log.dead_size = loader.dead_size if self.complete else None
        log.settle()
        log.superblock = frame.decode_state(log.state)

    def _line_up(self, log: Log, doubles: list[int], lost: dict[str, int]) -> None:
        """Retire older live entries and revive those whose successor is gone."""
        for offset in doubles:
            flag, reduces, size = self.extent(log, offset)
            if log.byte(flag) == LIVE:
                log.retire((flag, reduces, size), REPLACED)
        for offset in lost.values():
            flag, reduces, _size = self.extent(log, offset)
            log.revive(flag, reduces)

    # Following other writers ------------------------------------------------------------------

    def refresh(self, log: Log, *, locked: bool, exclusive: bool = False) -> None:
        """Take in what others changed since `log.state`.

        Parameters
        ----------
        locked
            Some lock is held, so that no change is under way.
        exclusive
            The lock is held exclusively: a change cut short is completed.

        Raises
        ------
        NeedsLock
            Not without a lock; nothing was changed.
        """
        state = bytes(log.map[frame.STATE_START : frame.STATE_STOP])
        block = frame.decode_state(state)
        known = log.superblock
        if (
            block is None
            or known is None
            or log.state == UNSOUND
            or block.identity != known.identity
            or block.generation != known.generation
            or block.marks
            or (block.commit < log.commit and block.commit > 1)
        ):
            if not locked:
                raise NeedsLock
            self.load(log, locked=exclusive)
            return
        try:
            self._take_new(log, own_only=not locked)
        except Irregular:
            if not locked:
                raise NeedsLock from None
            self.load(log, locked=exclusive)
            return
        if exclusive and not block.settled:
            # The writer died, or was mmappickle: what it left undone is done here.
            log.adopt(state)
            with disk.reporting("the file could not be repaired", log.name):
                if log.size != log.tail + TERMINATOR_SIZE:
                    disk.truncate(log.fd, log.tail + TERMINATOR_SIZE)
                self._line_up(log, self._doubles, {})
            self._doubles = []
            self.unswept = True
            log.begin()
            log.settle()
            return
        if block.settled and state == bytes(log.map[frame.STATE_START : frame.STATE_STOP]):
            self._doubles = []  # nobody was, or is, halfway through a change
        self.unswept = True
        log.adopt(state, block, busy=not (locked or block.settled))

    def _take_new(self, log: Log, *, own_only: bool) -> None:
        """Take in what stands where the terminator stood.

        The tail goes last: a thread that finds the terminator there believes that `entries` is
        complete up to it.
        """
        looks = 0
        while True:
            tail = log.tail
            data = log.pread(tail, tail + TAIL_READ_SIZE)
            if data.startswith(TERMINATOR) or (own_only and data[9:11] == TERMINATOR[9:]):
                return  # the latter: its size is being stored over, nothing is published yet
            quick, tail = quick_entries(data, tail, plain=self.plain)
            if not quick:
                looks += 1
                if looks < _LOOKS_MAX:
                    continue  # the file grew while it was read
                scan = Scan(log.pread, tail, log.size, verify=True, own_only=own_only)
                self._take_in(log, list(scan))
                log.tail = scan.tail
                return
            self._take_quick(log, quick)
            done = tail - log.tail
            log.tail = tail
            if data.startswith(TERMINATOR, done):
                return
            looks = 0

    def _take_quick(self, log: Log, new: list[tuple[str, int, Any]]) -> None:
        entries, complete = self.entries, self.complete
        old: Any = None
        for key, flag, place in new:
            old = entries.get(key, _MISSING)
            if old is not _MISSING:
                self.disordered = True
            if flag != DEAD:
                entries[key] = place
            elif complete:
                entries.pop(key, None)
            else:
                entries[key] = None
        self.fresh += len(new)
        # Who appends has seen to it that all before is settled: only the last one may have left
        # an older entry of its key alive.
        if old is _MISSING:
            old = None if complete else self.find(log, key)
        self._doubles = [] if old is None else [old if isinstance(old, int) else old[4]]

    def _take_in(self, log: Log, new: list[Entry]) -> None:
        entries = self.entries
        for entry in new:
            self.fresh += 1
            key = entry.key
            if key is None:
                if entry.stored == frame.INDEX_KEY and not self.complete:
                    self._chain = self._open_chain(log, log.size) or self._chain
                continue
            old = entries.get(key, _MISSING)
            if old is _MISSING and not self.complete:
                old = self.find(log, key)
            if old is not _MISSING and old is not None:
                self._doubles.append(old if isinstance(old, int) else old[4])
            if entry.flag != DEAD:
                entries[key] = entry.offset
            elif not self.complete:
                entries[key] = None
            else:
                entries.pop(key, None)
            self.disordered = True

    # Looking up -------------------------------------------------------------------------------

    def lookup(self, log: Log, key: str) -> Place | int | None:
        """Return where the newest entry of `key` is, which may be dead."""
        entry = self.entries.get(key, _MISSING)
        if entry is _MISSING:
            return None if self.complete else self.find(log, key)
        return entry  # type: ignore[no-any-return]

    def find(self, log: Log, key: str) -> int | None:  # noqa: C901, PLR0912 (hot)
        """Return the offset of the newest entry of `key` that a checkpoint knows, live or dead."""
        try:
            stored = key.encode()
        except UnicodeEncodeError:
            stored = key.encode("utf-8", "surrogatepass")
        hashed = crc32(stored) * 2654435769 & 0xFFFFFFFF | 1  # `hash_key`
        wanted = _pack_hash(hashed)
        m = log.map
        try:
            for table in self._chain:
                if table.view is not m:
                    table.view = m
                bucket = hashed * table.buckets >> 32
                if table.checked[bucket >> 5]:  # `table.first`, written out for the usual cases
                    at = table.buckets_at + (bucket << 7)
                    found = m.find(wanted, at, at + 40)
                    if found < 0 and not m[at + 36]:
                        continue
                    if found < 0 or (found - at) & 3:
                        offset = table.first(hashed)
                    else:
                        offset = _unpack_offset(m, found + found - at + 40)[0]
                else:
                    offset = table.first(hashed)
                if offset:
                    size = len(stored)
                    start = offset + HEAD_SIZE
                    if m[start : start + size] == stored and m[start - 1] == size:
                        return offset
                    for offset in table.find(hashed):
                        if read_entry(log.read, offset, table.end).key == key:
                            return offset
        except (CorruptionError, Irregular, IndexError) as error:
            logger.warning("%s: index checkpoint given up: %s", log.name, str(error))
            self._give_up_chain(log)
            entry = self.entries.get(key)
            return entry[4] if isinstance(entry, tuple) else entry
        return None

    def _give_up_chain(self, log: Log) -> None:
        """Scan the file instead of trusting its checkpoints ever again."""
        self._trusting = False
        counts = log.live_count, log.dead_size
        log.lock.acquire(EXCLUSIVE if log.writable else SHARED)
        try:
            busy = log.exclusive or log.staging is not None
            self.load(log, locked=log.writable and not busy)
            if busy:
                log.live_count, log.dead_size = counts
        finally:
            log.lock.release()

    def memo(self, log: Log) -> int:
        """Return the first memo index that is free for opcodes of mmappickle's kind."""
        memo = 1
        for entry in walk(log):
            if not entry.own:
                trailer = log.read(entry.end - 8, entry.end)
                memo = max(memo, int.from_bytes(trailer[1:5], "little"))
        return memo

    def extent(self, log: Log, offset: int) -> Old:
        """Return flag offset, reduces and size of the entry at `offset`."""
        m = log.map
        if (
            log.cold <= offset < min(len(m), log.tail) - HEAD_SIZE
        ):  # an ordinary entry, small enough
            _tag, size, _op, key_size = _unpack_head(m, offset)
            end, value = offset + 9 + size, offset + HEAD_SIZE + key_size
            if end <= len(m) and m[offset + HEAD_SIZE] and m[end - 9 : end - 2] == frame.OWN_TAIL:
                reduces = m[value] == 0x8C and frame.reduces_at(m[value : value + 26])
                return end - 2, reduces and m[end - TRAILER_SIZE] == 0x4A, size + 9
        head = log.read(offset, offset + HEAD_SIZE)
        size = U64.unpack_from(head, 1)[0] + 9
        value = offset + HEAD_SIZE + head[10]
        opening = log.read(value, min(value + 300, offset + size))
        if head[10] == len(frame.KEY_MARKER) and opening[:2] == b"0X":
            value = read_entry(log.read, offset, offset + size).value
            opening = log.read(value, min(value + 32, offset + size))
        own = frame.is_own_trailer(log.read(offset + size - TRAILER_SIZE, offset + size))
        return offset + size - 2, own and frame.reduces_at(opening), size

    def old(self, log: Log, entry: Place | int) -> Old:
        """Return what retiring `entry` needs."""
        if isinstance(entry, int):
            return self.extent(log, entry)
        return entry[0], entry[5], entry[0] + 2 - entry[4]

    # All keys ---------------------------------------------------------------------------------

    def keys(self, log: Log) -> list[str]:
        """Return the live keys in file order; the state must be known."""
        if not self.complete:
            return self._walk_keys(log)
        if not self.disordered:
            return list(self.entries)
        placed = [
            (entry if isinstance(entry, int) else entry[4], key)
            for key, entry in list(self.entries.items())
            if entry is not None
        ]
        return [key for _offset, key in sorted(placed)]

    def _walk_keys(self, log: Log) -> list[str]:
        """Return the keys whose newest entry up to the tail is not dead.

        REPLACED on such an entry: its successor is being written just now, behind the tail.
        """
        keys: dict[str, None] = {}
        for entry in walk(log):
            key = entry.key
            if key is not None:
                keys.pop(key, None)
                if entry.flag != DEAD:
                    keys[key] = None
        return list(keys)

    def gone(self, log: Log) -> list[str]:
        """Return the keys whose flags are dead."""
        return [
            key
            for key, entry in list(self.entries.items())
            if entry is not None
            and log.byte(entry[0] if isinstance(entry, tuple) else self.extent(log, entry)[0])
            == DEAD
        ]

    def sweep(self, log: Log) -> None:
        """Drop the keys that others deleted; the lock is held, the state known."""
        if self.unswept and self.complete:
            for key in self.gone(log):
                self.entries.pop(key, None)
        self.unswept = False

    def count(self, log: Log) -> tuple[int, int]:
        """Count live entries and bytes in dead ones, by walking the file."""
        live = live_size = 0
        entries = self.entries
        for entry in walk(log):
            key = entry.key
            if entry.stored == frame.SUPERBLOCK_KEY:
                live_size += entry.end - entry.offset
            elif key is not None and entry.flag != DEAD:
                known = entries.get(key, _MISSING)
                if known is _MISSING:
                    current = entry.flag == LIVE and not self.complete
                else:
                    place = known if known is None or isinstance(known, int) else known[4]
                    current = place == entry.offset
                if current:
                    live += 1
                    live_size += entry.end - entry.offset
        return live, log.tail - frame.HEADER_SIZE - live_size

    # Checkpoints ------------------------------------------------------------------------------

    def write_checkpoint(self, log: Log, *, limit: int | None = None) -> None:
        """Append a checkpoint of what is not covered yet, and point the superblock to it.

        Swallows older ones so that the chain stays short, as far as `limit` slots allow.
        """
        if log.superblock is None:
            return
        covered = self._chain[0].end if self._chain else frame.HEADER_SIZE
        hashes: list[int] = []
        offsets: list[int] = []
        for key, entry in self.entries.items():
            if entry is None:
                continue
            offset = entry if isinstance(entry, int) else entry[4]
            if offset >= covered:
                hashes.append(hash_key(key.encode("utf-8", "surrogatepass")))
                offsets.append(offset)
        swallowed = plan_merge([table.count for table in self._chain], len(offsets), limit)
        chain = self._chain[:swallowed]
        older = self._chain[0] if self._chain else None
        for table in self._chain:
            table.view = log.map
        data = merge(
            chain,
            hashes,
            offsets,
            start=covered,
            end=log.tail,
            older_offset=older.offset if older else 0,
            older_size=older.size if older else 0,
            is_stale=lambda offset: log.byte(self.extent(log, offset)[0]) != LIVE,
        )
        blob = Blob(len(data), lambda: [data])
        layout = frame.lay_out(frame.INDEX_KEY, [blob], False, log.tail, live=False)
        end = log.tail
        log.append_layout(layout, None, live=False)
        log.begin()
        log.set_field(frame.INDEX_OFFSET, layout.blobs[0][0], len(data), end)
        log.loose_from = log.tail
        log.settle()
        self._chain = self._open_chain(log, log.tail)
        self.fresh = 0

    @property
    def checkpoint_offsets(self) -> list[int]:
        """Offset of the data of each checkpoint in use."""
        return [table.offset for table in self._chain]

    @property
    def checkpoint_count(self) -> int:
        """Slots in all checkpoints."""
        return sum(table.count for table in self._chain)


def walk(log: Log) -> Scan:
    """Return a scan of all entries of a log."""
    return Scan(log.read, frame.HEADER_SIZE, log.tail, stop=log.tail)


class _Loader:
    """One scan of a file: the newest entry of each key, and what wants repair."""

    def __init__(self, log: Log, start: int, size: int, *, suspect: bool) -> None:
        self._log = log
        self._suspect = suspect
        self._size = size
        self.entries: dict[str, int | None] = {}
        self.lost: dict[str, int] = {}
        self.doubles: list[int] = []
        self.dead_size = 0
        self.count = 0
        self.torn = False
        self.tail = start

    def run(self) -> None:
        """Scan up to the terminator, or to where the file is torn."""
        # Without a superblock nothing tells of a power cut, so it is always looked for.
        verify = self._suspect or self._log.superblock is None
        scan = Scan(self._log.pread, self.tail, self._size, verify=verify)
        live: dict[str, tuple[int, int, int]] = {}
        try:
            for entry in scan:
                self._take(entry, live)
        except Irregular as error:
            self._judge(error)
            self.tail = error.position
            self.torn = True
        else:
            self.tail = scan.tail

    def _take(self, entry: Entry, live: dict[str, tuple[int, int, int]]) -> None:
        self.count += 1
        key, size = entry.key, entry.end - entry.offset
        if key is None:
            if entry.stored != frame.SUPERBLOCK_KEY:
                self.dead_size += size
            return
        older = live.pop(key, None)
        if older is not None:
            self.dead_size += older[1]
            if older[2] == LIVE:
                self.doubles.append(older[0])
        self.entries.pop(key, None)
        self.lost.pop(key, None)
        if entry.flag == DEAD:
            self.entries[key] = None
            self.dead_size += size
            return
        self.entries[key] = entry.offset
        live[key] = (entry.offset, size, entry.flag)
        if entry.flag == REPLACED:
            self.lost[key] = entry.offset

    def _judge(self, error: Irregular) -> None:
        """Return if the end is torn; raise if the file is damaged."""
        log, position, size = self._log, error.position, self._size
        if position >= size:
            return
        head = log.pread(position, min(position + 21, size))
        if head == TERMINATOR[:9] + TERMINATOR:
            return  # what mmappickle's fsck makes of a sound file
        block = log.superblock
        if block is None or not block.settled or self._suspect:
            if head[9:11] == TERMINATOR[9:] or head[:3] == TERMINATOR[:3]:
                return  # the store that publishes was cut in two: half old, half new
            if block is None and position + 20 + int.from_bytes(head[1:9], "little") == size:
                return  # the last entry
        if self._suspect and position >= log.synced_end:
            return
        ends_well = log.pread(size - TERMINATOR_SIZE, size) == TERMINATOR
        if ends_well or find_entry(log.pread, error.resume, size) is not None:
            raise CorruptionError(
                error.problem,
                log.name,
                hint="fsck() keeps every entry that is whole",
                offset=position,
                invariant=error.invariant,
            )
