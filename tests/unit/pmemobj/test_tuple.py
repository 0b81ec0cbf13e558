"""PersistentTuple: equal to the built-in one in every way, made of it, as deep as one likes."""

from __future__ import annotations

import copy
import gc
import operator
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pmshelve.errors import ClosedError, ObjectError, StateError, UnsupportedTypeError
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentTuple
from pmshelve.pmemobj.layout import TYPE_CODE_SHIFT
from tests.support.pools import assert_nothing_leaked, assert_sound, objects

Make = Callable[..., Any]

LONG = "a string that takes a block of its own"
TUPLES: list[tuple[Any, ...]] = [
    (),
    (1,),
    (1, 2.5, None, True, b"", LONG),
    tuple(range(100)),
    tuple(n / 4 for n in range(100)),
    (1, (2, (3, ()), ()), frozenset({(1, 2)})),
    (LONG, LONG, (LONG,)),
]


class Point(PersistentTuple):
    """A subclass with a constructor of its own."""

    def __init__(self, x: int, y: int) -> None:
        super().__init__((x, y))

    @property
    def x(self) -> int:
        value: int = self[0]
        return value


class Early(PersistentTuple):
    """One that stores itself too early."""

    def __init__(self, home: Any) -> None:
        home.append(self)
        super().__init__((1, 2))


@pytest.mark.parametrize("value", TUPLES, ids=range(len(TUPLES)))
def test_it_is_as_the_tuple_it_was_made_of(pool: Any, make: Make, value: tuple[Any, ...]) -> None:
    pool.root["made"] = pool.new(PersistentTuple, value)
    pool.root["put"] = value
    pool.root[value] = "as a key"
    pool.close()
    root = make().root
    assert root[value] == "as a key"
    for name in ("made", "put"):
        found = root[name]
        assert type(found) is PersistentTuple
        assert found == value
        assert value == found
        assert not found != value  # noqa: SIM202
        assert hash(found) == hash(value)
        assert root[found] == "as a key"
        assert {value: 1}[found] == 1
        assert len(found) == len(value)
        assert list(found) == list(value)
        assert list(reversed(found)) == list(value)[::-1]
        assert found[::-1] == value[::-1]
        assert type(found[:]) is tuple
        assert found[1:] == value[1:]
        for other in (value[:-1], (*value, 1), (0,), (2,)):
            for operation in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq):
                assert _result(operation, found, other) == _result(operation, value, other)
                assert _result(operation, other, found) == _result(operation, other, value)
        for result in (operator.add(found, (1,)), operator.add((1,), found), found * 2, 2 * found):
            assert type(result) is tuple
        assert found + found == value * 2


def _result(operation: Any, first: Any, second: Any) -> Any:
    try:
        return operation(first, second)
    except TypeError:
        return TypeError


def test_methods_and_errors(pool: Any) -> None:
    items = pool.new(PersistentTuple, [3, 1, 3])
    assert items.index(3, 1) == 2
    assert items.count(3) == 2
    assert 1 in items
    assert LONG not in items
    assert repr(items) == "PersistentTuple((3, 1, 3))"
    assert repr(pool.new(PersistentTuple, [1])) == "PersistentTuple((1,))"
    assert isinstance(items, Sequence)
    assert PersistentTuple[int].__origin__ is PersistentTuple
    with pytest.raises(ValueError, match=r"tuple.index\(x\): x not in tuple"):
        items.index(5)
    with pytest.raises(TypeError, match="tuple indices must be integers or slices, not str"):
        items["a"]
    with pytest.raises(IndexError, match="tuple index out of range"):
        items[-4]
    with pytest.raises(IndexError, match="cannot fit"):
        items[1 << 70]
    with pytest.raises(TypeError, match=r'can only concatenate tuple \(not "int"\) to tuple'):
        items + 5
    with pytest.raises(TypeError, match="not supported"):
        assert items < [1]
    with pytest.raises(TypeError, match="does not support item assignment"):
        items[0] = 1
    with pytest.raises(TypeError, match="unhashable"):
        hash(pool.new(PersistentTuple, [pool.new(PersistentList)]))
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot pickle"):
            attempt(items)
    match items:
        case [first, *_]:
            assert first == 3
        case _:
            pytest.fail("no sequence to a match statement")


def test_initialising_again_changes_nothing(pool: Any) -> None:
    for content in ((), (1, 2)):
        items = pool.new(PersistentTuple, content)
        items.__init__([5])
        assert items == content


def test_it_cannot_be_made_outside_of_a_pool() -> None:
    with pytest.raises(ObjectError, match=r"pool\.new\(PersistentTuple"):
        PersistentTuple([1])


def test_a_subclass_has_its_own_constructor(pool: Any, make: Make) -> None:
    point = pool.new(Point, 3, 4)
    pool.root["point"] = point
    assert pool.root["point"] is point
    assert point == (3, 4)
    pool.close()
    point = make().root["point"]
    assert type(point) is Point
    assert point.x == 3


def test_a_tuple_that_is_stored_before_it_has_items_is_refused(pool: Any) -> None:
    home = pool.root["home"] = pool.new(PersistentList)
    with pytest.raises(StateError, match="before it has its items"):
        pool.new(Early, home)
    assert home == []
    assert_nothing_leaked(pool)


def test_what_cannot_be_stored_leaves_nothing(pool: Any) -> None:
    before = objects(pool)
    with pytest.raises(UnsupportedTypeError, match=r"builtins\.list"):
        pool.root["a"] = (1, (LONG, [1]))
    with pytest.raises(UnsupportedTypeError, match=r"builtins\.set"):
        pool.new(PersistentTuple, [LONG, set()])
    gc.collect()
    assert objects(pool) == before


def test_a_tuple_made_in_an_aborted_transaction(pool: Any) -> None:
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        made = pool.new(PersistentTuple, range(10))
        pool.transaction().abort()
    with pytest.raises(RuntimeError, match="aborted"):
        len(made)
    assert_nothing_leaked(pool)


def test_nothing_holds_a_tuple_any_more(pool: Any) -> None:
    before = objects(pool)
    pool.root["a"] = (LONG, (LONG, (1, 2)))
    pool.root["b"] = pool.new(PersistentTuple, [LONG, pool.new(PersistentDict)])
    del pool.root["a"], pool.root["b"]
    pool.mm.identity.recent.clear()
    gc.collect()
    pool.root["c"] = 1
    assert objects(pool) == before


def test_ten_thousand_levels(pool: Any, make: Make) -> None:
    value: tuple[Any, ...] = ()
    other: tuple[Any, ...] = (0,)
    for n in range(10_000):
        value, other = (value, n), (other, n)
    pool.root["a"], pool.root["b"], pool.root["c"] = value, value, other
    assert pool.root["a"] == pool.root["b"]
    assert hash(pool.root["a"]) == hash(pool.root["b"])
    assert pool.root["a"] != pool.root["c"]
    assert pool.root["a"] < pool.root["c"]
    assert_sound(pool)
    pool.close()
    pool = make()
    found = pool.root["a"]
    for n in reversed(range(10_000)):
        found, number = found
        assert number == n
    pool.root.clear()
    del found
    assert_nothing_leaked(pool)


def test_what_occurs_often_is_stored_once(pool: Any) -> None:
    value: tuple[Any, ...] = (1,)
    for _ in range(60):
        value = (value, value)
    pool.root["a"] = value
    assert len(objects(pool)) < 100
    assert pool.root["a"][0] is pool.root["a"][1]
    assert_sound(pool)


def test_the_words_are_those_of_the_format(pool: Any) -> None:
    items = pool.root["a"] = pool.new(PersistentTuple, [7, None])
    words = pool.mm.words[items._p_index : items._p_index + 6].tolist()
    assert words == [18 << TYPE_CODE_SHIFT | 1, 2, 3, 7, 1, 0]
    assert pool.mm.heap.size_of(items._p_offset) == 48
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        pool.mm.snapshot_range(items._p_oid, 32)
        pool.mm.words[items._p_index + 2] = 99
        assert [each[2] for each in PersistentTuple._p_problems(pool.mm, items._p_offset)] == ["Q3"]
        pool.mm.words[items._p_index + 1] = 3
        assert [each[2] for each in PersistentTuple._p_problems(pool.mm, items._p_offset)] == ["Q4"]
        pool.transaction().abort()
    pool.close()
    with pytest.raises(ClosedError):
        hash(items)
