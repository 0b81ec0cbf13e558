"""PersistentSet and PersistentFrozenSet: as set and frozenset, element by element."""

from __future__ import annotations

import copy
import datetime
import pickle
from collections.abc import Callable, MutableSet
from collections.abc import Set as AbstractSet
from fractions import Fraction
from typing import Any

import pytest

from pmshelve.pmemobj import PersistentFrozenSet, PersistentSet
from tests.support.pools import assert_nothing_leaked, assert_sound, used

Make = Callable[..., Any]
KINDS = [(PersistentSet, set), (PersistentFrozenSet, frozenset)]


class Tags(PersistentFrozenSet):
    """A subclass with a constructor of its own."""

    def __init__(self, *names: str) -> None:
        super().__init__(names)


def new(pool: Any, cls: Any, *args: Any, **kw: Any) -> Any:
    pool.root["s"] = made = pool.new(cls, *args, **kw)
    return made


def outcome(call: Callable[[Any], Any], thing: Any) -> Any:
    try:
        return call(thing)
    except Exception as error:
        return type(error)


READS: list[Callable[[Any], Any]] = [
    lambda s: s | {9},
    lambda s: s & frozenset([1]),
    lambda s: s - {1},
    lambda s: s ^ {1, 9},
    lambda s: {9} | s,
    lambda s: frozenset([9, 1]) & s,
    lambda s: {9, 1} - s,
    lambda s: frozenset([9, 1]) ^ s,
    lambda s: s | [9],
    lambda s: s & "ab",
    lambda s: s - 5,
    lambda s: [1] ^ s,
    lambda s: s < [1],
    lambda s: s >= 5,
    lambda s: s == [1],
    lambda s: s | {1: 2}.keys(),
    lambda s: {1: 2}.keys() & s,
    lambda s: s == {1: 0, 2: 0, "x": 0, 2.5: 0}.keys(),
    lambda s: s.union([9], (8,)),
    lambda s: s.intersection([1, 2], [2]),
    lambda s: s.difference([1], {2}),
    lambda s: s.symmetric_difference([1, 9]),
    lambda s: s.union([[]]),
    lambda s: s.difference([[]]),
    lambda s: s.union(5),
    lambda s: [s.isdisjoint([9]), s.isdisjoint([1]), s.isdisjoint(s), s.isdisjoint(())],
    lambda s: s.isdisjoint([[]]),
    lambda s: s.isdisjoint([{1}]),
    lambda s: [s.issubset(range(9)), s.issubset([1]), s.issuperset([1]), s.issuperset([9])],
    lambda s: [s <= {1}, s < s.copy(), s <= s.copy(), s > {1}, s >= {9}, s != {1}, s == s.copy()],
    lambda s: [[] in s],
    lambda s: [{1} in s, {2} in s, frozenset() in s],
    lambda s: len(s),
]


@pytest.mark.parametrize(("cls", "builtin"), KINDS)
@pytest.mark.parametrize("call", READS, ids=range(len(READS)))
def test_a_read_ends_as_on_the_built_in(
    pool: Any, call: Callable[[Any], Any], cls: Any, builtin: Any
) -> None:
    content = [1, 2, "x", 2.5]
    found = outcome(call, new(pool, cls, content))
    expected = outcome(call, builtin(content))
    assert found == expected
    assert type(found) is type(expected)


CHANGES: list[Callable[[Any], Any]] = [
    lambda s: s.add(3),
    lambda s: s.add([]),
    lambda s: s.add({1}),
    lambda s: s.remove(1),
    lambda s: s.remove([]),
    lambda s: s.remove((1,)),
    lambda s: s.remove({5}),
    lambda s: s.remove({7}),
    lambda s: s.discard({7}),
    lambda s: s.discard({8}),
    lambda s: s.discard([]),
    lambda s: s.update([5, 6], "ab"),
    lambda s: s.update(5),
    lambda s: s.difference_update([1, 9], s),
    lambda s: s.intersection_update([1, 2, 9], {1}),
    lambda s: s.symmetric_difference_update([1, 9, 9]),
    lambda s: s.symmetric_difference_update(s),
    lambda s: s.__ior__({9}) and None,
    lambda s: s.__iand__(frozenset([1])) and None,
    lambda s: s.__isub__(s) and None,
    lambda s: s.__ixor__({1, 9}) and None,
    lambda s: s.__ior__([9]),
    lambda s: s.__init__("abc"),
    lambda s: s.__init__(),
    lambda s: s.__init__(key=1),
    lambda s: s.__init__([], []),
    lambda s: s.clear(),
    lambda s: [s.clear(), s.pop()],
    lambda s: s.update(*[[n] for n in range(50)]),
]


@pytest.mark.parametrize("call", CHANGES, ids=range(len(CHANGES)))
def test_a_change_ends_as_on_a_set(pool: Any, call: Callable[[Any], Any]) -> None:
    content = [1, 2, "x", 2.5, frozenset({7})]
    thing = new(pool, PersistentSet, content)
    model = set(content)
    expected = outcome(call, model)
    assert outcome(call, thing) == expected
    assert thing == model
    assert_sound(pool)


def test_messages(pool: Any) -> None:
    thing = new(pool, PersistentSet)
    with pytest.raises(KeyError, match="pop from an empty set"):
        thing.pop()
    with pytest.raises(KeyError) as caught:
        thing.remove({1})
    assert caught.value.args == ({1},)
    thing.update(range(5))
    with pytest.raises(RuntimeError, match="Set changed size during iteration"):
        for each in thing:
            thing.remove(each)
    with pytest.raises(TypeError, match="takes no keyword arguments"):
        pool.new(PersistentFrozenSet, a=1)
    with pytest.raises(TypeError, match=r"pool\.new"):
        PersistentSet([1])


def test_elements_replaced_one_for_one_end_an_iteration(pool: Any) -> None:
    thing = new(pool, PersistentSet, [0])
    for each in thing:
        thing.remove(each)
        thing.add(each + 1)
    assert thing == {1}


def test_kinds_and_copies(pool: Any) -> None:
    thing = new(pool, PersistentSet, "ab")
    frozen = pool.new(PersistentFrozenSet, "ab")
    assert isinstance(thing, MutableSet)
    assert isinstance(frozen, AbstractSet)
    assert not isinstance(frozen, MutableSet)
    for other in (thing.copy(), copy.copy(thing)):
        assert type(other) is PersistentSet
        assert other is not thing
        assert other == thing == frozen
    assert frozen.copy() is frozen
    assert type(pool.new(Tags, "a").copy()) is PersistentFrozenSet
    with pytest.raises(TypeError, match="unhashable"):
        hash(thing)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(frozen)


def test_repr(pool: Any) -> None:
    assert repr(pool.new(PersistentSet)) == "PersistentSet()"
    assert repr(pool.new(PersistentSet, [1, 2])) == "PersistentSet({1, 2})"
    assert repr(pool.new(PersistentFrozenSet, ["a"])) == "PersistentFrozenSet({'a'})"
    assert repr(pool.new(Tags, "a")) == "Tags({'a'})"


def test_a_frozenset_is_given_its_content_once(pool: Any, make: Make) -> None:
    pool.root["s"] = thing = pool.new(Tags, "a", "b")
    thing.__init__("c")
    assert thing == {"a", "b"}
    pool.close()
    thing = make().root["s"]
    assert type(thing) is Tags
    thing.__init__("c")
    assert thing == {"a", "b"}


FROZEN = [
    frozenset(),
    frozenset({1, "a", None, 2.5, 1 << 70}),
    frozenset({frozenset(), frozenset({1, frozenset({2})}), (1, frozenset({3}))}),
    frozenset({datetime.date(2020, 1, 1), Fraction(1, 2), frozenset({datetime.date(2020, 1, 1)})}),
    frozenset(range(1000)),
]


@pytest.mark.parametrize("value", FROZEN, ids=range(len(FROZEN)))
def test_a_frozenset_is_stored_and_equals_itself(
    pool: Any, make: Make, value: frozenset[Any]
) -> None:
    pool.root["s"] = value
    pool.root[value] = "as a key"
    pool.close()
    root = make().root
    back = root["s"]
    assert type(back) is PersistentFrozenSet
    assert back == value
    assert value == back
    assert hash(back) == hash(value)
    assert {value: 1}[back] == 1
    assert root[value] == root[back] == "as a key"
    assert root["s"] is back
    assert back in pool_set(root, [value])


def pool_set(root: Any, content: list[Any]) -> Any:
    return root._p_mm.new(PersistentSet, content)


def test_a_frozenset_held_twice_is_stored_once(pool: Any) -> None:
    inner = frozenset(range(100))
    before = used(pool)
    pool.root["s"] = frozenset({(inner, 1), inner})
    with_both = used(pool) - before
    pool.root["s"] = frozenset({inner})
    assert with_both < 2.6 * (used(pool) - before)


def test_a_frozenset_made_and_aborted_is_gone(pool: Any) -> None:
    kept: list[Any] = []
    with pytest.raises(ZeroDivisionError), pool.transaction():
        pool.root["s"] = frozenset({frozenset({1}), frozenset({frozenset({2})})})
        kept.extend(pool.root["s"])
        1 / 0  # noqa: B018
    assert "s" not in pool.root
    for each in kept:
        with pytest.raises(RuntimeError, match="aborted"):
            len(each)
    assert_nothing_leaked(pool)


def test_ten_thousand_levels(pool: Any, make: Make) -> None:
    def nest() -> frozenset[Any]:
        value: frozenset[Any] = frozenset({0})
        for _ in range(10_000):
            value = frozenset({value})
        return value

    value = nest()
    thing = pool.root["s"] = pool.new(PersistentSet, [value])
    assert value in thing
    pool.close()
    pool = make()
    thing = pool.root["s"]
    (stored,) = thing
    assert stored == value
    assert hash(stored) == hash(value)
    assert stored == pool.mm.resurrect(pool.mm.persist(nest()))
    assert stored != pool.mm.resurrect(pool.mm.persist(frozenset({value})))
    pool.gc()
    thing.clear()
    del stored
    assert_nothing_leaked(pool)


def test_equality_of_sets_of_sets(pool: Any) -> None:
    one = frozenset({frozenset({1, 2}), frozenset({3}), "a"})
    other = frozenset({frozenset({1, 2}), frozenset({4}), "a"})
    first, second = pool.new(PersistentFrozenSet, one), pool.new(PersistentFrozenSet, other)
    assert first == one
    assert first != other
    assert first != second
    assert first == pool.new(PersistentSet, one)
    assert second == {frozenset({2, 1}), "a", frozenset({4})}


def test_an_update_that_fails_leaves_nothing(pool: Any) -> None:
    thing = new(pool, PersistentSet, ["a"])
    before = used(pool)
    for elements in ([*map(str, range(10**6, 10**6 + 50)), object()], [1, object()]):
        with pytest.raises(TypeError):
            thing.update(elements)
        with pytest.raises(TypeError):
            thing.symmetric_difference_update(elements)
        assert thing == {"a"}
        assert used(pool) == before


def test_an_abort_brings_everything_back(pool: Any) -> None:
    thing = new(pool, PersistentSet, range(100))
    for change in (
        thing.clear,
        lambda: [thing.pop() for _ in range(95)],
        lambda: thing.update("abc"),
    ):
        with pytest.raises(ZeroDivisionError), pool.transaction():
            change()
            1 / 0  # noqa: B018
        assert list(thing) == list(range(100))
        assert_sound(pool)


def test_pop_empties_a_large_set(pool: Any) -> None:
    thing = new(pool, PersistentSet)
    before = used(pool)
    thing.update(range(3000))
    assert sorted(thing.pop() for _ in range(3000)) == list(range(3000))
    assert used(pool) <= before + 5 * 24 + 8
