"""Waiting for a lock: bounded, told who holds it, freed by death, and never skipped."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import LockTimeoutError, PmshelveError
from pmshelve.mmapdict import mmapdict
from pmshelve.storage import file as file_layer
from tests.support.processes import Worker
from tests.support.stores import assert_content, assert_sound, stock_load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker("import fcntl, os\nfrom pmshelve.mmapdict import mmapdict") as worker:
        yield worker


def _hold(worker: Worker, path: Path) -> None:
    worker.run("fd = os.open(path, os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_EX)", path=path)


def _changes() -> dict[str, Callable[[Any], Any]]:
    return {
        "set": lambda store: store.__setitem__("a", 2),
        "set array": lambda store: store.__setitem__("a", np.arange(100_000)),
        "delete": lambda store: store.__delitem__("a"),
        "pop": lambda store: store.pop("a"),
        "popitem": lambda store: store.popitem(),
        "setdefault": lambda store: store.setdefault("new", 2),
        "update": lambda store: store.update(a=2),
        "clear": lambda store: store.clear(),
        "batch": lambda store: store.batch().__enter__(),
        "vacuum": lambda store: store.vacuum(),
        "fsck": lambda store: store.fsck(),
        "commit_number": lambda store: setattr(store, "commit_number", 9),
    }


@pytest.mark.parametrize("name", _changes())
def test_waiting_ends_after_timeout_and_nothing_is_changed(
    path: Path, worker: Worker, name: str
) -> None:
    with mmapdict(path, timeout=0.1) as store:
        store.update(a=1, dead=1)
        del store["dead"]
        before = path.read_bytes()
        _hold(worker, path)
        start = time.monotonic()
        with pytest.raises(LockTimeoutError) as caught:
            _changes()[name](store)
        assert 0.05 < time.monotonic() - start < 20
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.errno == errno.ETIMEDOUT
        assert str(path) in str(caught.value)
        if sys.platform == "linux":
            assert str(worker.pid) in str(caught.value)
        assert path.read_bytes() == before
        assert store["a"] == 1
        assert dict(store) == {"a": 1}
        worker.run("os.close(fd)")
        store["a"] = 3
        assert_sound(store, {"a": 3})


def test_timeout_zero_does_not_wait(path: Path, worker: Worker) -> None:
    with mmapdict(path, timeout=0) as store:
        _hold(worker, path)
        start = time.monotonic()
        with pytest.raises(LockTimeoutError):
            store["a"] = 1
        assert time.monotonic() - start < 5
        worker.run("os.close(fd)")
        store["a"] = 1


@pytest.mark.parametrize("timeout", [None, 60])
def test_waiter_goes_on_as_soon_as_the_lock_is_free(
    path: Path, worker: Worker, timeout: float | None
) -> None:
    with mmapdict(path, timeout=timeout) as store:
        assert store.timeout == timeout
        _hold(worker, path)
        thread = threading.Thread(target=store.__setitem__, args=("a", 1))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        worker.run("os.close(fd)")
        thread.join(30)
        assert not thread.is_alive()
        assert_sound(store, {"a": 1})


def test_timeout_may_be_changed(path: Path, worker: Worker) -> None:
    with mmapdict(path) as store:
        _hold(worker, path)
        store.timeout = 0.05
        with pytest.raises(LockTimeoutError):
            store["a"] = 1
        worker.run("os.close(fd)")


def test_reading_needs_no_lock(path: Path, worker: Worker) -> None:
    with mmapdict(path) as store:
        store.update(a=1, b=np.arange(1000))
        with mmapdict(path, readonly=True, timeout=0) as reader:
            _hold(worker, path)
            assert_content(reader, {"a": 1, "b": np.arange(1000)})
            assert reader.commit_number == store.commit_number
            worker.run("os.close(fd)")


def test_settled_file_is_opened_read_only_while_another_holds_the_lock(
    path: Path, worker: Worker
) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
    _hold(worker, path)
    try:
        with mmapdict(path, readonly=True, timeout=0.1) as reader:
            assert dict(reader) == {"a": 1}
    except LockTimeoutError:
        pass  # opening may wait; a reader that is open may not
    worker.run("os.close(fd)")


def test_lock_dies_with_its_process(path: Path) -> None:
    with mmapdict(path, timeout=30) as store, Worker() as worker:
        store["a"] = 1
        worker.run("from pmshelve.mmapdict import mmapdict")
        worker.run("store = mmapdict(path); store.batch().__enter__()", path=path)
        worker.run("store['a'] = 2; store['b'] = bytes(3_000_000)")
        thread = threading.Thread(target=store.__setitem__, args=("c", 3))
        thread.start()
        worker.kill()
        thread.join(30)
        assert not thread.is_alive()
        assert_sound(store, {"a": 1, "c": 3})


def test_killed_exclusive_owner_leaves_its_commits(path: Path) -> None:
    with Worker("from pmshelve.mmapdict import mmapdict") as worker:
        worker.run("store = mmapdict(path, exclusive=True)", path=path)
        worker.run("for i in range(1000): store[str(i % 10)] = i")
        worker.run("del store['3']; store.update(x=1)")
        with pytest.raises(LockTimeoutError):
            mmapdict(path, timeout=0.05)
        worker.kill()
    expected = {str(i): 990 + i for i in range(10) if i != 3}
    expected["x"] = 1
    with mmapdict(path, timeout=5) as store:
        assert_sound(store, expected)
        assert len(store) == len(expected)


def test_killed_writer_is_followed_by_readers(path: Path) -> None:
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader, Worker() as worker:
        store["a"] = 1
        assert dict(reader) == {"a": 1}
        worker.run("from pmshelve.mmapdict import mmapdict")
        worker.run("store = mmapdict(path); store['b'] = 2; store.batch().__enter__()", path=path)
        worker.run("store['a'] = 100; del store['b']")
        worker.kill()
        assert_content(reader, {"a": 1, "b": 2})
        assert_content(store, {"a": 1, "b": 2})
        store["c"] = 3
        assert_sound(store, {"a": 1, "b": 2, "c": 3})
        assert_content(reader, {"a": 1, "b": 2, "c": 3})


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_refused_for_writing(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
    before = path.read_bytes()

    def refuse(fd: int, operation: int) -> None:
        if not operation & fcntl.LOCK_UN:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(file_layer.system, "flock", refuse)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        with mmapdict(path, timeout=0.1) as store:
            store["a"] = 2
    assert isinstance(caught.value, PmshelveError)
    assert "lock" in str(caught.value)
    assert path.read_bytes() == before
    with mmapdict(path, readonly=True) as reader:
        assert dict(reader) == {"a": 1}


def test_lock_that_stops_working_stops_the_writer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(file_layer.system, "flock", _raise_enolck)
            with pytest.raises(OSError):  # noqa: PT011
                store["a"] = 2
        assert path.read_bytes() == before
        store["a"] = 3
        assert_sound(store, {"a": 3})


def _raise_enolck(fd: int, operation: int) -> None:
    if not operation & fcntl.LOCK_UN:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_stock_pickle_reads_whoever_holds_the_lock(path: Path, worker: Worker) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
    _hold(worker, path)
    assert stock_load(path) == {"a": 1}
    worker.run("os.close(fd)")
