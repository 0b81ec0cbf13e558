"""Every state that a kill or a power cut could leave while runs of dead entries are buried."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.picklers.chunks import Chunks
from tests.crash.scenarios import opener
from tests.support.crashlab import Scenario, attack, record
from tests.support.history import Step, Value, with_items
from tests.support.steps import Holder, batch, close, delete, open_, put, reopen, sync

BURY_EARLY = (("pmshelve.mmapdict.runs.GAIN_MIN", 300), ("pmshelve.mmapdict.runs.GAIN_MAX", 600))

private = opener(exclusive=True, mmap_mode="c")


class Copying(mmapdict[Any]):
    """A store that gives what it maps as what stock pickle makes of it."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return bytearray(value) if isinstance(value, memoryview) else value

    def items(self) -> Any:
        return [(key, self[key]) for key in self]


class Cooling(mmapdict[Any]):
    """A store that uses its map as little as it can."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._log.cool(0)


def cooling(path: str) -> Any:
    return Cooling(path, timeout=5.0, exclusive=True, mmap_mode="c")


def copying(path: str) -> Any:
    return Copying(path, timeout=5.0)


def reading(path: str) -> Any:
    return Copying(path, True, timeout=5.0)


def put_chunks(key: str, parts: tuple[bytes, ...]) -> Step:
    """Set a key to the bytes of several buffers."""
    data = b"".join(parts)
    noted = Value(bytearray(data), True)

    def run(holder: Holder) -> None:
        holder.store[key] = Chunks(parts, len(data))

    return Step(f"put {key!r} in parts", run, lambda content: with_items(content, [(key, noted)]))


def scenario(name: str, *steps: Step, opens: Callable[[str], Any] = private) -> Scenario:
    return Scenario(
        name, (open_(), *steps, close()), opens, copying, reading, None, (), constants=BURY_EARLY
    )


def neighbours(count: int, size: int) -> list[Step]:
    return [put(f"k{number}", bytes([number]) * size) for number in range(count)]


def scenarios() -> list[Scenario]:
    return [
        scenario(
            "in order",
            *neighbours(6, 200),
            *(delete(f"k{number}") for number in range(5)),
            put("new", b"n" * 400),
        ),
        scenario(
            "from the middle, and replaced ones",
            *neighbours(7, 150),
            delete("k3"),
            put("k2", b"r" * 90),
            delete("k4"),
            put("k1", b"s" * 300),
            delete("k5"),
            delete("k2"),
            put("k3", "another kind"),
        ),
        scenario(
            "values of every kind",
            put("tiny", 1),
            put("k" * 300, b"long key"),
            put("text", "t" * 200),
            put("object", {"a": [1, 2, 3]}),
            put("last", b"l" * 200),
            put("stays", b"s"),
            *(delete(key) for key in ("object", "k" * 300, "text", "last", "tiny")),
        ),
        scenario(
            "synced in between",
            *neighbours(5, 200),
            delete("k0"),
            sync(),
            *(delete(f"k{number}") for number in range(1, 4)),
            *(put(f"n{number}", b"n" * 200) for number in range(3)),
            *(delete(f"n{number}") for number in range(3)),
        ),
        scenario(
            "replaced after a sync",
            *neighbours(3, 200),
            sync(),
            put("k1", b"second" * 40),
            *(put(f"n{number}", b"n" * 200) for number in range(3)),
            put("k1", b"third" * 40),
            delete("n0"),
            delete("n1"),
            put("k1", b"fourth" * 40),
            delete("n2"),
            delete("k1"),
            put("k0", b"other" * 40),
            put("last", b"l" * 300),
            delete("last"),
            delete("k0"),
        ),
        scenario(
            "in batches",
            *neighbours(4, 200),
            sync(),
            batch({"k1": b"b" * 200, "n1": b"c" * 200, "n2": b"d" * 200}, gone=("k2",)),
            put("n1", b"e" * 200),
            batch({"n1": b"f" * 200, "k1": b"g" * 100}, gone=("n2", "k0")),
            delete("k1"),
            put("k3", b"h" * 300),
            delete("n1"),
        ),
        scenario(
            "large ones among them",
            put("a", b"a" * 200),
            put_chunks("large", (b"x" * 30_000, b"", b"y" * 40_000)),
            put("b", b"b" * 200),
            put_chunks("more", (b"z" * 66_000,)),
            delete("large"),
            delete("a"),
            delete("b"),
            put_chunks("more", (b"w" * 66_000,)),
        ),
        scenario(
            "by calls instead of stores",
            *neighbours(5, 3500),
            put("object", {"a": "o" * 3000}),
            put("k1", b"replaced"),
            delete("object"),
            *(delete(f"k{number}") for number in (0, 3, 2)),
            put("last", b"l" * 5000),
            opens=cooling,
        ),
    ]  # fmt: skip


def run(case: Scenario, tmp_path: Path, states_max: int, seed: int) -> int:
    disk, state = tmp_path / "disk", tmp_path / "state"
    disk.mkdir()
    state.mkdir()
    return attack(record(case, str(disk)), str(state), states_max=states_max, seed=seed)


@pytest.mark.parametrize("case", scenarios(), ids=str)
def test_every_cut(
    case: Scenario, tmp_path: Path, profile: Any, count_states: Callable[[int], None]
):
    count_states(run(case, tmp_path, 50 * profile.factor, seed=1))


def random_steps(rng: random.Random) -> list[Step]:
    """Return a history of sets, replacements and deletions."""
    present: list[str] = []
    steps: list[Step] = []
    for number in range(rng.randrange(14, 22)):
        kind = rng.random()
        if present and kind < 0.45:
            steps.append(delete(present.pop(rng.randrange(len(present)))))
        elif kind < 0.52:
            steps.append(rng.choice([sync, sync, reopen])())
        else:
            key = rng.choice(present) if present and kind < 0.75 else f"key {number}"
            if key not in present:
                present.append(key)
            steps.append(put(key, bytes([number]) * rng.choice([1, 60, 200, 700])))
    return steps


@pytest.mark.parametrize("number", range(2))
def test_every_cut_of_random_histories(
    number: int, tmp_path: Path, profile: Any, count_states: Callable[[int], None]
):
    count, first = 0, int(os.environ.get("PMSHELVE_SEED", "0"))
    for seed in range(number, number + 2 * profile.factor, 2):
        home = tmp_path / str(seed)
        home.mkdir()
        case = scenario(f"random {seed}", *random_steps(random.Random(first + seed)))
        count += run(case, home, 40, seed)
    count_states(count)
