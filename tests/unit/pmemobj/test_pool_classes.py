"""Users' own classes in a pool: the `_p_` protocol, `PersistentObject`, subclasses of the collections."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import UnknownTypeError
from pmshelve.pmemobj import (
    OID_NULL,
    Persistent,
    PersistentDict,
    PersistentList,
    PersistentObject,
    PersistentSet,
)
from tests.support.pools import assert_nothing_leaked, assert_sound, block_sizes

Make = Callable[..., Any]

NODE = 77  # type number of the linked list's nodes


class Counter:
    """A number behind the object header.  Supports the protocol without any base class."""

    _p_mm: Any
    _p_oid: Any

    def __init__(self, start: int = 0) -> None:
        self.add(start)

    def _p_new(self, manager: Any) -> None:
        self._p_resurrect(manager, manager.zalloc(16))

    def _p_resurrect(self, manager: Any, oid: Any) -> None:
        self._p_mm, self._p_oid = manager, oid

    def _p_traverse(self) -> list[Any]:
        return []

    def _p_substructures(self) -> list[Any]:
        return []

    @property
    def value(self) -> int:
        mm = self._p_mm
        with mm.lock:
            return int(mm.signed[self._p_oid[1] // 8 + 1])

    def add(self, amount: int) -> None:
        mm = self._p_mm
        with mm.transaction():
            mm.snapshot_range(self._p_oid, 8, 8)
            mm.signed[self._p_oid[1] // 8 + 1] += amount


class Chain(Persistent):
    """A linked list: nodes (next oid, value oid) are its substructures."""

    def __init__(self, values: Any = ()) -> None:
        for value in values:
            self.push(value)

    def _p_new(self, manager: Any) -> None:
        self._p_resurrect(manager, manager.zalloc(24))

    def _p_resurrect(self, manager: Any, oid: Any) -> None:
        self._p_mm, self._p_oid = manager, oid

    def _nodes(self) -> Iterator[int]:
        words = self._p_mm.words
        node = words[self._p_oid[1] // 8 + 1]
        while node:
            yield node
            node = words[node // 8]

    def _p_traverse(self) -> Iterator[Any]:
        words = self._p_mm.words
        for node in self._nodes():
            yield words[node // 8 + 1], words[node // 8 + 2]

    def _p_substructures(self) -> Iterator[Any]:
        for node in self._nodes():
            yield self._p_mm.pool_kind, node

    def push(self, value: Any) -> None:
        mm = self._p_mm
        with mm.transaction():
            oid = mm.persist(value)
            mm.incref(oid)
            _, node = mm.zalloc(24, NODE)
            head = self._p_oid[1] // 8 + 1
            mm.words[node // 8] = mm.words[head]
            mm.words[node // 8 + 1], mm.words[node // 8 + 2] = oid
            mm.snapshot_range(self._p_oid, 8, 8)
            mm.words[head] = node

    def pop(self) -> Any:
        mm = self._p_mm
        with mm.transaction():
            head = self._p_oid[1] // 8 + 1
            node = mm.words[head]
            if not node:
                raise IndexError("pop from an empty Chain")
            oid = mm.words[node // 8 + 1], mm.words[node // 8 + 2]
            value = mm.resurrect(oid)
            mm.snapshot_range(self._p_oid, 8, 8)
            mm.words[head] = mm.words[node // 8]
            mm.free((mm.pool_kind, node))
            mm.xdecref(oid)
            return value

    def __iter__(self) -> Iterator[Any]:
        for oid in self._p_traverse():
            yield self._p_mm.resurrect(oid)


class Careful(Chain):
    """Gives up by itself what it holds."""

    deallocated = 0

    def _p_deallocate(self) -> None:
        type(self).deallocated += 1
        for oid in list(self._p_traverse()):
            self._p_mm.decref(oid)
        for oid in list(self._p_substructures()):
            self._p_mm.free(oid)


class Person(PersistentObject):
    kind = "person"
    calls: list[str] = []  # noqa: RUF012

    def _v__init__(self) -> None:
        Person.calls.append("v")
        self._v_cache: dict[str, Any] = {}

    def __init__(self, name: str, **more: Any) -> None:
        Person.calls.append("init")
        assert self._v_cache == {}
        self.name = name
        for key, value in more.items():
            setattr(self, key, value)

    @property
    def shout(self) -> str:
        return str(self.name).upper()

    def rename(self, name: str) -> None:
        self.name = name


class Child(Person):
    pass


class Stack(PersistentList):
    def push(self, item: Any) -> None:
        self.append(item)


class Counts(PersistentDict):
    def __missing__(self, key: Any) -> Any:
        return 0

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, int(value))


class Tags(PersistentSet):
    def add(self, element: Any) -> None:
        super().add(str(element).lower())


class Slotted(PersistentObject):
    __slots__ = ()


# The protocol -----------------------------------------------------------------------------------


def test_the_abc_knows_who_supports_the_protocol() -> None:
    assert issubclass(Counter, Persistent)
    assert issubclass(Chain, Persistent)
    assert issubclass(PersistentList, Persistent)
    assert not issubclass(list, Persistent)
    assert not issubclass(type("Half", (), {"_p_new": 1, "_p_resurrect": 2}), Persistent)
    with pytest.raises(TypeError, match="abstract"):
        type("Empty", (Persistent,), {})()


def test_a_counter_without_a_base_class(make: Make) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict, {"hits": pool.new(Counter, 5)})
    counter = pool.root["hits"]
    assert type(counter) is Counter
    assert counter is pool.root["hits"]
    counter.add(10)
    assert counter.value == 15
    with pytest.raises(ZeroDivisionError), pool.transaction():
        counter.add(100)
        assert counter.value == 115
        raise ZeroDivisionError
    assert counter.value == 15
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        counter.add(1)
    pool = make()
    assert pool.root["hits"].value == 15
    live, _ = pool.gc()
    assert any(name.endswith("Counter") for name in live)
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("kind", [Chain, Careful])
def test_a_linked_list_with_substructures(make: Make, kind: Any) -> None:
    pool = make()
    inner = pool.new(PersistentList, ["inner " * 5])
    pool.root = pool.new(kind, [1, "two", "three " * 5, inner, (4, 5)])
    chain = pool.root
    assert list(chain) == [(4, 5), ["inner " * 5], "three " * 5, "two", 1]
    assert_sound(pool)
    assert chain.pop() == (4, 5)
    assert chain.pop() is inner
    with pytest.raises(ZeroDivisionError), pool.transaction():
        chain.pop()
        chain.push("x" * 100)
        chain.push(inner)
        raise ZeroDivisionError
    assert list(chain) == ["three " * 5, "two", 1]
    chain.push(inner)
    assert_sound(pool)
    del inner
    pool.close()
    pool = make()
    assert list(pool.root) == [["inner " * 5], "three " * 5, "two", 1]
    assert type(pool.root) is kind
    assert_nothing_leaked(pool)
    while list(pool.root):
        pool.root.pop()
    with pytest.raises(IndexError):
        pool.root.pop()
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("kind", [Chain, Careful])
def test_a_dropped_linked_list_gives_back_all_it_holds(pool: Any, kind: Any) -> None:
    before = sum(block_sizes(pool).values())
    Careful.deallocated = 0
    for _ in range(3):
        pool.root["chain"] = pool.new(kind, ["text " * 9, pool.new(PersistentList, [1])])
        gc.collect()
        del pool.root["chain"]
        gc.collect()
        pool.root["tick"] = 1
        del pool.root["tick"]
    assert Careful.deallocated == (3 if kind is Careful else 0)
    assert_sound(pool)
    assert sum(block_sizes(pool).values()) <= before + 4, "the type table apart"
    assert_nothing_leaked(pool)


def test_a_cycle_through_a_users_class_is_collected(pool: Any) -> None:
    chain = pool.new(Chain)
    chain.push(pool.new(PersistentList, [chain]))
    del chain
    gc.collect()
    pool.gc()
    assert_nothing_leaked(pool)
    assert not any(type_num == NODE for _, type_num in block_sizes(pool))


def test_an_object_of_a_users_class_made_in_an_aborted_transaction(pool: Any) -> None:
    with pytest.raises(ZeroDivisionError), pool.transaction():
        counter = pool.new(Counter, 5)
        chain = pool.new(Chain, [1])
        raise ZeroDivisionError
    for use in (lambda: counter.value, lambda: counter.add(1), lambda: list(chain)):
        with pytest.raises(RuntimeError, match="aborted"):
            use()
    with pytest.raises(RuntimeError, match="aborted"):
        pool.root["c"] = counter
    assert_nothing_leaked(pool)


def test_oids_that_are_null_may_be_traversed(pool: Any) -> None:
    assert OID_NULL == (0, 0)
    pool.root["x"] = pool.new(Nullable)
    assert_nothing_leaked(pool)


class Nullable(Counter):
    def _p_traverse(self) -> list[Any]:
        return [OID_NULL, (1, 0)]

    def _p_substructures(self) -> list[Any]:
        return [OID_NULL]


def test_new_takes_persistent_classes_only(pool: Any) -> None:
    for typ in (list, dict, int, object, 5, None, "PersistentList", PersistentList.append):
        with pytest.raises(TypeError):
            pool.new(typ)
    assert_nothing_leaked(pool)


def test_an_abstract_class_cannot_be_made(pool: Any) -> None:
    with pytest.raises(TypeError):
        pool.new(Persistent)
    assert_nothing_leaked(pool)


def test_a_class_of_a_function_is_refused_at_once(pool: Any) -> None:
    class Local(PersistentObject):
        pass

    class LocalList(PersistentList):
        pass

    for typ in (Local, LocalList):
        with pytest.raises(TypeError, match="function"):
            pool.new(typ)
    renamed = type("Child", (PersistentObject,), {"__module__": __name__})
    with pytest.raises(TypeError, match="Child"):
        pool.new(renamed)
    assert_nothing_leaked(pool)


def test_an_error_in_init_leaves_nothing(pool: Any) -> None:
    pool.gc()
    before = block_sizes(pool)
    with pytest.raises(TypeError):
        pool.new(Person)
    with pytest.raises(TypeError):
        pool.new(Person, "x", bad=[])
    with pytest.raises(ZeroDivisionError):
        pool.new(PersistentList, (1 // n for n in (1, 0)))
    gc.collect()
    pool.gc()
    assert sum(block_sizes(pool).values()) <= sum(before.values()) + 2


# PersistentObject -------------------------------------------------------------------------------


def test_attributes_persist(make: Make) -> None:
    pool = make()
    pool.root = pool.new(Person, "Ann", age=5, friends=pool.new(PersistentList))
    person = pool.root
    person.friends.append(person)
    person.rename("Anna")
    person.age += 1
    pool.close()
    pool = make()
    person = pool.root
    assert type(person) is Person
    assert (person.name, person.age, person.shout) == ("Anna", 6, "ANNA")
    assert person.friends[0] is person
    assert person.kind == "person"
    assert_nothing_leaked(pool)


def test_missing_and_deleted_attributes(pool: Any) -> None:
    person = pool.new(Person, "Ann")
    with pytest.raises(AttributeError, match="age"):
        person.age  # noqa: B018
    with pytest.raises(AttributeError):
        del person.age
    person.age = 5
    assert person.age == 5
    del person.age
    assert not hasattr(person, "age")
    assert getattr(person, "age", "none") == "none"
    person.kind = "mine"
    assert (person.kind, Person.kind) == ("mine", "person")
    del person.kind
    assert person.kind == "person"
    with pytest.raises(AttributeError):
        person.shout = "X"
    with pytest.raises(TypeError, match="Don't know how to persist"):
        person.bad = [1]
    assert not hasattr(person, "bad")
    assert set(vars(person)) >= {"name"} or "name" in dir(person)


def test_v_init_comes_first_and_again_when_resurrected(make: Make) -> None:
    Person.calls.clear()
    pool = make()
    pool.root = pool.new(Person, "Ann")
    assert Person.calls == ["v", "init"]
    pool.root._v_cache["x"] = object()  # volatile: never stored
    pool.close()
    Person.calls.clear()
    pool = make()
    assert pool.root.name == "Ann"
    assert Person.calls == ["v"], "__init__ is not called on resurrection"
    assert pool.root._v_cache == {}
    assert Person.calls == ["v"]


def test_volatile_attributes_are_not_stored(make: Make) -> None:
    pool = make()
    pool.root = pool.new(Child, "Bob")
    pool.root._v_socket = object()
    pool.root._v_list = [1]
    pool.close()
    pool = make()
    assert not hasattr(pool.root, "_v_socket")
    assert pool.root.name == "Bob"


def test_attributes_are_rolled_back(pool: Any) -> None:
    person = pool.root["p"] = pool.new(Person, "Ann")
    person = pool.root["p"]
    with pytest.raises(ZeroDivisionError), pool.transaction():
        person.name = "Bob"
        person.new = "x" * 100
        raise ZeroDivisionError
    assert person.name == "Ann"
    assert not hasattr(person, "new")


def test_many_objects_of_many_classes(make: Make) -> None:
    pool = make()
    with pool.transaction():
        pool.root = pool.new(PersistentList)
        for number in range(300):
            typ = (Person, Child, PersistentObject)[number % 3]
            thing = pool.new(typ, f"n{number}") if number % 3 != 2 else pool.new(typ)
            thing.number = number
            pool.root.append(thing)
    pool.close()
    pool = make()
    assert [thing.number for thing in pool.root] == list(range(300))
    assert [type(thing) for thing in pool.root[:3]] == [Person, Child, PersistentObject]
    live, counts = pool.gc()
    assert counts["containers-live"] >= 301
    assert sum(count for name, count in live.items() if name.endswith("Person")) == 100


def test_objects_may_not_be_mixed_with_other_persistent_types() -> None:
    with pytest.raises(TypeError):
        type("Mixed", (PersistentObject, PersistentList), {"__module__": __name__})


def test_equality_of_objects_is_identity(pool: Any) -> None:
    one, other = pool.new(Person, "A"), pool.new(Person, "A")
    assert one == one  # noqa: PLR0124
    assert one != other
    assert len({one, other, one}) == 2
    items = pool.new(PersistentList, [one, other])
    assert items.index(other) == 1
    keys = pool.new(PersistentDict, {one: 1, other: 2})
    assert (keys[one], keys[other]) == (1, 2)


def test_objects_as_keys_are_found_after_reopening(make: Make) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict)
    for number in range(20):
        pool.root[pool.new(Person, str(number))] = number
    pool.close()
    pool = make()
    for person, number in list(pool.root.items()):
        assert person.name == str(number)
        assert pool.root[person] == number
        del pool.root[person]
    assert pool.root == {}
    assert_nothing_leaked(pool)


# Subclasses of the collections ------------------------------------------------------------------


def test_subclasses_keep_their_class(make: Make) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict)
    pool.root["stack"] = pool.new(Stack, [1])
    pool.root["counts"] = pool.new(Counts, {"a": 5})
    pool.root["tags"] = pool.new(Tags)
    pool.root["stack"].push(2)
    pool.root["counts"]["b"] += 7
    pool.root["tags"].add("LOUD")
    for turn in range(2):
        root = pool.root
        assert [type(root[name]) for name in ("stack", "counts", "tags")] == [Stack, Counts, Tags]
        assert root["stack"] == [1, 2]
        assert root["counts"] == {"a": 5, "b": 7}
        assert root["counts"]["missing"] == 0
        assert root["tags"] == {"loud"}
        assert repr(root["stack"]) == "Stack([1, 2])"
        assert_sound(pool)
        if not turn:
            pool.close()
            pool = make()


def test_a_class_that_is_gone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = make()
    pool.root = pool.new(PersistentDict, {"p": pool.new(Child, "x"), "other": "kept"})
    pool.root["p"].list = pool.new(PersistentList, [1, 2])
    pool.close()
    with monkeypatch.context() as patch:
        patch.delattr(f"{__name__}.Child")
        pool = make()
        assert pool.root["other"] == "kept"
        with pytest.raises(UnknownTypeError, match="Child") as caught:
            pool.root["p"]
        assert isinstance(caught.value, TypeError)
        pool.root["new"] = 1
        pool.close()
    pool = make()
    assert pool.root["p"].name == "x"
    assert pool.root["p"].list == [1, 2]
    assert pool.root["new"] == 1
    assert_nothing_leaked(pool)


# Copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_lives_in_a_pool_is_not_pickled(pool: Any, protocol: int) -> None:
    for thing in (
        pool.root,
        pool.new(PersistentList, [1]),
        pool.new(PersistentSet, [1]),
        pool.new(Person, "x"),
    ):
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(thing, protocol)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps({"nested": [pool.root]}, protocol)


def test_copies(pool: Any) -> None:
    inner = pool.new(PersistentList, [1])
    items = pool.new(PersistentList, [inner, 2])
    shallow = items.copy()
    assert shallow == [[1], 2]
    assert shallow is not items
    assert shallow[0] is inner
    shallow = copy.copy(items)
    assert shallow == [[1], 2]
    assert shallow is not items
    assert shallow[0] is inner


def test_the_pool_itself_is_not_pickled(pool: Any) -> None:
    for thing in (pool, pool.mm, pool.transaction()):
        with pytest.raises(TypeError):
            pickle.dumps(thing)


def test_a_pool_subclass(make: Make, path: Any) -> None:
    class MyPool(pmemobj.PersistentObjectPool):
        pass

    with MyPool(path, "c") as pool:
        pool.root = pool.new(PersistentList, [1])
    with MyPool(path) as pool:
        assert pool.root == [1]
