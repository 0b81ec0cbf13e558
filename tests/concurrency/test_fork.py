"""A forked child: has its own handle on the same file, and never unlocks its parent's."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import ForkedError, LockTimeoutError
from pmshelve.mmapdict import mmapdict
from tests.support.forks import finish as _finish
from tests.support.forks import in_child as _in_child
from tests.support.forks import start as _start
from tests.support.stores import assert_content, assert_sound, descriptors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


def test_child_reads_and_writes_the_same_file(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = np.arange(10)

        def child() -> Any:
            total = store["a"].sum()
            store["child"] = int(total)
            store["a"] = "replaced"
            return list(store)

        assert _in_child(child) == ["child", "a"]
        store["b"] = 2
        assert_sound(store, {"child": 45, "a": "replaced", "b": 2})


def test_parent_and_child_write_at_once(path: Path, profile: Any) -> None:
    rounds = 200 * profile.factor
    with mmapdict(path) as store:
        store["x"] = 0

        def work(name: str) -> None:
            for number in range(rounds):
                store[f"{name}{number % 5}"] = number
                assert store[f"{name}{number % 5}"] == number
                if number % 50 == 25:
                    store.vacuum()

        children = [_start(lambda name=name: work(name)) for name in "bc"]
        work("a")
        for each in children:
            _finish(each)
        assert len(store) == 16
        assert list(store.check()) == []
        assert_sound(store, dict(store))


def test_child_reads_without_having_written(path: Path) -> None:
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader:
        store["a"] = [1]
        assert _in_child(lambda: dict(reader)) == {"a": [1]}
        assert _in_child(lambda: (len(store), store["a"], "a" in store, store.commit_number)) == (
            1, [1], True, 1,
        )  # fmt: skip


def test_childs_end_does_not_free_the_parents_lock(path: Path) -> None:
    with mmapdict(path) as store, mmapdict(path, timeout=0.05) as other:
        with store.batch():
            store["a"] = 1
            for close in (False, True):
                _in_child(lambda: store.close() if close else None)
                with pytest.raises(LockTimeoutError):
                    other["b"] = 2
        other["b"] = 2
        assert_sound(store, {"a": 1, "b": 2})


def test_childs_end_does_not_free_an_exclusive_stores_lock(path: Path) -> None:
    with mmapdict(path, exclusive=True) as store:
        store["a"] = 1
        _in_child(lambda: None)
        _in_child(store.close)
        with pytest.raises(LockTimeoutError):
            mmapdict(path, timeout=0.05)
        store["b"] = 2
    with mmapdict(path, timeout=0) as store:
        assert_sound(store, {"a": 1, "b": 2})


def test_child_of_an_exclusive_store_does_not_write_beside_its_parent(path: Path) -> None:
    with mmapdict(path, exclusive=True, timeout=0.05) as store:
        store["a"] = 1

        def child() -> str:
            try:
                store["b"] = 2
            except (LockTimeoutError, ForkedError) as error:
                return type(error).__name__
            return "written"

        assert _in_child(child) in ("LockTimeoutError", "ForkedError")
        store["c"] = 3
        assert list(store.check()) == []
        assert dict(store) == {"a": 1, "c": 3}


def test_child_of_a_batch_is_not_in_it(path: Path) -> None:
    with mmapdict(path, timeout=0.05) as store:
        store["a"] = 1
        with store.batch():
            store["a"] = 2
            store["b"] = 2

            def child() -> Any:
                with contextlib.suppress(LockTimeoutError):  # it may have to wait for the batch
                    assert dict(store) == {"a": 1}
                try:
                    store["c"] = 3
                except (LockTimeoutError, ForkedError):
                    return "refused"
                return "written"

            assert _in_child(child) == "refused"
        assert_sound(store, {"a": 2, "b": 2})


def test_batch_forked_in_ends_harmlessly_in_the_child(path: Path) -> None:
    """A child that leaves the parent's `with` block commits nothing of the parent's."""
    with mmapdict(path, timeout=0.05) as store:
        store["a"] = 1
        child = None
        try:
            with store.batch():
                store["b"] = 2
                child = os.fork()
                if not child:
                    raise KeyError
        except BaseException:
            if child:
                raise
        finally:
            if child == 0:
                os._exit(0)
        os.waitpid(child or 0, 0)
        assert_sound(store, {"a": 1, "b": 2})


def test_nameless_store_refuses_writes_in_the_child() -> None:
    with tempfile.TemporaryFile() as file:
        store = mmapdict(file)
        store["a"] = 1

        def child() -> list[str]:
            outcomes = []
            for call in (
                lambda: store.__setitem__("b", 2),
                lambda: store.__delitem__("a"),
                lambda: store.clear(),
                lambda: store.vacuum(),
                lambda: store.update(a=2),
                lambda: store.batch().__enter__(),
            ):
                try:
                    call()
                    outcomes.append("done")
                except ForkedError:
                    outcomes.append("refused")
            return outcomes

        assert _in_child(child) == ["refused"] * 6
        store["b"] = 2
        assert_content(store, {"a": 1, "b": 2})
        assert list(store.check()) == []


def test_nameless_store_in_a_child_unlocks_nothing() -> None:
    with tempfile.TemporaryFile() as file:
        store = mmapdict(file)
        with store.batch():
            store["a"] = 1
            _in_child(store.close)
            store["b"] = 2
        assert dict(store) == {"a": 1, "b": 2}


def test_views_work_in_the_child(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = np.zeros(10)
        view = store["a"]

        def child() -> float:
            view[0] = 5
            return float(view.sum())

        assert _in_child(child) == 5
        assert view[0] == 5


def test_child_holds_no_inherited_descriptor_of_the_parent(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = 1

        def child() -> int:
            before = sum(str(path) in name for name in descriptors())
            store.close()
            return before - sum(str(path) in name for name in descriptors())

        assert _in_child(child) >= 0
        assert store["a"] == 1
        store["b"] = 1


def test_child_opened_after_the_parent_closed(path: Path) -> None:
    store = mmapdict(path)
    store["a"] = 1
    store.close()
    with pytest.raises(ValueError):  # noqa: PT011
        store["a"]

    def child() -> str:
        try:
            store["a"]
        except ValueError:
            return "closed"
        return "open"

    assert _in_child(child) == "closed"


def test_fork_while_other_threads_use_the_store(path: Path) -> None:
    import threading

    stop = threading.Event()
    with mmapdict(path) as store:
        store["a"] = 0

        def work() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                store["a"] = number

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for number in range(10):

                def child(number: int = number) -> int:
                    store[f"child{number}"] = number
                    return int(store[f"child{number}"])

                assert _in_child(child) == number
        finally:
            stop.set()
            thread.join()
        assert len(store) == 11
        assert list(store.check()) == []


def test_multiprocessing_by_fork_and_by_spawn(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
        for method in ("fork", "spawn"):
            context = multiprocessing.get_context(method)
            process = context.Process(target=_set, args=(store, method))
            process.start()
            process.join(60)
            assert process.exitcode == 0
            process.close()
        assert_sound(store, {"a": 1, "fork": "set", "spawn": "set"})


def _set(store: mmapdict, key: str) -> None:
    store[key] = "set"
    store.close()
