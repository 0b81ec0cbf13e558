"""The pool as a file: made, opened, refused, closed, dropped, shared."""

from __future__ import annotations

import errno
import gc
import inspect
import io
import logging
import os
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import (
    ClosedError,
    FormatError,
    LockTimeoutError,
    NoSpaceError,
    NotAStoreError,
    PmshelveError,
    ReadOnlyError,
    VersionError,
)
from pmshelve.pmemobj import (
    MIN_POOL_SIZE,
    PersistentDict,
    PersistentList,
    PersistentObjectPool,
)
from tests.support.guard import time_limit
from tests.support.pools import assert_nothing_leaked, assert_sound, crash_copy, plain
from tests.support.processes import ROOT, Worker, run_isolated

Make = Callable[..., Any]

# Names and signatures ---------------------------------------------------------------------------


def test_the_names_of_the_reference_are_there() -> None:
    for name in (
        "create open PersistentObjectPool MemoryManager Persistent PersistentList PersistentDict "
        "PersistentObject PersistentTuple PersistentSet PersistentFrozenSet PersistentArray "
        "MIN_POOL_SIZE OID_NULL POBJECT_TYPE_NUM"
    ).split():
        assert name in pmemobj.__all__
        assert hasattr(pmemobj, name)
        assert name in dir(pmemobj)
    with pytest.raises(AttributeError, match="nothing"):
        pmemobj.nothing  # noqa: B018


def test_signatures_begin_as_the_reference_says() -> None:
    def beginning(function: Any, count: int) -> list[tuple[str, Any]]:
        parameters = list(inspect.signature(function).parameters.values())[:count]
        return [(parameter.name, parameter.default) for parameter in parameters]

    empty = inspect.Parameter.empty
    options = [("pool_size", MIN_POOL_SIZE), ("mode", 0o666), ("debug", False)]
    assert beginning(pmemobj.create, 4) == [("filename", empty), *options]
    assert beginning(pmemobj.open, 2) == [("filename", empty), ("debug", False)]
    assert beginning(PersistentObjectPool, 5) == [("filename", empty), ("flag", "w"), *options]
    assert beginning(PersistentObjectPool.gc, 2) == [("self", empty), ("debug", None)]
    assert MIN_POOL_SIZE == 8 * 1024 * 1024


def test_importing_the_store_loads_no_numpy_and_nothing_heavy() -> None:
    code = """
import sys, tempfile, os
sys.path.insert(0, os.getcwd())
import pmshelve.pmemobj as pmemobj
with tempfile.TemporaryDirectory() as home:
    with pmemobj.create(os.path.join(home, "pool")) as pool:
        pool.root = pool.new(pmemobj.PersistentDict)
        pool.root["a"] = pool.new(pmemobj.PersistentList, [1, "two"])
assert "numpy" not in sys.modules, "numpy was loaded"
assert "pmshelve.mmapdict" not in sys.modules, "the other store was loaded"
print("done")
"""
    assert run_isolated(code, block=("numpy",)) == b"done\n"


# Made, opened -----------------------------------------------------------------------------------


def test_create_makes_a_file_of_the_size_and_mode(path: Path) -> None:
    before = os.umask(0o027)
    try:
        with pmemobj.create(path, MIN_POOL_SIZE * 2, 0o664) as pool:
            assert pool.root is None
            assert path.stat().st_size >= MIN_POOL_SIZE * 2
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_nothing_but_the_pool_is_left_in_the_directory(path: Path) -> None:
    pmemobj.create(path).close()
    with pytest.raises(FileExistsError):
        pmemobj.create(path)
    assert os.listdir(path.parent) == [path.name]


def test_create_and_x_refuse_what_exists(path: Path) -> None:
    path.write_bytes(b"precious")
    for attempt in (
        lambda: pmemobj.create(path),
        lambda: PersistentObjectPool(path, "x"),
        lambda: PersistentObjectPool(path, flag="x", pool_size=MIN_POOL_SIZE),
    ):
        with pytest.raises(FileExistsError) as caught:
            attempt()
        assert caught.value.errno == errno.EEXIST
        assert os.fspath(caught.value.filename) == str(path)
    assert path.read_bytes() == b"precious"


def test_open_w_and_r_refuse_what_does_not_exist(path: Path) -> None:
    for attempt in (
        lambda: pmemobj.open(path),
        lambda: PersistentObjectPool(path),
        lambda: PersistentObjectPool(path, "r"),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            attempt()
        assert caught.value.errno == errno.ENOENT
        assert os.fspath(caught.value.filename) == str(path)
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("opens", [pmemobj.create, lambda path: PersistentObjectPool(path, "c")])
def test_a_directory_that_does_not_exist(tmp_path: Path, opens: Any) -> None:
    with pytest.raises(FileNotFoundError):
        opens(tmp_path / "nowhere" / "pool")


@pytest.mark.parametrize("flag", ["w", "c", "r"])
def test_a_directory_is_no_pool(tmp_path: Path, flag: str) -> None:
    with pytest.raises((OSError, FormatError)) as caught:
        PersistentObjectPool(tmp_path, flag)
    assert str(tmp_path) in str(caught.value)


def test_c_makes_the_file_or_opens_it(make: Make) -> None:
    pool = make("c")
    pool.root = 7
    pool.close()
    pool = make("c")
    assert pool.root == 7


def test_open_reads_what_create_wrote(path: Path) -> None:
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentDict, {"a": 1})
    with pmemobj.open(path) as pool:
        assert pool.root == {"a": 1}
        pool.root["b"] = 2
    with PersistentObjectPool(path) as pool:
        assert pool.root == {"a": 1, "b": 2}


@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_file_names_of_every_kind(path: Path, kind: Any) -> None:
    name = kind(path.with_name("pöol name"))
    with pmemobj.create(name) as pool:
        assert os.fsdecode(pool.filename) == os.fsdecode(name)
        pool.root = 1
    with pmemobj.open(name) as pool:
        assert pool.root == 1


def test_a_relative_name_and_a_change_of_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    pool = pmemobj.create("relative")
    monkeypatch.chdir("/")
    pool.root = pool.new(PersistentList, range(2000))
    pool.close()
    assert sorted(os.listdir(path.parent)) == ["relative"]
    with pmemobj.open(path.parent / "relative") as pool:
        assert pool.root == list(range(2000))


@pytest.mark.parametrize("flag", ["", "n", "rw", "W", "a", None, 1, "wx"])
def test_another_flag_is_an_error(path: Path, flag: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="flag"):
        PersistentObjectPool(path, flag)
    assert not path.exists()


@pytest.mark.parametrize("size", [0, 1, 4096, MIN_POOL_SIZE - 1, -5])
def test_a_pool_that_is_too_small_is_refused(path: Path, size: int) -> None:
    for attempt in (
        lambda: pmemobj.create(path, size),
        lambda: PersistentObjectPool(path, "x", size),
        lambda: PersistentObjectPool(path, "c", pool_size=size),
    ):
        with pytest.raises(
            (OSError, ValueError), match=f"size {size} smaller than {MIN_POOL_SIZE}"
        ):
            attempt()
    assert not path.exists()


def test_a_size_that_is_no_multiple_of_the_page(path: Path) -> None:
    with pmemobj.create(path, MIN_POOL_SIZE + 12345) as pool:
        pool.root = pool.new(PersistentList, range(100))
        assert_sound(pool)
    with pmemobj.open(path) as pool:
        assert pool.root == list(range(100))


def test_the_pool_size_of_an_existing_pool_counts_for_nothing(make: Make) -> None:
    make("x").close()
    make("c", pool_size=1).close()
    make("w", pool_size=1 << 60).close()


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_durabilities(make: Make, durability: str) -> None:
    pool = make("x", durability=durability)
    pool.root = pool.new(PersistentDict)
    for number in range(50):
        pool.root[number] = str(number) * 10
    pool.sync()
    pool.close()
    assert make("w", durability=durability).root == {n: str(n) * 10 for n in range(50)}


def test_another_durability_is_an_error(path: Path) -> None:
    with pytest.raises(ValueError, match="durability"):
        PersistentObjectPool(path, "c", durability="never")
    assert not path.exists()


def test_options_are_keywords(path: Path) -> None:
    with pytest.raises(TypeError):
        PersistentObjectPool(path, "c", MIN_POOL_SIZE, 0o666, False, "lazy")  # type: ignore[misc]
    with pytest.raises(TypeError):
        PersistentObjectPool(path, "c", speed="high")  # type: ignore[call-arg]
    assert not path.exists()


# Refused ----------------------------------------------------------------------------------------

NO_POOLS = {
    "empty": b"",
    "a byte": b"x",
    "text": b"some text\n" * 2000,
    "zeros": bytes(MIN_POOL_SIZE),
    "a pickle": b"\x80\x04}\x94.",
    "a page": bytes(range(256)) * 16,
}


@pytest.mark.parametrize("kind", NO_POOLS)
@pytest.mark.parametrize("flag", ["w", "c", "r"])
def test_what_is_no_pool_is_refused_and_left_alone(path: Path, kind: str, flag: str) -> None:
    path.write_bytes(NO_POOLS[kind])
    before = path.stat()
    with pytest.raises(NotAStoreError) as caught:
        PersistentObjectPool(path, flag)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == NO_POOLS[kind]
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(path.parent) == [path.name]


def test_a_file_of_the_other_store_is_no_pool(path: Path) -> None:
    from pmshelve.mmapdict import mmapdict

    with mmapdict(path) as store:
        store["a"] = 1
    content = path.read_bytes()
    with pytest.raises(NotAStoreError):
        pmemobj.open(path)
    assert path.read_bytes() == content


@pytest.fixture
def image(path: Path) -> bytes:
    """The bytes of a pool that was closed."""
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentDict, {"key": "value" * 20, "list": (1, 2, 3)})
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.mark.parametrize("flag", ["w", "c", "r"])
def test_a_damaged_pool_is_refused_and_left_alone(path: Path, image: bytes, flag: str) -> None:
    data = bytearray(image)
    for copy in (0, 4096):
        for offset in range(copy + 16, copy + 64):
            data[offset] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        PersistentObjectPool(path, flag)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == data


@pytest.mark.parametrize("flag", ["w", "r"])
def test_a_pool_that_was_cut_is_refused_and_left_alone(path: Path, image: bytes, flag: str) -> None:
    for size in (4095, 8192, 20_000, len(image) // 2):
        path.write_bytes(image[:size])
        with pytest.raises(FormatError):
            PersistentObjectPool(path, flag)
        assert path.read_bytes() == image[:size]


@pytest.mark.parametrize("flag", ["w", "c", "r"])
def test_a_newer_format_is_refused_and_left_alone(path: Path, image: bytes, flag: str) -> None:
    path.write_bytes(newer(image))
    content = path.read_bytes()
    assert content != image
    with pytest.raises(VersionError, match=r"newer|version") as caught:
        PersistentObjectPool(path, flag)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def newer(image: bytes) -> bytes:
    """Return a pool's bytes with a format version of the future in both superblocks."""
    data = bytearray(image)
    for copy in (0, 4096):
        data[copy + 8 : copy + 12] = (7).to_bytes(4, "little")
        crc = zlib.crc32(data[copy : copy + 508])
        data[copy + 508 : copy + 512] = crc.to_bytes(4, "little")
    return bytes(data)


def test_one_superblock_is_enough(path: Path, image: bytes) -> None:
    for copy in (0, 4096):
        data = bytearray(image)
        data[copy : copy + 512] = bytes(512)
        path.write_bytes(data)
        with PersistentObjectPool(path, "r") as pool:
            assert pool.root["list"] == (1, 2, 3)


# Root -------------------------------------------------------------------------------------------


def test_the_root_is_none_until_it_is_set(make: Make) -> None:
    pool = make()
    assert pool.root is None
    for value in (5, "text" * 20, (1, 2), None, [1]):
        pool.root = pool.new(PersistentList, value) if value == [1] else value
        assert pool.root == value
        assert_sound(pool)
        pool.close()
        pool = make()
        assert pool.root == value
        assert_nothing_leaked(pool)


def test_a_root_that_cannot_be_persisted_changes_nothing(pool: Any) -> None:
    pool.root["a"] = 1
    with pytest.raises(TypeError, match="Don't know how to persist"):
        pool.root = [1]
    assert pool.root == {"a": 1}


def test_only_what_the_root_leads_to_is_kept(make: Make) -> None:
    pool = make()
    pool.root = pool.new(PersistentList)
    orphan = pool.new(PersistentList, ["lonely" * 10])
    pool.root.append(pool.new(PersistentDict, {1: 2}))
    before = pool.stats(walk=True)
    pool.close()
    del orphan
    pool = make()
    assert pool.root == [{1: 2}]
    assert pool.stats(walk=True) != before
    assert_nothing_leaked(pool)


def test_the_old_root_is_freed(make: Make) -> None:
    pool = make()
    pool.root = pool.new(PersistentList, [str(number) * 20 for number in range(100)])
    pool.root = None
    assert_nothing_leaked(pool)
    pool.root = pool.new(PersistentList)
    with pool.transaction():
        pool.root = pool.root  # held by nobody in between
        pool.root.append(1)
    assert pool.root == [1]


# Closed and dropped -----------------------------------------------------------------------------


def test_close_twice_is_fine(make: Make) -> None:
    pool = make()
    assert pool.closed is False
    pool.close()
    assert pool.closed is True
    pool.close()
    with pool:
        pass
    assert pool.closed is True


def test_a_closed_pool_refuses_everything(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1])
    root, inner = pool.root, pool.root["list"]
    oid = root._p_oid
    manager = pool.mm
    pool.close()
    for attempt in (
        lambda: pool.root,
        lambda: setattr(pool, "root", 1),
        lambda: pool.new(PersistentList),
        lambda: pool.gc(),
        lambda: pool.check(),
        lambda: pool.stats(),
        lambda: pool.sync(),
        lambda: pool.persist_via_pickle(complex),
        lambda: pool.transaction().__enter__(),
        lambda: pool.dump(io.BytesIO()),
        lambda: root["list"],
        lambda: root.__setitem__("a", 1),
        lambda: len(root),
        lambda: list(root),
        lambda: inner[0],
        lambda: inner.append(1),
        lambda: inner == [1],
        lambda: manager.new(PersistentList),
        lambda: manager.persist("text that is no immediate"),
        lambda: manager.resurrect(oid),
        lambda: manager.alloc(10),
        lambda: manager.direct(oid),
    ):
        with pytest.raises(ClosedError, match="closed"):
            attempt()
    assert "closed" in repr(pool)
    assert "closed" in repr(inner)  # a debugger shows it like anything else


def test_a_closed_pools_object_does_not_go_into_another(make: Make, tmp_path: Path) -> None:
    pool = make()
    thing = pool.new(PersistentList, [1])
    with pmemobj.create(tmp_path / "other") as other:
        other.root = other.new(PersistentList)
        with pytest.raises(ValueError, match="another pool"):
            other.root.append(thing)
        pool.close()
        with pytest.raises(ClosedError, match="closed"):
            other.root.append(thing)
        assert other.root == []
        assert_sound(other)


def test_the_context_manager_closes(path: Path) -> None:
    with pmemobj.create(path) as pool:
        assert not pool.closed
        pool.root = 1
    assert pool.closed
    with pytest.raises(KeyError), pmemobj.open(path) as pool:
        pool.root = 2
        raise KeyError
    assert pool.closed
    with pmemobj.open(path) as pool:
        assert pool.root == 2


def test_close_in_a_transaction_is_an_error_and_the_pool_goes_on(pool: Any) -> None:
    with pool.transaction():
        pool.root["a"] = 1
        with pytest.raises(RuntimeError, match="transaction"):
            pool.close()
    assert pool.root == {"a": 1}
    assert not pool.closed


def test_a_dropped_pool_is_closed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = pmemobj.create(path)
    pool.root = pool.new(PersistentList, [1, 2])
    del pool
    gc.collect()
    with caplog.at_level(logging.WARNING, "pmshelve.pmemobj"), pmemobj.open(path) as pool:
        assert pool.root == [1, 2]
    assert not caplog.records, "it was not closed cleanly"


def test_an_object_outlives_its_dropped_pool(path: Path) -> None:
    def inner() -> Any:
        pool = pmemobj.create(path)
        pool.root = pool.new(PersistentList, [1, 2])
        return pool.root

    root = inner()
    gc.collect()
    try:
        assert root == [1, 2]
        root.append(3)
        expected = [1, 2, 3]
    except ClosedError:
        expected = [1, 2]
    del root
    gc.collect()
    with pmemobj.open(path) as pool:
        assert pool.root == expected


def test_a_pool_dropped_within_a_transaction_is_rolled_back(path: Path) -> None:
    pool = pmemobj.create(path)
    pool.root = 1
    pool.transaction().begin()
    pool.root = 2
    del pool
    gc.collect()
    with pmemobj.open(path) as pool:
        assert pool.root == 1


@pytest.mark.parametrize("state", ["", "pool.transaction().begin(); pool.root.append(2)"])
def test_a_pool_still_open_at_exit_is_closed(path: Path, state: str) -> None:
    code = f"""
import logging, os, sys
sys.path.insert(0, os.getcwd())
from pmshelve import pmemobj
pool = pmemobj.create(sys.argv[1])
pool.root = pool.new(pmemobj.PersistentList, [1])
pool.root.append(pool.root)
{state}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, check=True
    )
    assert done.stderr == b""
    with pmemobj.PersistentObjectPool(path, "r") as pool:
        assert len(pool.root) == 2
        assert pool._raw.was_clean is not bool(state)


def test_a_process_that_ends_without_close_loses_nothing(path: Path) -> None:
    with Worker("from pmshelve import pmemobj") as worker:
        worker.run("pool = pmemobj.create(path)", path=str(path))
        worker.run("pool.root = pool.new(pmemobj.PersistentList, range(100))")
    with pmemobj.open(path) as pool:
        assert pool.root == list(range(100))


# Unclean ----------------------------------------------------------------------------------------


def test_opening_after_a_crash_collects(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentList, [1])
        orphan = pool.new(PersistentList, [2])
        copy = crash_copy(pool, tmp_path / "crashed")
        del orphan
    with caplog.at_level(logging.INFO, "pmshelve.pmemobj"):
        with pmemobj.open(copy) as pool:
            assert any("clean" in record.getMessage() for record in caplog.records)
            blocks = len(list(pool.mm.heap.blocks()))
            assert pool.root == [1]
            assert_nothing_leaked(pool)
            assert len(list(pool.mm.heap.blocks())) == blocks
        caplog.clear()
        with pmemobj.open(copy):
            pass
    assert not any("clean" in record.getMessage() for record in caplog.records)


def test_clean_is_what_gc_came_to_the_end_of(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`close` goes through the pool's own `gc`, overridden or not."""
    calls = []

    class Watched(PersistentObjectPool):
        def gc(self, debug: bool | None = None) -> Any:
            calls.append(self.filename)
            return super().gc(debug)

    class Broken(PersistentObjectPool):
        def gc(self, debug: bool | None = None) -> Any:
            return {}, {}

    Watched(path, "x").close()
    assert calls == [str(path)]
    Broken(path).close()
    with caplog.at_level(logging.INFO, "pmshelve.pmemobj"):
        Watched(path).close()
    assert len(calls) == 3, "the shutdown that skipped gc was not clean, so opening collected"
    Watched(path).close()
    assert len(calls) == 4


def test_the_logger(pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pmshelve.pmemobj"):
        pool.mm.persist("a text of more than fourteen bytes")
        pool.gc(debug=True)
    assert caplog.records
    assert {record.name for record in caplog.records} == {"pmshelve.pmemobj"}


# Garbage ----------------------------------------------------------------------------------------


def test_gc_returns_live_objects_by_type_and_counts(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, ["text" * 10, b"bytes" * 10, 2**100])
    pool.root["dict"] = pool.new(PersistentDict)
    live, counts = pool.gc()
    assert all(isinstance(name, str) for name in live)
    assert all(type(count) is int for count in (*live.values(), *counts.values()))
    for name in ("orphans0-gced", "collections-gced", "containers-live", "other-live"):
        assert name in counts
    assert counts["containers-live"] == 3
    assert counts["other-live"] == 3
    assert counts["collections-gced"] == 0
    assert {name.rpartition(".")[2].rpartition(":")[2]: n for name, n in live.items()} == {
        "PersistentDict": 2,
        "PersistentList": 1,
        "str": 1,
        "bytes": 1,
        "int": 1,
    }


def test_gc_frees_cycles_and_only_those_nobody_holds(pool: Any) -> None:
    def cycle(size: int) -> Any:
        things = [pool.new(PersistentList) for _ in range(size)]
        for one, other in zip(things, things[1:] + things[:1], strict=True):
            one.append(other)
            one.append("some text, not an immediate")
        return things[0]

    pool.root["kept"] = cycle(3)
    held = cycle(2)
    cycle(5)
    gc.collect()
    _, counts = pool.gc()
    assert counts["collections-gced"] == 5
    assert counts["containers-live"] >= 1 + 3
    assert held[0][0] is held
    assert_sound(pool)
    del held
    gc.collect()
    _, counts = pool.gc()
    assert counts["collections-gced"] == 2
    assert pool.root["kept"][0][0][0] is pool.root["kept"]
    assert_nothing_leaked(pool)


def test_gc_counts_orphans(pool: Any) -> None:
    """Objects persisted and never stored have no references; nobody is left who knows them."""
    pool.mm.persist("a text of more than fourteen bytes")
    pool.mm.persist(b"bytes, more than fourteen of them")
    _, counts = pool.gc()
    assert counts["orphans0-gced"] == 2
    _, counts = pool.gc()
    assert counts["orphans0-gced"] == 0
    assert_nothing_leaked(pool)


def test_gc_in_a_transaction_is_refused(pool: Any) -> None:
    with pool.transaction(), pytest.raises(RuntimeError, match="transaction"):
        pool.gc()
    assert_sound(pool)


def test_gc_takes_debug_as_the_pools_default_or_its_own(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def lines(pool: Any, *arguments: Any) -> int:
        pool.mm.persist("a text of more than fourteen bytes")
        with caplog.at_level(logging.DEBUG, "pmshelve.pmemobj"):
            caplog.clear()
            pool.gc(*arguments)
            return len(caplog.records)

    quiet = make()
    assert lines(quiet) == 0
    assert lines(quiet, True) > 0
    quiet.close()
    loud = make(debug=True)
    assert lines(loud) > 0
    assert lines(loud, False) == 0
    assert lines(loud, None) > 0


# Several openers --------------------------------------------------------------------------------


def test_a_second_writer_is_told_who_holds_the_pool(make: Make, path: Path) -> None:
    pool = make()
    for flag in "wcr":
        with pytest.raises(LockTimeoutError) as caught:
            PersistentObjectPool(path, flag)
        assert isinstance(caught.value, OSError)
        if os.path.exists("/proc/locks"):
            assert str(os.getpid()) in str(caught.value)
    pool.root = 1


def test_readers_share_and_keep_writers_out(make: Make, path: Path) -> None:
    make().close()
    with pmemobj.open(path) as pool:
        pool.root = pool.new(PersistentList, range(10))
    readers = [PersistentObjectPool(path, "r") for _ in range(3)]
    assert all(reader.root == list(range(10)) for reader in readers)
    with pytest.raises(LockTimeoutError):
        pmemobj.open(path)
    for reader in readers:
        reader.close()
    pmemobj.open(path).close()


def test_a_reader_refuses_to_write_and_writes_nothing(make: Make, path: Path) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict, {"a": pool.new(PersistentList, [1])})
    pool.close()
    content, before = path.read_bytes(), path.stat()
    os.chmod(path, 0o444)
    with PersistentObjectPool(path, "r") as reader:
        root = reader.root
        for attempt in (
            lambda: root.__setitem__("b", 1),
            lambda: root.clear(),
            lambda: root["a"].append(2),
            lambda: root["a"].sort(),
            lambda: setattr(reader, "root", None),
            lambda: reader.new(PersistentList),
            lambda: reader.gc(),
            lambda: reader.transaction().__enter__(),
            lambda: reader.mm.persist("a text of more than fourteen bytes"),
        ):
            with pytest.raises(ReadOnlyError, match="read"):
                attempt()
        with pytest.raises(io.UnsupportedOperation):
            root["b"] = 1
        assert plain(root) == {"a": [1]}
        assert reader.check() == []
        assert reader.stats().file_size == len(content) if reader.stats() else True
        reader.sync()
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert os.listdir(path.parent) == [path.name]


def test_a_reader_sees_what_a_crashed_writer_committed(path: Path, tmp_path: Path) -> None:
    """It replays the journal into its own memory and leaves the file alone."""
    with pmemobj.create(path, durability="lazy") as pool:
        pool.root = pool.new(PersistentList)
        for number in range(300):
            pool.root.append(f"entry {number}, and some more text")
        copy = crash_copy(pool, tmp_path / "copy")
    content = copy.read_bytes()
    expected = [f"entry {number}, and some more text" for number in range(300)]
    with PersistentObjectPool(copy, "r") as one, PersistentObjectPool(copy, "r") as other:
        assert one.root == other.root == expected
        assert one.check() == []
    assert copy.read_bytes() == content


def test_reading_in_many_processes(make: Make, path: Path) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict, {number: str(number) * 9 for number in range(500)})
    pool.close()
    workers = [Worker("from pmshelve import pmemobj") for _ in range(4)]
    try:
        for worker in workers:
            worker.run("pool = pmemobj.PersistentObjectPool(path, 'r')", path=str(path))
        for worker in workers:
            total = worker.eval("sum(len(value) for value in pool.root.values())")
            assert total == sum(len(str(number)) * 9 for number in range(500))
        with pytest.raises(LockTimeoutError):
            pmemobj.open(path)
    finally:
        for worker in workers:
            worker.close()
    pmemobj.open(path).close()


def test_a_read_only_directory(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    with pmemobj.create(path) as pool:
        pool.root = 3
    os.chmod(path.parent, 0o555)
    try:
        with PersistentObjectPool(path, "r") as pool:
            assert pool.root == 3
    finally:
        os.chmod(path.parent, 0o755)


# Growth -----------------------------------------------------------------------------------------


def test_a_pool_grows_and_shrinks(make: Make, path: Path) -> None:
    pool = make("x")
    pool.root = pool.new(PersistentList)
    address = pool.mm.direct(pool.root._p_oid)
    for number in range(40):
        pool.root.append(bytes([number]) * 1_000_000)
    assert path.stat().st_size > 40_000_000
    assert pool.mm.direct(pool.root._p_oid) == address, "addresses never move"
    assert pool.root[39] == bytes([39]) * 1_000_000
    assert_sound(pool)
    pool.root.clear()
    pool.close()
    assert path.stat().st_size <= 2 * MIN_POOL_SIZE
    assert make("w").root == []


def test_max_size_is_a_limit_that_rolls_back(make: Make, path: Path) -> None:
    pool = make("x", max_size=20 << 20)
    pool.root = pool.new(PersistentList)
    with pytest.raises(NoSpaceError) as caught, time_limit(60):
        while True:
            pool.root.append(bytes(1_000_000))
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.ENOSPC
    assert str(path) in str(caught.value)
    count = len(pool.root)
    assert 5 <= count <= 20
    assert path.stat().st_size <= 20 << 20
    assert_sound(pool)
    with pytest.raises(NoSpaceError), pool.transaction():
        pool.root.append("short")
        pool.root.append(bytes(30_000_000))
    assert len(pool.root) == count
    for _ in range(5):
        pool.root.pop()
    pool.root.append(bytes(1_000_000))
    assert len(pool.root) == count - 4


def test_a_transaction_larger_than_the_journal(make: Make, tmp_path: Path) -> None:
    pool = make("x")
    pool.root = pool.new(PersistentList, [b"x" * 1000 for _ in range(5000)])
    pool.sync()
    with pool.transaction():
        for number in range(5000):
            pool.root[number] = b"y%d" % number * 300
        pool.root.reverse()
    expected = [b"y%d" % number * 300 for number in reversed(range(5000))]
    copy = crash_copy(pool, tmp_path / "copy")
    assert pool.root == expected
    assert_sound(pool)
    with pmemobj.open(copy) as crashed:
        assert crashed.root == expected
        assert_sound(crashed)


# Looking after ----------------------------------------------------------------------------------


def test_stats_count(pool: Any) -> None:
    before = pool.stats(walk=True)
    pool.root["a"] = "x" * 1000
    after = pool.stats(walk=True)
    assert before != after
    assert "file_size" in {name for name in dir(after) if not name.startswith("_")}
    assert after.file_size == os.path.getsize(pool.filename)


def test_check_finds_a_wrong_reference_count(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1])
    assert pool.check() == []
    kind, offset = pool.root["list"]._p_oid
    with pool.transaction():
        pool.mm.incref((kind, offset))
    problems = pool.check()
    assert problems
    assert all(str(problem) for problem in problems)
    with pool.transaction():
        pool.mm.decref((kind, offset))
    assert pool.check() == []


def test_dump_and_load_move_content_to_another_pool(pool: Any, tmp_path: Path) -> None:
    shared = pool.new(PersistentList, [1, "text" * 9])
    pool.root.update({"a": shared, "b": shared, (1, 2): pool.new(pmemobj.PersistentSet, [1, 2])})
    shared.append(pool.root)
    stream = io.BytesIO()
    assert pool.dump(stream) > 0
    stream.seek(0)
    with pmemobj.create(tmp_path / "other") as other:
        other.load(stream)
        root = other.root
        assert root["a"] is root["b"]
        assert root["a"][2] is root
        assert root["a"][:2] == [1, "text" * 9]
        assert root[1, 2] == {1, 2}
        assert_sound(other)
        stream.seek(0)
        with pytest.raises((ValueError, PmshelveError)):
            other.load(stream)  # not empty
        assert other.root["a"] is root["a"]


def test_the_lock_keeps_other_threads_out(pool: Any) -> None:
    import threading

    done = threading.Event()

    def write() -> None:
        pool.root["other"] = 1
        done.set()

    thread = threading.Thread(target=write)
    with pool.lock:
        thread.start()
        assert not done.wait(0.05)
        pool.root["mine"] = "first"
    thread.join(10)
    assert list(pool.root) == ["mine", "other"]
