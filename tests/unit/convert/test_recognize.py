"""What a name stands for is found out by content; where that says nothing, or too much, it is asked."""

from __future__ import annotations

import pickle
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.convert import KINDS
from pmshelve.convert.dbms import is_berkeley, is_dumb, is_gnu
from pmshelve.convert.recognize import Options, open_source
from pmshelve.errors import CorruptionError, NotAStoreError, PmshelveError
from pmshelve.mmapdict import mmapdict
from tests.support.moving import OBJECTS, make_dbm, make_sqlitedict


def kind_of(path: str, kind: str | None = None) -> str:
    with open_source(path, kind, Options()) as source:
        assert source.kind in KINDS
        return source.kind


def make_all(here: Path) -> dict[str, str]:
    """Make one of each kind; return kinds by name."""
    with mmapdict("m") as store:
        store["a"] = 1
    with pmemobj.create("p") as pool:
        pool.root = pool.new(pmemobj.PersistentDict)
    (here / "d").write_bytes(pickle.dumps({}))
    make_dbm("dbm.sqlite3", "s", {b"a": b"1"})
    make_dbm("dbm.dumb", "dumb", {b"a": b"1"})
    (here / "z").mkdir()
    (here / "z" / "key#0").write_bytes(b"1")
    return {
        "m": "mmapdict",
        "p": "pmemobj",
        "d": "pickle",
        "s": "dbm.sqlite3",
        "dumb": "dbm.dumb",
        "z": "zict",
    }


def test_the_name_says_nothing(here: Path) -> None:
    for number, (name, kind) in enumerate(make_all(here).items()):
        assert kind_of(name) == kind
        if name == "dumb":
            continue
        for ending in (".db", ".pickle", ".dat", ".sqlite"):
            other = f"renamed{number}{ending}"
            (shutil.copytree if kind == "zict" else shutil.copy)(name, other)
            assert kind_of(other) == kind, other


def test_a_kind_that_is_named_is_opened_as_such(here: Path) -> None:
    for name, kind in make_all(here).items():
        assert kind_of(name, kind) == kind
    assert kind_of("m", "mmappickle") == "mmapdict"
    assert kind_of("z", "zict.File") == "zict"
    assert kind_of("s", "dbm") == "dbm.sqlite3"
    assert kind_of("dumb.dat", "dbm") == "dbm.dumb"
    for name, kind in (("d", "mmapdict"), ("m", "pmemobj"), ("z", "diskcache"), ("p", "dbm")):
        with pytest.raises(NotAStoreError):
            kind_of(name, kind)
    with pytest.raises(NotAStoreError):
        kind_of("p", "pickle")
    with pytest.raises(CorruptionError, match="SQLite cannot read it"):
        kind_of("p", "sqlitedict")
    with pytest.raises(NotADirectoryError):
        kind_of("p", "zict")
    with pytest.raises(ValueError, match="no kind 'lmdb'; there is dbm, mmapdict, pmemobj"):
        kind_of("p", "lmdb")


@pytest.mark.parametrize(
    "content", [b"", b"hello.", b"\x80\x04 not to the end", b"SQLite", bytes(5000), b"{}\n"]
)
def test_an_unknown_file_is_an_error_that_lists_the_kinds(here: Path, content: bytes) -> None:
    (here / "file").write_bytes(content)
    with pytest.raises(NotAStoreError, match="not a store of a known kind") as caught:
        kind_of("file")
    assert all(kind in caught.value.hint for kind in KINDS)


def test_an_empty_or_mixed_directory_is_an_error(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "mixed").mkdir()
    (here / "mixed" / "key#0").write_bytes(b"")
    (here / "mixed" / "sub").mkdir()
    for name in ("empty", "mixed"):
        with pytest.raises(NotAStoreError):
            kind_of(name)
    assert kind_of("empty", "zict") == "zict"


def test_what_is_missing_is_missing(here: Path) -> None:
    for kind in (None, "dbm", "mmapdict", "pmemobj", "pickle", "zict", "diskcache", "sqlitedict"):
        with pytest.raises((FileNotFoundError, PmshelveError)):
            kind_of("nothing", kind)
    with pytest.raises(FileNotFoundError):
        kind_of("nothing")
    assert not list(here.iterdir())


def test_two_stores_of_one_name_are_to_be_told_apart(here: Path) -> None:
    make_dbm("dbm.dumb", "both", {b"a": b"1"})
    (here / "both").write_bytes(pickle.dumps({"b": 2}))
    with pytest.raises(NotAStoreError, match=r"a dbm\.dumb database.* or a pickled dict"):
        kind_of("both")
    assert kind_of("both", "pickle") == "pickle"
    assert kind_of("both", "dbm") == "dbm.dumb"
    assert kind_of("both.dir") == "dbm.dumb"


def test_an_sqlite_file_of_two_kinds(here: Path) -> None:
    make_sqlitedict("file", OBJECTS)
    assert kind_of("file") == "sqlitedict"
    connection = sqlite3.connect("file")
    connection.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
    connection.commit()
    with pytest.raises(NotAStoreError, match=r"dbm\.sqlite3"):
        kind_of("file")
    connection.execute("DROP TABLE Dict")
    connection.execute("DROP TABLE unnamed")
    connection.execute("CREATE TABLE other (key INTEGER, value TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(NotAStoreError, match="not a store of a known kind"):
        kind_of("file")


@pytest.mark.parametrize("number", [0x13579ACE, 0x13579ACD, 0x13579ACF])
@pytest.mark.parametrize("order", ["little", "big"])
def test_magic_numbers_of_dbms(number: int, order: Any) -> None:
    assert is_gnu(number.to_bytes(4, order) + bytes(12))
    assert not is_gnu(bytes(16))
    magic = (0x61561).to_bytes(4, order)
    assert is_berkeley(magic + bytes(12))
    assert is_berkeley(bytes(12) + magic)
    assert not is_berkeley(b"")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (b"", True),
        (b"'key', (0, 5)\n", True),
        (b"'k\\xff', (512, 0)\n'b', (0, 1)\n", True),
        (b"\n", False),
        (b"'key' (0, 5)\n", False),
        (b"('key', 0)\n", False),
        (b"1, (0, 5)\n", False),
        (b"\x00\x01\x02", False),
        (b"(" * 10_000, False),
    ],
)
def test_the_index_of_a_dumb_database(here: Path, index: bytes, expected: bool) -> None:
    (here / "x.dir").write_bytes(index)
    assert not is_dumb("x")
    (here / "x.dat").write_bytes(b"")
    assert is_dumb("x") is expected
