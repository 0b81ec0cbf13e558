"""The command `convert`: what it prints and asks for, and how it ends."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pmshelve.cli import main
from pmshelve.convert import conversion
from pmshelve.convert.pickles import premake
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.mmapdict import mmapdict
from tests.support.moving import ARRAYS, OBJECTS, assert_shelf, make_dbm, make_shelf
from tests.support.processes import ROOT, unmeasured

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["convert", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_a_shelf_is_converted(run: Run) -> None:
    make_shelf("dbm.dumb", "old", {**OBJECTS, **ARRAYS})
    code, out, err = run("old", "new", "--shelf")
    count = len(OBJECTS) + len(ARRAYS)
    assert code == 0
    assert f"old: dbm.dumb, {count} entries" in out
    assert "moved as pickles, not loaded: 5" in out
    assert f"new: mmapdict, native, {os.path.getsize('new')} bytes, {count} entries verified" in out
    assert "Traceback" not in err
    assert_shelf("new", {**OBJECTS, **ARRAYS})


def test_arrays_are_mapped_after_unpickle(run: Run) -> None:
    make_shelf("dbm.dumb", "old", ARRAYS)
    size = len("array" + "inside") + 40_000 + premake(ARRAYS["inside"]).nbytes
    assert run("old", "new", "--shelf", "--unpickle", "-q") == (
        0,
        (
            f"old: dbm.dumb, 2 entries, {size} bytes\n"
            f"new: mmapdict, native, {os.path.getsize('new')} bytes, 2 entries verified\n"
        ),
        "",
    )
    with mmapdict("new", readonly=True) as store:
        assert isinstance(store["array"], np.memmap)


def test_the_options_reach_the_conversion(run: Run) -> None:
    make_dbm("dbm.dumb", "old", {b"k": b"v"})
    assert run("old", "pool", "--to", "pmemobj", "--face", "native")[0] == 0
    assert_shelf("pool", {"k": b"v"}, "pmemobj")
    assert run("pool", "back", "--face", "bytes", "--from", "pmemobj")[0] == 0
    with our_dbm.open("back") as database:
        assert database[b"k"] == b"v"
    code, _, err = run("old", "back")
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite" in err or "File exists" in err
    assert run("old", "back", "--overwrite")[0] == 0


def test_json_is_one_object(run: Run) -> None:
    make_shelf("dbm.dumb", "old", OBJECTS)
    code, out, err = run("old", "new", "--shelf", "--json")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert report["verified"] == report["entries"] == len(OBJECTS)
    assert report["written"] is True
    assert report["kind"] == "dbm.dumb"


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    make_shelf("dbm.dumb", "old", OBJECTS)
    before = sorted(os.listdir())
    code, out, _ = run("old", "new", "--shelf", "--dry-run")
    assert code == 0
    assert f"{len(OBJECTS)} entries" in out
    assert "new: mmapdict, native: not written" in out
    assert sorted(os.listdir()) == before


def test_bad_entries_are_listed_and_end_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(pickle.dumps({"good": 1} | dict.fromkeys(range(30), 1)))
    for option in ((), ("--dry-run",)):
        code, out, err = run("old", "new", *option)
        assert code == 1
        assert out.count("cannot be converted: ") == 21
        assert "cannot be converted: 0: keys are str here, not int\n" in out
        assert "cannot be converted: 10 more\n" in out
        assert "not written" in out
        assert not (tmp_path / "new").exists()
        assert "Traceback" not in err
    code, out, _ = run("old", "new", "--skip-bad")
    assert code == 0
    assert "1 entries verified" in out
    code, out, _ = run("old", "other", "--json")
    assert code == 1
    assert json.loads(out)["bad_count"] == 30


def test_keys_are_printed_so_that_they_drive_no_terminal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(pickle.dumps({b"\xff\x1b[2J": 1}))
    _, out, _ = run("old", "new")
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("missing", "new"), "missing: No such file"),
        (("text", "new"), "text: not a store of a known kind; say which kind with --from"),
        (("text", "new", "--from", "lmdb"), "no kind 'lmdb'"),
        (("text", "new", "--from", "zict"), "text: Not a directory"),
        (("trap", "new"), "add --unpickle"),
    ],
)
def test_errors_are_one_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "text").write_bytes(b"text")
    (tmp_path / "trap").write_bytes(b"cos\nmkdir\n(X\x04\x00\x00\x00gotyI511\ntR.")
    (tmp_path / "trap").write_bytes(b"}X\x01\x00\x00\x00acos\ngetcwd\n)Rs.")
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("pmshelve: ")
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_package_that_is_missing_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dbm("dbm.sqlite3", "old", {b"k": b"v"})
    for name in ("zict.common", "pmshelve.zict_compat", "pmshelve.zict_compat.mmap"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "zict", None)
    code, _, err = run("old", "new", "--face", "zict")
    assert code == 2
    assert "pip install pmshelve[zict]" in err
    assert os.listdir() == ["old"]


def test_ctrl_c_says_what_is_true(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dbm("dbm.dumb", "old", {b"k": b"v"})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion._Work, "compare", interrupt)
        code, _, err = run("old", "new")
    assert code == 130
    assert err == "pmshelve: interrupted: new is as it was, nothing was written\n"
    assert not os.path.exists("new")
    with monkeypatch.context() as patch:
        take = conversion.Scratch.take_name

        def late(scratch: conversion.Scratch, **options: object) -> None:
            take(scratch, **options)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        patch.setattr(conversion.Scratch, "take_name", late)
        code, _, err = run("old", "new")
    assert code == 130
    assert err == "pmshelve: interrupted: new is complete\n"
    assert os.path.exists("new")


def test_ctrl_c_for_real(run: Run, tmp_path: Path) -> None:
    make_dbm("dbm.sqlite3", "old", {b"%d" % i: b"x" * 50 for i in range(60_000)})
    process = subprocess.Popen(
        [sys.executable, "-m", "pmshelve", "convert", tmp_path / "old", tmp_path / "new"],
        cwd=ROOT,
        env=unmeasured(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    while not (tmp_path / ".new.converting" / "store").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"is as it was, nothing was written" in err
    assert not out
    assert os.listdir(tmp_path) == ["old"]
