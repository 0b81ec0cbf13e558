"""Ctrl-C at real processes in the middle of long work: code 130, a true line, nothing lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.cli import main
from pmshelve.mmapdict import mmapdict
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObjectPool
from pmshelve.pmemobj.collector import Collector
from pmshelve.pmemobj.describe import describe
from pmshelve.pmemobj.survey import Survey
from pmshelve.storage import file as storage
from pmshelve.storage import progress
from pmshelve.storage.progress import Progress
from tests.support.pools import assert_sound
from tests.support.processes import unmeasured

COUNT = 200_000
"""Entries that take some seconds to check and some tenths of one to vacuum."""

_STEP = """
import sys, time
from pmshelve.storage import progress

progress.INTERVAL = 0
at = progress.Pace.at

def slowly(pace, done):
    if pace._progress is not None:
        if not slowly.calls:
            print("working", file=sys.stderr, flush=True)
        slowly.calls += 1
        time.sleep(float(sys.argv[1]))
    at(pace, done)

slowly.calls = 0
progress.Pace.at = slowly
from pmshelve.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def big_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interrupts") / "store"
    with mmapdict(path) as store:
        store.update((f"key {number}", number) for number in range(COUNT))
        store.update((f"key {number}", "changed") for number in range(0, COUNT, 2))
    return path


@pytest.fixture
def store(big_store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "store"
    subprocess.run(["cp", str(big_store), str(path)], check=True)
    return path


def interrupted(path: Path, delay: float, *arguments: str) -> tuple[int, str]:
    """Run a command, send it SIGINT once it is at work and then some; return code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pmshelve", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=path.parent,
        env={**unmeasured(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    deadline = time.monotonic() + 20
    while not is_at_work(process.pid, path) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    # Where the signal comes while Python runs code of a string (a dataclass is being made), it ends
    # itself by that signal at last, whatever the exit code; to a shell that is 130 too.
    code = 130 if process.returncode == -signal.SIGINT else process.returncode
    return code, err.decode()


def is_at_work(pid: int, path: Path) -> bool:
    """Whether a process has mapped the file, or is gone.

    It has imported what it needs by then; a signal meanwhile may get lost in the interpreter.
    """
    try:
        return str(path) in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return not os.path.isdir(f"/proc/{pid}")


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.25, 0.5])
def test_a_vacuum(store: Path, delay: float) -> None:
    before = store.stat().st_size
    code, err = interrupted(store, delay, "vacuum", str(store))
    after = store.stat().st_size
    if code == 130:
        assert re.fullmatch(r"pmshelve: interrupted: (.*)\n", err), err
        if "as it was" in err:
            assert after == before
        else:
            assert "was done" in err
            assert after < before
    else:  # it was done before the signal came
        assert (code, err) == (0, "")
    assert os.listdir(store.parent) == ["store"]
    with mmapdict(store) as opened:
        assert len(opened) == COUNT
        assert opened["key 1"] == 1
        assert opened[f"key {COUNT - 2}"] == "changed"
        opened["more"] = 1


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_a_check(store: Path, delay: float) -> None:
    code, err = interrupted(store, delay, "check", str(store))
    assert (code, err) == (130, "pmshelve: interrupted: the file was only read\n")


# Pools: slowed down, so that a small one is enough ------------------------------------------------


def slowed(path: Path, pause: float, delay: float, *arguments: str) -> tuple[int, str]:
    """Run a command that pauses at each step, and interrupt it after some of them."""
    process = subprocess.Popen(
        [sys.executable, "-c", _STEP, str(pause), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=path.parent,
        env={**unmeasured(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"working\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "pool"
    with pmemobj.create(path, durability="lazy") as pool:
        pool.root = pool.new(PersistentDict)
        for number in range(3000):
            pool.root[f"key {number}"] = pool.new(PersistentList, [number])
    yield path
    with pmemobj.open(path) as pool:
        assert_sound(pool)
        assert len(pool.root) == 3000
        assert pool.root["key 7"] == [7]
    assert {*os.listdir(tmp_path)} <= {"pool", "dump"}


@pytest.mark.parametrize("delay", [0.0, 0.1])
@pytest.mark.parametrize("command", ["gc", "vacuum", "check", "info"])
def test_work_on_a_pool(pool: Path, command: str, delay: float) -> None:
    code, err = slowed(pool, 0.001, delay, command, str(pool))
    assert code == 130
    assert err.startswith("pmshelve: interrupted: ")
    assert ("only read" in err) == (command in {"check", "info"})


def test_a_dump(pool: Path) -> None:
    dump = pool.parent / "dump"
    dump.write_bytes(b"an older one")
    code, err = slowed(pool, 0.001, 0.1, "dump", str(pool), str(dump))
    assert (code, err) == (
        130,
        f"pmshelve: interrupted: {dump} is as it was; the pool was only read\n",
    )
    assert dump.read_bytes() == b"an older one"


def test_a_load(pool: Path) -> None:
    dump, other = pool.parent / "dump", pool.parent / "other"
    with pmemobj.open(pool) as opened, open(dump, "wb") as file:
        opened.dump(file)
    code, err = slowed(pool, 0.001, 0.1, "load", str(dump), str(other))
    assert (code, err) == (130, f"pmshelve: interrupted: {other} was not made\n")


@pytest.mark.parametrize("where", ["survey", "sweep"])
def test_a_collection_is_not_done_after_all(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pool"
    with pmemobj.create(path, durability="lazy") as pool:
        pool.root = pool.new(PersistentDict, {"key": "text"})
    told = 0

    def report(done: int, total: int) -> None:
        nonlocal told
        told = done
        if where == "survey" and told:
            raise KeyboardInterrupt

    @contextmanager
    def bar(title: str, *, quiet: bool = False) -> Iterator[Progress]:
        yield report

    monkeypatch.setattr(progress, "INTERVAL", 0)
    monkeypatch.setattr("pmshelve.cli.gc.bar", bar)
    if where == "sweep":
        monkeypatch.setattr(Collector, "_mend", stop_here)
    surveys = []
    survey = Survey.__init__
    monkeypatch.setattr(
        Survey, "__init__", lambda *args, **kw: surveys.append(1) or survey(*args, **kw)
    )
    assert main(["gc", str(path)]) == 130
    assert "garbage that was freed by then stays freed" in capsys.readouterr().err
    assert told < 1000
    assert len(surveys) == 1  # closing the pool did not begin anew
    # Where nothing had been changed the pool is as clean as it was.
    assert describe(str(path)).clean is (where == "survey")
    monkeypatch.undo()
    with pmemobj.open(path) as pool:
        assert pool.root == {"key": "text"}
        assert_sound(pool)


def stop_here(*_: object, **_options: object) -> None:
    raise KeyboardInterrupt


def test_a_load_that_is_stopped_as_soon_as_the_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dump, other = tmp_path / "dump", tmp_path / "other"
    with pmemobj.create(tmp_path / "pool") as pool, open(dump, "wb") as file:
        pool.dump(file)
    monkeypatch.setattr(PersistentObjectPool, "__enter__", stop_here)
    assert main(["load", str(dump), str(other)]) == 130
    assert capsys.readouterr().err == f"pmshelve: interrupted: {other} was not made\n"
    assert {*os.listdir(tmp_path)} == {"pool", "dump"}
    monkeypatch.undo()
    other.write_bytes(b"somebody's")
    assert main(["load", str(dump), str(other)]) == 2
    assert other.read_bytes() == b"somebody's"


def test_a_load_that_is_stopped_before_an_older_file_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dump").write_bytes(b"any")
    other = tmp_path / "other"
    other.write_bytes(b"somebody's")
    monkeypatch.setattr("pmshelve.cli.load.reading", stop_here)
    assert main(["load", str(tmp_path / "dump"), str(other)]) == 130
    assert "was not made" in capsys.readouterr().err


@pytest.mark.parametrize("when", ["open", "replace", "sync_directory"])
def test_a_dump_that_is_stopped_anywhere_leaves_nothing_and_tells_the_truth(
    pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    dump = pool.parent / "dump"
    dump.write_bytes(b"an older one")
    target: Any = storage.system if when == "open" else storage
    real = getattr(target, when)

    def stop(path: str, *args: Any) -> Any:
        result = real(path, *args)
        if str(path).startswith(str(dump)):
            if when == "open":
                os.close(result)
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(target, when, stop)
    assert main(["dump", str(pool), str(dump), "-q"]) == 130
    monkeypatch.undo()
    whole = dump.read_bytes().startswith(b"PMSHDUMP")
    assert whole is (when != "open")
    expected = "was written, and is whole" if whole else "is as it was; the pool was only read"
    assert capsys.readouterr().err == f"pmshelve: interrupted: {dump} {expected}\n"
