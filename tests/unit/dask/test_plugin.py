"""The plugin on real workers: registered early, late, twice, and taken away again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask.config
import distributed
from distributed import spill
from distributed.utils_test import captured_logger

from pmshelve.dask import SpillBuffer, SpillPlugin, preload
from pmshelve.dask.handover import Handover
from pmshelve.dask.slow import Slow

LIMIT = 1 << 30
TARGET = 10_000


@contextlib.asynccontextmanager
async def worker_of(tmp_path, *, client=False, **options):
    """Run a scheduler and one worker in this process."""
    options.setdefault("memory_limit", LIMIT)
    async with (
        distributed.Scheduler(dashboard_address=":0", port=0, host="127.0.0.1") as scheduler,
        distributed.Worker(
            scheduler.address,
            nthreads=1,
            local_directory=str(tmp_path),
            dashboard_address=":0",
            **options,
        ) as worker,
    ):
        worker.scheduler_of_test = scheduler
        if isinstance(worker.data, spill.SpillBuffer) and "data" not in options:
            worker.data.n = TARGET
        if client:
            async with distributed.Client(scheduler.address, asynchronous=True) as asked:
                yield worker, asked
        else:
            yield worker, None
    gc.collect()


@pytest.fixture
def run(tmp_path):
    """Run a coroutine function with a worker and its data; what it raises is the test's failure."""

    def start(test, **options):
        async def whole():
            async with worker_of(tmp_path, **options) as (worker, client):
                await (test(worker) if client is None else test(worker, client))

        asyncio.run(whole())
        left = [path for path in tmp_path.rglob("*") if path.is_file() and ".lock" not in path.name]
        assert not left, left

    return start


def array(number):
    return np.full(2 * TARGET // 8, float(number))


def fill(data, *numbers):
    """Set keys whose values are spilled at once, and nowhere else."""
    for number in numbers:
        data[f"key-{number}"] = array(number)


def values_of(data):
    return {int(key[4:]): float(data[key].min()) for key in data}


def files_of(worker, suffix):
    return [path.name for path in Path(worker.local_directory).rglob(f"*{suffix}")]


def dasks_files(worker):
    return list(Path(worker.local_directory, "storage").iterdir())


def is_there(worker):
    return Path(worker.local_directory).exists()


@pytest.mark.parametrize(("backend", "suffix"), [("mmapdict", ".mmapdict"), ("pmemobj", ".pool")])
def test_a_worker_spills_into_one_file(run, backend, suffix):
    async def test(worker):
        data = worker.data
        await worker.plugin_add(SpillPlugin(backend), catch_errors=False)
        assert worker.data is data
        assert type(data) is spill.SpillBuffer
        fill(data, *range(20))
        assert len(data.slow) == 20
        assert len(files_of(worker, suffix)) == 1
        assert not dasks_files(worker)
        assert values_of(data) == {number: number for number in range(20)}
        assert data.spilled_total.memory >= 20 * 2 * TARGET

    run(test)


def test_what_was_spilled_before_is_served_until_it_is_gone(run):
    async def test(worker):
        data = worker.data
        fill(data, 1, 2)
        before = data.spilled_total
        await worker.plugin_add(SpillPlugin(), catch_errors=False)
        assert data.spilled_total == before
        fill(data, 3)
        assert values_of(data) == {1: 1, 2: 2, 3: 3}
        assert len(dasks_files(worker)) == 2
        assert isinstance(data._slow_uncached.d, Handover)
        fill(data, 1)  # set again
        del data["key-2"]
        assert not dasks_files(worker)
        assert data._slow_uncached.d is data._slow_uncached.store
        assert values_of(data) == {1: 1, 3: 3}
        for key in list(data):
            del data[key]
        assert data.spilled_total == (0, 0)

    run(test)


def test_unregistering_puts_dasks_files_back(run):
    async def test(worker):
        data = worker.data
        own = data._slow_uncached
        dump = own.dump
        await worker.plugin_add(SpillPlugin(), catch_errors=False)
        fill(data, 1, 2)
        small = data["small"] = "in memory"
        await worker.plugin_remove(SpillPlugin.name)
        assert data._slow_uncached is own
        assert own.dump is dump
        fill(data, 3)
        assert values_of({key: data[key] for key in data if key != "small"}) == {1: 1, 2: 2, 3: 3}
        assert data["small"] is small
        assert len(dasks_files(worker)) == 1
        assert len(files_of(worker, ".mmapdict")) == 1
        del data["key-1"], data["key-2"]
        assert not files_of(worker, ".mmapdict")
        assert type(own.d) is spill.AnyKeyFile
        assert float(data["key-3"][0]) == 3
        assert data.spilled_total == own.weight_by_key["key-3"]

    run(test)


def test_unregistering_from_an_idle_worker_leaves_no_file(run):
    async def test(worker):
        own = worker.data._slow_uncached
        await worker.plugin_add(SpillPlugin(), catch_errors=False)
        await worker.plugin_remove(SpillPlugin.name)
        assert worker.data._slow_uncached is own
        assert type(own.d) is spill.AnyKeyFile
        assert not files_of(worker, ".mmapdict")

    run(test)


def test_values_outlast_any_number_of_changes(run):
    async def test(worker):
        data = worker.data
        expected = {}
        for round_ in range(4):
            await worker.plugin_add(SpillPlugin(), catch_errors=False)
            fill(data, 10 * round_)
            await worker.plugin_add(SpillPlugin(), catch_errors=False)
            fill(data, 10 * round_ + 1)
            await worker.plugin_remove(SpillPlugin.name)
            fill(data, 10 * round_ + 2)
            expected |= {10 * round_ + n: 10 * round_ + n for n in range(3)}
            assert values_of(data) == expected
        for number in expected:
            del data[f"key-{number}"]
        assert not data
        assert not files_of(worker, ".mmapdict")
        assert type(data._slow_uncached.d) is spill.AnyKeyFile

    run(test)


def test_one_line_reaches_workers_that_are_there_and_those_that_come(run, tmp_path):
    async def test(worker, client):
        await client.register_plugin(SpillPlugin())
        first = worker.data._slow_uncached
        assert isinstance(first, Slow)
        fill(worker.data, 1)
        await client.register_plugin(SpillPlugin())
        assert worker.data._slow_uncached is first
        async with distributed.Worker(
            worker.scheduler.address, local_directory=str(tmp_path), memory_limit=LIMIT
        ) as later:
            assert isinstance(later.data._slow_uncached, Slow)
            await client.unregister_worker_plugin(SpillPlugin.name)
            assert not isinstance(later.data._slow_uncached, Slow)
        assert not isinstance(worker.data._slow_uncached, Slow)
        assert values_of(worker.data) == {1: 1}
        del worker.data["key-1"]

    run(test, client=True)


@pytest.mark.parametrize("options", [{"memory_limit": 0}, {"data": dict}])
def test_a_worker_that_does_not_spill_says_so(run, options):
    async def test(worker):
        with captured_logger("distributed.worker.memory") as log:
            await worker.plugin_add(SpillPlugin(), catch_errors=False)
        assert "in a dict, not in dask's spill buffer" in log.getvalue()
        worker.data["x"] = 1
        await worker.plugin_remove(SpillPlugin.name)
        assert worker.data == {"x": 1}
        del worker.data["x"]

    run(test, **options)


def test_a_worker_whose_data_is_ours_is_left_alone(run):
    async def test(worker):
        slow = worker.data._slow_uncached
        await worker.plugin_add(SpillPlugin(), catch_errors=False)
        assert worker.data._slow_uncached is slow
        await worker.plugin_remove(SpillPlugin.name)
        assert worker.data._slow_uncached is slow
        fill(worker.data, 1)
        assert values_of(worker.data) == {1: 1}

    run(test, data=SpillBuffer)


def test_a_closing_worker_serves_what_it_has_and_then_closes_the_store(tmp_path):
    async def whole():
        async with worker_of(tmp_path) as (worker, _):
            await worker.plugin_add(SpillPlugin(), catch_errors=False)
            data = worker.data
            fill(data, 1)
            view = data["key-1"]
            worker.status = distributed.core.Status.closing
            await worker.plugin_remove(SpillPlugin.name)
            fill(data, 2)
            assert values_of(data) == {1: 1, 2: 2}
            worker.status = distributed.core.Status.running
        await asyncio.sleep(0)
        assert not is_there(worker)
        assert view.min() == 1  # what somebody holds stays
        with pytest.raises(ValueError, match="closed"):
            data["key-2"]

    asyncio.run(whole())


def test_a_backend_that_is_none_is_refused():
    with pytest.raises(ValueError, match="mmapdict, pmemobj, not 'file'"):
        SpillPlugin("file")


# Preloading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["mmapdict", "pmemobj"])
def test_preloading_into_a_worker_registers_the_plugin(run, backend):
    async def test(worker):
        assert worker.data._slow_uncached.backend == backend
        assert SpillPlugin.name in worker.plugins
        worker.data.n = TARGET
        fill(worker.data, 1)
        assert values_of(worker.data) == {1: 1}

    with dask.config.set({} if backend == "mmapdict" else {"pmshelve.spill-backend": backend}):
        run(test, preload=["pmshelve.dask.preload"])


def test_preloading_into_a_nanny_gives_data_to_its_workers(tmp_path):
    async def whole():
        async with distributed.Scheduler(dashboard_address=":0", port=0) as scheduler:
            nanny = distributed.Nanny(scheduler.address, local_directory=str(tmp_path))
            await preload.dask_setup(nanny)
            assert nanny.worker_kwargs["data"] == (SpillBuffer, {"backend": "mmapdict"})
            await nanny.close()
            with pytest.raises(TypeError, match="not for a Scheduler"):
                await preload.dask_setup(scheduler)

    asyncio.run(whole())
