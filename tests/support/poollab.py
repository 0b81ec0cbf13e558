"""Crash a pool at every instant, reopen what is left, and judge it: `crashlab` for raw pools.

`record` lets transactions run on a simulated disk and notes, in its log, the content after each
commit, when it began, when it returned, and when everything so far was known to be on the disk.
`attack` builds what a kill and a power cut could leave at every cut, and demands of each state:

* the content is that before or after the commit in flight.  After a power cut under lazy durability
  it may also be an earlier one, but none older than the last sync;
* a reader finds the same as a writer, and changes no byte;
* a pool that says it was closed in order was, and holds what it held then;
* after a power cut without durability the pool is refused, or holds what it held at the last sync;
* it is usable: transactions, a checkpoint, growth, and all is there when it is opened again.

Some states are opened on a simulated disk once more, and that is cut too: what was found the first
time is found again.
"""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj import rawpool, superblock
from tests.support.diskstates import DiskState, Replay
from tests.support.guard import time_limit
from tests.support.minipool import MiniPool, content, formatted
from tests.support.simdisk import Mark, SimDisk, Write, rebooted

__all__ = [
    "PoolScenario",
    "Window",
    "add_note",
    "attack",
    "create_pool",
    "known_random",
    "record",
    "small_limits",
    "windows",
]

NAME = "pool"
BOOT = b"boot------------"
NEXT_BOOT = b"boot-after-cut--"
MAX_SIZE = 1 << 19


@contextlib.contextmanager
def known_random(seed: int) -> Iterator[None]:
    """Let the random numbers of superblocks be the same in every run."""
    before = superblock.random_bytes
    superblock.random_bytes = random.Random(seed).randbytes
    try:
        yield
    finally:
        superblock.random_bytes = before


@contextlib.contextmanager
def small_limits() -> Iterator[None]:
    """Let a small pool reach what a large one would."""
    before = rawpool.DIRECT_SIZE_MIN, rawpool.DIRTY_PAGES_MAX
    rawpool.DIRECT_SIZE_MIN, rawpool.DIRTY_PAGES_MAX = 4096, 24
    try:
        yield
    finally:
        rawpool.DIRECT_SIZE_MIN, rawpool.DIRTY_PAGES_MAX = before


def create_pool(path: str, durability: str = "full", **options: Any) -> rawpool.RawPool:
    """Return a new small pool."""
    options = {"journal_size": 8192, "max_size": MAX_SIZE, "format": formatted} | options
    return rawpool.create(path, 64 << 10, durability=durability, **options)


@dataclass(frozen=True)
class PoolScenario:
    """What is done to a pool.

    Parameters
    ----------
    run
        Works on an open pool.
    created
        Whether the pool's creation is part of it; else a fresh one is on the disk already.
    """

    name: str
    durability: str
    run: Callable[[Any], None]
    created: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.durability}"


@dataclass
class Run:
    """A scenario under way, and what is known of it afterwards."""

    scenario: PoolScenario
    disk: SimDisk
    path: str
    rng: random.Random
    contents: list[bytes] = field(default_factory=list)
    closed: set[bytes] = field(default_factory=set)
    pool: Any = None
    mini: Any = None

    def open(self) -> None:
        """Open the pool."""
        self.pool = rawpool.open(self.path, durability=self.scenario.durability)
        self._use()

    def create(self) -> None:
        """Create the pool."""
        self.disk.mark("begun", 1)
        self.pool = create_pool(self.path, self.scenario.durability)
        self._use()
        self.disk.mark("durable", 0)

    def _use(self) -> None:
        self.mini = MiniPool(self.pool)
        found = self.mini.content()
        if not self.contents:
            self.contents.append(found)
            self.closed.add(found)
        assert found == self.contents[-1]

    def commit(self, change: Callable[[MiniPool], None]) -> None:
        """Change something in a transaction of its own."""
        with self.pool.transaction:
            change(self.mini)
            self._begun()
        self._returned()

    def random(self, count: int) -> None:
        """Run `count` transactions of anything."""
        for _ in range(count):
            if self.mini.transaction(self.rng, self._begun):
                self._returned()

    def _begun(self) -> None:
        self.contents.append(self.mini.content())
        self.disk.mark("begun", len(self.contents))

    def _returned(self) -> None:
        assert self.mini.content() == self.contents[-1]
        last = len(self.contents) - 1
        self.disk.mark("returned", last)
        if self.scenario.durability == "full":
            self.disk.mark("durable", last)

    def sync(self) -> None:
        self.pool.sync()
        self.disk.mark("durable", len(self.contents) - 1)

    def checkpoint(self) -> None:
        self.pool.checkpoint()
        if self.scenario.durability != "none":
            self.disk.mark("durable", len(self.contents) - 1)

    def close(self, **options: Any) -> None:
        self.closed.add(self.contents[-1])
        self.pool.close(**options)
        self.disk.mark("durable", len(self.contents) - 1)

    def reopen(self, **options: Any) -> None:
        self.close(**options)
        self.open()
        assert self.pool.was_clean

    def be_killed(self) -> None:
        """End like a process that is killed, whose writes are in the system's memory; open again.

        Whoever opens the pool then has all of it synced before he relies on it.
        """
        self.pool._file.close()
        self.open()
        assert not self.pool.was_clean
        self.disk.mark("durable", len(self.contents) - 1)


def record(scenario: PoolScenario, directory: str, seed: int = 1) -> Run:
    """Run a scenario on a simulated disk in `directory`."""
    path = os.path.join(directory, NAME)
    with known_random(seed), small_limits():
        if not scenario.created:
            with rebooted(BOOT):
                create_pool(path).close()
        run = Run(scenario, SimDisk(directory, BOOT), path, random.Random(seed))
        with run.disk.installed():
            if scenario.created:
                run.create()
            else:
                run.open()
            scenario.run(run)
            run.disk.verify()
            run.close()
        assert run.disk.open_descriptors == []
    return run


@dataclass(frozen=True)
class Window:
    """What may be found after a crash at some instant: `contents[first:stop]`."""

    first: int
    stop: int
    returned: int


def windows(run: Any) -> list[Window]:
    """Return the window of each position in the log."""
    created = run.scenario.created
    durable, returned, begun = (-1, -1, 0) if created else (0, 0, 1)
    found = [Window(durable, begun, returned)]
    for op in run.disk.ops:
        if isinstance(op, Mark):
            if op.label == "begun":
                begun = op.payload
            elif op.label == "durable":
                durable = returned = max(returned, op.payload)
            else:
                returned = op.payload
        found.append(Window(durable, begun, returned))
    return found


class Judge:
    """Examines states in a directory of its own, and counts them."""

    def __init__(self, run: Run, directory: str, rng: random.Random) -> None:
        self.run = run
        self.directory = directory
        self.path = os.path.join(directory, NAME)
        self.rng = rng
        self.count = 0
        self._seen: set[tuple[bytes, Window, bool]] = set()

    def is_new(self, state: DiskState, window: Window) -> bool:
        """Tell whether this state was not examined under the same demands before."""
        key = (state.digest(), window, state.power)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def examine(self, state: DiskState, window: Window, *, deep: int = 0) -> None:
        """Fail unless what is left is what may be left; `deep` cuts the recovery that often."""
        self.count += 1
        try:
            doubtful = state.power and self.run.scenario.durability == "none"
            with time_limit(30), rebooted(NEXT_BOOT if doubtful else BOOT):
                state.write_to(self.directory)
                first = window.first if state.power else window.returned
                if first < 0 and NAME not in state.files:
                    return
                allowed = self.run.contents[max(first, 0) : window.stop]
                try:
                    found = self._found(state, allowed)
                except CorruptionError as error:
                    synced = len(allowed) == 1 and self.run.scenario.run is not _nothing
                    if doubtful and error.invariant == "S9" and not synced:
                        return
                    raise
                if deep:
                    self._cut_the_recovery(state, found, deep)
                else:
                    self._use(found)
        except BaseException as error:
            state.write_to(self.directory)
            add_note(error, self._explanation(state, window))
            raise

    def _found(self, state: DiskState, allowed: list[bytes]) -> bytes:
        raw = rawpool.open(self.path, readonly=True)
        try:
            found, clean = content(raw.memory, raw.heap_offset), raw.was_clean
        finally:
            raw.close()
        with open(self.path, "rb") as stream:
            assert stream.read() == state.files[NAME], "a reader changed the file"
        assert found in allowed, f"a content that none of {len(allowed)} is: {self._nearest(found)}"
        if clean:
            assert found in self.run.closed, "clean, but never closed like this"
        return found

    def _nearest(self, found: bytes) -> str:
        for number, known in enumerate(self.run.contents):
            if known == found:
                return f"it is number {number}"
        best = min(
            (sum(a != b for a, b in zip(found, known, strict=False)), number)
            for number, known in enumerate(self.run.contents)
        )
        return f"{best[0]} bytes differ from number {best[1]}"

    def _use(self, found: bytes) -> None:
        """Open for writing, change the pool in every way, and look whether all of that is there."""
        for _ in range(2):
            raw = rawpool.open(self.path, durability=self.rng.choice(("full", "lazy")))
            try:
                mini = MiniPool(raw)
                assert mini.content() == found, "a writer finds what a reader does not"
                for _ in range(3):
                    mini.transaction(self.rng, lambda: None)
                found = mini.content()
            finally:
                raw.close()
        raw = rawpool.open(self.path, readonly=True)
        try:
            assert raw.was_clean
            assert content(raw.memory, raw.heap_offset) == found, "lost after further use"
        finally:
            raw.close()

    def _cut_the_recovery(self, state: DiskState, found: bytes, budget: int) -> None:
        """Open the state for writing on a simulated disk, go on, and crash that at every instant."""
        state.write_to(self.directory)
        disk = SimDisk(self.directory, BOOT)
        durability = "none" if self.run.scenario.durability == "none" else "full"
        run = Run(
            PoolScenario("recovery", durability, _nothing), disk, self.path, self.rng, [found]
        )
        run.closed = set(self.run.closed)
        with disk.installed():
            run.open()
            run.random(2)
            run.close()
        judge = Judge(run, self.directory, self.rng)
        replay = Replay(disk)
        for position, window in enumerate(windows(run)):
            states = [replay.kill_state()]
            if position < len(disk.ops):
                states.extend(replay.torn_kill_states(disk.ops[position]))
            states.extend(replay.power_states(self.rng, budget))
            for second in states:
                if judge.is_new(second, window):
                    judge.examine(second, window)
            if position < len(disk.ops):
                replay.step(disk.ops[position])
        self.count += judge.count

    def _explanation(self, state: DiskState, window: Window) -> str:
        cut = int(state.label.split(" at ")[1].split(":")[0].split()[0])
        ops = self.run.disk.ops
        first = max(0, cut - 30)
        lines = [f"scenario {self.run.scenario}: {state.label}", f"{window}"]
        lines += [f"  {number} {op}" for number, op in enumerate(ops[first : cut + 2], first)]
        return "\n".join([*lines, f"the files are in {self.directory}"])


def _nothing(run: Run) -> None:
    return None


def add_note(error: BaseException, text: str) -> None:
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)
    else:
        warnings.warn(text, stacklevel=2)


def attack(
    run: Run, directory: str, *, states_max: int, seed: int = 1, deep_every: int = 60
) -> int:
    """Examine about `states_max` states of a recording; return how many it were."""
    rng = random.Random(seed)
    ops = run.disk.ops
    judge = Judge(run, directory, rng)
    replay = Replay(run.disk)
    budget = max(4, states_max // (1 + sum(1 for op in ops if isinstance(op, Write))))
    with small_limits():
        for position, window in enumerate(windows(run)):
            states = [replay.kill_state()]
            if position < len(ops):
                states.extend(replay.torn_kill_states(ops[position]))
            states.extend(replay.power_states(rng, budget))
            for state in states:
                if judge.is_new(state, window):
                    deep = 3 if judge.count % deep_every == deep_every - 1 else 0
                    judge.examine(state, window, deep=deep)
            if position < len(ops):
                replay.step(ops[position])
    return judge.count
