"""Details that programs rely on: each step is done to the built-in type and to ours.

Result, exception, message (unless a step is marked) and what is left must be the same.
"""

# ruff: noqa: B905, C408, FURB171, PLC3002, PLR0124, RUF005, UP031
# The steps are what programs may write, in the way they may write it.

from __future__ import annotations

import collections
import collections.abc
import operator
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pmshelve.pmemobj import (
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentSet,
    PersistentTuple,
)
from tests.support.guard import time_limit
from tests.support.pools import assert_sound, plain

Step = Callable[[Any], Any]

PAIRS: dict[str, tuple[Any, Any]] = {
    "list": (list, PersistentList),
    "dict": (dict, PersistentDict),
    "set": (set, PersistentSet),
    "frozenset": (frozenset, PersistentFrozenSet),
    "tuple": (tuple, PersistentTuple),
}


MUTABLE = (list, dict, set, PersistentList, PersistentDict, PersistentSet)
MESSAGES = sys.version_info[:2] == (3, 11)
"""CPython words some of them differently in each version."""

ARITY = r"\btakes\b|\bexpected (at|exactly)\b|\bmissing\b|keyword|, got \d|expected \d arguments"


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def outcome(step: Step, thing: Any) -> Any:
    """Return what a step gives: ("value", plain result) or (exception class, text)."""
    try:
        with time_limit(20):
            result = step(thing)
    except Exception as error:
        return type(error), str(error)
    if isinstance(result, collections.abc.Iterator):
        result = list(result)
    if isinstance(result, collections.abc.KeysView | collections.abc.ItemsView):
        result = list(result)
    if isinstance(result, collections.abc.ValuesView):
        result = list(result)
    if result is thing and isinstance(thing, MUTABLE):
        return "itself"
    return "value", plain(result)


def message_of(text: str) -> str:
    """Return an exception's text with our names replaced by the built-in ones.

    How a wrong number of arguments is put is CPython's own business.
    """
    for builtin, ours in PAIRS.values():
        text = text.replace(ours.__name__, builtin.__name__)
    return "arguments" if re.search(ARITY, text) else text


def compare(pool: Any, name: str, content: Any, step: Step) -> None:
    """Do a step to both; fail where they differ."""
    builtin, ours = PAIRS[name]
    mine = pool.new(ours, content)
    theirs = builtin(content)
    found, expected = outcome(step, mine), outcome(step, theirs)
    if isinstance(expected[0], type):
        assert found[0] is expected[0], (found, expected)
        if MESSAGES and expected[0] is not KeyError:
            assert message_of(found[1]) == message_of(expected[1])
    else:
        assert found == expected
    left = plain(mine)
    assert left == theirs
    if name == "dict":
        assert list(left) == list(theirs)
    if name in ("list", "tuple"):
        assert [type(item) for item in left] == [type(item) for item in theirs]


def ids(step: Any) -> str | None:
    if callable(step):
        return f"{step.__code__.co_firstlineno}"
    return None


def compare_all(pool: Any, name: str, steps: list[Step], contents: tuple[Any, ...]) -> None:
    """Do all steps, each to new ones; fail with all that differ."""
    wrong = []
    for step in steps:
        for content in contents:
            try:
                compare(pool, name, content, step)
            except AssertionError as error:
                line = step.__code__.co_firstlineno
                wrong.append(f"line {line}, {content!r:.40}: {error}")
    assert not wrong, "\n".join(wrong)


# Lists ------------------------------------------------------------------------------------------

LIST_STEPS: list[Step] = [
    lambda x: x[0], lambda x: x[-1], lambda x: x[9], lambda x: x[-9], lambda x: x["a"],
    lambda x: x[1.0], lambda x: x[None], lambda x: x[Index(1)], lambda x: x[True],
    lambda x: x[1:3], lambda x: x[::-1], lambda x: x[5:1:-2],
    lambda x: x[::0], lambda x: x["a":], lambda x: x[Index(0):Index(2)], lambda x: x[10**30:],
    lambda x: x[()], lambda x: x[1, 2],
    lambda x: x.__setitem__(0, 9), lambda x: x.__setitem__(9, 9), lambda x: x.__setitem__("a", 9),
    lambda x: x.__setitem__(slice(1, 2), [7, 8, 9]), lambda x: x.__setitem__(slice(1, 2), 5),
    lambda x: x.__setitem__(slice(None, None, 2), [7]),
    lambda x: x.__setitem__(slice(None, None, 2), [7, 8, 9]),
    lambda x: x.__setitem__(slice(None, None, -1), x), lambda x: x.__setitem__(slice(1, 1), x),
    lambda x: x.__setitem__(slice(3, 1), "ab"), lambda x: x.__setitem__(slice(None, None, 0), []),
    lambda x: x.__delitem__(0), lambda x: x.__delitem__(-1), lambda x: x.__delitem__(9),
    lambda x: x.__delitem__("a"), lambda x: x.__delitem__(slice(None, None, 2)),
    lambda x: x.__delitem__(slice(None, None, -2)), lambda x: x.__delitem__(slice(1, 3)),
    lambda x: x.append(1), lambda x: x.append(), lambda x: x.append(1, 2),
    lambda x: x.extend("ab"), lambda x: x.extend(5), lambda x: x.extend(x), lambda x: x.extend(),
    lambda x: x.extend(iter(x[:2])), lambda x: x.insert(1, "i"), lambda x: x.insert(-100, "i"),
    lambda x: x.insert(100, "i"), lambda x: x.insert("a", 1), lambda x: x.insert(1),
    lambda x: x.insert(Index(2), 0), lambda x: x.insert(10**30, 1),
    lambda x: x.pop(), lambda x: x.pop(0), lambda x: x.pop(-2), lambda x: x.pop(9),
    lambda x: x.pop("a"), lambda x: x.pop(1, 2), lambda x: x.pop(Index(1)),
    lambda x: x.remove(2), lambda x: x.remove("no"), lambda x: x.remove([]), lambda x: x.remove(),
    lambda x: x.index(2), lambda x: x.index("no"), lambda x: x.index(2, 2), lambda x: x.index(2, -9),
    lambda x: x.index(2, 0, 1), lambda x: x.index(2, "a"), lambda x: x.index(2, None),
    lambda x: x.index(2, -10**30, 10**30), lambda x: x.count(2), lambda x: x.count([]),
    lambda x: x.reverse(), lambda x: x.reverse(1), lambda x: x.clear(), lambda x: x.copy(),
    lambda x: x.sort(), lambda x: x.sort(reverse=True), lambda x: x.sort(key=lambda v: -v),
    lambda x: x.sort(key=str, reverse=1), lambda x: x.sort(None), lambda x: x.sort(cmp=1),
    lambda x: x.sort(key=5), lambda x: x.sort(key=lambda v: [].index(v)),
    lambda x: x.sort(reverse="yes"), lambda x: x.sort(key=None),
    lambda x: x + [1], lambda x: x + (1,), lambda x: [1] + x, lambda x: x + "a", lambda x: x + None,
    lambda x: (1,) + x, lambda x: x + x,
    lambda x: x * 2, lambda x: 2 * x, lambda x: x * 0, lambda x: x * -1, lambda x: x * 1.5,
    lambda x: x * Index(2), lambda x: x * "a", lambda x: x * x, lambda x: x * True,
    lambda x: operator.iadd(x, "ab"), lambda x: operator.iadd(x, 5), lambda x: operator.iadd(x, x),
    lambda x: operator.imul(x, 2), lambda x: operator.imul(x, 0), lambda x: operator.imul(x, "a"),
    lambda x: operator.imul(x, -5),
    lambda x: 2 in x, lambda x: "no" in x, lambda x: [] in x, lambda x: True in x, lambda x: 2.0 in x,
    lambda x: x == [3, 1, 2, 2], lambda x: x == (3, 1, 2, 2), lambda x: x != [3], lambda x: x < [3, 2],
    lambda x: x <= x, lambda x: x > [3], lambda x: x >= [4], lambda x: x < (1,), lambda x: x < 5,
    lambda x: x > [3, 1], lambda x: x < ["a"], lambda x: x == 5, lambda x: x != None,  # noqa: E711
    lambda x: hash(x), lambda x: len(x), lambda x: bool(x), lambda x: list(x), lambda x: reversed(x),
    lambda x: iter(x), lambda x: x.__init__(), lambda x: x.__init__("ab"), lambda x: x.__init__(x[1:]),
    lambda x: x.__init__(1, 2), lambda x: x.__init__(iterable=[]),
    lambda x: x.nothing, lambda x: sorted(x), lambda x: sum(x), lambda x: max(x), lambda x: [*x, *x],
    lambda x: x.__getitem__(slice(1)), lambda x: x.__contains__(3), lambda x: x.__len__(),
    lambda x: x.__eq__(5), lambda x: x.__lt__(5), lambda x: x.__reversed__(),
    lambda x: isinstance(x, collections.abc.MutableSequence),
    lambda x: isinstance(x, collections.abc.Reversible), lambda x: isinstance(iter(x), collections.abc.Iterator),
    lambda x: "%s %s %s %s" % (*x,), lambda x: divmod(*x[:2]), lambda x: dict(a=x)["a"],
    lambda x: dict(zip(x, x)), lambda x: enumerate(x), lambda x: filter(None, x), lambda x: bytes(x),
    lambda x: [a for a, *_ in [x]], lambda x: str.join(",", map(str, x)),
]  # fmt: skip


def test_lists(pool: Any) -> None:
    compare_all(pool, "list", LIST_STEPS, ([3, 1, 2, 2], [], ["b", None, 1.5], list(range(50))))


def test_a_list_changed_while_it_is_sorted(pool: Any) -> None:
    items = pool.new(PersistentList, [3, 1, 2])
    with pytest.raises(ValueError, match="list modified during sort"):
        items.sort(key=lambda item: items.append(5) or item)
    with pytest.raises(ValueError, match="list modified during sort"):
        items.sort(key=lambda item: items.clear() or item)
    assert_sound(pool)


def test_a_list_that_cannot_be_sorted_keeps_its_items(pool: Any) -> None:
    items = pool.new(PersistentList, [3, "a", 1, None])
    with pytest.raises(TypeError, match="not supported between"):
        items.sort()
    assert sorted(map(str, items)) == sorted(map(str, [3, "a", 1, None]))


def test_sorting_is_stable(pool: Any) -> None:
    content = [(n * 7 % 10, n) for n in range(100)]
    items = pool.new(PersistentList, content)
    items.sort(key=lambda pair: pair[0])
    assert items == sorted(content, key=lambda pair: pair[0])
    items.sort(key=lambda pair: pair[0], reverse=True)
    assert items == sorted(sorted(content), key=lambda pair: pair[0], reverse=True)


@pytest.mark.parametrize("factor", [sys.maxsize, sys.maxsize // 2, 1 << 62, 1 << 70, 1 << 45])
def test_a_list_times_a_huge_number_fails_at_once(pool: Any, factor: int) -> None:
    items = pool.new(PersistentList, [1, 2, "x" * 100])
    with time_limit(5):
        for attempt in (
            lambda: items * factor,
            lambda: factor * items,
            lambda: operator.imul(items, factor),
            lambda: pool.new(PersistentTuple, items) * factor,
        ):
            with pytest.raises((MemoryError, OverflowError, OSError)):
                attempt()
    assert items == [1, 2, "x" * 100]
    assert_sound(pool)


def test_a_list_that_grows_while_it_is_iterated(pool: Any) -> None:
    for kind in (list, lambda content: pool.new(PersistentList, content)):
        items = kind([1, 2, 3])
        seen = []
        for item in items:
            seen.append(item)
            if len(items) < 6:
                items.append(item * 10)
        assert seen == [1, 2, 3, 10, 20, 30]
        iterator = iter(items)
        next(iterator)
        del items[1:]
        assert list(iterator) == []
        items.extend([7, 8])
        assert list(iterator) == [], "an iterator that has ended stays so"


def test_a_million_ints_at_once(pool: Any) -> None:
    items = pool.new(PersistentList)
    with time_limit(60):
        items.extend(range(1_000_000))
        assert len(items) == 1_000_000
        assert items[999_999] == 999_999
        assert items[123_456:123_460] == list(range(123_456, 123_460))
        del items[1:999_999]
    assert items == [0, 999_999]


# Tuples -----------------------------------------------------------------------------------------

TUPLE_STEPS: list[Step] = [
    lambda x: x[0], lambda x: x[-1], lambda x: x[9], lambda x: x["a"], lambda x: x[1:], lambda x: x[::-2],
    lambda x: x[::0], lambda x: x.__setitem__, lambda x: operator.setitem(x, 0, 1),
    lambda x: operator.delitem(x, 0), lambda x: x + (1,), lambda x: (1,) + x, lambda x: x + [1],
    lambda x: x + x, lambda x: x * 2, lambda x: 0 * x, lambda x: x * "a", lambda x: x.index(2),
    lambda x: x.index("no"), lambda x: x.index(2, 3), lambda x: x.count(2), lambda x: 2 in x,
    lambda x: [] in x, lambda x: x == (3, 1, 2, 2), lambda x: x == [3, 1, 2, 2], lambda x: x < (4,),
    lambda x: x < [4], lambda x: x >= (1,), lambda x: hash(x) == hash((3, 1, 2, 2)), lambda x: len(x),
    lambda x: bool(x), lambda x: iter(x), lambda x: reversed(x), lambda x: {x: 1}[3, 1, 2, 2],
    lambda x: {(3, 1, 2, 2): 1}[x], lambda x: isinstance(x, collections.abc.Sequence),
    lambda x: "%s%s%s%s" % (*x,), lambda x: x.nothing, lambda x: max(x), lambda x: (*x, 1),
    lambda x: x.append(1), lambda x: isinstance(x, collections.abc.Hashable),
]  # fmt: skip


def test_tuples(pool: Any) -> None:
    compare_all(pool, "tuple", TUPLE_STEPS, ([3, 1, 2, 2], [], ["b", None, 1.5]))


def test_a_tuple_with_something_unhashable(pool: Any) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(pool.new(PersistentTuple, [1, pool.new(PersistentList)]))


# Dicts ------------------------------------------------------------------------------------------

DICT_STEPS: list[Step] = [
    lambda x: x["a"], lambda x: x["no"], lambda x: x[[]], lambda x: x[(1,)], lambda x: x.get("a"),
    lambda x: x.get("no"), lambda x: x.get("no", 5), lambda x: x.get([]), lambda x: x.get(),
    lambda x: x.__setitem__("a", 9), lambda x: x.__setitem__("z", 9), lambda x: x.__setitem__([], 9),
    lambda x: x.__delitem__("a"), lambda x: x.__delitem__("no"), lambda x: x.__delitem__([]),
    lambda x: x.pop("a"), lambda x: x.pop("no"), lambda x: x.pop("no", 5),
    lambda x: x.pop(), lambda x: x.popitem(), lambda x: x.popitem(1),
    lambda x: x.setdefault("a", 7), lambda x: x.setdefault("z", 7), lambda x: x.setdefault("z"),
    lambda x: x.setdefault([], 7), lambda x: x.update({"a": 7, "z": 8}), lambda x: x.update(a=7, z=8),
    lambda x: x.update([("a", 7), ["z", 8], "qr"]), lambda x: x.update([1]), lambda x: x.update(["abc"]),
    lambda x: x.update(5), lambda x: x.update(None), lambda x: x.update({}, {}), lambda x: x.update(),
    lambda x: x.update(x), lambda x: x.update(self=1), lambda x: x.update({"q": 1}, self=2, other=3),
    lambda x: x.clear(), lambda x: x.clear(1), lambda x: x.copy(), lambda x: x.keys(),
    lambda x: x.values(), lambda x: x.items(), lambda x: list(reversed(x)),
    lambda x: list(reversed(x.items())), lambda x: list(reversed(x.values())), lambda x: len(x),
    lambda x: bool(x), lambda x: "a" in x, lambda x: [] in x, lambda x: 1.0 in x, lambda x: True in x,
    lambda x: x == {"a": 1, "b": (2,), 1: None}, lambda x: x == {}, lambda x: x != {}, lambda x: x == 5,
    lambda x: x < {}, lambda x: x == {"a": 1, "b": (2,), 1: None}, lambda x: hash(x),
    lambda x: x | {"z": 1, "a": 0}, lambda x: {"z": 1, "a": 0} | x, lambda x: x | [("z", 1)],
    lambda x: [("z", 1)] | x, lambda x: operator.ior(x, {"z": 1}), lambda x: operator.ior(x, [("z", 1)]),
    lambda x: operator.ior(x, 5), lambda x: x | None, lambda x: x.keys() & {"a", "q"},
    lambda x: x.keys() | ["q"], lambda x: x.keys() - ["a"], lambda x: x.keys() ^ {"a", "q"},
    lambda x: {"a", "q"} & x.keys(), lambda x: x.keys() == {"a", "b", 1}, lambda x: x.keys() <= {"a"},
    lambda x: x.items() == {("a", 1), ("b", (2,)), (1, None)}, lambda x: ("a", 1) in x.items(),
    lambda x: ("a", 2) in x.items(), lambda x: 5 in x.items(), lambda x: 1 in x.values(),
    lambda x: x.keys().isdisjoint(["a"]), lambda x: x.items() & {("a", 1)}, lambda x: len(x.keys()),
    lambda x: len(x.items()), lambda x: len(x.values()),
    lambda x: x.values() == x.values(), lambda x: x.keys().mapping == x,
    lambda x: x.__init__(1, 2), lambda x: {**x} if all(isinstance(k, str) for k in x) else 0,
    lambda x: (lambda **kw: kw)(**x), lambda x: list(x), lambda x: x.nothing, lambda x: dict(x),
    lambda x: isinstance(x, collections.abc.MutableMapping), lambda x: max(map(str, x)),
    lambda x: operator.length_hint(iter(x)), lambda x: [*x.items()], lambda x: x.__contains__("a"),
    lambda x: x.__getitem__("a"), lambda x: x.__eq__(5), lambda x: x.__or__(5), lambda x: x.__lt__({}),
]  # fmt: skip


def test_dicts(pool: Any) -> None:
    compare_all(
        pool, "dict", DICT_STEPS, ({"a": 1, "b": (2,), 1: None}, {}, {str(n): n for n in range(40)})
    )


def test_init_again_replaces_the_content_of_a_dict(pool: Any) -> None:
    """As it does for the others; the built-in dict alone would be updated."""
    thing = pool.new(PersistentDict, {1: 2})
    thing.__init__({3: 4}, a=5)
    assert thing == {3: 4, "a": 5}
    thing.__init__()
    assert thing == {}


def test_order_is_that_of_insertion(pool: Any) -> None:
    mine, theirs = pool.new(PersistentDict), {}
    for number in range(300):
        for each in (mine, theirs):
            each[number * 7 % 101] = number
            each.pop(number * 5 % 97, None)
            if number % 50 == 49:
                each.popitem()
    assert list(mine.items()) == list(theirs.items())
    assert list(reversed(mine)) == list(reversed(theirs))


CHANGES: list[Step] = [
    lambda d: d.__setitem__("new", 1), lambda d: d.pop(3), lambda d: d.clear(), lambda d: d.popitem(),
    lambda d: d.update(x=1), lambda d: d.setdefault("new"), lambda d: d.__delitem__(0),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=ids)
@pytest.mark.parametrize("view", ["keys", "values", "items", "__iter__", "__reversed__"])
def test_a_dict_changed_while_it_is_iterated(pool: Any, change: Step, view: str) -> None:
    for kind in (dict, lambda content: pool.new(PersistentDict, content)):
        thing = kind({number: number for number in range(10)})
        iterator = iter(getattr(thing, view)())
        next(iterator)
        change(thing)
        with pytest.raises(RuntimeError, match="dictionary changed size during iteration"):
            next(iterator)
        list(getattr(thing, view)())


def test_values_may_be_replaced_while_a_dict_is_iterated(pool: Any) -> None:
    thing = pool.new(PersistentDict, {number: number for number in range(100)})
    for key in thing:
        thing[key] = str(key) * 20
    assert thing == {number: str(number) * 20 for number in range(100)}


def test_fromkeys_through_the_pool(pool: Any) -> None:
    thing = pool.new(PersistentDict, dict.fromkeys("abc", 0))
    assert thing == {"a": 0, "b": 0, "c": 0}


def test_views_follow_the_dict(pool: Any) -> None:
    thing = pool.new(PersistentDict, {1: 2})
    keys, values, items = thing.keys(), thing.values(), thing.items()
    thing[3] = 4
    assert (list(keys), list(values), list(items)) == ([1, 3], [2, 4], [(1, 2), (3, 4)])
    assert repr(keys).endswith("([1, 3])")
    assert repr(values).endswith("([2, 4])")
    assert repr(items).endswith("([(1, 2), (3, 4)])")


# Sets -------------------------------------------------------------------------------------------

ANY_SET_STEPS: list[Step] = [
    lambda x: 1 in x, lambda x: "no" in x, lambda x: [] in x, lambda x: {1} in x, lambda x: {5, 6} in x,
    lambda x: len(x), lambda x: bool(x), lambda x: x.copy(),
    lambda x: x == {1, 2, "a", frozenset({5, 6})}, lambda x: x == frozenset([1]), lambda x: x == [1],
    lambda x: x != {1}, lambda x: x <= {1, 2}, lambda x: x < {1}, lambda x: x >= {1}, lambda x: x > {1},
    lambda x: {1} <= x, lambda x: {1} < x, lambda x: x <= [1], lambda x: x < 5,
    lambda x: x | {9}, lambda x: {9} | x, lambda x: frozenset({9}) | x, lambda x: x | [9],
    lambda x: [9] | x, lambda x: x & {1, 9}, lambda x: {1, 9} & x, lambda x: x & [1], lambda x: x - {1},
    lambda x: {1, 9} - x, lambda x: frozenset({1, 9}) - x, lambda x: x - [1], lambda x: [1] - x,
    lambda x: x ^ {1, 9}, lambda x: {1, 9} ^ x, lambda x: x ^ "a", lambda x: x | {9: 1}.keys(),
    lambda x: {9: 1}.keys() | x, lambda x: x | None,
    lambda x: x.union([9], "ab"), lambda x: x.union(), lambda x: x.union(5), lambda x: x.union([[]]),
    lambda x: x.intersection([1, 9]), lambda x: x.intersection(), lambda x: x.intersection(5),
    lambda x: x.intersection([1], [2]), lambda x: x.difference([1]), lambda x: x.difference(),
    lambda x: x.difference([1], [2]), lambda x: x.difference(5), lambda x: x.symmetric_difference([1, 9]),
    lambda x: x.symmetric_difference(5), lambda x: x.symmetric_difference(), lambda x: x.issubset([1]),
    lambda x: x.issubset(5), lambda x: x.issuperset([1]), lambda x: x.issuperset("ab"),
    lambda x: x.issuperset(5), lambda x: x.isdisjoint([9]), lambda x: x.isdisjoint([1]),
    lambda x: x.isdisjoint(5), lambda x: x.nothing, lambda x: x[0], lambda x: x + x,
    lambda x: isinstance(x, collections.abc.Set), lambda x: x.__or__(5), lambda x: x.__lt__(5),
    lambda x: x.__eq__(5), lambda x: type(x | {1}) is not type({1} | x) or 1,
    lambda x: operator.length_hint(iter(x)), lambda x: len({*x}),
]  # fmt: skip

SET_STEPS: list[Step] = [
    *ANY_SET_STEPS,
    lambda x: hash(x), lambda x: x.add(9), lambda x: x.add(1), lambda x: x.add([]), lambda x: x.add(),
    lambda x: x.add({1}), lambda x: x.remove(1), lambda x: x.remove("no"), lambda x: x.remove([]),
    lambda x: x.remove((1,)), lambda x: x.remove({5, 6}), lambda x: x.remove({7}), lambda x: x.remove(),
    lambda x: x.discard(1), lambda x: x.discard("no"), lambda x: x.discard([]), lambda x: x.discard({5, 6}),
    lambda x: x.discard({7}), lambda x: x.clear(), lambda x: x.clear(1), lambda x: x.update([9], "ab"),
    lambda x: x.update(), lambda x: x.update(5), lambda x: x.update([[]]), lambda x: x.update(x),
    lambda x: x.intersection_update([1, 9]), lambda x: x.intersection_update(),
    lambda x: x.intersection_update(5), lambda x: x.difference_update([1]), lambda x: x.difference_update(x),
    lambda x: x.difference_update(), lambda x: x.difference_update(5),
    lambda x: x.symmetric_difference_update([1, 9]), lambda x: x.symmetric_difference_update(x),
    lambda x: x.symmetric_difference_update(5), lambda x: operator.ior(x, {9}),
    lambda x: operator.ior(x, [9]), lambda x: operator.iand(x, {1}), lambda x: operator.iand(x, [1]),
    lambda x: operator.isub(x, {1}), lambda x: operator.isub(x, x), lambda x: operator.ixor(x, {1, 9}),
    lambda x: operator.ixor(x, x), lambda x: operator.ixor(x, [1]), lambda x: x.__init__(),
    lambda x: x.__init__("ab"), lambda x: x.__init__(1, 2),
    lambda x: x.__init__(a=1), lambda x: x.pop(1), lambda x: [x.pop() for _ in list(x)] and len(x),
    lambda x: isinstance(x, collections.abc.MutableSet),
]  # fmt: skip

FROZENSET_STEPS: list[Step] = [
    *ANY_SET_STEPS,
    lambda x: hash(x) == hash(frozenset(x)), lambda x: {x: 1}[frozenset(x)], lambda x: {frozenset(x): 1}[x],
    lambda x: x.add(1), lambda x: x.pop(), lambda x: x in {frozenset(x)},
]  # fmt: skip


def test_sets(pool: Any) -> None:
    compare_all(pool, "set", SET_STEPS, ([1, 2, "a", frozenset({5, 6})], [], list(range(40))))


def test_frozensets(pool: Any) -> None:
    compare_all(pool, "frozenset", FROZENSET_STEPS, ([1, 2, "a", frozenset({5, 6})], []))


@pytest.mark.parametrize(
    "change",
    [lambda s: s.add("new"), lambda s: s.clear(), lambda s: s.pop(), lambda s: s.update([77, 78])],
    ids=ids,
)
def test_a_set_changed_while_it_is_iterated(pool: Any, change: Step) -> None:
    for kind in (set, lambda content: pool.new(PersistentSet, content)):
        thing = kind(range(10))
        iterator = iter(thing)
        next(iterator)
        change(thing)
        with pytest.raises(RuntimeError, match=r"[sS]et changed size during iteration"):
            next(iterator)


def test_a_set_is_looked_up_as_a_frozenset(pool: Any) -> None:
    inner = pool.new(PersistentFrozenSet, [1, 2])
    thing = pool.new(PersistentSet, [inner])
    for key in ({1, 2}, frozenset([1, 2]), inner, pool.new(PersistentSet, [1, 2])):
        assert key in thing
    thing.remove(pool.new(PersistentSet, [1, 2]))
    assert thing == set()
    with pytest.raises(KeyError):
        thing.remove({1, 2})


def test_ours_among_themselves(pool: Any) -> None:
    new = pool.new
    assert new(PersistentList, [1, 2]) == new(PersistentList, [1, 2]) != new(PersistentList, [1])
    assert new(PersistentList, [1, 2]) < new(PersistentList, [1, 3])
    assert new(PersistentList, [1]) + new(PersistentList, [2]) == [1, 2]
    assert new(PersistentDict, {1: 2}) == new(PersistentDict, {1: 2})
    assert new(PersistentDict, {1: 2}) | new(PersistentDict, {3: 4}) == {1: 2, 3: 4}
    assert new(PersistentSet, [1]) | new(PersistentFrozenSet, [2]) == {1, 2}
    assert new(PersistentSet, [1]) == new(PersistentFrozenSet, [1])
    assert new(PersistentSet, [1]) < new(PersistentFrozenSet, [1, 2])
    assert new(PersistentTuple, [1]) + new(PersistentTuple, [2]) == (1, 2)
    assert new(PersistentTuple, [1]) != new(PersistentList, [1])
    assert not new(PersistentList, [1]) == new(PersistentTuple, [1])  # noqa: SIM201
    nested = new(PersistentDict, {(1, 2): new(PersistentList, [new(PersistentSet, [1])])})
    assert nested == {(1, 2): [{1}]}
    assert {(1, 2): [{1}]} == nested
    assert nested != {(1, 2): [{2}]}


@pytest.mark.parametrize("name", PAIRS)
def test_the_whole_interface_is_there(name: str) -> None:
    builtin, ours = PAIRS[name]
    skipped = {"__class_getitem__", "__getnewargs__", "__sizeof__", "fromkeys"}
    missing = [
        attribute
        for attribute in dir(builtin)
        if not hasattr(ours, attribute) and attribute not in skipped
    ]
    assert missing == []


@pytest.mark.parametrize("name", PAIRS)
def test_methods_take_their_arguments_by_position_only_as_the_built_in(
    pool: Any, name: str
) -> None:
    builtin, ours = PAIRS[name]
    for attribute in sorted(set(dir(builtin)) & set(dir(ours))):
        if attribute.startswith("_") or attribute in ("sort", "update"):
            continue
        for arguments in ({"nonsense": 1}, {"key": 1}, {"iterable": []}, {"value": 1}):
            mine = pool.new(ours, {1: 2} if name == "dict" else [1])
            theirs = builtin({1: 2} if name == "dict" else [1])
            for thing in (mine, theirs):
                with pytest.raises(TypeError):
                    getattr(thing, attribute)(**arguments)
