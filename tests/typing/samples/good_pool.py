"""Pools: collections made by `new`, changed in place, combined with the built-in ones."""

from __future__ import annotations

from collections.abc import (
    ItemsView,
    KeysView,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from typing import Any

from known import assert_type

from pmshelve import pmemobj
from pmshelve.pmemobj import (
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObjectPool,
    PersistentSet,
    PersistentTuple,
)

with pmemobj.create("a.pool", durability="lazy") as pool:
    assert_type(pool, PersistentObjectPool)
    assert_type(pool.filename, str)

    # Without items there is nothing to say what it holds.
    anything = pool.new(PersistentList)
    assert_type(anything, PersistentList[Any])
    anything.append(1)
    anything.append("text")

    # Said, or seen by its items.
    names = pool.new(PersistentList[str])
    assert_type(names, PersistentList[str])
    names.append("ada")
    numbers = pool.new(PersistentList, [3, 1, 2])
    assert_type(numbers, PersistentList[int])
    assert_type(numbers[0], int)
    assert_type(numbers[:2], list[int])
    assert_type(numbers.pop(), int)
    assert_type(numbers + numbers[:1], list[int])
    assert_type(names[:1] + numbers, list[str | int])
    assert_type(numbers * 2, list[int])
    assert_type(numbers.copy(), PersistentList[int])
    assert_type(numbers.index(3), int)
    assert_type(numbers < [4], bool)
    assert_type(list(reversed(numbers)), list[int])
    numbers += [5]
    numbers[0:1] = range(3)
    numbers.sort()
    numbers.sort(key=lambda number: -number, reverse=True)
    del numbers[0], numbers[:1]
    assert_type(max(numbers), int)
    typed: PersistentList[float] = pool.new(PersistentList[float], [1, 2])
    sequence: MutableSequence[int] = numbers

    ages = pool.new(PersistentDict[str, int])
    assert_type(ages, PersistentDict[str, int])
    ages["ada"] = 36
    assert_type(ages["ada"], int)
    assert_type(ages.get("bob"), int | None)
    assert_type(ages.get("bob", 0), int)
    assert_type(ages.pop("ada"), int)
    assert_type(ages.setdefault("ada", 36), int)
    assert_type(ages.keys(), KeysView[str])
    assert_type(ages.items(), ItemsView[str, int])
    assert_type(ages | {"bob": 1}, dict[str, int])
    assert_type(ages | {1: "text"}, dict[str | int, int | str])
    assert_type(ages.copy(), PersistentDict[str, int])
    assert_type(ages.fromkeys([1, 2], "text"), PersistentDict[int, str])
    ages |= {"carl": 3}
    ages.update(dora=4)
    ages.update({"eva": 5}, frida=6)
    assert_type(pool.new(PersistentDict), PersistentDict[Any, Any])
    assert_type(pool.new(PersistentDict, {1: "a"}), PersistentDict[int, str])
    assert_type(pool.new(PersistentDict, a=1.5), PersistentDict[str, float])
    mapping: MutableMapping[str, int] = ages
    for name, age in ages.items():
        assert_type(name, str)
        assert_type(age, int)

    tags = pool.new(PersistentSet, ["red", "blue"])
    assert_type(tags, PersistentSet[str])
    tags.add("green")
    tags |= {"white"}
    assert_type(tags.pop(), str)
    assert_type(tags | {1}, set[str | int])
    assert_type(tags & {"red"}, set[str])
    assert_type(tags.union([1.5]), set[str | float])
    assert_type(tags.difference(["red"]), set[str])
    assert_type(tags.issubset(["red"]), bool)
    assert_type(tags <= {"red"}, bool)
    some: MutableSet[str] = tags
    frozen = pool.new(PersistentFrozenSet, [1, 2])
    assert_type(frozen, PersistentFrozenSet[int])
    assert_type(frozen | {"a"}, frozenset[int | str])
    assert_type(hash(frozen), int)

    pair = pool.new(PersistentTuple, [1, 2])
    assert_type(pair, PersistentTuple[int])
    assert_type(pair[0], int)
    assert_type(pair[:1], tuple[int, ...])
    assert_type(pair + tuple(names), tuple[int | str, ...])
    items: Sequence[float] = pair

    with pool.transaction() as transaction:
        assert_type(transaction.depth, int)
        pool.root = pool.new(PersistentDict[str, Any], ages=ages, names=names)
    pool.root["visits"] = 1
    transaction = pool.transaction()
    transaction.begin()
    names.append("bob")
    transaction.commit()
    live, counts = pool.gc()
    assert_type(live, dict[str, int])
    assert_type(pool.stats(walk=True).block_count, int | None)
    assert pool.check() == []

with pmemobj.open("a.pool", allow_pickle=False, timeout=None) as pool:
    assert_type(pool.root, Any)
    root: PersistentDict[str, Any] = pool.root
    known: PersistentDict[str, int] = root["ages"]
    assert_type(known["ada"], int)
with PersistentObjectPool("a.pool", flag="r") as pool:
    assert_type(pool.readonly, bool)


def longest(words: Sequence[str]) -> str:
    return max(words, key=len)


with PersistentObjectPool("b.pool", flag="c") as pool:
    assert_type(longest(pool.new(PersistentList, ["a", "bcd"])), str)
