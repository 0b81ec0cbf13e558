"""Processes and one pool: one writer, or any number of readers; what one did, the next finds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import LockTimeoutError
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObjectPool
from tests.support.pools import assert_nothing_leaked, assert_sound
from tests.support.processes import Worker

PRELUDE = """
from pmshelve import pmemobj
from pmshelve.errors import LockTimeoutError

def try_open(path, flag="w"):
    try:
        pmemobj.PersistentObjectPool(path, flag).close()
    except LockTimeoutError as error:
        return str(error)
    return "opened"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with pmemobj.create(tmp_path / "pool") as pool:
        pool.root = pool.new(PersistentDict, {"n": 0, "log": pool.new(PersistentList)})
    return tmp_path / "pool"


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    workers = [Worker(PRELUDE) for _ in range(3)]
    yield workers
    for worker in workers:
        if worker.process.poll() is None:
            worker.close()


def test_one_writer_at_a_time(path: Path, workers: list[Worker]) -> None:
    one, other, _ = workers
    one.run("pool = pmemobj.open(path)", path=str(path))
    for flag in "wcr":
        message = other.eval("try_open(path, flag)", path=str(path), flag=flag)
        assert str(path) in message
        if os.path.exists("/proc/locks"):
            assert f"{one.pid}" in message, "it says who"
    with pytest.raises(LockTimeoutError):
        pmemobj.open(path)
    with pytest.raises(FileExistsError):
        pmemobj.create(path)
    one.run("pool.root['n'] = 1; pool.close()")
    assert other.eval("try_open(path)", path=str(path)) == "opened"
    with pmemobj.open(path) as pool:
        assert pool.root["n"] == 1


def test_a_writer_waits_if_it_is_told_to(path: Path, workers: list[Worker]) -> None:
    one, other, _ = workers
    one.run("pool = pmemobj.open(path)", path=str(path))
    other.start(
        "pool = pmemobj.open(path, timeout=30)\npool.root['n'] = 5\npool.close()", path=str(path)
    )
    one.run("pool.root['n'] = 4; pool.close()")
    other.finish()
    with pmemobj.open(path) as pool:
        assert pool.root["n"] == 5


def test_a_killed_writer_frees_the_lock(path: Path, workers: list[Worker]) -> None:
    one, other, _ = workers
    one.run("pool = pmemobj.open(path)", path=str(path))
    one.run("pool.root['n'] = 7")
    one.run("pool.transaction().begin(); pool.root['n'] = 8")
    one.kill()
    assert other.eval("try_open(path)", path=str(path)) == "opened"
    with pmemobj.open(path) as pool:
        assert pool.root["n"] == 7


def test_many_readers_and_no_writer(path: Path, workers: list[Worker]) -> None:
    for worker in workers:
        worker.run("pool = pmemobj.PersistentObjectPool(path, 'r')", path=str(path))
    with PersistentObjectPool(path, "r") as mine:
        assert mine.root["n"] == 0
        assert [worker.eval("pool.root['n']") for worker in workers] == [0, 0, 0]
        with pytest.raises(LockTimeoutError):
            pmemobj.open(path)
    for worker in workers[:2]:
        worker.run("pool.close()")
    with pytest.raises(LockTimeoutError):
        pmemobj.open(path)
    workers[2].kill()
    pmemobj.open(path).close()


def test_turns(path: Path, workers: list[Worker], profile: Any) -> None:
    """Each finds what the one before left, and leaves it consistent."""
    step = """
with pmemobj.open(path, durability="lazy") as pool:
    for _ in range(20):
        with pool.transaction():
            pool.root['n'] += 1
            pool.root['log'].append(pool.new(pmemobj.PersistentDict, {'n': pool.root['n'], 'by': name}))
"""
    rounds = 5 * profile.factor
    for turn in range(rounds):
        for name, worker in enumerate(workers):
            worker.run(step, path=str(path), name=name)
        with pmemobj.open(path) as pool:
            assert pool.root["n"] == 60 * (turn + 1)
            assert_sound(pool)
            assert_nothing_leaked(pool)
    with PersistentObjectPool(path, "r") as pool:
        log = pool.root["log"]
        assert [entry["n"] for entry in log] == list(range(1, 60 * rounds + 1))
        assert [entry["by"] for entry in log] == [n // 20 % 3 for n in range(60 * rounds)]


def test_writers_that_fight_for_the_pool(path: Path, workers: list[Worker], profile: Any) -> None:
    fight = """
import time
done = 0
while done < rounds:
    try:
        pool = pmemobj.open(path, durability="lazy")
    except LockTimeoutError:
        time.sleep(0.001)
        continue
    with pool, pool.transaction():
        pool.root['n'] += 1
        pool.root['log'].append(name)
    done += 1
"""
    rounds = 20 * profile.factor
    for name, worker in enumerate(workers):
        worker.start(fight, path=str(path), name=name, rounds=rounds)
    for worker in workers:
        worker.finish(120)
    with pmemobj.open(path) as pool:
        assert pool.root["n"] == 3 * rounds == len(pool.root["log"])
        assert sorted(pool.root["log"]) == sorted([0, 1, 2] * rounds)
        assert_sound(pool)
        assert_nothing_leaked(pool)


def test_two_that_make_the_same_pool(tmp_path: Path, workers: list[Worker]) -> None:
    for turn in range(5):
        path = tmp_path / f"new{turn}"
        for worker in workers:
            worker.start(
                "try:\n"
                "    pool = pmemobj.create(path)\n"
                "    made = True\n"
                "except FileExistsError:\n"
                "    made = False\n",
                path=str(path),
            )
        for worker in workers:
            worker.finish()
        assert sum(worker.eval("made") for worker in workers) == 1
        assert [name for name in os.listdir(tmp_path) if "new" in name and name != path.name] == [
            f"new{n}" for n in range(turn)
        ] or sorted(os.listdir(tmp_path)) == sorted([f"new{n}" for n in range(turn + 1)])
        for worker in workers:
            worker.run("if made: pool.close()")


def test_a_create_that_is_killed_leaves_no_pool_half_made(
    tmp_path: Path, workers: list[Worker]
) -> None:
    path = tmp_path / "pool"
    worker = workers[0]
    worker.run(
        "import os, signal\n"
        "from pmshelve.storage import file\n"
        "real = file.system.link\n"
        "def die(*arguments, **options):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "file.system.link = die\n"
    )
    worker.start("pmemobj.create(path)", path=str(path))
    assert worker.process.wait(30) == -signal.SIGKILL
    worker.kill()
    assert not path.exists()
    with pmemobj.create(path) as pool:
        pool.root = 1
