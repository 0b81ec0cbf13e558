"""Opening an mmapdict: names, modes, read-only, faces, and what is not a store."""

from __future__ import annotations

import errno
import io
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import (
    NotAStoreError,
    PickleRefusedError,
    PmshelveError,
    ReadOnlyError,
    StorageError,
    WrongDoorError,
)
from pmshelve.mmapdict import mmapdict
from pmshelve.storage import file as file_layer
from tests.support.processes import run_isolated
from tests.support.stores import assert_content, assert_sound, fixture
from tests.support.values import assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


class Named:
    """A path-like whose path is bytes."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return self.path


# Names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [str, os.fsencode, Path, lambda path: Named(os.fsencode(path))],
    ids=["str", "bytes", "path-like", "path-like of bytes"],
)  # fmt: skip
def test_every_form_of_a_name_opens_the_same_file(path: Path, form: Callable[[Path], Any]) -> None:
    with mmapdict(form(path)) as store:
        store["a"] = 1
        assert store.path == str(path)
    with mmapdict(form(path), True) as store:
        assert dict(store) == {"a": 1}
    assert os.listdir(path.parent) == [path.name]


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe"
    try:
        with mmapdict(name) as store:
            store["a"] = 1
            store["a"] = 2
            store.vacuum()
    except OSError as error:  # a file system may refuse such names
        assert error.errno == errno.EILSEQ  # noqa: PT017
    else:
        assert os.listdir(os.fsencode(tmp_path)) == [b"\xff\xfe"]


def test_relative_name_means_the_directory_at_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with mmapdict("store") as store:
        store["a"] = 1
        store["a"] = 2
        monkeypatch.chdir(tmp_path / "there")
        store.vacuum()
        again = pickle.loads(pickle.dumps(store))
        assert_content(again, {"a": 2})
        again.close()
        assert store.path == str(tmp_path / "here" / "store")
    assert os.listdir(tmp_path / "there") == []
    assert os.listdir(tmp_path / "here") == ["store"]


@pytest.mark.parametrize("bad", [None, 3, 1.5, ["name"], object()])
def test_what_is_no_name_and_no_file_is_type_error(bad: Any) -> None:
    with pytest.raises(TypeError):
        mmapdict(bad)


def test_arguments_stand_in_the_order_of_the_reference(path: Path) -> None:
    from pmshelve.mmapdict.picklers import GenericPickler

    with mmapdict(path, False, [GenericPickler]) as store:
        assert [type(pickler) for pickler in store._picklers] == [GenericPickler]
    with mmapdict(file=path, readonly=True, picklers=None) as store:
        assert not store.writable


# Missing files and directories ------------------------------------------------------------------


def test_missing_file_is_created(path: Path) -> None:
    with mmapdict(path) as store:
        assert store.writable is True
        assert store.readonly is False
    assert_content(pickle.loads(path.read_bytes()), {})


def test_missing_file_read_only_is_not_created(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        mmapdict(path, readonly=True)
    assert caught.value.filename == str(path)
    assert caught.value.errno == errno.ENOENT
    assert not path.exists()


def test_missing_directory_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mmapdict(tmp_path / "missing" / "store")


def test_directory_is_refused_as_a_directory(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        mmapdict(tmp_path)
    with pytest.raises((IsADirectoryError, ValueError)):
        mmapdict(tmp_path, readonly=True)


@pytest.mark.parametrize("readonly", [True, False])
def test_fifo_is_refused_at_once(tmp_path: Path, readonly: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    # In another process, and with a time limit: opening a FIFO can wait for ever.
    out = run_isolated(
        """
import sys
from pmshelve.mmapdict import mmapdict
try:
    mmapdict(sys.argv[1], sys.argv[2] == "True")
except (OSError, ValueError):
    print("refused")
""",
        tmp_path / "fifo",
        readonly,
        block=(),
        flags=(),
        timeout=10,
    )
    assert out.split() == [b"refused"]


@pytest.mark.parametrize(("mode", "mask", "expected"), [
    (0o666, 0o022, 0o644), (0o666, 0o077, 0o600), (0o640, 0o000, 0o640), (0o600, 0o022, 0o600),
])  # fmt: skip
def test_mode_of_a_new_file_is_under_the_umask(
    path: Path, mode: int, mask: int, expected: int
) -> None:
    old = os.umask(mask)
    try:
        with mmapdict(path, mode=mode) as store:
            store["a"] = 1
            store["a"] = 2
            store.vacuum()
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == expected


def test_opening_again_changes_no_byte(path: Path) -> None:
    with mmapdict(path) as store:
        store.update(a=1, b=np.arange(10))
    before = path.read_bytes()
    for options in ({}, {"readonly": True}, {"mmap_mode": "c"}):
        with mmapdict(path, **options) as store:
            assert store["a"] == 1
            assert len(store) == 2
    after = path.read_bytes()
    assert len(after) == len(before)
    assert_content(pickle.loads(after), {"a": 1, "b": np.arange(10)})


# Read-only --------------------------------------------------------------------------------------


def _changes() -> dict[str, Callable[[Any], Any]]:
    return {
        "set": lambda store: store.__setitem__("a", 2),
        "set new": lambda store: store.__setitem__("new", 2),
        "delete": lambda store: store.__delitem__("a"),
        "pop": lambda store: store.pop("a"),
        "popitem": lambda store: store.popitem(),
        "setdefault": lambda store: store.setdefault("new", 1),
        "update": lambda store: store.update(a=5),
        "clear": lambda store: store.clear(),
        "vacuum": lambda store: store.vacuum(),
        "fsck": lambda store: store.fsck(),
        "commit_number": lambda store: setattr(store, "commit_number", 7),
        "batch": lambda store: store.batch().__enter__().__setitem__("a", 2),
    }


@pytest.mark.parametrize("name", _changes())
def test_change_of_a_read_only_store_is_unsupported(path: Path, name: str) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
        store["dead"] = 1
        del store["dead"]
    before = path.read_bytes()
    with mmapdict(path, readonly=True) as store:
        assert store.writable is False
        assert store.readonly is True
        with pytest.raises(io.UnsupportedOperation) as caught:
            _changes()[name](store)
        assert isinstance(caught.value, ReadOnlyError)
        assert store["a"] == 1
    assert path.read_bytes() == before


def test_reading_writes_nothing(path: Path) -> None:
    with mmapdict(path) as store:
        store.update({str(i): i for i in range(100)})
        store["array"] = np.arange(100)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    before = path.read_bytes(), path.stat().st_mtime_ns, os.listdir(path.parent)
    with mmapdict(path, readonly=True) as store:
        assert len(store) == 101
        assert store["array"].sum() == 4950
        assert list(store.check()) == []
        store.stats()
        store.get("missing")
        dict(store)
        assert isinstance(store.commit_number, int)
    assert (path.read_bytes(), path.stat().st_mtime_ns, os.listdir(path.parent)) == before


def test_read_only_store_follows_the_writer(path: Path) -> None:
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader:
        for number in range(200):
            store[str(number % 7)] = number
            assert reader[str(number % 7)] == number
        del store["0"]
        assert "0" not in reader
        assert_content(reader, dict(store))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_file_opens_read_only_alone(path: Path) -> None:
    mmapdict(path).close()
    path.chmod(0o444)
    with mmapdict(path, readonly=True) as store:
        assert dict(store) == {}
    with pytest.raises(PermissionError):
        mmapdict(path)


# Files that are no stores -----------------------------------------------------------------------


def _refused() -> dict[str, bytes]:
    return {
        "list pickle": pickle.dumps([1, 2]),
        "list pickle 2": pickle.dumps([1, 2], 2),
        "text": b"hello world\n" * 50,
        "one byte": b"x",
        "zeros": bytes(1000),
        "random": bytes((i * 7919 + i // 3 * 104729) % 251 for i in range(5000)),
        "cut dict pickle": pickle.dumps({"a": 1, "b": "text"})[:-3],
        "dict with int keys": pickle.dumps({1: 2, "a": 3}),
        "missing module": b"cno_such_module_here\nThing\n.",
        "raises": b"cbuiltins\nint\n(X\x01\x00\x00\x00xtR.",
        "header of another version": (b"\x80\x04\x95\x0d\0\0\0\0\0\0\0J\x02\0\0\x000J\0\0\0\x000("
                                      b"\x95\x02\0\0\0\0\0\0\0d."),
        "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<i8'}",
        "sqlite": b"SQLite format 3\0" + bytes(4080),
    }  # fmt: skip


@pytest.mark.parametrize("name", _refused())
def test_what_is_no_store_is_value_error_and_untouched(path: Path, name: str) -> None:
    path.write_bytes(_refused()[name])
    os.utime(path, (1_000_000_000, 1_000_000_000))
    for options in ({}, {"readonly": True}, {"allow_pickle": False}, {"exclusive": True}):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            mmapdict(path, **options)
        assert isinstance(caught.value, PmshelveError)
        assert path.read_bytes() == _refused()[name]
        assert path.stat().st_mtime == 1_000_000_000
        assert os.listdir(path.parent) == [path.name]


def test_refusal_names_the_file(path: Path) -> None:
    path.write_bytes(b"hello")
    with pytest.raises(NotAStoreError) as caught:
        mmapdict(path)
    assert str(path) in str(caught.value)


def test_empty_file_becomes_a_store(path: Path) -> None:
    path.touch()
    with mmapdict(path) as store:
        store["a"] = 1
        assert_sound(store, {"a": 1})


def test_empty_file_read_only_is_empty_or_refused_and_untouched(path: Path) -> None:
    path.touch()
    try:
        with mmapdict(path, readonly=True) as store:
            assert dict(store) == {}
            with mmapdict(path) as writer:
                writer["a"] = 1
            assert dict(store) == {"a": 1}
    except ValueError:
        assert path.read_bytes() == b""


# Conversion -------------------------------------------------------------------------------------

_old_names = pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ordinary_pickled_dict_is_converted(path: Path, protocol: int) -> None:
    content = {"a": 1, "é": (1, 2, 3), "c": "test", "n": np.arange(3), "k" * 300: {"x": [None]}}
    path.write_bytes(pickle.dumps(content, protocol))
    with mmapdict(path) as store:
        assert_sound(store, content)
        assert isinstance(store["n"], np.memmap)
    with mmapdict(path, readonly=True) as store:
        assert_content(store, content)
    assert os.listdir(path.parent) == [path.name]


@_old_names
def test_ordinary_pickles_of_the_fixtures_are_converted(tmp_path: Path) -> None:
    contents = {
        "plain-dict-protocol2.pickle": {"a": 1, "b": (1, 2, 3), "c": "test"},
        "plain-dict-protocol4.pickle": {"a": 1, "b": np.arange(3)},
    }
    for name, content in contents.items():
        path = fixture(name, tmp_path)
        with mmapdict(path) as store:
            assert_sound(store, content)
            store["new"] = 1
            assert_sound(store, {**content, "new": 1})


def test_empty_pickled_dict_is_converted(path: Path) -> None:
    path.write_bytes(pickle.dumps({}))
    with mmapdict(path) as store:
        assert_sound(store, {})


def test_conversion_keeps_the_mode_of_the_file(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))
    path.chmod(0o640)
    mmapdict(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("options", [{"readonly": True}, {"allow_pickle": False}])
def test_conversion_is_refused_where_it_may_not_be_done(
    path: Path, options: dict[str, bool]
) -> None:
    before = pickle.dumps({"a": 1})
    path.write_bytes(before)
    with pytest.raises((ValueError, TypeError)) as caught:
        mmapdict(path, **options)
    assert isinstance(caught.value, PmshelveError)
    assert path.read_bytes() == before


def test_value_that_cannot_be_converted_leaves_the_file(path: Path) -> None:
    # A range iterator's pickle loads, and dumps again; a module function that is gone does not.
    before = pickle.dumps({"a": 1, "b": {"bad": Path("x")}}).replace(b"PosixPath", b"PosixGone")
    path.write_bytes(before)
    with pytest.raises(ValueError):  # noqa: PT011
        mmapdict(path)
    assert path.read_bytes() == before


# allow_pickle -----------------------------------------------------------------------------------


class _Trap:
    """Unpickling it is noticed."""

    sprung = 0

    def __reduce__(self) -> Any:
        return _spring, ()


def _spring() -> str:
    _Trap.sprung += 1
    return "sprung"


@pytest.fixture
def trapped(path: Path) -> Iterator[Path]:
    with mmapdict(path) as store:
        store["trap"] = _Trap()
        store["trap with array"] = [_Trap(), np.arange(10_000)]
        store["plain"] = b"bytes"
        store["array"] = np.arange(5)
        store["dead trap"] = _Trap()
        del store["dead trap"]
    _Trap.sprung = 0
    yield path
    _Trap.sprung = 0


def test_looking_at_a_store_unpickles_nothing(trapped: Path) -> None:
    with mmapdict(trapped) as store:
        assert list(store) == ["trap", "trap with array", "plain", "array"]
        assert len(store) == 4
        assert "trap" in store
        assert store["plain"] == b"bytes"
        assert store["array"].sum() == 10
        assert list(store.check()) == []
        assert store.fsck() is True
        store.stats()
        del store["plain"]
        store.vacuum()
        assert _Trap.sprung == 0
        assert store["trap"] == "sprung"
        assert _Trap.sprung == 1


def test_strangers_file_serves_data_and_refuses_pickles(trapped: Path) -> None:
    with mmapdict(trapped, allow_pickle=False) as store:
        for name in ("trap", "trap with array"):
            with pytest.raises(PickleRefusedError) as caught:
                store[name]
            assert isinstance(caught.value, TypeError)
            assert name in str(caught.value)
        assert store["plain"] == b"bytes"
        assert_same(np.asarray(store["array"]), np.arange(5))
        assert list(store.check()) == []
    assert _Trap.sprung == 0


def test_without_pickles_every_plain_value_and_array_is_served(path: Path) -> None:
    from tests.support.values import arrays, masked_arrays, scalars

    content = {**scalars(), **arrays(), **masked_arrays()}
    with mmapdict(path) as store:
        store.update(content)
    with mmapdict(path, readonly=True, allow_pickle=False) as store:
        assert_content(store, content)


# Faces ------------------------------------------------------------------------------------------


def test_new_store_is_native(path: Path) -> None:
    with mmapdict(path) as store:
        assert store.face == "native"


@pytest.mark.parametrize(("made", "asked"), [("native", "bytes"), ("bytes", "native")])
def test_each_face_refuses_the_others_content(path: Path, made: str, asked: str) -> None:
    with mmapdict(path, face=made) as store:
        assert store.face == made
        store["a"] = b"1"
    before = path.read_bytes()
    for readonly in (True, False):
        with pytest.raises(WrongDoorError) as caught:
            mmapdict(path, readonly, face=asked)
        assert made in str(caught.value)
    assert path.read_bytes() == before
    with mmapdict(path, face=made) as store:
        assert store["a"] == b"1"
    with mmapdict(path) as store:
        assert store.face == made


@pytest.mark.parametrize(("made", "asked"), [("native", "bytes"), ("bytes", "native")])
def test_empty_store_takes_the_face_it_is_opened_with(path: Path, made: str, asked: str) -> None:
    mmapdict(path, face=made).close()
    with mmapdict(path, face=asked) as store:
        assert store.face == asked
        store["a"] = b"1"
    with pytest.raises(WrongDoorError):
        mmapdict(path, face=made)


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"mmap_mode": "w"}, {"mmap_mode": "x"}, {"face": "other"}, {"timeout": -1.0}],
    ids=repr,
)
def test_bad_argument_is_value_error_before_anything_is_made(
    path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        mmapdict(path, **options)
    assert not path.exists()


def test_import_and_use_without_numpy(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["dead"] = np.arange(10)
        del store["dead"]
        store["array"] = np.arange(3)
        store["masked"] = np.ma.zeros(2)
    out = run_isolated(
        """
import sys
import pmshelve, pmshelve.mmapdict
from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.picklers import BasePickler, GenericPickler
with mmapdict(sys.argv[1]) as store:
    assert list(store) == ["array", "masked"], list(store)
    store["a"] = {"b": [1, 2.5]}
    store["c"] = b"x" * 100_000
    store["buffers"] = bytearray(100_000)
    store["a"] = "replaced"
    with store.batch():
        store["d"] = None
        del store["c"]
    assert dict((k, store[k]) for k in "ad") == {"a": "replaced", "d": None}
    assert len(store["buffers"]) == 100_000
    assert list(store.check()) == [] and store.fsck()
    store.vacuum()
    assert list(store) == ["array", "masked", "buffers", "a", "d"], list(store)
    try:
        store["array"]
    except ImportError:
        print("refused")
    del store["array"], store["masked"]
    store.vacuum()
assert "numpy" not in sys.modules
""",
        path,
        block=("numpy",),
        flags=(),
    )
    assert out.split() == [b"refused"]
    with mmapdict(path) as store:
        assert_sound(store, {"buffers": bytearray(100_000), "a": "replaced", "d": None})


# Creating, down to the disk ---------------------------------------------------------------------


def test_creation_syncs_the_name_and_then_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    other = tmp_path / "other"
    synced: list[tuple[int, int]] = []

    def sync(fd: int) -> None:
        synced.append((os.fstat(fd).st_ino, path.stat().st_size))

    monkeypatch.setattr(file_layer.system, "fsync", sync)
    monkeypatch.setattr(file_layer.system, "fdatasync", sync)
    with mmapdict(path):
        size = path.stat().st_size
    assert synced == [(tmp_path.stat().st_ino, 0), (path.stat().st_ino, size)]
    with mmapdict(path):
        pass
    with other.open("w+b") as stream, mmapdict(stream):
        pass
    assert synced[2:] == [(other.stat().st_ino, size)]


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
def test_creation_that_cannot_be_synced_leaves_an_empty_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "store"

    def refuse(_fd: int) -> None:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as context:
        context.setattr(file_layer.system, call, refuse)
        with pytest.raises(StorageError) as caught:
            mmapdict(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert path.read_bytes() == b""
    with mmapdict(path) as store:
        store["a"] = 1
