"""The files that a kill or a power cut could leave, built from the log of a `SimDisk`.

`Replay` follows the log one operation at a time.  After each it can tell:

* `kill_state`: the process died, the machine runs on.  Exactly what the calls so far did.
* `torn_kill_states`: the process died inside the next call.  The kernel looks for a fatal signal
  between two pages of one write; a store of more than 8 bytes is several machine instructions.
* `power_states`: the machine died.  Whatever was synced is there.  Of what was not, each 512-byte
  sector holds its content after any one of the writes since (or before all of them): writes are
  dropped, reordered and torn, but one sector goes through its versions in order.  The file's size
  is one more such thing, and every change of a name since the directory's last sync was done, or
  not.  All combinations where they are few, else a sample: each alone, each missing, each write
  torn in the middle, and at random.

A sync that failed leaves what it should have written in doubt for ever: a later sync does not
write it again (Linux marks the pages clean), only a later write to the same sector does.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.simdisk import Mark, Name, Op, Punch, Resize, SimDisk, Sync, SyncNames, Write

__all__ = ["PAGE_SIZE", "SECTOR_SIZE", "DiskState", "Replay"]

SECTOR_SIZE = 512
PAGE_SIZE = 4096
_NAMES = -1
_SIZE = -1


@dataclass(frozen=True)
class DiskState:
    """What is found after the crash: content by file name, and how it came about."""

    files: dict[str, bytes] = field(repr=False)
    label: str
    power: bool = False

    def digest(self) -> bytes:
        """Return a short value that tells states apart."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self.files):
            digest.update(f"{name}\0{len(self.files[name])}\0".encode())
            digest.update(self.files[name])
        return digest.digest()

    def write_to(self, directory: str) -> None:
        """Make the directory hold these files and no others."""
        for entry in os.scandir(directory):
            if entry.name not in self.files:
                os.unlink(entry.path)
        for name, data in self.files.items():
            with open(os.path.join(directory, name), "wb") as stream:
                stream.write(data)


class _File:
    """One inode: what the page cache holds, and what each sector may hold on the disk."""

    def __init__(self, data: bytes) -> None:
        self.cache = bytearray(data)
        self.sectors: dict[int, list[bytes]] = {}  # candidates, oldest first; absent: as cached
        self.sizes = [len(data)]
        self.doubtful: set[int] = set()

    def copy(self) -> _File:
        twin = _File(b"")
        twin.cache = bytearray(self.cache)
        twin.sectors = {number: list(versions) for number, versions in self.sectors.items()}
        twin.sizes = list(self.sizes)
        twin.doubtful = set(self.doubtful)
        return twin

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        touched = range(offset // SECTOR_SIZE, -(-end // SECTOR_SIZE))
        self._begin(touched)
        if end > len(self.cache):
            self.cache.extend(bytes(end - len(self.cache)))
            self.sizes.append(end)
        self.cache[offset:end] = data
        self._end(touched)

    def resize(self, size: int) -> None:
        old = len(self.cache)
        if size < old:  # what is cut off reads as zeros if the file grows again
            touched = range(size // SECTOR_SIZE, -(-old // SECTOR_SIZE))
            self._begin(touched)
            del self.cache[size:]
            self._end(touched)
        else:
            self.cache.extend(bytes(size - old))
        if size != old:
            self.sizes.append(size)

    def sync(self, done: bool) -> None:
        if not done:
            self.doubtful.update(self.sectors)
            return
        self.sectors = {
            number: versions for number, versions in self.sectors.items() if number in self.doubtful
        }
        del self.sizes[:-1]

    def _sector(self, number: int) -> bytes:
        data = bytes(self.cache[number * SECTOR_SIZE : (number + 1) * SECTOR_SIZE])
        return data.ljust(SECTOR_SIZE, b"\0")

    def _begin(self, touched: range) -> None:
        for number in touched:
            if number not in self.sectors:
                self.sectors[number] = [self._sector(number)]

    def _end(self, touched: range) -> None:
        for number in touched:
            self.doubtful.discard(number)
            data = self._sector(number)
            if self.sectors[number][-1] != data:
                self.sectors[number].append(data)

    def build(self, sectors: dict[int, int], size: int) -> bytes:
        """Return the file with the candidates chosen for its sectors and its size."""
        target = self.sizes[size]
        data = bytearray(self.cache)
        if target > len(data):
            data.extend(bytes(target - len(data)))
        for number, choice in sectors.items():
            start = number * SECTOR_SIZE
            if start >= target:
                continue
            if start + SECTOR_SIZE > len(data):
                data.extend(bytes(start + SECTOR_SIZE - len(data)))
            data[start : start + SECTOR_SIZE] = self.sectors[number][choice]
        del data[target:]
        return bytes(data)


class Replay:
    """Follows a log; builds the states a crash could leave behind the operations so far."""

    def __init__(self, disk: SimDisk) -> None:
        self.files = {inode: _File(data) for inode, data in disk.files.items()}
        self.names = dict(disk.names)
        self.pending_names: list[Name] = []
        self.directory = disk.directory
        self.position = 0

    def copy(self) -> Replay:
        """Return an independent replay at the same position."""
        twin = object.__new__(Replay)
        twin.files = {inode: file.copy() for inode, file in self.files.items()}
        twin.names = dict(self.names)
        twin.pending_names = list(self.pending_names)
        twin.directory = self.directory
        twin.position = self.position
        return twin

    def step(self, op: Op) -> None:
        """Apply one operation."""
        self.position += 1
        if isinstance(op, Write):
            self.files[op.inode].write(op.offset, op.data)
        elif isinstance(op, Resize):
            self.files[op.inode].resize(op.size)
        elif isinstance(op, Punch):
            self.files[op.inode].write(op.offset, bytes(op.size))
        elif isinstance(op, Sync):
            self.files[op.inode].sync(op.done)
        elif isinstance(op, Name):
            self.pending_names.append(op)
        elif isinstance(op, SyncNames):
            self.names = _renamed(self.names, self.pending_names)
            self.pending_names = []
        else:
            assert isinstance(op, Mark)

    # A kill -----------------------------------------------------------------------------------

    def kill_state(self) -> DiskState:
        """Return what is there if the process dies now."""
        names = _renamed(self.names, self.pending_names)
        files = {os.path.basename(path): bytes(self.files[n].cache) for path, n in names.items()}
        return DiskState(files, f"killed at {self.position}")

    def torn_kill_states(self, op: Op) -> Iterator[DiskState]:
        """Yield what is there if the process dies within `op`, which comes next."""
        if not isinstance(op, Write):
            return
        parts: list[tuple[str, int, bytes]] = []
        end = op.offset + len(op.data)
        if op.how != "map":
            edges = range((op.offset // PAGE_SIZE + 1) * PAGE_SIZE, end, PAGE_SIZE)
            parts.extend(
                ("first", op.offset, op.data[: edge - op.offset])
                for edge in sorted({*edges[:2], *edges[-1:]})
            )
        elif len(op.data) > 8:
            parts.append(("first 8 bytes", op.offset, op.data[:8]))
            parts.append(("last 8 bytes", end - 8, op.data[-8:]))
        for label, offset, data in parts:
            twin = self.copy()
            twin.files[op.inode].write(offset, data)
            state = twin.kill_state()
            yield DiskState(
                state.files, f"killed at {self.position} within {op}: {label} ({len(data)} bytes)"
            )

    # A power cut ------------------------------------------------------------------------------

    def power_states(self, rng: random.Random, budget: int) -> Iterator[DiskState]:
        """Yield up to `budget` of the states a power cut leaves now; all of them if they are few."""
        items = self._items()
        if math.prod(count for *_, count in items) <= budget:
            picks: Iterator[tuple[int, ...]] = itertools.product(
                *(range(count) for *_, count in items)
            )
        else:
            picks = itertools.islice(_sampled([count for *_, count in items], rng), budget)
        for pick in picks:
            yield self._build(items, pick)

    def _items(self) -> list[tuple[int, int, int]]:
        """Return all that is in doubt: (inode or _NAMES, sector or _SIZE or index, candidates)."""
        reachable = {*self.names.values(), *(name.inode for name in self.pending_names)}
        items = [(_NAMES, index, 2) for index in range(len(self.pending_names))]
        for inode, file in self.files.items():
            if inode in reachable:
                if len(file.sizes) > 1:
                    items.append((inode, _SIZE, len(file.sizes)))
                items.extend(
                    (inode, number, len(versions))
                    for number, versions in sorted(file.sectors.items())
                    if len(versions) > 1
                )
        return items

    def _build(self, items: list[tuple[int, int, int]], pick: tuple[int, ...]) -> DiskState:
        done: list[Name] = []
        sizes: dict[int, int] = {}
        sectors: dict[int, dict[int, int]] = {}
        words: list[str] = []
        for (inode, what, count), choice in zip(items, pick, strict=True):
            if inode == _NAMES:
                if choice:
                    done.append(self.pending_names[what])
                else:
                    words.append(f"not {self.pending_names[what]}")
                continue
            if what == _SIZE:
                sizes[inode] = choice
                thing = "size"
            else:
                sectors.setdefault(inode, {})[what] = choice
                thing = f"sector {what}"
            if choice != count - 1:
                words.append(f"#{inode} {thing} version {choice} of {count}")
        names = _renamed(self.names, done)
        files = {
            os.path.basename(path): self.files[n].build(sectors.get(n, {}), sizes.get(n, -1))
            for path, n in names.items()
        }
        label = f"power cut at {self.position}: " + (", ".join(words) or "nothing lost")
        return DiskState(files, label, power=True)


def _renamed(names: dict[str, int], changes: list[Name]) -> dict[str, int]:
    names = dict(names)
    for change in changes:
        if change.source is not None:
            names.pop(change.source, None)
        if change.inode is None:
            names.pop(change.path, None)
        else:
            names[change.path] = change.inode
    return names


def _sampled(counts: list[int], rng: random.Random) -> Iterator[tuple[int, ...]]:
    """Yield choices, the telling ones first; never ends."""
    newest = [count - 1 for count in counts]
    oldest = [0] * len(counts)
    yield tuple(newest)
    yield tuple(oldest)
    singles = list(range(len(counts)))
    rng.shuffle(singles)
    for index in singles:
        yield tuple(0 if i == index else choice for i, choice in enumerate(newest))
        yield tuple(newest[i] if i == index else 0 for i in range(len(counts)))
        if counts[index] > 2:
            middle = rng.randrange(1, counts[index] - 1)
            yield tuple(middle if i == index else choice for i, choice in enumerate(newest))
            yield tuple(middle if i == index else 0 for i in range(len(counts)))
    while True:
        edge = rng.randrange(len(counts) + 1)
        style = rng.randrange(4)
        if style == 0:  # what stands first is there, the rest is not
            yield tuple(choice if i < edge else 0 for i, choice in enumerate(newest))
        elif style == 1:
            yield tuple(choice if i >= edge else 0 for i, choice in enumerate(newest))
        else:
            odds = rng.choice((0.1, 0.5, 0.9))
            yield tuple(
                newest[i] if rng.random() < odds else rng.randrange(count)
                for i, count in enumerate(counts)
            )
