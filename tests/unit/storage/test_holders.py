"""Who holds a lock, who has a file open: real processes, nothing asked of them."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from pmshelve.storage.holders import command_of, holders, openers
from tests.support.processes import Worker

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@pytest.fixture
def fd(tmp_path: Path) -> int:
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def test_a_free_file(fd: int) -> None:
    assert holders(fd) == []
    assert openers(fd) == []


@pytest.mark.parametrize(("operation", "mode"), [("LOCK_EX", "exclusive"), ("LOCK_SH", "shared")])
def test_another_process(fd: int, tmp_path: Path, operation: str, mode: str) -> None:
    code = "import fcntl, os; fd = os.open(path, os.O_RDWR); fcntl.flock(fd, getattr(fcntl, operation))"
    with Worker() as worker:
        worker.run(code, path=str(tmp_path / "file"), operation=operation)
        found = holders(fd)
        assert found is not None
        assert [(holder.pid, holder.mode) for holder in found] == [(worker.pid, mode)]
        assert "worker.py" in found[0].command
        opening = openers(fd)
        assert opening is not None
        assert [process.pid for process in opening] == [worker.pid]
        worker.run("os.close(fd)")
        assert holders(fd) == []
        assert openers(fd) == []


def test_this_process_holds_it_but_is_no_other_opener(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    found = holders(fd)
    assert found is not None
    assert [(holder.pid, holder.mode) for holder in found] == [(os.getpid(), "exclusive")]
    assert openers(fd) == []


def test_a_process_that_is_gone_has_no_command() -> None:
    assert command_of(2**22 + 1) == ""
    assert "python" in command_of(os.getpid())
