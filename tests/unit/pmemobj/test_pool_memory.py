"""`MemoryManager`: every method of the reference, with its errors, inside and outside of transactions."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import PmshelveError
from pmshelve.pmemobj import (
    OID_NULL,
    POBJECT_TYPE_NUM,
    MemoryManager,
    PersistentDict,
    PersistentList,
)
from tests.support.pools import assert_nothing_leaked, assert_sound, block_sizes

Make = Callable[..., Any]

OTHER = 1234  # a type number that is nobody's


def read(pool: Any, oid: Any) -> bytes:
    with pool.mm.view(oid) as view:
        return bytes(view)


@pytest.fixture
def mm(pool: Any) -> Any:
    return pool.mm


# Constants, transactions ------------------------------------------------------------------------


def test_constants_are_those_of_the_reference() -> None:
    assert OID_NULL == (0, 0)
    assert isinstance(POBJECT_TYPE_NUM, int)


def test_the_manager_is_the_pools(pool: Any) -> None:
    assert isinstance(pool.mm, MemoryManager)
    assert pool.root._p_mm is pool.mm


def test_new_and_transaction_are_the_pools(pool: Any, mm: Any) -> None:
    with mm.transaction():
        pool.root["a"] = mm.new(PersistentList, [1, 2])
    assert pool.root == {"a": [1, 2]}
    with pytest.raises(ZeroDivisionError), mm.transaction():
        pool.root["b"] = 1
        raise ZeroDivisionError
    assert pool.root == {"a": [1, 2]}


def test_otuple_copies_any_pair(mm: Any) -> None:
    assert mm.otuple((3, 5)) == (3, 5)
    found = mm.otuple([3, 5])
    assert type(found) is tuple
    assert found == (3, 5)
    words = memoryview(bytearray(16)).cast("Q")
    words[0], words[1] = 7, 9
    found = mm.otuple(words)
    words[0] = 8
    assert found == (7, 9)


# Blocks -----------------------------------------------------------------------------------------


def test_blocks_are_allocated_in_transactions_only(mm: Any) -> None:
    with mm.transaction():
        oid = mm.zalloc(100, OTHER)
    for attempt in (
        lambda: mm.alloc(10),
        lambda: mm.alloc(10, type_num=OTHER),
        lambda: mm.zalloc(10),
        lambda: mm.realloc(oid, 200),
        lambda: mm.zrealloc(oid, 200),
        lambda: mm.free(oid),
        lambda: mm.snapshot_range(oid, 8),
    ):
        with pytest.raises(RuntimeError, match="outside of transaction"):
            attempt()
    with mm.transaction():
        mm.free(oid)


def test_alloc_gives_an_oid_in_tuple_form(mm: Any) -> None:
    with mm.transaction():
        for size in (0, 1, 7, 8, 16, 100, 4000, 5000, 100_000, 3_000_000):
            oid = mm.alloc(size, OTHER)
            assert type(oid) is tuple
            assert len(oid) == 2
            assert oid[0] == mm.pool_kind
            assert all(type(word) is int for word in oid)
            with mm.view(oid) as view:
                assert len(view) == size
            mm.free(oid)


def test_zalloc_gives_zeros_where_something_was_before(pool: Any, mm: Any) -> None:
    for size in (8, 64, 1000, 10_000, 200_000):
        with mm.transaction():
            oid = mm.alloc(size, OTHER)
            mm.snapshot_range(oid, size)
            with mm.view(oid) as view:
                view[:] = b"\xff" * size
        with mm.transaction():
            mm.free(oid)
            again = mm.zalloc(size, OTHER)
            assert read(pool, again) == bytes(size)
            mm.free(again)
    assert_nothing_leaked(pool)


def test_blocks_do_not_overlap_and_keep_their_bytes(make: Make) -> None:
    pool = make()
    mm = pool.mm
    oids = []
    with mm.transaction():
        for number in range(300):
            size = number * 37 % 2000 + 1
            oid = mm.alloc(size, OTHER)
            with mm.view(oid) as view:
                view[:] = bytes([number % 251]) * size
            oids.append((oid, bytes([number % 251]) * size))
    assert all(read(pool, oid) == content for oid, content in oids)
    with mm.transaction():
        for oid, _ in oids[::2]:
            mm.free(oid)
    assert all(read(pool, oid) == content for oid, content in oids[1::2])
    pool.gc()
    assert all(read(pool, oid) == content for oid, content in oids[1::2]), "gc is about objects"
    with mm.transaction():
        for oid, _ in oids[1::2]:
            mm.free(oid)
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("name", ["realloc", "zrealloc"])
def test_realloc_copies_cuts_and_fills(pool: Any, mm: Any, name: str) -> None:
    resize = getattr(mm, name)
    with mm.transaction():
        oid = mm.alloc(50, OTHER)
        with mm.view(oid) as view:
            view[:] = bytes(range(50))
        content = bytes(range(50))
        for size in (60, 500, 40, 9_000, 100_000, 9_001, 16, 10, 700_000, 1):
            oid = resize(oid, size)
            assert type(oid) is tuple
            content = content[:size].ljust(size, b"\0")
            assert read(pool, oid) == content
            assert mm.heap.type_num_of(oid[1]) == OTHER
        mm.free(oid)
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("name", ["realloc", "zrealloc"])
def test_realloc_insists_on_the_type_number(pool: Any, mm: Any, name: str) -> None:
    resize = getattr(mm, name)
    with mm.transaction():
        oid = mm.zalloc(50, OTHER)
        assert read(pool, resize(oid, 50, OTHER)) == bytes(50)
    before = block_sizes(pool)
    with pytest.raises((ValueError, TypeError), match="type"), mm.transaction():
        resize(oid, 5000, OTHER + 1)
    assert block_sizes(pool) == before
    with mm.transaction():
        oid = resize(oid, 60, type_num=None)
        mm.free(oid)


def test_free_twice_and_free_of_garbage_are_errors_and_no_damage(pool: Any, mm: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, range(1000))
    with mm.transaction():
        oid = mm.alloc(100, OTHER)
        large = mm.alloc(100_000, OTHER)
    with mm.transaction():
        mm.free(oid)
        mm.free(large)
    kind, offset = oid
    wrong = [
        oid,
        large,
        (kind, offset + 8),
        (kind, offset + 1),
        (kind, 0),
        (kind, 8),
        (kind, 4096),
        (kind, mm.heap.start),
        (kind, mm.heap.start + 16),
        (kind, 1 << 40),
        (kind, (1 << 64) - 8),
        (kind, (1 << 63)),
        (kind ^ (1 << 20), offset),
        (1, 0),
        OID_NULL,
    ]
    inner = pool.root["list"]._p_oid
    wrong += [(kind, inner[1] + delta) for delta in (-8, 8, 16, 24, -1)]
    for name in ("free", "realloc", "zrealloc"):
        for garbage in wrong:
            with mm.transaction(), pytest.raises((ValueError, PmshelveError)):
                if name == "free":
                    mm.free(garbage)
                else:
                    getattr(mm, name)(garbage, 50)
            assert list(pool.root["list"]) == list(range(1000))
    for name in ("direct", "view", "snapshot_range", "incref", "decref", "resurrect"):
        arguments = (8,) if name == "snapshot_range" else ()
        for garbage in wrong:
            if garbage == (1, 0) and name in ("incref", "decref", "resurrect"):
                continue  # an immediate: None
            with mm.transaction(), pytest.raises((ValueError, PmshelveError)):
                getattr(mm, name)(garbage, *arguments)
    assert_sound(pool)
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("size", [-1, 1 << 41, 1 << 63, "5", 1.5, None])
def test_sizes_that_cannot_be(pool: Any, mm: Any, size: Any) -> None:
    with mm.transaction():
        oid = mm.alloc(10, OTHER)
        for call in (
            lambda: mm.alloc(size),
            lambda: mm.zalloc(size),
            lambda: mm.realloc(oid, size),
            lambda: mm.zrealloc(oid, size),
        ):
            with pytest.raises((ValueError, TypeError, OverflowError, MemoryError, OSError)):
                call()
        mm.free(oid)
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("type_num", [-1, 1 << 24, "x", 1.5])
def test_type_numbers_that_cannot_be(pool: Any, mm: Any, type_num: Any) -> None:
    with mm.transaction():
        for call in (mm.alloc, mm.zalloc):
            with pytest.raises((ValueError, TypeError, OverflowError)):
                call(10, type_num)
    assert_nothing_leaked(pool)


def test_what_is_allocated_in_an_aborted_transaction_is_free_again(pool: Any, mm: Any) -> None:
    with mm.transaction():
        kept = mm.zalloc(1000, OTHER)
    before = block_sizes(pool)
    with pytest.raises(ZeroDivisionError), mm.transaction():
        for size in (10, 100, 1000, 100_000, 10_000_000):
            mm.alloc(size, OTHER)
        mm.realloc(kept, 50_000)
        raise ZeroDivisionError
    assert block_sizes(pool) == before
    with pytest.raises(ZeroDivisionError), mm.transaction():
        mm.free(kept)
        raise ZeroDivisionError
    assert read(pool, kept) == bytes(1000)
    with mm.transaction():
        mm.free(kept)


# Addresses, views, snapshots --------------------------------------------------------------------


def test_direct_is_the_real_address(pool: Any, mm: Any) -> None:
    with mm.transaction():
        oid = mm.zalloc(64, OTHER)
        with mm.view(oid) as view:
            view[:] = bytes(range(64))
    address = mm.direct(oid)
    assert type(address) is int
    assert ctypes.string_at(address, 64) == bytes(range(64))
    with mm.transaction():
        mm.snapshot_range(oid, 64)
        ctypes.memset(address, 0x41, 8)
    assert read(pool, oid) == b"A" * 8 + bytes(range(8, 64))
    with mm.transaction():
        mm.free(oid)


def test_view_is_writable_in_a_transaction_and_survives_it(make: Make) -> None:
    pool = make()
    with pool.transaction():
        oid = pool.mm.zalloc(100, OTHER)
        with pool.mm.view(oid) as view:
            assert not view.readonly
            view[:5] = b"first"
    with pool.transaction():
        pool.mm.snapshot_range(oid, 5, 10)
        with pool.mm.view(oid) as view:
            view[10:15] = b"later"
    expected = b"first".ljust(10, b"\0") + b"later"
    assert read(pool, oid)[:15] == expected
    with pytest.raises(ZeroDivisionError), pool.transaction():
        pool.mm.snapshot_range(oid, 100)
        with pool.mm.view(oid) as view:
            view[:] = b"z" * 100
        raise ZeroDivisionError
    assert read(pool, oid)[:15] == expected
    with pool.transaction():
        pool.mm.free(oid)


def test_snapshot_range_knows_the_blocks_bounds(pool: Any, mm: Any) -> None:
    with mm.transaction():
        oid = mm.zalloc(100, OTHER)
        for size, offset in ((101, 0), (1, 100), (50, 51), (-1, 0), (8, -8), (1 << 70, 0)):
            with pytest.raises((ValueError, OverflowError)):
                mm.snapshot_range(oid, size, offset)
        mm.snapshot_range(oid, 100)
        mm.snapshot_range(oid, 0)
        mm.snapshot_range(oid, 1, 99)
        mm.snapshot_range(oid, 3, 13)
        mm.free(oid)
    assert_sound(pool)


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (3, 2), (7, 2), (15, 1), (96, 4), (0, 100)])
def test_unaligned_snapshots_are_rolled_back(pool: Any, mm: Any, offset: int, size: int) -> None:
    with mm.transaction():
        oid = mm.zalloc(100, OTHER)
        with mm.view(oid) as view:
            view[:] = bytes(range(100))
    with pytest.raises(ZeroDivisionError), mm.transaction():
        mm.snapshot_range(oid, size, offset)
        with mm.view(oid) as view:
            view[offset : offset + size] = b"\xee" * size
        raise ZeroDivisionError
    assert read(pool, oid) == bytes(range(100))
    with mm.transaction():
        mm.free(oid)


# Reference counts -------------------------------------------------------------------------------


def count(pool: Any, oid: Any) -> int:
    return int(pool.mm.words[oid[1] >> 3] & ((1 << 40) - 1))


def test_incref_and_decref_count(pool: Any, mm: Any) -> None:
    thing = pool.new(PersistentList, [1])
    oid = thing._p_oid
    pool.root["a"] = thing
    assert count(pool, oid) == 1
    mm.incref(oid)
    assert count(pool, oid) == 2
    mm.decref(oid)
    assert count(pool, oid) == 1
    mm.incref(oid)
    mm.xdecref(oid)
    assert count(pool, oid) == 1
    with pytest.raises(ZeroDivisionError), mm.transaction():
        mm.incref(oid)
        mm.incref(oid)
        raise ZeroDivisionError
    assert count(pool, oid) == 1


def test_decref_to_zero_frees_it_and_what_it_alone_held(pool: Any, mm: Any) -> None:
    pool.root["x"] = 1
    del pool.root["x"]
    pool.gc()
    before = block_sizes(pool)
    oid = mm.persist("a text of more than fourteen bytes")
    mm.incref(oid)
    mm.decref(oid)
    assert block_sizes(pool) == before
    thing = pool.new(PersistentList, [pool.new(PersistentDict, {"x": "text " * 9})])
    oid = thing._p_oid
    mm.incref(oid)
    del thing
    gc.collect()
    with pool.transaction():
        pass
    assert block_sizes(pool) != before
    pool.mm.identity.recent.clear()
    mm.decref(oid)
    gc.collect()
    pool.root["x"] = 1
    del pool.root["x"]
    assert_nothing_leaked(pool)
    assert block_sizes(pool) == before


def test_decref_without_a_reference_is_an_error(pool: Any, mm: Any) -> None:
    oid = mm.persist("a text of more than fourteen bytes")
    with pytest.raises((ValueError, PmshelveError), match="reference"):
        mm.decref(oid)
    with pytest.raises((ValueError, PmshelveError), match="reference"):
        mm.xdecref(oid)
    assert mm.resurrect(oid) == "a text of more than fourteen bytes"


def test_counting_null_and_immediates(pool: Any, mm: Any) -> None:
    mm.xdecref(OID_NULL)
    for call in (mm.incref, mm.decref, mm.resurrect):
        with pytest.raises((ValueError, PmshelveError), match="OID_NULL"):
            call(OID_NULL)
    for value in (None, True, 5, 2.5, "short", b"short"):
        oid = mm.persist(value)
        mm.incref(oid)
        mm.decref(oid)
        mm.decref(oid)
        mm.xdecref(oid)
        assert mm.resurrect(oid) == value


def test_counting_what_is_no_object_is_an_error(pool: Any, mm: Any) -> None:
    with mm.transaction():
        oid = mm.zalloc(64, OTHER)
        for call in (mm.incref, mm.decref, mm.xdecref, mm.resurrect):
            with pytest.raises((ValueError, PmshelveError)):
                call(oid)
        assert read(pool, oid) == bytes(64)
        mm.free(oid)


# Persist, resurrect -----------------------------------------------------------------------------


def test_persist_and_resurrect_are_inverse(pool: Any, mm: Any) -> None:
    for value in (None, True, 7, -(2**70), 0.5, "", "x" * 100, b"", b"y" * 100, (1, (2,)), 1j):
        oid = mm.persist(value)
        assert type(oid) is tuple
        found = mm.resurrect(oid)
        assert found == value
        if not isinstance(value, tuple):
            assert type(found) is type(value)
    thing = pool.new(PersistentList, [1])
    assert mm.persist(thing) == thing._p_oid
    assert mm.resurrect(thing._p_oid) is thing


def test_resurrect_takes_any_pair(pool: Any, mm: Any) -> None:
    thing = pool.new(PersistentList, [1])
    assert mm.resurrect(list(thing._p_oid)) is thing


@pytest.mark.parametrize("kind", [6 + 1, 0x20, 0xFE, 0x99 | 5 << 8, 5 | 200 << 8, 1 << 63])
def test_oids_that_cannot_be(mm: Any, kind: int) -> None:
    with pytest.raises((ValueError, PmshelveError)):
        mm.resurrect((kind, 5))


def test_an_object_of_another_pool(pool: Any, mm: Any, tmp_path: Any) -> None:
    with pmemobj.create(tmp_path / "other") as other:
        foreign = other.new(PersistentList, [1])
        with pytest.raises(ValueError, match="another pool"):
            mm.persist(foreign)
        with pytest.raises(ValueError, match="pool"):
            mm.resurrect(foreign._p_oid)
        for call in (mm.incref, mm.decref, mm.xdecref, mm.direct):
            with pytest.raises(ValueError, match="pool"):
                call(foreign._p_oid)
        assert foreign == [1]
        assert pool.root == {}


def test_every_method_is_part_of_the_transaction_around_it(pool: Any, mm: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1])
    oid = pool.root["list"]._p_oid
    before = block_sizes(pool)
    with pytest.raises(ZeroDivisionError), mm.transaction():
        mm.persist("some text of more than fourteen")
        mm.new(PersistentDict, {1: "some text of more than fourteen"})
        mm.incref(oid)
        block = mm.zalloc(500, OTHER)
        block = mm.realloc(block, 5000)
        raise ZeroDivisionError
    gc.collect()
    assert block_sizes(pool) == before
    assert count(pool, oid) == 1
    assert_nothing_leaked(pool)
