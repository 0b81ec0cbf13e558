"""An mmapdict over a file object that the caller opened and goes on using."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from pmshelve.mmapdict import EmptyNDArray, mmapdict
from tests.support.stores import assert_content, stock_load
from tests.support.values import all_values, assert_same


@pytest.fixture
def file() -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        yield file


def test_nameless_file_holds_a_store(file: BinaryIO) -> None:
    store = mmapdict(file)
    content = all_values()
    content.pop("type")
    for key, value in content.items():
        store[key] = value
    assert_content(store, content)
    assert_content(stock_load(file), content)
    assert list(store.check()) == []
    assert_content(mmapdict(file), content)


@pytest.mark.parametrize("buffering", [-1, 0])
def test_named_file_object(tmp_path: Path, buffering: int) -> None:
    path = tmp_path / "store"
    with open(path, "wb+", buffering=buffering) as file:
        store = mmapdict(file)
        assert store.writable
        store["a"] = np.arange(5)
        with mmapdict(path) as other:
            assert_content(other, {"a": np.arange(5)})
            other["b"] = 1
        assert store["b"] == 1


def test_temporary_file_wrapper(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        store = mmapdict(file)
        store["a"] = 1
        with mmapdict(file.name, readonly=True) as other:
            assert other["a"] == 1


def test_closing_the_store_leaves_the_file_open(file: BinaryIO) -> None:
    store = mmapdict(file)
    store["a"] = 1
    store.close()
    assert store.closed
    assert not file.closed
    assert stock_load(file) == {"a": 1}
    assert mmapdict(file)["a"] == 1


def test_dropping_the_store_leaves_the_file_open(file: BinaryIO) -> None:
    store = mmapdict(file)
    store["a"] = 1
    del store
    assert not file.closed
    assert stock_load(file) == {"a": 1}


# Position and buffers ---------------------------------------------------------------------------


def _calls() -> dict[str, Callable[[Any], Any]]:
    def batch(store: Any) -> None:
        with store.batch():
            store["x"] = 1
            del store["x"]

    return {
        "set": lambda store: store.__setitem__("a", 2),
        "set new": lambda store: store.__setitem__("new", [2]),
        "set array": lambda store: store.__setitem__("array", np.arange(5000)),
        "set large": lambda store: store.__setitem__("large", bytes(300_000)),
        "set empty array": lambda store: store.__setitem__("empty", EmptyNDArray((1000,))),
        "get": lambda store: store["list"],
        "get array": lambda store: store["array"],
        "get missing": lambda store: store.get("missing"),
        "contains": lambda store: "a" in store,
        "len": len,
        "iterate": list,
        "keys": lambda store: set(store.keys()),
        "items": lambda store: list(store.items()),
        "delete": lambda store: store.__delitem__("a"),
        "pop": lambda store: store.pop("list"),
        "update": lambda store: store.update(a=1, b=2),
        "setdefault": lambda store: store.setdefault("s", 1),
        "batch": batch,
        "clear": lambda store: store.clear(),
        "sync": lambda store: store.sync(),
        "vacuum": lambda store: store.vacuum(),
        "fsck": lambda store: store.fsck(),
        "check": lambda store: list(store.check()),
        "stats": lambda store: store.stats(),
        "commit number": lambda store: store.commit_number,
        "set commit number": lambda store: setattr(store, "commit_number", 77),
        "repr": repr,
        "close": lambda store: store.close(),
    }


@pytest.mark.parametrize("position", [0, 5, 10_000_000])
@pytest.mark.parametrize("name", _calls())
def test_every_call_keeps_the_position_of_the_file(
    file: BinaryIO, name: str, position: int
) -> None:
    file.seek(position)
    store = mmapdict(file)
    assert file.tell() == position
    store["a"] = "old"
    store["list"] = [1]
    store["array"] = np.arange(10)
    del store["array"]
    store["array"] = np.arange(10)
    assert file.tell() == position
    _calls()[name](store)
    assert file.tell() == position
    assert os.lseek(file.fileno(), 0, os.SEEK_CUR) >= 0


@pytest.mark.parametrize("name", _calls())
def test_bytes_read_before_a_call_are_not_served_after_it(file: BinaryIO, name: str) -> None:
    store = mmapdict(file)
    store["a"] = "old"
    store["list"] = [1]
    store["array"] = np.arange(10)
    store["dead"] = 1
    del store["dead"]
    file.seek(0)
    file.read(100)  # the file object now holds a buffer of what was
    file.seek(50)
    _calls()[name](store)
    file.seek(0)
    buffered = file.read()
    size = os.fstat(file.fileno()).st_size
    assert buffered == os.pread(file.fileno(), size + 1, 0)
    if not store.closed:
        assert_content(pickle.loads(buffered), dict(store))


def test_stock_load_follows_each_change_without_a_seek_elsewhere(file: BinaryIO) -> None:
    store = mmapdict(file)
    for number in range(30):
        store[str(number % 4)] = number
        file.seek(0)
        assert_content(pickle.load(file), dict(store))


def test_load_straight_after_opening_works_from_position_zero(file: BinaryIO) -> None:
    store = mmapdict(file)
    store["test"] = "abc"
    assert pickle.load(file) == {"test": "abc"}
    assert store["test"] == "abc"


def test_what_the_caller_wrote_and_did_not_flush_is_seen(file: BinaryIO) -> None:
    pickle.dump({"a": 1, "b": [2]}, file)
    position = file.tell()
    store = mmapdict(file)
    assert file.tell() == position
    assert dict(store) == {"a": 1, "b": [2]}
    assert stock_load(file) == {"a": 1, "b": [2]}


@pytest.mark.parametrize("content", [pickle.dumps([1]), b"hello", pickle.dumps({1: 2})])
def test_refused_file_object_is_as_it_was(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    with pytest.raises(ValueError):  # noqa: PT011
        mmapdict(file)
    assert file.tell() == len(content)
    file.seek(0)
    assert file.read() == content


# What a file object must be ---------------------------------------------------------------------

_METHODS = ("fileno", "seek", "read", "write", "writable", "truncate", "tell")


class Wrapper:
    """A file object with some methods missing."""

    def __init__(self, file: BinaryIO, without: str = "") -> None:
        for name in _METHODS:
            if name != without:
                setattr(self, name, getattr(file, name))


def test_object_with_the_needed_methods_is_enough(file: BinaryIO) -> None:
    store = mmapdict(Wrapper(file))
    store["a"] = np.arange(5)
    assert_same(np.asarray(mmapdict(file)["a"]), np.arange(5))


@pytest.mark.parametrize("name", _METHODS)
def test_missing_method_is_type_error_that_names_it(file: BinaryIO, name: str) -> None:
    file.write(b"content")
    with pytest.raises(TypeError, match=name):
        mmapdict(Wrapper(file, without=name))
    file.seek(0)
    assert file.read() == b"content"


def test_file_without_a_descriptor_is_refused() -> None:
    file = io.BytesIO()
    with pytest.raises((TypeError, io.UnsupportedOperation)):
        mmapdict(file)
    assert file.getvalue() == b""


def test_text_file_is_refused_or_works(tmp_path: Path) -> None:
    with open(tmp_path / "text", "w+", encoding="utf-8") as file:
        try:
            store = mmapdict(file)
        except (TypeError, ValueError):
            assert (tmp_path / "text").stat().st_size == 0
        else:
            store["a"] = 1
            assert stock_load(tmp_path / "text") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"store"])
def test_file_in_append_mode_never_corrupts(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "appending"
    if content:
        with mmapdict(path) as store:
            store["a"] = 1
    else:
        path.touch()
    before = path.read_bytes()
    with open(path, "ab+") as file:
        try:
            store = mmapdict(file)
        except (TypeError, ValueError, OSError):
            assert path.read_bytes() == before
        else:
            store["b"] = 2
            store["b"] = 3
            assert_content(store, {"a": 1, "b": 3} if content else {"b": 3})
            assert_content(stock_load(path), dict(store))


def test_write_only_file_is_refused_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file, pytest.raises((TypeError, ValueError, OSError)):
        mmapdict(file)
    assert path.read_bytes() == b""


def test_file_open_for_reading_is_read_only(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = np.arange(3)
    before = path.read_bytes()
    with open(path, "rb") as file:
        store = mmapdict(file)
        assert not store.writable
        assert store.readonly
        assert store["a"].mode == "r"
        with pytest.raises(io.UnsupportedOperation):
            store["b"] = 1
    assert path.read_bytes() == before


def test_readonly_holds_for_a_writable_file_object_too(file: BinaryIO) -> None:
    mmapdict(file)["a"] = 1
    store = mmapdict(file, readonly=True)
    assert not store.writable
    with pytest.raises(io.UnsupportedOperation):
        store["b"] = 1
    assert dict(store) == {"a": 1}


# Space and views --------------------------------------------------------------------------------


def test_vacuum_of_a_file_object_shrinks_that_file(file: BinaryIO) -> None:
    store = mmapdict(file)
    store.update(a=1, b=2, c=3, d=" " * (2 << 20), e=np.arange(100))
    before = os.fstat(file.fileno())
    for key in "bd":
        del store[key]
    content = {"a": 1, "c": 3, "e": np.arange(100)}
    assert_content(stock_load(file), content)
    assert os.fstat(file.fileno()).st_size >= before.st_size
    number = store.commit_number
    store.vacuum()
    after = os.fstat(file.fileno())
    assert after.st_ino == before.st_ino
    assert after.st_size < 10_000
    assert store.commit_number != number
    assert_content(store, content)
    assert_content(stock_load(file), content)
    assert list(store.check()) == []
    assert store["e"].offset % 64 == 0


def test_clear_of_a_file_object(file: BinaryIO) -> None:
    store = mmapdict(file)
    store.update({str(i): np.arange(1000) for i in range(20)})
    store.clear()
    assert_content(stock_load(file), {})
    store["a"] = 1
    assert_content(stock_load(file), {"a": 1})


def test_array_of_a_named_file_object_knows_its_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open(path, "wb+") as file:
        store = mmapdict(file)
        store["a"] = np.arange(5)
        array = store["a"]
        again = np.memmap(path, array.dtype, "r", array.offset, array.shape)
        assert_same(np.asarray(again), np.arange(5))
        array[0] = 9
        assert stock_load(file)["a"][0] == 9
