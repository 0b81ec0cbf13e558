"""How long an mmapdict lives, what it holds meanwhile, and how it is handed to others."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import gc
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import ClosedError, LockTimeoutError
from pmshelve.mmapdict import EmptyNDArray, mmapdict
from pmshelve.storage import file as file_layer
from tests.support.processes import ROOT, Worker
from tests.support.stores import assert_content, assert_sound, descriptors, fixture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def store(path: Path) -> Iterator[mmapdict]:
    with mmapdict(path) as store:
        yield store


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# close ------------------------------------------------------------------------------------------


def _uses() -> dict[str, Callable[[Any], Any]]:
    return {
        "get": lambda store: store["a"],
        "get default": lambda store: store.get("a"),
        "get missing": lambda store: store.get("missing"),
        "set": lambda store: store.__setitem__("a", 1),
        "delete": lambda store: store.__delitem__("a"),
        "contains": lambda store: "a" in store,
        "contains missing": lambda store: "missing" in store,
        "len": len,
        "bool": bool,
        "iter": list,
        "keys": lambda store: list(store.keys()),
        "items": lambda store: list(store.items()),
        "values": lambda store: list(store.values()),
        "pop": lambda store: store.pop("a"),
        "popitem": lambda store: store.popitem(),
        "setdefault": lambda store: store.setdefault("a", 1),
        "update": lambda store: store.update(a=1),
        "clear": lambda store: store.clear(),
        "batch": lambda store: store.batch().__enter__(),
        "sync": lambda store: store.sync(),
        "vacuum": lambda store: store.vacuum(),
        "fsck": lambda store: store.fsck(),
        "check": lambda store: list(store.check()),
        "stats": lambda store: store.stats(),
        "commit_number": lambda store: store.commit_number,
        "set commit_number": lambda store: setattr(store, "commit_number", 5),
    }


@pytest.mark.parametrize("name", _uses())
def test_use_after_close_is_a_closed_error(store: mmapdict, path: Path, name: str) -> None:
    store["a"] = 1
    store.close()
    before = path.read_bytes()
    with pytest.raises(ClosedError) as caught:
        _uses()[name](store)
    assert isinstance(caught.value, ValueError)
    assert path.read_bytes() == before


def test_close_twice(store: mmapdict) -> None:
    assert store.closed is False
    store.close()
    store.close()
    assert store.closed is True


def test_with_closes(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
        assert not store.closed
    assert store.closed
    with pytest.raises(ZeroDivisionError), mmapdict(path) as store:
        store["b"] = 1 // 0
    assert store.closed
    with mmapdict(path, True) as store:
        assert dict(store) == {"a": 1}


def test_close_ends_iteration_cleanly(store: mmapdict) -> None:
    store.update(a=1, b=2, c=3)
    walk = iter(store)
    assert next(walk) == "a"
    store.close()
    with contextlib.suppress(ValueError):
        assert set(walk) <= {"b", "c"}


def test_close_returns_descriptors(path: Path) -> None:
    before = descriptors()
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader:
        store.update(a=1, b=np.arange(1000))
        reader["b"].sum()
        store.vacuum()
        del store["a"]
        store.vacuum()
        assert dict(reader)
    assert descriptors() == before


# del --------------------------------------------------------------------------------------------


def _use_widely(store: mmapdict) -> None:
    store["a"] = 1
    store["array"] = np.arange(100)
    store["object"] = {"x": np.arange(20_000)}
    store["masked"] = np.ma.zeros(3)
    store["a"] = 2
    dict(store)
    list(store.keys() & {"a"})
    with store.batch():
        store["b"] = 1
        del store["a"]
    with pytest.raises(KeyError):
        store["missing"]
    store.vacuum()
    store.sync()
    store.stats()
    list(store.check())
    store.fsck()
    store.commit_number += 1
    repr(store)


@pytest.mark.parametrize("options", [{}, {"exclusive": True}, {"mmap_mode": "c"}, {"sync": True}])
def test_no_reference_cycle(path: Path, no_gc: None, options: dict[str, Any]) -> None:
    before = descriptors()
    store = mmapdict(path, **options)
    _use_widely(store)
    reference = weakref.ref(store)
    del store
    assert reference() is None
    assert descriptors() == before


def test_no_reference_cycle_read_only_or_on_a_file_object(path: Path, no_gc: None) -> None:
    with open(path, "wb+") as file:
        store = mmapdict(file)
        _use_widely(store)
        reference = weakref.ref(store)
        del store
        assert reference() is None
    store = mmapdict(path, readonly=True)
    dict(store)
    reference = weakref.ref(store)
    del store
    assert reference() is None


def test_no_reference_cycle_after_errors(path: Path, no_gc: None) -> None:
    store = mmapdict(path)
    store["a"] = 1
    with pytest.raises(KeyError):
        store["missing"]
    with pytest.raises(TypeError):
        store[1] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        store["a"] = lambda: 1
    with pytest.raises(TypeError):
        store.update([("b", 1), ("c", lambda: 1)])
    reference = weakref.ref(store)
    del store
    assert reference() is None


def test_views_do_not_keep_the_store(path: Path, no_gc: None) -> None:
    store = mmapdict(path)
    store["a"] = np.arange(1000)
    view = store["a"]
    reference = weakref.ref(store)
    del store
    assert reference() is None
    assert view.sum() == 499_500


def test_key_view_or_iterator_may_outlive_the_name(path: Path) -> None:
    store = mmapdict(path)
    store.update(a=1, b=2)
    keys, walk = store.keys(), iter(store.items())
    del store
    assert list(keys) == ["a", "b"]
    assert list(walk) == [("a", 1), ("b", 2)]


def test_dropped_store_has_kept_everything(path: Path) -> None:
    store = mmapdict(path)
    store.update({str(i): i for i in range(1000)})
    del store
    gc.collect()
    with mmapdict(path) as store:
        assert_sound(store, {str(i): i for i in range(1000)})


def test_dropped_exclusive_store_lets_others_in(path: Path, no_gc: None) -> None:
    store = mmapdict(path, exclusive=True)
    store["a"] = np.arange(1000)
    view = store["a"]
    del store
    with mmapdict(path, timeout=0) as store:
        store["b"] = 1
        assert view.sum() == 499_500


# Pickling ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_store_opens_the_same_file(store: mmapdict, protocol: int) -> None:
    store.update(a=1, b=np.arange(3))
    with pickle.loads(pickle.dumps(store, protocol)) as again:
        assert type(again) is mmapdict
        assert_content(again, {"a": 1, "b": np.arange(3)})
        again["c"] = 2
        assert store["c"] == 2
        assert again.writable


def test_pickled_store_keeps_how_it_was_opened(path: Path) -> None:
    from pmshelve.mmapdict.picklers import GenericPickler

    mmapdict(path).close()
    with mmapdict(path, True, [GenericPickler], mmap_mode="c", timeout=3.5) as store:
        with pickle.loads(pickle.dumps(store)) as again:
            assert again.readonly
            assert again.timeout == 3.5
            assert [type(pickler) for pickler in again._picklers] == [GenericPickler]
            with pytest.raises(ValueError):  # noqa: PT011
                again["a"] = 1
    with mmapdict(path, allow_pickle=False) as store, pickle.loads(pickle.dumps(store)) as again:
        store["a"] = [1]
        with pytest.raises(TypeError):
            again["a"]


def test_unpickling_makes_no_new_file(store: mmapdict, path: Path) -> None:
    data = pickle.dumps(store)
    store.close()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)
    assert not path.exists()


def test_store_is_handed_to_another_process(store: mmapdict) -> None:
    store["a"] = np.arange(10)
    with Worker() as worker:
        worker.run("store['b'] = store['a'].sum(); store.close()", store=store)
    assert store["b"] == 45


def test_named_file_object_is_pickled_by_its_name(path: Path) -> None:
    with open(path, "wb+") as file:
        store = mmapdict(file)
        store["a"] = 1
        with pickle.loads(pickle.dumps(store)) as again:
            assert dict(again) == {"a": 1}
        store.close()


def test_nameless_store_is_not_pickled() -> None:
    with tempfile.TemporaryFile() as file, pytest.raises((TypeError, pickle.PicklingError)):
        pickle.dumps(mmapdict(file))


def test_copy_is_a_second_handle(store: mmapdict) -> None:
    store["a"] = 1
    for duplicate in (copy.copy, copy.deepcopy):
        with duplicate(store) as again:
            again["a"] += 1
    assert store["a"] == 3


# Locks ------------------------------------------------------------------------------------------


def test_lock_is_held_only_during_a_call(store: mmapdict, path: Path) -> None:
    with mmapdict(path, timeout=0) as other:
        for number in range(20):
            store["a"] = number
            assert other["a"] == number
            other["b"] = number
            assert store["b"] == number
        store.vacuum()
        other["c"] = 1
        list(store.keys())
        other["d"] = 2


def test_attributes(store: mmapdict, path: Path) -> None:
    assert store.writable is True
    assert store.readonly is False
    assert store.path == str(path)
    assert store.timeout == 60.0
    assert store.face == "native"
    for name in ("writable", "closed", "path", "face"):
        with pytest.raises(AttributeError):
            setattr(store, name, None)


# stats, check, fsck -----------------------------------------------------------------------------


def test_stats_tell_what_is_in_the_file(store: mmapdict, path: Path) -> None:
    empty = store.stats()
    assert dataclasses.is_dataclass(empty)
    assert (empty.live_count, empty.live_size) == (0, 0)
    store.update(a=bytes(10_000), b=1)
    store["c"] = np.arange(1000)
    full = store.stats()
    assert full.path == str(path)
    assert full.size == path.stat().st_size
    assert full.live_count == 3
    assert 18_000 < full.live_size < full.size
    assert full.commit_number == store.commit_number
    assert full.face == "native"
    assert full.exclusive is False
    del store["a"]
    store["b"] = 2
    after = store.stats()
    assert after.live_count == 2
    assert after.dead_size >= full.dead_size + 10_000
    assert after.live_size < full.live_size - 10_000
    store.vacuum()
    assert store.stats().dead_size < after.dead_size - 10_000
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.size = 0


def test_counts_are_right_for_every_handle(store: mmapdict, path: Path) -> None:
    with mmapdict(path) as other:
        for number in range(50):
            each = (store, other)[number % 2]
            each[str(number % 7)] = number
            if number % 5 == 0:
                del each[str(number % 7)]
            assert len(store) == len(other) == len(list(store)) == store.stats().live_count
            assert store.stats().dead_size == other.stats().dead_size


def test_fsck_of_a_sound_store_is_true_and_silent(
    store: mmapdict, path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.WARNING)
    store.update(a=1, b=np.arange(10))
    del store["a"]
    before, number = path.read_bytes(), store.commit_number
    assert store.fsck() is True
    assert path.read_bytes() == before
    assert store.commit_number == number
    assert capsys.readouterr() == ("", "")
    assert not caplog.records


@pytest.mark.parametrize("cut", [1, 5, 11, 12, 30])
def test_file_without_its_terminator_opens(path: Path, cut: int) -> None:
    with mmapdict(path) as store:
        store.update(a=1)
        store["b"] = np.arange(10)
        store["c"] = "x" * 100
    os.truncate(path, path.stat().st_size - cut)
    content = {"a": 1, "b": np.arange(10), "c": "x" * 100}
    if cut > 11:
        del content["c"]
    with mmapdict(path, readonly=True) as store:
        assert_content(store, content)
    with mmapdict(path) as store:
        assert_content(store, content)
        store["d"] = 1
        assert_sound(store, {**content, "d": 1})


@pytest.mark.parametrize("rubbish", [b"x", b"\0" * 5000, b"\x95\x02\0\0\0\0\0\0\0d", b"\x95" * 40])
def test_file_with_trailing_rubbish_opens(path: Path, rubbish: bytes) -> None:
    content = {"a": 1, "b": np.arange(10)}
    with mmapdict(path) as store:
        store.update(content)
    with open(path, "ab") as file:
        file.write(rubbish)
    with mmapdict(path, readonly=True) as store:
        assert_content(store, content)
    with mmapdict(path) as store:
        assert_content(store, content)
        store["c"] = 2
        assert_sound(store, {**content, "c": 2})


def test_file_of_mmappickle_without_its_terminator_opens(tmp_path: Path) -> None:
    path = fixture("generic.mmdpickle", tmp_path)
    os.truncate(path, path.stat().st_size - 11)
    with mmapdict(path, readonly=True) as store:
        assert len(store) == 15
        content = dict(store)
    with mmapdict(path) as store:
        assert store.fsck() in (True, False)
        assert_sound(store, content)


# Exclusive --------------------------------------------------------------------------------------


def test_exclusive_store_excludes_others_until_it_closes(path: Path) -> None:
    store = mmapdict(path, exclusive=True)
    store["a"] = np.arange(1000)
    view = store["a"]
    with pytest.raises(LockTimeoutError):
        mmapdict(path, timeout=0.05)
    with pytest.raises(LockTimeoutError):
        mmapdict(path, exclusive=True, timeout=0.05)
    store.close()
    with mmapdict(path, timeout=0) as other:
        assert_sound(other, {"a": np.arange(1000)})
        other["b"] = 1
    assert view.sum() == 499_500


def test_exclusive_store_cannot_be_had_while_another_writes(path: Path) -> None:
    with mmapdict(path) as store, store.batch():
        store["a"] = 1
        with pytest.raises(LockTimeoutError):
            mmapdict(path, exclusive=True, timeout=0.05)


def test_open_handle_is_kept_from_writing_by_an_exclusive_one(path: Path) -> None:
    with mmapdict(path, timeout=0.05) as other:
        other["a"] = 1
        with mmapdict(path, exclusive=True) as store:
            store["b"] = 2
            with pytest.raises(LockTimeoutError):
                other["c"] = 3
        other["c"] = 3
        assert_sound(other, {"a": 1, "b": 2, "c": 3})


def test_exclusive_store_does_all_that_others_do(path: Path) -> None:
    with mmapdict(path, exclusive=True) as store:
        _use_widely(store)
        assert store.stats().exclusive is True
        store["z"] = 1
        content = dict(store)
        assert list(store.check()) == []
    with mmapdict(path) as store:
        assert_sound(store, {key: content[key] for key in store})
        assert len(store) == len(content)


def test_exclusive_store_ends_with_its_terminator_once_it_is_closed(path: Path) -> None:
    content: dict[str, Any] = {}
    with mmapdict(path, exclusive=True) as store:
        for number in range(700):
            store[f"key {number}"] = content[f"key {number}"] = bytes([number % 251]) * 200
            if number % 100 == 0:
                content.pop("batch", None)
                with store.batch():
                    store["batch"] = content["batch"] = number
                with pytest.raises(ZeroDivisionError), store.batch():
                    store["never"] = 1 / 0
                assert store.fsck()
                assert list(store.check()) == []
        stats = store.stats()
        assert stats.size == stats.live_size + stats.dead_size + stats.overhead_size
    assert path.stat().st_size == _end_of_pickle(path)
    with mmapdict(path) as store:
        assert_sound(store, content)


def test_exclusive_store_leaves_an_empty_array_its_holes(path: Path) -> None:
    with mmapdict(path, exclusive=True) as store:
        store["a"] = 1
        store["empty"] = EmptyNDArray((1 << 20,), "f8")
        assert path.stat().st_blocks * 512 < 1 << 20
        store["b"] = 2
        assert not store["empty"].any()


def test_killed_exclusive_writer_leaves_zeros_that_the_next_writer_cuts_off(path: Path) -> None:
    code = """
import os, signal, sys
from pmshelve.mmapdict import mmapdict
store = mmapdict(sys.argv[1], exclusive=True)
for number in range(300):
    store[f"key {number}"] = number
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    content = {f"key {number}": number for number in range(300)}
    end = _end_of_pickle(path)
    data = path.read_bytes()
    assert data[end:] == bytes(len(data) - end)
    if hasattr(os, "posix_fallocate"):
        assert len(data) > end
    assert pickle.loads(data) == content
    with mmapdict(path, readonly=True) as reader:
        assert dict(reader) == content
        assert len(reader) == len(content)
    assert path.read_bytes() == data
    with mmapdict(path) as store:
        assert path.stat().st_size == end
        assert_sound(store, content)
        store["next"] = content["next"] = 1
    with mmapdict(path) as store:
        assert_sound(store, content)


def test_blocks_that_cannot_be_reserved_are_done_without(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, size: int) -> None:
        os.ftruncate(fd, offset + size // 2)  # as some file systems do
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(file_layer.system, "posix_fallocate", refuse)
    content = {f"key {number}": bytes(100) for number in range(2000)}
    with mmapdict(path, exclusive=True) as store:
        for key, value in content.items():
            store[key] = value
        assert path.stat().st_size == _end_of_pickle(path)
        assert_sound(store, content)


def _end_of_pickle(path: Path) -> int:
    with open(path, "rb") as file:
        pickle.load(file)
        return file.tell()


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="punches holes on Linux only")
def test_exclusive_store_gives_back_the_blocks_of_what_it_deletes(path: Path) -> None:
    with mmapdict(path, exclusive=True) as store:
        store["kept"] = np.full(1000, 5)
        store["a"] = np.full(1 << 20, 1.0)
        store["b"] = np.full(1 << 20, 2.0)
        full = path.stat().st_blocks
        assert full * 512 > 16 << 20
        view = store["b"]
        del store["a"]
        store["kept2"] = 1
        assert path.stat().st_blocks * 512 < 10 << 20
        store["b"] = 3
        assert (view == 2).all()
        assert path.stat().st_blocks * 512 > 8 << 20
        del view
        gc.collect()
        store["kept3"] = 1
        assert path.stat().st_blocks * 512 < 2 << 20
        assert list(store.check()) == []
    with mmapdict(path) as store:
        content = {"kept": np.full(1000, 5), "kept2": 1, "b": 3, "kept3": 1}
        assert_sound(store, content)
        store.vacuum()
        assert_sound(store, content)


def test_exclusive_store_respects_each_view_of_one_value(path: Path) -> None:
    first, second = np.arange(50_000), np.arange(50_000) * 2
    with mmapdict(path, exclusive=True) as store:
        for key in ("x", "y"):
            store["a"] = {"x": first, "y": second}
            view = store["a"][key]
            part = store["a"][key][100:200]
            del store["a"]
            gc.collect()
            store["b"] = np.zeros(50_000)
            del store["b"]
            assert (view == {"x": first, "y": second}[key]).all()
            assert part.any()
            del view, part


def test_exclusive_store_does_not_use_up_descriptors(path: Path) -> None:
    with mmapdict(path, exclusive=True) as store:
        before = len(descriptors())
        for number in range(1100):
            store[str(number)] = np.full(10_000, number)
        views = [store[str(number)] for number in range(1100)]
        assert len(descriptors()) - before < 1000
        store.clear()
        assert all((view == number).all() for number, view in enumerate(views))


def test_exclusive_open_of_a_file_used_before_punches_nothing_old(path: Path) -> None:
    with mmapdict(path) as other:
        other["a"] = np.full(1 << 18, 1.0)
        view = other["a"]
        with mmapdict(path, exclusive=True) as store:
            del store["a"]
            store["b"] = 1
        assert (view == 1).all()
        assert "a" not in other
