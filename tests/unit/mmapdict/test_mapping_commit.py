"""The commit number: what every change changes, and nothing else does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.mmapdict import mmapdict
from pmshelve.storage import file as file_layer
from tests.support.layout import read_layout
from tests.support.stores import assert_content, assert_sound, fixture
from tests.support.values import assert_same


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def store(path: Path) -> Iterator[mmapdict]:
    with mmapdict(path) as store:
        yield store
        assert list(store.check()) == []


def _in_file(path: Path) -> int:
    return read_layout(path.read_bytes()).commit_number


def test_starts_as_mmappickles_does(store: mmapdict, path: Path) -> None:
    assert store.commit_number == _in_file(path) == 0


def test_each_change_adds_one(store: mmapdict, path: Path) -> None:
    def batch() -> None:
        with store.batch():
            store.update(x=1, y=2)
            del store["x"]

    changes: list[Callable[[], Any]] = [
        lambda: store.__setitem__("a", 1),
        lambda: store.__setitem__("a", 2),
        lambda: store.setdefault("b", 2),
        lambda: store.update(c=1, d=2, e=3),
        batch,
        lambda: store.__delitem__("a"),
        lambda: store.pop("b"),
        lambda: store.popitem(),
    ]
    for number, change in enumerate(changes, 1):
        change()
        assert store.commit_number == number
        assert _in_file(path) == number


def test_exclusive_store_counts_too(path: Path) -> None:
    with mmapdict(path, exclusive=True) as store:
        numbers = [store.commit_number]
        store["a"] = 1
        numbers.append(store.commit_number)
        store.update(b=2, c=3)
        numbers.append(store.commit_number)
        del store["a"]
        numbers.append(store.commit_number)
        assert numbers == sorted(set(numbers))
    with mmapdict(path) as store:
        assert store.commit_number >= numbers[-1]


def test_what_changes_nothing_leaves_it(store: mmapdict, path: Path) -> None:
    store.update(a=1, b=np.arange(3))
    number = store.commit_number

    def empty_batch() -> None:
        with store.batch():
            pass

    def failing_batch() -> None:
        with pytest.raises(RuntimeError), store.batch():
            store["a"] = 2
            raise RuntimeError

    def failing(call: Callable[[], Any], error: type[Exception]) -> None:
        with pytest.raises(error):
            call()

    for call in (
        lambda: store["a"],
        lambda: store["b"].sum(),
        lambda: store.get("missing"),
        lambda: "a" in store,
        lambda: len(store),
        lambda: list(store),
        lambda: dict(store),
        lambda: store.setdefault("a", 5),
        lambda: store.update(),
        lambda: store.sync(),
        lambda: store.stats(),
        lambda: list(store.check()),
        lambda: store.fsck(),
        empty_batch,
        failing_batch,
        lambda: failing(lambda: store.__delitem__("missing"), KeyError),
        lambda: failing(lambda: store.__setitem__("a", threading.Lock()), TypeError),
        lambda: failing(lambda: store.__setitem__(1, 1), TypeError),
    ):
        call()
        assert store.commit_number == number
        assert _in_file(path) == number
    assert_sound(store, {"a": 1, "b": np.arange(3)})


def test_changing_an_array_in_place_is_no_commit(store: mmapdict) -> None:
    store["a"] = np.arange(3)
    number = store.commit_number
    store["a"][0] = 7
    assert store.commit_number == number


def test_other_handles_see_it(store: mmapdict, path: Path) -> None:
    with mmapdict(path, readonly=True) as other:
        for key in "abc":
            store[key] = 1
            assert other.commit_number == store.commit_number


def test_survives_reopening(path: Path) -> None:
    with mmapdict(path) as store:
        for number in range(10):
            store["a"] = number
        number = store.commit_number
    with mmapdict(path) as store:
        assert store.commit_number == number


@pytest.mark.parametrize("number", [0, 1, 32, 465_468, 2**30])
def test_setter(store: mmapdict, path: Path, number: int) -> None:
    store["a"] = 1
    store["b"] = np.arange(3)
    with mmapdict(path) as other:
        other["a"] = 2
        store.commit_number = number
        assert store.commit_number == number
        assert other.commit_number == number
        assert _in_file(path) == number
        content = {"b": np.arange(3), "a": 2}
        assert_content(other, content)
        assert_sound(store, content)
        other["c"] = 3
        assert_sound(store, {**content, "c": 3})
        del store["b"]
        assert_sound(other, {"a": 2, "c": 3})
        assert store.commit_number != number


@pytest.mark.parametrize("bad", ["1", 1.0, None, b"1"])
def test_setter_wants_an_int(store: mmapdict, bad: Any) -> None:
    store["a"] = 1
    with pytest.raises(TypeError):
        store.commit_number = bad
    assert store.commit_number == 1


@pytest.mark.parametrize("bad", [-1, 2**30 + 1, 2**31, 2**40])
def test_setter_refuses_what_does_not_fit(store: mmapdict, bad: int) -> None:
    store["a"] = 1
    with pytest.raises(ValueError):  # noqa: PT011
        store.commit_number = bad
    assert store.commit_number == 1
    assert_sound(store, {"a": 1})


def test_wraps_from_its_limit_to_one(store: mmapdict, path: Path) -> None:
    with mmapdict(path, readonly=True) as reader:
        store["a"] = 1
        assert reader["a"] == 1
        store.commit_number = 2**30 - 1
        store["a"] = 2
        assert store.commit_number == 2**30
        assert reader["a"] == 2
        store["a"] = 3
        assert store.commit_number == 1
        assert reader.commit_number == 1
        assert reader["a"] == 3
        store["b"] = 4
        assert store.commit_number == 2
        assert_content(reader, {"a": 3, "b": 4})


def test_setting_it_back_does_not_hide_a_change_from_readers(store: mmapdict, path: Path) -> None:
    store["a"] = 1
    with mmapdict(path, readonly=True) as reader:
        assert reader["a"] == 1
        number = store.commit_number
        store["a"] = 2
        store["b"] = 3
        store.commit_number = number
        assert_content(reader, {"a": 2, "b": 3})


def test_vacuum_with_nothing_to_reclaim_leaves_it(store: mmapdict, path: Path) -> None:
    store["a"] = 1
    store["b"] = np.arange(100)
    number, before = store.commit_number, path.read_bytes()
    store.vacuum()
    assert store.commit_number == number
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [None, 0, 1])
def test_any_other_vacuum_changes_it(store: mmapdict, number: int | None) -> None:
    store.update(a=1, b=2)
    del store["a"]
    if number is not None:
        store.commit_number = number
    before = store.commit_number
    store.vacuum()
    after = store.commit_number
    assert after != before
    store.vacuum()
    assert store.commit_number == after
    assert_sound(store, {"b": 2})


def test_vacuum_after_reopening_twice_settles(path: Path) -> None:
    with mmapdict(path) as store:
        store.update({str(i): i for i in range(100)})
        del store["5"]
        store.vacuum()
        number = store.commit_number
    with mmapdict(path) as store:
        store.vacuum()
        store.vacuum()
        assert store.commit_number == number


def test_clear_changes_it_and_clearing_nothing_may_not(store: mmapdict) -> None:
    store["a"] = 1
    before = store.commit_number
    store.clear()
    assert store.commit_number != before


def test_file_of_mmappickle_goes_on_from_its_number(tmp_path: Path) -> None:
    path = fixture("generic.mmdpickle", tmp_path)
    with mmapdict(path) as store:
        assert store.commit_number == 15
        store["a"] = 1
        assert store.commit_number > 15
        assert store["a"] == 1
        number = store.commit_number
        store["a"] = 2
        assert store.commit_number > number


def test_a_published_value_is_seen_although_the_state_is_that_of_the_last_look(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mmapdict(path) as writer, mmapdict(path, readonly=True) as reader:
        writer["a"] = b"old"
        assert reader["a"] == b"old"
        seen: list[tuple[str, Any]] = []
        pwrite, retire = file_layer.system.pwrite, writer._log.retire

        def write(fd: int, data: Any, offset: int) -> int:
            seen.append(("not yet published", reader["a"]))
            return pwrite(fd, data, offset)

        def turn_off(old: Any, flag: int) -> None:
            seen.append(("published", reader["a"]))
            assert "a" in reader
            retire(old, flag)

        monkeypatch.setattr(file_layer.system, "pwrite", write)
        monkeypatch.setattr(writer._log, "retire", turn_off)
        writer["a"] = b"new"
        assert seen == [("not yet published", b"old"), ("published", b"new")]
        assert reader["a"] == b"new"


def test_a_reader_follows_commits_that_replace_what_it_knows(path: Path) -> None:
    values: list[Any] = [b"x" * 200, {"a": [1]}, "text" * 90, b"y" * 70_000, 5, np.arange(9), b"z"]
    with mmapdict(path) as writer, mmapdict(path, readonly=True) as reader:
        for number in range(300):
            writer[f"k{number % 7}"] = value = values[number % len(values)]
            writer["other"] = number
            if number % 11 == 0:
                del writer["other"]
            assert_same(reader[f"k{number % 7}"], value)
            assert ("other" in reader) == (number % 11 != 0)
            assert len(reader) == len(writer)
        assert list(reader) == list(writer)
        assert list(reader.check()) == []
