"""The commands on pools: what they print, how they end, and that looking changes and runs nothing."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmshelve
from pmshelve import pmemobj
from pmshelve.cli import main
from pmshelve.dbm_compat import pmemobj as our_dbm
from pmshelve.mmapdict import mmapdict
from pmshelve.pmemobj import PersistentDict, PersistentList
from tests.support.pools import assert_sound, plain


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    with pmemobj.create(path) as pool:
        root = pool.root = pool.new(PersistentDict)
        root["text"] = "Größe\nline 2"
        root["list"] = pool.new(PersistentList, [1, None])
        root[1] = "by number"
        root[1, "a"] = "by tuple"
        root[b"b"] = b"bytes"
        root["day"] = datetime.date(2001, 2, 3)
    return path


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process; returns exit code, output and error output."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


# info -------------------------------------------------------------------------------------------


def test_info_says_what_the_pool_is(path: Path, run: Run) -> None:
    code, out, err = run("info", "--json", path)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["kind"] == "pmemobj"
    assert facts["size"] == path.stat().st_size
    assert facts["root"] == "PersistentDict"
    assert facts["face"] is None
    assert facts["objects"]["PersistentList"] == 1
    code, out, _ = run("info", path)
    assert code == 0
    assert "kind          pool of pmemobj\n" in out
    assert "PersistentList        1\n" in out


@pytest.mark.parametrize(
    ("make", "root", "face"),
    [
        (lambda path: our_dbm.open(path, "c"), "Bytes", "bytes"),
        (lambda path: pmshelve.open(path, backend="pmemobj"), "Objects", "native"),
        (pmemobj.create, None, None),
    ],
    ids=["dbm", "shelf", "pool"],
)
def test_info_names_the_face(
    tmp_path: Path, run: Run, make: Callable[[Path], Any], root: str | None, face: str | None
) -> None:
    make(tmp_path / "pool").close()
    facts = json.loads(run("info", "--json", tmp_path / "pool")[1])
    assert (facts["root"] or None, facts["face"]) == (root, face)


# keys and get -----------------------------------------------------------------------------------


def test_keys_in_the_order_of_the_dict(path: Path, run: Run) -> None:
    expected = ["text", "list", "1", "(1, 'a')", "b'b'", "day"]
    assert run("keys", path) == (0, "".join(f"{key}\n" for key in expected), "")
    assert json.loads(run("keys", path, "--json")[1]) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("text", "Größe\nline 2\n"),
        ("list", "PersistentList([1, None])\n"),
        ("1", "by number\n"),
        ("(1, 'a')", "by tuple\n"),
        ("b'b'", "b'bytes'\n"),
    ],
)
def test_get_shows_a_value_by_the_key_that_keys_printed(
    path: Path, run: Run, key: str, expected: str
) -> None:
    assert run("get", path, key) == (0, expected, "")


@pytest.mark.parametrize("key", ["missing", "2", "[1]", "(", "'text'"])
def test_a_missing_key_is_code_1(path: Path, run: Run, key: str) -> None:
    assert run("get", path, key) == (1, "", f"pmshelve: no key {key!r}\n")


def test_a_text_key_comes_before_what_it_might_mean(path: Path, run: Run) -> None:
    with pmemobj.open(path) as pool:
        pool.root["1"] = "by text"
    assert run("get", path, "1") == (0, "by text\n", "")


def test_the_keys_of_a_dbm_and_of_a_shelf(tmp_path: Path, run: Run) -> None:
    with our_dbm.open(tmp_path / "db", "c") as db:
        db["Größe"], db[b"\xff"], db["1"] = b"a", b"b", b"c"
    assert json.loads(run("keys", "--json", tmp_path / "db")[1]) == ["Größe", "\udcff", "1"]
    assert run("get", tmp_path / "db", os.fsdecode(b"\xff")) == (0, "b'b'\n", "")
    assert run("get", tmp_path / "db", "1") == (0, "b'c'\n", "")
    with pmshelve.open(tmp_path / "shelf", backend="pmemobj") as shelf:
        shelf.update(number=1, list=[1, 2])
    assert run("get", tmp_path / "shelf", "number") == (0, "1\n", "")
    code, out, err = run("get", tmp_path / "shelf", "list")
    assert (code, out) == (2, "")
    assert "--unpickle" in err
    assert run("get", "--unpickle", tmp_path / "shelf", "list") == (0, "[1, 2]\n", "")


def test_a_root_that_is_no_dict(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "pool"
    pmemobj.create(path).close()
    for root, said in ((None, "the pool has no root"), ("list", "the root is a PersistentList")):
        if root:
            with pmemobj.open(path) as pool:
                pool.root = pool.new(PersistentList)
        for command in (["keys"], ["get", "key"]):
            code, out, err = run(command[0], path, *command[1:])
            assert (code, out) == (2, "")
            assert err.startswith(f"pmshelve: {path}: {said}; ")


# Nothing of the file's runs ---------------------------------------------------------------------

_TRAP = """
import os
os.mkdir(os.environ["TRAP"])
from pmshelve.pmemobj import PersistentDict, PersistentObject
class Root(PersistentDict):
    pass
class Thing(PersistentObject):
    pass
"""


@pytest.fixture
def trapped(tmp_path: Path) -> tuple[Path, dict[str, str], Path]:
    """A pool with objects of classes whose module, when it is imported, makes a directory."""
    home, trap = tmp_path / "home", tmp_path / "sprung"
    home.mkdir()
    (home / "trapmodule.py").write_text(_TRAP)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(home), os.getcwd()])}
    environment["TRAP"] = str(trap)
    code = """import sys, trapmodule
from pmshelve import pmemobj
with pmemobj.create(sys.argv[1]) as pool:
    root = pool.new(getattr(pmemobj, sys.argv[2], trapmodule.Root))
    root["thing"] = pool.new(trapmodule.Thing)
    root["number"] = 1
    pool.root = root
"""
    for name in ("PersistentDict", "Root"):
        command = [sys.executable, "-c", code, str(tmp_path / name), name]
        subprocess.run(command, env=environment, check=True)
        trap.rmdir()
    return tmp_path, environment, trap


@pytest.mark.parametrize(
    ("root", "command", "code"),
    [
        ("Root", ["info"], 0),
        ("Root", ["map"], 0),
        ("Root", ["check"], 0),
        ("Root", ["keys"], 2),
        ("Root", ["get", "number"], 2),
        ("PersistentDict", ["info"], 0),
        ("PersistentDict", ["check"], 0),
        ("PersistentDict", ["keys"], 0),
        ("PersistentDict", ["get", "number"], 0),
        ("PersistentDict", ["get", "thing"], 2),
    ],
)
def test_looking_imports_no_class_that_the_pool_names(
    trapped: tuple[Path, dict[str, str], Path], root: str, command: list[str], code: int
) -> None:
    home, environment, trap = trapped
    arguments = [command[0], str(home / root), *command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "pmshelve", *arguments],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert not trap.exists()


def test_get_imports_what_it_is_told_to(trapped: tuple[Path, dict[str, str], Path]) -> None:
    home, environment, trap = trapped
    command = [sys.executable, "-m", "pmshelve", "get", "--unpickle", str(home / "Root"), "number"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"1\n"), done.stderr
    assert trap.exists()


# check, vacuum ----------------------------------------------------------------------------------


def test_check_of_a_sound_pool(path: Path, run: Run) -> None:
    assert run("check", path) == (0, "sound\n", "")


def test_check_of_a_damaged_pool(path: Path, run: Run) -> None:
    with pmemobj.open(path) as pool:
        offset = pool.root["list"]._p_oid[1]
    data = bytearray(path.read_bytes())
    data[offset] ^= 2  # its reference count
    path.write_bytes(data)
    code, out, _ = run("check", path)
    assert code == 1
    assert f"R2: an object is held 1 times, its count says 3 at offset {offset}\n" in out


def test_damage_is_told_in_one_line(path: Path, run: Run) -> None:
    with pmemobj.open(path) as pool:
        offset = pool.root._p_oid[1]
    data = bytearray(path.read_bytes())
    data[offset + 24 : offset + 32] = b"\x00" * 5 + b"\x7f\x00\x00"  # where its table is
    path.write_bytes(data)
    assert run("check", path)[0] == 1
    for command in (["keys"], ["get", "text"]):
        code, out, err = run(command[0], path, *command[1:])
        assert (code, out) == (1, ""), err
        assert err.startswith(f"pmshelve: {path}: ")
        assert len(err.splitlines()) == 1
    assert path.read_bytes() == data


def test_vacuum_gives_space_back(path: Path, run: Run) -> None:
    with pmemobj.open(path) as pool:
        pool.root["big"] = bytes(12_000_000)
    before = path.stat().st_size
    with pmemobj.open(path) as pool:
        del pool.root["big"]
        pool._end(clean=False, size=None)  # a kill, as far as the file can tell
    assert path.stat().st_size == before
    code, out, _ = run("vacuum", "--json", path)
    assert code == 0
    assert json.loads(out) == {"size_before": before, "size_after": path.stat().st_size}
    assert path.stat().st_size == 8 << 20
    with pmemobj.open(path) as pool:
        assert_sound(pool)


# gc ---------------------------------------------------------------------------------------------


def test_gc_frees_what_nothing_leads_to(path: Path, run: Run) -> None:
    with pmemobj.open(path) as pool:
        for _ in range(5):
            ring = pool.new(PersistentList)
            ring.append(ring)
            del ring
        pool._end(clean=False, size=None)  # a kill, as far as the file can tell
    assert json.loads(run("info", "--json", path)[1])["objects"]["PersistentList"] == 6
    code, out, err = run("gc", path)
    assert (code, err) == (0, "")
    assert out.startswith("5 freed\n")
    assert "PersistentDict" in out
    assert json.loads(run("info", "--json", path)[1])["objects"]["PersistentList"] == 1
    told = json.loads(run("gc", "--json", path)[1])
    assert told["freed"] == 0
    assert told["live"]["PersistentList"] == 1
    with pmemobj.open(path) as pool:
        assert_sound(pool)


def test_gc_is_for_pools(tmp_path: Path, run: Run) -> None:
    mmapdict(tmp_path / "store").close()
    code, out, err = run("gc", tmp_path / "store")
    assert (code, out) == (2, "")
    assert "not a pool; vacuum is for those" in err


# dump, load -------------------------------------------------------------------------------------


def test_dump_and_load(path: Path, run: Run, tmp_path: Path) -> None:
    dumped, loaded = tmp_path / "dump", tmp_path / "loaded"
    dumped.write_bytes(b"something older")
    code, out, err = run("dump", path, dumped)
    assert (code, err) == (0, "")
    assert out.endswith(" objects\n")
    assert run("load", dumped, loaded) == (0, out, "")
    with pmemobj.open(path) as old, pmemobj.open(loaded) as new:
        assert plain(new.root) == plain(old.root)
        assert_sound(new)
    assert {*os.listdir(tmp_path)} == {"pool", "dump", "loaded"}


def test_dump_and_load_through_a_pipe(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pmshelve"]
    dumped = subprocess.run([*command, "dump", path, "-"], capture_output=True, check=True).stdout
    assert dumped.startswith(b"PMSHDUMP")
    loaded = tmp_path / "loaded"
    subprocess.run([*command, "load", "-", loaded], input=dumped, check=True, capture_output=True)
    with pmemobj.open(loaded) as pool:
        assert pool.root["text"] == "Größe\nline 2"


def test_a_load_that_fails_leaves_no_file(path: Path, run: Run, tmp_path: Path) -> None:
    assert run("dump", path, tmp_path / "dump")[0] == 0
    whole = (tmp_path / "dump").read_bytes()
    for content in (b"", b"rubbish" * 9, whole[:-5], whole[:-20] + b"?" + whole[-19:]):
        (tmp_path / "dump").write_bytes(content)
        code, out, err = run("load", tmp_path / "dump", tmp_path / "loaded")
        assert code in (1, 2)
        assert out == ""
        assert err.startswith(f"pmshelve: {tmp_path / 'dump'}: ")
        assert not (tmp_path / "loaded").exists()


def test_load_replaces_no_file(path: Path, run: Run, tmp_path: Path) -> None:
    assert run("dump", path, tmp_path / "dump")[0] == 0
    before = path.read_bytes()
    assert run("load", tmp_path / "dump", path) == (2, "", f"pmshelve: {path}: File exists\n")
    assert path.read_bytes() == before


def test_a_dump_that_fails_leaves_what_was_there(
    path: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.storage import file

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    (tmp_path / "dump").write_bytes(b"older")
    monkeypatch.setattr(file, "write_at", fail)
    code, _, err = run("dump", path, tmp_path / "dump")
    assert code == 2
    assert "No space" in err
    assert {*os.listdir(tmp_path)} == {"pool", "dump"}
    assert (tmp_path / "dump").read_bytes() == b"older"


def test_dump_is_for_pools(tmp_path: Path, run: Run) -> None:
    mmapdict(tmp_path / "store").close()
    code, _, err = run("dump", tmp_path / "store", tmp_path / "dump")
    assert code == 2
    assert "not a pool; it is a pickle" in err
    assert os.listdir(tmp_path) == ["store"]
    code, _, err = run("load", tmp_path, tmp_path / "new")
    assert code == 2
    assert "a directory" in err


# Manners ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["info"], ["map"], ["keys"], ["get", "text"], ["check"]])
def test_looking_writes_nothing(path: Path, run: Run, command: list[str]) -> None:
    os.utime(path, ns=(1, 1))
    before = path.read_bytes()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        assert run(command[0], path, *command[1:])[0] == 0
        assert os.listdir(path.parent) == [path.name]
    finally:
        path.parent.chmod(0o700)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == 1


@pytest.mark.parametrize("command", [["keys"], ["check"], ["vacuum"], ["gc"]])
def test_a_pool_that_another_process_writes_is_refused(
    path: Path, run: Run, command: list[str]
) -> None:
    with pmemobj.open(path):
        code, out, err = run(command[0], path, *command[1:])
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
