"""Ctrl-C anywhere in a pool's code: nothing stays locked, nothing half done joins what comes later.

A timer's signal raises at a random instant.  What was under way is whole or absent, the lock is free,
and the next change is a transaction of its own.
"""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentSet
from tests.support.pools import assert_counts_exact


class Interrupt(BaseException):
    """What the signal raises, as KeyboardInterrupt is."""


def _raise(*_: Any) -> None:
    raise Interrupt


@pytest.fixture
def alarm() -> Iterator[None]:
    coverage = sys.modules.get("coverage")
    if coverage is not None and coverage.Coverage.current() is not None:
        pytest.skip("a signal in the code that measures coverage leaves its lock held")
    previous = signal.signal(signal.SIGALRM, _raise)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _work(pool: Any, number: int) -> None:
    root = pool.root
    for step in range(4):
        with pool.transaction():
            root[f"key {number % 40}"] = f"text of some length {number} {step}"
            root["list"].append((number, step, "x" * 20))
            root["list"].insert(0, number)
            root["list"].pop()
            root["set"].add(f"member {number % 50} of some length")
            root["set"].discard(f"member {number * 7 % 50} of some length")
            root["dict"] = pool.new(PersistentDict, dict.fromkeys(range(10), "v" * 20))
        root["other"] = pool.new(PersistentList, [number])
        root["list"].sort(key=str)
    if len(root["list"]) > 100:
        del root["list"][20:]


@pytest.mark.usefixtures("alarm")
def test_a_signal_at_any_instant(tmp_path: Path, profile: Any) -> None:
    rng = random.Random(0)
    with pmemobj.create(tmp_path / "pool", durability="lazy") as pool:
        pool.root = pool.new(PersistentDict)
        pool.root["list"] = pool.new(PersistentList, range(50))
        pool.root["set"] = pool.new(PersistentSet, range(30))
        transaction = pool.transaction()
        struck = 0
        for number in range(300 * profile.factor):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.random() * 0.003 + 1e-5)
                _work(pool, number)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt as error:
                struck += 1
                if transaction.depth and transaction.opener is None:
                    # The user's own `with` was struck before its end began (docs/concurrency.md).
                    transaction.__exit__(Interrupt, error, None)
                pool.root["probe"] = number
                assert not transaction.depth
                assert pool.root["probe"] == number
                if not struck % 5:
                    assert not pool.check()
                    assert_counts_exact(pool)
        assert struck > 20
    with pmemobj.open(tmp_path / "pool") as pool:
        assert not pool.check()
