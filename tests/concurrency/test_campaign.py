"""Processes that write, read and vacuum one file at once, held against their logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmshelve.mmapdict import mmapdict
from tests.support import campaign
from tests.support.processes import Worker
from tests.support.stores import assert_sound


@pytest.mark.parametrize(
    ("count", "options"),
    [(4, {}), (3, {"autovacuum": True}), (2, {"sync": True}), (3, {"mmap_mode": "c"})],
    ids=["4 processes", "vacuuming by themselves", "synced", "copy-on-write"],
)
def test_processes_agree_with_their_logs(
    tmp_path: Path, profile: Any, count: int, options: dict[str, Any]
) -> None:
    path = tmp_path / "store.mmdpickle"
    seconds = (5.0 if not options else 2.0) * profile.factor
    names = [f"p{number}" for number in range(count)]
    with mmapdict(path) as store:
        campaign.prepare(store, names)
    workers = [Worker("from tests.support import campaign") for _ in names]
    try:
        for seed, (worker, name) in enumerate(zip(workers, names, strict=True)):
            worker.start(
                "campaign.run(path, name, names, seconds, seed, options)",
                mode="eval",
                path=str(path), name=name, names=names, seconds=seconds, seed=seed,
                options=options,
            )  # fmt: skip
        with mmapdict(path, readonly=True) as reader:
            _watch(reader, names, workers)
        results = [worker.finish(seconds + 60) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    _compare(path, results, names)


def _watch(reader: mmapdict, names: list[str], workers: list[Worker]) -> None:
    """Read along, from a handle that cannot write, for a while."""
    latest: dict[str, int] = {}
    for _ in range(300):
        for name in names:
            key = f"steady:{name}:0"
            owner, number = campaign.parse(reader[key])
            assert owner == name
            assert number >= latest.get(key, 0)
            latest[key] = number
        assert campaign.COUNTER in reader
        counted = reader[campaign.COUNTER]
        assert counted >= latest.get(campaign.COUNTER, 0)
        latest[campaign.COUNTER] = counted
        for value in reader.values():
            if not isinstance(value, int):
                campaign.parse(value)


def _compare(path: Path, results: list[tuple[dict[str, int], int, int]], names: list[str]) -> None:
    with mmapdict(path) as store:
        logged: dict[str, int] = {}
        for log, _raised, operations in results:
            assert operations > 0
            logged.update(log)
        own = {key: value for key, value in store.items() if key.startswith("own:")}
        assert own.keys() == logged.keys()
        for key, value in own.items():
            assert campaign.parse(value) == (key.split(":")[1], logged[key])
        assert store[campaign.COUNTER] == sum(raised for _log, raised, _operations in results)
        assert len(store) == len(logged) + campaign.STEADY_COUNT * len(names) + 1
        assert_sound(store, dict(store))
