"""`SpillBuffer`: what it takes from dask, from its arguments and from its worker."""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask.config
import distributed
from distributed import system

from pmshelve.dask import SpillBuffer, slow
from tests.support.processes import run_isolated
from tests.support.smalldisk import small_disk

ROOT = Path(__file__).resolve().parents[3]
BACKENDS = ["mmapdict", "pmemobj"]
MEMORY = "distributed.worker.memory."


@pytest.fixture(params=BACKENDS)
def buffer(request, tmp_path):
    with SpillBuffer(tmp_path, target=1, backend=request.param) as buffer:
        yield buffer


# What it is told --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "max_spill", "expected"),
    [
        (1000, 2000, (1000, 2000)),
        ("1 kB", "2 MiB", (1000, 2 << 20)),
        (5, False, (5, False)),
    ],
)
def test_arguments(tmp_path, target, max_spill, expected):
    with SpillBuffer(tmp_path, target, max_spill) as buffer:
        assert (buffer.n, buffer._slow_uncached.max_weight) == expected
        buffer["x"] = 1
        assert buffer.n == expected[0]


@pytest.mark.parametrize(
    ("setting", "expected"), [(0.5, int(system.MEMORY_LIMIT * 0.5)), (False, sys.maxsize)]
)
def test_without_a_worker_the_target_is_a_share_of_the_systems_memory(tmp_path, setting, expected):
    with dask.config.set({MEMORY + "target": setting, MEMORY + "max-spill": "3 kB"}):
        with SpillBuffer(tmp_path) as buffer:
            assert buffer.n == expected
            assert buffer._slow_uncached.max_weight == 3000
            buffer["x"] = 1
            assert buffer.n == expected


@pytest.mark.parametrize(
    ("data", "limit", "fraction", "expected"),
    [
        (SpillBuffer, 1 << 30, 0.25, 1 << 28),
        (SpillBuffer, 1 << 30, False, sys.maxsize),
        (SpillBuffer, 0, 0.5, sys.maxsize),
        ((SpillBuffer, {"backend": "pmemobj"}), "2 GiB", 0.5, 1 << 30),
        ((SpillBuffer, {"target": 100, "max_spill": "5 kB"}), "2 GiB", 0.5, 100),
    ],
)
def test_a_worker_s_limit_counts(tmp_path, data, limit, fraction, expected):
    async def check():
        async with distributed.Scheduler(dashboard_address=":0", port=0) as scheduler:
            async with distributed.Worker(
                scheduler.address, data=data, memory_limit=limit, local_directory=str(tmp_path)
            ) as worker:
                assert isinstance(worker.data, SpillBuffer)
                worker.data["x"] = "value"
                assert worker.data.n == expected
                assert (await worker.get_metrics())["spilled_bytes"]["disk"] == sum(
                    weight.disk for weight in worker.data._slow_uncached.weight_by_key.values()
                )
                worker.data.close()

    with dask.config.set({MEMORY + "target": fraction}):
        asyncio.run(check())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "file"}, "backend is one of mmapdict, pmemobj, not 'file'"),
        ({"target": "much"}, "much"),
        ({"max_spill": "much"}, "much"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_no_file(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SpillBuffer(tmp_path, **options)
    assert not list(tmp_path.rglob("*"))


def test_a_compression_that_does_not_exist_is_refused_as_by_dask(tmp_path):
    with dask.config.set({MEMORY + "spill-compression": "squeeze"}):
        with pytest.raises(ValueError, match="spill-compression=squeeze"):
            SpillBuffer(tmp_path)


def test_auto_compression_leaves_values_as_they_are(tmp_path):
    with dask.config.set({MEMORY + "spill-compression": "auto"}):
        with SpillBuffer(tmp_path, target=1) as buffer:
            buffer["x"] = np.zeros(100_000)
            assert buffer.spilled_total.disk > 800_000


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 5_000, 100_000, 1_000_000])
def test_a_changed_value_changes_no_other_and_not_what_is_stored(buffer, size):
    original = np.arange(float(size))
    buffer["x"] = original.copy()
    buffer["y"] = original.copy()
    found = buffer["x"]
    assert np.array_equal(found, original)
    found[:] = -1
    assert np.array_equal(buffer["y"], original)
    del found
    assert np.array_equal(buffer["x"], original)


@pytest.mark.parametrize("size", [5_000, 1_000_000])
def test_a_value_outlives_its_key(buffer, size):
    buffer["x"] = np.arange(float(size))
    found = buffer["x"]
    del buffer["x"]
    for number in range(5):
        buffer[number] = np.full(size, float(number))
    assert np.array_equal(found, np.arange(float(size)))
    found[0] = 5
    assert buffer[0][0] == 0


def test_large_values_are_mapped(tmp_path):
    with SpillBuffer(tmp_path, target=1) as buffer:
        buffer["x"] = np.arange(1e6)
        found = buffer["x"]
        assert found.flags.writeable
        assert not found.flags.owndata
        assert found.ctypes.data % 64 == 0
        name = str(buffer._slow_uncached.store.path)
        maps = Path("/proc/self/smaps")
        if maps.exists():
            start = f"{found.ctypes.data // 4096 * 4096:x}"
            (line,) = (
                line
                for line in maps.read_text().splitlines()
                if line.endswith(name) and covers(line, found.ctypes.data)
            )
            assert line.split()[1] == "rw-p", start
        del found


def covers(line, address):
    start, _, end = line.split()[0].partition("-")
    return int(start, 16) <= address < int(end, 16)


def test_keys_of_every_kind_dask_has(buffer):
    keys = [
        "x",
        b"x",
        1,
        2.5,
        ("x", 0),
        ("x", 1),
        ("x", (1, "y")),
        "1",
        ("1",),
        "k" * 5000,
        "\0",
        "",
    ]
    for number, key in enumerate(keys):
        buffer[key] = number
    assert set(buffer.slow) == set(keys)
    assert [buffer[key] for key in keys] == list(range(len(keys)))
    for key in keys:
        del buffer[key]
    assert not buffer
    assert buffer.spilled_total == (0, 0)


def test_a_key_that_cannot_be_stored_stays_in_memory(tmp_path):
    with SpillBuffer(tmp_path, target=1000) as buffer:
        key = frozenset({1})
        buffer[key] = "value"
        assert buffer.evict() == -1
        assert buffer[key] == "value"
        assert list(buffer.fast) == [key]


# Room on disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_full_disk_keeps_values_in_memory(tmp_path, backend):
    with small_disk(tmp_path / "disk", 12 << 20) as home:
        with SpillBuffer(home, target=1, backend=backend) as buffer:
            values = {}
            while len(buffer.fast) < 3:
                number = len(values)
                assert number < 40
                values[number] = value = np.full(100_000, float(number))
                buffer[number] = value
            assert len(buffer.slow) > 3
            assert buffer.evict() == -1
            for number, value in values.items():
                assert np.array_equal(buffer[number], value)
            del values, value
            kept = sorted(buffer.fast)
            for key in list(buffer.slow):
                del buffer[key]
            while buffer.fast:  # there is room again
                assert buffer.evict() > 0
            assert {key: buffer[key][0] for key in buffer} == {key: key for key in kept}


@pytest.mark.parametrize("size", [50, 200])
def test_a_value_is_read_where_no_other_can_be_spilled_for_it(tmp_path, size):
    """Whether it would fit into memory then, or never does."""
    with SpillBuffer(tmp_path, target=200) as buffer:
        buffer["x"] = "x" * size
        if size < 100:
            buffer.evict()
        buffer["y"] = "y" * 100
        buffer._slow_uncached.max_weight = buffer.spilled_total.disk
        buffer["z"] = "z" * 100
        assert set(buffer.slow) == {"x"}
        assert buffer["x"] == "x" * size
        assert buffer["x"] == "x" * size
        assert {key: buffer[key][0] for key in buffer} == {"x": "x", "y": "y", "z": "z"}


def blocks_of(path):
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize(
    ("backend", "count", "size", "share", "more"),
    [
        ("mmapdict", 32, 1 << 20, 1.1, 2 << 20),
        ("pmemobj", 32, 1 << 20, 1.3, 12 << 20),  # grows in steps
        ("mmapdict", 1_000, 20_000, 2, 64 << 20),  # what may be wasted before it is worth a rewrite
        ("pmemobj", 1_000, 4096, 2, 12 << 20),
    ],
)
def test_room_on_disk_is_used_again(tmp_path, backend, count, size, share, more):
    with SpillBuffer(tmp_path, target=1, backend=backend) as buffer:
        peak = 0
        for round_ in range(8):
            for number in range(count):
                buffer["x", round_, number] = np.full(size // 8, float(number))
            peak = max(peak, blocks_of(tmp_path))
            for number in range(count):
                del buffer["x", round_, number]
                if not number % (count // 8):
                    peak = max(peak, blocks_of(tmp_path))
        assert peak < share * count * (size + 300) + more < 8 * count * size


def test_closing_removes_the_file(tmp_path):
    buffer = SpillBuffer(tmp_path, target=1)
    buffer["x"] = np.arange(100_000)
    found = buffer["x"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    buffer.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found[-1] == 99_999
    buffer.close()


def test_two_buffers_may_share_a_directory(tmp_path):
    with SpillBuffer(tmp_path, target=1) as first, SpillBuffer(tmp_path, target=1) as second:
        first["x"], second["x"] = 1, 2
        assert (first["x"], second["x"]) == (1, 2)


# The package ------------------------------------------------------------------------------------


def test_the_class_can_be_sent_to_a_worker():
    assert pickle.loads(pickle.dumps(SpillBuffer)) is SpillBuffer


@pytest.mark.parametrize("missing", ["distributed", "zict"])
def test_what_is_not_installed_is_named(missing):
    code = f"""
import sys
sys.path.insert(0, sys.argv[1])
import pmshelve.dask
assert "distributed" not in sys.modules
try:
    pmshelve.dask.SpillBuffer
except ImportError as error:
    assert "pmshelve.dask needs distributed and zict" in str(error), error
    assert "{missing}" in str(error), error
    assert "pip install pmshelve[dask]" in str(error), error
else:
    raise AssertionError("imported")
try:
    pmshelve.dask.nonsense
except AttributeError:
    print("done")
"""
    assert run_isolated(code, ROOT, block=(missing,)) == b"done\n"


def test_backends_are_the_two_stores():
    assert list(slow.BACKENDS) == BACKENDS
