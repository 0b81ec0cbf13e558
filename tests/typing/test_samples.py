"""What users' type checkers make of the package: programs they accept, lines they refuse, all types known.

A sample whose name begins with ``good_`` is accepted without a word, and runs.  In the others each line to
be refused ends with a comment that names what mypy and what pyright says to it::

    store["a"] = "text"  # E: assignment | reportArgumentType

Both sides must agree exactly, so that a line which should be refused and is not fails as well; ``-`` stands
for a checker that does not see the mistake.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.public import importable

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(__file__).with_name("samples")
GOOD = sorted(SAMPLES.glob("good_*.py"))
BAD = sorted(SAMPLES.glob("bad_*.py"))

Found = dict[tuple[str, int], set[str]]
"""(file, line) -> what is said there."""


def known_by(packages: set[str]) -> list[Path]:
    """Return the samples all of whose imports, among the optional packages, are there."""
    missing = {name for name in packages if importlib.util.find_spec(name) is None}
    samples = [*GOOD, *BAD]
    return [each for each in samples if not missing & set(re.findall(r"\w+", each.read_text()))]


def expected(side: int) -> Found:
    """Return what the comments say: side 0 for mypy, 1 for pyright."""
    found: Found = {}
    for path in known_by({"zict", "distributed"}):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            said = re.search(r"# E: (.+) \| (.+)$", line)
            assert said or "# E" not in line, f"{path.name}:{number}: not a comment of ours"
            if said and said[side + 1] != "-":
                found[path.name, number] = set(said[side + 1].split())
    return found


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this interpreter's among the samples, where our package can be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=SAMPLES,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def pyright() -> None:
    """Skip where pyright is not installed, or its node package is not here and cannot be got."""
    pytest.importorskip("pyright")
    with open(Path(tempfile.gettempdir()) / f"pmshelve-pyright-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one download at a time
        done = run("pyright", "--version")
    if done.returncode:
        pytest.skip(f"pyright does not start: {done.stderr.strip()[-200:]}")


def run_pyright(*arguments: str) -> Any:
    done = run(
        "pyright",
        "--pythonpath",
        sys.executable,
        "--outputjson",
        *arguments,
        PYRIGHT_PYTHON_IGNORE_WARNINGS="1",
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return json.loads(done.stdout)


def test_mypy_says_what_the_samples_expect() -> None:
    pytest.importorskip("mypy")
    samples = [path.name for path in known_by({"zict", "distributed"})]
    cache = str(ROOT / ".mypy_cache" / "samples")
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--output=json"]
    done = run("mypy", *options, "--cache-dir", cache, *samples, MYPYPATH=str(ROOT))
    assert done.returncode == 1, done.stdout + done.stderr
    found: Found = defaultdict(set)
    for line in done.stdout.splitlines():
        said = json.loads(line) if line.startswith("{") else {}
        if said.get("severity") == "error":
            found[said["file"], said["line"]].add(said["code"])
    assert found == expected(0), done.stdout


def test_pyright_says_what_the_samples_expect(pyright: None) -> None:
    samples = {path.name for path in known_by({"zict", "distributed"})}
    found: Found = defaultdict(set)
    said = run_pyright("--project", str(SAMPLES / "pyrightconfig.json"))["generalDiagnostics"]
    for each in said:
        name = Path(each["file"]).name
        if each["severity"] == "error" and name in samples:
            found[name, each["range"]["start"]["line"] + 1].add(each["rule"])
    assert found == expected(1), json.dumps(said, indent=1)


@pytest.mark.parametrize("sample", GOOD, ids=lambda path: path.stem)
def test_good_samples_run(sample: Path, tmp_path: Path) -> None:
    if sample not in known_by({"zict", "distributed"}):
        pytest.skip("a package that it uses is missing")
    subprocess.run(
        [sys.executable, "-W", "error", sample],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


EXTERNAL = {"Type of metaclass unknown", "Type of base class unknown"}
"""Said of classes that derive from another package's: here pyright reads no package but ours, and stubs."""


def test_the_type_of_every_public_name_is_known(pyright: None) -> None:
    """The share of the public names, and of the attributes of public classes, is 100 %."""
    report = run_pyright("--verifytypes", "pmshelve", "--ignoreexternal")["typeCompleteness"]
    wanted = public_names()
    judged = {
        symbol["name"]: symbol
        for symbol in report["symbols"]
        if any(symbol["name"] == name or symbol["name"].startswith(f"{name}.") for name in wanted)
    }
    assert len(judged) > 400
    bad = {}
    for name, symbol in judged.items():
        said = [each["message"] for each in symbol["diagnostics"]]
        if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]:
            bad[name] = [text for text in said if text not in EXTERNAL]
    assert {name: said for name, said in bad.items() if said} == {}


def public_names() -> set[str]:
    """Return the dotted names of all that is public, where it is defined, and of its bases of ours."""
    names: set[str] = set()
    for module in importable():
        for public in module.__all__:
            thing = getattr(module, public)
            if isinstance(thing, ModuleType):
                continue
            names.add(f"{module.__name__}.{public}")
            for base in thing.__mro__ if isinstance(thing, type) else [thing]:
                where = str(getattr(base, "__module__", ""))
                if where.startswith("pmshelve."):
                    names |= {f"{where}.{base.__qualname__}", *homes(base)}
    return names


def homes(thing: Any) -> set[str]:
    """Return the dotted names by which our modules know a class that says it is from elsewhere."""
    modules = [module for name, module in sys.modules.items() if name.startswith("pmshelve.")]
    name = thing.__qualname__
    return {f"{each.__name__}.{name}" for each in modules if vars(each).get(name) is thing}
