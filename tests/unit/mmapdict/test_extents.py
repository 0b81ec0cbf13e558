"""What lies where in an mmapdict file, and what is told of it, compared with the store itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.describe import Description, describe
from pmshelve.mmapdict.extents import Walk
from pmshelve.storage import file as disk
from pmshelve.storage.extent import Extent

DATA = Path(__file__).resolve().parents[2] / "data"


def walk_of(path: Path) -> tuple[Walk, list[Extent]]:
    data = path.read_bytes()
    walk = Walk(lambda start, stop: data[start:stop], len(data))
    extents = list(walk)
    position = 0
    for extent in extents:  # no gap, no overlap
        assert extent.offset == position
        assert extent.size > 0 and extent.number > 0
        position += extent.size
    assert position == len(data)
    return walk, extents


def description_of(path: Path) -> Description:
    fd = os.open(path, os.O_RDONLY)
    try:
        return describe(
            lambda start, stop: disk.read_at(fd, stop - start, start), lambda: disk.size_of(fd)
        )
    finally:
        os.close(fd)


def sums(extents: list[Extent]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for extent in extents:
        size, number = found.get(extent.kind, (0, 0))
        found[extent.kind] = size + extent.size, number + extent.number
    return found


def assert_as_the_store_says(path: Path) -> None:
    walk, extents = walk_of(path)
    assert (walk.problem, walk.damaged) == ("", False)
    told = description_of(path)
    assert (told.problem, told.damaged) == ("", False)
    with mmapdict(path, readonly=True) as store:
        stats = store.stats()
    found = sums(extents)
    assert found.get("live", (0, 0)) == (stats.live_size, stats.live_count)
    assert found.get("dead", (0, 0))[0] + found.get("index", (0, 0))[0] == stats.dead_size
    assert found["header"][0] + found["end"][0] == stats.overhead_size
    names = "live_count live_size dead_size overhead_size commit_number face checkpoint_entries"
    for name in names.split():
        assert getattr(told, name) == getattr(stats, name), name


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("*.mmdpickle")))
def test_the_files_of_the_suite(name: str) -> None:
    assert_as_the_store_says(DATA / name)


def test_a_file_with_everything(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        for number in range(1500):
            store[f"key {number}"] = number
        for number in range(0, 1500, 3):
            store[f"key {number}"] = "changed"
        with store.batch():
            for number in range(700, 900):
                del store[f"key {number}"]
        store["array"] = np.zeros(100_000)  # longer than a window
        store["ä" * 300] = bytes(1 << 19)
    assert_as_the_store_says(path)
    assert sums(walk_of(path)[1])["index"][1] >= 1
    told = description_of(path)
    assert told.checkpoints[0]["end"] <= told.checkpoints[0]["offset"]
    assert told.open_since == "closed"


def test_what_is_added_behind_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update((f"key {number}", number) for number in range(1000))
    with mmapdict(path) as store:
        store["another"] = 1
        told = description_of(path)
        assert told.checkpoint_entries == 1000
        assert 20 < told.unindexed_size < 100
        assert told.live_count == 1001


def test_an_exclusive_store_at_work(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path, exclusive=True) as store:
        for number in range(100):
            store[f"key {number}"] = number
        del store["key 5"]
        told = description_of(path)
        assert (told.exclusive, told.settled) == (True, False)
        assert told.live_count == 99
        assert told.torn_size > 0  # what it has reserved
        assert not told.problem
        kinds = sums(walk_of(path)[1])
        assert kinds["behind"][0] == told.torn_size


def test_a_change_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update(a=1, b=2)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\x95half an entry")
    walk, extents = walk_of(path)
    assert extents[-1].kind == "behind"
    assert not walk.damaged
    assert description_of(path).torn_size == 14
    path.write_bytes(whole[:-20])  # and one that lost its end
    walk, extents = walk_of(path)
    assert (walk.tail, walk.damaged) == (None, False)
    assert extents[-1].kind == "behind"
    told = description_of(path)
    assert "batch" in told.problem  # which `update` was
    assert not told.damaged
    assert (told.live_count, told.live_size, told.dead_size) == (0, 0, 0)
    with mmapdict(path) as store:
        assert len(store) == 0


def damaged(path: Path, where: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(where)
    data[at - 20 : at] = b"\xee" * 20
    path.write_bytes(data)


def test_damage_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update((f"key {number}", "v" * 100) for number in range(50))
    damaged(path, b"key 25")
    walk, extents = walk_of(path)
    assert walk.damaged
    assert walk.problem
    kinds = sums(extents)
    assert kinds["damage"][1] == 1
    assert kinds["live"][1] == 48  # the one before lost its end
    told = description_of(path)
    assert told.damaged
    assert told.live_count is None
    assert str(walk.problem_offset) in told.problem


def test_a_broken_index_is_damage_and_the_entries_are_found(tmp_path: Path) -> None:
    path = tmp_path / "store"
    shutil.copy(DATA / "golden-1-indexed.mmdpickle", path)
    data = bytearray(path.read_bytes())
    data[data.index(b"PMSINDEX") + 9] ^= 1
    path.write_bytes(data)
    walk, extents = walk_of(path)
    assert walk.damaged and "checkpoint" in walk.problem
    assert sums(extents)["live"][1] == 600


@pytest.mark.parametrize("seed", range(40))
def test_any_bytes_are_accounted_for(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = bytearray((DATA / "golden-1-indexed.mmdpickle").read_bytes())
    for _ in range(rng.integers(1, 20)):
        data[rng.integers(24, len(data))] = rng.integers(256)
    if seed % 3 == 0:
        del data[rng.integers(24, len(data)) :]
    path = tmp_path / "store"
    path.write_bytes(data)
    walk_of(path)
    description_of(path)


@pytest.fixture
def tiny_files(tmp_path: Path) -> Iterator[Path]:
    with mmapdict(tmp_path / "store") as store:
        store["a"] = 1
    whole = (tmp_path / "store").read_bytes()
    paths = []
    for size in range(24, len(whole)):
        path = tmp_path / f"cut {size}"
        path.write_bytes(whole[:size])
        paths.append(path)
    return iter(paths)


def test_files_cut_anywhere(tiny_files: Iterator[Path]) -> None:
    for path in tiny_files:
        walk_of(path)
        description_of(path)
