"""Looking into pools without their lock: what is told is what the pool itself says."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObjectPool
from pmshelve.pmemobj.describe import Description, describe
from pmshelve.pmemobj.extents import Walk
from pmshelve.pmemobj.peek import Peek
from pmshelve.storage.extent import Extent
from tests.support.processes import Worker


class Thing(pmemobj.PersistentObject):
    """A user's class."""


def extents_of(path: Path) -> list[Extent]:
    with Peek(str(path)) as peek:
        walk = Walk(peek)
        extents = list(walk)
        assert not walk.problem
    position = 0
    for extent in extents:  # no gap, no overlap
        assert extent.offset == position
        assert extent.size > 0
        assert 0 <= extent.used <= extent.size
        position += extent.size
    assert position == path.stat().st_size
    return extents


def assert_as_the_pool_says(path: Path, pool: PersistentObjectPool) -> Description:
    told = describe(str(path))
    stats = pool.stats(walk=True)
    assert told.problem == ""
    assert not told.changing
    for name in ("heap_size", "used", "free", "block_count", "objects"):
        assert getattr(told, name) == getattr(stats, name), name
    assert tuple(told.classes) == stats.classes
    pages = dict(stats.pages)
    assert told.pages == {
        "free": pages["free"],
        "run": pages["run"],
        "slab": pages["slab"],
        "table": pages["table"] + pages["root"],
    }
    slabs = sum(slab["size"] for slab in told.slabs)
    assert slabs == 4096 * pages["slab"]
    found: dict[str, int] = {}
    for extent in extents_of(path):
        found[extent.kind] = found.get(extent.kind, 0) + extent.size
    assert found.get("slab", 0) == slabs
    assert found.get("run", 0) == 4096 * pages["run"]
    assert found.get("free", 0) == 4096 * pages["free"]
    return told


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_pool_at_work_is_looked_into(tmp_path: Path, durability: str) -> None:
    path = tmp_path / "pool"
    rng = random.Random(0)
    with pmemobj.create(path, durability=durability) as pool:
        told = assert_as_the_pool_says(path, pool)
        assert (told.root, told.journal_records) == ("", 0)
        root = pool.root = pool.new(PersistentDict)
        root["things"] = pool.new(PersistentList, [pool.new(Thing) for _ in range(20)])
        root["list"] = pool.new(PersistentList)
        for number in range(400):
            root[f"key {rng.randrange(200)}"] = "x" * rng.randrange(6000)
            root["list"].insert(0, number)  # moves
            if number % 100 == 0:
                told = assert_as_the_pool_says(path, pool)
                assert told.durability == durability
                assert told.clean is False
                assert told.root_class == "pmshelve.pmemobj.persistent.dict:PersistentDict"
        root["large"] = bytes(20_000_000)  # more than the journal holds: the pool grows
        told = assert_as_the_pool_says(path, pool)
        assert any(name.endswith(":Thing") for name in told.classes)
        assert told.objects["Thing"] == 20
    with PersistentObjectPool(path, "r") as pool:
        told = assert_as_the_pool_says(path, pool)
        assert told.clean is True


def test_a_pool_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    with pmemobj.create(tmp_path / "alive", durability="lazy") as pool:
        pool.root = pool.new(PersistentList, range(1000))
        shutil.copy(tmp_path / "alive", path)
    before = path.read_bytes()
    told = describe(str(path))
    assert told.clean is False
    assert told.journal_records
    assert told.objects == {"PersistentList": 1}
    assert path.read_bytes() == before
    pmemobj.open(path).close()
    assert describe(str(path)).clean is True


def test_a_pool_whose_heap_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentList, ["x" * 100] * 5)
        start = pool.mm.heap.start
        table = pool.mm.words[(start >> 3) + 2]
    data = bytearray(path.read_bytes())
    data[table + 16 : table + 32] = b"\xff" * 16  # the entry of page 1
    path.write_bytes(data)
    told = describe(str(path))
    assert "pages belong to no extent" in told.problem
    assert told.pages["damage"] >= 1
    data[start : start + 8] = bytes(8)
    path.write_bytes(data)
    told = describe(str(path))
    assert "no heap begins" in told.problem
    assert told.uuid is not None


@pytest.mark.parametrize("seed", range(40))
def test_any_damage_is_survived(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    whole, path = tmp_path / "whole", tmp_path / "pool"
    with pmemobj.create(whole) as pool:
        pool.root = pool.new(PersistentDict, {f"key {n}": "x" * n for n in range(200)})
        start = pool.mm.heap.start
    shutil.copy(whole, path)
    with open(path, "r+b") as file:
        for _ in range(rng.randrange(1, 30)):
            file.seek(rng.choice([rng.randrange(8192), start + rng.randrange(60_000)]))
            file.write(bytes([rng.randrange(256)]))
        if seed % 5 == 0:
            file.truncate(rng.randrange(start))
    told = describe(str(path))
    assert isinstance(told.problem, str)


_WRITER = """
from pmshelve import pmemobj
import threading
pool = pmemobj.open(path, durability="lazy")
done = threading.Event()
def write():
    number = 0
    while not done.is_set():
        pool.root[f"key {number % 500}"] = "x" * (number * 37 % 3000)
        number += 1
thread = threading.Thread(target=write)
thread.start()
"""


def test_a_pool_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentDict)
    states: dict[bool, int] = {False: 0, True: 0}
    with Worker() as worker:
        worker.run(_WRITER, path=str(path))
        try:
            for _ in range(12):
                told: Any = describe(str(path), blocks=False)
                assert told.problem == ""
                assert told.uuid is not None
                states[told.changing] += 1
        finally:
            worker.run("done.set(); thread.join()")
        told = describe(str(path))
        assert not told.changing
        assert told.problem == ""
        worker.run("pool.close()")
    with pmemobj.open(path) as pool:
        assert pool.check() == []
