"""One Python object for one stored one, for as long as it lives, and none for what must not be used."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from pmshelve.errors import ClosedError, StateError, TransactionError
from pmshelve.pmemobj import PersistentDict, PersistentList
from pmshelve.pmemobj.identity import RECENT_MAX, Guard, Identity, refuse
from tests.support.userclasses import Counter


class Thing:
    pass


def test_an_object_is_known_while_it_lives() -> None:
    identity = Identity()
    thing = Thing()
    identity.register(16, thing)
    assert identity.get(16) is thing
    assert identity.get(32) is None
    assert list(identity.living()) == [(16, thing)]
    identity.recent.clear()
    del thing
    gc.collect()
    assert identity.get(16) is None
    assert list(identity.living()) == []
    assert [reference.offset for reference in identity.dead] == [16]


def test_the_ones_used_last_are_kept() -> None:
    identity = Identity()
    for number in range(3 * RECENT_MAX):
        identity.register(16 * number, Thing())
    gc.collect()
    living = [offset // 16 for offset, _ in identity.living()]
    assert RECENT_MAX // 2 <= len(living) <= RECENT_MAX
    assert living[-1] == 3 * RECENT_MAX - 1


def test_held_means_by_somebody_else() -> None:
    identity = Identity()
    identity.register(16, Thing())
    gc.collect()
    assert identity.get(16) is not None
    assert not identity.is_held(16)
    thing = Thing()
    identity.register(32, thing)
    assert identity.is_held(32)
    assert not identity.is_held(48)


def test_what_is_forgotten_is_returned() -> None:
    identity = Identity()
    thing = Thing()
    identity.register(16, thing)
    assert identity.forget(16) is thing
    assert identity.forget(16) is None
    assert identity.get(16) is None


def test_a_guard_refuses_everything() -> None:
    guard = Guard(lambda: ClosedError("closed"))
    with pytest.raises(ClosedError), guard:
        pass
    with pytest.raises(ClosedError):
        _ = guard.words
    with pytest.raises(AttributeError):
        _ = guard.__fspath__


def test_refusing_a_users_object_takes_its_manager() -> None:
    thing = Thing()
    refuse(thing, lambda: StateError("no more"))
    with pytest.raises(StateError, match="no more"):
        thing._p_mm.lock.acquire()  # type: ignore[attr-defined]


# In a pool --------------------------------------------------------------------------------------


def test_the_same_object_each_time(pool: Any) -> None:
    pool.root["a"] = pool.new(PersistentList)
    pool.root["b"] = pool.root["a"]
    assert pool.root["a"] is pool.root["a"] is pool.root["b"]
    assert pool.root is pool.root
    assert pool.mm.resurrect(pool.root["a"]._p_oid) is pool.root["a"]


def test_it_is_freed_with_its_last_python_object(pool: Any) -> None:
    mine = pool.new(PersistentList, [pool.new(PersistentDict)])
    offsets = [mine._p_oid[1], mine[0]._p_oid[1]]
    pool.root["x"] = 1
    assert all(map(pool.mm.heap.is_block, offsets))
    pool.mm.identity.recent.clear()
    del mine
    gc.collect()
    pool.root["x"] = 2  # deaths are noticed when a transaction ends
    assert not any(map(pool.mm.heap.is_block, offsets))


def test_a_popped_object_lives_on(pool: Any) -> None:
    pool.root["a"] = pool.new(PersistentList, [1])
    mine = pool.root.pop("a")
    mine.append(2)
    assert mine == [1, 2]
    pool.root["b"] = mine
    assert pool.root["b"] is mine
    assert pool.mm.words[mine._p_oid[1] // 8] & 0xFF == 1


def test_an_aborted_transactions_objects_refuse(pool: Any) -> None:
    made: list[Any] = []
    kept = pool.root["kept"] = pool.new(PersistentList, [1])
    with pytest.raises(KeyError), pool.transaction():
        made += [pool.new(PersistentList, [1]), pool.new(Counter)]
        kept.append(2)
        raise KeyError
    for use in (lambda: len(made[0]), lambda: made[0].append(1), lambda: made[1].value):
        with pytest.raises(TransactionError, match="was aborted"):
            use()
    with pytest.raises(TransactionError, match="was aborted"):
        pool.root["again"] = made[0]
    assert kept == [1]
    assert pool.root["kept"] is kept


def test_objects_of_an_operation_that_failed_refuse(pool: Any) -> None:
    made = []

    class Source:
        def __iter__(self) -> Any:
            made.append(pool.new(PersistentList))
            yield made[0]
            raise KeyError

    with pool.transaction():
        before = pool.new(PersistentList)
        with pytest.raises(KeyError):
            with pool.mm.operation:
                list(Source())
        before.append(1)
        pool.root["before"] = before
    assert pool.root["before"] == [1]
    with pytest.raises(TransactionError, match="was aborted"):
        len(made[0])


def test_a_closed_pools_objects_refuse(pool: Any) -> None:
    things = [pool.root, pool.new(PersistentList), pool.new(Counter)]
    pool.close()
    for thing in things[:2]:
        with pytest.raises(ClosedError, match="the pool was closed"):
            len(thing)
    with pytest.raises(ClosedError):
        things[2].add()


def test_what_mm_free_took_refuses(pool: Any) -> None:
    mine = pool.new(PersistentList)
    with pool.transaction():
        pool.mm.free(mine._p_oid)
    with pytest.raises(StateError, match="the object was freed"):
        mine.append(1)
