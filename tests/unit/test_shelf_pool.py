"""`pmshelve.open(..., backend="pmemobj")`: a shelf over a pool."""

from __future__ import annotations

import datetime
import io
import operator
import os
import pickle
import shelve
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmshelve
from pmshelve import pmemobj
from pmshelve.dbm_compat import pmemobj as our_dbm
from pmshelve.dbm_compat import register, unregister
from pmshelve.dbm_compat.pools import Objects
from pmshelve.errors import (
    NotAStoreError,
    PickleRefusedError,
    ReadOnlyError,
    UnsupportedTypeError,
    WrongDoorError,
)
from pmshelve.shelf import ClassicShelf, NativeShelf, ShelveError
from tests.support.pools import assert_nothing_leaked, assert_sound
from tests.support.values import assert_same

VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "one": 1,
    "one and a half": 1.5,
    "complex": 1 + 2j,
    "number": 2**80,
    "text": "t",
    "long text": "t" * 70_000,
    "lone surrogate": "\udcff",
    "bytes": b"b" * 70_000,
    "pickled bytes": pickle.dumps([1]),
    "dict": {"a": [1, 2.5], "b": (None, "x")},
    "tuple": (1, (2, frozenset({3}))),
    "day": datetime.date(2001, 2, 3),
    "array": np.arange(6.0).reshape(2, 3),
    "": "empty key",
    "k" * 300: "long key",
    "Größe": "key",
    "\ud800": "surrogate",
}

open_shelf: Callable[..., Any] = partial(pmshelve.open, backend="pmemobj")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def _registered() -> Iterator[None]:
    register("pmemobj")
    yield
    unregister()


def content(path: Path) -> dict[str, Any]:
    with open_shelf(path, "r") as shelf:
        return dict(shelf)


# A dict of anything -----------------------------------------------------------------------------


def test_values_of_every_kind_come_back(path: Path) -> None:
    with open_shelf(str(path)) as shelf:
        assert isinstance(shelf, shelve.Shelf)
        assert isinstance(shelf, NativeShelf)
        for key, value in VALUES.items():
            shelf[key] = value
    assert os.listdir(path.parent) == [path.name]
    with open_shelf(os.fsencode(path), "r") as shelf:
        assert list(shelf) == list(shelf.keys()) == list(VALUES)
        assert len(shelf) == len(VALUES)
        for key, value in VALUES.items():
            assert key in shelf
            assert_same(shelf[key], value)
            assert_same(shelf.get(key), value)
    with pmemobj.open(path) as pool:
        assert_sound(pool)
        assert_nothing_leaked(pool)


def test_the_pool_has_scalars_as_they_are_and_pickles_of_the_rest(path: Path) -> None:
    with open_shelf(path, protocol=2) as shelf:
        shelf.update(one=1, text="text", list=[1], bytes=b"b")
    with pmemobj.open(path) as pool:
        assert type(pool.root) is Objects
        assert pool.root == {
            "one": 1,
            "text": "text",
            "list": pickle.dumps([1], 2),
            "bytes": pickle.dumps(b"b", 2),
        }


def test_values_come_back_as_their_exact_types(path: Path) -> None:
    class_ = type("Number", (int,), {"__module__": __name__})
    globals()["Number"] = class_
    try:
        with open_shelf(path) as shelf:
            shelf["number"] = class_(5)
            assert type(shelf["number"]) is class_
            shelf[type("Key", (str,), {})("key")] = True
            assert shelf["key"] is True
            assert [type(key) for key in shelf] == [str, str]
    finally:
        del globals()["Number"]


def test_what_comes_out_is_a_copy(path: Path) -> None:
    with open_shelf(path) as shelf:
        shelf["array"], shelf["dict"] = VALUES["array"], VALUES["dict"]
        shelf["array"][0, 0] = 99
        shelf["dict"]["a"].append(3)
        assert_same(shelf["array"], VALUES["array"])
        assert_same(shelf["dict"], VALUES["dict"])


@pytest.mark.parametrize("key", [1, None, b"key", ("a",)])
def test_keys_are_text(path: Path, key: Any) -> None:
    with open_shelf(path) as shelf:
        with pytest.raises(TypeError, match="keys must be str"):
            shelf[key] = 1
        assert len(shelf) == 0


def test_missing_keys(path: Path) -> None:
    with open_shelf(path) as shelf:
        for use in (operator.getitem, operator.delitem):
            with pytest.raises(KeyError) as caught:
                use(shelf, "missing")
            assert caught.value.args == ("missing",)
        assert shelf.get("missing", 1) == 1
        assert shelf.setdefault("new", [3]) == [3]
        assert shelf.popitem() == ("new", [3])


def test_a_value_that_cannot_be_stored_changes_nothing(path: Path) -> None:
    with open_shelf(path, writeback=True) as shelf:
        shelf["key"] = 1
        with pytest.raises(UnsupportedTypeError, match="function cannot be stored"):
            shelf["key"] = lambda: None
        assert shelf["key"] == 1
    assert content(path) == {"key": 1}


# Flags and options ------------------------------------------------------------------------------


def test_flags(path: Path) -> None:
    for flag in "rw":
        with pytest.raises(FileNotFoundError) as caught:
            open_shelf(str(path), flag)
        assert caught.value.filename == str(path)
    with pytest.raises(ValueError, match="Flag must be one of"):
        open_shelf(path, "x")
    assert not path.exists()
    for flag, before in (("c", []), ("w", ["key"]), ("c", ["key"]), ("n", []), ("ns", [])):
        with open_shelf(path, flag) as shelf:
            assert list(shelf) == before
            shelf["key"] = 1


def test_read_only(path: Path) -> None:
    open_shelf(path).close()
    before = path.read_bytes()
    with open_shelf(path, "r") as shelf:
        for use in (
            lambda: operator.setitem(shelf, "key", 1),
            lambda: shelf.update(key=1),
            lambda: shelf.batch().__enter__(),
        ):
            with pytest.raises(io.UnsupportedOperation) as caught:
                use()
            assert isinstance(caught.value, ReadOnlyError)
    assert path.read_bytes() == before


def test_mode_is_that_of_the_new_file(path: Path) -> None:
    before = os.umask(0o027)
    try:
        open_shelf(path, mode=0o666).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("options", [{}, {"exclusive": True}])
def test_one_process_writes(path: Path, options: dict[str, Any]) -> None:
    with open_shelf(path, **options) as shelf:
        shelf["key"] = 1
        for flag in "rwcn":
            with pytest.raises(TimeoutError):
                open_shelf(path, flag, timeout=0)


@pytest.mark.parametrize("options", [{"sync": True}, {"flag": "cs"}, {}])
def test_sync_puts_every_change_on_the_disk(
    path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.storage import file

    calls: list[int] = []
    sync = file.system.fdatasync
    monkeypatch.setattr(file.system, "fdatasync", lambda fd: (calls.append(fd), sync(fd)))
    with open_shelf(path, **options) as shelf:
        shelf["first"] = 1
        calls.clear()
        shelf["key"] = 1
        assert bool(calls) == bool(options)
        shelf.sync()
        assert calls


@pytest.mark.parametrize("mode", ["r", "r+", None])
def test_an_option_that_does_not_apply_is_refused(path: Path, mode: str | None) -> None:
    with pytest.raises(ValueError, match=r"mmap_mode=.* is not for backend 'pmemobj'"):
        open_shelf(path, mmap_mode=mode)
    assert not path.exists()


def test_allow_pickle(path: Path) -> None:
    with open_shelf(path) as shelf:
        shelf.update(VALUES)
    with open_shelf(path, allow_pickle=False) as shelf:
        for key in ("none", "one", "text", "number", "lone surrogate"):
            assert_same(shelf[key], VALUES[key])
        for key in ("dict", "bytes", "day"):
            with pytest.raises(PickleRefusedError, match="allow_pickle"):
                shelf[key]
        shelf["new"] = [1]
    assert content(path)["new"] == [1]


# Life -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writeback", [False, True])
def test_a_closed_shelf_raises_value_errors(path: Path, writeback: bool) -> None:
    shelf = open_shelf(path, writeback=writeback)
    shelf["key"] = 1
    shelf.close()
    shelf.close()
    for use in (
        lambda: shelf["key"],
        lambda: operator.setitem(shelf, "key", 1),
        lambda: operator.delitem(shelf, "key"),
        lambda: "key" in shelf,
        lambda: len(shelf),
        lambda: list(shelf),
        lambda: shelf.get("key"),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_close_closes_the_store_even_if_its_sync_fails(path: Path) -> None:
    shelf = open_shelf(path, writeback=True)
    shelf["key"] = [1]
    shelf["key"].append(lambda: None)
    store = shelf.dict
    with pytest.raises(TypeError):
        shelf.close()
    assert store.closed
    assert content(path) == {"key": [1]}


def test_reorganize_syncs_and_frees(path: Path) -> None:
    with open_shelf(path, writeback=True) as shelf:
        shelf["key"] = "x" * 100_000
        del shelf["key"]
        shelf["list"] = [1]
        shelf["list"].append(2)
        shelf.reorganize()
        assert shelf.cache == {}
        assert shelf.dict.pool.stats().used < 10_000
    assert content(path) == {"list": [1, 2]}


def test_writeback_keeps_changes_in_place(path: Path) -> None:
    with open_shelf(path, writeback=True) as shelf:
        shelf["key"] = [1]
        assert shelf["key"] is shelf["key"]
        shelf["key"].append(2)
    with open_shelf(path, writeback=True) as shelf:
        shelf["key"].append(3)
        shelf.sync()
        assert shelf.cache == {}
        shelf["key"].append(4)
    assert content(path) == {"key": [1, 2, 3, 4]}


def test_a_sync_that_fails_changes_nothing_and_forgets_nothing(path: Path) -> None:
    with open_shelf(path, writeback=True) as shelf:
        shelf["a"], shelf["b"] = [1], [1]
        shelf["a"].append(2)
        shelf["b"].append(lambda: None)
        with pytest.raises(TypeError):
            shelf.sync()
        assert shelf.dict["a"] == [1]
        shelf["b"].pop()
    assert content(path) == {"a": [1, 2], "b": [1]}


@pytest.mark.parametrize("writeback", [False, True])
def test_a_batch_is_one_transaction(path: Path, writeback: bool) -> None:
    with open_shelf(path, writeback=writeback) as shelf:
        shelf["gone"] = [0]
        with shelf.batch():
            shelf["a"] = [1]
            del shelf["gone"]
            assert list(shelf) == ["a"]
        with pytest.raises(RuntimeError), shelf.batch():
            shelf["a"] = [2]
            shelf["b"] = [3]
            raise RuntimeError
        assert dict(shelf) == {"a": [1]}
        with pytest.raises(TypeError):
            shelf.update([("a", 10), ("d", lambda: None)])
        assert dict(shelf) == {"a": [1]}
    assert content(path) == {"a": [1]}


# The other doors --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_registered")
def test_a_shelf_of_the_standard_library_is_served(path: Path) -> None:
    classic = {key: value for key, value in VALUES.items() if key != "\ud800"}
    with shelve.open(str(path)) as shelf:
        shelf.update(classic)
    before = path.read_bytes()
    with open_shelf(path, "r") as shelf:
        assert isinstance(shelf, ClassicShelf)
        assert list(shelf) == list(classic)
        for key, value in classic.items():
            assert_same(shelf[key], value)
        with pytest.raises(OSError, match="reading only"):
            shelf["key"] = 1
    assert path.read_bytes() == before
    with open_shelf(path) as shelf:
        with pytest.raises(RuntimeError), shelf.batch():
            shelf["new"] = 1
            raise RuntimeError
        shelf["new"] = [1]
        del shelf["text"]
        shelf.reorganize()
    with shelve.open(str(path)) as shelf:
        assert shelf["new"] == [1]
        assert "text" not in shelf
    with open_shelf(path, allow_pickle=False) as shelf, pytest.raises(PickleRefusedError):
        shelf["new"]


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_the_standard_library_refuses_our_shelf_by_naming_its_door(path: Path, flag: Any) -> None:
    with open_shelf(path) as shelf:
        shelf["key"] = [1]
    before = path.read_bytes()
    door = r'pmshelve\.open\(\.\.\., backend="pmemobj"\)'
    with pytest.raises(OSError, match=door), shelve.open(str(path), flag):
        pass
    assert path.read_bytes() == before


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_each_backend_refuses_the_others_file_by_naming_it(path: Path, flag: str) -> None:
    for backend, other in (("mmapdict", "pmemobj"), ("pmemobj", "mmapdict")):
        with pmshelve.open(path, "n", backend=backend) as shelf:
            shelf["key"] = 1
        before = path.read_bytes()
        with pytest.raises(WrongDoorError, match=f"open it with backend='{backend}'"):
            pmshelve.open(path, flag, backend=other)
        assert path.read_bytes() == before
        with pmshelve.open(path, "n", backend=other) as shelf:
            assert list(shelf) == []


def test_a_pool_of_a_users_own_is_refused(path: Path) -> None:
    with pmemobj.create(path) as pool:
        pool.root = pool.new(pmemobj.PersistentDict, a=1)
    for options in ({}, {"serializer": pickle.dumps, "deserializer": pickle.loads}):
        with pytest.raises(WrongDoorError, match=r"use pmshelve\.pmemobj\.open"):
            open_shelf(path, **options)


def test_another_file_is_refused(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(NotAStoreError):
        open_shelf(path)
    assert pickle.loads(path.read_bytes()) == {"a": 1}


def test_an_empty_pool_is_anybodys(path: Path) -> None:
    our_dbm.open(path, "c").close()
    with open_shelf(path) as shelf:
        assert isinstance(shelf, NativeShelf)
    with our_dbm.open(path) as db:
        assert db.keys() == []
    with our_dbm.open(path, "w") as db:
        db["key"] = pickle.dumps([1])
    with open_shelf(path) as shelf:
        assert isinstance(shelf, ClassicShelf)
        assert shelf["key"] == [1]
    with open_shelf(path, "n") as shelf:
        assert isinstance(shelf, NativeShelf)


def test_serializers(path: Path) -> None:
    def upper(value: str, protocol: int) -> bytes:
        return b"%d:" % protocol + value.upper().encode()

    def lower(data: bytes) -> str:
        return data.decode().lower()

    with open_shelf(path, protocol=3, serializer=upper, deserializer=lower) as shelf:
        shelf["Größe"] = "Value"
        assert shelf["Größe"] == "3:value"
    with our_dbm.open(path) as db:
        assert db.items() == [("Größe".encode(), b"3:VALUE")]
    with open_shelf(path, "n") as shelf:
        shelf["key"] = 1
    with pytest.raises(WrongDoorError):
        open_shelf(path, serializer=upper, deserializer=lower)
    with pytest.raises(ShelveError):
        open_shelf(path, serializer=upper)
