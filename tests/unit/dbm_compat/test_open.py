"""`open` of both dbm modules: names, flags, modes, and what it refuses."""

from __future__ import annotations

import errno
import os
import pickle
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pmshelve
from pmshelve.dbm_compat import mmapdict as over_mmapdict
from pmshelve.dbm_compat import pmemobj as over_pool
from pmshelve.dbm_compat.mmapdict import parse_flag

root_only_reads = pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture(params=[over_mmapdict, over_pool], ids=["mmapdict", "pmemobj"])
def our_dbm(request: pytest.FixtureRequest) -> Any:
    return request.param


def backend_of(our_dbm: ModuleType) -> str:
    return our_dbm.__name__.rpartition(".")[2]


class Named:
    """A path-like whose path is bytes."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return self.path


def fill(our_dbm: Any, path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        db["key"] = b"value"


# Names, modes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, os.fsencode, Path, lambda path: Named(os.fsencode(path))],
                         ids=["str", "bytes", "path-like", "path-like of bytes"])  # fmt: skip
@pytest.mark.parametrize("flag", ["c", "n"])
def test_one_file_of_exactly_the_given_name(
    our_dbm: Any, path: Path, flag: str, form: Callable[[Path], Any]
) -> None:
    with our_dbm.open(form(path), flag) as db:
        db["key"] = b"value"
        assert os.listdir(path.parent) == [path.name]
    assert os.listdir(path.parent) == [path.name]
    with our_dbm.open(path) as db:
        assert db.items() == [(b"key", b"value")]


def test_a_name_that_is_not_ascii(our_dbm: Any, tmp_path: Path) -> None:
    path = tmp_path / "Größe\udcff"
    fill(our_dbm, path)
    with our_dbm.open(path) as db:
        assert db.keys() == [b"key"]


@pytest.mark.parametrize("name", [3, None, 1.5])
def test_a_name_must_be_a_name(our_dbm: Any, name: Any) -> None:
    with pytest.raises(TypeError):
        our_dbm.open(name, "c")


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o026)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("flag", ["c", "n"])
def test_the_mode_of_a_new_file_is_under_the_umask(our_dbm: Any, path: Path, flag: str) -> None:
    our_dbm.open(path, flag, 0o637).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o611
    our_dbm.open(path, flag, 0o600).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o611  # it was there


# Flags ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["", "x", "rx", "fr", "rr", "rw", None, 1, b"r", "R"])
def test_any_other_flag_is_a_value_error(our_dbm: Any, path: Path, flag: Any) -> None:
    with pytest.raises(ValueError, match=r"Flag must be one of 'r', 'w', 'c', or 'n'"):
        our_dbm.open(path, flag)
    assert not path.exists()


@pytest.mark.parametrize("suffix", ["", "f", "s", "u", "fsu", "us"])
@pytest.mark.parametrize("letter", ["n", "c", "w", "r"])
def test_every_documented_flag_opens(our_dbm: Any, path: Path, letter: str, suffix: str) -> None:
    fill(our_dbm, path)
    with our_dbm.open(path, letter + suffix) as db:
        assert db.keys() == ([] if letter == "n" else [b"key"])
    assert parse_flag(letter + suffix) == (letter, "s" in suffix)
    assert set(letter + suffix) <= set(our_dbm.open_flags)


def test_s_puts_every_change_on_the_disk(
    our_dbm: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.storage import file

    calls: list[int] = []
    sync = file.system.fdatasync
    monkeypatch.setattr(file.system, "fdatasync", lambda fd: (calls.append(fd), sync(fd)))
    with our_dbm.open(path, "c") as db:
        calls.clear()  # creating a file does sync
        db["a"] = b"1"
        assert not calls
        db.sync()
        assert calls
    with our_dbm.open(path, "cs") as db:
        for _ in range(3):
            calls.clear()
            db["a"] = b"1"
            assert calls


@pytest.mark.parametrize("flag", ["r", "w"])
def test_a_missing_file_is_not_found_by_its_name(our_dbm: Any, path: Path, flag: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        our_dbm.open(str(path), flag)
    assert caught.value.filename == str(path)
    assert caught.value.errno == errno.ENOENT
    assert isinstance(caught.value, our_dbm.error)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        our_dbm.open(path / "below", "c")


def test_r_is_the_default(our_dbm: Any, path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        our_dbm.open(path)
    fill(our_dbm, path)
    with our_dbm.open(path) as db, pytest.raises(our_dbm.error, match="reading only"):
        db["key"] = b""


@pytest.mark.parametrize("content", [b"", b"GDBM of old", pickle.dumps({"a": 1})])
def test_n_replaces_whatever_file_there_was(our_dbm: Any, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = path.stat().st_ino
    with path.open("rb") as old:
        with our_dbm.open(path, "n") as db:
            assert db.keys() == []
            db["key"] = b"value"
        if content:
            assert path.stat().st_ino != before
            assert old.read() == content
    assert os.listdir(path.parent) == [path.name]
    with our_dbm.open(path) as db:
        assert db.items() == [(b"key", b"value")]


def test_n_replaces_the_file_a_link_leads_to(our_dbm: Any, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"something else")
    path.symlink_to(target)
    our_dbm.open(path, "n").close()
    assert path.is_symlink()
    assert our_dbm.recognizes(target)


def test_n_replaces_no_device(our_dbm: Any) -> None:
    with pytest.raises(our_dbm.error):
        our_dbm.open("/dev/null", "n")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_n_that_fails_leaves_the_file_and_nothing_else(
    our_dbm: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.storage import file

    def fail(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    path.write_bytes(b"something else")
    monkeypatch.setattr(file.system, "rename", fail)
    with pytest.raises(our_dbm.error):
        our_dbm.open(path, "n")
    assert os.listdir(path.parent) == [path.name]
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize("flag", ["c", "n"])
def test_an_empty_file_becomes_a_database(our_dbm: Any, path: Path, flag: str) -> None:
    path.touch()
    fill(our_dbm, path)
    assert our_dbm.recognizes(path)


# What it refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["r", "w", "c"])
@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"a": b"1"}), pickle.dumps({"a": b"1"}, 2), pickle.dumps([1]), b"rubbish" * 99],
    ids=["pickled dict", "old pickled dict", "pickled list", "rubbish"],
)
def test_another_file_is_refused_and_left_as_it_was(
    our_dbm: Any, path: Path, content: bytes, flag: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(our_dbm.error):
        our_dbm.open(path, flag)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_file_of_python_values_is_refused_by_naming_its_door(
    our_dbm: Any, path: Path, flag: str
) -> None:
    with pmshelve.open(path, backend=backend_of(our_dbm)) as shelf:
        shelf["key"] = [1]
    before = path.read_bytes()
    with pytest.raises(our_dbm.error, match=r"pmshelve\.open"):
        our_dbm.open(path, flag)
    assert path.read_bytes() == before
    with our_dbm.open(path, "n") as db:
        db["key"] = b"value"
    with our_dbm.open(path) as db:
        assert db.items() == [(b"key", b"value")]


def test_an_empty_file_of_python_values_changes_its_face(our_dbm: Any, path: Path) -> None:
    pmshelve.open(path, backend=backend_of(our_dbm)).close()
    fill(our_dbm, path)
    with our_dbm.open(path) as db:
        assert db["key"] == b"value"


@root_only_reads
def test_a_file_that_may_not_be_written_can_be_read_only(our_dbm: Any, path: Path) -> None:
    fill(our_dbm, path)
    path.chmod(0o400)
    for flag in "wcn":
        with pytest.raises(PermissionError):
            our_dbm.open(path, flag)
    with our_dbm.open(path) as db:
        assert db["key"] == b"value"


def test_reading_writes_nothing_at_all(our_dbm: Any, path: Path) -> None:
    fill(our_dbm, path)
    os.utime(path, ns=(1, 1))
    before = path.read_bytes()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        with our_dbm.open(path, "r") as db:
            assert db.items() == [(b"key", b"value")]
            assert os.listdir(path.parent) == [path.name]
            db.sync()
    finally:
        path.parent.chmod(0o700)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == 1


# Several at once --------------------------------------------------------------------------------


def test_space_of_replaced_values_is_given_back_by_itself(our_dbm: Any, path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        for _ in range(200):
            db["key"] = bytes(100_000)
        assert path.stat().st_size < 10_000_000
