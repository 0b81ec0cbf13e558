"""Progress of vacuum, check and fsck: what is told, and that whatever it raises loses nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import LockTimeoutError
from pmshelve.mmapdict import mmapdict
from pmshelve.storage import progress


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step told, instead of one in ten milliseconds."""
    monkeypatch.setattr(progress, "INTERVAL", 0)


CONTENT: dict[str, Any] = {f"key {number}": "v" * (number % 300) for number in range(4000)}


def fill(store: mmapdict) -> dict[str, Any]:
    store.update(dict.fromkeys(CONTENT, "an older value"))
    store.update(CONTENT)
    store["array"] = np.arange(600_000)
    return {**CONTENT, "array": np.arange(600_000)}


def holds(store: mmapdict, expected: dict[str, Any]) -> bool:
    found = dict(store)
    return np.array_equal(found.pop("array"), expected["array"]) and found == {
        key: value for key, value in expected.items() if key != "array"
    }


class Stopped(Exception):
    """What a callback raises that is neither ours nor Ctrl-C."""


def stop_at(number: int, error: type[BaseException]) -> Callable[[int, int], None]:
    calls = 0

    def report(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error

    return report


def calls_of(work: Callable[..., object]) -> list[tuple[int, int]]:
    calls: list[tuple[int, int]] = []
    work(progress=lambda done, total: calls.append((done, total)))
    return calls


def assert_told_well(calls: list[tuple[int, int]]) -> None:
    assert len(calls) > 5
    assert len({total for _, total in calls}) == 1
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]
    assert all(done < total for done, total in calls[:-1])


@pytest.mark.parametrize("work", ["vacuum", "check", "fsck"])
def test_what_is_told(tmp_path: Path, work: str) -> None:
    with mmapdict(tmp_path / "store") as store:
        fill(store)
        store.close()
    with mmapdict(tmp_path / "store") as store:
        assert_told_well(calls_of(getattr(store, work)))


def test_nothing_to_do_is_told_as_done(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "store") as store:
        for work in (store.vacuum, store.check, store.fsck):
            done, total = calls_of(work)[-1]
            assert done == total


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("how", ["replacing", "in place"])
def test_a_vacuum_that_is_stopped(
    tmp_path: Path, how: str, exclusive: bool, error: type[BaseException]
) -> None:
    path = tmp_path / "store"
    with mmapdict(path, exclusive=exclusive) as store:
        expected = fill(store)
        if how == "in place":
            os.link(path, tmp_path / "second name")
        names = {*os.listdir(tmp_path)}
        for number in range(1, 12):
            before = path.stat().st_size
            with pytest.raises(error):
                store.vacuum(1 << 17, progress=stop_at(number, error))
            if not exclusive:  # which reserves room behind its end
                assert path.stat().st_size == before
            assert {*os.listdir(tmp_path)} == names
            store["more"] = number
            expected["more"] = number
            assert store["more"] == number
        assert store.check() == []
        assert holds(store, expected)
        store.vacuum(progress=lambda done, total: None)
        assert holds(store, expected)
    with mmapdict(path) as store:
        assert store.check() == []
        assert holds(store, expected)
        assert store.stats().dead_size < store.stats().size // 10


def test_a_vacuum_that_is_stopped_at_its_end_was_done(tmp_path: Path) -> None:
    path = tmp_path / "store"

    def stop_at_the_end(done: int, total: int) -> None:
        if done == total:
            raise Stopped

    with mmapdict(path) as store:
        expected = fill(store)
        before = path.stat().st_size
        with pytest.raises(Stopped):
            store.vacuum(progress=stop_at_the_end)
        assert path.stat().st_size < before
        assert holds(store, expected)
        store["more"] = 1
        assert store.check() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
def test_a_check_that_is_stopped(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        expected = fill(store)
        before = path.read_bytes()
        for number in (1, 2, 1000, 7000):
            with pytest.raises(error):
                store.check(progress=stop_at(number, error))
        assert path.read_bytes() == before
        with mmapdict(path) as other:  # the lock is free
            other["more"] = 1
        assert holds(store, {**expected, "more": 1})


def test_an_fsck_that_is_stopped_is_done_by_another(tmp_path: Path) -> None:
    path = tmp_path / "store"
    content = dict(list(CONTENT.items())[:600])
    with mmapdict(path) as store:
        store.update(content)
    data = bytearray(path.read_bytes())
    for key in ("key 70", "key 450"):
        at = data.index(b"\x8c" + bytes((len(key),)) + key.encode())
        data[at - 5] ^= 0xFF  # the size of the entry
    path.write_bytes(data)
    kept: dict[str, Any] | None = None
    for stop in (1, 400, 620, 700, 1100, 10**9):
        path.write_bytes(data)
        with mmapdict(path) as store:
            if stop < 10**9:
                with pytest.raises(Stopped):
                    store.fsck(progress=stop_at(stop, Stopped))
            assert store.fsck() is False
            assert store.fsck() is True
            assert store.check() == []
            found = dict(store)
        assert found.items() <= content.items()
        assert len(found) >= len(content) - 2
        assert kept is None or found == kept
        kept = found


def test_an_exclusive_store_stays_so_when_its_fsck_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"

    load = mmapdict._load
    calls: list[int] = []

    def stop_once(store: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        load(store)

    with mmapdict(path, exclusive=True) as store:
        for number in range(50):
            store[f"key {number}"] = "v" * 100
        at = path.read_bytes().index(b"\x8c\x06key 20")
        with open(path, "r+b") as file:
            file.seek(at + 60)
            file.write(b"w")
        with monkeypatch.context() as patch:
            patch.setattr(mmapdict, "_load", stop_once)
            with pytest.raises(KeyboardInterrupt):
                store.fsck()
        assert store._log.exclusive
        store.fsck()
        assert store.check() == []
        assert len(store) == 49
        store["more"] = 1
        with pytest.raises(LockTimeoutError):
            mmapdict(path, timeout=0)
    with mmapdict(path) as store:
        assert store["more"] == 1
        assert store.check() == []
