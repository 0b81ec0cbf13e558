"""A dbm database: bytes over a mapping of str or bytes keys, behaving as `dbm.dumb` does."""

from __future__ import annotations

import array
import dbm.dumb
import operator
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.dbm_compat import mmapdict as over_mmapdict
from pmshelve.dbm_compat import pmemobj as over_pool
from pmshelve.dbm_compat.database import Database
from pmshelve.errors import ClosedError, CorruptionError, NoSpaceError, PmshelveError
from pmshelve.mmapdict import mmapdict
from tests.support.stores import stock_load

CLOSED = "DBM object has already been closed"
READ_ONLY = "The database is opened for reading only"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture(params=[over_mmapdict, over_pool], ids=["mmapdict", "pmemobj"])
def our_dbm(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def db(our_dbm: Any, path: Path) -> Iterator[Database]:
    with our_dbm.open(path, "c") as database:
        yield database


# Keys and values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["key", b"key", bytearray(b"key"), memoryview(b"key"), memoryview(b"k_e_y")[::2],
     array.array("B", b"key")],
    ids=["str", "bytes", "bytearray", "memoryview", "strided", "array"],
)  # fmt: skip
def test_any_form_of_a_key_names_the_same_entry(db: Database, key: Any) -> None:
    db[key] = b"value"
    assert db.keys() == [b"key"]
    assert db[key] == db["key"] == db[b"key"] == b"value"
    assert key in db
    assert db.get(key) == b"value"
    assert db.setdefault(key, b"other") == b"value"
    del db[key]
    assert key not in db


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ä", b"\xc3\xa4"),
        ("", b""),
        (b"", b""),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        (memoryview(b"abcd").cast("B", (2, 2)), b"abcd"),
        (array.array("H", [1, 2]), array.array("H", [1, 2]).tobytes()),
        (type("Sub", (bytes,), {})(b"sub"), b"sub"),
        (type("Text", (str,), {})("text"), b"text"),
    ],
    ids=[
        "text",
        "no text",
        "nothing",
        "bytearray",
        "strided",
        "2-d",
        "array",
        "bytes subclass",
        "str subclass",
    ],
)
def test_any_form_of_a_value_comes_back_as_bytes(db: Database, value: Any, expected: bytes) -> None:
    db["key"] = value
    assert db["key"] == expected
    assert type(db["key"]) is bytes
    assert db.items() == [(b"key", expected)]
    assert list(db.values()) == [expected]


@pytest.mark.parametrize("key", [b"\xff", b"\xed\xb2\x80", b"a\x80\xc3\xa4", b"", b"\0", b"k" * 70_000],
                         ids=["one", "surrogate", "mixed", "none", "nul", "long"])  # fmt: skip
def test_keys_are_any_bytes_of_any_length(our_dbm: Any, path: Path, key: bytes) -> None:
    with our_dbm.open(path, "c") as db:
        db[key] = b"1"
        assert key in db
    with our_dbm.open(path) as db:
        assert db.keys() == list(db) == [key]
        assert db[key] == b"1"
        assert db.firstkey() == key
        assert db.nextkey(key) is None
    with our_dbm.open(path, "w") as db:
        assert db.pop(key) == b"1"
        with pytest.raises(KeyError) as caught:
            db[key]
        assert caught.value.args == (key,)


@given(st.dictionaries(st.binary(), st.binary()))
def test_what_was_stored_is_found_again(
    our_dbm: Any, tmp_path: Path, content: dict[bytes, bytes]
) -> None:
    with our_dbm.open(tmp_path / "db", "n") as db:
        db.update(content)
        assert dict(db) == content
    with our_dbm.open(tmp_path / "db") as db:
        assert dict(db.items()) == content
        assert len(db) == len(content)


def test_text_that_is_not_utf_8_is_refused_as_the_standard_library_does(db: Database) -> None:
    db[b"\xff"] = b"1"
    with pytest.raises(UnicodeEncodeError):
        db["\udcff"]
    with pytest.raises(UnicodeEncodeError):
        db["\udcff"] = b"2"
    with pytest.raises(UnicodeEncodeError):
        db["key"] = "\udcff"
    assert db.items() == [(b"\xff", b"1")]


@pytest.mark.parametrize("key", ["missing", b"missing", bytearray(b"missing")])
def test_a_missing_key_is_named_in_bytes(db: Database, key: Any) -> None:
    for use in (operator.getitem, operator.delitem):
        with pytest.raises(KeyError) as caught:
            use(db, key)
        assert caught.value.args == (b"missing",)
    assert key not in db
    assert db.get(key) is None
    assert db.get(key, b"other") == b"other"
    assert db.pop(key, None) is None


def test_a_value_that_is_not_bytes_is_an_error_that_names_the_door(path: Path) -> None:
    with mmapdict(path, face="bytes") as store:
        store["key"] = [1]
    with (
        over_mmapdict.open(path) as db,
        pytest.raises(over_mmapdict.error, match=r"b'key'.*pmshelve\.open"),
    ):
        db["key"]


# As dbm.dumb ------------------------------------------------------------------------------------


def outcome(use: Callable[[], Any]) -> Any:
    """Return what a call returns, or the kind and text of what it raises."""
    try:
        return use()
    except Exception as problem:
        return type(problem), str(problem)


USES: dict[str, Callable[[Any], Any]] = {
    "get int": lambda db: db[1],
    "get None": lambda db: db[None],
    "get list": lambda db: type(outcome(lambda: db[[]])),
    "find int": lambda db: db.get(1, "default"),
    "set int": lambda db: operator.setitem(db, 1, b""),
    "set None": lambda db: operator.setitem(db, None, b""),
    "set value int": lambda db: operator.setitem(db, "k", 1),
    "set value None": lambda db: operator.setitem(db, b"k", None),
    "set both": lambda db: operator.setitem(db, 1, 1),
    "delete int": lambda db: operator.delitem(db, 1),
    "delete missing": lambda db: operator.delitem(db, "no"),
    "contains int": lambda db: 1 in db,
    "contains missing": lambda db: "no" in db,
    "setdefault None": lambda db: db.setdefault("new"),
    "setdefault": lambda db: db.setdefault("key", "v"),
    "pop": lambda db: db.pop("key"),
    "pop missing": lambda db: db.pop("no"),
    "popitem": lambda db: db.popitem(),
    "update": lambda db: db.update({"u": b"1"}, v="2"),
    "clear": lambda db: db.clear(),
    "len": len,
    "bool": bool,
    "keys": lambda db: db.keys(),
    "items": lambda db: db.items(),
    "values": lambda db: list(db.values()),
    "iter": list,
    "iterkeys": lambda db: list(db.iterkeys()),
    "equal": lambda db: db == {b"key": b"value"},
    "hash": lambda db: type(outcome(lambda: hash(db))),
}


@pytest.mark.parametrize("state", ["open", "empty", "read-only", "empty read-only", "closed",
                                   "read-only closed"])  # fmt: skip
@pytest.mark.parametrize("use", USES)
def test_every_use_ends_as_in_the_standard_library(
    our_dbm: Any, tmp_path: Path, use: str, state: str
) -> None:
    results = []
    for module in (our_dbm, dbm.dumb):
        path = tmp_path / module.__name__
        db: Any = module.open(str(path), "c")
        if "empty" not in state:
            db["key"] = "value"
        if "read-only" in state:
            db.close()
            db = module.open(str(path), "r")
        if "closed" in state:
            db.close()
        results.append(outcome(lambda db=db: USES[use](db)))
        if "closed" not in state:
            results[-1] = results[-1], sorted(db.items())
            db.close()
    assert results[0] == results[1]


@pytest.mark.parametrize(
    "use",
    [
        len, list, bool,
        lambda db: db["key"],
        lambda db: operator.setitem(db, "b", "test"),
        lambda db: operator.delitem(db, "key"),
        lambda db: "key" in db,
        lambda db: db.keys(),
        lambda db: db.items(),
        lambda db: db.values(),
        lambda db: db.iterkeys(),
        lambda db: db.get("key"),
        lambda db: db.setdefault("key", b""),
        lambda db: db.pop("key"),
        lambda db: db.popitem(),
        lambda db: db.update(a=b""),
        lambda db: db.clear(),
        lambda db: db.firstkey(),
        lambda db: db.nextkey("key"),
        lambda db: db.reorganize(),
        lambda db: db.batch().__enter__(),
    ],
)  # fmt: skip
def test_every_use_of_a_closed_database_raises_at_once(
    our_dbm: Any, db: Database, use: Callable[[Database], Any]
) -> None:
    db["key"] = b"value"
    db.close()
    with pytest.raises(our_dbm.error) as caught:
        use(db)
    assert str(caught.value) == CLOSED


def test_closing_twice_and_syncing_a_closed_database_are_fine(db: Database) -> None:
    db.close()
    db.close()
    db.sync()


@pytest.mark.parametrize(
    "use",
    [
        lambda db: operator.setitem(db, "key", b""),
        lambda db: operator.setitem(db, 1, 1),
        lambda db: operator.delitem(db, "key"),
        lambda db: operator.delitem(db, "missing"),
        lambda db: db.setdefault("new", b""),
        lambda db: db.pop("key"),
        lambda db: db.popitem(),
        lambda db: db.update(a=b""),
        lambda db: db.clear(),
        lambda db: db.reorganize(),
        lambda db: db.batch().__enter__(),
    ],
)
def test_every_change_of_a_read_only_database_is_refused(
    our_dbm: Any, path: Path, use: Callable[[Database], Any]
) -> None:
    with our_dbm.open(path, "c") as db:
        db["key"] = b"value"
    before = path.read_bytes()
    with our_dbm.open(path, "r") as db:
        with pytest.raises(our_dbm.error) as caught:
            use(db)
        assert str(caught.value) == READ_ONLY
        assert db.items() == [(b"key", b"value")]
        db.sync()
    assert path.read_bytes() == before


# As dbm.gnu -------------------------------------------------------------------------------------


def walk(db: Database) -> list[bytes]:
    keys = []
    key = db.firstkey()
    while key is not None:
        keys.append(key)
        key = db.nextkey(key)
    return keys


def test_a_walk_meets_every_key_once(db: Database) -> None:
    assert walk(db) == []
    expected = [b"%d" % number for number in range(100)]
    db.update((key, b"") for key in expected)
    assert walk(db) == expected
    assert walk(db) == expected


def test_a_walk_goes_on_from_any_key(db: Database) -> None:
    db.update(dict.fromkeys("abcd", b""))
    assert db.nextkey("b") == b"c"
    assert db.nextkey(b"a") == b"b"
    assert db.nextkey("d") is None
    assert db.nextkey("missing") is None


def test_a_walk_may_delete_what_it_passes_and_what_is_ahead(db: Database) -> None:
    db.update(dict.fromkeys("abcdef", b""))
    seen = []
    key = db.firstkey()
    while key is not None:
        seen.append(key)
        following = db.nextkey(key)
        del db[key]
        if following == b"c":
            del db["d"], db["e"]
        key = following
    assert seen == [b"a", b"b", b"c", b"f"]
    assert len(db) == 0


def test_reorganize_gives_space_back(our_dbm: Any, path: Path, db: Database) -> None:
    size = 5000 if our_dbm is over_mmapdict else 4_000_000  # a pool has 8 MiB at least
    for _ in range(3):
        db["key"] = bytes(size)
        db["other"] = bytes(size)
    del db["other"]
    before = path.stat().st_size
    db.reorganize()
    assert path.stat().st_size < before
    assert db.items() == [(b"key", bytes(size))]
    db["key"] = b"and it goes on"


# Many changes at once ---------------------------------------------------------------------------


def test_an_update_that_fails_changes_nothing(our_dbm: Any, path: Path, db: Database) -> None:
    db["key"] = b"old"
    with pytest.raises(TypeError, match="values must be bytes or strings"):
        db.update([("key", b"new"), ("other", 1)])
    assert db.items() == [(b"key", b"old")]
    db.close()
    with our_dbm.open(path) as again:
        assert again.items() == [(b"key", b"old")]


def test_a_batch_is_one_change_or_none(our_dbm: Any, path: Path, db: Database) -> None:
    db["gone"] = b""
    with db.batch():
        db["a"] = b"1"
        del db["gone"]
        assert db.keys() == [b"a"]
        if our_dbm is over_mmapdict:
            assert stock_load(path) == {"gone": b""}
    if our_dbm is over_mmapdict:
        assert stock_load(path) == {"a": b"1"}
    with pytest.raises(RuntimeError), db.batch():
        db["b"] = b"2"
        raise RuntimeError
    assert db.keys() == [b"a"]
    db.close()
    with our_dbm.open(path) as again:
        assert again.items() == [(b"a", b"1")]


def test_random_changes_are_those_of_a_dict(our_dbm: Any, path: Path) -> None:
    rng = random.Random(1)
    model: dict[bytes, bytes] = {}
    for _ in range(5):
        with our_dbm.open(path, "c") as db:
            for _ in range(100):
                key = rng.choice([b"a", b"b", b"\xff", b"d" * 300, b"e"])
                if rng.random() < 0.2:
                    assert model.pop(key, None) == db.pop(key, None)
                else:
                    model[key] = db[key] = rng.choice([b"x", b"y"]) * rng.randrange(10_000)
            assert dict(db) == model


# Errors -----------------------------------------------------------------------------------------


class Broken:
    """A store that fails."""

    def __init__(self, problem: PmshelveError) -> None:
        self.problem = problem

    def fail(self, *_: object) -> Any:
        raise self.problem

    __getitem__ = __setitem__ = __delitem__ = __contains__ = __iter__ = __len__ = fail
    clear = batch = vacuum = sync = close = fail


@pytest.mark.parametrize(
    "use",
    [
        len, list,
        lambda db: db["key"],
        lambda db: operator.setitem(db, "key", b""),
        lambda db: operator.delitem(db, "key"),
        lambda db: "key" in db,
        lambda db: db.update(a=b""),
        lambda db: db.clear(),
        lambda db: db.reorganize(),
        lambda db: db.sync(),
        lambda db: db.close(),
    ],
)  # fmt: skip
def test_every_error_of_the_store_is_an_error_of_the_module(use: Callable[[Any], Any]) -> None:
    damage = CorruptionError("broken", "file", hint="mend it")
    with pytest.raises(over_mmapdict.error, match="file: broken; mend it") as caught:
        use(Database(Broken(damage)))
    assert caught.value.__cause__ is damage
    with pytest.raises(over_mmapdict.error) as caught:
        use(Database(Broken(ClosedError("closed elsewhere"))))
    assert str(caught.value) == CLOSED
    full = NoSpaceError("full", "file", cause=OSError(28, os.strerror(28)))
    with pytest.raises(over_mmapdict.error) as caught:
        use(Database(Broken(full)))
    assert caught.value is full
    assert caught.value.errno == 28


def test_a_database_leaves_no_cycle_behind(our_dbm: Any, path: Path) -> None:
    import gc
    import weakref

    gc.disable()
    try:
        db = our_dbm.open(path, "c")
        db["key"] = b"value"
        gone = weakref.ref(db)
        del db
        assert gone() is None
    finally:
        gc.enable()
