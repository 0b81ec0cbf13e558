"""How the new file gets its name: in the place of another one, beside other conversions, after kills."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve import pmemobj
from pmshelve.convert import convert
from pmshelve.convert.scratch import Scratch
from pmshelve.errors import LockTimeoutError
from pmshelve.mmapdict import mmapdict
from pmshelve.storage import file as storage
from tests.support.moving import OBJECTS, assert_shelf
from tests.support.processes import Worker


def leftovers(here: Path) -> list[str]:
    return [path.name for path in here.iterdir() if path.name.endswith(".converting")]


# Replacing --------------------------------------------------------------------------------------


def test_who_has_the_replaced_file_open_goes_over(here: Path, old: str) -> None:
    with mmapdict("new") as writer, mmapdict("new", readonly=True) as reader:
        writer["mine"] = np.arange(1000.0)
        view = reader["mine"]
        convert(old, "new", shelf=True, overwrite=True)
        assert "mine" not in reader
        assert reader["text"] == OBJECTS["text"]
        writer["more"] = 2
        assert reader["more"] == 2
        assert view.sum() == np.arange(1000.0).sum()
    assert_shelf("new", {**OBJECTS, "more": 2})


def test_a_file_in_use_is_not_replaced_under_its_user(here: Path, old: str) -> None:
    with pmemobj.create("pool"):
        with pytest.raises(LockTimeoutError):
            convert(old, "pool", to="pmemobj", overwrite=True, timeout=0.1)
    with mmapdict("store", exclusive=True) as store:
        store["mine"] = 1
        with pytest.raises(LockTimeoutError):
            convert(old, "store", overwrite=True, timeout=0.1)
    assert_shelf("store", {"mine": 1})
    assert not leftovers(here)


@pytest.mark.parametrize("before", [b"", b"text", b"\x80\x04\x95\r\0\0\0\0\0\0\0K\x01"])
def test_any_file_is_replaced_if_that_is_asked(converted: Any, old: str, before: bytes) -> None:
    Path("new").write_bytes(before)
    os.chmod("new", 0o640)
    converted(old, "new", shelf=True, overwrite=True)
    assert stat.S_IMODE(os.stat("new").st_mode) == 0o640
    assert_shelf("new", OBJECTS)


def test_a_link_stays_one(converted: Any, old: str, here: Path) -> None:
    (here / "elsewhere").mkdir()
    os.symlink("elsewhere/target", "new")
    convert(old, "new", shelf=True)
    assert os.path.islink("new")
    assert_shelf("elsewhere/target", OBJECTS)
    convert(old, "new", overwrite=True)
    assert os.path.islink("new")


def test_a_damaged_store_is_replaced(converted: Any, old: str) -> None:
    with mmapdict("new") as store:
        store.update(OBJECTS)
    data = Path("new").read_bytes()
    Path("new").write_bytes(data[:400] + bytes(200) + data[600:])
    converted(old, "new", shelf=True, overwrite=True)
    assert_shelf("new", OBJECTS)


def test_permissions_of_a_new_file(here: Path, old: str) -> None:
    mask = os.umask(0o027)
    try:
        convert(old, "new", mode=0o664)
        convert(old, "pool", mode=0o664, to="pmemobj")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat("new").st_mode) == 0o640
    assert stat.S_IMODE(os.stat("pool").st_mode) == 0o640


def test_a_file_that_appears_meanwhile_is_kept(here: Path, old: str) -> None:
    def appear(done: int, total: int) -> None:
        Path("new").write_bytes(b"somebody's")

    with pytest.raises(FileExistsError):
        convert(old, "new", progress=appear)
    assert Path("new").read_bytes() == b"somebody's"
    assert not leftovers(here)


def test_where_there_are_no_links_a_rename_does(
    converted: Any, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(1, "no links here", target)

    monkeypatch.setattr(storage.system, "link", refuse)
    # A pool is itself linked into its place.
    converted(old, "new", shelf=True)
    assert_shelf("new", OBJECTS)


def test_who_counts_commits_sees_the_replacement(here: Path) -> None:
    """The other file never has the number that this one had."""
    for name in ("first", "second"):
        with mmapdict(name) as store:
            store[name] = 1
    convert("first", "new")
    with mmapdict("new", readonly=True) as reader:
        for name in ("second", "first", "second"):
            before = reader.commit_number
            convert(name, "new", overwrite=True)
            assert list(reader) == [name]
            assert reader.commit_number > before


def test_a_name_that_leaves_no_room(converted: Any, old: str) -> None:
    for name in ("n" * 255, "ü" * 127):
        converted(old, name, shelf=True)
        converted(old, name, shelf=True, overwrite=True)
        assert_shelf(name, OBJECTS)


# The directory it is made in --------------------------------------------------------------------


def test_what_a_killed_conversion_left_is_removed(converted: Any, old: str, here: Path) -> None:
    left = here / ".new.converting"
    left.mkdir()
    (left / "store").write_bytes(b"half")
    (left / "other").write_bytes(b"")
    convert(old, "new", shelf=True)
    assert not left.exists()
    assert_shelf("new", OBJECTS)


def test_two_conversions_to_one_name_do_not_meet(here: Path, old: str) -> None:
    with Worker() as other:
        other.run(
            f"""
import os; os.chdir({str(here)!r})
from pmshelve.convert.scratch import Scratch
scratch = Scratch({str(here / "new")!r})
scratch.__enter__()
"""
        )
        with pytest.raises(LockTimeoutError, match="another conversion to this name is at work"):
            convert(old, "new")
        assert leftovers(here)
        convert(old, "elsewhere")
        other.run("scratch.__exit__()")
    assert not leftovers(here)
    convert(old, "new")


def test_a_directory_that_vanishes_before_it_is_locked_is_made_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = storage.system.flock
    vanished: list[str] = []

    def vanish(fd: int, operation: int) -> None:
        flock(fd, operation)
        if not vanished:
            vanished.append("once")
            shutil.rmtree(here / ".new.converting")

    monkeypatch.setattr(storage.system, "flock", vanish)
    with Scratch(str(here / "new")) as scratch:
        assert os.path.isdir(os.path.dirname(scratch.path))
        assert vanished
    assert not leftovers(here)
