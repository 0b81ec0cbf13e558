"""Every call of every operation of a raw pool fails, in every way, under both durabilities.

Demanded of each fault:

* a short count is made up for: nobody notices;
* a call that fails before the commit point raises the package's error, an `OSError` with `errno`
  and `filename` (`NoSpaceError` where the disk is full).  Memory is as before, so is what a kill at
  that instant would leave, and the same pool does the operation when it is asked again;
* what fails after the commit point does not undo the commit;
* a sync that fails makes the pool refuse to commit; opened again it has the content before or
  after;
* an exception out of a signal handler leaves the content before or after, the same in memory as
  after a kill, and the pool works on;
* no descriptor is left open.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pmshelve.errors import NoSpaceError, PmshelveError, StorageError, StoreFailedError
from pmshelve.pmemobj import rawpool
from tests.support.faultlab import FULL, SYNCING, WRITING, Shot, shots
from tests.support.guard import time_limit
from tests.support.minipool import BLOCK_SIZE, MiniPool, content
from tests.support.poollab import NAME, create_pool, small_limits
from tests.support.simdisk import SimDisk

LARGE = bytes(range(256)) * 64


@dataclass(frozen=True)
class Case:
    """An operation whose calls are to fail.

    Parameters
    ----------
    before
        What is committed first.
    step
        The operation: given the open pool, or, if it opens one, the path.
    change
        What it does to the content.
    """

    name: str
    step: Callable[[Any], Any]
    change: Callable[[MiniPool], Any] | None = None
    before: Callable[[MiniPool], Any] | None = None
    opens: bool = False

    def __str__(self) -> str:
        return self.name


def commit(change: Callable[[MiniPool], Any]) -> Callable[[Any], None]:
    def step(raw: rawpool.RawPool) -> None:
        with raw.transaction:
            change(MiniPool(raw))

    return step


def committing(name: str, change: Callable[[MiniPool], Any], **more: Any) -> Case:
    return Case(name, commit(change), change, **more)


def fill_journal(mini: MiniPool) -> None:
    mini.fill(0, bytes(5800))


CASES = [
    committing("words", lambda mini: [mini.set_word(i * 4096, 7) for i in range(3)]),
    committing("first words", lambda mini: mini.set_word(0, 7), before=lambda mini: None),
    committing("move", lambda mini: mini.move(16, 0, 9000)),
    committing("large", lambda mini: mini.fill(0, LARGE)),
    committing("fresh", lambda mini: mini.allocate(0, b"x" * BLOCK_SIZE)),
    committing("growth", lambda mini: [mini.allocate(i, b"x" * BLOCK_SIZE) for i in range(1, 7)]),
    committing("full journal", lambda mini: mini.set_word(0, 7), before=fill_journal),
    committing("move, full journal", lambda mini: mini.move(16, 0, 904), before=fill_journal),
    Case("checkpoint", lambda raw: raw.checkpoint()),
    Case(
        "checkpoint of a move", lambda raw: raw.checkpoint(), before=lambda m: m.move(16, 0, 9000)
    ),
    Case("sync", lambda raw: raw.sync()),
]


class Range:
    """One pool on a simulated disk."""

    def __init__(self, case: Case, home: Path, durability: str) -> None:
        self.case = case
        self.durability = durability
        self.home = home
        shutil.rmtree(home, ignore_errors=True)
        self.directory = home / "disk"
        self.directory.mkdir(parents=True)
        self.path = str(self.directory / NAME)
        create_pool(self.path).close()
        self.disk = SimDisk(self.directory)
        self.raw: Any = None

    def open(self) -> None:
        self.raw = rawpool.open(self.path, durability=self.durability)
        before = self.case.before or (lambda mini: mini.set_word(64, 1))
        commit(before)(self.raw)
        self.old = MiniPool(self.raw).content()

    def expected(self) -> bytes:
        """Return the content once the operation is done, by doing it elsewhere."""
        shutil.copy(self.path, self.home / "model")
        raw = rawpool.open(self.home / "model")
        try:
            if self.case.change is not None:
                commit(self.case.change)(raw)
            return MiniPool(raw).content()
        finally:
            raw.close()

    def killed(self) -> bytes:
        """Return what is found if the process dies now."""
        shutil.copy(self.path, self.home / "killed")
        raw = rawpool.open(self.home / "killed", readonly=True)
        try:
            return content(raw.memory, raw.heap_offset)
        finally:
            raw.close()

    def calls(self) -> list[str]:
        with self.disk.installed():
            self.open()
            first = len(self.disk.trace)
            self.case.step(self.raw)
            calls = self.disk.trace[first:]
            self.raw.close()
        return calls

    def strike(self, shot: Shot) -> None:
        with time_limit(30), self.disk.installed():
            self.open()
            new = self.expected()
            outcome = self._shoot(shot)
            now = MiniPool(self.raw).content()
            if outcome == "failed":
                assert now in (self.old, new)
                assert self.killed() in (self.old, new)
                self.raw.close()
                self.raw = rawpool.open(self.path, durability=self.durability)
                now = MiniPool(self.raw).content()
                assert now in (self.old, new)
            else:
                assert self.killed() == now, "a kill leaves another content than memory has"
                assert (
                    now in {"done": [new], "raised": [self.old], "signal": [self.old, new]}[outcome]
                )
            now = self._go_on(now, new)
            self.raw.close()
            assert self.killed() == now
            assert self.disk.open_descriptors == []

    def _go_on(self, now: bytes, new: bytes) -> bytes:
        """Use the pool; return the content then."""
        # Before anything else that could bring the journal back into order.
        commit(lambda mini: mini.set_word(1024, 5))(self.raw)
        assert MiniPool(self.raw).content() == self.killed()
        commit(lambda mini: mini.set_word(1024, int.from_bytes(now[1088:1096], "little")))(self.raw)
        assert MiniPool(self.raw).content() == self.killed() == now
        if now == self.old:
            self.case.step(self.raw)
            now = MiniPool(self.raw).content()
            assert now == new
        return now

    def _shoot(self, shot: Shot) -> str:
        size = os.path.getsize(self.path)
        self.disk.fault = shot.plan(self.disk)
        try:
            self.case.step(self.raw)
        except (PmshelveError, OSError, KeyboardInterrupt) as error:
            self.disk.fault = None
            self._judge(error, shot)
            if shot.primitive in SYNCING and shot.kind == "error":
                assert self.raw.failed is not None, "a failed sync changes nothing"
            elif isinstance(error, OSError) and self.raw.failed is None and shot.kind != "broken":
                grown = self.raw.file_size > size
                assert grown or os.path.getsize(self.path) == size, "longer than it was"
            if self.raw.failed is not None:
                assert (
                    shot.primitive in SYNCING or self.case.change is None or shot.kind == "broken"
                )
                with pytest.raises(StoreFailedError):
                    self.case.step(self.raw)
                return "failed"
            return "signal" if isinstance(error, KeyboardInterrupt) else "raised"
        finally:
            self.disk.fault = None
        return "done" if self.raw.failed is None else "failed"

    def _judge(self, error: BaseException, shot: Shot) -> None:
        if shot.kind.startswith("signal"):
            assert isinstance(error, KeyboardInterrupt), f"the signal became {error!r}"
            return
        assert shot.kind != "short", f"a short count became {error!r}"
        assert isinstance(error, StorageError), f"not the package's error: {error!r}"
        assert error.errno == shot.number
        assert error.filename == self.path
        if isinstance(error, StoreFailedError):
            return
        if shot.number in FULL and shot.primitive in (*WRITING, "posix_fallocate"):
            assert isinstance(error, NoSpaceError), f"not NoSpaceError: {error!r}"


@pytest.mark.parametrize("durability", ["full", "lazy"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_call_fails(
    case: Case, durability: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    count = 0
    with small_limits():
        calls = Range(case, tmp_path / "calls", durability).calls()
        for shot in shots(calls):
            try:
                Range(case, tmp_path / "struck", durability).strike(shot)
            except BaseException as error:
                raise AssertionError(f"{case}, {durability}: {shot}") from error
            count += 1
    record_property("faults", count)


@pytest.mark.parametrize("durability", ["full", "lazy"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_signal_strikes_at_any_line(
    case: Case, durability: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """An exception out of a signal handler arrives between any two lines, not only in calls."""
    count = 0
    with small_limits():
        for line in itertools.count():
            here = Range(case, tmp_path / "struck", durability)
            with here.disk.installed(), time_limit(30):
                here.open()
                new = here.expected()
                struck = _interrupted(lambda: case.step(here.raw), line)
                now = MiniPool(here.raw).content()
                try:
                    assert now in (here.old, new)
                    assert here.killed() == now, "a kill leaves another content than memory has"
                    assert here.raw.transaction.depth == 0
                    if here.raw.failed is None:
                        now = here._go_on(now, new)
                    here.raw.close()
                    assert here.killed() == now
                    assert here.disk.open_descriptors == []
                except BaseException as error:
                    raise AssertionError(f"{case}, {durability}: line {line}, {struck}") from error
            if not struck:
                break
            count += 1
    record_property("faults", count)


def _interrupted(call: Callable[[], Any], line: int) -> str:
    """Call, and raise KeyboardInterrupt at the `line`-th line; return which one, "" if none was."""
    names = "rawpool poolending checkpoint poolstate poolfile journal superblock region"
    files = tuple(f"{name}.py" for name in names.split())
    struck = ""

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal line, struck
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            if line == 0 and not struck:
                struck = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
                raise KeyboardInterrupt
            line -= 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return struck


# Opening, making, closing ---------------------------------------------------------------------


def opened(path: str, durability: str) -> None:
    rawpool.open(path, durability=durability).close(clean=False)


def read(path: str, durability: str) -> None:
    rawpool.open(path, readonly=True, durability=durability).close()


def created(path: str, durability: str) -> None:
    create_pool(path, durability).close()


def left_open(path: str) -> bytes:
    """Leave a pool as a kill does, with every kind of record in its journal."""
    raw = create_pool(path + ".1", "lazy")
    mini = MiniPool(raw)
    commit(lambda mini: mini.set_word(0, 1))(raw)
    commit(lambda mini: mini.move(16, 0, 9000))(raw)
    commit(lambda mini: mini.allocate(2, b"y" * BLOCK_SIZE))(raw)
    found = mini.content()
    shutil.copy(path + ".1", path)
    raw.close()
    os.unlink(path + ".1")
    return found


def closed_pool(path: str) -> bytes:
    raw = create_pool(path)
    found = MiniPool(raw).content()
    raw.close()
    return found


OPENINGS: list[tuple[str, Callable[[str, str], None], Callable[[str], bytes] | None]] = [
    ("open", opened, closed_pool),
    ("recover", opened, left_open),
    ("read", read, left_open),
    ("create", created, None),
]


def judge(error: Any, shot: Shot) -> None:
    assert not shot.kind.startswith("signal")
    assert error.errno == shot.number
    assert error.filename is not None


@pytest.mark.parametrize("durability", ["full", "lazy"])
@pytest.mark.parametrize(("name", "step", "prepare"), OPENINGS, ids=lambda value: str(value)[:9])
def test_every_call_fails_while_it_is_opened(
    name: str,
    step: Callable[[str, str], None],
    prepare: Callable[[str], bytes] | None,
    durability: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    def begin() -> tuple[SimDisk, str, bytes]:
        home = tmp_path / "home"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        path = str(home / NAME)
        expected = prepare(path) if prepare is not None else b""
        return SimDisk(home), path, expected

    def strike(shot: Shot) -> None:
        disk, path, expected = begin()
        with time_limit(30), disk.installed():
            disk.fault = shot.plan(disk)
            try:
                step(path, durability)
            except (PmshelveError, OSError) as error:
                judge(error, shot)
            except KeyboardInterrupt:
                assert shot.kind.startswith("signal")
            finally:
                disk.fault = None
            assert disk.open_descriptors == []
            names = os.listdir(disk.directory)
            if prepare is None:
                assert names in ([], [NAME]) or shot.primitive in ("unlink", "link")
                if NAME not in names:
                    step(path, durability)
            raw = rawpool.open(path)
            assert prepare is None or MiniPool(raw).content() == expected
            commit(lambda mini: mini.set_word(0, 99))(raw)
            raw.close()

    with small_limits():
        disk, path, _ = begin()
        with disk.installed():
            step(path, durability)
        count = 0
        for shot in shots(disk.trace):
            try:
                strike(shot)
            except BaseException as error:
                raise AssertionError(f"{name}, {durability}: {shot}") from error
            count += 1
    record_property("faults", count)


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_every_call_of_a_close_fails(
    durability: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    def begin() -> tuple[SimDisk, str]:
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        (tmp_path / "home").mkdir()
        path = str(tmp_path / "home" / NAME)
        create_pool(path).close()
        return SimDisk(tmp_path / "home"), path

    def use(path: str) -> tuple[rawpool.RawPool, bytes]:
        raw = rawpool.open(path, durability=durability)
        commit(lambda mini: mini.move(16, 0, 9000))(raw)
        commit(lambda mini: mini.allocate(1, b"z" * BLOCK_SIZE))(raw)
        return raw, MiniPool(raw).content()

    def strike(shot: Shot) -> None:
        disk, path = begin()
        with time_limit(30), disk.installed():
            raw, expected = use(path)
            disk.fault = shot.plan(disk)
            try:
                raw.close()
            except StorageError as error:
                judge(error, shot)
            except KeyboardInterrupt:
                assert shot.kind.startswith("signal")
            finally:
                disk.fault = None
            assert raw.closed
            raw.close()
            assert disk.open_descriptors == []
            raw = rawpool.open(path)
            assert MiniPool(raw).content() == expected
            raw.close()

    with small_limits():
        disk, path = begin()
        with disk.installed():
            raw, _ = use(path)
            first = len(disk.trace)
            raw.close()
        count = 0
        for shot in shots(disk.trace[first:]):
            try:
                strike(shot)
            except BaseException as error:
                raise AssertionError(f"close, {durability}: {shot}") from error
            count += 1
    record_property("faults", count)
