"""Pools with durability "none": no sync but by `sync` and `close`, and refused after a power cut."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj import PersistentDict, PersistentObjectPool, superblock
from pmshelve.storage import file as disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool"


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the syncs."""
    seen: list[int] = []
    real = disk.system.fdatasync

    def count(fd: int) -> None:
        seen.append(fd)
        real(fd)

    monkeypatch.setattr(disk.system, "fdatasync", count)
    return seen


def make(path: Path, **options: Any) -> PersistentObjectPool:
    pool = PersistentObjectPool(path, "c", durability="none", **options)
    if pool.root is None:
        pool.root = pool.new(PersistentDict)
    return pool


def killed(path: Path, *keys: str, settled: str = "") -> None:
    """Let a process store keys and die; after `settled` it syncs."""
    child = os.fork()
    if not child:
        try:
            pool = make(path)
            for key in keys:
                pool.root[key] = key * 100
                if key == settled:
                    pool.sync()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the system seem to be booted anew."""
    return lambda: monkeypatch.setattr(disk.system, "boot_id", lambda: b"after the reboot")


def test_commits_and_checkpoints_sync_nothing(path: Path, syncs: list[int]) -> None:
    with make(path) as pool:
        syncs.clear()
        for number in range(2000):
            pool.root[number] = bytes(4000)
        pool._raw.checkpoint()
        assert pool._raw.checkpoint_count > 1
        assert syncs == []
        pool.sync()
        assert syncs
        assert pool.check() == []


def test_a_killed_process_loses_nothing(path: Path) -> None:
    killed(path, *"abc")
    with PersistentObjectPool(path) as pool:
        assert sorted(pool.root) == ["a", "b", "c"]
        assert pool.check() == []


def test_after_a_power_cut_it_is_refused_and_left_alone(path: Path, reboot: Any) -> None:
    killed(path, *"abc")
    before = path.read_bytes()
    reboot()
    for flag in ("r", "w"):
        with pytest.raises(CorruptionError, match="durability='none'") as caught:
            PersistentObjectPool(path, flag)  # type: ignore[arg-type]
        assert caught.value.invariant == "S9"
    assert path.read_bytes() == before


def test_what_was_synced_or_closed_outlives_the_power(path: Path, reboot: Any) -> None:
    killed(path, *"ab", settled="b")
    reboot()
    with make(path) as pool:
        assert sorted(pool.root) == ["a", "b"]
        pool.root["c"] = 1
    with PersistentObjectPool(path, "r") as pool:
        assert sorted(pool.root) == ["a", "b", "c"]


def test_a_change_after_a_sync_endangers_all_again(path: Path, reboot: Any) -> None:
    killed(path, *"abc", settled="b")
    reboot()
    with pytest.raises(CorruptionError):
        PersistentObjectPool(path)


def test_the_next_opener_may_want_more(path: Path, reboot: Any, syncs: list[int]) -> None:
    killed(path, *"ab")
    with PersistentObjectPool(path, durability="full") as pool:
        assert syncs  # what the killed process left
        pool.root["c"] = 1
        block = superblock.read(path.read_bytes()[:8192], path.stat().st_size, path)
        assert not block.flags & superblock.UNSYNCED
        assert block.boot == bytes(16)


def test_where_boots_cannot_be_told_apart_it_syncs(
    path: Path, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.system, "boot_id", lambda: bytes(16))
    with make(path) as pool:
        syncs.clear()
        pool._raw.checkpoint()
        assert syncs


def test_a_failed_sync_makes_the_pool_refuse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(path) as pool:
        pool.root["a"] = 1

        def fail(fd: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(disk.system, "fdatasync", fail)
            with pytest.raises(OSError, match="open the pool again"):
                pool.sync()
        with pytest.raises(OSError, match="open the pool again"):
            pool.root["b"] = 1
    with make(path) as pool:
        assert dict(pool.root) == {"a": 1}
