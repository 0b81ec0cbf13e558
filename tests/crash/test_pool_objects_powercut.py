"""Every state that a kill or a power cut could leave of a pool of objects: counts exact, nothing leaked.

What is demanded of each state is in `tests.support.objectlab`; `test_pool_powercut` does the same below
the heap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentList,
    PersistentSet,
    PersistentTuple,
)
from tests.support.objectlab import ObjectRun, attack, record
from tests.support.poollab import PoolScenario
from tests.support.userclasses import Point

STATES = 400
TEXT = "a text that needs a block of its own, "


def values(run: ObjectRun) -> None:
    """Scalars set, replaced and deleted, one and several at a time."""
    run.commit(lambda root: root.update({f"key {n}": TEXT + str(n) for n in range(4)}))
    run.commit(lambda root: root.__setitem__("key 1", 2**100))
    run.commit(lambda root: root.__delitem__("key 2"))
    run.abort(lambda root: root.update({"key 0": b"other bytes" * 9, "key 9": 1}))
    run.commit(lambda root: [root.pop("key 3"), root.__setitem__("key 4", TEXT)])


def graph(run: ObjectRun) -> None:
    """One of each collection, nested, shared, changed and let go."""
    new = run.pool.new

    def build(root: Any) -> None:
        shared = new(PersistentList, [1, TEXT])
        root["list"] = new(PersistentList, [shared, shared, (TEXT, 2.5)])
        root["set"] = new(PersistentSet, [1, TEXT, frozenset([TEXT])])
        root["tuple"] = new(PersistentTuple, [shared, None])
        root["point"] = new(Point, TEXT, shared)
        root["array"] = new(PersistentArray, [1.0, 2.0, 3.0])

    run.commit(build)
    run.commit(lambda root: root["list"].append(new(PersistentDict, {TEXT: TEXT})))
    run.commit(lambda root: [root["set"].discard(1), root["set"].add(TEXT + "2")])
    run.commit(lambda root: setattr(root["point"], "x", -1))
    run.commit(lambda root: root["array"].__setitem__(1, 7.0))
    run.abort(lambda root: root["list"].clear())
    run.commit(lambda root: root.__delitem__("list"))
    run.commit(lambda root: root.clear())


def shifting(run: ObjectRun) -> None:
    """Inserting into the middle: moves, through checkpoints."""
    run.commit(lambda root: root.__setitem__("list", run.pool.new(PersistentList, range(120))))
    for number in range(5):
        run.commit(lambda root: root["list"].insert(3, TEXT + str(number)))
        run.commit(lambda root: root["list"].pop(50))


def large(run: ObjectRun) -> None:
    """Values that go home directly or through an overflow extent, and growth; then back to little."""
    for number in range(3):
        run.commit(lambda root: root.__setitem__(number, bytes([number]) * (20_000 + number)))
    run.commit(lambda root: root.__setitem__("array", run.pool.new(PersistentArray, range(3000))))
    run.commit(lambda root: root.__setitem__(1, b"\xff" * 70_000))
    run.commit(lambda root: root.clear())
    run.commit(lambda root: root.__setitem__(2, b"x" * 9000))
    run.reopen()  # which shrinks the file
    run.commit(lambda root: root.__setitem__(3, b"y" * 30_000))


def garbage(run: ObjectRun) -> None:
    """Cycles, what only Python holds, and collections."""

    def new(*arguments: Any) -> Any:
        return run.pool.new(*arguments)

    def cycle(root: Any) -> None:
        first, second = new(PersistentList, [TEXT]), new(PersistentDict)
        first.append(second)
        second["back"] = first
        root["kept"] = new(PersistentList, [second])
        root["kept"].clear()

    run.commit(cycle)
    run.gc()
    run.commit(lambda root: root.__setitem__("held", new(PersistentList, [TEXT, TEXT + "2"])))
    held = run.pool.root["held"]
    run.commit(lambda root: root.__delitem__("held"))
    held.append(TEXT)
    del held
    run.commit(lambda root: root.__setitem__("next", 1))
    run.commit(cycle)
    run.reopen()
    run.commit(cycle)


def many(run: ObjectRun) -> None:
    """More than the journal holds; tables that grow; pages that are given back."""
    for number in range(12):
        run.commit(lambda root: root.update({(number, n): TEXT * 3 + str(n) for n in range(12)}))
    run.sync()
    for number in range(0, 12, 2):
        run.commit(lambda root: [root.pop((number, n)) for n in range(12)])


@pytest.mark.parametrize("durability", ["full", "lazy"])
@pytest.mark.parametrize(
    "steps", [values, graph, shifting, large, garbage, many], ids=lambda steps: steps.__name__
)
def test_every_cut(
    steps: Callable[[ObjectRun], None],
    durability: str,
    tmp_path: Path,
    profile: Any,
    count_states: Callable[[int], None],
) -> None:
    disk, state = tmp_path / "disk", tmp_path / "state"
    disk.mkdir()
    state.mkdir()
    run = record(PoolScenario(steps.__name__, durability, steps), str(disk))
    count = attack(run, str(state), states_max=STATES * profile.factor)
    assert count > len(run.contents)
    count_states(count)
