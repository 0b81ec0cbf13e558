"""Classes are known by name, in the pool, and codes never change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pmshelve.errors import CorruptionError, PickleRefusedError, UnknownTypeError
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObject
from pmshelve.pmemobj.typetable import CODE_MIN, NODE_NAMES, TypeTable, name_of
from tests.support.pools import assert_nothing_leaked, assert_sound
from tests.support.userclasses import Counter, Deallocating, MyDict, MyList, Outsider, Point


@pytest.fixture
def many() -> Iterator[list[Any]]:
    """More classes than two nodes have room for."""
    module = sys.modules[__name__]
    classes = []
    for number in range(2 * NODE_NAMES + 5):
        cls = type(f"Class{number}", (PersistentObject,), {"__module__": __name__})
        setattr(module, cls.__name__, cls)
        classes.append(cls)
    yield classes
    for cls in classes:
        if hasattr(module, cls.__name__):
            delattr(module, cls.__name__)


def test_built_in_classes_have_fixed_codes_and_no_entry(pool: Any) -> None:
    types = pool.mm.types
    codes = {types.code_of(cls) for cls in (PersistentList, PersistentDict, PersistentObject)}
    assert codes == {16, 17, 22}
    assert types.names() == []
    assert types.class_of(16) is PersistentList
    assert types.name(16).endswith(":PersistentList")


def test_other_classes_get_codes_in_order_and_keep_them(
    pool: Any, make: Callable[..., Any]
) -> None:
    pool.root["point"] = pool.new(Point)
    pool.root["list"] = pool.new(MyList)
    pool.root["again"] = pool.new(Point)
    assert pool.mm.types.names() == [name_of(Point), name_of(MyList)]
    pool.close()
    pool = make("w")
    types = pool.mm.types
    assert types.names() == [name_of(Point), name_of(MyList)]
    assert types.class_of(CODE_MIN) is Point
    with pool.transaction():
        assert types.code_of(MyList) == CODE_MIN + 1
        assert types.code_of(Counter) == CODE_MIN + 2


def test_many_classes(pool: Any, make: Callable[..., Any], many: list[Any]) -> None:
    pool.root = pool.new(PersistentList, [pool.new(cls) for cls in many])
    assert len(list(pool.mm.types.nodes())) == 3
    pool.close()
    pool = make("w")
    assert [type(thing) for thing in pool.root] == many
    assert_sound(pool)
    assert_nothing_leaked(pool)


def test_a_rollback_takes_names_back(pool: Any, many: list[Any]) -> None:
    types = pool.mm.types
    with pytest.raises(KeyError), pool.transaction():
        for cls in many:
            pool.new(cls)
        raise KeyError
    assert types.names() == []
    assert list(types.nodes()) == []
    pool.root["a"] = pool.new(many[5])
    assert types.code_of(many[5]) == CODE_MIN
    assert_nothing_leaked(pool)


def test_an_operation_that_fails_takes_its_names_back(pool: Any) -> None:
    with pool.transaction():
        pool.root["point"] = pool.new(Point)
        with pytest.raises(TypeError, match="unexpected"):
            pool.new(Counter, unexpected=1)
    assert pool.mm.types.names() == [name_of(Point)]


def test_names_are_read_without_importing(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.root["point"] = pool.new(Point)
    monkeypatch.setattr(
        "pmshelve.pmemobj.typetable.import_module", lambda name: pytest.fail("imported")
    )
    types = TypeTable(pool.mm.heap)
    assert types.name(CODE_MIN) == "tests.support.userclasses:Point"
    assert types.short_name(CODE_MIN) == "Point"
    assert [types.short_name(code) for code in range(6)] == [
        "raw", "str", "bytes", "int", "complex", "pickle",
    ]  # fmt: skip


def test_importing_can_be_switched_off(pool: Any) -> None:
    pool.root["point"] = pool.new(Point)
    types = TypeTable(pool.mm.heap)
    types.allow_import = False
    with pytest.raises(PickleRefusedError, match="would import its class"):
        types.class_of(CODE_MIN)
    assert types.class_of(16) is PersistentList


def test_a_class_that_is_gone(
    pool: Any, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import userclasses

    pool.root["point"] = pool.new(Point, 1)
    pool.root["rest"] = 5
    pool.close()
    monkeypatch.delattr(userclasses, "Point")
    pool = make("w")
    with pytest.raises(UnknownTypeError, match=r"userclasses:Point .* make it importable"):
        _ = pool.root["point"]
    assert pool.root["rest"] == 5
    monkeypatch.setattr(userclasses, "Point", "no class", raising=False)
    with pytest.raises(UnknownTypeError, match="is no class"):
        _ = pool.root["point"]
    monkeypatch.undo()
    assert pool.root["point"].x == 1


def test_codes_that_nobody_has(pool: Any) -> None:
    for code in (0, 15, 30, 63, 64, 1000):
        with pytest.raises(CorruptionError, match="no class has type code") as caught:
            pool.mm.types.class_of(code)
        assert caught.value.invariant == "T1"


@pytest.mark.parametrize("place", ["function", "renamed", "hidden"])
def test_classes_that_could_not_be_found_again_are_refused(pool: Any, place: str) -> None:
    class Local(PersistentObject):
        pass

    if place != "function":
        Local.__qualname__ = "Point" if place == "renamed" else "Nowhere.Local"
        Local.__module__ = "tests.support.userclasses"
    before = sorted(pool.mm.heap.blocks())
    with pytest.raises(TypeError, match="could not be found again"):
        pool.new(Local)
    assert sorted(pool.mm.heap.blocks()) == before


def test_which_classes_need_an_object_to_be_asked(pool: Any) -> None:
    types = pool.mm.types
    assert types.is_static(PersistentList)
    assert types.is_static(MyList)
    assert types.is_static(Point)
    assert not types.is_static(MyDict)
    assert not types.is_static(Counter)
    assert not types.is_static(Outsider)
    assert not types.is_static(Deallocating)
