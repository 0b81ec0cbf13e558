"""The memory manager: blocks, counts and values, each call whole or not at all."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest

from pmshelve.errors import StateError, TransactionError, UnsupportedTypeError
from pmshelve.pmemobj import (
    OID_NULL,
    POBJECT_TYPE_NUM,
    MemoryManager,
    PersistentDict,
    PersistentList,
    PersistentTuple,
)
from pmshelve.pmemobj import store as storing
from pmshelve.pmemobj.layout import REFCOUNT_MASK
from tests.support.pools import assert_nothing_leaked, assert_sound
from tests.support.userclasses import Counter

LONG = "a string that is too long to stand in an oid"


def count_of(mm: Any, oid: Any) -> int:
    count: int = mm.words[oid[1] // 8] & REFCOUNT_MASK
    return count


@pytest.fixture
def mm(pool: Any) -> Any:
    assert isinstance(pool.mm, MemoryManager)
    return pool.mm


# Blocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["alloc", "zalloc", "realloc", "zrealloc", "free", "snapshot"])
def test_outside_of_a_transaction_blocks_are_refused(mm: Any, call: str) -> None:
    with mm.transaction():
        oid = mm.zalloc(32, 1000)
    calls = {
        "alloc": lambda: mm.alloc(8),
        "zalloc": lambda: mm.zalloc(8),
        "realloc": lambda: mm.realloc(oid, 64),
        "zrealloc": lambda: mm.zrealloc(oid, 64),
        "free": lambda: mm.free(oid),
        "snapshot": lambda: mm.snapshot_range(oid, 8),
    }
    with pytest.raises(
        RuntimeError, match=f"{call.removeprefix('z')}.* called outside of transaction"
    ):
        calls[call]()
    assert mm.heap.size_of(oid[1]) == 32


def test_blocks_are_allocated_resized_and_freed(mm: Any) -> None:
    with mm.transaction():
        oid = mm.zalloc(20, 1000)
        assert oid[0] == mm.pool_kind
        assert mm.view(oid) == bytes(20)
        mm.view(oid)[:] = b"x" * 20
        oid = mm.realloc(oid, 5000)
        assert bytes(mm.view(oid)) == b"x" * 20 + bytes(4980)
        oid = mm.zrealloc(oid, 10, 1000)
        assert bytes(mm.view(oid)) == b"x" * 10
        assert mm.heap.type_num_of(oid[1]) == 1000
        mm.free(oid)
    with mm.transaction(), pytest.raises(ValueError, match="freed already"):
        mm.free(oid)


def test_a_wrong_type_number_is_an_error(mm: Any) -> None:
    with mm.transaction():
        oid = mm.alloc(16, 1000)
        with pytest.raises(ValueError, match="has type number 1000, not 1001"):
            mm.realloc(oid, 32, 1001)
        assert mm.realloc(oid, 17, 1000)
        with pytest.raises(ValueError, match="type number"):
            mm.alloc(16, 1 << 24)


def test_the_default_type_is_that_of_objects(mm: Any) -> None:
    with mm.transaction():
        oid = mm.alloc(16)
        assert mm.heap.type_num_of(oid[1]) == POBJECT_TYPE_NUM
        assert mm.words[oid[1] // 8] == 0
        mm.free(oid)


@pytest.mark.parametrize("target", [0, 8, 17, 1 << 45, -16])
def test_garbage_is_never_freed(mm: Any, target: int) -> None:
    before = sorted(mm.heap.blocks())
    for oid in ((mm.pool_kind, target), target):
        with mm.transaction(), pytest.raises(StateError):
            mm.free(oid)
    assert sorted(mm.heap.blocks()) == before


def test_oids_of_nothing_and_of_others(mm: Any) -> None:
    with mm.transaction():
        for call in (mm.free, mm.direct, mm.view, lambda oid: mm.realloc(oid, 8)):
            with pytest.raises(ValueError, match="OID_NULL"):
                call(OID_NULL)
            with pytest.raises(ValueError, match="no block of this pool"):
                call((mm.pool_kind ^ 1 << 20, 4096))


def test_an_aborted_transaction_takes_blocks_back(mm: Any) -> None:
    before = sorted(mm.heap.blocks())
    with mm.transaction():
        kept = mm.zalloc(64, 1000)
    with pytest.raises(OSError, match="aborted"), mm.transaction() as transaction:
        mm.alloc(100, 1000)
        mm.free(kept)
        transaction.abort()
    assert mm.heap.size_of(kept[1]) == 64
    with mm.transaction():
        mm.free(kept)
    assert sorted(mm.heap.blocks()) == before


def test_direct_is_the_address(mm: Any) -> None:
    with mm.transaction():
        oid = mm.zalloc(16, 1000)
        mm.view(oid)[:] = b"0123456789abcdef"
    assert ctypes.string_at(mm.direct(oid), 16) == b"0123456789abcdef"


def test_snapshots_make_stores_part_of_the_transaction(mm: Any) -> None:
    with mm.transaction():
        oid = mm.zalloc(40, 1000)
    with pytest.raises(KeyError), mm.transaction():
        mm.snapshot_range(oid, 13, 3)
        mm.view(oid)[3:16] = b"x" * 13
        mm.snapshot_range(oid[1], 0)
        raise KeyError
    assert bytes(mm.view(oid)) == bytes(40)
    with mm.transaction():
        for size, offset in ((41, 0), (1, 40), (-1, 0), (8, -8)):
            with pytest.raises(ValueError, match="not inside of a block of 40"):
                mm.snapshot_range(oid, size, offset)


def test_otuple(mm: Any) -> None:
    assert mm.otuple([1, 2]) == (1, 2)
    assert type(mm.otuple(memoryview(b"ab"))) is tuple


# Counts -----------------------------------------------------------------------------------------


def test_counting_up_and_down_frees_at_last(mm: Any) -> None:
    oid = mm.persist(LONG)
    assert count_of(mm, oid) == 0
    mm.incref(oid)
    mm.incref(oid)
    mm.decref(oid)
    assert mm.resurrect(oid) == LONG
    mm.xdecref(oid)
    assert not mm.heap.is_block(oid[1])
    with pytest.raises(ValueError, match="freed already"):
        mm.decref(oid)
    with pytest.raises(ValueError, match="freed already"):
        mm.resurrect(oid)


def test_a_count_does_not_go_below_zero(mm: Any) -> None:
    oid = mm.persist(LONG)
    with pytest.raises(StateError, match="no references left"):
        mm.decref(oid)
    assert mm.resurrect(oid) == LONG


def test_immediates_are_not_counted(mm: Any) -> None:
    for value in (None, True, 5, 2.5, "short", b"short"):
        oid = mm.persist(value)
        mm.incref(oid)
        mm.decref(oid)
        mm.decref(oid)
        assert mm.resurrect(oid) == value


def test_nothing_is_no_object(mm: Any) -> None:
    mm.xdecref(OID_NULL)
    for call in (mm.incref, mm.decref, mm.resurrect):
        with pytest.raises(ValueError, match="OID_NULL"):
            call(OID_NULL)
    with mm.transaction():
        block = mm.alloc(16, 1000)
    for call in (mm.incref, mm.decref, mm.resurrect):
        with pytest.raises(ValueError, match="is no object"):
            call(block)
    with mm.transaction():
        mm.free(block)


def test_freeing_a_container_frees_what_only_it_held(mm: Any, pool: Any) -> None:
    shared = mm.new(PersistentList)
    oid = mm.new(PersistentDict, a=shared, b=LONG, c=mm.new(PersistentList, [shared]))._p_oid
    mm.incref(oid)
    mm.identity.recent.clear()
    gc.collect()
    mm.decref(oid)
    assert not mm.heap.is_block(oid[1])
    assert count_of(mm, shared._p_oid) == 0
    assert shared == []
    assert_sound(pool)


def test_freeing_goes_to_any_depth(mm: Any, pool: Any) -> None:
    inner = mm.new(PersistentList, [LONG])
    with mm.transaction():
        for _ in range(10_000):
            inner = mm.new(PersistentList, [inner])
        pool.root["deep"] = inner
    del inner
    del pool.root["deep"]
    pool.root["x"] = 1  # the end of a transaction is when deaths are noticed
    mm.identity.recent.clear()
    gc.collect()
    pool.root["x"] = 2
    assert pool.stats(walk=True).objects == {"PersistentDict": 1}


# Values -----------------------------------------------------------------------------------------


def test_persist_and_resurrect(mm: Any) -> None:
    for value in (None, 1, 1.0, True, LONG, LONG.encode(), 10**30, 2j, frozenset([1])):
        found = mm.resurrect(mm.persist(value))
        assert found == value
        if not isinstance(value, frozenset):
            assert type(found) is type(value)


def test_an_object_is_its_own_oid(mm: Any) -> None:
    thing = mm.new(PersistentList)
    assert mm.persist(thing) == thing._p_oid
    assert mm.resurrect(thing._p_oid) is thing


def test_a_built_in_tuple_becomes_a_persistent_one(mm: Any) -> None:
    found = mm.resurrect(mm.persist((1, (2, LONG))))
    assert type(found) is PersistentTuple
    assert found == (1, (2, LONG))


@pytest.mark.parametrize("value", [[1], {1: 2}, {1}, bytearray(), object(), lambda: 0])
def test_what_cannot_be_persisted_leaves_nothing(mm: Any, value: Any) -> None:
    before = sorted(mm.heap.blocks())
    with pytest.raises(UnsupportedTypeError, match="Don't know how to persist"):
        mm.persist(value)
    with pytest.raises(UnsupportedTypeError):
        mm.persist((LONG, value))
    assert sorted(mm.heap.blocks()) == before


def test_new_wants_a_class_of_the_protocol(mm: Any) -> None:
    for typ in (list, 5, "PersistentList"):
        with pytest.raises(UnsupportedTypeError, match="does not support the Persistent protocol"):
            mm.new(typ)


def test_a_constructor_that_raises_leaves_nothing(mm: Any) -> None:
    before = sorted(mm.heap.blocks())
    with pytest.raises(ValueError, match="invalid value"):
        mm.new(Counter, 1 << 70)
    assert sorted(mm.heap.blocks()) == before


def test_an_object_without_a_pool(mm: Any) -> None:
    with pytest.raises(TypeError, match="in no pool"):
        mm.persist(Counter.__new__(Counter))


# What the collector is told -----------------------------------------------------------------------


def test_what_nobody_took_is_remembered_in_bounds(
    mm: Any, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "_UNOWNED_MAX", 10)
    mm._unowned_max = 10
    oid = mm.persist(LONG)
    for number in range(50):
        other = mm.persist(LONG + str(number))
        mm.incref(other)
        mm.decref(other) if number % 2 else None
        pool.root["x"] = number
    assert oid[1] in mm.unowned
    assert len(mm.unowned) <= 12
    assert pool.gc()[1]["orphans0-gced"] == 1
    assert_nothing_leaked(pool)


def test_rolled_back_suspicion(mm: Any, pool: Any) -> None:
    thing = pool.root["a"] = mm.new(PersistentList)
    assert thing._p_oid[1] not in mm.fresh | mm.suspects
    with pytest.raises(KeyError), mm.transaction():
        new = mm.new(PersistentList)
        assert new._p_oid[1] in mm.fresh
        pool.root["new"] = new
        assert new._p_oid[1] not in mm.fresh
        raise KeyError
    assert not mm.fresh
    with pytest.raises(TransactionError):
        len(new)


def test_a_value_is_read_once(mm: Any, pool: Any) -> None:
    pool.root["a"] = LONG
    assert pool.root["a"] is pool.root["a"]
    for number in range(storing._VALUES_MAX + 10):
        pool.root["b"] = f"{LONG}{number}"
        assert pool.root["b"] == f"{LONG}{number}"
    assert len(mm.values) <= storing._VALUES_MAX
