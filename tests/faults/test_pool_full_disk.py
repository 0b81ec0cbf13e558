"""A full disk under a pool: a clean error, all rolled back, and on it goes when there is room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import NoSpaceError
from pmshelve.pmemobj import MIN_POOL_SIZE, PersistentDict, PersistentList
from tests.support.pools import assert_nothing_leaked, assert_sound, block_sizes, crash_copy, plain
from tests.support.processes import ROOT
from tests.support.simdisk import SimDisk
from tests.support.smalldisk import small_disk

MIB = 1 << 20


def fill(pool: Any, model: list[Any]) -> NoSpaceError:
    """Append until the disk is full; return the error."""
    number = len(model)
    while True:
        value = bytes([number % 251]) * (300_000 + number % 7 * 100_001)
        try:
            pool.root["list"].append(value)
        except NoSpaceError as error:
            return error
        model.append(value)
        number += 1
        assert number < 1000


def assert_clean(pool: Any, error: NoSpaceError) -> None:
    assert error.errno in (errno.ENOSPC, errno.EFBIG)
    assert error.filename == pool.filename
    assert pool.transaction().depth == 0
    assert_sound(pool)


def open_pool(path: Path, durability: str) -> Any:
    pool = pmemobj.PersistentObjectPool(path, "c", durability=durability)
    if pool.root is None:
        pool.root = pool.new(PersistentDict, {"list": pool.new(PersistentList)})
    return pool


# Growth -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_the_disk_is_full_at_every_growth(tmp_path: Path, durability: str, profile: Any) -> None:
    path = tmp_path / "pool"
    open_pool(path, durability).close()
    image = path.read_bytes()
    step = 300_000 if profile.factor > 1 else 1_700_000
    for spare in (0, 4096, 8191, *range(100_000, 6 * MIB, step)):
        path.write_bytes(image)
        disk = SimDisk(tmp_path)
        disk.capacity = len(image) + spare
        with disk.installed():
            pool = open_pool(path, durability)
            model: list[Any] = []
            error = fill(pool, model)
            assert_clean(pool, error)
            assert pool.root["list"] == model
            blocks = block_sizes(pool)
            with pytest.raises(NoSpaceError), pool.transaction():
                pool.root["new"] = "a text of more than fourteen bytes"
                pool.root["list"].clear()
                pool.root["large"] = bytes(20 * MIB)
            assert plain(pool.root) == {"list": model}
            assert block_sizes(pool) == blocks
            assert path.stat().st_size <= disk.capacity
            # Small changes, and those that free something, need no growth.
            if model:
                pool.root["list"].pop()
                model.pop()
            pool.root["small"] = "x" * 50
            assert_sound(pool)
            disk.capacity = None
            pool.root["list"].append(bytes(3 * MIB))
            model.append(bytes(3 * MIB))
            pool.close()
        with pmemobj.open(path) as pool:
            assert plain(pool.root) == {"list": model, "small": "x" * 50}
            assert_nothing_leaked(pool)


@pytest.mark.parametrize("spare", [0, 4096, 100_000, MIB, 3 * MIB])
def test_a_transaction_that_has_no_room_to_be_written(tmp_path: Path, spare: int) -> None:
    """One larger than the journal, on a disk that is full."""
    path = tmp_path / "pool"
    with open_pool(path, "lazy") as pool:
        pool.root["list"].extend(b"%d" % n * 100 for n in range(15_000))
    size = path.stat().st_size
    disk = SimDisk(tmp_path)
    disk.capacity = size + spare
    with disk.installed():
        pool = open_pool(path, "lazy")
        before = plain(pool.root)
        try:
            with pool.transaction():
                items = pool.root["list"]
                for number in range(len(items)):
                    items[number] = b"%d" % number * 99
        except NoSpaceError as error:
            assert_clean(pool, error)
            assert plain(pool.root) == before
        else:
            before["list"] = [b"%d" % n * 99 for n in range(15_000)]
            assert plain(pool.root) == before
        pool.root["after"] = 1
        disk.capacity = None
        pool.root["room"] = 2
        copy = crash_copy(pool, tmp_path.parent / f"{tmp_path.name}-copy")
        assert_sound(pool)
        pool.close()
    for name in (path, copy):
        with pmemobj.open(name) as pool:
            assert plain(pool.root) == {**before, "after": 1, "room": 2}
            assert_nothing_leaked(pool)


def test_small_commits_go_on_forever_on_a_full_disk(tmp_path: Path) -> None:
    """The journal and the pages written home have their blocks already."""
    path = tmp_path / "pool"
    open_pool(path, "lazy").close()
    disk = SimDisk(tmp_path)
    disk.capacity = path.stat().st_size
    with disk.installed(), open_pool(path, "lazy") as pool:
        for number in range(20_000):
            pool.root[number % 50] = str(number) * 20
        assert pool.root[7] == "19957" * 20
        assert_sound(pool)
    with pmemobj.open(path) as pool:
        assert len(pool.root) == 51
        assert_nothing_leaked(pool)


def test_making_a_pool_without_room_leaves_nothing(tmp_path: Path) -> None:
    for capacity in (0, 100, 4096, 8192, 100_000, MIN_POOL_SIZE - 1):
        disk = SimDisk(tmp_path)
        disk.capacity = capacity
        with disk.installed(), pytest.raises(NoSpaceError) as caught:
            pmemobj.create(tmp_path / "pool")
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == []


def test_opening_after_a_crash_on_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    with open_pool(path, "lazy") as pool:
        for number in range(200):
            pool.root[number] = str(number) * 30
        orphan = pool.new(PersistentList, range(1000))
        copy = crash_copy(pool, tmp_path / "copy")
        expected = plain(pool.root)
        del orphan
    disk = SimDisk(tmp_path)
    disk.capacity = copy.stat().st_size
    with disk.installed(), pmemobj.open(copy) as pool:
        assert plain(pool.root) == expected
        assert_nothing_leaked(pool)


# Real ones --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", 24 * MIB) as home:
        yield home


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_disk_that_is_really_full(disk: Path, durability: str) -> None:
    path = disk / "pool"
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(5 * MIB))
    pool = open_pool(path, durability)
    model: list[Any] = []
    for _ in range(3):
        error = fill(pool, model)
        assert error.errno == errno.ENOSPC
        assert_clean(pool, error)
        assert pool.root["list"] == model
        assert len(model) > 5
        for _ in range(3):
            pool.root["list"].pop(0)
            model.pop(0)
    with pytest.raises(NoSpaceError):
        pmemobj.create(disk / "other")
    assert sorted(os.listdir(disk)) == ["ballast", "pool"]
    ballast.unlink()
    before = len(model)
    fill(pool, model)
    assert len(model) > before + 5
    pool.close()
    with pmemobj.open(path) as pool:
        assert pool.root["list"] == model
        assert_nothing_leaked(pool)
        pool.root["list"].clear()
    assert path.stat().st_size < 12 * MIB


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    code = """
import errno, resource, sys
from pathlib import Path
from tests.faults.test_pool_full_disk import assert_clean, fill, open_pool
resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 20, resource.RLIM_INFINITY))
pool = open_pool(Path(sys.argv[1]), "lazy")
model = []
error = fill(pool, model)
assert_clean(pool, error)
assert pool.root["list"] == model
pool.root["list"].pop()
pool.root["after"] = 1
pool.close()
print(len(model))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pmemobj.open(path) as pool:
        assert len(pool.root["list"]) == int(done.stdout) - 1
        assert pool.root["after"] == 1
        assert_nothing_leaked(pool)


def test_a_limit_on_address_space_is_a_smaller_reservation(tmp_path: Path) -> None:
    code = """
import resource, sys
from pmshelve import pmemobj
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
with pmemobj.create(sys.argv[1]) as pool:
    pool.root = pool.new(pmemobj.PersistentList)
    for number in range(20):
        pool.root.append(bytes(1_000_000))
    assert pool.check() == []
with pmemobj.open(sys.argv[1]) as pool:
    assert len(pool.root) == 20
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pool")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "done\n", done.stderr
