"""`pmshelve run`: an unchanged program finds what it would find under plain ``python``."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pmshelve.cli import main
from pmshelve.cli.run import _parse
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.dbm_compat.mmapdict import recognizes

ROOT = Path(__file__).resolve().parents[3]

SHOW = """
import __main__, json, os, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__,
    "package": __package__, "spec": __spec__ and __spec__.name, "cached": str(__cached__),
    "loader": type(__loader__).__name__, "main": __main__.SHOWN, "doc": __doc__,
    "builtins": type(__builtins__).__name__,
}))
"""
SHOW = '"""The doc."""\nSHOWN = 1\n' + SHOW


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "show.py").write_text(SHOW)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "__main__.py").write_text(SHOW)
    (tmp_path / "package" / "module.py").write_text(SHOW)
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "__main__.py").write_text("import beside\n" + SHOW)
    (tmp_path / "directory" / "beside.py").touch()
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", "import beside\n" + SHOW)
        archive.writestr("beside.py", "")
    (tmp_path / "link.py").symlink_to(tmp_path / "package" / "module.py")
    return tmp_path


def python(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        check=False,
        cwd=cwd,
        env=environment,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    "program",
    [
        ["show.py", "a", "--default", "-m", "--help"],
        ["./show.py"],
        ["package/module.py", "a"],
        ["link.py"],
        ["directory", "a", "b"],
        ["archive.zip"],
        ["-m", "package", "-x", "--json"],
        ["-m", "package.module", "a"],
        ["-m", "show"],
    ],
    ids=" ".join,
)
def test_a_program_finds_what_it_would_find_under_python(home: Path, program: list[str]) -> None:
    under_python = python(*program, cwd=home)
    assert (under_python.returncode, under_python.stderr) == (0, "")
    for options in ([], ["--default", "mmapdict"], ["--default=mmapdict"]):
        ours = python("-m", "pmshelve", "run", *options, *program, cwd=home)
        assert (ours.returncode, ours.stderr) == (0, "")
        assert ours.stdout == under_python.stdout


def test_a_program_run_without_a_directory_in_its_path_gets_none(home: Path) -> None:
    code = "import sys; sys.argv[1:] = ['run', 'show.py']\n"
    code += f"sys.path.insert(1, {str(ROOT)!r})\n"
    code += (
        "from pmshelve.cli import main; first = sys.path[0]; main(); assert sys.path[0] == first"
    )
    if sys.version_info >= (3, 11):
        done = python("-P", "-c", code, cwd=home)
        assert (done.returncode, done.stderr) == (0, "")


ENDINGS = {
    "end": "",
    "exit": "import sys; sys.exit()",
    "exit 3": "import sys; sys.exit(3)",
    "exit text": "import sys; sys.exit('no')",
    "raise": "raise RuntimeError('no')",
    "system": "import os; os._exit(7)",
    "at exit": "import atexit, sys\nclass A: pass\n"
    "atexit.register(lambda: print(sys.modules['__main__'].A is A))",
    "thread": "import threading, time, pickle\nclass A: pass\n"
    "def late():\n    threading.main_thread().join()\n    print(len(pickle.dumps(A())) > 0)\n"
    "threading.Thread(target=late).start()",
    "pickle": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "syntax": "a b",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_ends_as_it_would_under_python(tmp_path: Path, ending: str) -> None:
    (tmp_path / "program.py").write_text(ENDINGS[ending])
    expected = python("program.py", cwd=tmp_path)
    done = python("-m", "pmshelve", "run", "program.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    assert done.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


def test_compiled_programs_run_too(home: Path) -> None:
    import py_compile

    py_compile.compile(str(home / "show.py"), str(home / "show.pyc"))
    done = python("-m", "pmshelve", "run", "show.pyc", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert "SourcelessFileLoader" in done.stdout


PROGRAM = """
import dbm, shelve, sys
with shelve.open(sys.argv[1]) as shelf:
    shelf["key"] = [1, 2]
with dbm.open(sys.argv[1]) as db:
    print(dbm.whichdb(sys.argv[1]), db.keys())
"""


def test_an_unchanged_program_uses_our_store(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = python(
        "-m", "pmshelve", "run", "--default", "mmapdict", "program.py", "db", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "pmshelve.dbm_compat.mmapdict [b'key']\n"
    assert sorted(os.listdir(tmp_path)) == ["db", "program.py"]
    assert recognizes(str(tmp_path / "db"))


def test_without_a_default_only_files_that_are_there_are_ours(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    our_dbm.open(tmp_path / "db", "c").close()
    done = python("-m", "pmshelve", "run", "program.py", "db", cwd=tmp_path)
    assert done.stdout == "pmshelve.dbm_compat.mmapdict [b'key']\n"
    done = python("-m", "pmshelve", "run", "program.py", "new", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("dbm.")


@pytest.mark.parametrize(
    ("program", "code", "message"),
    [
        (["missing.py"], 2, "pmshelve run: missing.py: No such file or directory"),
        (["-m", "missing_module"], 1, "pmshelve run: there is no module in missing_module"),
        (["-m", "missing.module"], 1, "pmshelve run: No module named 'missing'"),
        (["-m", "json"], 1, "pmshelve run: there is no module in json that can be run"),
        (["."], 1, "pmshelve run: there is no module in . that can be run"),
    ],
    ids=["script", "module", "parent", "package", "directory"],
)
def test_a_program_that_is_not_there(
    tmp_path: Path, program: list[str], code: int, message: str
) -> None:
    done = python("-m", "pmshelve", "run", *program, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong", [[], ["--default"], ["--default", "dbm.dumb", "x.py"], ["-m"], ["-x", "x.py"]]
)
def test_wrong_usage_is_code_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", *wrong])
    assert caught.value.code == 2
    assert "usage: pmshelve run [--default {mmapdict,pmemobj}]" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0
    assert "SCRIPT | -m MODULE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["s.py"], (None, False, ["s.py"])),
        (["s.py", "-m", "--default"], (None, False, ["s.py", "-m", "--default"])),
        (["--default=mmapdict", "s.py"], ("mmapdict", False, ["s.py"])),
        (["--default", "mmapdict", "-m", "m", "-x"], ("mmapdict", True, ["m", "-x"])),
        (["--", "-m"], (None, False, ["-m"])),
    ],
)
def test_options_end_at_the_programs_name(arguments: list[str], expected: Any) -> None:
    assert _parse(arguments) == expected
