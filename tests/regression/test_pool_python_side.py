"""What Python kept beside the pool was wrong after a free, a move, a rollback; or it was too much."""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pmshelve import pmemobj
from pmshelve.errors import ObjectError, ReadOnlyError
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentList,
    PersistentObject,
    PersistentSet,
)
from tests.support.pools import assert_sound


class Restless(PersistentObject):
    """Does something else to the pool whenever it is read."""

    hook: ClassVar[Callable[[], None] | None] = None

    def _v__init__(self) -> None:
        hook, Restless.hook = Restless.hook, None
        if hook is not None:
            hook()


class Busy(PersistentObject):
    """Needs a resource that is not always there."""

    there: ClassVar[bool] = True

    def _v__init__(self) -> None:
        if not Busy.there:
            raise ConnectionError("busy")
        self._v_resource = 1


class Broken(PersistentObject):
    """Cannot be asked what it holds: its class does not behave."""

    def _p_traverse(self) -> Any:
        raise ObjectError("no answer")


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Any]:
    with pmemobj.create(tmp_path / "test.pool", durability="lazy") as pool:
        pool.root = pool.new(PersistentDict)
        yield pool


def test_a_block_that_moved_leaves_no_value_behind(pool: Any) -> None:
    manager = pool.mm
    with pool.transaction():
        oid = manager.persist("x" * 100)
        assert manager.resurrect(oid) == "x" * 100
        manager.realloc(oid, 5000)
        other = manager.persist("y" * 100)
        assert other == oid
        assert manager.resurrect(other) == "y" * 100


def test_an_object_freed_by_hand_is_back_after_an_abort(pool: Any) -> None:
    kept = pool.root["a"] = pool.new(PersistentList, [1, 2])
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        del pool.root["a"]
        pool.mm.free(kept._p_oid)
        pool.transaction().abort()
    assert kept == [1, 2]
    assert pool.root["a"] is kept
    kept.append(3)
    assert_sound(pool)


@pytest.mark.parametrize("kind", [PersistentDict, PersistentList])
def test_pop_of_what_changes_its_container_when_read(pool: Any, kind: Any) -> None:
    if kind is PersistentDict:
        whole = pool.root["it"] = pool.new(PersistentDict, {f"k{i}": i for i in range(20)})
        place: Any = "k5"
    else:
        whole = pool.root["it"] = pool.new(PersistentList, range(20))
        place = 5
    whole[place] = pool.new(Restless)
    pool.mm.identity.recent.clear()
    gc.collect()

    def change() -> None:
        if kind is PersistentDict:
            for i in range(20):
                if i != 5:
                    del whole[f"k{i}"]
        else:
            del whole[8:]

    Restless.hook = change
    assert isinstance(whole.pop(place), Restless)
    assert Restless.hook is None
    assert len(whole) == (0 if kind is PersistentDict else 7)
    assert_sound(pool)


@pytest.mark.parametrize("kind", [PersistentDict, PersistentList])
def test_all_values_of_what_changes_its_container_when_read(pool: Any, kind: Any) -> None:
    items = [pool.new(Restless), *(pool.new(PersistentList, [i]) for i in range(19))]
    if kind is PersistentDict:
        whole = pool.root["it"] = pool.new(PersistentDict, dict(enumerate(items)))
    else:
        whole = pool.root["it"] = pool.new(PersistentList, items)
    del items
    pool.mm.identity.recent.clear()
    gc.collect()
    new: list[Any] = []

    def change() -> None:
        whole.clear()
        new.extend(pool.new(PersistentList, [-1]) for _ in range(19))  # in the places of the old

    Restless.hook = change
    values = list((whole | {}).values()) if kind is PersistentDict else whole[:]
    assert isinstance(values[0], Restless)
    assert values[1:] == [[i] for i in range(19)]
    assert len(whole) == 0
    del values
    new.clear()
    assert_sound(pool)


def test_values_read_are_not_kept_whatever_their_size(pool: Any) -> None:
    blobs = pool.root["blobs"] = pool.new(PersistentList, [b"x" * 1_000_000] * 5)
    for place in range(5):
        assert len(blobs[place]) == 1_000_000
    assert sum(map(len, pool.mm.values.values())) < 100_000


def test_a_refusal_does_not_grow(pool: Any, tmp_path: Path) -> None:
    pool.close()
    with pmemobj.PersistentObjectPool(tmp_path / "test.pool", "r") as reader:
        lengths = set()
        for _ in range(5):
            with pytest.raises(ReadOnlyError) as first:
                reader.root["a"] = 1
            with pytest.raises(ReadOnlyError) as second, reader.transaction():
                pass
            for caught in (first, second):
                lengths.add(len(traceback.extract_tb(caught.value.__traceback__)))
        assert max(lengths) < 6


def test_garbage_that_cannot_be_freed_is_no_failed_commit(
    pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pool.root["a"] = pool.new(PersistentList, [pool.new(Broken)])
    held = pool.root.pop("a")
    del held
    pool.root["b"] = 1  # it is written; what else is freed now is another matter
    assert pool.root == {"b": 1}
    assert "garbage is left to gc" in caplog.text
    pool.root["c"] = 2


def test_an_object_whose_start_failed_is_started_again(
    pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.root["a"] = pool.new(Busy)
    pool.mm.identity.recent.clear()
    gc.collect()
    monkeypatch.setattr(Busy, "there", False)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            pool.root["a"]
    monkeypatch.setattr(Busy, "there", True)
    assert pool.root["a"]._v_resource == 1


@pytest.mark.parametrize("how", ["abort", "refused"])
def test_the_end_of_a_failure_leaves_the_next_thread_alone(
    pool: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def write() -> None:
        with pool.transaction():
            pool.root["a"] = 1
            begun.set()
            ended.wait(10)
            pool.root["b"] = 2

    other = threading.Thread(target=write)
    release = pool._transaction._release

    def pause() -> None:
        release()
        if not pool._transaction.depth and threading.current_thread() is not other:
            other.start()
            begun.wait(10)

    def refuse() -> None:
        raise OSError("refused")

    monkeypatch.setattr(pool._transaction, "_release", pause)
    if how == "refused":
        monkeypatch.setattr(pool._transaction, "_write", refuse)
        with pytest.raises(OSError, match="refused"):
            pool.root["n"] = 1
        monkeypatch.undo()
    else:
        with pytest.raises(OSError, match="aborted"), pool.transaction():
            pool.root["n"] = 1
            with pytest.raises(OSError, match="aborted"):
                pool.transaction().abort()
    ended.set()
    other.join(10)
    assert pool.root == {"a": 1, "b": 2}


@pytest.mark.parametrize("name", ["merge", "_undo"])
def test_a_signal_at_any_line_of_a_rollback_or_merge_undoes_all(pool: Any, name: str) -> None:
    values = [f"a text that is long {i}" for i in range(40)]
    whole = pool.root["it"] = pool.new(PersistentList, values)
    code = getattr(pool.mm.memory, name).__func__.__code__

    def change() -> None:
        with pool.transaction():
            whole.insert(3, "new")
            pool.root["n"] = 1
            del whole[20]
            if name == "_undo":
                raise ValueError

    for line in range(1000):
        left = line

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code is not code:
                return None
            if event == "line":
                left -= 1
                if left == -1:
                    raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            change()
        except (KeyboardInterrupt, ValueError):
            pass
        finally:
            sys.settrace(before)
        if left >= 0:
            break
        if pool._transaction.depth:  # a second one, in the rollback itself, is asked too much
            pool._transaction._roll_back_all()
            while pool._transaction.depth:
                pool._transaction._end_level()
        assert whole == values, line
        assert pool.root.keys() == {"it"}
        assert_sound(pool)
    else:
        raise AssertionError("it never came to its end")
    assert line > 5


def test_a_repr_never_raises(pool: Any) -> None:
    kinds = [PersistentList, PersistentDict, PersistentSet, PersistentObject]
    things = [pool.new(kind) for kind in kinds] + [pool.new(PersistentArray, [1, 2])]
    for thing in things:
        assert repr(thing).startswith(type(thing).__name__ + "(")
    pool.close()
    for thing in things:
        assert repr(thing) == f"<{type(thing).__name__}: the pool was closed>"
