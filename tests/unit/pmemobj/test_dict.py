"""PersistentDict: as dict, key by key, message by message."""

from __future__ import annotations

import collections
import copy
import datetime
import enum
import gc
import math
import pickle
import threading
from collections.abc import Callable, Iterator, MutableMapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj import (
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentTuple,
)
from pmshelve.pmemobj.persistent.tableblock import shape, stage
from tests.support.pools import assert_nothing_leaked, assert_sound, used

Make = Callable[..., Any]


class Level(enum.IntEnum):
    ONE = 1


class Name(str):
    """Hashes and compares as the str it is."""

    __slots__ = ()


class Other(str):
    """Equal to the str it is, with another hash: never found by it."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 12345

    def __eq__(self, other: object) -> bool:
        return str(self) == other


class Holder(PersistentObject):
    """Hashes by identity."""


class Like:
    """Equal to whatever it was made with, by a hash of its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return bool(self.value == other)


class Default(PersistentDict):
    def __missing__(self, key: Any) -> Any:
        return f"no {key}"


def new(pool: Any, *args: Any, **kw: Any) -> Any:
    pool.root["d"] = made = pool.new(PersistentDict, *args, **kw)
    return made


# Behaves as dict ----------------------------------------------------------------------------------


def outcome(call: Callable[[Any], Any], thing: Any) -> Any:
    try:
        return call(thing)
    except Exception as error:
        return type(error), str(error)


CALLS: list[Callable[[Any], Any]] = [
    lambda d: d["missing"],
    lambda d: d.pop("missing"),
    lambda d: d.pop("missing", None),
    lambda d: d[[]],
    lambda d: d.get({}),
    lambda d: [] in d,
    lambda d: d.__setitem__([], 1),
    lambda d: d.__delitem__("missing"),
    lambda d: d.__delitem__([]),
    lambda d: d.pop([]),
    lambda d: d.setdefault([]),
    lambda d: d.update(5),
    lambda d: d.update([5]),
    lambda d: d.update([(1, 2, 3)]),
    lambda d: d.update({}, {}),
    lambda d: d | [],
    lambda d: d | 5,
    lambda d: [] | d,
    lambda d: d.__ior__(5),
    lambda d: hash(d) and None,
    lambda d: sorted(d.keys() & ["a", "z"]),
    lambda d: sorted(d.keys() | {"z"}),
    lambda d: sorted({"a", "z"} - d.keys()),
    lambda d: sorted(d.items() & {("a", 1)}),
    lambda d: ("a", 1) in d.items(),
    lambda d: ("a", 2) in d.items(),
    lambda d: "a" in d.items(),
    lambda d: 1 in d.values(),
    lambda d: d.keys() == {"a", "b"},
    lambda d: d.keys() >= {"a"},
    lambda d: d.keys().isdisjoint(["c"]),
    lambda d: repr(d.keys()),
    lambda d: repr(d.values()),
    lambda d: repr(d.items()),
    lambda d: list(reversed(d)),
    lambda d: list(reversed(d.values())),
    lambda d: list(reversed(d.items())),
    lambda d: d == {"b": 2, "a": 1},
    lambda d: d != {"a": 1},
    lambda d: d == collections.OrderedDict(a=1, b=2),
    lambda d: d == collections.UserDict(a=1, b=2),
    lambda d: d == [("a", 1)],
    lambda d: dict(d.items().mapping),
    lambda d: {**d},
    lambda d: d | {"c": 3},
    lambda d: {"c": 3} | d,
    lambda d: [d.setdefault("c", 9), d.setdefault("c", 8), d.popitem(), len(d)],
    lambda d: [d.popitem(), d.popitem(), d.popitem()],
]


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_a_call_ends_as_it_does_on_a_dict(pool: Any, call: Callable[[Any], Any]) -> None:
    model = {"a": 1, "b": 2}
    thing = new(pool, model)
    expected = outcome(call, dict(model))
    found = outcome(call, thing)
    if isinstance(expected, tuple) and isinstance(expected[0], type):
        expected = expected[0], expected[1].replace("dict'", "PersistentDict'")
        found = found[0], found[1].replace("dict'", "PersistentDict'")
        if found[0] is TypeError:  # the wording names the class
            found, expected = found[0], expected[0]
    assert found == expected


def test_it_is_a_mutable_mapping_made_as_dict_is(pool: Any) -> None:
    assert isinstance(new(pool), MutableMapping)
    assert new(pool, [("a", 1)], a=2, self=3) == {"a": 2, "self": 3}
    assert new(pool, new(pool, x=1), y=2) == {"x": 1, "y": 2}
    with pytest.raises(TypeError, match="at most 1 argument, got 2"):
        new(pool, {}, {})
    with pytest.raises(TypeError, match=r"pool\.new"):
        PersistentDict({"a": 1})


def test_init_again_replaces_the_content(pool: Any) -> None:
    thing = new(pool, a=1)
    thing.__init__(b=2)
    assert thing == {"b": 2}
    thing.__init__(thing, c=3)
    assert thing == {"b": 2, "c": 3}


def test_repr_is_recursion_safe(pool: Any) -> None:
    thing = new(pool, a=[1] and 1)
    assert repr(thing) == "PersistentDict({'a': 1})"
    thing["self"] = thing
    assert repr(thing) == "PersistentDict({'a': 1, 'self': PersistentDict({...})})"
    assert repr(pool.new(Default)) == "Default({})"
    del thing["self"]


def test_copies_and_derived(pool: Any) -> None:
    thing = new(pool, a=1)
    for other in (thing.copy(), copy.copy(thing)):
        assert type(other) is PersistentDict
        assert other is not thing
        assert other == thing
    assert type(thing | {}) is dict
    assert type({} | thing) is dict
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(thing)
    made = thing.fromkeys("ab", 0)
    assert type(made) is PersistentDict
    assert made == {"a": 0, "b": 0}
    with pytest.raises(TypeError, match="knows no pool"):
        PersistentDict.fromkeys("ab")


def test_a_subclass_keeps_its_class_and_missing(pool: Any, make: Make) -> None:
    pool.root["d"] = pool.new(Default, a=1)
    pool.close()
    thing = make().root["d"]
    assert type(thing) is Default
    assert thing["b"] == "no b"
    assert thing.get("b") is None
    assert "b" not in thing


def test_one_object_for_one_container(pool: Any) -> None:
    inner = pool.root["inner"] = pool.new(PersistentList, [1])
    assert pool.root["inner"] is inner
    assert pool.root.pop("inner") is inner
    assert inner == [1]


# Keys ---------------------------------------------------------------------------------------------


def test_the_first_form_of_a_key_stays(pool: Any) -> None:
    thing = new(pool)
    for key in (1, 1.0, True, Fraction(1), Decimal(1), Level.ONE, 1 + 0j):
        thing[key] = key
    assert [(type(key), type(value)) for key, value in thing.items()] == [(int, complex)]
    other = new(pool, {Level.ONE: 0})
    other[1] = 5
    assert list(other.items()) == [(Level.ONE, 5)]
    assert type(next(iter(other))) is Level


EQUAL = [
    (
        1,
        [
            1.0,
            True,
            Level.ONE,
            Decimal(1),
            Fraction(1),
            np.int64(1),
            np.float64(1),
            np.True_,
            Like(1),
        ],
    ),
    ("text", [Name("text"), np.str_("text"), Like("text")]),
    ("a text that is too long for an oid", [Name("a text that is too long for an oid")]),
    (b"raw", [np.bytes_(b"raw")]),
    ((1, "a"), [(1.0, Name("a")), collections.namedtuple("Pair", "x y")(1, "a"), (Like(1), "a")]),  # noqa: PYI024
    (frozenset({1}), [frozenset({1.0}), type("F", (frozenset,), {})({1})]),
    (Decimal("0.5"), [0.5, Fraction(1, 2)]),
    (datetime.date(2020, 1, 2), [datetime.date(2020, 1, 2), Like(datetime.date(2020, 1, 2))]),
    ((datetime.date(2020, 1, 2), 1), [(datetime.date(2020, 1, 2), 1.0)]),
    (Level.ONE, [1, 1.0, Level.ONE, np.int8(1)]),
]


@pytest.mark.parametrize(("key", "others"), EQUAL, ids=range(len(EQUAL)))
def test_equal_keys_find_each_other(pool: Any, make: Make, key: Any, others: list[Any]) -> None:
    thing = new(pool, {n: n for n in "abcdefghijk"})
    thing[key] = "found"
    for _ in range(2):
        for other in others:
            assert thing[other] == "found"
            assert other in thing
        assert len(thing) == 12
        pool.close()
        pool = make()
        thing = pool.root["d"]
    del thing[others[0]]
    assert key not in thing
    assert len(thing) == 11


def test_persistent_tuples_and_frozensets_are_the_keys_they_equal(pool: Any) -> None:
    plain: list[Any] = [(1, ("a",)), frozenset({1, (2,)})]
    thing = new(pool, dict.fromkeys(plain, 0))
    stored = list(thing)
    assert [type(key) for key in stored] == [PersistentTuple, PersistentFrozenSet]
    assert [thing[key] for key in (*plain, *stored)] == [0] * 4
    assert dict.fromkeys(stored, 1) == dict.fromkeys(plain, 1)
    made = pool.new(PersistentTuple, (1, pool.new(PersistentTuple, ("a",))))
    assert thing[made] == 0


def test_what_cannot_be_stored_is_no_key(pool: Any) -> None:
    thing = new(pool, a=1)
    assert object() not in thing
    assert thing.get(object()) is None
    assert Other("a") not in thing
    with pytest.raises(KeyError):
        thing[object()]
    with pytest.raises(TypeError, match="Don't know how to persist"):
        thing[object()] = 1
    assert thing == {"a": 1}


def test_nans_of_the_same_bits_are_one_key(pool: Any) -> None:
    thing = new(pool)
    thing[math.nan] = 1
    thing[float("nan")] = 2
    assert list(thing.values()) == [2]
    assert thing.pop(math.nan) == 2
    assert len(new(pool, {float("nan"): n for n in range(9)})) == 1


def test_objects_hashed_by_identity_are_found_after_they_were_resurrected(pool: Any) -> None:
    key = pool.new(Holder)
    pool.root["key"] = key
    thing = new(pool, {key: "found"})
    for n in range(30):
        thing[n] = n
    del key, thing
    pool.mm.identity.recent.clear()
    gc.collect()
    thing = pool.root["d"]
    assert thing[pool.root["key"]] == "found"
    assert pool.new(Holder) not in thing


# Foreign code ---------------------------------------------------------------------------------------


class Meddler:
    """Changes the dict that it is looked up in."""

    def __init__(self, meddle: Callable[[], None], equal: bool = True) -> None:
        self.meddle, self.equal, self.calls = meddle, equal, 0

    def __hash__(self) -> int:
        return hash("k5")

    def __eq__(self, other: object) -> bool:
        self.calls += 1
        if self.calls < 3:
            self.meddle()
        return self.equal and other == "k5"


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", ["clear", "grow", "shrink", "replace"])
def test_keys_that_change_the_dict_do_no_damage(pool: Any, name: str, equal: bool) -> None:
    thing = new(pool, {f"k{n}": n for n in range(40)})

    def grow() -> None:
        thing.update({f"more{n}": n for n in range(100)})

    def shrink() -> None:
        for n in range(10, 40):
            thing.pop(f"k{n}", None)

    def replace() -> None:
        thing.pop("k5", None)
        thing["k5"] = "new"

    meddle = {"clear": thing.clear, "grow": grow, "shrink": shrink, "replace": replace}[name]
    for call in (thing.get, thing.__contains__, lambda key: thing.pop(key, None)):
        call(Meddler(meddle, equal))
        assert_sound(pool)
    with pytest.raises(TypeError):
        thing[Meddler(meddle, False)] = 1
    assert_sound(pool)


def test_a_key_that_always_changes_the_dict_ends_with_an_error(pool: Any) -> None:
    thing = new(pool, {f"k{n}": n for n in range(9)})
    count = iter(range(1000))

    class Endless(Meddler):
        def __eq__(self, other: object) -> bool:
            thing[f"new{next(count)}"] = 1
            return False

        __hash__ = Meddler.__hash__

    with pytest.raises(RuntimeError, match="changed size"):
        thing.get(Endless(list))


# Iteration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "view", [iter, reversed, lambda d: iter(d.values()), lambda d: iter(d.items())]
)
def test_a_change_of_size_ends_an_iteration(
    pool: Any, view: Callable[[Any], Iterator[Any]]
) -> None:
    thing = new(pool, {n: n for n in range(20)})
    for change in (lambda: thing.pop(3), lambda: thing.update(x=1), thing.clear):
        iterator = view(thing)
        next(iterator)
        change()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="dictionary changed size during iteration"):
                next(iterator)


def test_keys_replaced_one_for_one_end_an_iteration(pool: Any) -> None:
    thing = new(pool, {0: 0})
    with pytest.raises(RuntimeError, match="dictionary keys changed during iteration"):
        for key in thing:
            del thing[key]
            thing[key + 1] = 0


def test_values_set_while_iterating_are_seen(pool: Any) -> None:
    thing = new(pool, {n: n for n in range(100)})
    seen = []
    for key, value in thing.items():
        seen.append(value)
        if key < 99:
            thing[key + 1] = -key
    assert seen == [0, *(-n for n in range(99))]
    iterator = iter(thing)
    assert iterator.__length_hint__() == 100
    assert len(list(iterator)) == 100
    assert iterator.__length_hint__() == 0
    assert list(iterator) == []


def test_a_thread_that_iterates_beside_one_that_writes_sees_each_key_once(pool: Any) -> None:
    thing = new(pool, dict.fromkeys(range(300), 0))
    stop = threading.Event()
    failures: list[Any] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with pool.transaction():
                thing[number % 300] = number
                thing[(number + 1) % 300] = number

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            if list(thing) != list(range(300)):
                failures.append("keys")
    finally:
        stop.set()
        writer.join()
    assert not failures


# Atomicity ------------------------------------------------------------------------------------------


def test_an_update_that_fails_leaves_nothing(pool: Any) -> None:
    thing = new(pool, a=1)
    before = used(pool)
    for content in (
        {**{f"a long key, number {n}": n for n in range(50)}, "bad": []},
        {"b": 1, "c": {}},
    ):
        with pytest.raises(TypeError):
            thing.update(content)
        assert thing == {"a": 1}
        assert used(pool) == before
    with pool.transaction():
        thing["b"] = 2
        with pytest.raises(TypeError):
            thing.update({"c": 3, "d": object()})
        with pytest.raises(KeyError):
            del thing["c"]
    assert thing == {"a": 1, "b": 2}


def test_an_abort_brings_everything_back(pool: Any) -> None:
    thing = new(pool, {n: str(n) * 20 for n in range(50)})
    before = list(thing.items())
    for change in (
        thing.clear,
        lambda: [thing.popitem() for _ in range(45)],
        lambda: thing.update(dict.fromkeys("abc" * 50)),
    ):
        with pytest.raises(ZeroDivisionError), pool.transaction():
            change()
            1 / 0  # noqa: B018
        assert list(thing.items()) == before
        assert thing[7] == "7" * 20
        assert_sound(pool)


def test_emptied_dicts_give_their_memory_back(pool: Any) -> None:
    thing = new(pool)
    empty = used(pool)
    for _ in range(3):
        thing.update({f"a long key, number {n}": n for n in range(1000)})
        assert used(pool) > empty + 50_000
        while thing:
            thing.popitem()
        assert used(pool) <= empty + 5 * 40 + 8
    thing.update({n: n for n in range(1000)})
    for n in range(998):
        del thing[n]
    assert used(pool) < empty + 500
    thing.clear()
    assert used(pool) == empty
    assert_nothing_leaked(pool)


def test_churn_does_not_let_the_table_grow(pool: Any) -> None:
    thing = new(pool, {n: n for n in range(100)})
    before = used(pool)
    for n in range(2000):
        thing[n + 100] = n
        del thing[n]
    assert used(pool) <= before * 2
    assert_sound(pool)


# The table ------------------------------------------------------------------------------------------


def test_tables_stay_small_just_after_they_grew() -> None:
    for count in [
        *range(1, 3000),
        *(10**power + extra for power in (4, 5, 6, 7) for extra in (0, 1, 7)),
    ]:
        log2, capacity = stage(count)
        assert count <= capacity <= (2 << log2) // 3
        assert capacity <= 300 or log2 > 8  # entry numbers fit into a byte
        if count > 10:
            worst = shape(log2) + 40 * capacity
            grown_from = stage(count - 1)
            if grown_from != (log2, capacity):
                assert worst / count < 90
    with pytest.raises(MemoryError):
        stage(1 << 32)


def test_many_keys(pool: Any, make: Make) -> None:
    model = {f"key number {n}": n for n in range(20_000)}
    thing = new(pool, model)
    for n in range(0, 20_000, 3):
        del thing[f"key number {n}"], model[f"key number {n}"]
    for n in range(5000):
        thing[n] = model[n] = n
    pool.close()
    pool = make()
    thing = pool.root["d"]
    assert thing == model
    assert list(thing) == list(model)
    assert_sound(pool)


@pytest.mark.parametrize(
    ("where", "change", "invariant"),
    [
        ("anchor 1", lambda word: word + 1, "D2"),
        ("anchor 2", lambda word: 1 << 40, "D1"),
        ("anchor 3", lambda word: word + 16, "D1"),
        ("anchor 4", lambda word: word + 1, "D4"),
        ("anchor 4", lambda word: word + 256, "D3"),
        ("anchor 4", lambda word: word + 40, "D1"),
        ("table 0", lambda word: 0, "D4"),
        ("table 0", lambda word: 0x0909090909090909, "D4"),
        ("entry 0", lambda word: word ^ 2, "D3"),
        ("entry 1", lambda word: word & ~0xFF | 7, "D5"),
        ("entry 3", lambda word: 0x01FF, "D5"),
        ("dead 4", lambda word: 3, "D2"),
    ],
)
def test_damage_is_found(
    pool: Any, where: str, change: Callable[[int], int], invariant: str
) -> None:
    thing = new(pool, a=1, b=2, c=3)
    del thing["b"]
    mm = pool.mm
    anchor = thing._p_offset >> 3
    table = mm.words[anchor + 3] >> 3
    place, number = where.split()
    index = {"anchor": anchor, "table": table, "entry": table + 1, "dead": table + 6}[place]
    index += int(number)
    with pytest.raises(ZeroDivisionError), pool.transaction():
        mm.memory.snapshot(index << 3, 8)
        mm.words[index] = change(mm.words[index])
        thing._p_forget()
        found = list(PersistentDict._p_problems(mm, thing._p_offset))
        assert invariant in {problem[2] for problem in found}, found
        try:  # never a hang
            list(thing.items())
            thing.get("a")
            thing.get("missing")
        except (CorruptionError, ValueError):
            pass
        1 / 0  # noqa: B018
    assert thing == {"a": 1, "c": 3}
