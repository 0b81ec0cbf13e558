"""`pmshelve.dbm_compat.mmapdict`: what it does and the other module does not; see test_open.py."""

from __future__ import annotations

import dbm.dumb
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.dbm_compat.mmapdict import recognizes
from pmshelve.mmapdict import mmapdict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def fill(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        db["key"] = b"value"


def test_n_empties_a_store_that_others_have_open(path: Path) -> None:
    fill(path)
    with our_dbm.open(path, "w") as other:
        with our_dbm.open(path, "n") as db:
            assert len(db) == len(other) == 0
            db["new"] = b"1"
            assert other.keys() == [b"new"]
            other["from the other"] = b"2"
            assert db.keys() == [b"new", b"from the other"]


def test_two_writers_see_each_other(path: Path) -> None:
    with our_dbm.open(path, "c") as one, our_dbm.open(path, "c") as two:
        one["a"] = b"1"
        two["b"] = b"2"
        assert one.items() == two.items() == [(b"a", b"1"), (b"b", b"2")]
        del one["b"]
        assert "b" not in two


def test_another_process_reads_and_writes(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        db["a"] = b"1"
        code = """import sys
from pmshelve.dbm_compat import mmapdict
with mmapdict.open(sys.argv[1], "w") as db:
    db["b"] = db["a"] + b"2"
"""
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)
        assert db["b"] == b"12"


def test_a_database_of_the_standard_library_is_not_ours(tmp_path: Path) -> None:
    with dbm.dumb.open(str(tmp_path / "dumb"), "c") as db:
        db["key"] = b"value"
    for name in os.listdir(tmp_path):
        assert not recognizes(str(tmp_path / name))


def test_a_store_made_by_the_store_itself_is_recognized(path: Path) -> None:
    with mmapdict(path) as store:
        store["key"] = 1
    assert recognizes(str(path))
    assert recognizes(os.fsencode(path))
