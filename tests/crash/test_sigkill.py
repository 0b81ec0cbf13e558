"""Real processes killed at random instants, in a loop; nothing that was acknowledged is missing."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve.mmapdict import mmapdict
from tests.crash.killworker import Model, apply
from tests.support.processes import ROOT
from tests.support.stores import assert_content, stock_load
from tests.support.values import same


class Nursery:
    """Where the processes come from that a test kills (see `killworker`)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.killworker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def start(self, **command: Any) -> int:
        """Fork a process; return its id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        kind, pid = self.line()
        assert kind == "p", pid
        return int(pid)

    def line(self) -> tuple[str, str]:
        """Return the next line, its letter apart."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        assert line, "the nursery died"
        letter, _, rest = line.rstrip("\n").partition(" ")
        return letter, rest

    def until_dead(self) -> tuple[int | None, int]:
        """Return the last operation acknowledged, if any, and how the process ended."""
        last = None
        while True:
            letter, rest = self.line()
            if letter == "a":
                last = int(rest)
            elif letter == "e":
                pytest.fail(json.loads(rest))
            elif letter == "x":
                return last, int(rest)

    def close(self) -> None:
        """End the nursery; its children are dead by now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


class Reader:
    """A reader that lives through all the kills."""

    def __init__(self, path: Path) -> None:
        self.nursery = Nursery()
        self.pid = self.nursery.start(path=str(path), reads=True)
        assert self.nursery.line()[0] == "r"

    def stop(self) -> int:
        """Kill it; return the number of rounds it made."""
        os.kill(self.pid, signal.SIGKILL)
        rounds = 0
        while True:
            letter, rest = self.nursery.line()
            if letter == "x":
                assert int(rest) == signal.SIGKILL
                self.nursery.close()
                return rounds
            assert letter == "r", json.loads(rest) if letter == "e" else rest
            rounds = int(rest)


def survivor(path: Path, models: list[Model], *, readonly: bool) -> int:
    """Return which of the contents is there; fail if none is."""
    with mmapdict(path, readonly) as store:
        found = dict(store.items())
        keys = list(store)
    for number, model in enumerate(models):
        if keys == list(model) and all(same(found[key], model[key]) for key in keys):
            return number
    raise AssertionError(f"found {found}, expected one of {models}")


def kill_in_a_loop(nursery: Nursery, path: Path, how: str, seed: int, kills: int) -> int:
    """Kill a writer many times; return how many operations were done in all."""
    rng = random.Random(seed)
    model: Model = {}
    number = 0
    for _ in range(kills):
        pid = nursery.start(path=str(path), how=how, seed=seed, first=number)
        time.sleep(rng.choice((0.001, 0.01, 0.05, 0.1)) * rng.random())
        os.kill(pid, signal.SIGKILL)
        last, status = nursery.until_dead()
        assert status == signal.SIGKILL
        while last is not None and number <= last:
            model = apply(model, seed, number)
            number += 1
        if os.path.exists(path) and os.path.getsize(path):
            raw = path.read_bytes()
            after = apply(model, seed, number)
            # What is left of a vacuum in place cannot be read before it is completed.
            readonly = how != "file object"
            if survivor(path, [model, after], readonly=readonly):
                model = after
                number += 1
            elif last is None:
                continue
            if readonly:
                stock_load(io.BytesIO(raw))
            with mmapdict(path) as store:
                assert list(store.check()) == []
                assert_content(store, model)
            assert_content(stock_load(path), model)
        else:
            assert last is None
    return number


@pytest.mark.parametrize(
    ("how", "kills"),
    [("plain", 25), ("synced", 15), ("exclusive", 15), ("autovacuum", 15), ("file object", 15)],
)
def test_nothing_acknowledged_is_lost(
    tmp_path: Path, nursery: Nursery, profile: Any, how: str, kills: int
):
    seeds = [1] if profile.factor == 1 else range(10)
    for seed in seeds:
        path = tmp_path / f"store{seed}"
        done = kill_in_a_loop(nursery, path, how, seed, kills * profile.factor)
        assert done > kills


def test_readers_see_only_whole_values_while_writers_are_killed(
    tmp_path: Path, nursery: Nursery, profile: Any
):
    path = tmp_path / "store"
    mmapdict(path).close()
    readers = [Reader(path), Reader(path)]
    kill_in_a_loop(nursery, path, "plain", 7, 30 * profile.factor)
    for reader in readers:
        assert reader.stop() > 1
