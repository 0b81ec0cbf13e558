"""SQLite files are read without a trace, whatever state they were left in."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pmshelve.convert import convert
from pmshelve.convert.sqlite import Database, quoted
from pmshelve.errors import CorruptionError, LockTimeoutError, PmshelveError, StorageError

CREATE = "CREATE TABLE t (key TEXT, value BLOB)"


def make(mode: str, *, clean: bool = True) -> None:
    """Write a file with one row, in a process that closes it or dies."""
    code = f"""
import os, sqlite3
c = sqlite3.connect("file")
c.execute("PRAGMA journal_mode={mode}")
c.execute("{CREATE}")
c.execute("INSERT INTO t VALUES ('a', x'00ff')")
c.commit()
{"c.close()" if clean else "os._exit(0)"}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def names(here: Path) -> set[str]:
    return {path.name for path in here.iterdir()}


def rows() -> list[tuple[str, bytes]]:
    database = Database("file")
    try:
        assert database.tables() == {"t": [("key", "TEXT"), ("value", "BLOB")]}
        assert database.one("SELECT count(*) FROM t") == 1
        assert database.one("SELECT 1 FROM t WHERE key = ?", "b") is None
        return list(database.rows("SELECT * FROM t"))
    finally:
        database.close()
        database.close()


@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "WAL"])
@pytest.mark.parametrize("clean", [False, True])
def test_no_file_appears_beside(here: Path, mode: str, clean: bool) -> None:
    make(mode, clean=clean)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    assert ("file-shm" in before) is (mode == "WAL" and not clean)
    assert rows() == [("a", b"\x00\xff")]
    after = {path.name: path.read_bytes() for path in here.iterdir()}
    for found in (before, after):
        found.pop("file-shm", None)  # holds no data: who reads what, and an index of the -wal
    assert after == before


def test_what_is_only_in_the_wal_is_read(here: Path) -> None:
    make("WAL", clean=False)
    assert (here / "file-wal").stat().st_size
    shutil.copy("file", "alone")
    with pytest.raises(StorageError):
        database = Database("alone")
        list(database.rows("SELECT * FROM t"))
    assert rows() == [("a", b"\x00\xff")]


def test_a_wal_without_its_index_is_refused(here: Path) -> None:
    make("WAL", clean=False)
    (here / "file-shm").unlink()
    before = names(here)
    with pytest.raises(PmshelveError, match="not closed in order"):
        Database("file")
    assert names(here) == before


def test_a_reader_sees_one_state_beside_a_writer(here: Path) -> None:
    make("WAL")
    writer = sqlite3.connect("file")
    writer.execute("SELECT * FROM t").fetchall()
    database = Database("file")
    writer.execute("INSERT INTO t VALUES ('b', x'')")
    writer.commit()
    assert not database.is_changed
    assert database.one("SELECT count(*) FROM t") == 1
    database.close()
    writer.close()


def test_a_change_is_told_where_no_lock_keeps_it_away(here: Path) -> None:
    make("WAL")
    database = Database("file")
    assert not database.is_changed
    writer = sqlite3.connect("file")
    writer.execute("INSERT INTO t VALUES ('b', x'')")
    writer.commit()
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.close()
    assert database.is_changed
    database.close()


def test_finding_out_what_it_is_waits_no_longer_than_the_rest(here: Path) -> None:
    make("DELETE")
    writer = sqlite3.connect("file")
    writer.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    with pytest.raises(LockTimeoutError):
        convert("file", "new", timeout=0.05)
    assert time.monotonic() - start < 30  # the default is 60
    writer.close()


def test_a_writer_at_work_is_waited_for(here: Path) -> None:
    make("DELETE")
    writer = sqlite3.connect("file")
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LockTimeoutError, match="another process is writing"):
        Database("file", timeout=0.05)
    writer.close()


def test_a_journal_left_by_a_kill_is_told(here: Path) -> None:
    make("DELETE")
    code = """
import os, sqlite3
c = sqlite3.connect("file")
c.execute("PRAGMA cache_size=1")
c.execute("BEGIN")
c.executemany("INSERT INTO t VALUES (?, zeroblob(3000))", [(str(i),) for i in range(100)])
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (here / "file-journal").stat().st_size
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    with pytest.raises(StorageError, match="open it once with the library that wrote it"):
        Database("file")
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_a_damaged_file_is_told(here: Path) -> None:
    make("DELETE")
    data = bytearray((here / "file").read_bytes())
    data[100:4096] = os.urandom(3996)
    (here / "file").write_bytes(data)
    with pytest.raises(CorruptionError, match="SQLite cannot read it"):
        Database("file")


def test_names_are_quoted_and_odd_paths_opened(here: Path) -> None:
    assert quoted('a"b') == '"a""b"'
    make("DELETE")
    odd = "odd ?#%&\u00fc.db"
    shutil.copy("file", odd)
    database = Database(odd)
    assert database.one("SELECT count(*) FROM t") == 1
    database.close()


def test_text_that_is_not_utf8_comes_through(here: Path) -> None:
    make("DELETE")
    connection = sqlite3.connect("file")
    connection.execute("UPDATE t SET key = CAST(x'ff41' AS TEXT)")
    connection.commit()
    connection.close()
    assert rows() == [("\udcffA", b"\x00\xff")]
