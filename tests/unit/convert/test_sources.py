"""Sources of others, written by the library that they belong to; moved as they are, and unpickled."""

from __future__ import annotations

import datetime
import pickle
import shelve
import sqlite3
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

import pmshelve.convert
from pmshelve.convert import BadEntriesError
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.dbm_compat import pmemobj as our_pool_dbm
from pmshelve.errors import NotAStoreError, PickleRefusedError, PmshelveError
from pmshelve.mmapdict import mmapdict
from tests.support.moving import (
    ARRAYS,
    OBJECTS,
    RAW,
    assert_dbm,
    assert_shelf,
    is_mapped,
    make_dbm,
    make_shelf,
    make_sqlitedict,
)

# dbm and shelve ---------------------------------------------------------------------------------

DBMS = ["dbm.dumb", "dbm.gnu", "dbm.ndbm", "dbm.sqlite3"]


@pytest.mark.parametrize("kind", DBMS)
@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
def test_a_dbm_becomes_a_dbm(converted: Any, kind: str, to: str) -> None:
    content = dict(RAW)
    make_dbm(kind, "old", content)
    report = converted("old", "new", to=to)
    assert (report.kind, report.face, report.entries) == (kind, "bytes", len(RAW))
    assert report.bytes == sum(len(key) + len(value) for key, value in content.items())
    assert_dbm("new", content, our_dbm if to == "mmapdict" else our_pool_dbm)


@pytest.mark.parametrize("kind", ["dbm.dumb", "dbm.gnu", "dbm.sqlite3"])
@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
@pytest.mark.parametrize("unpickle", [False, True])
def test_a_shelf_becomes_a_shelf(converted: Any, kind: str, to: str, unpickle: bool) -> None:
    content = {**OBJECTS, **ARRAYS}
    make_shelf(kind, "old", content)
    report = converted("old", "new", shelf=True, to=to, unpickle=unpickle)
    assert (report.kind, report.face) == (kind, "native")
    assert_shelf("new", content, to)


def test_values_of_a_shelf_are_moved_without_loading_them(converted: Any, here: Path) -> None:
    trap = b"cos\nmkdir\n(X\x04\x00\x00\x00trapI511\ntR."
    make_dbm("dbm.dumb", "old", {b"trap": trap, b"plain": pickle.dumps(5), b"zero": b"I7\n."})
    report = converted("old", "new", shelf=True)
    assert report.pickles == 1
    assert not (here / "trap").exists()
    with mmapdict("new", readonly=True, allow_pickle=False) as store:
        assert (store["plain"], store["zero"]) == (5, 7)
        with pytest.raises(PickleRefusedError):
            store["trap"]
    with mmapdict("new", readonly=True) as store:
        store["trap"]
    assert (here / "trap").exists()


def test_arrays_of_a_shelf_are_mapped_if_it_is_unpickled(converted: Any) -> None:
    make_shelf("dbm.dumb", "old", ARRAYS)
    converted("old", "moved", shelf=True)
    converted("old", "loaded", shelf=True, unpickle=True)
    with mmapdict("loaded", readonly=True) as store:
        assert is_mapped(store["array"])
        assert is_mapped(store["inside"]["weights"])
    with mmapdict("moved", readonly=True) as store:
        assert not is_mapped(store["array"])


def test_a_dbm_of_pickles_is_a_shelf_through_the_other_door_too(converted: Any) -> None:
    make_shelf("dbm.dumb", "old", OBJECTS)
    report = converted("old", "new")
    assert report.face == "bytes"
    assert report.notes == ["the values look like pickles: if this is a shelf, add --shelf"]
    assert not converted("old", "said", shelf=True).notes
    assert_shelf("new", OBJECTS)
    converted("new", "native", shelf=True)
    assert_shelf("native", OBJECTS)
    converted("old", "bytes", shelf=True, face="bytes")
    with our_dbm.open("bytes") as one, our_dbm.open("new") as two:
        assert dict(one.items()) == dict(two.items())


def test_what_is_no_pickle_in_a_shelf_is_told(converted: Any) -> None:
    make_dbm("dbm.dumb", "old", {b"a": b"I am text.", b"b": pickle.dumps([1])[:-1], b"c": b""})
    with pytest.raises(BadEntriesError, match="3 of 3 entries") as caught:
        converted("old", "new", shelf=True)
    assert {bad.problem for bad in caught.value.report.bad} == {"the value is no pickle"}


def test_a_value_that_does_not_load_is_told(converted: Any) -> None:
    make_dbm("dbm.dumb", "old", {b"a": b"cnomodule\nname\n.", b"b": b"N."})
    report = converted("old", "new", shelf=True, unpickle=True, skip_bad=True)
    assert (report.entries, report.bad_count) == (1, 1)
    assert "ModuleNotFoundError" in report.bad[0].problem
    assert converted("old", "moved", shelf=True).entries == 2


@pytest.mark.parametrize("name", ["old.dat", "old.dir", "old"])
def test_any_of_a_databases_files_names_it(converted: Any, name: str) -> None:
    make_shelf("dbm.dumb", "old", OBJECTS)
    assert converted(name, "new", shelf=True).kind == "dbm.dumb"


def test_a_shelf_of_the_standard_library_as_it_comes(converted: Any, here: Path) -> None:
    with shelve.open("old") as shelf:
        shelf.update(OBJECTS)
    report = converted("old", "new", shelf=True)
    assert report.kind.startswith("dbm.")
    assert_shelf("new", OBJECTS)


def test_a_module_that_this_python_lacks(
    converted: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "old").write_bytes((0x13579ACF).to_bytes(4, "little") + bytes(100))
    monkeypatch.setitem(sys.modules, "dbm.gnu", None)
    with pytest.raises(PmshelveError, match=r"built without dbm\.gnu"):
        converted("old", "new")


# sqlitedict -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unpickle", [False, True])
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_an_sqlitedict(converted: Any, unpickle: bool, journal: str) -> None:
    make_sqlitedict("old.sqlite", {**OBJECTS, **ARRAYS}, journal_mode=journal)
    report = converted("old.sqlite", "new", unpickle=unpickle)
    assert report.kind == "sqlitedict"
    assert_shelf("new", {**OBJECTS, **ARRAYS})


def test_a_table_of_several_is_to_be_chosen(converted: Any) -> None:
    make_sqlitedict("old.sqlite", {"a": 1}, tablename="first")
    make_sqlitedict("old.sqlite", {"b": 2}, tablename='the "second"')
    with pytest.raises(PmshelveError, match=r"--table.*'first', 'the .second.'"):
        converted("old.sqlite", "new")
    with pytest.raises(PmshelveError, match="no sqlitedict table 'third'"):
        converted("old.sqlite", "new", table="third")
    converted("old.sqlite", "new", table='the "second"')
    assert_shelf("new", {"b": 2})


def test_an_sqlitedict_with_an_encoding_of_its_own(converted: Any) -> None:
    import json
    import zlib

    make_sqlitedict("json.sqlite", {"a": [1, 2]}, encode=json.dumps, decode=json.loads)
    converted("json.sqlite", "new")
    assert_shelf("new", {"a": "[1, 2]"})
    make_sqlitedict("zip.sqlite", {"a": 1}, encode=lambda value: zlib.compress(b"%d" % value))
    with pytest.raises(BadEntriesError, match="the value is no pickle"):
        converted("zip.sqlite", "other")


def test_an_sqlitedict_becomes_a_shelf_of_bytes(converted: Any) -> None:
    make_sqlitedict("old.sqlite", OBJECTS)
    converted("old.sqlite", "new", face="bytes")
    assert_shelf("new", OBJECTS)


# diskcache --------------------------------------------------------------------------------------

LARGE = {"file": b"x" * 70_000, "long text": "ö" * 70_000, "many": list(range(30_000))}


@pytest.mark.parametrize("unpickle", [False, True])
def test_a_diskcache(converted: Any, unpickle: bool) -> None:
    diskcache = pytest.importorskip("diskcache")
    content = {**OBJECTS, **ARRAYS, **LARGE}
    with diskcache.Cache("old") as cache:
        for key, value in content.items():
            cache[key] = value
        cache.set("gone", 1, expire=0.001)
        cache.set("later", 2, expire=1000, tag="t")
        time.sleep(0.01)
    report = converted("old", "new", unpickle=unpickle)
    assert report.kind == "diskcache"
    assert report.left_out == {"expired": 1, "expiry times": 1, "tags": 1}
    assert_shelf("new", {**content, "later": 2})
    assert converted("old/cache.db", "again").kind == "diskcache"


def test_a_fanout_cache(converted: Any) -> None:
    diskcache = pytest.importorskip("diskcache")
    cache = diskcache.FanoutCache("old", shards=3)
    for key, value in {**OBJECTS, **LARGE}.items():
        cache[key] = value
    cache.close()
    converted("old", "new")
    assert_shelf("new", {**OBJECTS, **LARGE})


def test_a_cache_of_json(converted: Any) -> None:
    diskcache = pytest.importorskip("diskcache")
    content = {"a": {"x": [1, None]}, "b" * 50: "y" * 90_000}
    with diskcache.Cache("old", disk=diskcache.JSONDisk) as cache:
        for key, value in content.items():
            cache[key] = value
    converted("old", "new")
    assert_shelf("new", content)


def test_keys_of_a_cache_that_are_no_text(converted: Any) -> None:
    diskcache = pytest.importorskip("diskcache")
    keys = [5, 2.5, (1, "x"), ("a", None, (True,)), datetime.date(2020, 1, 1), b"utf-8"]
    with diskcache.Cache("old") as cache:
        for key in keys:
            cache[key] = "v"
    with pytest.raises(BadEntriesError) as caught:
        converted("old", "new")
    problems = [bad.problem for bad in caught.value.report.bad]
    assert problems[:2] == ["keys are str here, not int", "keys are str here, not float"]
    assert "the key cannot be read" in problems[4]
    report = converted("old", "new", skip_bad=True)
    assert (report.entries, report.bad_count) == (1, 5)
    report = converted("old", "named", skip_bad=True, key=repr)
    assert report.entries == 5
    assert_shelf("named", dict.fromkeys(map(repr, keys[:4] + keys[5:]), "v"))


def test_a_value_whose_file_is_missing_or_elsewhere(converted: Any, here: Path) -> None:
    diskcache = pytest.importorskip("diskcache")
    with diskcache.Cache("old") as cache:
        for key in ("missing", "outside", "whole"):
            cache[key] = b"x" * 70_000
    (here / "secret").write_bytes(b"s" * 70_000)
    connection = sqlite3.connect("old/cache.db")
    names = dict(connection.execute("SELECT key, filename FROM Cache"))
    connection.execute("UPDATE Cache SET filename = '../secret' WHERE key = 'outside'")
    connection.commit()
    connection.close()
    (here / "old" / names["missing"]).unlink()
    report = converted("old", "new", skip_bad=True)
    assert report.entries == 1
    problems = {bad.key: bad.problem for bad in report.bad}
    assert "its file cannot be read" in problems["'missing'"]
    assert "not in the cache's directory" in problems["'outside'"]


# Pickled dicts ----------------------------------------------------------------------------------

LITERALS = {"a": [1, {"b": None}], "s": {1, 2}, "t": (b"x", 2.5, True), "c": "text"}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_dict(converted: Any, here: Path, protocol: int) -> None:
    content = LITERALS if protocol > 3 else {"a": LITERALS["a"], "c": "text"}
    (here / "old").write_bytes(pickle.dumps(content, protocol))
    assert converted("old", "new").kind == "pickle"
    assert_shelf("new", content)


def test_a_pickle_that_names_classes_is_to_be_trusted(converted: Any, here: Path) -> None:
    (here / "old").write_bytes(pickle.dumps({**OBJECTS, **ARRAYS}))
    with pytest.raises(PickleRefusedError, match="--unpickle"):
        converted("old", "new")
    converted("old", "new", unpickle=True)
    assert_shelf("new", {**OBJECTS, **ARRAYS})


def test_a_large_pickle_and_an_ordered_one(converted: Any, here: Path) -> None:
    content = OrderedDict((f"key {i}", "x" * 100) for i in range(2000))
    (here / "old").write_bytes(pickle.dumps(content))
    converted("old", "new", unpickle=True)
    assert_shelf("new", dict(content))


def test_a_pickle_of_something_else(converted: Any, here: Path) -> None:
    (here / "list").write_bytes(pickle.dumps([1]))
    with pytest.raises(NotAStoreError, match="a pickle of a list"):
        converted("list", "new")
    (here / "torn").write_bytes(pickle.dumps({"a": 1})[:-3] + b".")
    with pytest.raises(NotAStoreError, match="does not load"):
        converted("torn", "new")


def test_keys_of_a_pickled_dict_that_are_no_text(converted: Any, here: Path) -> None:
    (here / "old").write_bytes(pickle.dumps({1: "a", "b": 2, None: 3}))
    with pytest.raises(BadEntriesError, match="2 of 3 entries"):
        converted("old", "new")
    assert converted("old", "new", key=str).entries == 3
    assert_shelf("new", {"1": "a", "b": 2, "None": 3})


def test_modules_of_others_are_not_needed(converted: Any) -> None:
    """What reads a file is the standard library: the packages that wrote it need not be there."""
    make_sqlitedict("old.sqlite", OBJECTS)
    for name in ("sqlitedict", "diskcache", "zict"):
        source = Path(pmshelve.convert.__file__).parent
        for module in source.glob("*.py"):
            assert f"import {name}" not in module.read_text()
    assert converted("old.sqlite", "new").entries == len(OBJECTS)


def test_a_file_of_several_pickles_is_refused(converted: Any, here: Path) -> None:
    for first in ({"a": 1}, {"a": b"x" * 100_000}):
        (here / "old").write_bytes(pickle.dumps(first) + pickle.dumps({"b": 2}))
        with pytest.raises(NotAStoreError, match="more behind the first pickle: 21 bytes"):
            converted("old", "new")
