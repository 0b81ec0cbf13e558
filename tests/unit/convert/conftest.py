"""What every test of a conversion sees to: the source is as it was, and nothing lies about."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve.convert import Report, convert
from tests.support.moving import OBJECTS, make_shelf

Snapshot = dict[str, Any]


def snapshot(directory: Path) -> Snapshot:
    """Return name, content and time of change of everything below a directory."""
    found: Snapshot = {}
    for path in sorted(directory.rglob("*")):
        mark = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path.relative_to(directory))] = content, mark.st_mtime_ns, mark.st_ino
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def old(here: Path) -> str:
    make_shelf("dbm.dumb", "old", OBJECTS)
    return "old"


Convert = Callable[..., Report]


@pytest.fixture
def converted(here: Path) -> Iterator[Convert]:
    """`convert`, and nothing but the new file is there afterwards that was not before."""

    def run(src: str, dst: str, **options: Any) -> Report:
        before = snapshot(here)
        try:
            report = convert(src, dst, **options)
        except BaseException:
            assert snapshot(here) == before
            raise
        after = snapshot(here)
        if report.written:
            assert after.pop(dst)[1]
        before.pop(dst, None)
        assert after == before
        assert report.verified == (report.entries if report.written else 0)
        assert not report.unverified
        return report

    yield run
    assert not [name for name in os.listdir(here) if name.endswith(".converting")]
