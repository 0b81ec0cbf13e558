"""Runs of dead entries: what they join to, when they are buried, and what is left of them."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.mmapdict import mmapdict, runs
from pmshelve.mmapdict.check import check_bytes
from pmshelve.mmapdict.scan import Scan
from pmshelve.storage.file import system
from tests.support.stores import assert_sound, stock_load

SIZE = 1000


@pytest.fixture(autouse=True)
def _early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "GAIN_MIN", 4 * SIZE)


@pytest.fixture(params=["c", None])
def store(request: Any, tmp_path: Path) -> Iterator[mmapdict[Any]]:
    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode=request.param) as store:
        yield store
        content = {key: detached(value) for key, value in store.items()}
        assert_sound(store, content)
    with mmapdict(tmp_path / "store") as again:
        assert_sound(again, content)
        again.vacuum()
        assert_sound(again, content)
    assert stock_load(tmp_path / "store").keys() == content.keys()


def detached(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: detached(item) for key, item in value.items()}
    return np.array(value) if isinstance(value, np.ndarray) else value


def entries(store: mmapdict[Any]) -> list[tuple[str | None, int, bool]]:
    log = store._log
    return [
        (entry.key, entry.end - entry.offset, entry.own)
        for entry in Scan(log.pread, 24, log.tail + 11)
        if entry.key is not None
    ]


def fill(store: mmapdict[Any], count: int) -> None:
    for number in range(count):
        store[str(number)] = bytes([number & 255]) * SIZE


@pytest.mark.parametrize("order", [range(10), range(9, -1, -1), (5, 3, 4, 1, 0, 2, 9, 7, 8, 6)])
def test_neighbours_become_one_entry(store: mmapdict[Any], order: Any):
    fill(store, 12)
    for number in order:
        del store[str(number)]
    found = entries(store)
    assert found[-2:] == [("10", found[-1][1], True), ("11", found[-1][1], True)]
    assert max(size for _, size, own in found if not own) > 4 * SIZE
    assert len(found) <= 2 + 4  # the last few that died are not worth it yet


def test_a_live_one_between_parts_them(store: mmapdict[Any]):
    fill(store, 12)
    for number in range(12):
        if number != 5:
            del store[str(number)]
    assert [key for key, size, own in entries(store) if not own] == ["0", "6"]
    assert store["5"] == b"\5" * SIZE


def test_replaced_ones_count_too(store: mmapdict[Any]):
    for number in range(20):
        store["key"] = bytes([number]) * SIZE
    assert len(entries(store)) < 9
    assert store["key"] == b"\x13" * SIZE


def test_blocks_are_given_back(store: mmapdict[Any]):
    fill(store, 600)
    before = os.stat(store.path or "").st_blocks
    for number in range(590):
        del store[str(number)]
    # Not all: of the pages that were stored into the system keeps many together.
    assert os.stat(store.path or "").st_blocks < before * 0.7
    assert store._views.given_back > 500 * SIZE


def test_values_of_any_kind(store: mmapdict[Any]):
    values: list[Any] = [1, None, "t", "t" * 300, b"", b"b", {"a": [1]}, 1.5, 10**30, True]
    values += [np.arange(40), {"a": np.zeros(200)}, "é" * 2000]
    rng = random.Random(2)
    for number in range(300):
        store["k" * rng.choice([1, 9, 300]) + str(number)] = rng.choice(values)
    keys = list(store)
    rng.shuffle(keys)
    for key in keys[:250]:
        del store[key]
    assert len(store) == 50
    assert sum(not own for _, _, own in entries(store)) > 1


def test_views_of_small_arrays_keep_their_data(tmp_path: Path):
    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode="c") as store:
        array = np.arange(5000)
        for number in range(8):
            store[str(number)] = array + number
        held = store["4"]
        assert held._mmap is not None
        for number in range(8):
            del store[str(number)]
        store["more"] = b"x"
        assert (held == array + 4).all()
        assert store.check() == []


@pytest.mark.parametrize("mode", ["r+", "r"])
def test_nothing_is_buried_that_can_be_seen_through_the_shared_map(tmp_path: Path, mode: Any):
    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode=mode) as store:
        for number in range(20):
            store[str(number)] = np.full(200, number)
        held = [store[str(number)] for number in range(20)]
        for number in range(20):
            del store[str(number)]
        assert [array[0] for array in held] == list(range(20))
        assert all(own for _, _, own in entries(store))


def test_what_is_on_the_disk_is_not_buried(tmp_path: Path):
    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode="c") as store:
        fill(store, 10)
        store.sync()
        for number in range(10):
            del store[str(number)]
        assert all(own for _, _, own in entries(store))
        fill(store, 10)
        for number in range(10):
            del store[str(number)]
        assert [key for key, _, own in entries(store) if not own] == ["0"]
    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode="c", sync=True) as store:
        fill(store, 10)
        store.clear()
        assert all(own for key, _, own in entries(store) if key != "0")


def test_what_a_checkpoint_points_at_is_not_buried(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr("pmshelve.mmapdict.index.CHECKPOINT_COUNT", 8)
    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode="c") as store:
        store._index.limit = 8
        fill(store, 30)
        for number in range(30):
            del store[str(number)]
        assert store.check() == []


def test_a_disk_that_refuses_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode="c") as store:
        fill(store, 40)
        for number in range(3):
            del store[str(number)]
        store._log.cool(0)
        # The flag of the last one is near enough to the end for a store; the run's head is not.
        monkeypatch.setattr(store._log, "cold", store._log.cold // 4096 * 4096)
        monkeypatch.setattr(store._log, "poke", refuse)
        with caplog.at_level(logging.WARNING):
            for number in range(3, 20):
                del store[str(number)]
        monkeypatch.undo()
        assert "disk blocks not given back" in caplog.text
        assert store.check() == []
        assert len(store) == 20


def test_a_hole_is_no_damage(tmp_path: Path):
    path = tmp_path / "store"
    with mmapdict(path, exclusive=True, mmap_mode="c") as store:
        fill(store, 60)
        for number in range(50):
            del store[str(number)]
    data = path.read_bytes()
    assert list(check_bytes(lambda start, stop: data[start:stop], len(data))) == []
    with mmapdict(path) as store:
        assert store.fsck() is True
        assert len(store) == 10


def test_calls_are_used_where_the_map_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    pwrite = system.pwrite

    def spy(fd: int, data: Any, offset: int) -> int:
        calls.append(offset)
        return pwrite(fd, data, offset)

    with mmapdict(tmp_path / "store", exclusive=True, mmap_mode="c") as store:
        fill(store, 100)
        store._log.cool(0)
        assert store._log.cold == store._log.tail // 4096 * 4096
        monkeypatch.setattr(system, "pwrite", spy)
        del store["50"]
        store["51"] = b"new"
        monkeypatch.undo()
        assert len([offset for offset in calls if offset < store._log.cold]) == 2
        assert store["52"] == b"\x34" * SIZE
        assert store.check() == []
        store._log.chill()
        assert store["53"] == b"\x35" * SIZE
