"""mmapdict as a mapping: what `dict` does, a file does."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import ItemsView, Iterator, KeysView, MutableMapping, Set, ValuesView
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import UnsupportedTypeError
from pmshelve.mmapdict import mmapdict
from tests.support.stores import assert_content, assert_sound
from tests.support.values import AWKWARD_KEYS, all_values, assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def store(path: Path) -> Iterator[mmapdict]:
    with mmapdict(path) as store:
        yield store
        assert store.closed or list(store.check()) == []


def test_is_a_mutable_mapping(store: mmapdict) -> None:
    assert isinstance(store, MutableMapping)


def test_new_store_is_empty_and_false(store: mmapdict) -> None:
    assert not store
    assert_sound(store, {})


def test_set_get_contains_delete(store: mmapdict) -> None:
    store["a"] = 1
    assert store["a"] == 1
    assert "a" in store
    assert "b" not in store
    del store["a"]
    assert "a" not in store
    assert_sound(store, {})


def test_file_order_is_the_order_of_the_last_set(store: mmapdict) -> None:
    for key in "abc":
        store[key] = key
    store["a"] = "A"
    assert_sound(store, {"b": "b", "c": "c", "a": "A"})


@pytest.mark.parametrize("key", ["missing", "", "\ud800", "k" * 300])
def test_missing_key_is_key_error_with_the_key(store: mmapdict, key: str) -> None:
    for call in (store.__getitem__, store.__delitem__, store.pop):
        with pytest.raises(KeyError) as caught:
            call(key)
        assert type(caught.value) is KeyError
        assert caught.value.args == (key,)


def test_get_with_default(store: mmapdict) -> None:
    store["none"] = None
    assert store.get("none", 1) is None
    assert store.get("missing") is None
    assert store.get("missing", 5) == 5


def test_pop(store: mmapdict) -> None:
    store.update(a=1, b=2)
    assert store.pop("a") == 1
    assert store.pop("a", None) is None
    assert store.pop("a", "default") == "default"
    assert_sound(store, {"b": 2})


def test_popped_array_keeps_its_content(store: mmapdict) -> None:
    store["a"] = np.arange(1000)
    popped = store.pop("a")
    store["b"] = np.zeros(1000)
    store.vacuum()
    assert_same(np.asarray(popped), np.arange(1000))


def test_popitem_empties_the_store(store: mmapdict) -> None:
    content = {"a": 1, "b": [2], "c": "3"}
    store.update(content)
    popped = dict(store.popitem() for _ in range(3))
    assert popped == content
    with pytest.raises(KeyError):
        store.popitem()
    assert_sound(store, {})


def test_setdefault(store: mmapdict) -> None:
    assert store.setdefault("a", 1) == 1
    before = store.commit_number
    assert store.setdefault("a", 2) == 1
    assert store.commit_number == before
    assert store.setdefault("b") is None
    assert_sound(store, {"a": 1, "b": None})


def test_setdefault_returns_what_the_store_holds(store: mmapdict) -> None:
    given = [1]
    kept = store.setdefault("a", given)
    given.append(2)
    assert store["a"] == [1]
    assert kept in ([1], [1, 2])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (({"a": 1, "b": 2},), {}),
        (([("a", 1), ("b", 2)],), {}),
        ((iter([("a", 1), ("b", 2)]),), {}),
        (({"a": 1},), {"b": 2}),
        ((), {"a": 1, "b": 2}),
    ],
)
def test_update_takes_what_dict_takes(
    store: mmapdict, arguments: tuple[Any, ...], names: dict[str, int]
) -> None:
    store.update(*arguments, **names)
    assert_sound(store, {"a": 1, "b": 2})


def test_update_takes_keys_named_as_its_parameters(store: mmapdict) -> None:
    store.update(self=1, other=2, key=3)
    assert dict(store) == {"self": 1, "other": 2, "key": 3}


def test_update_from_another_store(store: mmapdict, tmp_path: Path) -> None:
    with mmapdict(tmp_path / "other") as other:
        other["array"] = np.arange(10)
        other["text"] = "t"
        store.update(other)
    assert_sound(store, {"array": np.arange(10), "text": "t"})


def test_update_may_read_the_store_it_changes(store: mmapdict) -> None:
    store.update(a=1, b=2)
    store.update((key, store[key] + 10) for key in list(store))
    assert_sound(store, {"a": 11, "b": 12})


@pytest.mark.parametrize("bad", [[1], [("a",)], [("a", 1, 2)], 5])
def test_update_with_nonsense_changes_nothing(store: mmapdict, bad: Any) -> None:
    store["kept"] = 1
    with pytest.raises((TypeError, ValueError)):
        store.update(bad)
    assert_sound(store, {"kept": 1})


def test_clear(store: mmapdict) -> None:
    store.update({str(i): i for i in range(100)})
    before = store.commit_number
    store.clear()
    assert store.commit_number != before
    assert_sound(store, {})
    store["again"] = 1
    assert_sound(store, {"again": 1})


def test_equality_is_that_of_mappings(store: mmapdict) -> None:
    store.update(a=1, b=[2])
    assert store == {"b": [2], "a": 1}
    assert store != {"a": 1}
    assert {"b": [2], "a": 1} == store  # noqa: SIM300 (the other side of `==`)
    assert store != 5


def test_dict_of_a_store_is_its_content(store: mmapdict) -> None:
    content = {"a": 1, "b": [2], "c": {"d": None}}
    store.update(content)
    assert dict(store) == content
    assert {**store} == content


# Views ------------------------------------------------------------------------------------------


def test_keys_is_a_live_set(store: mmapdict) -> None:
    keys = store.keys()
    assert isinstance(keys, KeysView)
    assert isinstance(keys, Set)
    store.update(a=1, b=2)
    assert keys == {"a", "b"}
    assert "a" in keys
    assert "z" not in keys
    assert len(keys) == 2
    assert list(keys) == ["a", "b"]
    assert keys & {"a", "z"} == {"a"}
    assert keys | {"z"} == {"a", "b", "z"}
    assert keys - {"a"} == {"b"}
    assert keys ^ {"a", "z"} == {"b", "z"}
    assert {"a"} < keys <= {"a", "b"}
    assert keys.isdisjoint({"z"})
    del store["a"]
    assert keys == {"b"}


def test_items_and_values_are_live_views(store: mmapdict) -> None:
    items, values = store.items(), store.values()
    assert isinstance(items, ItemsView)
    assert isinstance(values, ValuesView)
    store.update(a=1, b=[2])
    assert list(items) == [("a", 1), ("b", [2])]
    assert list(values) == [1, [2]]
    assert ("a", 1) in items
    assert ("a", 2) not in items
    assert ("z", 1) not in items
    assert [2] in values
    assert len(items) == len(values) == 2


def test_deleting_the_keys_of_a_list_while_walking_it(store: mmapdict) -> None:
    store.update({str(i): i for i in range(50)})
    for key in list(store):
        del store[key]
    assert_sound(store, {})


def test_iteration_sees_each_lasting_key_once_whatever_is_set_meanwhile(store: mmapdict) -> None:
    names = [str(i) for i in range(20)]
    store.update(dict.fromkeys(names, 0))
    seen = []
    try:
        for key in store:
            seen.append(key)
            store["new" + key[-1:]] = 1
    except RuntimeError:
        return  # as dict does
    assert [key for key in seen if not key.startswith("new")] == names
    assert len(seen) == len(set(seen))


# Keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [1, 1.5, None, b"bytes", ("a",), True])
def test_key_that_is_no_str_is_type_error(store: mmapdict, path: Path, key: Any) -> None:
    store["a"] = 1
    before = path.read_bytes()
    calls = (
        lambda: store.__setitem__(key, 1),
        lambda: store.setdefault(key, 1),
        lambda: store.update({key: 1}),
        lambda: store.update({"b": 1, key: 2}),
    )
    for call in calls:
        with pytest.raises(TypeError, match="str"):
            call()
        assert_sound(store, {"a": 1})
    assert len(path.read_bytes()) >= len(before)


@pytest.mark.parametrize("key", [1, None, b"a", ("a",)])
def test_asking_for_a_key_that_is_no_str_finds_nothing(store: mmapdict, key: Any) -> None:
    store["a"] = 1
    for call in (store.__getitem__, store.__delitem__, store.pop):
        with pytest.raises((KeyError, TypeError)):
            call(key)
    assert dict(store) == {"a": 1}


def test_unhashable_key_is_type_error(store: mmapdict) -> None:
    with pytest.raises(TypeError):
        store[["a"]] = 1  # type: ignore[index]
    assert_sound(store, {})


def test_str_subclass_is_kept_as_its_text(store: mmapdict) -> None:
    class Name(str):
        __slots__ = ()

    store[Name("a")] = 1
    assert store["a"] == 1
    assert [type(key) for key in store] == [str]


@pytest.mark.parametrize("key", AWKWARD_KEYS, ids=ascii)
def test_awkward_key_does_all_that_others_do(path: Path, key: str) -> None:
    with mmapdict(path) as store:
        store["before"] = 0
        store[key] = 1
        store[key] = [2]
        store["after"] = np.arange(3)
        assert key in store
        assert_sound(store, {"before": 0, key: [2], "after": np.arange(3)})
    with mmapdict(path) as store:
        assert store[key] == [2]
        del store[key]
        assert key not in store
        assert_sound(store, {"before": 0, "after": np.arange(3)})
        with store.batch():
            store[key] = 3
            del store["before"]
        with store.batch():
            del store[key]
            store["x"] = 4
        assert_sound(store, {"after": np.arange(3), "x": 4})
        store[key] = np.arange(5)
        store.vacuum()
        assert_sound(store, {"after": np.arange(3), "x": 4, key: np.arange(5)})
        assert store.pop(key).sum() == 10


def test_all_awkward_keys_live_side_by_side(path: Path) -> None:
    content = {key: number for number, key in enumerate(AWKWARD_KEYS)}
    with mmapdict(path) as store:
        store.update(content)
        assert_sound(store, content)
    with mmapdict(path, readonly=True) as store:
        assert_content(store, content)


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", all_values())
def test_value_comes_back_as_it_was(path: Path, name: str) -> None:
    value = all_values()[name]
    with mmapdict(path) as store:
        store["before"] = 1
        store[name] = value
        store["after"] = 2
        assert_sound(store, {"before": 1, name: value, "after": 2})
    with mmapdict(path, readonly=True) as store:
        assert_same(store[name], value)


def test_values_do_not_share_memo_or_identity(store: mmapdict) -> None:
    shared = ["same"]
    store["a"] = {"x": shared, "y": shared}
    store["b"] = {"x": shared, "y": shared}
    first, second = store["a"], store["b"]
    for got in (first, second):
        assert got["x"] is got["y"]
    assert first["x"] is not second["x"]


def test_changing_what_was_got_does_not_change_the_store(store: mmapdict) -> None:
    store["list"] = [1]
    store["list"].append(2)
    assert store["list"] == [1]


def test_recursive_value(store: mmapdict) -> None:
    value: list[Any] = [1]
    value.append(value)
    store["a"] = value
    got = store["a"]
    assert got[1] is got


class _Refusing:
    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def _unpicklable() -> dict[str, Any]:
    return {
        "lambda": lambda: 1,
        "generator": (i for i in ()),
        "lock": threading.Lock(),
        "inside": {"deep": [threading.Lock()]},
        "object array": np.array([threading.Lock()], dtype=object),
        "local class": type("Local", (), {})(),
        "refusing": _Refusing(),
        "after a large buffer": [np.arange(100_000), threading.Lock()],
    }


@pytest.mark.parametrize("name", _unpicklable())
def test_value_that_cannot_be_pickled_leaves_every_byte(path: Path, name: str) -> None:
    value = _unpicklable()[name]
    with mmapdict(path) as store:
        store["a"] = "old"
        store["array"] = np.arange(10)
        number = store.commit_number
        before = path.read_bytes()
        for change in (
            lambda: store.__setitem__("a", value),
            lambda: store.__setitem__("new", value),
            lambda: store.setdefault("new", value),
        ):
            with pytest.raises(Exception) as caught:  # noqa: PT011
                change()
            if name != "refusing":
                assert isinstance(caught.value, TypeError)
                assert isinstance(caught.value, UnsupportedTypeError)
            assert path.read_bytes() == before
        assert store.commit_number == number
        store["b"] = "works on"
        assert_sound(store, {"a": "old", "array": np.arange(10), "b": "works on"})


def test_unpicklable_value_names_its_key_and_type(store: mmapdict) -> None:
    with pytest.raises(UnsupportedTypeError) as caught:
        store["the key"] = threading.Lock()
    assert "the key" in str(caught.value)
    assert "lock" in str(caught.value)


def test_object_array_is_stored_generically(store: mmapdict) -> None:
    value = np.array([{"a": 1}, None, "x"], dtype=object)
    store["a"] = value
    got = store["a"]
    assert got.dtype == object
    assert got.tolist() == value.tolist()


class Vector(np.ndarray):
    """A subclass, which must come back as itself."""


def test_array_subclass_keeps_its_class(store: mmapdict) -> None:
    value = np.arange(5).view(Vector)
    store["a"] = value
    assert type(store["a"]) is Vector
    assert store["a"].tolist() == [0, 1, 2, 3, 4]


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Names(dict[str, int]):
    pass


@pytest.mark.parametrize("value", [Text("t"), Number(5), Names(a=1)])
def test_subclass_of_a_plain_type_keeps_its_class(store: mmapdict, value: Any) -> None:
    store["a"] = value
    assert type(store["a"]) is type(value)
    assert store["a"] == value


def test_memmap_given_as_value_is_an_array(store: mmapdict, tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "raw", dtype="f8", mode="w+", shape=(3,))
    mapped[:] = [1, 2, 3]
    store["a"] = mapped
    store["b"] = store["a"]
    assert_sound(store, {"a": np.array([1.0, 2, 3]), "b": np.array([1.0, 2, 3])})


def test_own_array_may_replace_itself(store: mmapdict) -> None:
    store["a"] = np.arange(100)
    store["a"] = store["a"]
    store["a"] = store["a"][::-2]
    assert_sound(store, {"a": np.arange(100)[::-2]})


def test_numpy_scalars_keep_their_type(store: mmapdict) -> None:
    store["a"] = np.float32(1.5)
    assert type(store["a"]) is np.float32


def test_store_as_value_is_the_same_file(store: mmapdict, tmp_path: Path) -> None:
    with mmapdict(tmp_path / "inner") as inner:
        inner["x"] = 1
        store["inner"] = inner
    with store["inner"] as again:
        assert again["x"] == 1


# What it says -----------------------------------------------------------------------------------


def test_repr_names_class_and_file_and_needs_no_open_store(store: mmapdict, path: Path) -> None:
    store["secret"] = "value"
    assert "mmapdict" in repr(store)
    assert path.name in repr(store)
    store.close()
    assert "mmapdict" in repr(store)
    with mmapdict(path, readonly=True) as again:
        assert "mmapdict" in repr(again)


def test_stored_in_a_pickle_with_stock_names_only(store: mmapdict, path: Path) -> None:
    store["a"] = {"b": [1, 2]}
    store["c"] = np.arange(3)
    with io.BytesIO(path.read_bytes()) as stream:
        assert set(pickle.load(stream)) == {"a", "c"}
