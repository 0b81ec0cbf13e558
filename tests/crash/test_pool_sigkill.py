"""A process that writes a pool is killed, over and over: nothing acknowledged is lost, nothing is half.

The writer runs transactions that a seed gives, and says of each that it has returned.  After the kill
the pool must hold what was acknowledged, or that and the one transaction that was under way.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from tests.crash.poolworker import Model, apply, model_of
from tests.support.pools import assert_nothing_leaked, assert_sound
from tests.support.processes import ROOT


def start(path: Path, seed: int, first: int, durability: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.crash.poolworker", path, str(seed), str(first), durability],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )


def kill_in_a_loop(path: Path, seed: int, durability: str, kills: int) -> int:
    """Kill a writer many times; return how many transactions it came to in all."""
    rng = random.Random(seed)
    model: Model = {}
    number = 0
    for _ in range(kills):
        process = start(path, seed, number, durability)
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        time.sleep(rng.choice((0.0005, 0.005, 0.03, 0.1)) * rng.random())
        process.kill()
        lines = process.stdout.read().split(b"\n")
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL, lines
        for line in lines[:-1]:
            assert int(line) == number
            model = apply(model, seed, number)
            number += 1
        with pmemobj.open(path) as pool:
            found = model_of(pool)
            if found != model:
                model = apply(model, seed, number)
                number += 1
                assert found == model, "neither what was acknowledged nor the next"
            assert_sound(pool)
            assert_nothing_leaked(pool)
    return number


@pytest.mark.parametrize(("durability", "kills"), [("lazy", 12), ("full", 8)])
def test_nothing_acknowledged_is_lost(
    tmp_path: Path, profile: Any, durability: str, kills: int
) -> None:
    path = tmp_path / "pool"
    pmemobj.create(path).close()
    done = 0
    for seed in range(1, 1 + min(profile.factor, 5)):
        path = tmp_path / f"pool{seed}"
        pmemobj.create(path).close()
        done += kill_in_a_loop(path, seed, durability, kills * profile.factor)
    assert done > kills


def test_a_kill_while_a_pool_is_opened_after_a_kill(tmp_path: Path, profile: Any) -> None:
    """Replay, the collection that follows and the close may be killed as well."""
    path = tmp_path / "pool"
    pmemobj.create(path).close()
    rng = random.Random(5)
    seed, number = 3, 0
    model: Model = {}
    for _ in range(6 * profile.factor):
        process = start(path, seed, number, "lazy")
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        time.sleep(0.02)
        process.kill()
        lines = process.stdout.read().split(b"\n")[:-1]
        process.stdout.close()
        process.wait()
        for _ in lines:
            model = apply(model, seed, number)
            number += 1
        for _ in range(3):
            code = "import sys; from pmshelve import pmemobj; pmemobj.open(sys.argv[1]).close()"
            opener = subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT)
            time.sleep(0.08 + 0.08 * rng.random())
            opener.kill()
            opener.wait()
        with pmemobj.open(path) as pool:
            found = model_of(pool)
            if found != model:
                model = apply(model, seed, number)
                number += 1
                assert found == model
            assert_sound(pool)
            assert_nothing_leaked(pool)
