"""What operations cost: counted in calls and bytes, never in time."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.mmapdict import EmptyNDArray, mmapdict
from pmshelve.storage import file as file_layer
from tests.support.processes import run_isolated


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the calls of the file layer, and the bytes they move."""
    counts: Counter[str] = Counter()
    for name in list(vars(file_layer.system)):
        primitive = getattr(file_layer.system, name)
        if callable(primitive):
            monkeypatch.setattr(file_layer.system, name, _counted(name, primitive, counts))
    return counts


def _counted(name: str, primitive: Any, counts: Counter[str]) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        result = primitive(*arguments, **options)
        counts[name] += 1
        if name in ("pread", "pwrite", "pwritev", "copy_file_range"):
            counts[name + " bytes"] += len(result) if isinstance(result, bytes) else result
        return result

    return call


def _cost(calls: Counter[str], action: Any) -> Counter[str]:
    calls.clear()
    action()
    return Counter(calls)


def test_append_costs_the_same_at_any_size(path: Path, calls: Counter[str]) -> None:
    with mmapdict(path) as store:
        costs = []
        for size in (10, 100, 1000, 5000):
            while len(store) < size:
                store[f"key{len(store):06}"] = b"x" * 100
            costs.append(_cost(calls, lambda: [store.__setitem__(f"n{i}", b"y" * 100)
                                               for i in range(20)]))  # fmt: skip
        for cost in costs:
            assert cost["pwrite"] + cost["pwritev"] <= 25
            assert cost["pread"] <= 2
            assert cost["flock"] <= 45
            assert cost["mmap"] <= 1
            assert cost["fdatasync"] == cost["fsync"] == 0


def test_reading_costs_no_call(path: Path, calls: Counter[str]) -> None:
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader:
        store.update({str(i): b"x" * 100 for i in range(100)})
        store["array"] = np.arange(100_000)
        store["object"] = {"x": [1]}
        for each in (store, reader):
            list(each.values())
            names = [str(i) for i in range(100)]
            cost = _cost(calls, lambda each=each: [each[name] for name in names])
            assert not cost
            assert not _cost(calls, lambda each=each: [each["array"], each["object"]])
            assert not _cost(calls, lambda each=each: ["missing" in each, "5" in each, len(each)])


def test_reading_beside_a_batch_takes_no_lock(path: Path, calls: Counter[str]) -> None:
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader:
        store.update({str(i): b"x" * 100 for i in range(100)})
        assert len(dict(reader)) == 100
        with store.batch():
            store["1"] = b"y" * 100
            assert reader["1"] == b"x" * 100
            cost = _cost(calls, lambda: [reader[str(i)] for i in range(100)])
            assert not cost
        assert reader["1"] == b"y" * 100


def test_replacing_and_deleting_read_no_values(path: Path, calls: Counter[str]) -> None:
    with mmapdict(path) as store:
        store["a"] = bytes(1_000_000)
        store["b"] = bytes(1_000_000)
        cost = _cost(calls, lambda: store.__setitem__("a", 1))
        assert cost["pread bytes"] < 10_000
        cost = _cost(calls, lambda: store.__delitem__("b"))
        assert cost["pread bytes"] + cost["pwrite bytes"] < 10_000


def test_clear_costs_the_same_at_any_size(path: Path, calls: Counter[str]) -> None:
    costs = []
    with mmapdict(path) as store:
        for size in (500, 5000):
            store.update({str(i): i for i in range(size)})
            costs.append(_cost(calls, store.clear))
    for cost in costs:
        assert cost["pwrite"] + cost["pwritev"] <= 20
        moved = cost["pwrite bytes"] + cost["pwritev bytes"] + cost["pread bytes"]
        assert moved + cost["copy_file_range bytes"] < 20_000


def test_batch_writes_in_few_calls(path: Path, calls: Counter[str]) -> None:
    with mmapdict(path) as store:
        content = {str(i): b"x" * 100 for i in range(2000)}
        cost = _cost(calls, lambda: store.update(content))
        assert cost["pwrite"] + cost["pwritev"] <= 20
        assert cost["flock"] <= 4


def test_sync_happens_when_asked_for(path: Path, calls: Counter[str]) -> None:
    with mmapdict(path) as store:
        cost = _cost(calls, lambda: store.__setitem__("a", 1))
        assert cost["fdatasync"] == cost["fsync"] == 0
        assert _cost(calls, store.sync)["fdatasync"] >= 1
    with mmapdict(path, sync=True) as store:
        for action in (
            lambda: store.__setitem__("a", 2),
            lambda: store.__setitem__("array", np.arange(100_000)),
            lambda: store.__delitem__("a"),
            lambda: store.update(x=1, y=2),
        ):
            assert _cost(calls, action)["fdatasync"] >= 1


def test_opening_reads_no_values(path: Path, calls: Counter[str]) -> None:
    with mmapdict(path) as store:
        for i in range(50):
            store[str(i)] = bytes(1_000_000)
    size = os.path.getsize(path)

    def open_and_get() -> None:
        with mmapdict(path, readonly=True) as store:
            assert len(store["25"]) == 1_000_000
            assert len(store) == 50

    cost = _cost(calls, open_and_get)
    assert cost["pread bytes"] < size / 3


def test_large_values_are_written_without_a_copy(path: Path) -> None:
    array = np.zeros(4 << 20, "f8")  # 32 MiB
    strided = np.zeros((8 << 20, 2), "u1")[:, 0]
    blob = bytearray(32 << 20)
    with mmapdict(path) as store:
        store["warm"] = np.zeros(10)
        for value, allowed in ((array, 1 << 20), (blob, 1 << 20), ({"x": array}, 1 << 20),
                               (strided, 4 << 20)):  # fmt: skip
            tracemalloc.start()
            store["a"] = value
            _now, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < allowed, f"{peak} bytes for {type(value)}"


def test_large_values_are_read_without_a_copy(path: Path) -> None:
    with mmapdict(path) as store:
        store["array"] = EmptyNDArray((8 << 20,))
        store["object"] = {"x": np.zeros(4 << 20)}
    with mmapdict(path) as store:
        store["small"] = np.zeros(10)
        store["small"].sum()
        for key in ("array", "object"):
            tracemalloc.start()
            store[key]
            _now, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < 1 << 20


def test_vacuum_needs_little_memory(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = np.zeros(1 << 20)
        store["b"] = np.zeros(1 << 20)
        del store["a"]
        tracemalloc.start()
        store.vacuum()
        _now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 3 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_opening_a_large_store_takes_little_memory(path: Path) -> None:
    with mmapdict(path) as store:
        store.update({f"key {i:07}": i for i in range(200_000)})
    out = run_isolated(
        """
import sys
from pmshelve.mmapdict import mmapdict
def resident():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["RssAnon"].split()[0])
before = resident()
store = mmapdict(sys.argv[1], readonly=True)
assert store["key 0123456"] == 123456
assert "missing" not in store
assert len(store) == 200_000
print(resident() - before)
""",
        path,
        block=(),
        flags=(),
    )
    assert int(out) < 5000, "KiB"
