"""`MmapDict`: values in and out, memory, disk blocks, sharing."""

from __future__ import annotations

import array
import copy
import gc
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("zict")

from pmshelve.errors import (
    ClosedError,
    FormatError,
    LockTimeoutError,
    NoSpaceError,
    ObjectError,
    StateError,
    UnsupportedTypeError,
    WrongDoorError,
)
from pmshelve.mmapdict import mmapdict, runs, views
from pmshelve.zict_compat import MmapDict, mmap
from pmshelve.zict_compat.mmap import SMALL_MAX
from tests.support.forks import in_child
from tests.support.processes import Worker
from tests.support.smalldisk import small_disk
from tests.support.stores import stock_load

LARGE = SMALL_MAX + 1
MODES = [{}, {"exclusive": False}, {"scratch": True}]


@pytest.fixture(params=MODES, ids=["exclusive", "shared", "scratch"])
def store(request: Any, tmp_path: Path) -> Iterator[MmapDict]:
    with MmapDict(tmp_path / "store", **request.param) as opened:
        yield opened
        assert opened.check() == []


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def blocks(store: MmapDict) -> int:
    return os.stat(store.path).st_blocks * 512


# Values ---------------------------------------------------------------------------------------

GRID = np.arange(40_000, dtype=">i4").reshape(100, 400)
VALUES = [
    (b"", b""),
    ([], b""),
    ((), b""),
    ([b"", bytearray(), memoryview(b"")], b""),
    (b"a", b"a"),
    (b"x" * SMALL_MAX, b"x" * SMALL_MAX),
    (b"x" * LARGE, b"x" * LARGE),
    (bytearray(b"abc"), b"abc"),
    (memoryview(b"abcdef")[::2], b"ace"),
    (array.array("d", [1.5, 2.5]), np.array([1.5, 2.5]).tobytes()),
    (pickle.PickleBuffer(b"out of band"), b"out of band"),
    ([b"a", bytearray(b"b"), memoryview(b"c"), np.arange(3, dtype="u1")], b"abc\0\1\2"),
    ((b"head", b"", GRID), b"head" + GRID.tobytes()),
    (GRID, GRID.tobytes()),
    (GRID.T, GRID.T.tobytes()),
    (GRID[::3, ::7], GRID[::3, ::7].tobytes()),
    (np.array(7), np.array(7).tobytes()),
    (np.zeros((0, 3)), b""),
    (np.ones(3, dtype=[("a", "i1"), ("b", "f8")]), np.ones(3, [("a", "i1"), ("b", "f8")]).tobytes()),
    ([b"p"] * 3000 + [b"q" * 20_000], b"p" * 3000 + b"q" * 20_000),
]  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_a_value_comes_back_as_one_writable_buffer(store: MmapDict, value: Any, expected: bytes):
    store["key"] = value
    for _ in range(3):
        found = store["key"]
        assert type(found) is (bytearray if len(expected) <= SMALL_MAX else memoryview)
        assert found == expected
        assert len(found) == len(expected)
        if len(expected):
            found[0] ^= 255  # in nobody's store
        del found
    assert store["key"] == expected


def test_a_large_value_is_flat_bytes_over_a_private_map(store: MmapDict):
    store["key"] = GRID
    found = store["key"]
    assert isinstance(found, memoryview)
    assert (found.format, found.ndim, found.readonly) == ("B", 1, False)
    assert type(found.obj).__name__ == "mmap"


REFUSED: list[Any] = [object(), "text", 1, None, {"a": b"b"}, [b"a", "b"], [b"a", 3], [[b"a"]]]
REFUSED += [np.array([None]), np.array(["2000-01-01"], "M8[D]"), {b"a"}, iter([b"a"])]
REFUSED += [[b"x" * LARGE, object(), b"y"]]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_other_values_are_type_errors_and_leave_no_trace(store: MmapDict, value: Any):
    store["key"] = b"before"
    number = store.stats().commit_number
    for key in ("key", "new"):
        with pytest.raises(TypeError) as caught:
            store[key] = value
        assert isinstance(caught.value, UnsupportedTypeError)
        assert (caught.value.key, caught.value.path) == (key, store.path)
    assert dict(store.items()) == {"key": b"before"}
    assert store.stats().commit_number == number


def test_parts_are_not_joined(path: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    pwritev = os.pwritev

    def spy(fd: int, buffers: Any, offset: int) -> int:
        seen.extend(buffers)
        return pwritev(fd, buffers, offset)

    parts = [np.full(50_000, number, "u1") for number in range(3)]
    with MmapDict(path) as store:
        monkeypatch.setattr("pmshelve.storage.file.system.pwritev", spy)
        store["key"] = parts
        monkeypatch.undo()
        assert all(any(np.shares_memory(part, found) for found in seen) for part in parts)
        assert store["key"] == b"\0" * 50_000 + b"\1" * 50_000 + b"\2" * 50_000


# Keys -----------------------------------------------------------------------------------------


def test_keys_are_those_of_a_dict(store: MmapDict):
    expected: dict[Any, bytes] = {}
    keys = ["a", "\0", "", "1", 1, 1.0, True, 0, -0.0, 0.5, None, b"1", ("a", 1), ("a", 1.0), ()]
    keys += ["k" * 1000, ("k" * 1000,), "\ud800", 10**30, (("nested", 1), None)]
    for number, key in enumerate(keys):
        expected[key] = store[key] = str(number).encode()
    assert dict(store.items()) == expected
    assert set(store) == set(expected)
    assert all(key in store for key in keys)
    assert 2 not in store
    assert "('a', 1)" not in store
    for key in list(expected):
        del store[key]
        assert key not in store
        with pytest.raises(KeyError) as caught:
            del store[key]
        assert caught.value.args[0] is key
    assert not store


@pytest.mark.parametrize("key", [object(), float("nan"), 1j], ids=["object", "nan", "complex"])
def test_a_key_of_another_kind(store: MmapDict, key: Any):
    with pytest.raises(TypeError):
        store[key] = b"value"
    for look in (store.__getitem__, store.__delitem__, store.pop):
        with pytest.raises(KeyError):
            look(key)
    assert key not in store
    assert store.get(key) is None
    with pytest.raises(TypeError, match="unhashable"):
        [] in store  # noqa: B015


def test_keys_come_in_the_order_in_which_they_were_set_last(store: MmapDict):
    for key in ("a", 1, ("b", 2), "a"):
        store[key] = b""
    assert list(store) == [1, ("b", 2), "a"]


# Holders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["delete", "replace", "clear", "vacuum", "close"])
def test_a_buffer_stays_as_it_is_whatever_becomes_of_its_value(path: str, end: str):
    store = MmapDict(path)
    data = os.urandom(1 << 20)
    for number in range(70):  # `clear` of more than 64 replaces the file
        store[number] = data if number == 3 else b"small" * 100
    found = store[3]
    found[100] ^= 1  # one page is the holder's own; the others were never touched
    if end == "delete":
        del store[3]
    elif end == "replace":
        store[3] = b"\xff" * len(data)
    elif end == "clear":
        store.clear()
    elif end == "vacuum":
        del store[5]
        store._store.vacuum()
    else:
        store.close()
    if end != "close":
        for number in range(6):
            store[number] = b"\xee" * len(data)
        store.sync()
    assert found[:100] == data[:100]
    assert found[100] == data[100] ^ 1
    assert found[101:] == data[101:]
    store.close()


def test_blocks_of_a_held_value_are_given_back_when_its_last_holder_lets_go(path: str):
    with MmapDict(path) as store:
        store["large"] = os.urandom(4 << 20)
        store.sync()
        full = blocks(store)
        first, second = store["large"], store["large"]
        part = first[4096:8192]
        del store["large"]
        del first
        store["other"] = b"1"
        assert blocks(store) >= full - 8192
        del second
        store["other"] = b"2"
        assert blocks(store) >= full - 8192
        assert len(part) == 4096
        del part
        store["other"] = b"3"
        assert blocks(store) < 2 << 20  # which are reserved for what comes next


def test_thousands_of_buffers_at_once(path: str):
    with MmapDict(path) as store:
        for number in range(1500):
            store[number] = number.to_bytes(2, "little") * (LARGE // 2 + 1)
        held = [store[number] for number in range(1500)]
        assert {type(found) for found in held} == {memoryview}
        assert sum(type(found.obj).__name__ == "mmap" for found in held) <= views.MAPS_MAX
        for number in range(0, 1500, 2):
            del store[number]
        assert all(
            found == number.to_bytes(2, "little") * (LARGE // 2 + 1)
            for number, found in enumerate(held)
        )
        del held
        gc.collect()


# Disk room ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [300, 4096, 15_000, 40_000, 300_000])
def test_the_room_of_what_was_deleted_is_given_back(
    path: str, size: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mmap, "WARM_SIZE", 1 << 18)
    live, total = 2 << 20, 16 << 20
    data = os.urandom(size)
    peak = 0
    with MmapDict(path) as store:
        for number in range(total // size):
            store[number] = data
            if number >= live // size:
                del store[number - live // size]
            if not number % 50:
                peak = max(peak, blocks(store))
        assert peak < 2 * live + (2 << 20)
        assert len(store) == live // size
        assert all(store[number] == data for number in store)
        assert store.check() == []
        problems = [
            number
            for number in range(total // size)
            if (number in store) != (number >= total // size - live // size)
        ]
        assert problems == []
    with mmapdict(path) as reopened:
        assert len(reopened) == live // size
        assert reopened.check() == []


def test_replacing_gives_the_older_value_back(path: str):
    with MmapDict(path) as store:
        for _ in range(30):
            store["large"] = os.urandom(1 << 20)
            store["small"] = os.urandom(4096)
        assert blocks(store) < 3 << 20


def test_room_in_any_order_of_deletion(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(runs, "GAIN_MIN", 4096)
    monkeypatch.setattr(mmap, "WARM_SIZE", 1 << 16)
    rng = np.random.default_rng(1)
    with MmapDict(path) as store:
        for number in range(4000):
            store[number] = bytes([number & 255]) * int(rng.integers(1, 9000))
        for number in rng.permutation(4000)[:3900]:
            del store[int(number)]
        assert blocks(store) < 5 << 20  # of 19 MB
        assert all(store[number] == bytes([number & 255]) * len(store[number]) for number in store)
        assert store.check() == []
        kept = dict(store.items())
    assert stock_load(path).keys() == {mmap.encode_key(key) for key in kept}
    with MmapDict(path) as store:
        assert dict(store.items()) == kept


def test_what_cannot_be_given_back_is_vacuumed_away(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmap, "WASTE_MIN", 1 << 16)
    monkeypatch.setattr(mmap, "WARM_SIZE", 1 << 16)
    data = os.urandom(4096)
    with MmapDict(path) as store:
        for number in range(100):
            store[number] = data
    with MmapDict(path) as store:  # which takes none of these for its own
        for number in range(90):
            del store[number]
        assert os.stat(path).st_size < 200_000
        assert dict(store.items()) == dict.fromkeys(range(90, 100), data)


def test_an_emptied_file_begins_anew(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmap, "RESTART_SIZE", 1 << 20)
    with MmapDict(path) as store:
        for _ in range(3):
            for number in range(30):
                store[number] = b"x" * 50_000
            for number in range(30):
                del store[number]
            assert os.stat(path).st_size < 1 << 20
        store["held"] = b"y" * (2 << 20)
        held = store["held"]
        del store["held"]
        assert os.stat(path).st_size > 2 << 20  # its pages are looked at
        assert held[5] == ord("y")


def test_a_file_that_must_stay_is_not_rewritten(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmap, "RESTART_SIZE", 1 << 16)
    with MmapDict(path) as store:
        os.link(path, path + ".second")
        store[1] = b"x" * 100_000
        inode = os.stat(path).st_ino
        del store[1]
        assert os.stat(path).st_size > 100_000
        assert os.stat(path).st_ino == inode


def test_clear_makes_the_file_small(store: MmapDict):
    for number in range(200):
        store[number] = b"x" * 20_000
    store.clear()
    assert not store
    assert os.stat(store.path).st_size < 100_000
    store["again"] = b"y"
    assert store["again"] == b"y"


# Memory ---------------------------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[2]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="tells nothing of its memory")
@pytest.mark.parametrize("size", [4096, 1 << 20])
def test_pages_of_the_file_do_not_stay_in_memory(path: str, size: int):
    data = os.urandom(size)
    count = (160 << 20) // size
    with MmapDict(path, scratch=True) as store:
        before, peak = resident(), 0
        for number in range(count):
            store[number] = data
            if not number % (count // 40):
                peak = max(peak, resident())
        for number in [*range(count), *range(0, count, 7)]:
            assert store[number][-1] == data[-1]
            if not number % (count // 40):
                peak = max(peak, resident())
        for number in range(0, count, 2):
            del store[number]
        peak = max(peak, resident())
    assert peak - before < 40 << 20  # shared pages of files: the index is not among them


# Opening, sharing, closing --------------------------------------------------------------------


def test_it_is_an_ordinary_file(path: str):
    with MmapDict(path) as store:
        store["small"] = b"bytes"
        store["large"] = [b"x" * 50_000, b"y" * 50_000]
        store["tuple", 1] = b"t"
    loaded = stock_load(path)
    assert loaded == {
        "small": b"bytes",
        "large": bytearray(b"x" * 50_000 + b"y" * 50_000),
        "\0('tuple', 1)": b"t",
    }
    assert type(loaded["large"]) is bytearray
    with mmapdict(path, allow_pickle=False) as plain:
        assert plain["large"] == loaded["large"]
        plain["small"][:1]
        plain["foreign"] = np.arange(3)
        plain["\0no key"] = b""
    with MmapDict(path) as store:
        assert store["large"] == loaded["large"]
        with pytest.raises(FormatError, match="memmap"):
            store["foreign"]
        with pytest.raises(FormatError, match="not written by"):
            list(store)
        del store["foreign"]
        assert len(store) == 4


def test_nothing_is_ever_unpickled(path: str):
    with mmapdict(path) as plain:
        plain["object"] = {"a": 1}
    with MmapDict(path) as store, pytest.raises(ObjectError, match="unpickler"):
        store["object"]


def test_a_file_of_the_other_door_is_refused(path: str):
    with mmapdict(path, face="bytes") as plain:
        plain["a"] = b"1"
    with pytest.raises(WrongDoorError):
        MmapDict(path)


def test_two_in_one_process_share_the_store(path: str, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(path)
    first = MmapDict(path)
    first["a"] = b"1"
    second = MmapDict(link)
    third = pickle.loads(pickle.dumps(first))
    fourth = copy.copy(first)
    fifth = MmapDict(path, exclusive=False)
    for number, other in enumerate((second, third, fourth, fifth)):
        other[number] = b"2"
        assert first[number] == b"2"
    first.close()
    first.close()
    with pytest.raises(ClosedError):
        first["a"]
    for use in (len, list, repr, first.__contains__):
        if use is not repr:
            with pytest.raises(ClosedError):
                use(first if use is len or use is list else "a")  # type: ignore[arg-type]
    assert "closed" in repr(first)
    assert first.closed
    for other in (second, third, fourth):
        assert other["a"] == b"1"
        other.close()
    with pytest.raises(LockTimeoutError):
        mmapdict(path, timeout=0)
    assert fifth["a"] == b"1"
    fifth.close()
    with mmapdict(path, timeout=0) as plain:
        assert plain["a"] == b"1"


def test_exclusive_after_shared_is_refused(path: str):
    with MmapDict(path, exclusive=False), pytest.raises(StateError, match="exclusive=False"):
        MmapDict(path)
    MmapDict(path).close()


def test_a_file_made_anew_is_another_store(path: str):
    old = MmapDict(path)
    old["a"] = b"old"
    os.unlink(path)
    new = MmapDict(path)
    assert not new
    new["a"] = b"new"
    assert (old["a"], new["a"]) == (b"old", b"new")
    old.close()
    assert MmapDict(path)["a"] == b"new"
    new.close()


def test_an_opening_that_fails_leaves_nothing_behind(tmp_path: Path):
    bad = tmp_path / "bad"
    bad.write_bytes(b"not a store")
    for _ in range(2):
        with pytest.raises(FormatError):
            MmapDict(bad)
    with pytest.raises(FileNotFoundError):
        MmapDict(tmp_path / "missing" / "store")
    with pytest.raises(ValueError, match="scratch"):
        MmapDict(bad, exclusive=False, scratch=True)
    assert bad.read_bytes() == b"not a store"


def test_an_unpickled_one_opens_the_file_again(path: str):
    store = MmapDict(path)
    store["a"] = b"1"
    data = pickle.dumps(store)
    store.close()
    with pickle.loads(data) as again:
        assert again["a"] == b"1"
        assert again._options == store._options
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)
    assert not os.path.exists(path)


def test_another_process_is_kept_out_or_not(path: str):
    with Worker() as worker:
        with MmapDict(path) as store:
            store["a"] = b"1"
            worker.run("from pmshelve.zict_compat import MmapDict")
            worker.run(OPENS)
            assert worker.eval("opens(path)", path=path) is False
        with MmapDict(path, exclusive=False) as store:
            worker.run("z = MmapDict(path, exclusive=False); z['b'] = b'x' * 50_000", path=path)
            assert store["a"] == b"1"
            assert store["b"] == b"x" * 50_000
            del store["b"]
            assert worker.eval("'b' in z") is False
            worker.run("z.close()")


OPENS = """
from pmshelve.errors import LockTimeoutError

def opens(path):
    try:
        MmapDict(path, timeout=0)
    except LockTimeoutError:
        return False
    return True
"""


def test_scratch_files_are_gone_after_the_last_close(path: str):
    first = MmapDict(path, scratch=True)
    for number in range(1000):
        first[number] = b"x" * 100
    second = MmapDict(path)
    held = first[5]
    first.close()
    assert os.path.exists(path)
    second.close()
    assert not os.path.exists(path)
    assert held == b"x" * 100


def test_what_is_closed_by_the_collector(path: str):
    store = MmapDict(path)
    store["a"] = b"1"
    del store
    gc.collect()
    with mmapdict(path, timeout=0) as plain:
        assert plain["a"] == b"1"


def test_a_forked_child_waits_for_its_parent(path: str):
    with MmapDict(path, timeout=0.05) as store:
        store["a"] = b"x" * LARGE
        found = store["a"]

        def child() -> Any:
            assert found == b"x" * LARGE
            with pytest.raises(LockTimeoutError):
                store["b"] = b"2"
            store.close()
            return True

        assert in_child(child)
        store["c"] = b"3"
        assert store["c"] == b"3"

    def alone() -> Any:
        with MmapDict(path, timeout=0) as mine:
            mine["d"] = b"4"
        return True

    assert in_child(alone)
    with MmapDict(path) as store:
        assert store["d"] == b"4"


def test_a_full_disk_leaves_what_was_there(tmp_path: Path):
    with small_disk(tmp_path / "disk", 3 << 20) as disk:
        with MmapDict(disk / "store") as store:
            store["kept"] = b"k" * 100_000
            for value in (b"x" * (4 << 20), [b"y" * (1 << 20)] * 4):
                with pytest.raises(NoSpaceError) as caught:
                    store["kept", 1] = value
                assert caught.value.key == ("kept", 1)
            with pytest.raises(NoSpaceError):
                for number in range(2000):
                    store[number] = b"z" * 4096
            filled = len(store)
            assert filled > 300
            for key in [key for key in store if key != "kept"]:
                del store[key]
            assert dict(store.items()) == {"kept": b"k" * 100_000}
            for number in range(filled - 50):
                store[number] = b"z" * 4096
            assert store.check() == []
            del store["kept"]


def test_threads_that_hold_what_others_delete(path: str):
    stop = threading.Event()
    errors: list[BaseException] = []

    def read(store: MmapDict) -> None:
        try:
            while not stop.is_set():
                for key in list(store):
                    found = store.get(key)
                    if found is not None:
                        first = found[0]
                        assert bytes(found) == bytes([first]) * len(found)
        except BaseException as error:
            errors.append(error)

    with MmapDict(path) as store:
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        sizes = [100, 5000, SMALL_MAX + 100, 70_000, 300_000]
        for number in range(400):
            store[number % 7] = bytes([1 + number % 250]) * sizes[number % 5]
            if number % 3 == 0:
                store.pop((number + 4) % 7, None)
            if number % 97 == 0:
                store._store.vacuum()
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []
        assert store.check() == []
