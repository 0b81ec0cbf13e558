"""`pmshelve.open`: a shelf of native values, and the classic one for files of bytes."""

from __future__ import annotations

import array
import datetime
import io
import operator
import os
import pickle
import shelve
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmshelve
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.dbm_compat import register, unregister
from pmshelve.errors import NotAStoreError, PickleRefusedError, ReadOnlyError, WrongDoorError
from pmshelve.mmapdict import mmapdict
from pmshelve.shelf import ClassicShelf, NativeShelf, ShelveError
from tests.support.stores import assert_file, stock_load
from tests.support.values import assert_same

VALUES: dict[str, Any] = {
    "none": None,
    "bytes": b"b" * 70_000,
    "text": "t",
    "number": 2**80,
    "dict": {"a": [1, 2.5], "b": (None, "x")},
    "day": datetime.date(2001, 2, 3),
    "array": np.arange(6.0).reshape(2, 3),
    "frame": {"x": np.arange(10_000), "y": np.ones((3, 3))},
    "": "empty key",
    "k" * 300: "long key",
    "Größe": "key",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


@pytest.fixture
def _registered() -> Iterator[None]:
    register("mmapdict")
    yield
    unregister()


# A dict of anything -----------------------------------------------------------------------------


def test_a_shelf_is_a_shelf(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        assert isinstance(shelf, shelve.Shelf)
        assert isinstance(shelf, NativeShelf)
        assert shelf._protocol == pickle.DEFAULT_PROTOCOL  # type: ignore[attr-defined]
        assert shelf.keyencoding == "utf-8"  # type: ignore[attr-defined]


def test_values_of_every_kind_come_back(path: Path) -> None:
    with pmshelve.open(str(path)) as shelf:
        for key, value in VALUES.items():
            shelf[key] = value
    assert os.listdir(path.parent) == [path.name]
    with pmshelve.open(os.fsencode(path), "r") as shelf:
        assert list(shelf) == list(shelf.keys()) == list(VALUES)
        assert len(shelf) == len(VALUES)
        for key, value in VALUES.items():
            assert key in shelf
            assert_same(shelf[key], value)
            assert_same(shelf.get(key), value)
        for (key, value), expected in zip(shelf.items(), VALUES.items(), strict=True):
            assert key == expected[0]
            assert_same(value, expected[1])
    assert_file(path, VALUES)


def test_missing_keys(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        for use in (operator.getitem, operator.delitem):
            with pytest.raises(KeyError) as caught:
                use(shelf, "missing")
            assert caught.value.args == ("missing",)
        assert "missing" not in shelf
        assert shelf.get("missing") is None
        assert shelf.get("missing", 1) == 1
        assert shelf.pop("missing", 2) == 2
        assert shelf.setdefault("new", [3]) == [3]
        assert shelf.popitem() == ("new", [3])
        with pytest.raises(KeyError):
            shelf.popitem()


class Moody:
    def __reduce__(self) -> Any:
        return _raise_key_error, ()


def _raise_key_error() -> None:
    raise KeyError("from inside the value")


def test_get_does_not_hide_an_error_of_the_value(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        shelf["moody"] = Moody()
        with pytest.raises(KeyError, match="from inside the value"):
            shelf.get("moody")


@pytest.mark.parametrize("key", [1, None, b"key", ("a",)])
def test_keys_are_text(path: Path, key: Any) -> None:
    with pmshelve.open(path) as shelf:
        with pytest.raises(TypeError):
            shelf[key] = 1
        assert len(shelf) == 0


def test_a_value_that_cannot_be_stored_changes_nothing(path: Path) -> None:
    with pmshelve.open(path, writeback=True) as shelf:
        shelf["key"] = 1
        with pytest.raises(TypeError):
            shelf["key"] = lambda: None
        assert shelf["key"] == 1
    assert_file(path, {"key": 1})


def test_what_comes_out_is_a_copy(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        for key in ("array", "frame", "dict"):
            shelf[key] = VALUES[key]
        shelf["array"][0, 0] = 99
        shelf["frame"]["x"][:] = 99
        shelf["dict"]["a"].append(3)
        first = shelf["array"]
        first += 1
        for key in ("array", "frame", "dict"):
            assert_same(shelf[key], VALUES[key])
        assert first[0, 0] == 1


def test_arrays_are_mapped(path: Path) -> None:
    big = np.arange(100_000.0)
    with pmshelve.open(path) as shelf:
        shelf["big"] = big
        mapped = shelf["big"]
        assert isinstance(mapped, np.memmap)
        assert mapped.mode == "c"
        assert mapped.filename == str(path)
        del mapped
    with pmshelve.open(path, mmap_mode="r+") as shelf:
        shelf["big"][0] = 7
        assert shelf["big"][0] == 7
    with pmshelve.open(path, "r", mmap_mode="r") as shelf:
        assert not shelf["big"].flags.writeable
    with pmshelve.open(path, "r", mmap_mode=None) as shelf:
        assert type(shelf["big"]) is np.ndarray
        assert shelf["big"].flags.writeable
    assert stock_load(path)["big"][0] == 7


# Flags and options ------------------------------------------------------------------------------


def test_flags(path: Path) -> None:
    for flag in "rw":
        with pytest.raises(FileNotFoundError) as caught:
            pmshelve.open(str(path), flag)
        assert caught.value.filename == str(path)
    with pytest.raises(ValueError, match="Flag must be one of"):
        pmshelve.open(path, "x")
    assert not path.exists()
    for flag, before in (("c", []), ("w", ["key"]), ("c", ["key"]), ("n", []), ("ns", [])):
        with pmshelve.open(path, flag) as shelf:
            assert list(shelf) == before
            shelf["key"] = 1


def test_read_only(path: Path) -> None:
    pmshelve.open(path).close()
    with pmshelve.open(path, "r") as shelf:
        for use in (
            lambda: operator.setitem(shelf, "key", 1),
            lambda: operator.delitem(shelf, "key"),
            shelf.clear,
            lambda: shelf.update(key=1),
        ):
            with pytest.raises(io.UnsupportedOperation) as caught:
                use()
            assert isinstance(caught.value, ReadOnlyError)


def test_mode_is_that_of_the_new_file(path: Path) -> None:
    before = os.umask(0o027)
    try:
        pmshelve.open(path, mode=0o666).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_exclusive_is_handed_on(path: Path) -> None:
    with pmshelve.open(path, exclusive=True) as shelf:
        shelf["key"] = 1
        with pytest.raises(TimeoutError):
            pmshelve.open(path, timeout=0)["key"] = 2
        assert shelf["key"] == 1


@pytest.mark.parametrize("options", [{"sync": True}, {"flag": "cs"}])
def test_sync_puts_every_change_on_the_disk(
    path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.storage import file

    calls: list[int] = []
    sync = file.system.fdatasync
    monkeypatch.setattr(file.system, "fdatasync", lambda fd: (calls.append(fd), sync(fd)))
    with pmshelve.open(path, **options) as shelf:
        calls.clear()
        shelf["key"] = 1
        assert calls


def test_an_unknown_backend_is_a_value_error(path: Path) -> None:
    with pytest.raises(ValueError, match=r"no backend 'lmdb'.*mmapdict"):
        pmshelve.open(path, backend="lmdb")
    assert not path.exists()


def test_allow_pickle(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        shelf.update(VALUES)
    with pmshelve.open(path, "r", allow_pickle=False) as shelf:
        assert_same(shelf["array"], VALUES["array"])
        assert shelf["text"] == "t"
        with pytest.raises(PickleRefusedError):
            shelf["dict"]


def test_an_ordinary_pickled_dict_is_converted(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": [1]}))
    with pytest.raises(NotAStoreError):
        pmshelve.open(path, "r")
    with pmshelve.open(path) as shelf:
        assert dict(shelf) == {"a": [1]}


# Life -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writeback", [False, True])
def test_a_closed_shelf_raises_value_errors(path: Path, writeback: bool) -> None:
    shelf = pmshelve.open(path, writeback=writeback)
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


def test_a_shelf_that_is_dropped_is_closed(path: Path) -> None:
    shelf = pmshelve.open(path, writeback=True)
    shelf["key"] = [1]
    shelf["key"].append(2)
    store = shelf.dict  # type: ignore[attr-defined]
    del shelf
    assert store.closed
    assert_file(path, {"key": [1, 2]})


def test_close_closes_the_store_even_if_its_sync_fails(path: Path) -> None:
    shelf = pmshelve.open(path, writeback=True)
    shelf["key"] = [1]
    shelf["key"].append(lambda: None)
    store = shelf.dict  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        shelf.close()
    assert store.closed
    with pytest.raises(ValueError, match="closed"):
        shelf["key"]
    assert_file(path, {"key": [1]})


def test_two_shelves_see_each_other(path: Path) -> None:
    with pmshelve.open(path) as one, pmshelve.open(path) as two:
        one["key"] = [1]
        assert two["key"] == [1]
        two["key"] = [2]
        assert one["key"] == [2]
        del one["key"]
        assert len(two) == 0


def test_reorganize_gives_space_back(path: Path) -> None:
    with pmshelve.open(path, writeback=True) as shelf:
        for _ in range(3):
            shelf["key"] = "x" * 100_000
        del shelf["key"]
        shelf["list"] = [1]
        shelf["list"].append(2)
        before = path.stat().st_size
        shelf.reorganize()  # type: ignore[attr-defined]
        assert path.stat().st_size < before
        assert_file(path, {"list": [1, 2]})


# Writeback --------------------------------------------------------------------------------------


def test_writeback_keeps_changes_in_place(path: Path) -> None:
    with pmshelve.open(path, writeback=True) as shelf:
        shelf["key"] = [1]
        shelf["array"] = np.zeros(3)
        assert shelf["key"] is shelf["key"]
        shelf["key"].append(2)
    with pmshelve.open(path, writeback=True) as shelf:
        shelf["key"].append(3)
        shelf["array"][1] = 1
        shelf.sync()
        assert shelf.cache == {}  # type: ignore[attr-defined]
        assert_file(path, {"key": [1, 2, 3], "array": np.array([0.0, 1.0, 0.0])})
        shelf["key"].append(4)
        del shelf["array"]
    assert_file(path, {"key": [1, 2, 3, 4]})


def test_without_writeback_changes_in_place_are_lost(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        shelf["key"] = [1]
        shelf["key"].append(2)
        assert shelf["key"] == [1]


def test_what_was_remembered_is_served_after_writeback_was_switched_off(path: Path) -> None:
    shelf: Any
    with pmshelve.open(path, writeback=True) as shelf:
        shelf["a"], shelf["b"] = [1], [1]
        shelf["a"].append(2)
        del shelf.cache["b"]
        shelf.writeback = False
        assert shelf["a"] == [1, 2]
        shelf["b"].append(2)
        assert shelf["b"] == [1]


def test_writeback_writes_at_once_too(path: Path) -> None:
    with pmshelve.open(path, writeback=True) as shelf:
        shelf["key"] = [1]
        assert_file(path, {"key": [1]})


def test_a_sync_that_fails_changes_nothing_and_forgets_nothing(path: Path) -> None:
    with pmshelve.open(path, writeback=True) as shelf:
        shelf["a"], shelf["b"] = [1], [1]
        shelf["a"].append(2)
        shelf["b"].append(lambda: None)
        with pytest.raises(TypeError):
            shelf.sync()
        assert_file(path, {"a": [1], "b": [1]})
        assert shelf.writeback  # type: ignore[attr-defined]
        shelf["b"].pop()
    assert_file(path, {"a": [1, 2], "b": [1]})


def test_clear_forgets_what_was_remembered(path: Path) -> None:
    with pmshelve.open(path, writeback=True) as shelf:
        shelf["key"] = [1]
        shelf.clear()
        assert list(shelf) == []
    assert_file(path, {})


# Batches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("writeback", [False, True])
def test_a_batch_is_one_change_or_none(path: Path, writeback: bool) -> None:
    shelf: Any
    with pmshelve.open(path, writeback=writeback) as shelf, pmshelve.open(path, "r") as other:
        shelf["gone"] = [0]
        with shelf.batch():
            shelf["a"] = [1]
            del shelf["gone"]
            assert list(shelf) == ["a"]
            assert other["gone"] == [0]
            assert stock_load(path) == {"gone": [0]}
        assert dict(other) == stock_load(path) == {"a": [1]}
        with pytest.raises(RuntimeError), shelf.batch():
            shelf["a"] = [2]
            shelf["b"] = [3]
            raise RuntimeError
        assert dict(shelf) == dict(other) == {"a": [1]}
    assert_file(path, {"a": [1]})


def test_an_update_is_one_change_or_none(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        shelf.update({"a": 1}, b=2)
        shelf.update([("c", 3)])
        with pytest.raises(TypeError):
            shelf.update([("a", 10), ("d", lambda: None)])
        assert dict(shelf) == {"a": 1, "b": 2, "c": 3}


# The other door ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("_registered")
def test_a_shelf_of_the_standard_library_is_served(path: Path) -> None:
    with shelve.open(str(path)) as shelf:
        shelf.update(VALUES)
    before = path.read_bytes()
    with pmshelve.open(path, "r") as shelf:
        assert isinstance(shelf, ClassicShelf)
        assert list(shelf) == list(VALUES)
        for key, value in VALUES.items():
            assert_same(shelf[key], value)
        with pytest.raises(OSError, match="reading only"):
            shelf["key"] = 1
    assert path.read_bytes() == before
    with pmshelve.open(path) as shelf:
        shelf["new"] = [1]
        shelf.update(newer=2)
        del shelf["text"]
    with shelve.open(str(path)) as shelf:
        assert shelf["new"] == [1]
        assert shelf["newer"] == 2
        assert "text" not in shelf
        assert_same(shelf["array"], VALUES["array"])


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_the_standard_library_refuses_our_shelf_by_naming_its_door(path: Path, flag: str) -> None:
    with pmshelve.open(path) as shelf:
        shelf["key"] = [1]
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"pmshelve\.open"), shelve.open(str(path), flag):  # type: ignore[arg-type]
        pass
    assert path.read_bytes() == before


def test_a_dbm_file_of_other_bytes_is_served_for_what_it_is(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        db["key"] = b"no pickle"
    with pmshelve.open(path) as shelf, pytest.raises(pickle.UnpicklingError):
        shelf["key"]


def test_an_empty_file_is_anybodys(path: Path) -> None:
    our_dbm.open(path, "c").close()
    with pmshelve.open(path) as shelf:
        assert isinstance(shelf, NativeShelf)
    with our_dbm.open(path, "w") as db:
        db["key"] = pickle.dumps([1])
    with pmshelve.open(path) as shelf:
        assert isinstance(shelf, ClassicShelf)
        assert shelf["key"] == [1]
    with pmshelve.open(path, "n") as shelf:
        assert isinstance(shelf, NativeShelf)


def test_a_classic_shelf_refuses_pickles_too(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        db["key"] = pickle.dumps([1])
    with pmshelve.open(path, allow_pickle=False) as shelf:
        assert list(shelf) == ["key"]
        with pytest.raises(PickleRefusedError, match="allow_pickle"):
            shelf["key"]


@pytest.mark.usefixtures("_registered")
def test_a_classic_shelf_has_batches_and_writeback(path: Path) -> None:
    with shelve.open(str(path)) as shelf:
        shelf["key"] = [1]
    classic: Any
    with pmshelve.open(path, writeback=True) as classic, our_dbm.open(path) as db:
        with pytest.raises(RuntimeError), classic.batch():
            classic["new"] = 1
            raise RuntimeError
        assert db.keys() == [b"key"]
        classic["key"].append(2)
        classic.reorganize()
        assert pickle.loads(db["key"]) == [1, 2]
        classic.clear()
        assert db.keys() == []


# Serializers ------------------------------------------------------------------------------------


def upper(value: str, protocol: int) -> bytes:
    return b"%d:" % protocol + value.upper().encode()


def lower(data: bytes) -> str:
    return data.decode().lower()


def test_serializers_of_newer_pythons(path: Path) -> None:
    with pmshelve.open(path, protocol=3, serializer=upper, deserializer=lower) as shelf:
        shelf["key"] = "Value"
        assert shelf["key"] == "3:value"
    with our_dbm.open(path) as db:
        assert db.items() == [(b"key", b"3:VALUE")]
    with pmshelve.open(path, "r", serializer=upper, deserializer=lower) as shelf:
        assert dict(shelf) == {"key": "3:value"}


@pytest.mark.parametrize("data", ["text", bytearray(b"text"), memoryview(b"text"),
                                  array.array("B", b"text")], ids=lambda data: type(data).__name__)  # fmt: skip
def test_a_serializer_may_return_anything_like_bytes(path: Path, data: Any) -> None:
    with pmshelve.open(path, serializer=lambda *_: data, deserializer=bytes) as shelf:
        shelf["key"] = None
        assert shelf["key"] == b"text"


@pytest.mark.parametrize("given", [{"serializer": upper}, {"deserializer": lower}])
def test_serializer_and_deserializer_go_together(path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ShelveError):
        pmshelve.open(path, **given)
    with pytest.raises(ShelveError):
        ClassicShelf({}, **given)
    assert not path.exists()


def test_shelve_error_is_the_standard_librarys_where_it_has_one() -> None:
    assert getattr(shelve, "ShelveError", ShelveError) is ShelveError
    assert issubclass(ShelveError, Exception)


def test_a_serializer_on_a_file_of_native_values_is_refused(path: Path) -> None:
    with pmshelve.open(path) as shelf:
        shelf["key"] = "value"
    with pytest.raises(WrongDoorError):
        pmshelve.open(path, serializer=upper, deserializer=lower)
    assert_file(path, {"key": "value"})


def test_a_classic_shelf_goes_over_any_mapping() -> None:
    data: dict[bytes, bytes] = {}
    with ClassicShelf(data, keyencoding="latin-1", serializer=upper, deserializer=lower) as shelf:
        shelf["Größe"] = "A"
        shelf.update(b="B")
        shelf.reorganize()
        assert dict(shelf) == {
            "Größe": f"{pickle.DEFAULT_PROTOCOL}:a",
            "b": f"{pickle.DEFAULT_PROTOCOL}:b",
        }
    assert "Größe".encode("latin-1") in data
    with pytest.raises(ValueError, match="closed"):
        len(shelf)


def test_a_shelf_that_was_never_made_is_dropped_quietly(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ShelveError):
        ClassicShelf({}, serializer=upper)
    shelf = NativeShelf.__new__(NativeShelf)
    del shelf
    assert not recwarn.list


def test_the_store_opens_our_shelf_and_we_open_the_store(path: Path) -> None:
    with mmapdict(path) as store:
        store["key"] = [1]
    with pmshelve.open(path) as shelf:
        shelf["key2"] = [2]
    with mmapdict(path, True) as store:
        assert dict(store) == {"key": [1], "key2": [2]}
