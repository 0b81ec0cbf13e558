"""Threads that share one mmapdict, or hold one each over the same file."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import LockTimeoutError
from pmshelve.mmapdict import mmapdict
from tests.support.stores import assert_sound


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


def _run(*tasks: Callable[[], Any]) -> None:
    """Run the tasks at once, one thread each, from a barrier on; raise what one of them raised."""
    barrier = threading.Barrier(len(tasks))
    errors: list[BaseException] = []

    def run(task: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.mark.parametrize("options", [{}, {"exclusive": True}, {"autovacuum": True}])
def test_threads_with_keys_of_their_own_lose_nothing(
    path: Path, options: dict[str, Any], profile: Any
) -> None:
    rounds = 300 * profile.factor

    def work(store: mmapdict, name: int) -> dict[str, Any]:
        chance = random.Random(name)
        mine: dict[str, Any] = {}
        for number in range(rounds):
            key = f"{name}:{chance.randrange(10)}"
            kind = chance.randrange(6)
            if kind == 0:
                assert store.pop(key, None) == mine.pop(key, None)
            elif kind == 1:
                with store.batch():
                    store[key] = number
                    store[key + "b"] = -number
                mine[key], mine[key + "b"] = number, -number
            else:
                mine[key] = store[key] = number
            assert store.get(key) == mine.get(key)
            assert (key in store) == (key in mine)
        return mine

    with mmapdict(path, **options) as store:
        results: list[dict[str, Any]] = []
        _run(*(lambda name=name: results.append(work(store, name)) for name in range(4)))
        expected = {key: value for result in results for key, value in result.items()}
        assert dict(store) == expected
        assert list(store.check()) == []
    with mmapdict(path) as store:
        assert_sound(store, {key: expected[key] for key in store})
        assert len(store) == len(expected)


def test_readers_of_one_handle_never_see_less_than_was_there(path: Path, profile: Any) -> None:
    rounds = 400 * profile.factor
    done = threading.Event()
    with mmapdict(path) as store:
        store.update({str(i): [0, i] for i in range(20)})

        def write() -> None:
            try:
                for number in range(rounds):
                    store[str(number % 20)] = [number, number % 20]
                    if number % 100 == 50:
                        store.vacuum()
            finally:
                done.set()

        def read() -> None:
            latest = [0] * 20
            while not done.is_set():
                for i in range(20):
                    number, name = store[str(i)]
                    assert name == i
                    assert number >= latest[i]
                    latest[i] = number
                assert len(store) == 20
                assert sorted(map(int, store)) == list(range(20))

        _run(write, read, read)
        assert list(store.check()) == []


def test_readers_of_arrays_see_whole_ones(path: Path, profile: Any) -> None:
    rounds = 150 * profile.factor
    done = threading.Event()
    with mmapdict(path) as store:
        store["a"] = np.zeros(5000)

        def write() -> None:
            try:
                for number in range(rounds):
                    store["a"] = np.full(5000, number)
                    if number % 20 == 10:
                        store.vacuum()
            finally:
                done.set()

        def read() -> None:
            latest = 0
            while not done.is_set():
                array = store["a"]
                assert (array == array[0]).all()
                assert array[0] >= latest
                latest = array[0]

        _run(write, read)


def test_a_batch_keeps_other_threads_out(path: Path) -> None:
    inside, leave = threading.Event(), threading.Event()
    with mmapdict(path) as store:

        def batch() -> None:
            with store.batch():
                store["a"] = 1
                inside.set()
                leave.wait(30)
                store["b"] = 2

        def other() -> None:
            inside.wait(30)
            store.timeout = 0.05
            with pytest.raises(LockTimeoutError):
                store["c"] = 3
            store.timeout = 60
            leave.set()
            store["c"] = store["a"] + store["b"]

        _run(batch, other)
        assert_sound(store, {"a": 1, "b": 2, "c": 3})


def test_other_threads_do_not_read_a_batch_before_its_end(path: Path) -> None:
    inside, seen, leave = threading.Event(), threading.Event(), threading.Event()
    values: list[Any] = []
    with mmapdict(path) as store:
        store["a"] = 1

        def batch() -> None:
            with pytest.raises(KeyError), store.batch():
                store["a"] = 2
                store["b"] = 2
                inside.set()
                # The reader may be made to wait for the batch: do not wait for it for ever.
                seen.wait(0.5)
                raise KeyError
            leave.set()

        def read() -> None:
            inside.wait(30)
            values.append((store["a"], store.get("b"), len(store)))
            seen.set()

        _run(batch, read)
        assert leave.is_set()
        assert values == [(1, None, 1)]
        assert_sound(store, {"a": 1})


def test_handles_of_their_own_in_each_thread(path: Path, profile: Any) -> None:
    rounds = 150 * profile.factor

    def work(name: int) -> None:
        with mmapdict(path) as store:
            for number in range(rounds):
                store[f"{name}:{number % 5}"] = number
                store["shared"] = [name, number]
                assert store[f"{name}:{number % 5}"] == number
                if number % 40 == 20:
                    store.vacuum()
                if number % 50 == 49:
                    del store[f"{name}:{number % 5}"]

    _run(*(lambda name=name: work(name) for name in range(3)))
    with mmapdict(path) as store:
        expected = dict(store)
        assert_sound(store, expected)
        assert len(expected) == 3 * 4 + 1


def test_closing_while_others_use_it_is_a_clean_error(path: Path) -> None:
    for _ in range(20):
        store = mmapdict(path)
        store["a"] = np.arange(10_000)

        def use() -> None:
            try:
                while True:
                    assert store["a"].sum() == 49_995_000
                    store["b"] = 1
            except ValueError:
                pass

        _run(use, use, store.close)
        assert store.closed
    with mmapdict(path) as store:
        assert list(store.check()) == []


def test_many_openers_at_once_make_one_file(path: Path) -> None:
    for round_ in range(10):
        target = path.with_name(f"store{round_}")

        def open_and_set(name: int) -> None:
            with mmapdict(target) as store:
                store[str(name)] = name

        _run(*(lambda name=name: open_and_set(name) for name in range(6)))
        with mmapdict(target) as store:
            assert sorted(store) == list("012345")
            assert list(store.check()) == []


def test_removed_counters_balance(path: Path, profile: Any) -> None:
    """Threads that pop the same keys get each key once."""
    total = 500 * profile.factor
    popped: list[str] = []
    with mmapdict(path) as store:
        store.update({str(i): i for i in range(total)})

        def pop() -> None:
            while True:
                try:
                    popped.append(store.popitem()[0])
                except KeyError:
                    return

        _run(pop, pop, pop)
        assert sorted(popped, key=int) == [str(i) for i in range(total)]
        assert_sound(store, {})


def test_setdefault_has_one_winner(path: Path) -> None:
    with mmapdict(path) as store:
        for number in range(30):
            results: list[int] = []
            key = str(number)
            _run(*(lambda i=i: results.append(store.setdefault(key, i)) for i in range(4)))
            assert results == [results[0]] * 4
            assert store[key] == results[0]
