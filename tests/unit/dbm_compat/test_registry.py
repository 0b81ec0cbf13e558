"""`register` makes the standard library's `dbm` know our modules; `unregister` undoes it."""

from __future__ import annotations

import dbm
import dbm.dumb
import os
import pickle
import shelve
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.dbm_compat import pmemobj as over_pool
from pmshelve.dbm_compat import register, unregister

OURS = "pmshelve.dbm_compat.mmapdict"
_dbm: Any = dbm


@pytest.fixture(autouse=True)
def _dbm_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dbm, "_defaultmod", None)
    monkeypatch.setattr(dbm, "_modules", {})
    monkeypatch.setattr(dbm, "_names", [*_dbm._names])
    monkeypatch.setattr(dbm, "whichdb", dbm.whichdb)
    yield
    unregister()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "db")


def state() -> tuple[Any, ...]:
    return [*_dbm._names], {**_dbm._modules}, _dbm._defaultmod, dbm.whichdb


def fill(path: str) -> None:
    with our_dbm.open(path, "c") as db:
        db["key"] = b"value"


# What is known then -----------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [True, False])
@pytest.mark.parametrize("module", [our_dbm, over_pool], ids=["mmapdict", "pmemobj"])
def test_whichdb_names_our_module(path: str, module: Any, empty: bool) -> None:
    with module.open(path, "c") as db:
        if not empty:
            db["key"] = b"value"
    assert dbm.whichdb(path) == ""
    register()
    name: Any = module.__name__
    assert dbm.whichdb(path) == name
    assert dbm.whichdb(os.fsencode(path)) == name  # type: ignore[arg-type]
    assert dbm.whichdb(Path(path)) == name
    with dbm.open(path, "w") as opened:
        assert opened.keys() == ([] if empty else [b"key"])


def test_whichdb_answers_for_other_files_as_before(path: str) -> None:
    register()
    assert dbm.whichdb(path) is None
    assert dbm.whichdb(Path(path)) is None
    for content in (b"", b"abc", b"rubbish" * 9, pickle.dumps({"a": 1}), pickle.dumps({}, 4)):
        Path(path).write_bytes(content)
        assert dbm.whichdb(path) == ""
    dbm.dumb.open(path + "2", "c").close()
    assert dbm.whichdb(path + "2") == "dbm.dumb"
    assert dbm.whichdb(os.path.dirname(path)) is None


def test_open_finds_our_module_and_theirs(path: str) -> None:
    fill(path)
    register()
    with dbm.open(path) as db:
        assert db[b"key"] == b"value"
    with dbm.open(path, "w") as db:
        db[b"key"] = b"new"
    with dbm.open(path, "c") as db:
        assert db[b"key"] == b"new"
    with dbm.dumb.open(path + "2", "c") as db:
        db[b"key"] = b"dumb"
    with dbm.open(path + "2") as db:
        assert db[b"key"] == b"dumb"


def test_without_a_default_new_files_are_of_the_module_of_before(path: str) -> None:
    with dbm.open(path + "1", "c"):
        pass
    register()
    with dbm.open(path + "2", "c"):
        pass
    assert dbm.whichdb(path + "2") == dbm.whichdb(path + "1") != OURS


def test_without_a_default_the_first_open_chooses_as_ever(path: str) -> None:
    register()
    with dbm.open(path, "c"):
        pass
    assert dbm.whichdb(path) in {"dbm.sqlite3", "dbm.gnu", "dbm.ndbm", "dbm.dumb"}


@pytest.mark.parametrize("name", ["mmapdict", OURS, "pmemobj", over_pool.__name__])
@pytest.mark.parametrize("used_before", [True, False])
def test_a_default_makes_new_files(path: str, name: str, used_before: bool) -> None:
    if used_before:
        dbm.open(path + "0", "c").close()
    register(name)
    with dbm.open(path, "c") as db:
        db[b"key"] = b"value"
    assert str(dbm.whichdb(path)).rpartition(".")[2] == name.rpartition(".")[2]
    with dbm.dumb.open(path + "2", "c") as db:
        db[b"key"] = b"dumb"
    with dbm.open(path + "2", "r") as db:
        assert db[b"key"] == b"dumb"


@pytest.mark.parametrize("name", ["mmapdict", "pmemobj"])
def test_shelve_works_over_it(path: str, name: str) -> None:
    register(name)
    with shelve.open(path) as shelf:
        shelf["key"] = {"a": [1, 2]}
        shelf["key2"] = "x" * 100_000
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    with shelve.open(path, "r") as shelf:
        assert dict(shelf) == {"key": {"a": [1, 2]}, "key2": "x" * 100_000}
    with shelve.open(path, writeback=True) as shelf:
        shelf["key"]["a"].append(3)
    with shelve.open(path) as shelf:
        assert shelf["key"] == {"a": [1, 2, 3]}


def test_an_unknown_default_changes_nothing() -> None:
    before = state()
    with pytest.raises(ValueError, match=r"no dbm module 'dbm\.dumb'.*mmapdict"):
        register("dbm.dumb")
    assert state() == before


# Undoing it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("default", [None, "mmapdict"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("used", [None, "before", "within"])
def test_unregister_undoes_it(path: str, default: str | None, times: int, used: str | None) -> None:
    if used == "before":
        dbm.open(path, "c").close()
    before = state()
    for _ in range(times):
        register(default)
    assert _dbm._names.count(OURS) == 1
    if used == "within" and default:
        dbm.open(path, "c").close()
    unregister()
    assert state() == before
    unregister()
    assert state() == before


def test_what_the_first_open_chose_within_stays(path: str) -> None:
    register()
    dbm.open(path, "c").close()
    chosen = _dbm._defaultmod
    unregister()
    assert _dbm._defaultmod is chosen
    assert chosen.__name__ in _dbm._modules
    assert OURS not in {*_dbm._modules, *_dbm._names}


def test_the_default_can_be_chosen_later(path: str) -> None:
    before = state()
    register()
    register("mmapdict")
    register()
    assert _dbm._defaultmod is our_dbm
    unregister()
    assert state() == before


def test_a_default_that_others_chose_meanwhile_stays() -> None:
    register("mmapdict")
    _dbm._defaultmod = dbm.dumb
    unregister()
    assert _dbm._defaultmod is dbm.dumb


def test_a_whichdb_that_others_put_around_ours_stays_and_ours_falls_silent(path: str) -> None:
    fill(path)
    register()
    inner = dbm.whichdb

    def theirs(filename: Any) -> Any:
        return inner(filename)

    dbm.whichdb = theirs
    unregister()
    assert dbm.whichdb is theirs
    assert dbm.whichdb(path) == ""
    register()
    assert dbm.whichdb(path) == OURS
    unregister()
    assert dbm.whichdb is theirs


def test_a_fresh_interpreter_needs_one_call(path: str) -> None:
    code = """import sys, dbm
import pmshelve.dbm_compat
pmshelve.dbm_compat.register("mmapdict")
with dbm.open(sys.argv[1], "c") as db:
    db["key"] = "value"
print(dbm.whichdb(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, path], check=True, stdout=subprocess.PIPE)
    assert done.stdout.decode().strip() == OURS
