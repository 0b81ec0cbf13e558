"""Shelves, dbm modules, and errors."""

from __future__ import annotations

import dbm
import pickle
import shelve
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from known import assert_type

import pmshelve
from pmshelve import dbm_compat, errors
from pmshelve.dbm_compat.database import Database
from pmshelve.shelf import BaseShelf, ClassicShelf

assert_type(pmshelve.__version__, str)

with pmshelve.open("shelf") as shelf:
    assert_type(shelf, BaseShelf)
    shelf["a"] = [1, 2]
    assert_type(shelf["a"], Any)
    shelf.update({"c": 1}, d=2)
    with shelf.batch() as same:
        assert_type(same, BaseShelf)
        del same["a"]
    shelf.sync()
    shelf.reorganize()
    like: shelve.Shelf[Any] = shelf
    mapping: MutableMapping[str, Any] = shelf
with pmshelve.open(
    Path("shelf"), "r", None, True, mmap_mode="r", timeout=3, exclusive=False
) as shelf:
    assert_type(list(shelf), list[str])
with pmshelve.open("pool", "ns", backend="pmemobj", sync=True, allow_pickle=False) as shelf:
    assert_type(shelf, BaseShelf)
with pmshelve.open("other", serializer=pickle.dumps, deserializer=pickle.loads) as classic:
    assert_type(classic, ClassicShelf)

with dbm_compat.mmapdict.open("file", "n", 0o600) as database:
    assert_type(database, Database)
    database["key"] = "value"
    database[b"key"] = bytearray(b"value")
    assert_type(database["key"], bytes)
    assert_type(database.get(b"key"), bytes | None)
    assert_type(database.get("none", 3), bytes | int)
    assert_type(database.keys(), list[bytes])
    assert_type(database.firstkey(), bytes | None)
    database.update({"a": b"b"}, c="d")
    database.update([(b"e", "f")])
    for key, value in database.items():
        assert_type(key, bytes)
        assert_type(value, bytes)
    for key in database:
        assert_type(key, bytes)
    assert_type(database.pop("a"), bytes)
    assert_type(database.setdefault("g", b"h"), bytes)
assert_type(dbm_compat.mmapdict.library, str)
try:
    dbm_compat.mmapdict.open("missing")
except dbm_compat.mmapdict.error as error:
    assert_type(error, OSError)
with dbm_compat.pmemobj.open("file.pool", "cs") as database:
    assert_type(database, Database)
dbm_compat.register("mmapdict")
assert_type(dbm.whichdb("file"), str | None)
dbm_compat.unregister()

try:
    raise errors.CorruptionError("torn", "file", offset=3, invariant="L3")
except errors.PmshelveError as problem:
    assert_type(problem.problem, str)
    assert_type(problem.hint, str)
    if isinstance(problem, errors.CorruptionError):
        assert_type(problem.offset, int | None)
try:
    raise errors.NoSpaceError("full", "file")
except errors.StorageError as storage:
    assert_type(storage.errno, int)
