"""Users' own classes on the Persistent protocol, and that the documentation shows them as they are."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmshelve.errors import ClosedError, StateError, TransactionError, UnsupportedTypeError
from pmshelve.pmemobj import OID_NULL, Persistent, PersistentDict, PersistentList
from tests.support import userclasses
from tests.support.pools import assert_nothing_leaked, assert_sound
from tests.support.userclasses import Counter, Deallocating, LinkedList, Outsider, Point

ROOT = Path(__file__).resolve().parents[3]
LONG = "a string that is too long to stand in an oid"


# The documentation ------------------------------------------------------------------------------


def blocks() -> list[str]:
    text = (ROOT / "docs" / "pmemobj-classes.md").read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_documentation_shows_the_classes_that_are_tested_here() -> None:
    source = Path(userclasses.__file__).read_text()
    _, counter, linked_list, _ = blocks()
    assert counter in source
    assert linked_list in source


# The counter --------------------------------------------------------------------------------------


def test_a_counter_counts_and_lasts(pool: Any, make: Callable[..., Any]) -> None:
    counter = pool.root["counter"] = pool.new(Counter, 40)
    counter.add()
    counter.add(-50)
    assert counter.value == -9
    assert pool.root["counter"] is counter
    pool.close()
    again = make("w")
    assert again.root["counter"].value == -9
    assert isinstance(again.root["counter"], Counter)


def test_a_counter_is_rolled_back(pool: Any) -> None:
    counter = pool.root["counter"] = pool.new(Counter, 5)
    with pytest.raises(KeyError), pool.transaction():
        counter.add(10)
        assert counter.value == 15
        raise KeyError
    assert counter.value == 5


def test_a_number_that_does_not_fit_undoes_only_its_own_operation(pool: Any) -> None:
    counter = pool.root["counter"] = pool.new(Counter, (1 << 63) - 2)
    with pool.transaction():
        counter.add()
        with pytest.raises(ValueError, match="invalid value"):
            counter.add()
        pool.root["after"] = True
    assert counter.value == (1 << 63) - 1
    assert pool.root["after"] is True


def test_a_closed_pool_refuses(pool: Any) -> None:
    counter = pool.root["counter"] = pool.new(Counter)
    pool.close()
    with pytest.raises(ClosedError):
        counter.add()
    with pytest.raises(ClosedError):
        _ = counter.value


def test_an_object_of_an_aborted_transaction_refuses(pool: Any) -> None:
    made = []
    with pytest.raises(KeyError), pool.transaction():
        made.append(pool.new(Counter))
        made.append(pool.new(LinkedList, [1]))
        raise KeyError
    with pytest.raises(TransactionError, match="aborted"):
        made[0].add()
    with pytest.raises(TransactionError, match="aborted"):
        len(made[1])
    assert_nothing_leaked(pool)


def test_a_store_without_a_transaction_is_refused(pool: Any) -> None:
    counter = pool.new(Counter)
    with pytest.raises(TransactionError, match="snapshot_range called outside of transaction"):
        pool.mm.snapshot_range(counter._p_oid, 8, offset=8)
    with pool.transaction(), pytest.raises(ValueError, match="not inside of a block of 16"):
        pool.mm.snapshot_range(counter._p_oid, 8, offset=16)


# The linked list ----------------------------------------------------------------------------------


def test_a_linked_list_holds_values_of_every_kind(pool: Any, make: Callable[..., Any]) -> None:
    values = [1, "short", LONG, None, 2.5, 10**30]
    queue = pool.root["queue"] = pool.new(LinkedList, values)
    queue.append(pool.new(PersistentList, [1, 2]))
    assert list(queue) == [*values, [1, 2]]
    assert_sound(pool)
    pool.close()
    pool = make("w")
    queue = pool.root["queue"]
    assert len(queue) == 7
    assert [queue.popleft() for _ in range(7)] == [*values, [1, 2]]
    assert len(queue) == 0
    with pytest.raises(IndexError, match="pop from an empty list"):
        queue.popleft()
    queue.append("again")
    assert list(queue) == ["again"]
    assert_nothing_leaked(pool)


def test_what_was_popped_lives_as_long_as_its_python_object(pool: Any) -> None:
    queue = pool.root["queue"] = pool.new(LinkedList, [pool.new(PersistentList, [LONG])])
    inner = queue.popleft()
    assert inner == [LONG]
    offset = inner._p_oid[1]
    del inner
    pool.mm.identity.recent.clear()
    gc.collect()
    pool.root["another"] = 1  # the end of a transaction is when deaths are noticed
    assert not pool.mm.heap.is_block(offset)


def test_an_error_in_the_middle_of_a_transaction_is_undone_by_itself(pool: Any) -> None:
    queue = pool.root["queue"] = pool.new(LinkedList)
    with pool.transaction():
        queue.append(LONG)
        with pytest.raises(UnsupportedTypeError):
            queue.append([1, 2])
        queue.append(2)
    assert list(queue) == [LONG, 2]
    assert_nothing_leaked(pool)


def test_dropping_a_linked_list_frees_nodes_and_values(pool: Any) -> None:
    shared = pool.root["shared"] = pool.new(PersistentDict)
    before = len(list(pool.mm.heap.blocks()))
    pool.root["queue"] = pool.new(LinkedList, [LONG, shared, pool.new(LinkedList, [LONG])])
    del pool.root["queue"]
    pool.mm.identity.recent.clear()
    gc.collect()
    pool.root["x"] = 1
    del pool.root["x"]
    # The type table has a node and a name more.
    assert len(list(pool.mm.heap.blocks())) == before + 2
    assert_sound(pool)


def test_a_class_may_free_what_it_holds_by_itself(pool: Any) -> None:
    shared = pool.root["shared"] = pool.new(PersistentDict)
    Deallocating.calls.clear()
    pool.root["queue"] = pool.new(Deallocating, [LONG, shared])
    del pool.root["queue"]
    pool.mm.identity.recent.clear()
    gc.collect()
    pool.root["x"] = 1
    assert Deallocating.calls == ["deallocated"]
    assert_nothing_leaked(pool)


# The protocol -------------------------------------------------------------------------------------


def test_the_abstract_class_is_a_convenience(pool: Any, make: Callable[..., Any]) -> None:
    assert issubclass(Outsider, Persistent)
    assert not issubclass(int, Persistent)
    assert not issubclass(Outsider, Counter)
    pool.root["it"] = pool.new(Outsider)
    assert pool.root["it"]._p_oid != OID_NULL
    pool.close()
    assert isinstance(make("w").root["it"], Outsider)


def test_a_class_that_does_not_follow_the_protocol_is_refused(pool: Any) -> None:
    with pytest.raises(TypeError, match="does not support the Persistent protocol"):
        pool.new(int)
    with pytest.raises(TypeError, match="does not support the Persistent protocol"):
        pool.new("Counter")


def test_a_class_defined_in_a_function_is_refused_at_once(pool: Any) -> None:
    class Local(Counter):
        pass

    before = sorted(pool.mm.heap.blocks())
    with pytest.raises(TypeError, match="defined in a function"):
        pool.new(Local)
    assert sorted(pool.mm.heap.blocks()) == before


def test_an_object_cannot_be_put_into_another_pool(
    pool: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from pmshelve import pmemobj

    with pmemobj.create(tmp_path_factory.mktemp("other") / "b.pool") as other:
        with pytest.raises(StateError, match="in another pool"):
            other.root = pool.new(Counter)
        assert other.root is None


def test_volatile_state_is_renewed_when_an_object_is_met_again(
    pool: Any, make: Callable[..., Any]
) -> None:
    pool.root["point"] = pool.new(Point, 1, LONG)
    pool.root["point"]._v_cache = 5
    pool.close()
    again = make("w").root["point"]
    assert (again.x, again.y) == (1, LONG)
    assert not hasattr(again, "_v_cache")
