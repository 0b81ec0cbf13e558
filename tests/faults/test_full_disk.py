"""A disk that is really full, or nearly: what was there stays, and room heals all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import NoSpaceError
from pmshelve.mmapdict import EmptyNDArray, mmapdict
from tests.crash.scenarios import FIRST, exclusive, file_object, first_file, plain, synced
from tests.support.history import matches
from tests.support.processes import ROOT
from tests.support.simdisk import SimDisk
from tests.support.stores import assert_sound

SPARE = [*range(0, 40, 3), 100, 490, *range(500, 520, 4), 1_000, 4_000, 70_000]


@pytest.mark.parametrize(
    "opens",
    [plain, synced, exclusive, file_object],
    ids=["plain", "synced", "exclusive", "file"],
)
@pytest.mark.parametrize("kind", ["small", "large", "batch", "vacuum"])
def test_no_room_after_any_number_of_bytes(tmp_path: Path, opens: Any, kind: str):
    path = tmp_path / "store"
    first_file(str(path))
    image = path.read_bytes()
    refusals = 0
    for spare in SPARE:
        path.write_bytes(image)
        disk = SimDisk(tmp_path)
        disk.capacity = len(image) + spare
        with disk.installed():
            store = opens(str(path))
            error = refusal(store, kind)
            if error is not None:
                refusals += 1
                assert (error.errno, error.filename) == (errno.ENOSPC, str(path))
                assert path.stat().st_size == len(image)
                assert matches(dict(store.items()), FIRST, set(), ordered=True)
                assert list(store.check()) == []
                disk.capacity = None
                change(store, kind)
            expected = {
                key: np.array(value) if key == "array" else value for key, value in store.items()
            }
            store.close()
            disk.verify()
        with mmapdict(path) as store:
            assert_sound(store, expected)
    assert kind == "vacuum" or refusals


def refusal(store: Any, kind: str) -> NoSpaceError | None:
    try:
        change(store, kind)
    except NoSpaceError as error:
        return error
    return None


def change(store: Any, kind: str) -> None:
    if kind == "small":
        store["b"] = "x" * 300
    elif kind == "large":
        store["b"] = np.arange(9_000)
    elif kind == "batch":
        with store.batch():
            store["new"] = b"n" * 400
            del store["a"]
            store["b"] = np.arange(100)
    else:
        store.vacuum()


def run_limited(code: str, *arguments: str) -> str:
    """Run code in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("exclusively", [False, True], ids=["shared", "exclusive"])
def test_a_limit_on_the_size_of_files(tmp_path: Path, exclusively: bool):
    path = tmp_path / "store"
    code = """
import errno, resource, sys
from pmshelve.errors import NoSpaceError
from pmshelve.mmapdict import mmapdict
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
store = mmapdict(sys.argv[1], exclusive=sys.argv[2] == "True")
number = 0
try:
    while True:
        store[f"key {number % 1000}"] = bytes([number % 251]) * 700
        number += 1
except NoSpaceError as error:
    assert error.errno == errno.EFBIG, error
    assert error.filename == sys.argv[1]
assert len(store) == number
assert list(store.check()) == []
del store["key 0"]
store["after"] = 1
assert store["after"] == 1
store.close()
print(number)
"""
    number = int(run_limited(code, str(path), str(exclusively)))
    assert 300 < number < 430
    with mmapdict(path) as store:
        expected: dict[str, Any] = {f"key {i}": bytes([i % 251]) * 700 for i in range(1, number)}
        assert_sound(store, expected | {"after": 1})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where the tests may mount one."""
    home = tmp_path / "small"
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(home)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system")
    yield home
    subprocess.run(["umount", str(home)], check=True)


@pytest.mark.parametrize("exclusively", [False, True], ids=["shared", "exclusive"])
def test_a_small_disk(small_disk: Path, exclusively: bool):
    path = small_disk / "store"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(100_000))
    with mmapdict(path, exclusive=exclusively) as store:
        expected: dict[str, Any] = {}
        with pytest.raises(NoSpaceError) as caught:
            fill(store, expected)
        assert caught.value.errno == errno.ENOSPC
        assert len(expected) > 120
        assert_sound(store, expected)
        with pytest.raises(NoSpaceError), store.batch():
            fill(store, {})
        with pytest.raises(NoSpaceError):
            store["reserved"] = EmptyNDArray((1 << 20,), "u1", reserve=True)
        assert_sound(store, expected)
        for key in list(expected)[10:]:  # deleting needs no room
            del store[key], expected[key]
        with pytest.raises(NoSpaceError):
            store.vacuum()
        assert sorted(os.listdir(small_disk)) == ["ballast", "store"]
        assert_sound(store, expected)
        ballast.unlink()
        store.vacuum()
        assert path.stat().st_size < 100_000
        store["room"] = expected["room"] = "again"
        assert_sound(store, expected)


def fill(store: Any, expected: dict[str, Any]) -> None:
    for number in range(1_000):
        value = np.full(5_000, number % 251, "u1")
        store[f"key {number}"] = value
        expected[f"key {number}"] = value


@pytest.mark.parametrize("size", [200, 200_000])
def test_a_set_that_had_no_room_keeps_the_old_value_of_its_batch(tmp_path: Path, size: int):
    path = tmp_path / "store"
    old, new = np.arange(10), np.zeros(size)
    with mmapdict(path) as store:
        store["array"] = old
    disk = SimDisk(tmp_path)
    disk.capacity = path.stat().st_size + 2_000
    with disk.installed(), mmapdict(path) as store:
        with store.batch():
            store["before"] = 1
            if new.nbytes > 2_000:
                with pytest.raises(NoSpaceError):
                    store["array"] = new
            else:
                store["array"] = new
            store["after"] = 2
        expected = old if new.nbytes > 2_000 else new
        assert np.array_equal(store["array"], expected)
        assert (store["before"], store["after"]) == (1, 2)
        assert list(store.check()) == []
    with mmapdict(path) as store:
        assert np.array_equal(store["array"], expected)
        assert sorted(store) == ["after", "array", "before"]
