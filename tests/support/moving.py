"""What is moved between stores in tests: content, other stores that hold it, and what it must come to."""

from __future__ import annotations

import datetime
import pickle
import sqlite3
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

import pmshelve
from pmshelve.dbm_compat import mmapdict as our_dbm

OBJECTS: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": 2**70,
    "float": 2.5,
    "text": "Größe " * 50,
    "bytes": b"\x00\xff" * 300,
    "list": [1, {2: 3}, ("x",)],
    "date": datetime.date(2020, 2, 29),
    "ordered": OrderedDict(b=1, a=2),
    "ключ": "a key that is not ASCII",
    "": "the empty key",
}
ARRAYS: dict[str, Any] = {"array": np.arange(5000.0), "inside": {"weights": np.ones((60, 50))}}
RAW = {b"one": b"1", b"\xff\xfe": b"no text", b"empty": b"", b"large": bytes(range(256)) * 1000}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same(found[key], expected[key]) for key in expected
        )
    if isinstance(expected, np.ndarray):
        return isinstance(found, np.ndarray) and np.array_equal(found, expected)
    return type(found) is type(expected) and bool(found == expected)


def assert_shelf(path: str, expected: dict[str, Any], backend: str = "mmapdict") -> None:
    with pmshelve.open(path, "r", backend=backend) as shelf:
        assert shelf.keys() == expected.keys()
        for key, value in expected.items():
            assert same(shelf[key], value), key


def assert_dbm(path: str, expected: dict[bytes, bytes], module: Any = our_dbm) -> None:
    with module.open(path) as database:
        assert dict(database.items()) == expected


def is_mapped(value: Any) -> bool:
    while value is not None:
        if type(value).__name__ == "mmap":
            return True
        value = value.obj if isinstance(value, memoryview) else getattr(value, "base", None)
    return False


def make_dbm(kind: str, name: str, content: dict[bytes, bytes]) -> None:
    """Write a database with the standard library's module; of dbm.sqlite3, as that would."""
    if kind == "dbm.sqlite3" and sys.version_info < (3, 13):
        connection = sqlite3.connect(name)
        connection.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        connection.executemany(
            "REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))",
            content.items(),
        )
        connection.commit()
        connection.close()
        return
    module = pytest.importorskip(kind)
    with module.open(name, "c") as database:
        for key, value in content.items():
            if kind != "dbm.ndbm" or len(value) < 1000:
                database[key] = value
            else:
                content[key] = database[key] = value[:900]  # some have no room for more


def make_shelf(kind: str, name: str, content: dict[str, Any]) -> None:
    make_dbm(kind, name, {key.encode(): pickle.dumps(value) for key, value in content.items()})


def make_sqlitedict(name: str, content: dict[str, Any], **options: Any) -> None:
    sqlitedict = pytest.importorskip("sqlitedict")
    with sqlitedict.SqliteDict(name, autocommit=False, **options) as store:
        store.update(content)
        store.commit()
