"""PmemDict where things go wrong: Ctrl-C, full disks, kills, forks and an exit without `close`."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zict")

from pmshelve.errors import ForkedError, NoSpaceError, StoreFailedError
from pmshelve.pmemobj import PersistentObjectPool
from pmshelve.pmemobj.blobs import Blobs
from pmshelve.pmemobj.transaction import Operation
from pmshelve.storage import file as disk
from pmshelve.zict_compat import PmemDict, pmemstore
from tests.support.processes import ROOT
from tests.support.simdisk import rebooted
from tests.support.smalldisk import small_disk

LARGE = os.urandom(1 << 18)
MIB = 1 << 20

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.pool"


@pytest.fixture
def store(path: Path) -> Iterator[PmemDict]:
    with PmemDict(path, durability="none") as store:
        yield store
        assert store.closed or store.check() == []


def in_child(work: Callable[[], None]) -> int:
    """Do something in a forked process; return how that ended, a signal as a negative number."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: BaseException) -> None:
    """Let the next call of a function raise before it does anything."""
    real = getattr(owner, name)

    def fail(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        raise error

    monkeypatch.setattr(owner, name, fail)


def blocks(path: Path) -> int:
    return os.stat(path).st_blocks * 512


# Interrupts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["replace", "delete", "clear"])
def test_an_interrupt_right_after_a_commit_leaves_no_garbage(
    how: str, store: PmemDict, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["k"] = LARGE
    held = store["k"]
    once(monkeypatch, Blobs, "end", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        if how == "replace":
            store["k"] = bytes(len(LARGE))
        elif how == "delete":
            del store["k"]
        else:
            store.clear()
    assert bytes(held) == LARGE
    store["new"] = bytes(len(LARGE))
    assert bytes(held) == LARGE
    del held
    gc.collect()
    store["other"] = b""
    assert store._store._blobs.limbo == set()
    store.close()
    with PersistentObjectPool(path) as pool:
        assert pool.gc()[1]["orphans0-gced"] == 0


@pytest.mark.parametrize("how", ["replace", "delete", "clear"])
def test_what_an_interrupt_left_open_is_rolled_back_before_anything_is_read(
    how: str, store: PmemDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["k"] = LARGE
    once(monkeypatch, Operation, "__exit__", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        if how == "replace":
            store["k"] = b"after"
        elif how == "delete":
            del store["k"]
        else:
            store.clear()
    assert (len(store), list(store), "k" in store) == (1, ["k"], True)
    assert bytes(store["k"]) == LARGE
    store["other"] = b""
    assert bytes(store["k"]) == LARGE


def test_an_interrupted_close_can_be_repeated(
    store: PmemDict, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["k"] = LARGE
    held = store["k"]
    once(monkeypatch, pmemstore.Store, "close", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.close()
    assert bytes(store["k"]) == LARGE
    store.close()
    assert bytes(held) == LARGE
    with PmemDict(path, timeout=0.0) as again:
        assert bytes(again["k"]) == LARGE


@pytest.mark.parametrize("name", ["pwrite", "fdatasync"])
def test_an_interrupted_mark_of_unsynced_use_does_not_outlive_a_close(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PmemDict(path) as store:
        store["k"] = b"v"
    with PmemDict(path, durability="none") as store:
        real = getattr(disk.system, name)

        def strike(*arguments: Any) -> Any:
            real(*arguments)
            monkeypatch.setattr(disk.system, name, real)
            raise KeyboardInterrupt

        monkeypatch.setattr(disk.system, name, strike)
        with pytest.raises(KeyboardInterrupt):
            store["new"] = b"v"
    with rebooted(b"another boot ---"), PmemDict(path) as store:
        assert list(store) == ["k"]


# Full disks and failing ones ----------------------------------------------------------------------


def test_what_fails_after_a_commit_is_told_by_the_next_change(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PmemDict(path, durability="none") as store:
        store["k"] = bytes(8 * MIB)
        store["l"] = b"l"

        def fail(*_: Any) -> int:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(disk.system, "pwrite", fail)
            del store["k"]  # and the checkpoint that is to give its blocks back
        assert list(store) == ["l"]
        with pytest.raises(StoreFailedError):
            store["m"] = b""
    with PmemDict(path) as store:
        assert list(store) == ["l"]


def test_blocks_of_a_value_that_had_no_room_are_given_back(
    store: PmemDict, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["k"] = bytes(16 * MIB)
    del store["k"]
    before = blocks(path)
    if before > 16 * MIB:
        pytest.skip("no blocks are given back on this file system")
    real = disk.system.pwritev

    def fail(*arguments: Any) -> int:
        real(*arguments)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk.system, "pwritev", fail)
        with pytest.raises(NoSpaceError):
            store["k"] = os.urandom(16 * MIB)
    assert blocks(path) > before + 15 * MIB
    store["l"] = b""
    assert blocks(path) < before + MIB


@needs_fork
@pytest.mark.parametrize("durability", ["none", "lazy"])
def test_a_disk_that_others_fill_while_blocks_are_given_back(
    durability: Any, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 64 * MIB) as home:

        def work() -> None:
            with PmemDict(home / "pool", durability=durability) as store:
                _use_all(store, home / "other")

        # In a child: on such a file system a page that cannot be had is a SIGBUS.
        assert in_child(work) == 0
        (home / "other").unlink(missing_ok=True)
        with PmemDict(home / "pool") as store:
            assert list(store) == ["last"]


def _use_all(store: PmemDict, other: Path) -> None:
    for number in range(30):
        store[number] = LARGE * 4
    store.clear()
    store.sync()
    with pytest.raises(OSError, match="space"), open(other, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    model: dict[Any, bytes] = {}
    refused = 0
    for number in range(2000):
        value = bytes([number % 256]) * (100, 3000, 9000, 30_000, 300_000)[number % 5]
        try:
            store[number] = value
        except NoSpaceError:
            refused += 1
            assert number not in store
        else:
            model[number] = value
    assert refused
    assert {key: bytes(store[key]) for key in store} == model
    assert store.check() == []
    for key in model:
        del store[key]
    other.unlink()
    store["last"] = LARGE * 80
    assert bytes(store["last"]) == LARGE * 80
    assert store.check() == []


# Kills, forks and exits ---------------------------------------------------------------------------


@needs_fork
def test_without_durability_nothing_is_synced_after_a_recovery(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        PmemDict(path, durability="none")["k"] = LARGE
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    with PmemDict(path, durability="none") as store:
        assert bytes(store["k"]) == LARGE
        store["l"] = LARGE  # says in the superblock that the pool is in use
        calls: list[int] = []
        real = disk.system.fdatasync

        def count(fd: int) -> None:
            calls.append(fd)
            real(fd)

        monkeypatch.setattr(disk.system, "fdatasync", count)
        store["m"] = LARGE
        assert calls == []


@needs_fork
def test_a_child_is_refused_and_reads_nothing_of_what_the_parent_changes(store: PmemDict) -> None:
    store["k"] = LARGE

    def work() -> None:
        for use in (
            lambda: store["k"],
            lambda: store.__setitem__("k", b""),
            lambda: "k" in store,
            lambda: len(store),
            lambda: list(store),
            store.sync,
            store.stats,
            store.check,
        ):
            with pytest.raises(ForkedError):
                use()
        store.close()

    assert in_child(work) == 0
    assert bytes(store["k"]) == LARGE


@needs_fork
def test_the_child_of_a_killed_process_does_not_keep_the_lock(path: Path) -> None:
    alive, end = os.pipe()

    def work() -> None:
        os.close(end)
        store = PmemDict(path)
        store["k"] = LARGE
        held = store["k"]
        if not os.fork():
            os.read(alive, 1)
            os._exit(len(held) & 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    os.close(alive)
    began = time.monotonic()
    with PmemDict(path, timeout=5.0) as store:
        assert bytes(store["k"]) == LARGE
    assert time.monotonic() - began < 5
    os.close(end)


EXIT = """
import atexit, os, sys
held = []
atexit.register(lambda: print(all(bytes(each) == value for each in held), len(held)))
from pmshelve.zict_compat import PmemDict
value = os.urandom(1 << 20)
store = PmemDict(sys.argv[1], durability="none", scratch=sys.argv[2] == "scratch")
for number in range(20):
    store[number] = value
held = [store[number] for number in range(20)]
store.clear()
"""


@pytest.mark.parametrize("kind", ["kept", "scratch"])
def test_an_exit_without_close_closes_and_leaves_buffers_alone(kind: str, path: Path) -> None:
    command = [sys.executable, "-c", EXIT, str(path), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True 20\n", "")
    assert path.exists() == (kind == "kept")
    if kind == "kept":
        with PmemDict(path) as store:
            assert len(store) == 0
