"""vacuum, autovacuum and clear: space comes back, and nobody who is reading notices."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import CorruptionError, StoreFailedError
from pmshelve.mmapdict import EmptyNDArray, mmapdict
from pmshelve.storage import file as file_layer
from tests.support.processes import Worker
from tests.support.stores import assert_content, assert_sound, fixture
from tests.support.values import all_values, assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def store(path: Path) -> Iterator[mmapdict]:
    with mmapdict(path) as store:
        yield store
        assert list(store.check()) == []


def _fill(store: mmapdict) -> dict[str, Any]:
    """Fill with live and dead entries; return what lives."""
    content = {f"k{i}": (np.arange(i * 10), "text", {"a": i}, i)[i % 4] for i in range(40)}
    for key, value in content.items():
        store[key] = "dead " * 1000
        store["gone " + key] = np.arange(1000)
        store[key] = value
    for key in content:
        del store["gone " + key]
    return content


def test_dead_bytes_stay_until_vacuum(store: mmapdict, path: Path) -> None:
    content = _fill(store)
    before = path.stat().st_size
    store.vacuum()
    after = path.stat().st_size
    assert after < before / 10
    assert_sound(store, content)
    assert store.stats().dead_size < 10_000


def test_everything_survives_with_its_alignment(store: mmapdict) -> None:
    content = all_values()
    for key, value in content.items():
        store["dead"] = "x" * (len(key) * 7)
        store[key] = value
    del store["dead"]
    store.vacuum()
    assert_sound(store, content)
    for value in store.values():
        if isinstance(value, np.memmap):
            assert value.offset % 64 == 0


@pytest.mark.parametrize("chunk_size", [1, 7, 4096, 1 << 30])
def test_chunk_size_is_any_number_of_bytes(store: mmapdict, chunk_size: int) -> None:
    store.update(a=b"a" * 1000, b=np.arange(500), c=1)
    del store["a"]
    store.vacuum(chunk_size)
    assert_sound(store, {"b": np.arange(500), "c": 1})
    del store["c"]
    store.vacuum(chunk_size=chunk_size)
    assert_sound(store, {"b": np.arange(500)})


def test_nothing_is_left_beside_the_file(store: mmapdict, path: Path) -> None:
    _fill(store)
    store.vacuum()
    store.clear()
    assert os.listdir(path.parent) == [path.name]


def test_store_works_on_after_vacuum(store: mmapdict) -> None:
    content = _fill(store)
    for number in range(5):
        store.vacuum()
        store["new"] = number
        content.pop("new", None)
        content["new"] = number
        assert_sound(store, content)


def test_vacuum_of_an_emptied_store(store: mmapdict, path: Path) -> None:
    store["a"] = bytes(100_000)
    del store["a"]
    store.vacuum()
    assert path.stat().st_size < 5000
    assert_sound(store, {})


def test_views_survive_with_their_content(store: mmapdict, path: Path) -> None:
    store["dead"] = bytes(10_000)
    store["a"] = np.arange(5000)
    store["o"] = {"x": np.arange(50_000)}
    store["m"] = np.ma.MaskedArray([1, 2], [True, False])
    views = store["a"], store["o"]["x"], store["m"].data
    del store["dead"]
    store.vacuum()
    store["b"] = bytes(50_000)
    del store["b"]
    store.vacuum()
    assert_same(np.asarray(views[0]), np.arange(5000))
    assert_same(np.asarray(views[1]), np.arange(50_000))
    assert views[2].tolist() == [1, 2]
    views[0][:] = 0  # reaches the old file only
    assert_same(np.asarray(store["a"]), np.arange(5000))


def test_other_handles_go_on_with_the_new_file(store: mmapdict, path: Path) -> None:
    with mmapdict(path) as other, mmapdict(path, readonly=True) as reader:
        content = _fill(store)
        assert_content(reader, content)
        view = other["k8"]
        inode = path.stat().st_ino
        store.vacuum()
        assert path.stat().st_ino != inode
        assert_content(reader, content)
        other["from other"] = 1
        content["from other"] = 1
        assert_sound(store, content)
        assert_content(reader, content)
        del store["k0"]
        del content["k0"]
        other.vacuum()
        assert_content(reader, content)
        assert_sound(store, content)
        assert_same(np.asarray(view), np.arange(80))
        reader["k8"].sum()


def test_handle_that_slept_through_many_vacuums_wakes_well(store: mmapdict, path: Path) -> None:
    store["kept"] = 1
    with mmapdict(path) as sleeper, mmapdict(path, readonly=True) as reader:
        assert sleeper["kept"] == reader["kept"] == 1
        for number in range(6):
            store["a"] = number
            store["a"] = [number]
            store.vacuum()
        assert_content(reader, {"kept": 1, "a": [5]})
        sleeper["b"] = 2
        assert_sound(store, {"kept": 1, "a": [5], "b": 2})
        assert_content(reader, {"kept": 1, "a": [5], "b": 2})


def test_other_process_goes_on_with_the_new_file(store: mmapdict, path: Path) -> None:
    store["dead"] = bytes(10_000)
    store["a"] = np.arange(5000)
    with Worker("from pmshelve.mmapdict import mmapdict") as worker:
        worker.run("store = mmapdict(path); view = store['a']", path=path)
        del store["dead"]
        store.vacuum()
        assert worker.eval("view.sum()") == np.arange(5000).sum()
        worker.run("store['b'] = 2; del store['a']")
        assert_sound(store, {"b": 2})
        worker.run("store.vacuum(); store['c'] = 3; store.close(); del store, view")
    assert_sound(store, {"b": 2, "c": 3})


def test_hard_linked_file_is_vacuumed_in_place(store: mmapdict, path: Path) -> None:
    link = path.with_name("link")
    content = _fill(store)
    os.link(path, link)
    before = path.stat()
    number = store.commit_number
    with mmapdict(link) as other:
        assert_content(other, content)
        store.vacuum()
        assert path.stat().st_ino == link.stat().st_ino == before.st_ino
        assert path.stat().st_size < before.st_size / 10
        assert store.commit_number != number
        assert_sound(store, content)
        assert_content(other, content)
        other["new"] = 1
    assert_sound(store, {**content, "new": 1})
    assert sorted(os.listdir(path.parent)) == sorted([path.name, link.name])


def test_symbolic_link_keeps_pointing_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "store", tmp_path / "link"
    link.symlink_to(target)
    with mmapdict(link) as store:
        content = _fill(store)
        store.vacuum()
        assert link.is_symlink()
        with mmapdict(target, readonly=True) as other:
            assert_content(other, content)
        store.clear()
        assert link.is_symlink()
        store["a"] = 1
    assert_content(pickle.loads(target.read_bytes()), {"a": 1})
    assert os.listdir(tmp_path / "real") == ["store"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_mode_and_owner_are_kept(store: mmapdict, path: Path, mode: int) -> None:
    content = _fill(store)
    path.chmod(mode)
    owner = (12345, 23456) if os.geteuid() == 0 else (-1, -1)
    os.chown(path, *owner)
    before = path.stat()
    store.vacuum()
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert_sound(store, content)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_directory_is_vacuumed_in_place(store: mmapdict, path: Path) -> None:
    content = _fill(store)
    before = path.stat()
    path.parent.chmod(0o555)
    try:
        store.vacuum()
        assert path.stat().st_ino == before.st_ino
        assert path.stat().st_size < before.st_size
        assert_sound(store, content)
    finally:
        path.parent.chmod(0o755)


def test_file_of_mmappickle_is_vacuumed_and_gets_a_superblock(tmp_path: Path) -> None:
    path = fixture("generic.mmdpickle", tmp_path)
    with mmapdict(path) as store:
        content = dict(store)
        del store["none"], content["none"]
        store.vacuum()
        assert_sound(store, content)
        assert path.read_bytes()[48:56] == b"PMSHELVE"


@pytest.mark.parametrize("name", ["history", "arrays", "masked", "generic", "empty"])
def test_files_of_mmappickle_keep_their_values(tmp_path: Path, name: str) -> None:
    path = fixture(name + ".mmdpickle", tmp_path)
    with mmapdict(path) as store:
        content = {key: _loaded(value) for key, value in store.items()}
        store["dead"] = 1
        del store["dead"]
        store.vacuum()
        assert_content(store, content)
        assert list(store.check()) == []


def _loaded(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def test_removed_file_is_not_written_into_nothing(store: mmapdict, path: Path) -> None:
    store.update(a=1, b=2)
    path.unlink()
    del store["a"]
    store.vacuum()
    assert store["b"] == 2
    assert list(store) == ["b"]


@pytest.mark.parametrize("readonly", [False, True])
def test_file_replaced_between_opening_and_locking_it_is_followed(
    store: mmapdict, path: Path, readonly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update(a=1, b=np.arange(10))
    store["a"] = 2
    real_open = file_layer.system.open

    def open_and_lose_the_race(name: Any, *arguments: Any) -> int:
        fd = real_open(name, *arguments)
        if name == str(path):
            monkeypatch.setattr(file_layer.system, "open", real_open)
            store.vacuum()
        return fd

    monkeypatch.setattr(file_layer.system, "open", open_and_lose_the_race)
    with mmapdict(path, readonly=readonly) as other:
        assert_content(other, {"b": np.arange(10), "a": 2})
        store["c"] = 3
        assert other["c"] == 3
        if not readonly:
            other["d"] = 4
            assert store["d"] == 4


_FIRST_CALLS = {
    "get bytes": "store['bytes']",
    "get list": "store['list']",
    "get array": "store['array'].sum()",
    "contains": "'bytes' in store",
    "len": "len(store)",
    "iterate": "list(store)",
    "stats": "store.stats().live_count",
    "check": "store.check()",
    "commit number": "store.commit_number",
}


@pytest.mark.parametrize("readonly", [False, True])
def test_file_shortened_by_another_does_not_kill_a_process(
    store: mmapdict, path: Path, readonly: bool
) -> None:
    """A vacuum in place truncates: what is read first must not be where the file was."""
    for name, call in _FIRST_CALLS.items():
        store.clear()
        store["dead"] = bytes(3_000_000)
        store.update({"bytes": b"x" * 100, "list": [1], "array": np.arange(10)})
        path.with_name("link").unlink(missing_ok=True)
        os.link(path, path.with_name("link"))
        with Worker("from pmshelve.mmapdict import mmapdict") as worker:
            worker.run("store = mmapdict(path, readonly)", path=path, readonly=readonly)
            worker.run("seen = dict(store)\nfor key in store: store[key], key in store")
            worker.run("del seen")
            del store["dead"]
            store.vacuum()
            assert path.stat().st_size < 100_000
            try:
                worker.eval(call)
            except EOFError:
                pytest.fail(f"{name} after a vacuum in place killed the process")
            assert worker.eval("list(store)") == ["bytes", "list", "array"]
            worker.run("store.close()")


@pytest.mark.parametrize("kind", ["vacuum", "clear", "clear of many"])
def test_another_file_of_that_name_is_not_replaced(store: mmapdict, path: Path, kind: str) -> None:
    content: dict[str, Any] = {str(i): i for i in range(200 if kind == "clear of many" else 3)}
    store.update(content)
    moved = path.rename(path.with_name("moved"))
    with mmapdict(path) as stranger:
        stranger["stranger"] = 1
    del store["0"], content["0"]
    if kind == "vacuum":
        store.vacuum()
    else:
        store.clear()
        content.clear()
    store["after"] = content["after"] = 1
    with mmapdict(path) as stranger:
        assert_sound(stranger, {"stranger": 1})
    assert_content(store, content)
    with mmapdict(moved) as again:
        assert_content(again, content)


# Automatic --------------------------------------------------------------------------------------


def test_autovacuum_bounds_the_file(path: Path) -> None:
    with mmapdict(path, autovacuum=True) as store, mmapdict(path, readonly=True) as reader:
        store["kept"] = np.arange(1000)
        view = store["kept"]
        for number in range(2000):
            store["a"] = bytes([number % 256]) * 10_000
            if number % 100 == 0:
                assert reader["a"] == store["a"]
        assert path.stat().st_size < 3_000_000
        assert_content(reader, {"kept": np.arange(1000), "a": bytes([1999 % 256]) * 10_000})
        assert_same(np.asarray(view), np.arange(1000))
        assert_sound(store, dict(reader))


def test_plain_store_never_vacuums_by_itself(store: mmapdict, path: Path) -> None:
    inode = path.stat().st_ino
    for _ in range(500):
        store["a"] = bytes(10_000)
    assert path.stat().st_ino == inode
    assert path.stat().st_size > 5_000_000


# clear ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3000])
def test_clear_is_seen_by_all_and_leaves_views(store: mmapdict, path: Path, count: int) -> None:
    with mmapdict(path) as other, mmapdict(path, readonly=True) as reader:
        store["array"] = np.arange(1000)
        store.update({str(i): "x" * 100 for i in range(count)})
        view = other["array"]
        assert len(reader) == count + 1
        store.clear()
        for each in (store, other, reader):
            assert_content(each, {})
            assert "array" not in each
        other["new"] = 1
        assert_content(reader, {"new": 1})
        assert_sound(store, {"new": 1})
        assert_same(np.asarray(view), np.arange(1000))


def test_clear_then_reopen(path: Path) -> None:
    with mmapdict(path) as store:
        store.update({str(i): i for i in range(5000)})
        store.clear()
        store["a"] = 1
    with mmapdict(path) as store:
        assert_sound(store, {"a": 1})


def test_clear_of_a_large_store_gives_the_space_back(store: mmapdict, path: Path) -> None:
    store["a"] = bytes(20_000_000)
    store.clear()
    store.vacuum()
    assert path.stat().st_size < 5000


def test_clear_of_an_empty_store(store: mmapdict) -> None:
    store.clear()
    store.clear()
    assert_sound(store, {})


# What is written --------------------------------------------------------------------------------


def test_vacuumed_file_is_that_of_a_store_filled_anew(tmp_path: Path) -> None:
    """Entries that move as they are, and those laid out anew, are what a put would write."""
    content = {f"key {i}": ("text" * i, b"0" * i, [i] * i, np.arange(i))[i % 4] for i in range(600)}
    content |= {"L" * 300: 1, "\0pmshelve/x": 2, "long": "x" * 70_000, "raw": ["y" * 70_000]}
    files = []
    for name, crowd in ("fresh", False), ("crowded", True):
        path = tmp_path / name
        with mmapdict(path) as store:
            for number, (key, value) in enumerate(content.items()):
                store[key] = value
                if crowd:
                    store["dead"] = "x" * (number % 97)
            if crowd:
                del store["dead"]
                store.vacuum()
            assert_sound(store, content)
            end = store.stats().size if not crowd else None
        files.append((path.read_bytes(), end))
    (fresh, end), (crowded, _) = files
    assert crowded[254 : end - 11] == fresh[254 : end - 11]


def test_vacuum_after_vacuum_finds_nothing_to_do(path: Path) -> None:
    with mmapdict(path) as store:
        store.update({str(i): i for i in range(2000)})
        del store["7"]
        store.vacuum()
        inode = path.stat().st_ino
        store.vacuum()
        assert path.stat().st_ino == inode
        store.update({str(i): i for i in range(2000, 2600)})
        store.vacuum()  # the batch's own entry is dead
        for number in range(3000, 3600):
            store[str(number)] = number
        inode = path.stat().st_ino
    with mmapdict(path) as again:  # with another checkpoint
        assert again.stats().dead_size > 0
        again.vacuum()
        assert path.stat().st_ino == inode
        del again["3000"]
        again.vacuum()
        assert path.stat().st_ino != inode


@pytest.mark.parametrize("key", ["small", "array"])
def test_damaged_entry_is_not_given_a_new_checksum(path: Path, key: str) -> None:
    with mmapdict(path) as store:
        store["dead"] = 1
        store.update(small="spoil me", array=np.ones(3), kept=1)
        del store["dead"]
        data = path.read_bytes()
        at = data.index(b"spoil me" if key == "small" else b"ndarray")
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(b"S")
        before = path.read_bytes()
        with pytest.raises(CorruptionError) as caught:
            store.vacuum()
        assert (caught.value.invariant, caught.value.path) == ("L3", str(path))
        assert before[:18] + before[22:] == path.read_bytes()[:18] + path.read_bytes()[22:]
        assert os.listdir(path.parent) == [path.name]
        assert store["kept"] == 1


@pytest.mark.parametrize("in_place", [False, True])
def test_image_larger_than_the_pickle_it_replaces(path: Path, in_place: bool) -> None:
    content = {f"key {i}": float(i) for i in range(3000)}
    path.write_bytes(pickle.dumps(content, 4))
    if in_place:
        os.link(path, path.with_name("link"))
    before = path.stat()
    with mmapdict(path) as store:
        assert path.stat().st_size > before.st_size
        assert (path.stat().st_ino == before.st_ino) is in_place
        assert_sound(store, content)


def test_holes_stay_holes(store: mmapdict, path: Path) -> None:
    store["dead"] = bytes(1000)
    store["sparse"] = EmptyNDArray((50_000_000,), "u1")
    store["sparse"][40_000_000] = 7
    del store["dead"]
    store.vacuum()
    assert path.stat().st_size > 50_000_000
    assert path.stat().st_blocks * 512 < 5_000_000
    assert store["sparse"][40_000_000] == 7
    assert store["sparse"].sum() == 7


# What a killed vacuum leaves --------------------------------------------------------------------


def test_new_file_of_a_killed_vacuum_is_removed_by_the_next(store: mmapdict, path: Path) -> None:
    stray = path.with_name(f".{path.name}.0123abcd.vacuum")
    locked = path.with_name(f".{path.name}.4567cdef.vacuum")
    others = [path.with_name(f".{path.name}.x.vacuum"), path.with_name(".other.0123abcd.vacuum")]
    for file in (stray, locked, *others):
        file.write_bytes(b"half an image")
    with locked.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        store.vacuum()
        assert not stray.exists()
        assert locked.exists()
    store.vacuum()
    assert sorted(os.listdir(path.parent)) == sorted(file.name for file in (path, *others))


@pytest.mark.parametrize("announced", [False, True])
def test_directory_that_cannot_be_synced_fails_the_store(
    path: Path, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    store = mmapdict(path)
    content = _fill(store)

    def refuse(_fd: int) -> None:
        raise OSError(errno.EINVAL if announced else errno.EIO, "no")

    monkeypatch.setattr(file_layer.system, "fsync", refuse)
    if announced:  # a file system without a sync of directories says so
        store.vacuum()
        assert_sound(store, content)
    else:
        with pytest.raises(StoreFailedError) as caught:
            store.vacuum()
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
        with pytest.raises(StoreFailedError):
            store["a"] = 1
    store.close()
    with mmapdict(path) as store:
        assert_sound(store, content)
        assert os.listdir(path.parent) == [path.name]
