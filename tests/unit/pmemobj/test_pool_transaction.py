"""A pool's transactions, as its user sees them: all of it, or nothing."""

from __future__ import annotations

import contextlib
import errno
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import PmshelveError, TransactionError
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
)
from tests.support.pools import (
    assert_nothing_leaked,
    assert_sound,
    block_sizes,
    crash_copy,
    plain,
    used,
)

Make = Callable[..., Any]

TEXT = "a text too long for an immediate"


class Point(PersistentObject):
    def __init__(self, x: Any = 0) -> None:
        self.x = x


class Other(PersistentObject):
    pass


def is_canceled(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ECANCELED


# Committed --------------------------------------------------------------------------------------


def test_with_commits(pool: Any, tmp_path: Path) -> None:
    with pool.transaction():
        pool.root["a"] = 1
        pool.root["b"] = pool.new(PersistentList, [TEXT])
    assert pool.root == {"a": 1, "b": [TEXT]}
    with pmemobj.open(crash_copy(pool, tmp_path / "copy")) as copy:
        assert copy.root == {"a": 1, "b": [TEXT]}


def test_nothing_of_an_open_transaction_is_in_the_file(pool: Any, tmp_path: Path) -> None:
    pool.root["a"] = 1
    with pool.transaction():
        pool.root["a"] = 2
        pool.root["b"] = [0] and pool.new(PersistentList, range(10_000))
        copy = crash_copy(pool, tmp_path / "copy")
    with pmemobj.open(copy) as crashed:
        assert crashed.root == {"a": 1}
        assert_nothing_leaked(crashed)


def test_with_gives_the_transaction(pool: Any) -> None:
    with pool.transaction() as transaction:
        assert transaction.depth == 1
        with pool.mm.transaction() as inner:
            assert inner.depth == 2
        assert transaction.depth == 1
    assert transaction.depth == 0


def test_begin_and_commit(pool: Any) -> None:
    transaction = pool.transaction()
    assert transaction.depth == 0
    transaction.begin()
    assert transaction.depth == 1
    pool.root["a"] = 1
    transaction.begin()
    assert transaction.depth == 2
    pool.root["b"] = 2
    transaction.commit()
    assert transaction.depth == 1
    transaction.commit()
    assert transaction.depth == 0
    assert pool.root == {"a": 1, "b": 2}


def test_begin_is_visible_in_every_transaction_object(pool: Any) -> None:
    one, other = pool.transaction(), pool.mm.transaction()
    one.begin()
    assert other.depth == 1
    other.commit()
    assert one.depth == 0


def test_an_inner_level_that_ends_well_is_undone_with_the_outer(pool: Any) -> None:
    with pytest.raises(ZeroDivisionError), pool.transaction():
        with pool.transaction():
            pool.root["inner"] = 1
        assert pool.root == {"inner": 1}
        raise ZeroDivisionError
    assert pool.root == {}


def test_deeply_nested_transactions(pool: Any) -> None:
    transaction = pool.transaction()
    for level in range(500):
        transaction.begin()
        pool.root[level] = level
    assert transaction.depth == 500
    for _ in range(500):
        transaction.commit()
    assert pool.root == {level: level for level in range(500)}


# Aborted ----------------------------------------------------------------------------------------


def test_abort_leaves_with_as_ecanceled(pool: Any) -> None:
    pool.root["a"] = 1
    with pytest.raises(OSError) as caught, pool.transaction() as transaction:  # noqa: PT011
        pool.root["a"] = 2
        transaction.abort()
    assert is_canceled(caught.value)
    assert pool.root == {"a": 1}
    assert transaction.depth == 0
    pool.root["a"] = 3
    assert pool.root == {"a": 3}


def test_abort_after_begin(pool: Any) -> None:
    transaction = pool.transaction()
    transaction.begin()
    pool.root["a"] = 1
    with pytest.raises(OSError) as caught:  # noqa: PT011
        transaction.abort()
    assert is_canceled(caught.value)
    assert pool.root == {}
    assert transaction.depth == 0
    with pytest.raises(RuntimeError, match="commit called outside of transaction"):
        transaction.commit()


def test_an_inner_abort_aborts_the_whole(pool: Any) -> None:
    with pytest.raises(OSError) as caught, pool.transaction():  # noqa: PT011
        pool.root["outer"] = 1
        with pool.transaction() as inner:
            pool.root["inner"] = 1
            inner.abort()
    assert is_canceled(caught.value)
    assert pool.root == {}


def test_an_inner_abort_that_is_caught_still_aborts_the_whole(pool: Any) -> None:
    with pytest.raises(OSError) as caught, pool.transaction() as transaction:  # noqa: PT011
        pool.root["outer"] = 1
        with contextlib.suppress(OSError), pool.transaction() as inner:
            inner.abort()
        with pytest.raises(RuntimeError, match="aborted"):
            pool.root["after"] = 1
        with pytest.raises(RuntimeError, match="aborted"):
            transaction.begin()
    assert is_canceled(caught.value)
    assert pool.root == {}
    assert pool.transaction().depth == 0


def test_an_abort_caught_in_its_own_block_leaves_the_block_as_an_error(pool: Any) -> None:
    with pytest.raises(OSError) as caught, pool.transaction() as transaction:  # noqa: PT011
        with contextlib.suppress(OSError):
            transaction.abort()
    assert is_canceled(caught.value)


def test_reading_after_an_abort_gives_the_state_before(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1, 2])
    with pytest.raises(OSError, match="abort"), pool.transaction() as transaction:
        pool.root["list"].append(3)
        try:
            transaction.abort()
        except OSError:
            assert pool.root["list"] == [1, 2]
            assert len(pool.root["list"]) == 2
            raise


@pytest.mark.parametrize(
    "error", [KeyError("x"), KeyboardInterrupt(), SystemExit(3), MemoryError()]
)
def test_an_exception_rolls_back_and_propagates(pool: Any, error: BaseException) -> None:
    pool.root["a"] = 1
    with pytest.raises(type(error)) as caught, pool.transaction():
        pool.root["a"] = 2
        pool.root["b"] = 2
        raise error
    assert caught.value is error
    assert pool.root == {"a": 1}


def test_an_exception_of_an_inner_block_aborts_the_whole(pool: Any) -> None:
    with pytest.raises(OSError) as caught, pool.transaction():  # noqa: PT011
        pool.root["outer"] = 1
        with pytest.raises(ZeroDivisionError), pool.transaction():
            raise ZeroDivisionError
    assert is_canceled(caught.value)
    assert pool.root == {}


def test_another_exception_on_the_way_out_of_an_aborted_one_propagates(pool: Any) -> None:
    with pytest.raises(KeyError), pool.transaction():
        try:
            with pool.transaction() as inner:
                inner.abort()
        except OSError as canceled:
            raise KeyError("mine") from canceled
    assert pool.transaction().depth == 0
    pool.root["a"] = 1


# Misused ----------------------------------------------------------------------------------------


def test_commit_outside(pool: Any) -> None:
    with pytest.raises(RuntimeError, match="commit called outside of transaction") as caught:
        pool.transaction().commit()
    assert isinstance(caught.value, TransactionError)


def test_abort_outside(pool: Any) -> None:
    with pytest.raises(RuntimeError, match="abort called outside of transaction") as caught:
        pool.transaction().abort()
    assert isinstance(caught.value, PmshelveError)


def test_commit_in_a_with_block_is_an_error_and_rolls_back(pool: Any) -> None:
    with pytest.raises(RuntimeError), pool.transaction() as transaction:
        pool.root["a"] = 1
        transaction.commit()
    assert pool.root == {}
    assert pool.transaction().depth == 0
    pool.root["a"] = 2


def test_commit_of_an_inner_begin_in_a_with_block(pool: Any) -> None:
    with pool.transaction() as transaction:
        transaction.begin()
        pool.root["a"] = 1
        transaction.commit()
        assert transaction.depth == 1
    assert pool.root == {"a": 1}


def test_a_begin_left_open_by_a_with_block(pool: Any) -> None:
    with pool.transaction() as transaction:
        transaction.begin()
        pool.root["a"] = 1
    assert pool.transaction().depth == 0
    assert pool.root == {"a": 1}
    with pytest.raises(ZeroDivisionError), pool.transaction() as transaction:
        transaction.begin()
        pool.root["a"] = 2
        raise ZeroDivisionError
    assert pool.transaction().depth == 0
    assert pool.root == {"a": 1}


def test_another_thread_neither_commits_nor_aborts_ours(pool: Any) -> None:
    transaction = pool.transaction()
    transaction.begin()
    pool.root["a"] = 1
    errors: list[BaseException] = []

    def meddle() -> None:
        for call in (transaction.commit, transaction.abort):
            try:
                call()
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=meddle)
    thread.start()
    thread.join(10)
    assert [type(error) for error in errors] == [TransactionError] * 2
    transaction.commit()
    assert pool.root == {"a": 1}


# A failing operation inside ---------------------------------------------------------------------


def test_an_operation_that_fails_is_undone_alone(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1, 2, 3])
    with pool.transaction():
        root, items = pool.root, pool.root["list"]
        root["a"] = TEXT
        for attempt, error in (
            (lambda: root.__delitem__("missing"), KeyError),
            (lambda: root.pop("missing"), KeyError),
            (lambda: root.__setitem__("b", [1]), TypeError),
            (lambda: root.__setitem__(pool.new(PersistentList), 1), TypeError),
            (lambda: root.update({"c": TEXT * 2, "d": object()}), TypeError),
            (lambda: root.update([("e", 1), ("f",)]), ValueError),
            (lambda: items.pop(7), IndexError),
            (lambda: items.remove("missing"), ValueError),
            (lambda: items.extend([4, TEXT * 3, {}]), TypeError),
            (lambda: items.extend(1 // n for n in (1, 0)), ZeroDivisionError),
            (lambda: items.__setitem__(slice(None, None, 2), [1]), ValueError),
            (lambda: items.sort(key=lambda item: 1 // (item - 2)), ZeroDivisionError),
            (lambda: pool.new(PersistentList, [TEXT, object()]), TypeError),
            (lambda: pool.new(PersistentList, 5), TypeError),
            (lambda: setattr(pool, "root", object()), TypeError),
            (lambda: pool.mm.persist((TEXT * 5, [])), TypeError),
        ):
            before = used(pool)
            with pytest.raises(error):
                attempt()
            gc.collect()
            assert pool.transaction().depth == 1
            assert used(pool) <= before + 4096, "what it allocated stayed"
        assert items[:3] == [1, 2, 3]
        root["z"] = 26
    assert root["z"] == 26
    assert root["a"] == TEXT
    assert items[:3] == [1, 2, 3]
    assert_nothing_leaked(pool)


def test_a_failing_operation_outside_leaves_no_trace(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1, 2, 3])
    pool.gc()
    before = block_sizes(pool)
    for attempt in (
        lambda: pool.root.update({"c": 1, "d": object()}),
        lambda: pool.root["list"].__setitem__(0, object()),
        lambda: pool.root["list"].insert(0, {}),
        lambda: pool.new(PersistentDict, {"text": TEXT, "bad": []}),
        lambda: pool.new(PersistentTuple, [TEXT, []]),
        lambda: pool.new(PersistentSet, [TEXT, []]),
        lambda: pool.new(Point, []),
    ):
        with pytest.raises(TypeError):
            attempt()
        gc.collect()
        assert_nothing_leaked(pool)
    if "c" in pool.root:  # as dict: what came before the failure stays
        del pool.root["c"]
        pool.gc()
    assert block_sizes(pool) == before


# What is rolled back ----------------------------------------------------------------------------


def fill(pool: Any) -> Any:
    root = pool.root
    root["list"] = pool.new(PersistentList, [1, TEXT, 2.5, None])
    root["dict"] = pool.new(PersistentDict, {n: TEXT + str(n) for n in range(20)})
    root["set"] = pool.new(PersistentSet, [1, 2, TEXT])
    root["tuple"] = (1, TEXT, (2, 3))
    root["frozen"] = frozenset([1, TEXT])
    root["point"] = pool.new(Point, 5)
    root["array"] = pool.new(PersistentArray, pytest.importorskip("numpy").arange(100.0))
    return root


def ruin(pool: Any) -> None:
    """Change everything that `fill` made, in every way."""
    root = pool.root
    root["list"].extend(range(1000))
    root["list"].reverse()
    del root["list"][5:900]
    root["list"].insert(0, pool.new(PersistentList, [TEXT]))
    root["list"].sort(key=str)
    root["dict"].update({TEXT + str(n): n for n in range(500)})
    for number in range(20):
        del root["dict"][number]
    root["set"].update(range(500))
    root["set"].discard(TEXT)
    root["point"].x = pool.new(Point, pool.new(PersistentDict, {1: 2}))
    root["point"].new = TEXT * 10
    root["array"][:] = -1
    root["array"] += 5
    del root["tuple"]
    root["frozen"] = frozenset(range(100))
    root["other"] = pool.new(Other)
    root["other"].root = root
    root["list"].clear()
    root["set"].clear()


def content(pool: Any) -> Any:
    root = pool.root
    return {
        key: plain(value).tolist() if key == "array" else plain(value)
        for key, value in root.items()
    }


@pytest.mark.parametrize("held", [False, True], ids=["dropped", "held"])
def test_everything_is_rolled_back(pool: Any, held: bool) -> None:
    fill(pool)
    pool.gc()
    expected, blocks, heap = content(pool), block_sizes(pool), bytes_of_heap(pool)
    live = [pool.root, *pool.root.values()] if held else []
    lengths = [len(thing) if hasattr(thing, "__len__") else 0 for thing in live]
    for _ in range(3):
        with pytest.raises(OSError, match="abort"), pool.transaction() as transaction:
            ruin(pool)
            transaction.abort()
        assert content(pool) == expected
        assert [len(thing) if hasattr(thing, "__len__") else 0 for thing in live] == lengths
        assert block_sizes(pool) == blocks
        assert_sound(pool)
        assert bytes_of_heap(pool) == heap
    ruin(pool)
    assert content(pool) != expected
    live.clear()
    assert_nothing_leaked(pool)


def bytes_of_heap(pool: Any) -> dict[int, bytes]:
    """Return the content of every block, by offset."""
    return {
        offset: bytes(pool.mm.map[offset : offset + size])
        for offset, size, _ in pool.mm.heap.blocks()
    }


def test_objects_made_in_an_aborted_transaction_refuse_use(pool: Any) -> None:
    made: list[Any] = []
    with pytest.raises(OSError, match="abort"), pool.transaction() as transaction:
        made += [
            pool.new(PersistentList, [1, 2]),
            pool.new(PersistentDict, {1: 2}),
            pool.new(PersistentSet, [1]),
            pool.new(PersistentTuple, [1]),
            pool.new(PersistentFrozenSet, [1]),
            pool.new(Point, 1),
            pool.new(PersistentArray, pytest.importorskip("numpy").zeros(3)),
        ]
        pool.root["keep"] = made[0]
        made.append(pool.root["keep"])
        transaction.abort()
    for thing in made:
        for use in (
            lambda thing: thing.x if isinstance(thing, Point) else len(thing),
            lambda thing: (
                setattr(thing, "x", 1) if isinstance(thing, Point) else iter(thing).__next__()
            ),
            lambda thing: pool.root.__setitem__("again", thing),
            lambda thing: (
                thing == [1, 2] if isinstance(thing, PersistentList) else thing._p_mm.lock
            ),
        ):
            with pytest.raises(RuntimeError, match="aborted"):
                use(thing)
    for change in (
        lambda: made[0].append(3),
        lambda: made[1].update({3: 4}),
        lambda: made[2].add(3),
        lambda: made[6].__setitem__(0, 1.0),
    ):
        with pytest.raises(RuntimeError, match="aborted"):
            change()
    assert pool.root == {}
    made.clear()
    gc.collect()
    assert_nothing_leaked(pool)


def test_the_space_of_an_aborted_object_is_used_again_and_is_not_confused(pool: Any) -> None:
    with pytest.raises(ZeroDivisionError), pool.transaction():
        gone = pool.new(PersistentList, [1])
        oid = gone._p_oid
        raise ZeroDivisionError
    again = [pool.new(PersistentList, [2]) for _ in range(20)]
    assert oid in [thing._p_oid for thing in again] or True
    with pytest.raises(RuntimeError, match="aborted"):
        gone.append(5)
    del gone
    gc.collect()
    pool.root["again"] = pool.new(PersistentList, again)
    assert pool.root["again"] == [[2]] * 20
    again.clear()
    assert_sound(pool)


def test_an_object_freed_in_an_aborted_transaction_is_there_again(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [TEXT])
    held = pool.root["list"]
    with pytest.raises(ZeroDivisionError), pool.transaction():
        del pool.root["list"]
        held.append(1)
        raise ZeroDivisionError
    assert held == [TEXT]
    assert pool.root["list"] is held
    del held
    gc.collect()
    with pytest.raises(ZeroDivisionError), pool.transaction():
        del pool.root["list"]
        pool.root["other"] = pool.new(PersistentDict, dict.fromkeys(range(50), TEXT))
        raise ZeroDivisionError
    assert pool.root["list"] == [TEXT]


def test_the_type_table_is_rolled_back(pool: Any) -> None:
    with pytest.raises(ZeroDivisionError), pool.transaction():
        pool.root["p"] = pool.new(Point, 1)
        raise ZeroDivisionError
    pool.root["other"] = pool.new(Other)  # may get the same code
    assert type(pool.root["other"]) is Other
    pool.root["p"] = pool.new(Point, 2)
    assert type(pool.root["p"]) is Point
    name = pool.filename
    pool.close()
    with pmemobj.open(name) as again:
        assert type(again.root["other"]) is Other
        assert type(again.root["p"]) is Point
        assert again.root["p"].x == 2


def test_cached_values_are_rolled_back(pool: Any) -> None:
    pool.root["text"] = TEXT
    pool.root["list"] = pool.new(PersistentList, [TEXT, 1])
    with pytest.raises(ZeroDivisionError), pool.transaction():
        assert pool.root["text"] == TEXT
        for turn in range(50):
            pool.root["text"] = TEXT.upper() + str(turn)
            pool.root["list"][0] = TEXT.upper() + str(turn)
            assert pool.root["text"] == pool.root["list"][0]
        raise ZeroDivisionError
    assert pool.root["text"] == pool.root["list"][0] == TEXT


def test_an_iterator_over_what_was_rolled_back(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1, 2, 3])
    pool.root["d"] = pool.new(PersistentDict, {1: 2, 3: 4})
    iterators = []
    with pytest.raises(ZeroDivisionError), pool.transaction():
        pool.root["list"].extend(range(100))
        pool.root["d"].update((n, n) for n in range(100))
        iterators = [iter(pool.root["list"]), iter(pool.root["d"]), reversed(pool.root["list"])]
        for iterator in iterators:
            for _ in range(50):
                next(iterator)
        raise ZeroDivisionError
    for iterator in iterators:
        try:
            left = list(iterator)
        except RuntimeError:
            continue
        assert set(left) <= {1, 2, 3}


def test_a_growth_of_the_file_is_rolled_back_in_the_heap(pool: Any) -> None:
    pool.root["a"] = 1
    blocks = block_sizes(pool)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), pool.transaction():
            pool.root["large"] = bytes(20_000_000)
            raise ZeroDivisionError
        assert block_sizes(pool) == blocks
        assert_sound(pool)
    pool.root["large"] = b"x" * 20_000_000
    assert pool.root["large"] == b"x" * 20_000_000


def test_plain_objects_are_not_rolled_back(pool: Any) -> None:
    mine: list[int] = []
    with pytest.raises(ZeroDivisionError), pool.transaction():
        mine.append(1)
        raise ZeroDivisionError
    assert mine == [1]


def test_the_root_is_rolled_back(pool: Any) -> None:
    root = pool.root
    for value in (None, 5, TEXT, pool.new(PersistentList)):
        with pytest.raises(ZeroDivisionError), pool.transaction():
            pool.root = value
            raise ZeroDivisionError
        assert pool.root is root
    assert_sound(pool)


def test_a_nested_graph_is_all_or_nothing_after_a_crash(make: Make, tmp_path: Path) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict, {"accounts": pool.new(PersistentList, [500] * 10)})
    copies = []
    for turn in range(20):
        with pool.transaction():
            accounts = pool.root["accounts"]
            accounts[turn % 10] -= 17 * turn
            copies.append(crash_copy(pool, tmp_path / f"copy{turn}"))
            accounts[(turn + 3) % 10] += 17 * turn
            pool.root[f"note {turn}"] = pool.new(PersistentTuple, [turn, TEXT])
    for turn, copy in enumerate(copies):
        with pmemobj.open(copy) as crashed:
            assert sum(crashed.root["accounts"]) == 5000
            assert len(crashed.root) == 1 + turn
            assert_nothing_leaked(crashed)
