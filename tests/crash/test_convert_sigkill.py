"""A conversion is killed at any instant: no new file or a whole one, the source as it was.

What is left beside is removed by the next conversion to the same name, which then goes through.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pmshelve.convert import convert
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.dbm_compat import pmemobj as our_pool_dbm
from pmshelve.mmapdict import mmapdict
from tests.support.moving import make_dbm
from tests.support.processes import ROOT

CONTENT = {b"%d" % i: bytes([i % 256]) * (i % 900) for i in range(4000)}
OLD = {b"mine": b"before"}

_CHILD = """
import sys
sys.path.insert(0, {root!r})
from pmshelve.convert import convert
started = False
def tell(done, total):
    global started
    if not started:
        started = True
        print("started", flush=True)
convert({src!r}, {dst!r}, to={to!r}, overwrite=True, progress=tell)
print("done", flush=True)
"""


def digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.is_file()
    }


def content_of(path: Path, to: str) -> dict[bytes, bytes]:
    module = our_dbm if to == "mmapdict" else our_pool_dbm
    with module.open(path) as database:
        return dict(database.items())


def run_and_kill(src: Path, dst: Path, to: str, delay: float) -> bool:
    """Start a conversion, kill it; return whether it was done before."""
    code = _CHILD.format(root=str(ROOT), src=str(src), dst=str(dst), to=to)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    time.sleep(delay)
    process.kill()
    rest = process.stdout.read()
    process.stdout.close()
    assert process.wait() in (-signal.SIGKILL, 0)
    return rest == b"done\n"


def timed(src: Path, dst: Path, to: str) -> float:
    start = time.monotonic()
    convert(src, dst, to=to)
    return time.monotonic() - start


@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_killed_conversion_leaves_no_half_file(
    tmp_path: Path, profile: Any, to: str, is_there: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_dbm("dbm.sqlite3", str(source / "old"), CONTENT)
    before = digests(source)
    whole = timed(source / "old", tmp_path / "once", to)
    rng = random.Random(7)
    ends = {"before": 0, "after": 0}
    for number in range(5 * profile.factor):
        home = tmp_path / f"{number}"
        home.mkdir()
        new = home / "new"
        if is_there:
            with our_dbm.open(new, "c") as database:
                database.update(OLD)
        done = run_and_kill(source / "old", new, to, 1.3 * whole * rng.random())
        assert digests(source) == before
        there = new.exists() and (not is_there or content_of_any(new) != OLD)
        ends["after" if there else "before"] += 1
        assert there or not done
        if there:
            assert content_of(new, to) == CONTENT
        assert {*os.listdir(home)} <= {"new", ".new.converting"}
        assert new.exists() or not is_there
        convert(source / "old", new, to=to, overwrite=True)
        assert os.listdir(home) == ["new"]
        assert content_of(new, to) == CONTENT
    assert ends["before"], "no conversion was killed in time"


def content_of_any(path: Path) -> dict[bytes, bytes]:
    return content_of(path, "mmapdict" if our_dbm.recognizes(path) else "pmemobj")


def test_a_kill_where_the_name_is_taken(tmp_path: Path) -> None:
    """The kernel's calls around the last step, each of them the last one the process makes."""
    make_dbm("dbm.dumb", str(tmp_path / "old"), {b"k": b"v"})
    code = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pmshelve.convert import convert
from pmshelve.storage import file
name, when = sys.argv[4].split()
call = getattr(file.system, name)
def die(*arguments, **options):
    if when == "after":
        call(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(file.system, name, die)
convert(sys.argv[2], sys.argv[3], overwrite=True)
"""
    for is_there in (False, True):
        for name in ("rename", "rmdir") if is_there else ("mkdir", "link", "unlink"):
            for when in ("before", "after"):
                home = tmp_path / f"{is_there} {name} {when}"
                home.mkdir()
                new = home / "new"
                if is_there:
                    with mmapdict(new, face="bytes") as store:
                        store["mine"] = b"before"
                arguments = [ROOT, tmp_path / "old", new, f"{name} {when}"]
                done = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
                assert done.returncode == -signal.SIGKILL
                if new.exists():
                    assert content_of(new, "mmapdict") in (
                        [OLD, {b"k": b"v"}] if is_there else [{b"k": b"v"}]
                    )
                else:
                    assert not is_there
                convert(tmp_path / "old", new, overwrite=True)
                assert content_of(new, "mmapdict") == {b"k": b"v"}
                assert os.listdir(home) == ["new"]
