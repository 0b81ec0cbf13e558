"""Crash a pool of objects at every instant: `poollab`, with heap, collections, collector and close.

The scenario runs on a `PersistentObjectPool`, and what is compared is what its root leads to.  Of each
state that a kill or a power cut could leave it is demanded that

* a reader finds the content before or after the transaction in flight (under lazy durability and a
  power cut: one no older than the last sync), and changes no byte;
* a writer, which collects garbage first, finds the same; `check()` is silent, every reference count
  is exact, and no block is left that nothing leads to;
* the pool can be changed and closed, and is found clean and changed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pmshelve.pmemobj import PersistentArray, PersistentDict, PersistentObjectPool, rawpool
from pmshelve.pmemobj.heap import Heap
from tests.support.diskstates import DiskState, Replay
from tests.support.guard import time_limit
from tests.support.poollab import (
    BOOT,
    MAX_SIZE,
    NAME,
    PoolScenario,
    Window,
    add_note,
    known_random,
    small_limits,
    windows,
)
from tests.support.pools import assert_nothing_leaked, assert_sound, plain
from tests.support.simdisk import SimDisk, Write, rebooted

__all__ = ["ObjectRun", "attack", "record"]


def _format(memory: Any, start: int, pages: int) -> None:
    Heap.format(memory, start, pages)


def _comparable(value: Any) -> Any:
    """Return plain values in which arrays are lists of their items, so that == says it all."""
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if hasattr(value, "tolist"):
        return (value.dtype.str, value.shape, value.tolist())
    return value


def content_of(pool: PersistentObjectPool) -> Any:
    """Return all that the root leads to, in plain objects."""
    return _comparable(plain(pool.root))


@dataclass
class ObjectRun:
    """A scenario under way, and what is known of it afterwards (see `poollab.Run`)."""

    scenario: PoolScenario
    disk: SimDisk
    path: str
    contents: list[Any] = field(default_factory=list)
    pool: Any = None

    def open(self) -> None:
        self.pool = PersistentObjectPool(self.path, durability=self.scenario.durability)
        found = content_of(self.pool)
        if not self.contents:
            self.contents.append(found)
        assert found == self.contents[-1]

    def commit(self, change: Callable[[Any], object]) -> None:
        """Change something below the root in a transaction of its own."""
        with self.pool.transaction():
            change(self.pool.root)
            self.contents.append(content_of(self.pool))
            self.disk.mark("begun", len(self.contents))
        self._returned()

    def abort(self, change: Callable[[Any], object]) -> None:
        """Change something, and take it back."""
        try:
            with self.pool.transaction():
                change(self.pool.root)
                raise _TakeBackError
        except _TakeBackError:
            pass
        assert content_of(self.pool) == self.contents[-1]

    def _returned(self) -> None:
        assert content_of(self.pool) == self.contents[-1]
        last = len(self.contents) - 1
        self.disk.mark("returned", last)
        if self.scenario.durability == "full":
            self.disk.mark("durable", last)

    def gc(self) -> None:
        self.pool.gc()
        assert content_of(self.pool) == self.contents[-1]

    def sync(self) -> None:
        self.pool.sync()
        self.disk.mark("durable", len(self.contents) - 1)

    def close(self) -> None:
        self.pool.close()
        self.disk.mark("durable", len(self.contents) - 1)

    def reopen(self) -> None:
        self.close()
        self.open()


class _TakeBackError(Exception):
    pass


def record(scenario: PoolScenario, directory: str, seed: int = 1) -> ObjectRun:
    """Run a scenario on a simulated disk in `directory`, from a pool with an empty dict for its root."""
    path = os.path.join(directory, NAME)
    with known_random(seed), small_limits():
        with rebooted(BOOT):
            rawpool.create(
                path, 64 << 10, journal_size=8192, max_size=2 * MAX_SIZE, format=_format
            ).close()
            with PersistentObjectPool(path) as pool:
                pool.root = pool.new(PersistentDict)
        run = ObjectRun(scenario, SimDisk(directory, BOOT), path)
        with run.disk.installed():
            run.open()
            scenario.run(run)
            run.disk.verify()
            run.close()
        assert run.disk.open_descriptors == []
    return run


class _Judge:
    def __init__(self, run: ObjectRun, directory: str) -> None:
        self.run = run
        self.path = os.path.join(directory, NAME)
        self.directory = directory
        self.seen: set[tuple[bytes, Window, bool]] = set()

    def examine(self, state: DiskState, window: Window) -> None:
        key = (state.digest(), window, state.power)
        if key in self.seen:
            return
        self.seen.add(key)
        try:
            with time_limit(30), rebooted(BOOT):
                state.write_to(self.directory)
                first = window.first if state.power else window.returned
                self._examine(state.files[NAME], self.run.contents[max(first, 0) : window.stop])
        except BaseException as error:
            state.write_to(self.directory)
            lines = [f"scenario {self.run.scenario}: {state.label}, {window}; {self.directory}"]
            add_note(error, "\n".join(lines))
            raise

    def _examine(self, data: bytes, allowed: list[Any]) -> None:
        with PersistentObjectPool(self.path, "r") as pool:
            found = content_of(pool)
        assert found in allowed, f"a content that none of {len(allowed)} is"
        with open(self.path, "rb") as stream:
            assert stream.read() == data, "a reader changed the file"
        with PersistentObjectPool(self.path) as pool:
            assert content_of(pool) == found, "a writer finds what a reader does not"
            assert_sound(pool)
            assert_nothing_leaked(pool)
            assert_sound(pool)
            pool.root["after the crash"] = pool.new(PersistentArray, [1.5, 2.5])
        with PersistentObjectPool(self.path) as pool:
            assert pool._raw.was_clean
            assert pool.root.pop("after the crash").tolist() == [1.5, 2.5]
            assert content_of(pool) == found, "lost after further use"
            assert_sound(pool)


def attack(run: ObjectRun, directory: str, *, states_max: int, seed: int = 1) -> int:
    """Examine about `states_max` states of a recording, evenly over its cuts; return how many."""
    rng = random.Random(seed)
    ops = run.disk.ops
    judge = _Judge(run, directory)
    replay = Replay(run.disk)
    writes = 1 + sum(1 for op in ops if isinstance(op, Write))
    budget = max(2, states_max // writes)
    with small_limits():
        for position, window in enumerate(windows(run)):
            states = [replay.kill_state()]
            if position < len(ops):
                states.extend(replay.torn_kill_states(ops[position]))
            states.extend(replay.power_states(rng, budget))
            for state in states:
                judge.examine(state, window)
            if position < len(ops):
                replay.step(ops[position])
    return len(judge.seen)
