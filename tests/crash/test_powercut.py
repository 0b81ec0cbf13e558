"""Every state that a kill or a power cut could leave, of every operation: whole or absent.

What is demanded of each state is in `tests.support.crashlab` and `tests.support.history`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.scenarios import random_scenario, scenarios
from tests.support.crashlab import Scenario, attack, record

STATES = 500


def run(scenario: Scenario, tmp_path: Path, states_max: int, seed: int) -> int:
    disk, state = tmp_path / "disk", tmp_path / "state"
    disk.mkdir()
    state.mkdir()
    return attack(record(scenario, str(disk)), str(state), states_max=states_max, seed=seed)


@pytest.mark.parametrize("scenario", scenarios(), ids=str)
def test_every_cut(
    scenario: Scenario, tmp_path: Path, profile: Any, count_states: Callable[[int], None]
):
    count_states(run(scenario, tmp_path, STATES * profile.factor, seed=1))


@pytest.mark.parametrize("number", range(6))
def test_every_cut_of_random_histories(
    number: int, tmp_path: Path, profile: Any, count_states: Callable[[int], None]
):
    first = int(os.environ.get("PMSHELVE_SEED", "0"))
    count = 0
    for seed in range(number, number + 6 * profile.factor, 6):
        home = tmp_path / str(seed)
        home.mkdir()
        count += run(random_scenario(first + seed), home, 300, seed)
    count_states(count)
