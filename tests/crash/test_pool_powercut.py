"""Every state that a kill or a power cut could leave of a pool: each transaction whole or absent.

What is demanded of each state is in `tests.support.poollab`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.minipool import AREA_SIZE, BLOCK_SIZE
from tests.support.poollab import PoolScenario, Run, attack, record

STATES = 300
LARGE = bytes(range(256)) * 64


def words(run: Run) -> None:
    for number in range(6):
        run.commit(lambda mini: [mini.set_word(number * 8 + i * 4096, number) for i in range(3)])


def wrapping(run: Run) -> None:
    """More records than the journal holds."""
    for number in range(30):
        run.commit(lambda mini: mini.fill(number * 120, bytes([number]) * 400))


def moves(run: Run) -> None:
    """Moves over moved bytes, through a checkpoint that is cut."""
    for number in range(5):
        run.commit(lambda mini: mini.move(16, 0, 9000))
        run.commit(lambda mini: mini.set_word(0, number))
    run.checkpoint()
    run.commit(lambda mini: mini.move(0, 16, 9000))


def large(run: Run) -> None:
    """A record that the journal cannot hold."""
    run.commit(lambda mini: mini.set_word(0, 1))
    run.commit(lambda mini: mini.fill(0, LARGE))
    run.commit(lambda mini: mini.set_word(8, 1))


def growth(run: Run) -> None:
    for number in range(7):
        run.commit(lambda mini: mini.allocate(number, bytes([number + 1]) * BLOCK_SIZE))
        run.commit(lambda mini: mini.write_block(number, 4088, 5))


def reuse(run: Run) -> None:
    """Space that is freed and taken again while records that write there may be replayed."""
    for number in range(4):
        run.commit(lambda mini: mini.allocate(0, bytes([number + 1]) * BLOCK_SIZE))
        run.commit(lambda mini: mini.write_block(0, 8, 7))
        run.commit(lambda mini: mini.allocate(0, b""))


def closing(run: Run) -> None:
    run.commit(lambda mini: mini.set_word(0, 1))
    run.reopen()
    run.commit(lambda mini: mini.allocate(0, b"x" * BLOCK_SIZE))
    run.commit(lambda mini: mini.allocate(1, b"y" * BLOCK_SIZE))
    run.commit(lambda mini: mini.allocate(1, b""))
    run.reopen(size=run.pool.heap_offset + AREA_SIZE + BLOCK_SIZE)
    run.commit(lambda mini: mini.set_word(0, 2))
    run.sync()
    run.commit(lambda mini: mini.set_word(0, 3))


def killed(run: Run) -> None:
    """Kills, after each of which the next process recovers what may not be on the disk yet."""
    run.commit(lambda mini: [mini.set_word(i * 4096, 7 + i) for i in range(3)])
    run.be_killed()
    run.commit(lambda mini: mini.fill(4000, bytes(range(200)) * 3))
    run.commit(lambda mini: mini.move(16, 0, 6000))
    run.be_killed()
    run.commit(lambda mini: mini.allocate(0, b"x" * BLOCK_SIZE))
    run.commit(lambda mini: mini.allocate(1, b"y" * BLOCK_SIZE))
    run.commit(lambda mini: mini.write_block(1, 4088, 5))
    run.be_killed()
    run.commit(lambda mini: mini.allocate(1, b""))
    run.checkpoint()
    run.commit(lambda mini: mini.allocate(1, b"z" * BLOCK_SIZE))
    run.be_killed()
    run.commit(lambda mini: mini.fill(0, LARGE))


def anything(run: Run) -> None:
    for _ in range(3):
        run.random(5)
        run.rng.choice((run.sync, run.checkpoint, run.reopen))()


FIXED = (words, wrapping, moves, large, growth, reuse, closing, killed)


def run_and_attack(scenario: PoolScenario, home: Path, states_max: int, seed: int) -> int:
    disk, state = home / "disk", home / "state"
    disk.mkdir(parents=True)
    state.mkdir()
    return attack(record(scenario, str(disk), seed), str(state), states_max=states_max, seed=seed)


@pytest.mark.parametrize("durability", ["full", "lazy", "none"])
@pytest.mark.parametrize("steps", FIXED, ids=lambda steps: steps.__name__)
def test_every_cut(
    steps: Callable[[Run], None],
    durability: str,
    tmp_path: Path,
    profile: Any,
    count_states: Callable[[int], None],
) -> None:
    scenario = PoolScenario(steps.__name__, durability, steps)
    states = STATES // 3 if durability == "none" else STATES
    count_states(run_and_attack(scenario, tmp_path, states * profile.factor, seed=1))


@pytest.mark.parametrize("durability", ["full", "lazy", "none"])
def test_every_cut_of_a_creation(
    durability: str, tmp_path: Path, profile: Any, count_states: Callable[[int], None]
) -> None:
    scenario = PoolScenario("creation", durability, words, created=True)
    count_states(run_and_attack(scenario, tmp_path, STATES * profile.factor, seed=1))


@pytest.mark.parametrize("durability", ["full", "lazy"])
@pytest.mark.parametrize("number", range(4))
def test_every_cut_of_random_histories(
    number: int,
    durability: str,
    tmp_path: Path,
    profile: Any,
    count_states: Callable[[int], None],
) -> None:
    first = int(os.environ.get("PMSHELVE_SEED", "0"))
    count = 0
    for seed in range(number, number + 4 * profile.factor, 4):
        scenario = PoolScenario(f"random {first + seed}", durability, anything)
        count += run_and_attack(scenario, tmp_path / str(seed), STATES, first + seed)
    count_states(count)
