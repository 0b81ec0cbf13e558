"""PmemDict: keys and values, one open pool for each file, and what errors leave behind."""

from __future__ import annotations

import gc
import os
import pickle
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zict")

from pmshelve.errors import (
    ClosedError,
    CorruptionError,
    LockTimeoutError,
    NoSpaceError,
    NotAStoreError,
    WrongDoorError,
)
from pmshelve.pmemobj import PersistentDict, PersistentObjectPool
from pmshelve.storage import file as disk
from pmshelve.zict_compat import PmemDict, pmemstore

LARGE = os.urandom(1 << 18)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.pool"


@pytest.fixture
def store(path: Path) -> Iterator[PmemDict]:
    with PmemDict(path) as store:
        yield store
        assert store.closed or store.check() == []


@pytest.fixture
def unsynced(path: Path) -> Iterator[PmemDict]:
    with PmemDict(path, durability="none") as store:
        yield store
        assert store.closed or store.check() == []


# Keys and values ----------------------------------------------------------------------------------


def test_keys_of_all_kinds_come_back(store: PmemDict) -> None:
    keys = ["a", "", "\0", "x" * 5000, b"\xff", 1, -(2**80), 0.5, None, ("a", (1, b"", None)), ()]
    for place, key in enumerate(keys):
        store[key] = str(place).encode()
    assert list(store) == keys
    assert [type(key) for key in store] == [type(key) for key in keys]
    assert [store[key] for key in keys] == [str(place).encode() for place in range(len(keys))]


def test_equal_keys_are_one_and_texts_are_not_numbers(store: PmemDict) -> None:
    store[1] = b"a"
    store["1"] = b"b"
    store[True] = b"c"
    assert store[1.0] == b"c"
    assert len(store) == 2


@pytest.mark.parametrize("key", [float("nan"), frozenset(), ("a", object())])
def test_other_keys_are_refused(key: Any, store: PmemDict) -> None:
    with pytest.raises(TypeError):
        store[key] = b""
    with pytest.raises(KeyError):
        store[key]
    assert key not in store
    with pytest.raises(TypeError):
        store[[]]  # type: ignore[index]


VALUES = {
    "nothing": (b"", b""),
    "no parts": ([], b""),
    "empty parts": ([b"", bytearray()], b""),
    "14 bytes": (b"x" * 14, b"x" * 14),
    "15 bytes": (b"x" * 15, b"x" * 15),
    "parts": ((b"ab", bytearray(b"c"), memoryview(b"de")), b"abcde"),
    "strided": (memoryview(b"abcdef")[::2], b"ace"),
    "words": (memoryview(b"abcdefgh").cast("I"), b"abcdefgh"),
    "large": (LARGE, LARGE),
    "large parts": ([LARGE[:10], b"", LARGE[10:70_000], memoryview(LARGE)[70_000:]], LARGE),
    "a part of 4024 bytes first": ([LARGE[:4024], LARGE[4024:]], LARGE),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_writable_bytes_of_their_own(name: str, store: PmemDict) -> None:
    given, expected = VALUES[name]
    store["k"] = given
    found = store["k"]
    assert bytes(found) == expected
    assert not memoryview(found).readonly
    if expected:
        found[0] ^= 255
        found[-1] ^= 255
        assert bytes(store["k"]) == expected


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 69_560, 69_561, 262_143, 1 << 22])
def test_sizes_around_the_edges(size: int, store: PmemDict) -> None:
    value = os.urandom(size)
    for _ in range(3):
        store["k"] = [value[:1000], value[1000:]]
        assert bytes(store["k"]) == value
        del store["k"]


def test_arrays(store: PmemDict) -> None:
    np = pytest.importorskip("numpy")
    for array in (
        np.arange(6).reshape(2, 3),
        np.arange(6).reshape(2, 3).T,
        np.arange(6, dtype=">i2"),
        np.zeros(3, [("a", "i4"), ("b", "f8")]),
        np.zeros((0, 3)),
        np.ones(100_000)[::3],
    ):
        store["k"] = array
        assert bytes(store["k"]) == array.tobytes()


@pytest.mark.parametrize("value", ["text", 5, None, [b"a", "b"], {1: 2}, [[b"a"]]])
def test_other_values_are_refused_and_nothing_changes(value: Any, store: PmemDict) -> None:
    store["k"] = b"before"
    with pytest.raises(TypeError, match="a value must be"):
        store["k"] = value
    assert store["k"] == b"before"


def test_clear_and_pop(store: PmemDict) -> None:
    store.update({str(i): LARGE for i in range(5)})
    held = store["3"]
    assert bytes(store.pop("0")) == LARGE
    assert store.pop("0", None) is None
    store.clear()
    assert len(store) == 0
    assert store.check() == []
    store["x"] = bytes(len(LARGE))
    assert bytes(held) == LARGE


def test_keys_may_be_deleted_while_they_are_gone_through(store: PmemDict) -> None:
    store.update({str(i): b"" for i in range(100)})
    for key in store:
        del store[key]
    assert len(store) == 0


# Buffers that are held ----------------------------------------------------------------------------


def test_what_is_held_outlives_what_becomes_of_its_key(store: PmemDict, path: Path) -> None:
    values = [os.urandom(1 << 22) for _ in range(4)]
    for number, value in enumerate(values):
        store[number] = value
    held = [store[number] for number in range(4)]
    twice = store[0]
    del store[0]
    store[1] = values[0]
    store.clear()
    for number in range(6):
        store["new", number] = os.urandom(1 << 22)
    assert store.check() == []
    assert [bytes(each) for each in held] == values
    store.close()
    with PmemDict(path) as again:
        again.clear()
    assert [bytes(each) for each in held] == values
    assert bytes(twice) == values[0]


def test_the_blocks_go_back_with_the_last_holder(unsynced: PmemDict, path: Path) -> None:
    store = unsynced
    store["a"] = bytes(1 << 25)
    full = os.stat(path).st_blocks
    first, second = store["a"], store["a"]
    del store["a"]
    assert os.stat(path).st_blocks >= full
    del first
    gc.collect()
    assert "a" not in store
    store["b"] = b"x"
    assert os.stat(path).st_blocks >= full
    del second
    gc.collect()
    store["b"] = b"y"
    if hasattr(os, "posix_fallocate"):
        assert os.stat(path).st_blocks < full - (1 << 25) // 512 * 9 // 10


@pytest.mark.parametrize("durability", ["none", "lazy"])
def test_room_is_used_again(durability: str, path: Path) -> None:
    with PmemDict(path, durability=durability) as store:
        most = 0
        for _ in range(4):
            for number in range(16):
                store[number] = os.urandom(1 << 20)
            most = max(most, os.stat(path).st_blocks * 512)
            for number in range(0, 16, 2):
                del store[number]
            for number in range(1, 16, 2):
                del store[number]
        assert store.check() == []
    assert most < 1.3 * (16 << 20) + (8 << 20)


def test_windows_are_limited_and_the_rest_is_copied(
    store: PmemDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.pmemobj import blobs

    monkeypatch.setattr(blobs, "WINDOWS_MAX", 2)
    store["a"] = LARGE
    held = [store["a"] for _ in range(4)]
    assert [type(each) for each in held] == [memoryview, memoryview, bytearray, bytearray]
    assert all(bytes(each) == LARGE for each in held)


def test_where_the_file_cannot_be_detached_everything_is_copied(
    store: PmemDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.pmemobj import blobs

    monkeypatch.setattr(blobs, "CAN_DETACH", False)
    store["a"] = LARGE
    held = store["a"]
    assert type(held) is bytearray
    assert held == LARGE


def test_where_pages_cannot_be_dropped_values_go_through_memory(
    store: PmemDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmshelve.pmemobj.rawpool.forget", lambda *_: False)
    store["a"] = LARGE
    assert bytes(store["a"]) == LARGE


def test_memory_stays_small(path: Path) -> None:
    def anonymous() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) << 10

    if not os.path.exists("/proc/self/status"):
        pytest.skip("no such view of the process on this system")
    with PmemDict(path) as store:
        large, small = os.urandom(1 << 20), os.urandom(8192)
        store["warm"] = large
        before = anonymous()
        for number in range(160):
            store[number] = large
            store["small", number] = small
        for number in range(160):
            store[number][0] = 1
        for number in range(12_000):
            store["small", number % 1000] = small
        assert anonymous() - before < 80 << 20  # of 250 MB


# One pool for each file ---------------------------------------------------------------------------


def test_two_of_one_file_share_the_pool(store: PmemDict, path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    other = PmemDict(link)
    other["a"] = b"1"
    assert store["a"] == b"1"
    store.close()
    with pytest.raises(ClosedError):
        store["a"]
    other["a"] = b"2"
    assert other["a"] == b"2"
    other.close()
    other.close()
    assert not pmemstore._stores


def test_it_pickles_by_path_and_options(store: PmemDict, path: Path) -> None:
    store["a"] = b"1"
    copy = pickle.loads(pickle.dumps(store))
    assert copy["a"] == b"1"
    assert copy.lock is not store.lock
    copy.close()
    text = pickle.dumps(store)
    store.close()
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        pickle.loads(text)
    assert not path.exists()


def test_everything_refuses_after_close(store: PmemDict) -> None:
    store["a"] = b"1"
    store.close()
    assert store.closed
    for use in (
        lambda: store["a"],
        lambda: store.__setitem__("a", b""),
        lambda: store.__delitem__("a"),
        lambda: "a" in store,
        lambda: len(store),
        lambda: list(store),
        store.clear,
        store.sync,
        store.stats,
        store.check,
    ):
        with pytest.raises(ClosedError):
            use()
    assert repr(store).endswith("closed>")


def test_a_file_that_was_removed_is_not_shared(store: PmemDict, path: Path) -> None:
    store["a"] = b"1"
    os.unlink(path)
    with PmemDict(path) as other:
        assert "a" not in other
    assert store["a"] == b"1"


def test_scratch_removes_its_file(path: Path) -> None:
    with PmemDict(path, scratch=True) as store:
        store["a"] = LARGE
        held = store["a"]
    assert not path.exists()
    assert bytes(held) == LARGE


def test_threads_open_and_close(path: Path) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for number in range(5):
                with PmemDict(path) as store:
                    store[name, number] = LARGE
                    assert bytes(store[name, number]) == LARGE
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with PmemDict(path) as store:
        assert len(store) == 20
        assert store.check() == []


def test_another_process_waits_and_is_told(store: PmemDict, path: Path) -> None:
    child = os.fork() if hasattr(os, "fork") else 0
    if not child:
        status = 1
        try:
            PmemDict(path, timeout=0.1)
        except LockTimeoutError:
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_leaves_both_with_what_they_hold(store: PmemDict) -> None:
    store["a"] = LARGE
    held = store["a"]
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(go)
            os.read(ready, 1)
            status = 0 if bytes(held) == LARGE else 2
        finally:
            os._exit(status)
    os.close(ready)
    store["a"] = bytes(len(LARGE))
    store["b"] = bytes(len(LARGE))
    store.sync()
    os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(held) == LARGE


# Errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2000, 30_000, 1 << 20, 1 << 23])
def test_a_full_store_stays_as_it_was_and_usable(size: int, path: Path) -> None:
    with PmemDict(path, max_size=32 << 20) as store:
        value = os.urandom(size)
        store["k"] = b"before"
        with pytest.raises(NoSpaceError):
            for number in range(500_000):
                store["k", number] = value
        count = len(store)
        assert sorted(store, key=str) == sorted(
            ("k", *[("k", i) for i in range(count - 1)]), key=str
        )
        assert store.check() == []
        with pytest.raises(NoSpaceError):
            store["k"] = bytes(32 << 20)
        assert store["k"] == b"before"
        for number in range(0, count - 1, 2):
            del store["k", number]
        store["k"] = value
        assert bytes(store["k"]) == value
        assert store.check() == []


def test_a_failing_write_of_a_large_value_leaves_no_trace(
    unsynced: PmemDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = unsynced
    store["k"] = b"before"

    def fail(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk.system, "pwritev", fail)
        with pytest.raises(NoSpaceError):
            store["k"] = LARGE
        with pytest.raises(NoSpaceError):
            store["new"] = LARGE
    assert dict(store) == {"k": b"before"}
    assert store.check() == []
    store["k"] = LARGE
    assert bytes(store["k"]) == LARGE


def test_an_interrupt_in_a_set_leaves_no_trace(
    unsynced: PmemDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = unsynced
    store["k"] = LARGE
    held = store["k"]

    def interrupt(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk.system, "pwritev", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store["k"] = bytes(len(LARGE))
    assert bytes(store["k"]) == bytes(held) == LARGE
    assert store.check() == []


def test_pools_of_others_and_other_files_are_refused(path: Path) -> None:
    path.write_bytes(b"no pool" * 1000)
    with pytest.raises(NotAStoreError):
        PmemDict(path)
    path.unlink()
    with PersistentObjectPool(path, "x") as pool:
        pool.root = pool.new(PersistentDict, a=1)
    with pytest.raises(WrongDoorError):
        PmemDict(path)
    with PersistentObjectPool(path) as pool:
        assert pool.root == {"a": 1}
    assert not pmemstore._stores


def test_a_value_that_somebody_else_put_there_is_damage(path: Path) -> None:
    with PmemDict(path) as store:
        store["a"] = b"1"
    with PersistentObjectPool(path) as pool:
        assert type(pool.root) is pmemstore.Buffers
        pool.root["b"] = "a text"
        pool.root["c"] = "a text that is longer than that"
    with PmemDict(path) as store:
        assert store["a"] == b"1"
        for key in ("b", "c"):
            with pytest.raises(CorruptionError):
                store[key]


def test_stats_say_how_large_it_is(store: PmemDict) -> None:
    store["a"] = LARGE
    assert store.stats().file_size >= len(LARGE)
    assert repr(store).startswith("<PmemDict: ")


# Killed -------------------------------------------------------------------------------------------


def _work(path: Path, number: int, told: int) -> None:
    """Set and delete, holding what was read, until killed; tell each set that has returned."""
    rng = random.Random(number)
    store = PmemDict(path)
    held = []
    for turn in range(10_000):
        key = rng.randrange(8)
        if key in store and rng.random() < 0.4:
            held.append(store[key])
            del store[key]
        size = rng.choice((10, 500, 70_000, 300_000))
        store[key] = [key.to_bytes(8, "little"), bytes([turn % 256]) * size]
        store["turn"] = turn.to_bytes(8, "little")
        os.write(told, turn.to_bytes(8, "little"))
        del held[:-3]


def test_a_killed_process_leaves_whole_values_and_no_garbage(path: Path) -> None:
    for number in range(12):
        heard, told = os.pipe()
        child = os.fork()
        if not child:
            try:
                _work(path, number, told)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.close(told)
        last = b""
        for _ in range(5 + 7 * number):
            last = os.read(heard, 8)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while rest := os.read(heard, 1 << 16):
            last = rest[-8:]
        os.close(heard)
        with PmemDict(path) as store:
            assert store.check() == []
            turn = int.from_bytes(store["turn"], "little")
            assert turn - int.from_bytes(last, "little") in (0, 1)
            used = 0
            for key in set(store) - {"turn"}:
                value = bytes(store[key])
                assert value[:8] == key.to_bytes(8, "little")
                assert value[8:] == value[8:9] * (len(value) - 8)
                used += len(value)
            assert store.stats().used < used + 100_000
