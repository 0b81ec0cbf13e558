"""Threads share a pool: each transaction is alone, each method is whole."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import ClosedError
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObject, PersistentSet
from tests.support.pools import assert_nothing_leaked, assert_sound

THREADS = 4


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Any]:
    with pmemobj.create(tmp_path / "pool", durability="lazy") as pool:
        pool.root = pool.new(PersistentDict)
        yield pool
        if not pool.closed:
            assert_sound(pool)
            assert_nothing_leaked(pool)


def together(work: Callable[[int], None], count: int = THREADS) -> None:
    """Run `work(number)` in threads that start at once; raise what they raise."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait(10)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a thread does not come to an end"
    if errors:
        raise errors[0]


def test_counting_in_transactions_loses_nothing(pool: Any, profile: Any) -> None:
    rounds = 300 * profile.factor
    pool.root["n"] = 0

    def work(number: int) -> None:
        for _ in range(rounds):
            with pool.transaction():
                pool.root["n"] = pool.root["n"] + 1

    together(work)
    assert pool.root["n"] == THREADS * rounds


def test_a_transaction_keeps_the_others_out_and_hides_what_it_has_not_committed(
    pool: Any, profile: Any
) -> None:
    rounds = 150 * profile.factor
    pool.root["a"] = pool.root["b"] = 0
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            rng = random.Random(1)
            try:
                for turn in range(rounds):
                    try:
                        with pool.transaction() as transaction:
                            pool.root["a"] += 1
                            pool.root["b"] -= 1
                            if rng.random() < 0.3:
                                transaction.abort()
                    except OSError:
                        pass
                    if turn % 50 == 0:
                        pool.gc()
            finally:
                stop.set()
        else:
            while not stop.is_set():
                with pool.transaction():
                    assert pool.root["a"] + pool.root["b"] == 0

    together(work)


def test_every_method_is_whole(pool: Any, profile: Any) -> None:
    rounds = 200 * profile.factor
    pool.root["list"] = pool.new(PersistentList)
    pool.root["set"] = pool.new(PersistentSet)
    pool.root["dict"] = pool.new(PersistentDict)
    pool.root["object"] = pool.new(PersistentObject)

    def work(number: int) -> None:
        root = pool.root
        for turn in range(rounds):
            root["list"].append((number, turn))
            root["set"].add((number, turn))
            root["dict"][number, turn] = f"value {number} {turn} with some length"
            setattr(root["object"], f"x{number}", turn)
            if turn % 3 == 0:
                del root["dict"][number, turn]
            if turn % 10 == 0:
                assert (number, turn) in root["set"]
                assert pool.mm.resurrect(root["list"]._p_oid) is root["list"]

    together(work)
    everything = {(number, turn) for number in range(THREADS) for turn in range(rounds)}
    assert len(pool.root["list"]) == len(everything)
    assert set(pool.root["list"]) == everything
    assert pool.root["set"] == everything
    assert set(pool.root["dict"]) == {pair for pair in everything if pair[1] % 3}
    assert all(getattr(pool.root["object"], f"x{n}") == rounds - 1 for n in range(THREADS))
    by_thread: dict[int, int] = {}
    for number, turn in pool.root["list"]:  # each thread's own order is kept
        assert turn == by_thread.get(number, -1) + 1
        by_thread[number] = turn


def test_objects_come_and_go_in_all_threads(pool: Any, profile: Any) -> None:
    """Proxies die, values are freed, cycles are collected, while others work."""
    rounds = 100 * profile.factor

    def work(number: int) -> None:
        rng = random.Random(number)
        for turn in range(rounds):
            thing = pool.new(PersistentList, [f"text {number} {turn}" * 3])
            if rng.random() < 0.3:
                thing.append(thing)
            pool.root[number] = thing
            thing = pool.root.get(rng.randrange(THREADS))
            if thing is not None and len(thing):
                first = thing[0]
                assert first.startswith("text")
            if rng.random() < 0.1:
                pool.gc()
            if rng.random() < 0.2:
                try:
                    with pool.transaction():
                        pool.root[number] = pool.new(PersistentDict, {1: "x" * 50})
                        raise KeyError
                except KeyError:
                    pass

    together(work)


def test_reading_threads_see_whole_states(pool: Any, profile: Any) -> None:
    rounds = 200 * profile.factor
    pool.root["list"] = pool.new(PersistentList, [0] * 50)
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            try:
                for turn in range(1, rounds):
                    pool.root["list"][:] = [turn] * (50 - turn % 7)
            finally:
                stop.set()
        else:
            while not stop.is_set():
                found = pool.root["list"][:]
                assert len(set(found)) == 1
                assert len(found) == 50 - found[0] % 7
                assert pool.root["list"] == pool.root["list"]

    together(work)


def test_a_thread_that_dies_in_a_transaction_rolls_back(pool: Any) -> None:
    def work() -> None:
        with pytest.raises(ZeroDivisionError), pool.transaction():
            pool.root["a"] = 1
            raise ZeroDivisionError

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    pool.root["b"] = 2
    assert pool.root == {"b": 2}


def test_closing_while_others_work(tmp_path: Path) -> None:
    for turn in range(3):
        path = tmp_path / f"pool{turn}"
        pool = pmemobj.create(path, durability="lazy")
        pool.root = pool.new(PersistentList)
        counts = [0] * THREADS

        def work(number: int) -> None:
            root = pool.root
            if number == 0:
                while min(counts[1:]) < 20:
                    pass
                pool.close()
                return
            try:
                while True:
                    root.append(number)
                    counts[number] += 1
            except ClosedError:
                pass

        together(work)
        with pmemobj.open(path) as pool:
            found = list(pool.root)
            for number in range(1, THREADS):
                assert found.count(number) == counts[number]
            assert_nothing_leaked(pool)


def test_a_lock_taken_by_hand_makes_several_calls_one(pool: Any) -> None:
    pool.root["n"] = 0

    def work(number: int) -> None:
        for _ in range(100):
            with pool.lock:
                pool.root["n"] = pool.root["n"] + 1

    together(work)
    assert pool.root["n"] == 100 * THREADS
