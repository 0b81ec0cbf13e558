"""`info`: what it says of every kind of file, in every state, without changing or waiting for any."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pmshelve
from pmshelve import pmemobj
from pmshelve.cli import main
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.mmapdict import mmapdict
from pmshelve.pmemobj import PersistentDict
from pmshelve.storage import file as storage
from tests.support.processes import Worker

DATA = Path(__file__).resolve().parents[2] / "data"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who holds a lock")


@pytest.fixture
def info(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Run `info --json`; returns exit code, facts, error output."""

    def info(path: Path, *options: str) -> tuple[int, dict[str, Any], str]:
        code = main(["info", "--json", str(path), *options])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return info


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with mmapdict(tmp_path / "store") as store:
        store.update(a=1, b=2)
        store["a"] = 3
    return tmp_path / "store"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    with pmemobj.create(tmp_path / "pool") as pool:
        pool.root = pool.new(PersistentDict, a="text of some length", b=2)
    return tmp_path / "pool"


COMMON = {"path", "kind", "format", "face", "state", "problem", "size", "disk_size"}
COMMON |= {"holders", "openers"}


def test_the_keys_of_an_mmapdict_file(store: Path, info: Any) -> None:
    code, facts, err = info(store)
    assert (code, err) == (0, "")
    assert set(facts) == COMMON | {
        "writer", "commit_number", "identity", "generation", "live_count", "live_size", "dead_size",
        "overhead_size", "torn_size", "checkpoints", "checkpoint_entries", "unindexed_size",
        "settled", "exclusive", "open_since", "synced_size",
    }  # fmt: skip
    assert (facts["state"], facts["live_count"], facts["face"]) == ("clean", 2, "native")
    assert facts["size"] == store.stat().st_size
    assert facts["disk_size"] == store.stat().st_blocks * 512


def test_the_keys_of_a_pool(pool: Path, info: Any) -> None:
    code, facts, err = info(pool)
    assert (code, err) == (0, "")
    assert set(facts) == COMMON | {
        "uuid", "pool_size", "max_size", "clean", "durability", "journal_size", "journal_used",
        "journal_records", "journal_torn", "heap_size", "used", "free", "pages", "slabs", "root",
        "root_class", "classes", "block_count", "objects", "changing",
    }  # fmt: skip
    assert (facts["state"], facts["durability"], facts["journal_records"]) == ("clean", "full", 0)
    assert facts["objects"] == {"PersistentDict": 1, "str": 1}
    code, facts, _ = info(pool, "--quick")
    assert (facts["objects"], facts["block_count"]) == ({}, None)


def make_dump(path: Path) -> None:
    with pmemobj.create(path.with_name("source")) as pool, open(path, "wb") as file:
        pool.dump(file)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: our_dbm.open(path, "c").close(), {"kind": "mmapdict", "face": "bytes"}),
        (lambda path: pmshelve.open(path).close(), {"kind": "mmapdict", "face": "native"}),
        (
            lambda path: path.write_bytes((DATA / "history.mmdpickle").read_bytes()),
            {"kind": "mmapdict", "writer": "mmappickle", "live_count": 14, "identity": None},
        ),
        (lambda path: path.write_bytes(pickle.dumps([1], 4)), {"kind": "pickle", "format": 4}),
        (lambda path: path.write_bytes(pickle.dumps({}, 0)), {"kind": "pickle", "format": 0}),
        (make_dump, {"kind": "dump", "format": 1}),
    ],
    ids=["dbm", "shelf", "mmappickle", "pickle", "old pickle", "dump"],
)
def test_what_it_is(
    tmp_path: Path, info: Any, capsys: Any, make: Callable[[Path], Any], expected: dict[str, Any]
) -> None:
    path = tmp_path / "file"
    make(path)
    before = path.read_bytes()
    code, facts, err = info(path)
    assert (code, err) == (0, "")
    assert {name: facts[name] for name in expected} == expected
    assert main(["info", str(path)]) == 0
    assert "size" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.fixture
def holder() -> Iterator[Worker]:
    with Worker() as worker:
        yield worker


@LINUX
@pytest.mark.parametrize("kind", ["store", "pool"])
def test_a_file_that_another_process_holds(
    request: pytest.FixtureRequest, holder: Worker, info: Any, capsys: Any, kind: str
) -> None:
    path = request.getfixturevalue(kind)
    opening = {
        "store": "from pmshelve.mmapdict import mmapdict; s = mmapdict(path, exclusive=True); s['c'] = 1",
        "pool": "from pmshelve import pmemobj; s = pmemobj.open(path); s.root['c'] = 1",
    }
    holder.run(opening[kind], path=str(path))
    code, facts, err = info(path)
    assert (code, err) == (0, "")
    assert facts["state"] == "in use"
    assert [(each["pid"], each["mode"]) for each in facts["holders"]] == [(holder.pid, "exclusive")]
    assert holder.pid in [each["pid"] for each in facts["openers"]]
    if kind == "store":
        assert facts["live_count"] == 3
    else:
        assert facts["journal_records"] == 1
    assert main(["info", str(path)]) == 0
    assert f"in use by process {holder.pid} (" in capsys.readouterr().out
    holder.run("s.close()")
    assert info(path)[1]["state"] == "clean"


@LINUX
def test_readers_of_a_pool(pool: Path, holder: Worker, info: Any, capsys: Any) -> None:
    holder.run(
        "from pmshelve.pmemobj import PersistentObjectPool as P; s = P(path, 'r')", path=str(pool)
    )
    code, facts, _ = info(pool)
    assert (code, facts["state"]) == (0, "clean")
    assert [each["mode"] for each in facts["holders"]] == ["shared"]
    assert main(["info", str(pool)]) == 0
    assert f"shared by process {holder.pid}" in capsys.readouterr().out


@LINUX
@pytest.mark.parametrize("kind", ["store", "pool"])
def test_a_writer_that_was_killed(
    request: pytest.FixtureRequest, info: Any, capsys: Any, kind: str
) -> None:
    path = request.getfixturevalue(kind)
    opening = {
        "store": "from pmshelve.mmapdict import mmapdict; s = mmapdict(path, exclusive=True); s['c'] = 1",
        "pool": "from pmshelve import pmemobj; s = pmemobj.open(path, durability='lazy'); s.root['c'] = 1",
    }
    with Worker() as worker:
        worker.run(opening[kind], path=str(path))
        worker.process.kill()
        worker.process.wait()
    before = path.read_bytes()
    code, facts, err = info(path)
    assert (code, err) == (0, "")
    assert facts["state"] == "needs recovery"
    assert facts["holders"] == []
    assert main(["info", str(path)]) == 0
    assert "needs recovery" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_a_damaged_store(store: Path, info: Any, capsys: Any) -> None:
    data = bytearray(store.read_bytes())
    at = data.index(b"\x8c\x01b")
    data[at - 5] ^= 0x7F
    store.write_bytes(data)
    code, facts, err = info(store)
    assert code == 1
    assert facts["state"] == "damaged"
    assert facts["problem"] in err
    assert err.startswith(f"pmshelve: {store}: ")
    assert len(err.splitlines()) == 1
    assert main(["info", str(store)]) == 1
    assert "damaged" in capsys.readouterr().out
    assert store.read_bytes() == data


def test_a_damaged_pool(pool: Path, info: Any, capsys: Any) -> None:
    data = bytearray(pool.read_bytes())
    data[20] ^= 1
    data[4096 + 20] ^= 1
    pool.write_bytes(data)
    code, facts, err = info(pool)
    assert code == 1
    assert (facts["kind"], facts["state"], facts["uuid"]) == ("pmemobj", "damaged", None)
    assert "superblock" in err
    assert main(["info", str(pool)]) == 1
    assert "superblock" in capsys.readouterr().out


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"\x80\x04", b"(see below).", b"(and so on.)", b"(."]
)
def test_what_is_no_store_and_no_pickle(
    tmp_path: Path, info: Any, capsys: Any, data: bytes
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    assert info(path)[::2] == (2, f"pmshelve: {path}: not a pmshelve file\n")
    for command in ("map", "check", "vacuum", "gc", "keys"):
        assert main([command, str(path)]) == 2
        assert "not a pmshelve file" in capsys.readouterr().err


def test_a_store_that_is_vacuumed_while_it_is_looked_at(
    store: Path, info: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmshelve.mmapdict import describe

    tell = describe._describe
    vacuums: list[int] = []

    def vacuum_first(*arguments: Any) -> Any:
        if len(vacuums) < 3:
            vacuums.append(1)
            with mmapdict(store) as opened:
                opened["a"] = 4
                opened.vacuum()
        return tell(*arguments)

    monkeypatch.setattr(describe, "_describe", vacuum_first)
    code, facts, err = info(store)
    assert (code, err) == (0, "")
    assert (facts["state"], facts["problem"], facts["live_count"]) == ("clean", None, 2)
    assert facts["size"] == store.stat().st_size
    assert len(vacuums) == 3


def sizes_add_up(facts: dict[str, Any]) -> bool:
    names = ("live_size", "dead_size", "overhead_size", "torn_size")
    return sum(facts[name] for name in names) == facts["size"]  # type: ignore[no-any-return]


def test_a_store_that_lost_its_end(tmp_path: Path, info: Any) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        for number in range(50):
            store[f"key {number}"] = "v" * 50
    whole = path.read_bytes()
    for size in (24, 25, 254, len(whole) // 2, len(whole) - 30, len(whole) - 11, len(whole) - 1):
        path.write_bytes(whole[:size])
        code, facts, _ = info(path)
        assert (code, facts["state"]) == (0, "needs recovery")
        assert sizes_add_up(facts)
        with mmapdict(path) as store:
            assert len(store) == facts["live_count"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("share", [0, 2])
def test_a_vacuum_in_place_that_was_killed(
    tmp_path: Path, info: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update((f"key {number}", "v" * 500) for number in range(600))
        store.update((f"key {number}", "w" * 300) for number in range(100, 400))
    os.link(path, tmp_path / "second name")
    copy_range = storage.copy_range

    class Killed(BaseException):
        pass

    def die(source: int, target: int, size: int, start: int, to: int) -> None:
        if not to:
            if share:
                copy_range(source, target, size // share, start, to)
            raise Killed
        copy_range(source, target, size, start, to)

    with monkeypatch.context() as patch, mmapdict(path) as store:
        patch.setattr("pmshelve.mmapdict.vacuum.disk.copy_range", die)
        with pytest.raises(Killed):
            store.vacuum()
    before = path.read_bytes()
    code, facts, err = info(path)
    assert (code, facts["state"], facts["live_count"], err) == (0, "needs recovery", 600, "")
    assert sizes_add_up(facts)
    assert main(["map", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["totals"]["live"]["number"] == 600
    assert sum(total["size"] for total in told["totals"].values()) == told["size"]
    assert path.read_bytes() == before
    with mmapdict(path) as store:
        assert len(store) == 600
        assert store.stats().live_size == facts["live_size"]


def test_a_newer_pool_is_not_damaged(pool: Path, info: Any) -> None:
    data = bytearray(pool.read_bytes())
    for copy in (0, 4096):
        data[copy + 8] = 99
    pool.write_bytes(data)
    code, _, err = info(pool)
    assert code == 2
    assert "format 99 is not known" in err


def test_a_pipe_is_no_store(tmp_path: Path, capsys: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    out = str(tmp_path / "out")
    for command in ("info", "map", "check", "keys", "vacuum", "gc", "dump"):
        more = [out] if command == "dump" else []
        assert main([command, str(tmp_path / "pipe"), *more]) == 2
        assert "not a regular file" in capsys.readouterr().err
