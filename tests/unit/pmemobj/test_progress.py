"""Progress of gc, check, dump and load: what is told, and that whatever it raises loses nothing."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObjectPool
from pmshelve.pmemobj.layout import POBJECT_TYPE_NUM
from pmshelve.storage import progress
from tests.support.pools import assert_counts_exact, assert_sound, plain


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step told, instead of one in ten milliseconds."""
    monkeypatch.setattr(progress, "INTERVAL", 0)
    monkeypatch.setattr("pmshelve.pmemobj.collector.BATCH", 50)


class Stopped(Exception):
    """What a callback raises that is neither ours nor Ctrl-C."""


def stop_at(number: int, error: type[BaseException] = Stopped) -> Callable[[int, int], None]:
    calls = 0

    def report(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error

    return report


def filled(path: Path) -> PersistentObjectPool:
    pool = pmemobj.create(path, durability="lazy")
    root = pool.root = pool.new(PersistentDict)
    for number in range(300):
        root[f"key {number} of some length"] = f"text {number} of some length"
    root["lists"] = pool.new(PersistentList, [pool.new(PersistentList, [n]) for n in range(100)])
    return pool


def litter(pool: PersistentObjectPool, cycles: int = 200) -> None:
    """Make garbage: lists that hold themselves."""
    for _ in range(cycles):
        ring = pool.new(PersistentList, ["some text that needs a block"])
        ring.append(ring)
        del ring


def garbage(pool: PersistentObjectPool) -> int:
    mm = pool.mm
    return sum(type_num == POBJECT_TYPE_NUM for _, _, type_num in mm.heap.blocks())


def assert_told_well(calls: list[tuple[int, int]]) -> None:
    assert len(calls) > 5
    assert len({total for _, total in calls}) == 1
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]


def test_what_is_told(tmp_path: Path) -> None:
    with filled(tmp_path / "pool") as pool:
        litter(pool)
        stream = io.BytesIO()
        for work in (
            pool.check,
            pool.gc,
            lambda **options: pool.dump(stream, **options),
        ):
            calls: list[tuple[int, int]] = []
            work(progress=lambda done, total, calls=calls: calls.append((done, total)))
            assert_told_well(calls)
        stream.seek(0)
        with pmemobj.create(tmp_path / "other", durability="lazy") as other:
            calls = []
            other.load(stream, progress=lambda done, total: calls.append((done, total)))
            assert_told_well(calls)
            assert plain(other.root) == plain(pool.root)


def test_a_stream_of_unknown_size_is_told_as_such(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with filled(tmp_path / "pool") as pool:
        pool.dump(stream)
    stream.seek(0)

    class Pipe:
        read = stream.read

    with pmemobj.create(tmp_path / "other", durability="lazy") as other:
        calls: list[tuple[int, int]] = []
        other.load(Pipe(), progress=lambda done, total: calls.append((done, total)))
    assert (0, 0) in calls
    assert {total for _, total in calls} <= {0, 1000}


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
def test_a_collection_that_is_stopped(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "pool"
    with filled(path) as pool:
        expected = plain(pool.root)
        kept = garbage(pool)
        calls: list[int] = []
        litter(pool)
        pool.gc(progress=lambda done, total: calls.append(done))
        freeing = next(number for number, done in enumerate(calls) if done >= 800)
        for number in (1, 100, freeing - 1, freeing + 1, freeing + 3):
            litter(pool)
            before = garbage(pool)
            with pytest.raises(error):
                pool.gc(progress=stop_at(number, error))
            if number < freeing:
                assert garbage(pool) == before
            assert plain(pool.root) == expected
            assert pool.check() == []
            pool.root["probe"] = number
            del pool.root["probe"]
        assert kept < garbage(pool)
    with pmemobj.open(path) as pool:  # closing has done the rest
        assert garbage(pool) == kept
        assert plain(pool.root) == expected
        assert_sound(pool)
        assert_counts_exact(pool)


def test_recovery_tells_and_can_be_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "pool"
    pool = filled(path)
    expected = plain(pool.root)
    litter(pool)
    pool._end(clean=False, size=None)  # a kill, as far as the file can tell
    caplog.set_level(logging.ERROR)
    with pytest.raises(KeyboardInterrupt):
        PersistentObjectPool(path, progress=stop_at(50, KeyboardInterrupt))
    calls: list[tuple[int, int]] = []
    with PersistentObjectPool(path, progress=lambda *call: calls.append(call)) as pool:
        assert_told_well(calls)
        assert plain(pool.root) == expected
        assert_sound(pool)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
def test_a_check_and_a_dump_that_are_stopped(tmp_path: Path, error: type[BaseException]) -> None:
    with filled(tmp_path / "pool") as pool:
        expected = plain(pool.root)
        for number in (1, 2, 30):
            stream = io.BytesIO()
            with pytest.raises(error):
                pool.check(progress=stop_at(number, error))
            with pytest.raises(error):
                pool.dump(stream, progress=stop_at(number, error))
            with pytest.raises(ValueError, match="dump"):  # it is no whole one
                stream.seek(0)
                with pmemobj.create(tmp_path / f"other {number} {error.__name__}") as other:
                    other.load(stream)
            pool.root["probe"] = number
            del pool.root["probe"]
        assert plain(pool.root) == expected
        assert_sound(pool)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stopped])
def test_a_load_that_is_stopped(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("loader", "dumper", "transfer"):
        monkeypatch.setattr(f"pmshelve.pmemobj.{module}.BATCH", 40)
    stream = io.BytesIO()
    with filled(tmp_path / "pool") as pool:
        pool.dump(stream)
        expected = plain(pool.root)
    with pmemobj.create(tmp_path / "other", durability="lazy") as other:
        empty = garbage(other)
        for number in (1, 5, 60, 105):
            stream.seek(0)
            with pytest.raises(error):
                other.load(stream, progress=stop_at(number, error))
            assert other.root is None
            assert other.check() == []
        other.gc()
        assert garbage(other) == empty
        stream.seek(0)
        other.load(stream)
        assert plain(other.root) == expected
        assert_sound(other)
    with pmemobj.open(tmp_path / "other") as other:
        assert plain(other.root) == expected


def test_a_load_that_is_stopped_behind_its_last_value_was_done(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with filled(tmp_path / "pool") as pool:
        pool.dump(stream)
        expected = plain(pool.root)

    def stop_late(done: int, total: int) -> Any:
        if done >= 950:
            raise Stopped

    with pmemobj.create(tmp_path / "other", durability="lazy") as other:
        stream.seek(0)
        with pytest.raises(Stopped):
            other.load(stream, progress=stop_late)
        assert plain(other.root) == expected
        assert_sound(other)
