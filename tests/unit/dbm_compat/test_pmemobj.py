"""`pmshelve.dbm_compat.pmemobj`: what it does and the other module does not; see test_open.py."""

from __future__ import annotations

import dbm.dumb
import operator
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pmshelve
from pmshelve import pmemobj
from pmshelve.dbm_compat import pmemobj as our_dbm
from pmshelve.dbm_compat import pools
from pmshelve.errors import LockTimeoutError, WrongDoorError
from tests.support.pools import assert_nothing_leaked, assert_sound


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


def fill(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        db["key"] = b"value"


class Shaped(pmemobj.PersistentDict):
    """A root of a user's own."""


# Which door -------------------------------------------------------------------------------------


def test_the_pool_holds_one_dict_of_bytes(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        db.update({"key": "value", b"\xff": b"\0"})
        del db["key"]
        db["key"] = "again"
    with pmemobj.open(path) as pool:
        assert type(pool.root) is pools.Bytes
        assert isinstance(pool.root, pmemobj.PersistentDict)
        assert pool.root == {b"\xff": b"\0", b"key": b"again"}
        assert_sound(pool)
        assert_nothing_leaked(pool)
        pool.root[b"new"] = b"by the pool"
    with our_dbm.open(path) as db:
        assert db["new"] == b"by the pool"


@pytest.mark.parametrize("make", [pmemobj.PersistentDict, pmemobj.PersistentList, Shaped])
@pytest.mark.parametrize("flag", ["r", "w", "c"])
def test_a_pool_made_by_the_pool_itself_is_refused_by_naming_its_door(
    path: Path, make: Any, flag: str
) -> None:
    with pmemobj.create(path) as pool:
        pool.root = pool.new(make)  # empty, and yet somebody's
    before = path.read_bytes()
    with pytest.raises(
        our_dbm.error, match=rf"holds a {make.__name__}; use pmshelve\.pmemobj\.open"
    ):
        our_dbm.open(path, flag)
    assert path.read_bytes() == before
    with our_dbm.open(path, "n") as db:
        assert len(db) == 0


def test_a_root_that_is_no_object_is_refused_too(path: Path) -> None:
    for root in (5, "a text that is longer than an oid", (1, 2)):
        path.unlink(missing_ok=True)
        with pmemobj.create(path) as pool:
            pool.root = root
        with pytest.raises(our_dbm.error, match=r"pmshelve\.pmemobj\.open"):
            our_dbm.open(path, "c")


def test_what_the_wrong_door_made_is_not_loaded(path: Path, monkeypatch: Any) -> None:
    with pmemobj.create(path) as pool:
        pool.root = pool.new(Shaped)
    monkeypatch.delattr(sys.modules[__name__], "Shaped")
    with pytest.raises(our_dbm.error, match="holds a Shaped"):
        our_dbm.open(path, "r")


def test_a_pool_without_a_root_becomes_a_database(path: Path) -> None:
    pmemobj.create(path).close()
    with our_dbm.open(path) as db:
        assert db.keys() == []
        with pytest.raises(our_dbm.error, match="reading only"):
            db["key"] = b""
    fill(path)
    with our_dbm.open(path) as db:
        assert db.items() == [(b"key", b"value")]


def test_an_mmapdict_is_refused(path: Path) -> None:
    with pmshelve.dbm_compat.mmapdict.open(path, "c") as db:
        db["key"] = b"value"
    with pytest.raises(our_dbm.error):
        our_dbm.open(path, "c")
    with pmshelve.dbm_compat.mmapdict.open(path) as db:
        assert db.keys() == [b"key"]


def test_only_pools_are_recognized(tmp_path: Path) -> None:
    with dbm.dumb.open(str(tmp_path / "dumb"), "c") as db:
        db["key"] = b"value"
    pmshelve.dbm_compat.mmapdict.open(tmp_path / "other", "c").close()
    for name in os.listdir(tmp_path):
        assert not our_dbm.recognizes(str(tmp_path / name))
    pmemobj.create(tmp_path / "pool").close()
    assert our_dbm.recognizes(str(tmp_path / "pool"))
    assert our_dbm.recognizes(os.fsencode(tmp_path / "pool"))


@pytest.mark.parametrize("copy", pools.COPY_OFFSETS)
def test_one_copy_of_the_superblock_is_enough_to_recognize_a_pool(path: Path, copy: int) -> None:
    fill(path)
    data = bytearray(path.read_bytes())
    data[copy : copy + 512] = bytes(512)
    path.write_bytes(data)
    assert our_dbm.recognizes(str(path))


# Values -----------------------------------------------------------------------------------------


def test_a_value_that_is_not_bytes_is_an_error_that_names_the_door(path: Path) -> None:
    fill(path)
    with pmemobj.open(path) as pool:
        pool.root[b"key"] = 1
    with our_dbm.open(path) as db, pytest.raises(our_dbm.error, match=r"b'key'.*pmshelve\.open"):
        db["key"]


def test_a_pickle_is_never_loaded(path: Path) -> None:
    import datetime

    fill(path)
    with pmemobj.open(path) as pool:
        pool.root[b"key"] = datetime.date(2001, 2, 3)
    with our_dbm.open(path) as db, pytest.raises(our_dbm.error, match="unpickler"):
        db["key"]


# One writer -------------------------------------------------------------------------------------


def test_one_process_writes_or_many_read(path: Path) -> None:
    fill(path)
    with our_dbm.open(path) as one, our_dbm.open(path) as two:
        assert one["key"] == two["key"] == b"value"
        with pytest.raises(our_dbm.error):
            our_dbm.open(path, "w")
    with our_dbm.open(path, "w"):
        for flag in "rwcn":
            with pytest.raises(LockTimeoutError):
                our_dbm.open(path, flag)
    with our_dbm.open(path) as db:
        assert db.keys() == [b"key"]


def test_another_process_goes_on(path: Path) -> None:
    fill(path)
    code = """import sys
from pmshelve.dbm_compat import pmemobj
with pmemobj.open(sys.argv[1], "w") as db:
    db["b"] = db["key"] + b"2"
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    with our_dbm.open(path) as db:
        assert db["b"] == b"value2"


def test_a_killed_process_loses_nothing(path: Path) -> None:
    code = """import os, signal, sys
from pmshelve.dbm_compat import pmemobj
db = pmemobj.open(sys.argv[1], "c")
for number in range(100):
    db["%d" % number] = b"value"
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    with our_dbm.open(path) as db:  # reading, and mending nothing
        assert len(db) == 100
    with our_dbm.open(path, "w") as db:
        assert {*db.items()} == {(b"%d" % number, b"value") for number in range(100)}
    with pmemobj.open(path) as pool:
        assert_sound(pool)


# Changes ----------------------------------------------------------------------------------------


def test_a_batch_inside_of_a_batch_is_undone_alone(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        with db.batch():
            db["a"] = b"1"
            with pytest.raises(TypeError):
                db.update(b=b"2", c=3)
            with pytest.raises(KeyError):
                del db["missing"]
            db["d"] = b"4"
        assert db.items() == [(b"a", b"1"), (b"d", b"4")]


def test_replaced_values_leave_no_garbage(path: Path) -> None:
    with our_dbm.open(path, "c") as db:
        for number in range(3000):
            db["key"] = bytes(number)
            db[str(number % 7)] = bytes(number)
        store: Any = db._store
        assert store.pool.stats().used < 40_000
        db.clear()
    with pmemobj.open(path) as pool:
        assert_nothing_leaked(pool)


def test_n_empties_a_pool_in_its_place(path: Path) -> None:
    fill(path)
    before = path.stat().st_ino
    with our_dbm.open(path, "n") as db:
        assert db.keys() == []
    assert path.stat().st_ino == before
    with pmemobj.open(path) as pool:
        assert_nothing_leaked(pool)


def test_errors_of_the_system_keep_their_kind(path: Path) -> None:
    fill(path)
    db: Any
    with our_dbm.open(path, "w") as db:
        db._store.pool.close()
        for use in (len, list, lambda db: db["key"], lambda db: operator.setitem(db, "a", b"")):
            with pytest.raises(our_dbm.error, match="closed"):
                use(db)


def test_the_errors_of_opening_are_the_modules(path: Path) -> None:
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(our_dbm.error) as caught:
        our_dbm.open(path, "w")
    assert str(path) in str(caught.value)
    with pmshelve.open(path, "n", backend="pmemobj") as shelf:
        shelf["key"] = 1
    with pytest.raises(our_dbm.error) as caught:
        our_dbm.open(path, "w")
    assert isinstance(caught.value.__cause__, WrongDoorError)
