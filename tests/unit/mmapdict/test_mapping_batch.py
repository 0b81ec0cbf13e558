"""batch() and update: many changes, one commit, all or nothing."""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import ClosedError, LockTimeoutError
from pmshelve.mmapdict import EmptyNDArray, mmapdict
from tests.support.processes import Worker
from tests.support.stores import assert_content, assert_file, assert_sound
from tests.support.values import AWKWARD_KEYS, all_values


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def store(path: Path) -> Iterator[mmapdict]:
    with mmapdict(path) as store:
        yield store
        assert store.closed or list(store.check()) == []


class Stop(Exception):
    """What ends a batch in these tests."""


def test_batch_is_one_commit_with_all_changes(store: mmapdict) -> None:
    store.update(a=1, b=2, c=3)
    number = store.commit_number
    with store.batch():
        store["a"] = 10
        del store["b"]
        store["d"] = np.arange(3)
        store["e"] = {"x": np.arange(20_000)}
        assert store.pop("c") == 3
    assert store.commit_number == number + 1
    assert_sound(store, {"a": 10, "d": np.arange(3), "e": {"x": np.arange(20_000)}})


def test_batch_of_every_kind_of_value_and_key(store: mmapdict, path: Path) -> None:
    content: dict[str, Any] = {**all_values(), **{key: [key] for key in AWKWARD_KEYS}}
    with store.batch():
        for key, value in content.items():
            store[key] = value
    assert_sound(store, content)
    with mmapdict(path, readonly=True) as other:
        assert_content(other, content)


def test_failed_batch_changes_nothing(store: mmapdict, path: Path) -> None:
    content = {"a": 1, "b": np.arange(5), "c": "text"}
    store.update(content)
    number, before = store.commit_number, path.read_bytes()
    with pytest.raises(Stop), store.batch():
        store["a"] = 10
        del store["b"]
        store["new"] = bytes(300_000)
        store.setdefault("other", np.arange(10))
        store.update(x=1, y=2)
        raise Stop
    assert store.commit_number == number
    assert path.read_bytes()[: len(before)] == before
    assert_sound(store, content)
    store["d"] = 2
    assert_sound(store, {**content, "d": 2})


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_batch_ended_by_an_interrupt_changes_nothing(
    store: mmapdict, error: type[BaseException]
) -> None:
    store["a"] = 1
    with pytest.raises(error), store.batch():
        store["a"] = 2
        raise error
    assert_sound(store, {"a": 1})


def test_error_handled_inside_does_not_end_the_batch(store: mmapdict) -> None:
    store["a"] = 1
    with store.batch():
        store["b"] = 2
        with pytest.raises(KeyError):
            del store["missing"]
        with pytest.raises(TypeError):
            store["bad"] = threading.Lock()
        with pytest.raises(TypeError):
            store[5] = 1  # type: ignore[index]
        store["c"] = 3
    assert_sound(store, {"a": 1, "b": 2, "c": 3})


def test_reads_inside_see_the_batch(store: mmapdict) -> None:
    store.update(a=1, b=2, c=3)
    with store.batch():
        store["a"] = [10]
        del store["b"]
        store["d"] = np.arange(100)
        store["e"] = EmptyNDArray((50,))
        store["f"] = {"x": np.arange(20_000)}
        assert store["a"] == [10]
        assert "b" not in store
        assert store.get("b") is None
        with pytest.raises(KeyError):
            del store["b"]
        assert store["d"].sum() == 4950
        assert not store["e"].any()
        assert store["f"]["x"][-1] == 19_999
        assert list(store) == ["c", "a", "d", "e", "f"]
        assert len(store) == 5
        assert store.keys() == {"a", "c", "d", "e", "f"}
        assert dict(store)["a"] == [10]
        store["a"] = "again"
        assert store["a"] == "again"
        assert list(store) == ["c", "d", "e", "f", "a"]
    assert list(store) == ["c", "d", "e", "f", "a"]


def test_changes_inside_can_depend_on_iteration(store: mmapdict) -> None:
    store.update({str(i): i for i in range(50)})
    with store.batch():
        for key in list(store):
            if store[key] % 2:
                del store[key]
            else:
                store[key] = -store[key]
    assert_sound(store, {str(i): -i for i in range(0, 50, 2)})


def test_others_see_nothing_before_the_end(store: mmapdict, path: Path) -> None:
    store.update(a=1, b=2)
    with mmapdict(path, readonly=True, timeout=1) as reader, Worker() as worker:
        worker.run("from pmshelve.mmapdict import mmapdict")
        worker.run("reader = mmapdict(path, True, timeout=1)", path=path)
        with store.batch():
            store["a"] = 10
            store["c"] = np.arange(1000)
            del store["b"]
            store["large"] = bytes(2_000_000)
            assert_content(reader, {"a": 1, "b": 2})
            assert worker.eval("dict(reader)") == {"a": 1, "b": 2}
            assert_content(stock_pickle(path), {"a": 1, "b": 2})
        content = {"a": 10, "c": np.arange(1000), "large": bytes(2_000_000)}
        assert_content(reader, content)
        assert worker.eval("list(reader)") == list(content)
        worker.run("reader.close()")


def stock_pickle(path: Path) -> dict[str, Any]:
    """Return what stock pickle reads of a file that is being changed."""
    with open(path, "rb") as file:
        loaded = pickle.load(file)
    assert isinstance(loaded, dict)
    return loaded


def test_others_cannot_write_meanwhile(store: mmapdict, path: Path) -> None:
    with mmapdict(path, timeout=0.05) as other:
        with store.batch():
            store["a"] = 1
            with pytest.raises(LockTimeoutError):
                other["b"] = 2
        other["b"] = 2
    assert_sound(store, {"a": 1, "b": 2})


def test_empty_batch_writes_nothing(store: mmapdict, path: Path) -> None:
    store["a"] = 1
    before = path.read_bytes()
    with store.batch():
        assert store["a"] == 1
    with store.batch():
        store.update()
    assert path.read_bytes() == before


def test_set_and_delete_of_one_key_inside_leaves_nothing(store: mmapdict) -> None:
    store["kept"] = 1
    with store.batch():
        store["a"] = 1
        store["a"] = 2
        del store["a"]
    assert_sound(store, {"kept": 1})
    with store.batch():
        del store["kept"]
        store["kept"] = 2
        del store["kept"]
        store["kept"] = 3
    assert_sound(store, {"kept": 3})


def test_one_key_set_many_times_inside(store: mmapdict) -> None:
    store["a"] = 0
    with store.batch():
        for number in range(100):
            store["a"] = [number]
    assert_sound(store, {"a": [99]})
    assert store.stats().live_count == 1


def test_deletion_alone(store: mmapdict) -> None:
    store.update({str(i): i for i in range(10)})
    with store.batch():
        for i in range(9):
            del store[str(i)]
    assert_sound(store, {"9": 9})


def test_popitem_inside(store: mmapdict) -> None:
    store.update(a=1, b=2)
    with store.batch():
        popped = dict([store.popitem(), store.popitem()])
        with pytest.raises(KeyError):
            store.popitem()
    assert popped == {"a": 1, "b": 2}
    assert_sound(store, {})


def test_clear_inside_is_part_of_the_batch(store: mmapdict) -> None:
    content = {"a": 1, "b": np.arange(10)}
    store.update(content)
    with pytest.raises(Stop), store.batch():
        store["c"] = 1
        store.clear()
        assert list(store) == []
        store["d"] = 1
        raise Stop
    assert_sound(store, content)
    with store.batch():
        store["c"] = 1
        store.clear()
        store["d"] = 2
    assert_sound(store, {"d": 2})


def test_nested_batch_joins_the_outer_one(store: mmapdict) -> None:
    store["a"] = 1
    number = store.commit_number
    with store.batch():
        store["b"] = 2
        with store.batch():
            store["c"] = 3
            with store.batch():
                del store["a"]
        assert store.commit_number in (number, number + 1)
        store.update(d=4)
    assert store.commit_number == number + 1
    assert_sound(store, {"b": 2, "c": 3, "d": 4})
    with pytest.raises(Stop), store.batch():
        with store.batch():
            store["e"] = 5
        raise Stop
    assert_sound(store, {"b": 2, "c": 3, "d": 4})


def test_batch_may_be_used_as_often_as_wanted(store: mmapdict) -> None:
    for number in range(20):
        with store.batch():
            store[str(number % 3)] = number
    assert_sound(store, {"2": 17, "0": 18, "1": 19})


def test_batch_object_used_again_starts_afresh(store: mmapdict) -> None:
    batch = store.batch()
    with batch:
        store["a"] = 1
    store["a"] = 2
    with batch:
        store["b"] = 3
    assert_sound(store, {"a": 2, "b": 3})
    with pytest.raises(Stop), batch:
        raise Stop
    with batch:
        store["c"] = 4
    assert_sound(store, {"a": 2, "b": 3, "c": 4})


def test_store_closed_inside_a_batch_commits_nothing(store: mmapdict, path: Path) -> None:
    store["a"] = 1
    with pytest.raises(ClosedError), store.batch():
        store["a"] = 2
        store.close()
    with mmapdict(path, timeout=0) as again:
        assert_sound(again, {"a": 1})


def test_array_got_inside_is_a_copy_that_lives_on(store: mmapdict) -> None:
    with store.batch():
        store["a"] = np.arange(1000)
        view = store["a"]
        view[0] = 7
    assert store["a"][0] == 0
    assert view.sum() == np.arange(1000).sum() + 7


def test_array_got_inside_a_failed_batch_does_no_harm(store: mmapdict) -> None:
    views = []
    for _ in range(3):
        with pytest.raises(Stop), store.batch():
            store["a"] = np.arange(200_000)
            views.append(store["a"])
            raise Stop
    store["b"] = b"b" * 100
    assert_sound(store, {"b": b"b" * 100})
    del views


@pytest.mark.parametrize("options", [{}, {"exclusive": True}, {"mmap_mode": "c"}], ids=repr)
def test_array_got_inside_a_failed_batch_may_still_be_read(
    path: Path, options: dict[str, Any]
) -> None:
    """Its bytes were never published; reading them must not kill the process."""
    with Worker("from pmshelve.mmapdict import mmapdict\nimport numpy") as worker:
        worker.run("store = mmapdict(path, **options)", path=path, options=options)
        worker.run(
            "try:\n"
            "    with store.batch():\n"
            "        store['a'] = numpy.arange(500_000)\n"
            "        view = store['a']\n"
            "        raise KeyError\n"
            "except KeyError:\n"
            "    store['b'] = 1\n"
        )
        try:
            assert worker.eval("len(view)") == 500_000
            worker.eval("int(view.sum())")
        except EOFError:
            pytest.fail("reading the view killed the process")
        worker.run("store.close(); del view")
    with mmapdict(path) as store:
        assert_sound(store, {"b": 1})


def test_large_batch(store: mmapdict, path: Path) -> None:
    content = {f"key {i}": i for i in range(20_000)}
    with store.batch():
        for key, value in content.items():
            store[key] = value
    assert len(store) == 20_000
    assert store["key 19999"] == 19_999
    assert_file(path, content)


def test_batch_survives_reopening(path: Path) -> None:
    with mmapdict(path) as store:
        store.update(a=1, b=2)
        with store.batch():
            store["c"] = 3
            del store["a"]
    with mmapdict(path) as store:
        assert_sound(store, {"b": 2, "c": 3})


def test_sync_store_batches_too(path: Path) -> None:
    with mmapdict(path, sync=True) as store:
        with store.batch():
            store["a"] = np.arange(10)
            store["b"] = 1
        store["b"] = 2
        del store["a"]
        assert_sound(store, {"b": 2})


def test_vacuum_inside_is_refused_or_joins(store: mmapdict) -> None:
    store.update(a=1, b=2)
    del store["a"]
    with store.batch():
        store["c"] = 3
        with contextlib.suppress(ValueError, RuntimeError):
            store.vacuum()
        store["d"] = 4
    assert_sound(store, {"b": 2, "c": 3, "d": 4})


# update -----------------------------------------------------------------------------------------


def test_update_is_one_commit(store: mmapdict) -> None:
    number = store.commit_number
    store.update({"a": 1, "b": 2}, c=3)
    assert store.commit_number == number + 1


def test_update_is_all_or_nothing(store: mmapdict) -> None:
    store.update(a=1, b=2)
    number = store.commit_number
    with pytest.raises(TypeError):
        store.update([("a", 10), ("c", 3), ("bad", threading.Lock())])
    with pytest.raises(ZeroDivisionError):
        store.update((str(i), 1 // (3 - i)) for i in range(10))
    assert store.commit_number == number
    assert_sound(store, {"a": 1, "b": 2})


def test_update_inside_a_batch_joins_it(store: mmapdict) -> None:
    with pytest.raises(Stop), store.batch():
        store.update(a=1)
        raise Stop
    assert_sound(store, {})
