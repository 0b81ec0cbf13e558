"""PersistentList: what it has beyond being a list, and what its words look like.

That it behaves as a list does is the business of test_pool_list_machine, and of CPython's own tests.
"""

from __future__ import annotations

import copy
import gc
import math
import operator
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator, MutableSequence
from typing import Any

import pytest

from pmshelve.errors import ClosedError, ObjectError, ReadOnlyError, UnsupportedTypeError
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentList,
    PersistentObject,
    PersistentTuple,
)
from pmshelve.pmemobj.layout import TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent.compare import equal
from pmshelve.pmemobj.persistent.itemsblock import ITEMS_TYPE_NUM
from tests.support.guard import time_limit
from tests.support.pools import (
    assert_nothing_leaked,
    assert_sound,
    block_sizes,
    objects,
    plain,
)

Make = Callable[..., Any]

VALUES = [
    None,
    True,
    1,
    1.0,
    -0.0,
    2**63 - 1,
    -(2**63),
    2**63,
    "",
    "a" * 14,
    "a" * 15,
    "é\0",
    b"",
    b"x" * 99,
]
VALUES += [1 + 2j, "\ud800", (1, ("two",)), math.inf, 10**40]


class Words(PersistentList):
    """A subclass that can be found again."""

    def longest(self) -> str:
        return max(self, key=len)


@pytest.fixture
def items(pool: Any) -> Any:
    pool.root["items"] = pool.new(PersistentList)
    return pool.root["items"]


# As a list --------------------------------------------------------------------------------------


def test_values_come_back_the_same(pool: Any, make: Make, items: Any) -> None:
    items.extend(VALUES)
    pool.close()
    found = make().root["items"]
    assert found == VALUES
    assert [type(each) for each in found[:-3]] == [type(each) for each in VALUES[:-3]]
    assert math.copysign(1, found[4]) == -1


@pytest.mark.parametrize("kind", [int, float, bool, str, lambda n: n % 3 or n / 2])
def test_many_values_of_a_kind(pool: Any, items: Any, kind: Any) -> None:
    values = [kind(n) for n in range(1000)]
    items.extend(values)
    assert items == values
    assert list(items) == values
    assert [type(each) for each in items] == [type(each) for each in values]
    assert items[::-7] == values[::-7]
    assert_sound(pool)


def test_ints_beyond_a_word_among_others(items: Any) -> None:
    values = [*range(20), 1 << 64, -(1 << 63), (1 << 63) - 1]
    items.extend(values)
    assert items == values


def test_every_method_of_list_is_there() -> None:
    ours = {name for name in dir(PersistentList) if not name.startswith("_p_")}
    assert set(dir(list)) - ours <= {"__sizeof__"}


def test_results_of_slices_and_operators_are_plain_lists(pool: Any, items: Any) -> None:
    items.extend([1, 2, 3])
    other = pool.new(PersistentList, [4])
    before = block_sizes(pool)
    for result in (
        items[1:],
        items[:],
        operator.add(items, [4]),
        operator.add([4], items),
        items + other,
        items * 2,
        2 * items,
    ):
        assert type(result) is list
    assert block_sizes(pool) == before


def test_a_copy_is_persistent(pool: Any, items: Any) -> None:
    items.extend([1, "a long string, not an immediate", pool.new(PersistentList)])
    for copied in (items.copy(), copy.copy(items)):
        assert type(copied) is PersistentList
        assert copied is not items
        assert copied == items
        assert copied[2] is items[2]
        copied.append(4)
        assert len(items) == 3
    assert_sound(pool)


def test_a_list_given_itself(pool: Any, items: Any) -> None:
    items.extend(["a string of some length", 2, 3])
    items.extend(items)
    items += items
    expected = ["a string of some length", 2, 3] * 4
    assert items == expected
    items[2:4] = items
    expected[2:4] = expected
    assert items == expected
    items[::-1] = items
    expected.reverse()
    assert items == expected
    items.__init__(items)
    assert items == expected
    items *= 3
    assert items == expected * 3
    assert_sound(pool)


def test_items_of_a_list_of_another_pool(pool: Any, items: Any, tmp_path: Any) -> None:
    from pmshelve import pmemobj

    with pmemobj.create(tmp_path / "other.pool") as other:
        theirs = other.new(PersistentList, [1, "a string of some length"])
        items.extend(theirs)
        assert items == theirs
        with pytest.raises(ValueError, match="in another pool"):
            items.append(theirs)
    assert items == [1, "a string of some length"]


def test_a_list_that_holds_itself(pool: Any, items: Any) -> None:
    items.extend([1, items])
    assert repr(items) == "PersistentList([1, PersistentList([...])])"
    assert items == items  # noqa: PLR0124
    assert items[1] is items
    other = pool.new(PersistentList, [1])
    other.append(other)
    with pytest.raises(RecursionError):
        assert items == other
    items.pop()
    other.pop()
    assert_nothing_leaked(pool)


def test_initialising_again_replaces_the_content(pool: Any, items: Any) -> None:
    items.extend(range(100))
    items.__init__("abc")
    assert items == ["a", "b", "c"]
    items.__init__()
    assert items == []
    with pytest.raises(TypeError):
        items.__init__(iterable=[1])
    with pytest.raises(TypeError):
        pool.new(PersistentList, [1], key=2)


def test_it_cannot_be_made_outside_of_a_pool() -> None:
    with pytest.raises(ObjectError, match=r"pool\.new\(PersistentList"):
        PersistentList([1])


def test_plain_lists_are_refused(items: Any) -> None:
    with pytest.raises(
        UnsupportedTypeError, match=r"Don't know how to persist builtins.list.*PersistentList"
    ):
        items.append([1])
    with pytest.raises(UnsupportedTypeError):
        items.extend([1, 2, [3]])
    assert items == []


def test_it_is_a_sequence_and_not_hashable(items: Any) -> None:
    assert isinstance(items, MutableSequence)
    assert not isinstance(items, list)
    with pytest.raises(TypeError, match="unhashable"):
        hash(items)
    items.extend([1, 2])
    match items:
        case [first, *rest]:
            assert (first, rest) == (1, [2])
        case _:
            pytest.fail("no sequence to a match statement")
    assert PersistentList[int].__origin__ is PersistentList


def test_it_cannot_be_pickled_or_deeply_copied(items: Any) -> None:
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot pickle a PersistentList"):
            attempt(items)


def test_a_subclass_keeps_its_class(pool: Any, make: Make) -> None:
    pool.root["words"] = pool.new(Words, ["a", "abc"])
    assert repr(pool.root["words"]) == "Words(['a', 'abc'])"
    pool.close()
    words = make().root["words"]
    assert type(words) is Words
    assert words.longest() == "abc"
    assert type(words.copy()) is PersistentList
    assert words == ["a", "abc"] == words.copy()


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda x: x["a"], "list indices must be integers or slices, not str"),
        (lambda x: operator.setitem(x, None, 1), "list indices must be integers or slices, not NoneType"),
        (lambda x: operator.delitem(x, 1.0), "list indices must be integers or slices, not float"),
        (lambda x: x[3], "list index out of range"),
        (lambda x: x[10**30], "cannot fit 'int' into an index-sized integer"),
        (lambda x: operator.setitem(x, -4, 1), "list assignment index out of range"),
        (lambda x: operator.delitem(x, 3), "list assignment index out of range"),
        (lambda x: operator.setitem(x, slice(None), 5), "can only assign an iterable"),
        (lambda x: operator.setitem(x, slice(None, None, 2), 5), "must assign iterable to extended slice"),
        (
            lambda x: operator.setitem(x, slice(None, None, 2), "a"),
            "attempt to assign sequence of size 1 to extended slice of size 2",
        ),
        (lambda x: x.pop(3), "pop index out of range"),
        (lambda x: x.pop(10**30), "Python int too large"),
        (lambda x: x.insert(10**30, 1), "Python int too large"),
        (lambda x: x.remove(9), r"list.remove\(x\): x not in list"),
        (lambda x: x.index(9), "9 is not in list"),
        (lambda x: x.index(1, "a"), "slice indices must be integers or have an __index__ method"),
        (lambda x: operator.add(x, (1,)), r'can only concatenate list \(not "tuple"\) to list'),
        (lambda x: x * "a", "can't multiply sequence by non-int of type 'str'"),
        (lambda x: operator.imul(x, "a"), "can't multiply sequence by non-int of type 'str'"),
        (lambda x: operator.iadd(x, 5), "'int' object is not iterable"),
        (lambda x: x.sort(5), "positional"),
    ],
)  # fmt: skip
def test_errors_are_those_of_list(items: Any, attempt: Any, message: str) -> None:
    items.extend([1, 2, 3])
    model = [1, 2, 3]
    with pytest.raises(Exception, match=message) as found:
        attempt(items)
    with pytest.raises(found.type):
        attempt(model)
    assert items == model


def test_popping_from_nothing(items: Any) -> None:
    with pytest.raises(IndexError, match="pop from empty list"):
        items.pop()


def test_what_raises_in_an_iterable_leaves_nothing_behind(pool: Any, items: Any) -> None:
    def broken() -> Iterator[Any]:
        yield "a string that takes a block of its own"
        raise ZeroDivisionError

    items.append(1)
    for attempt in (
        items.extend,
        items.__init__,
        lambda it: operator.setitem(items, slice(0, 1), it),
    ):
        with pytest.raises(ZeroDivisionError):
            attempt(broken())
    assert items == [1]
    assert_nothing_leaked(pool)


class Odd:
    """Something that fails, or answers, where a list asks."""

    def __index__(self) -> int:
        raise TypeError("not today")

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("not today either")

    def __radd__(self, other: Any) -> str:
        return "added"


def test_what_others_say_is_what_counts(items: Any) -> None:
    with pytest.raises(TypeError, match=r"not today$"):
        items[Odd()]
    with pytest.raises(TypeError, match="not today either"):
        items[:] = Odd()
    with pytest.raises(TypeError, match="not today either"):
        items[::2] = Odd()
    assert items + Odd() == "added"
    with pytest.raises(TypeError, match="can only concatenate tuple"):
        operator.add((1,), items)


def test_an_absurd_length_hint_does_no_harm(items: Any) -> None:
    class Boast:
        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            raise StopIteration

        def __length_hint__(self) -> int:
            return sys.maxsize

    items.extend(Boast())
    assert items == []


STEPS: list[Callable[[Any, random.Random, list[Any]], Any]] = [
    lambda x, r, v: x.append(v[0]),
    lambda x, r, v: x.insert(r.randrange(-50, 50), v[0]),
    lambda x, r, v: x.pop(r.randrange(-50, 50)),
    lambda x, r, v: x.__setitem__(r.randrange(-50, 50), v[0]),
    lambda x, r, v: x.__delitem__(r.randrange(-50, 50)),
    lambda x, r, v: x[r.randrange(-50, 50)],
    lambda x, r, v: x.extend(v),
    lambda x, r, v: x[place(r)],
    lambda x, r, v: x.__setitem__(place(r), v),
    lambda x, r, v: fill(x, place(r), v),
    lambda x, r, v: x.__delitem__(place(r)),
    lambda x, r, v: x.reverse(),
    lambda x, r, v: x.remove(v[0]),
    lambda x, r, v: (x.index(v[0], 1), x.count(v[0]), v[0] in x),
    lambda x, r, v: (v[0] in x, x.count(v[-1])),
    lambda x, r, v: x.sort(key=repr, reverse=r.random() < 0.5),
    lambda x, r, v: x.sort(),
    lambda x, r, v: x.__imul__(r.choice([0, 1, 1, 2])) and None,
    lambda x, r, v: [x < v, x >= v],
    lambda x, r, v: x.__delitem__(slice(40, None)),
]


def place(source: random.Random) -> slice:
    def bound() -> int | None:
        return source.choice([None, source.randrange(-40, 40)])

    return slice(bound(), bound(), source.choice([None, None, 1, 2, -1, -3, 0]))


def fill(whole: Any, where: slice, values: list[Any]) -> None:
    whole[where] = (values * 50)[: len(whole[where])]


def test_random_operations(pool: Any, items: Any) -> None:
    source = random.Random(5)
    model: list[Any] = []
    values = [1, 2.5, True, "abc", "x" * 50, b"y" * 40, 1 << 100, "", -7]

    def outcome(step: Any, whole: Any, state: Any, chosen: list[Any]) -> Any:
        source.setstate(state)
        try:
            return step(whole, source, chosen)
        except Exception as error:
            return type(error), str(error).replace("PersistentList", "list")

    for count in range(3000):
        step = source.choice(STEPS)
        chosen = source.choices(values, k=source.randrange(1, 5))
        if count % 50 > 25:  # where all are of one kind
            chosen = [source.randrange(9) for _ in range(source.randrange(1, 20))]
        state = source.getstate()
        before = list(model)
        expected = outcome(step, model, state, chosen)
        if isinstance(expected, tuple) and isinstance(expected[0], type):
            model[:] = before  # a sort that fails leaves the items as they were
        assert outcome(step, items, state, chosen) == expected
        if count % 10 == 0:
            assert list(items) == model
            assert [type(each) for each in items] == [type(each) for each in model]
        if count % 500 == 0:
            assert_sound(pool)
    assert list(items) == model


# Iteration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 544, 545, 2000])
@pytest.mark.parametrize("kind", [int, lambda n: f"{n} is a string with more than 14 bytes"])
def test_iteration(items: Any, size: int, kind: Any) -> None:
    values = [kind(n) for n in range(size)]
    items.extend(values)
    assert list(items) == values
    assert list(reversed(items)) == values[::-1]


@pytest.mark.parametrize("long", [False, True])
def test_iterators_see_changes_as_those_of_list_do(items: Any, long: bool) -> None:
    source = random.Random(7)
    model: list[Any] = []

    def value() -> Any:
        number = source.randrange(100)
        return f"the string number {number}" if long else number

    for _ in range(300):
        ours, theirs = iter(items), iter(model)
        back, back_model = reversed(items), reversed(model)
        for _ in range(source.randrange(30)):
            choice = source.randrange(6)
            if choice == 0:
                each = value()
                items.append(each)
                model.append(each)
            elif choice == 1 and model:
                place = source.randrange(len(model))
                del items[place]
                del model[place]
            elif choice == 2 and model:
                items[0] = model[0] = value()
            elif choice == 3:
                assert next(back, "end") == next(back_model, "end")
            else:
                assert next(ours, "end") == next(theirs, "end")


def test_an_iterator_that_has_ended_stays_so(items: Any) -> None:
    iterator = iter(items)
    assert list(iterator) == []
    items.append(1)
    assert list(iterator) == []


def test_an_iterator_after_a_rollback_and_after_the_end(pool: Any, items: Any) -> None:
    items.extend(range(10))
    iterator = iter(items)
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        items[1:] = range(100, 200)
        assert next(iterator) == 0
        assert next(iterator) == 100
        pool.transaction().abort()
    assert next(iterator) == 2
    pool.close()
    with pytest.raises(ClosedError):
        next(iterator)


# Sorting ----------------------------------------------------------------------------------------


def test_sorting_keeps_the_items_if_it_fails(pool: Any, items: Any) -> None:
    items.extend([3, "two", 1])
    with pytest.raises(TypeError):
        items.sort()
    with pytest.raises(ZeroDivisionError):
        items.sort(key=lambda each: 1 // (each == 3))
    assert items == [3, "two", 1]
    assert_sound(pool)


def test_sorting_notices_changes(pool: Any, items: Any) -> None:
    items.extend([3, 2, 1])

    def key(each: Any) -> Any:
        items.append(0)
        items.pop()
        return each

    with pytest.raises(ValueError, match="list modified during sort"):
        items.sort(key=key)
    assert items == [3, 2, 1]

    def harmless(each: Any) -> Any:
        with pytest.raises(KeyError):
            pool.root.pop("no such key")
        return each

    items.sort(key=harmless)  # a failed operation on something else is no change of this list
    assert items == [1, 2, 3]


# Transactions and memory ------------------------------------------------------------------------


def test_a_failed_operation_leaves_the_transaction_alone(pool: Any, items: Any) -> None:
    items.extend([1, 2, 3])
    with pool.transaction():
        items.append(4)
        with pytest.raises(UnsupportedTypeError):
            items[1:2] = ["a string that is stored before the set is met", set()]
        with pytest.raises(IndexError):
            items.pop(9)
        items.insert(0, 0)
    assert items == [0, 1, 2, 3, 4]
    assert_sound(pool)


def test_an_abort_restores_everything(pool: Any, items: Any) -> None:
    items.extend([f"string number {n}" for n in range(40)])
    before = list(items)
    blocks = block_sizes(pool)
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        items.insert(3, "another string of length")
        del items[10:30]
        items.sort(reverse=True)
        items.extend(range(1000))
        items *= 2
        items.reverse()
        items.clear()
        items.append("yet another string of length")
        pool.transaction().abort()
    assert items == before
    gc.collect()
    assert block_sizes(pool) == blocks


def test_what_is_replaced_is_freed_at_once(pool: Any, items: Any) -> None:
    items.append(1)
    blocks = objects(pool).keys()
    long = "a string that takes a block of its own"
    items[0] = long
    items[0] = pool.new(PersistentList, [long, long])
    gc.collect()
    items[0] = 1
    items.extend([long] * 3)
    items[1:] = [long]
    items[1::1] = []
    items += [long, 5, long, long]
    del items[1::2]
    items.remove(5)
    items.pop()
    assert items == [1]
    pool.mm.identity.recent.clear()
    items[0] = 1  # a commit looks after what died
    assert objects(pool).keys() == blocks


def test_an_item_taken_out_lives_as_long_as_somebody_holds_it(pool: Any, items: Any) -> None:
    inner = pool.new(PersistentList, ["some string that is long enough"])
    items.append(inner)
    taken = items.pop()
    assert taken is inner
    assert taken == ["some string that is long enough"]
    taken.append(2)
    del inner, taken
    assert_nothing_leaked(pool)


def test_an_insertion_is_a_move(pool: Any, items: Any) -> None:
    items.extend(range(2000))
    items.append(0)  # there is room behind
    with pool.transaction():
        items.insert(0, -1)
        changes = pool.mm.memory.changes
        assert changes.moves == 1
        assert sum(len(old) for old in changes.saved.values() if isinstance(old, bytes)) < 100
    assert items == [-1, *range(2000), 0]
    with pool.transaction():
        del items[5]
        assert pool.mm.memory.changes.moves == 1
    assert items == [-1, 0, 1, 2, 3, *range(5, 2000), 0]


def test_a_list_gives_memory_back(pool: Any, items: Any) -> None:
    def block() -> int:
        return next((size for size, kind in block_sizes(pool) if kind == ITEMS_TYPE_NUM), 0)

    assert block() == 0
    items.extend(range(10_000))
    full = block()
    assert full <= 10_000 * 16 * 1.2
    del items[100:]
    assert 100 * 16 <= block() < full / 20
    items.clear()
    assert block() == 0
    assert_sound(pool)


def test_threads_wait_for_a_transaction(pool: Any, items: Any) -> None:
    items.extend(range(100))
    seen: list[Any] = []
    iterator = iter(items)
    next(iterator)
    thread = threading.Thread(target=lambda: seen.extend(iterator))
    with pool.transaction():
        items[1] = "uncommitted"
        thread.start()
        thread.join(0.05)
        assert seen == []
        items[1] = 1
    thread.join()
    assert seen == list(range(1, 100))


def test_a_reader_reads(pool: Any, make: Make, items: Any) -> None:
    items.extend(range(5))
    pool.close()
    items = make("r").root["items"]
    assert items == [0, 1, 2, 3, 4]
    for attempt in (
        lambda: items.append(1),
        items.clear,
        items.sort,
        lambda: operator.imul(items, 2),
    ):
        with pytest.raises(ReadOnlyError):
            attempt()


def test_after_the_end_everything_is_refused(pool: Any, items: Any) -> None:
    items.append(1)
    pool.close()
    for attempt in (lambda: items[0], lambda: len(items), lambda: list(items), lambda: items.append(2),
                    lambda: items == [1], lambda: items + items, items.copy):  # fmt: skip
        with pytest.raises(ClosedError):
            attempt()


def test_multiplication_beyond_all_memory_fails_at_once(pool: Any, items: Any) -> None:
    items.extend([1, 2])
    with time_limit(5):
        for count in (sys.maxsize, 1 << 62, 1 << 40):
            with pytest.raises((MemoryError, OverflowError)):
                items *= count
        with pytest.raises(OverflowError):
            items *= 1 << 70
    assert items == [1, 2]


# Depth ------------------------------------------------------------------------------------------


def nested(pool: Any, depth: int, innermost: Any) -> Any:
    with pool.transaction():
        whole = pool.new(PersistentList, [innermost])
        for _ in range(depth):
            whole = pool.new(PersistentList, [whole])
    return whole


def test_comparing_at_any_depth(pool: Any) -> None:
    one, other, less = nested(pool, 10_000, 1), nested(pool, 10_000, 1), nested(pool, 10_000, 0)
    assert one == other
    assert one != less
    assert less < one
    assert not one < other
    assert one <= other
    longer = nested(pool, 3, 1)
    shorter = nested(pool, 3, 1)
    longer[0][0].append(5)
    assert shorter < longer
    assert longer > shorter
    assert longer != shorter
    assert longer[0] > [[[1]]]
    del one, other, less
    assert_nothing_leaked(pool)


def test_comparing_different_kinds(pool: Any) -> None:
    inner = pool.new(PersistentDict, {"a": pool.new(PersistentList, [1, 2])})
    whole = pool.new(PersistentList, [inner, (1, 2), frozenset({3})])
    assert whole == [{"a": [1, 2]}, (1, 2), {3}]
    assert [{"a": [1, 2]}, (1, 2), {3}] == whole
    assert whole != [{"a": [1, 3]}, (1, 2), {3}]
    assert whole != [{"b": [1, 2]}, (1, 2), {3}]
    assert whole != [{"a": [1, 2]}, [1, 2], {3}]
    assert whole != (inner, (1, 2), {3})
    assert whole != 5
    with pytest.raises(
        TypeError, match="'<' not supported between instances of 'PersistentDict' and 'dict'"
    ):
        assert whole < [{"a": [1, 3]}]
    with pytest.raises(TypeError, match="not supported"):
        assert whole < (1,)

    class Whatever:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    assert whole == [Whatever(), Whatever(), Whatever()]
    assert whole == [{"a": Whatever()}, Whatever(), Whatever()]
    assert pool.new(PersistentTuple, [whole]) == (whole,)


def test_equal_compares_anything(pool: Any) -> None:
    whole = pool.new(PersistentList, [1, (2,)])
    assert equal(whole, whole)
    assert equal(whole, [1, (2,)])
    assert equal([1, (2,)], whole)
    assert not equal(whole, [1, (3,)])
    assert not equal(whole, (1, (2,)))
    assert equal(1, 1.0)
    assert not equal("a", whole)
    deep: list[Any] = [1]
    other: list[Any] = [1]
    for _ in range(5_000):
        deep, other = [deep, {"a": 1}], [other, {"a": 1}]
    assert equal(deep, other)
    other[1]["a"] = 2
    assert not equal(deep, other)


def test_a_list_subclass_compares_by_its_items(items: Any) -> None:
    class Never(list):  # type: ignore[type-arg]
        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = None  # type: ignore[assignment]

    items.extend([1, 2])
    assert items == Never([1, 2])
    assert not items == [1, Never()]  # noqa: SIM201


# Check ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value", "invariant"),
    [(1, 10**6, "Q2"), (2, 0, "Q1"), (2, 4096, "Q1"), (3, 77, "Q1"), (1, 1 << 63, "Q2")],
)
def test_check_sees_a_broken_anchor(
    pool: Any, items: Any, word: int, value: int, invariant: str
) -> None:
    items.extend(range(6))
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        pool.mm.snapshot_range(items._p_oid, 32)
        pool.mm.words[items._p_index + word] = value
        found = {problem[2] for problem in PersistentList._p_problems(pool.mm, items._p_offset)}
        assert invariant in found
        pool.transaction().abort()
    assert list(PersistentList._p_problems(pool.mm, items._p_offset)) == []


@pytest.mark.parametrize(
    "oid", [(0, 0), (2, 2), (5 | 15 << 8, 0), (7, 0), (0xFF, 4096), ("own", 4096), ("own", "block")]
)
def test_check_sees_a_broken_item(pool: Any, items: Any, oid: Any) -> None:
    items.extend(range(6))
    block = pool.mm.words[items._p_index + 2]
    kind = pool.mm.pool_kind if oid[0] == "own" else oid[0]
    payload = block if oid[1] == "block" else oid[1]
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        pool.mm.snapshot_range(block, 96)
        pool.mm.words[(block >> 3) + 6] = kind
        pool.mm.words[(block >> 3) + 7] = payload
        found = list(PersistentList._p_problems(pool.mm, items._p_offset))
        assert [(where, invariant) for _, where, invariant in found] == [(block + 48, "Q3")]
        pool.transaction().abort()


def test_check_sees_a_cut_anchor(pool: Any, items: Any) -> None:
    with pool.transaction():
        oid = pool.mm.zalloc(16)
        assert [each[2] for each in PersistentList._p_problems(pool.mm, oid[1])] == ["Q1"]
        assert [each[2] for each in PersistentTuple._p_problems(pool.mm, oid[1])] == []
        assert [each[2] for each in PersistentArray._p_problems(pool.mm, oid[1])] == ["A1"]
        short = pool.mm.zalloc(8)
        assert [each[2] for each in PersistentTuple._p_problems(pool.mm, short[1])] == ["Q4"]
        assert [each[2] for each in PersistentObject._p_problems(pool.mm, short[1])] == ["O1"]
        pool.mm.free(oid)
        pool.mm.free(short)


def test_the_words_are_those_of_the_format(pool: Any, items: Any) -> None:
    items.extend([7, -1])
    words = pool.mm.words
    header, length, block, capacity = words[items._p_index : items._p_index + 4].tolist()
    assert header == 16 << TYPE_CODE_SHIFT | 1
    assert (length, capacity) == (2, 8)
    assert words[block >> 3 : (block >> 3) + 4].tolist() == [3, 7, 3, 2**64 - 1]
    assert pool.mm.heap.type_num_of(block) == 31
    assert plain(items) == [7, -1]
