"""Sources with something wrong in them: what they would hand out shortened, or not at all, is told."""

from __future__ import annotations

import dbm.dumb
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pmshelve.convert import BadEntriesError, convert
from pmshelve.convert.dbms import DbmSource
from pmshelve.convert.pickledict import PickledDictSource
from pmshelve.convert.zictfiles import ZictFileSource
from pmshelve.errors import StateError, StorageError
from pmshelve.mmapdict import mmapdict
from tests.support.moving import assert_dbm, assert_shelf, make_dbm


@pytest.mark.parametrize("kept", [0, 400])
def test_values_of_a_dumb_dbm_that_was_cut(converted: Any, kept: int) -> None:
    make_dbm("dbm.dumb", "old", {b"a": b"whole", b"b": b"y" * 1000})
    os.truncate("old.dat", 512 + kept)
    with pytest.raises(BadEntriesError, match=rf"of its 1000 bytes only {kept} are there"):
        converted("old", "new")
    report = converted("old", "new", skip_bad=True)
    assert (report.entries, report.bad_count) == (1, 1)
    assert_dbm("new", {b"a": b"whole"})


def test_a_key_without_a_value(converted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dbm("dbm.dumb", "old", {b"a": b"1", b"b": b"2"})
    keys = dbm.dumb._Database.keys
    monkeypatch.setattr(dbm.dumb._Database, "keys", lambda database: [*keys(database), b"c"])
    report = converted("old", "new", skip_bad=True)
    assert (report.entries, report.bad_count) == (2, 1)
    assert "lists the key" in report.bad[0].problem


def test_numbers_where_dbm_sqlite3_has_bytes(converted: Any) -> None:
    connection = sqlite3.connect("old")
    connection.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
    rows = [(b"int", 7), (b"float", 1.5), (8, b"key"), (b"good", b"1"), (b"text", "ü")]
    connection.executemany("INSERT INTO Dict VALUES (?, ?)", rows)
    connection.commit()
    connection.close()
    report = converted("old", "new", skip_bad=True)
    assert [bad.key for bad in report.bad] == ["b'int'", "b'float'", "8"]
    assert_dbm("new", {b"good": b"1", b"text": "ü".encode()})


def test_caches_inside_of_a_cache_are_told(converted: Any) -> None:
    diskcache = pytest.importorskip("diskcache")
    cache = diskcache.FanoutCache("old", shards=2)
    cache["a"] = 1
    inner = [cache.cache("sub/deeper"), cache.index("table").cache, cache.deque("queue").cache]
    inner[0]["b"] = 2
    for opened in (*inner, cache):
        opened.close()
    report = converted("old", "new")
    assert report.left_out == {"caches, deques and indexes inside of it": 3}
    assert_shelf("new", {"a": 1})
    converted("old/cache/sub/deeper", "inner")
    assert_shelf("inner", {"b": 2})


def test_a_database_that_is_not_diskcaches_is_closed_again(here: Path) -> None:
    Path("old").mkdir()
    connection = sqlite3.connect("old/cache.db")
    connection.execute("CREATE TABLE Cache (key, value)")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match="no such column: expire_time"):
        convert("old", "new")
    assert os.listdir() == ["old"]


# Changes ----------------------------------------------------------------------------------------


def test_an_entry_that_is_deleted_meanwhile_is_a_change(here: Path) -> None:
    with mmapdict("live") as live:
        live.update({f"key {i}": i for i in range(3000)})

        def delete(done: int, total: int) -> None:
            live.pop(f"key {done + 1000}", None)

        with pytest.raises(StateError, match="changed while it was converted"):
            convert("live", "new", progress=delete)
    assert os.listdir() == ["live"]


def test_a_change_just_after_opening_is_one(here: Path) -> None:
    """What was read by then is not what is there."""
    make_dbm("dbm.dumb", "dumb", {b"a": b"1"})
    Path("pickle").write_bytes(b"(dX\x01\x00\x00\x00aK\x01s.")
    Path("files").mkdir()
    Path("files/a#0").write_bytes(b"1")
    sources = [
        (DbmSource("dumb", "dbm.dumb"), Path("dumb.dat")),
        (PickledDictSource("pickle"), Path("pickle")),
        (ZictFileSource("files"), Path("files/b#1")),
    ]
    for source, path in sources:
        with source:
            assert not source.is_changed()
            path.write_bytes(b"another")
            assert source.is_changed()
