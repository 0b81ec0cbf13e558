"""Our own stores, mmappickle's files and zict's directories as sources, for every door."""

from __future__ import annotations

import datetime
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve import pmemobj
from pmshelve.convert import BadEntriesError
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.dbm_compat import pmemobj as our_pool_dbm
from pmshelve.errors import CorruptionError, NotAStoreError, PmshelveError
from pmshelve.mmapdict import mmapdict
from tests.support.moving import ARRAYS, OBJECTS, RAW, assert_dbm, assert_shelf, is_mapped

DATA = Path(__file__).resolve().parents[2] / "data"

# zict.File --------------------------------------------------------------------------------------

ZICT = {"a/b": b"1", "ü #%": b"2" * 200_000, "empty": b"", "": b"no name", "..": b"dots"}


def make_zict(name: str) -> None:
    zict = pytest.importorskip("zict")
    store = zict.File(name)
    store["a/b"] = b"older"
    store.update(ZICT)


def test_a_zict_directory_as_bytes(converted: Any) -> None:
    make_zict("old")
    report = converted("old", "new", face="bytes")
    assert report.kind == "zict"
    assert_dbm("new", {key.encode(): value for key, value in ZICT.items()})
    converted("old", "native", face="native", to="pmemobj")
    assert_shelf("native", ZICT, "pmemobj")


KEYS = {"a": b"1", 1: b"2" * 100_000, ("x", 0, None): b"", "1": b"3" * 20_000, "\0": b"zero"}


@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
def test_a_zict_directory_as_a_zict_mapping(converted: Any, to: str) -> None:
    make_zict("old")
    from pmshelve import zict_compat

    report = converted("old", "new", to=to)
    assert (report.kind, report.face, report.entries) == ("zict", "zict", len(ZICT))
    with (zict_compat.MmapDict if to == "mmapdict" else zict_compat.PmemDict)("new") as store:
        assert {key: bytes(store[key]) for key in store} == ZICT


@pytest.mark.parametrize("first", ["MmapDict", "PmemDict"])
@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
def test_our_zict_mappings_between_the_stores(converted: Any, first: str, to: str) -> None:
    pytest.importorskip("zict")
    from pmshelve import zict_compat

    with getattr(zict_compat, first)("old") as store:
        store.update(KEYS)
    report = converted("old", "new", to=to, face="zict")
    assert report.entries == len(KEYS)
    with (zict_compat.MmapDict if to == "mmapdict" else zict_compat.PmemDict)("new") as store:
        assert {key: bytes(store[key]) for key in store} == KEYS


def test_an_mmapdict_of_zict_is_copied_as_it_is(converted: Any) -> None:
    pytest.importorskip("zict")
    from pmshelve.zict_compat import MmapDict

    with MmapDict("old") as store:
        store.update(KEYS)
    assert converted("old", "new").face == "native"
    with MmapDict("new") as store:
        assert {key: bytes(store[key]) for key in store} == KEYS


def test_values_for_zict_are_bytes(converted: Any) -> None:
    pytest.importorskip("zict")
    diskcache = pytest.importorskip("diskcache")
    with diskcache.Cache("old") as cache:
        cache[1, "x"] = b"bytes"
        cache["list"] = [1]
    report = converted("old", "new", face="zict", skip_bad=True)
    assert [bad.key for bad in report.bad] == ["'list'"]
    from pmshelve.zict_compat import MmapDict

    with MmapDict("new") as store:
        assert list(store) == [(1, "x")]


def test_two_files_of_one_key_and_a_stray_one(converted: Any, here: Path) -> None:
    make_zict("old")
    (here / "old" / "a%2Fb#99").write_bytes(b"other")
    report = converted("old", "new", face="native", skip_bad=True)
    assert [bad.key for bad in report.bad] == ["'a/b'"]
    assert "two files of one key" in report.bad[0].problem
    (here / "old" / "not quoted!").write_bytes(b"")
    with pytest.raises(NotAStoreError):
        converted("old", "other", face="native")
    report = converted("old", "other", face="native", kind="zict", skip_bad=True)
    assert report.bad_count == 2


# Our own, and mmappickle's ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arrays", "empty", "generic", "history", "masked"])
@pytest.mark.parametrize("unpickle", [False, True])
def test_a_file_of_mmappickle(converted: Any, here: Path, name: str, unpickle: bool) -> None:
    (here / "old").write_bytes((DATA / f"{name}.mmdpickle").read_bytes())
    report = converted("old", "new", unpickle=unpickle)
    assert report.kind == "mmapdict"
    with mmapdict("old", readonly=True) as old, mmapdict("new", readonly=True) as new:
        assert list(new) == list(old)
        for key in old:
            assert pickle.dumps(np.asarray(new[key]) if name == "arrays" else new[key]) == (
                pickle.dumps(np.asarray(old[key]) if name == "arrays" else old[key])
            )
        assert not new.check()
    with open("new", "rb") as file:
        assert list(pickle.load(file)) == list(converted_keys("new"))


def converted_keys(path: str) -> list[str]:
    with mmapdict(path, readonly=True) as store:
        return list(store)


@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
@pytest.mark.parametrize("unpickle", [False, True])
def test_native_values_between_the_stores(converted: Any, to: str, unpickle: bool) -> None:
    content = {**OBJECTS, **ARRAYS, "k" * 300: bytearray(5000), "\ud800": "lone"}
    with mmapdict("one") as store:
        store.update(content)
    converted("one", "two", to=to, unpickle=unpickle)
    assert_shelf("two", content, to)
    converted("two", "three", unpickle=unpickle)
    assert_shelf("three", content)
    with mmapdict("three", readonly=True) as store:
        assert store.check() == []


@pytest.mark.parametrize("first", [our_dbm, our_pool_dbm])
@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
def test_bytes_between_the_stores(converted: Any, first: Any, to: str) -> None:
    with first.open("one", "c") as database:
        database.update(RAW)
    converted("one", "two", to=to)
    assert_dbm("two", RAW, our_dbm if to == "mmapdict" else our_pool_dbm)


def test_a_pool_of_containers(converted: Any) -> None:
    with pmemobj.create("pool") as pool:
        pool.root = root = pool.new(pmemobj.PersistentDict)
        root["list"] = pool.new(pmemobj.PersistentList, [1, "two", (3, "x" * 50)])
        root["list"].append(root["list"])
        root["dict"] = pool.new(pmemobj.PersistentDict, {1: None, "x": b"y"})
        root["set"] = pool.new(pmemobj.PersistentSet, [1, 2])
        root["frozen"] = pool.new(pmemobj.PersistentFrozenSet, [3])
        root["tuple"] = pool.new(pmemobj.PersistentTuple, (root["set"], 1))
        root["array"] = pool.new(pmemobj.PersistentArray, np.arange(12).reshape(3, 4))
    assert converted("pool", "new").face == "native"
    with mmapdict("new", readonly=True) as store:
        assert store["list"][:3] == [1, "two", (3, "x" * 50)]
        endless = store["list"]
        assert endless[3] is endless
        assert store["dict"] == {1: None, "x": b"y"}
        assert store["set"] == {1, 2}
        assert store["frozen"] == frozenset({3})
        assert store["tuple"] == ({1, 2}, 1)
        assert is_mapped(store["array"])
        assert store["array"].tolist() == np.arange(12).reshape(3, 4).tolist()


def test_what_needs_the_unpickler_in_a_pool(converted: Any) -> None:
    with pmemobj.create("pool") as pool:
        pool.root = pool.new(pmemobj.PersistentDict, day=datetime.date(2020, 1, 1), n=1)
    with pytest.raises(BadEntriesError, match="needs the unpickler: --unpickle"):
        converted("pool", "new")
    converted("pool", "new", unpickle=True)
    assert_shelf("new", {"day": datetime.date(2020, 1, 1), "n": 1})


class Thing(pmemobj.PersistentObject):
    pass


def test_objects_of_a_programs_own_classes_stay_where_they_are(converted: Any) -> None:
    with pmemobj.create("pool") as pool:
        pool.root = pool.new(pmemobj.PersistentDict, thing=pool.new(Thing), n=1)
    for unpickle in (False, True):
        report = converted("pool", "new", unpickle=unpickle, skip_bad=True, overwrite=True)
        assert (report.entries, report.bad_count) == (1, 1)
    assert "Thing" in report.bad[0].problem


def test_a_pool_whose_root_is_no_dict(converted: Any) -> None:
    with pmemobj.create("pool") as pool:
        pool.root = pool.new(pmemobj.PersistentList)
    with pytest.raises(PmshelveError, match="root is a PersistentList, not a dict"):
        converted("pool", "new")
    with pmemobj.open("pool") as pool:
        pool.root = None
    with pytest.raises(PmshelveError, match="root is nothing, not a dict"):
        converted("pool", "new")


def test_a_damaged_source_is_told_and_left(converted: Any, here: Path) -> None:
    with mmapdict("old") as store:
        store.update(OBJECTS)
    data = bytearray((here / "old").read_bytes())
    data[data.index(b"\x8c\x04list")] ^= 0xFF  # the opcode of a key
    (here / "old").write_bytes(data)
    with mmapdict("old", readonly=True) as store:
        assert store.check()
    with pytest.raises((CorruptionError, BadEntriesError)):
        converted("old", "new")
