"""The commands: what they print, how they end, and that looking changes and runs nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmshelve
from pmshelve.cli import main
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.mmapdict import mmapdict

CONTENT: dict[str, Any] = {
    "text": "Größe\nline 2",
    "bytes": b"\x00\xff",
    "number": 42,
    "none": None,
    "array": np.arange(6, dtype="<i4").reshape(2, 3),
    "list": [1, {"a": 2}],
}


class Trap:
    """Loading one creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update(CONTENT)
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


def test_info_says_what_the_store_is(path: Path, run: Run) -> None:
    code, out, err = run("info", path)
    assert (code, err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["kind"].startswith("mmapdict")
    assert facts["size"].startswith(f"{path.stat().st_size:,} bytes")
    assert facts["state"] == "clean"
    assert facts["entries"] == str(len(CONTENT))


def test_info_as_json_agrees_with_stats(path: Path, run: Run) -> None:
    code, out, _ = run("info", "--json", path)
    assert code == 0
    with mmapdict(path, readonly=True) as store:
        expected = dataclasses.asdict(store.stats())
    facts = json.loads(out)
    assert facts["kind"].startswith("mmapdict")
    for name in ("mapped_size", "index_entries"):  # of an open store
        del expected[name]
    assert {name: facts[name] for name in expected} == expected
    assert facts["live_count"] == len(CONTENT)


# keys -------------------------------------------------------------------------------------------


def test_keys_in_the_order_of_the_file(path: Path, run: Run) -> None:
    assert run("keys", path) == (0, "".join(f"{key}\n" for key in CONTENT), "")
    assert json.loads(run("keys", path, "--json")[1]) == list(CONTENT)
    assert run("keys", path, "-0")[1] == "".join(f"{key}\0" for key in CONTENT)


def test_keys_that_would_drive_the_terminal_are_escaped(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with our_dbm.open(tmp_path / "db", "c") as db:
        db.update(dict.fromkeys(["a\nb", "\x1b[31m", "Größe", b"\xff"], b""))
    assert main(["keys", str(tmp_path / "db")]) == 0
    lines = capfdbinary.readouterr().out.decode().split("\n")
    assert lines == ["a\\nb", "\\x1b[31m", "Größe", "\\udcff", ""]
    assert main(["keys", "--null", str(tmp_path / "db")]) == 0
    assert capfdbinary.readouterr().out == "a\nb\0\x1b[31m\0Größe\0".encode() + b"\xff\0"


def test_keys_with_any_surrogate_are_written_somehow(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with mmapdict(tmp_path / "store") as store:
        store["\ud800"] = 1
    assert main(["keys", "-0", str(tmp_path / "store")]) == 0
    assert capfdbinary.readouterr().out == b"\xed\xa0\x80\0"


def test_the_output_may_be_any_text_stream(path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["keys", str(path)]) == 0
    assert out.getvalue().split() == list(CONTENT)


def test_keys_of_an_empty_store(tmp_path: Path, run: Run) -> None:
    mmapdict(tmp_path / "store").close()
    assert run("keys", tmp_path / "store") == (0, "", "")
    assert run("keys", "--json", tmp_path / "store") == (0, "[]\n", "")


# get --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("text", "Größe\nline 2\n"),
        ("bytes", "b'\\x00\\xff'\n"),
        ("number", "42\n"),
        ("none", "None\n"),
        ("array", "int32 array, shape (2, 3), 24 bytes\n[[0 1 2]\n [3 4 5]]\n"),
    ],
)
def test_get_shows_a_value(path: Path, run: Run, key: str, expected: str) -> None:
    assert run("get", path, key) == (0, expected, "")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("text", CONTENT["text"].encode()),
        ("bytes", CONTENT["bytes"]),
        ("array", CONTENT["array"].tobytes()),
    ],
)
def test_get_raw_writes_the_bytes(
    path: Path, key: str, expected: bytes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["get", "--raw", str(path), key]) == 0
    assert capfdbinary.readouterr() == (expected, b"")


def test_get_raw_of_a_number_says_it_cannot(path: Path, run: Run) -> None:
    code, out, err = run("get", "--raw", path, "number")
    assert (code, out) == (2, "")
    assert "int has no raw form" in err


def test_a_missing_key_is_code_1(path: Path, run: Run) -> None:
    assert run("get", path, "missing") == (1, "", "pmshelve: no key 'missing'\n")


def test_get_unpickles_only_if_told_to(path: Path, run: Run, tmp_path: Path) -> None:
    with mmapdict(path) as store:
        store["trap"] = Trap(tmp_path / "sprung")
    for key in ("list", "trap"):
        code, out, err = run("get", path, key)
        assert (code, out) == (2, "")
        assert "--unpickle" in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "sprung").exists()
    assert run("get", "--unpickle", path, "list") == (0, "[1, {'a': 2}]\n", "")
    assert run("get", "--unpickle", path, "trap")[0] == 0
    assert (tmp_path / "sprung").exists()
    code, out, err = run("get", "--unpickle", path, "trap")  # again: mkdir fails
    assert (code, out) == (2, "")
    assert "FileExistsError" in err


def test_get_from_a_dbm_by_a_key_that_is_not_text(tmp_path: Path, run: Run) -> None:
    with our_dbm.open(tmp_path / "db", "c") as db:
        db[b"\xff"] = b"value"
    assert run("get", tmp_path / "db", os.fsdecode(b"\xff")) == (0, "b'value'\n", "")


# check ------------------------------------------------------------------------------------------


def test_check_of_a_sound_file(path: Path, run: Run) -> None:
    assert run("check", path) == (0, "sound\n", "")
    assert run("check", "--json", path) == (0, "[]\n", "")


def test_check_of_a_damaged_file(path: Path, run: Run) -> None:
    data = bytearray(path.read_bytes())
    position = data.index("Größe".encode())
    data[position] ^= 1
    path.write_bytes(data)
    code, out, err = run("check", path)
    assert (code, err) == (1, "")
    assert out.strip()
    assert "sound" not in out.split()
    code, listed, _ = run("check", "--json", path)
    assert code == 1
    assert json.loads(listed) == out.splitlines()
    assert path.read_bytes() == data


def damage(path: Path) -> bytes:
    """Break an entry in the middle of the file so that what follows is out of reach."""
    data = bytearray(path.read_bytes())
    start = data.index("Größe".encode())
    data[start - 20 : start] = b"\xee" * 20
    path.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("command", [["keys"], ["get", "number"], ["vacuum"]])
def test_damage_that_stops_another_command_is_code_1(
    path: Path, run: Run, command: list[str]
) -> None:
    data = damage(path)
    code, out, err = run(*arguments(command, path))
    assert (code, out) == (1, "")
    assert err.startswith(f"pmshelve: {path}: ")
    assert len(err.splitlines()) == 1
    assert path.read_bytes() == data
    assert run("check", path)[0] == 1
    assert path.read_bytes() == data


def test_damage_to_one_value_is_told_when_it_is_read(path: Path, run: Run) -> None:
    data = bytearray(path.read_bytes())
    opcode = data.index("Größe".encode()) - 2
    data[opcode] = 0xEE
    path.write_bytes(data)
    code, out, err = run("get", "--unpickle", path, "text")
    assert (code, out) == (1, "")
    assert err.startswith(f"pmshelve: {path}: ")
    assert run("get", path, "number") == (0, "42\n", "")


# vacuum -----------------------------------------------------------------------------------------


def test_vacuum_gives_space_back(path: Path, run: Run) -> None:
    with mmapdict(path) as store:
        store["big"] = bytes(100_000)
        del store["big"]
    before = path.stat().st_size
    code, out, err = run("vacuum", path)
    after = path.stat().st_size
    assert (code, out, err) == (0, f"{before} -> {after} bytes\n", "")
    assert after < before - 90_000
    code, out, _ = run("vacuum", "--json", path)
    assert code == 0
    assert json.loads(out) == {"size_before": after, "size_after": after}
    with mmapdict(path, readonly=True) as store:
        assert list(store) == list(CONTENT)


# Manners ----------------------------------------------------------------------------------------

COMMANDS = [["info"], ["map"], ["keys"], ["get", "text"], ["check"], ["vacuum"]]
LOOKING = COMMANDS[:5]


def arguments(command: list[str], path: Path) -> list[str]:
    return [command[0], str(path), *command[1:]]


@pytest.mark.parametrize("command", LOOKING)
def test_looking_writes_nothing(path: Path, run: Run, command: list[str]) -> None:
    os.utime(path, ns=(1, 1))
    before = path.read_bytes()
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        assert run(*arguments(command, path))[0] == 0
        assert os.listdir(path.parent) == [path.name]
    finally:
        path.parent.chmod(0o700)
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == 1


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("content", [pickle.dumps({"text": "x"}), pickle.dumps({"a": 1}, 2), b"",
                                     b"rubbish" * 9, pickle.dumps({})[:9]],
                         ids=["pickle", "old pickle", "nothing", "rubbish", "torn"])  # fmt: skip
def test_another_file_is_refused_and_not_converted(
    tmp_path: Path, run: Run, command: list[str], content: bytes
) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    code, out, err = run(*arguments(command, path))
    if command == ["info"] and content.endswith(b"."):
        assert (code, err) == (0, "")
        assert "ordinary pickle" in out
    else:
        assert (code, out) == (2, "")
        assert err == f"pmshelve: {path}: not a pmshelve file\n"
    assert path.read_bytes() == content


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_file_is_not_created(tmp_path: Path, run: Run, command: list[str]) -> None:
    path = tmp_path / "missing"
    code, out, err = run(*arguments(command, path))
    assert (code, out) == (2, "")
    assert err == f"pmshelve: {path}: No such file or directory\n"
    assert not path.exists()
    code, out, err = run(*arguments(command, tmp_path))
    assert (code, out) == (2, "")
    assert err == f"pmshelve: {tmp_path}: a directory, not a store\n"


@pytest.mark.parametrize(
    "wrong", [[], ["nonsense"], ["info"], ["get", "file"], ["keys", "--json", "-0", "file"]]
)
def test_wrong_usage_is_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
    assert "usage: pmshelve" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for command in ("info", "map", "keys", "get", "check", "vacuum", "gc", "dump", "load", "run"):
        assert f"\n    {command} " in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pmshelve {pmshelve.__version__}\n"


def test_an_interrupt_is_code_130(path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pmshelve.cli.keys.open_file", interrupt)
    assert run("keys", path) == (130, "", "")
    monkeypatch.setattr("pmshelve.cli.check.open_file", interrupt)
    told = "pmshelve: interrupted: the file was only read\n"
    assert run("check", path) == (130, "", told)


# As real processes ------------------------------------------------------------------------------


def pmshelve_process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "pmshelve", *map(str, arguments)],
        capture_output=True,
        check=False,
        **options,
    )


def test_as_a_process(path: Path) -> None:
    done = pmshelve_process("get", path, "text")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, "Größe\nline 2\n", b"")
    done = pmshelve_process("get", path, "missing")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"pmshelve: no key 'missing'\n")


def test_an_output_that_cannot_show_a_text_gets_it_escaped(path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = pmshelve_process("get", path, "text", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Gr\\xf6\\xdfe\nline 2\n", b"")


def test_a_reader_that_leaves_early_is_no_error_message(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "store") as store:
        store.update((f"{number:0100}", 0) for number in range(2000))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pmshelve", "keys", str(tmp_path / "store")],
            stdout=writing,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
