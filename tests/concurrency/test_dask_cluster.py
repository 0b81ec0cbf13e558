"""Clusters of real worker processes whose results do not fit into their memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed")

import dask
import dask.config
import distributed
from distributed import wait

from pmshelve.dask import SpillBuffer, SpillPlugin
from tests.support import daskjobs

MEMORY = "distributed.worker.memory."
OURS = "pmshelve.dask.slow"


@contextlib.contextmanager
def cluster_of(home, *, target=0.02, workers=2, limit=500 << 20, **options):
    """Start a cluster; check that no file of its workers is left when it is gone."""
    settings = {MEMORY + "target": target, "distributed.admin.log-format": "%(message)s"}
    with dask.config.set(settings):
        with distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=limit,
            local_directory=str(home),
            dashboard_address=":0",
            silence_logs=50,
            **options,
        ) as cluster:
            with distributed.Client(cluster) as client:
                yield cluster, client
    assert not files_below(home)


def files_below(home):
    return [
        path
        for path in home.rglob("*")
        if path.is_file() and ".lock" not in path.name and path.suffix != ".dirlock"
    ]


def until(condition, seconds=60):
    """Wait until a condition holds; return what it gives."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.05)
    return found


def total(client, what):
    return sum(state[what] for state in client.run(daskjobs.spilled).values())


@pytest.mark.parametrize("how", ["data", "plugin"])
def test_arrays_frames_and_small_objects_come_back_right(tmp_path, how):
    """Everything spills; a task that changes its input does no harm to anybody else."""
    options = {"data": SpillBuffer} if how == "data" else {}
    with cluster_of(tmp_path, **options) as (_, client):
        if how == "plugin":
            client.register_plugin(SpillPlugin())
        blocks = client.map(daskjobs.block, range(60))
        records = client.map(daskjobs.record, range(400))
        wait([*blocks, *records])
        states = client.run(daskjobs.spilled).values()
        assert {state["store"] for state in states} == {OURS}
        assert all(state["target"] <= 11 << 20 for state in states)
        assert sum(state["spilled"] for state in states) > 38 << 20
        assert len(files_below(tmp_path)) <= 4
        assert all(client.gather(client.map(daskjobs.spoil, blocks, range(60), pure=False)))
        assert all(client.gather(client.map(daskjobs.is_record, records, range(400))))
        if how == "data":
            check_collections(client)


def check_collections(client):
    array = pytest.importorskip("dask.array")
    pytest.importorskip("pyarrow")
    frames = pytest.importorskip("dask.dataframe")
    import pandas as pd

    numbers = array.arange(4_000_000, chunks=200_000).persist()
    wait(numbers)
    assert int((numbers * 2).sum().compute()) == 4_000_000 * 3_999_999
    count = 200_000
    plain = pd.DataFrame(
        {
            "number": range(count),
            "share": [number / 7 for number in range(count)],
            "name": [f"name {number % 100}" for number in range(count)],
        }
    )
    frame = frames.from_pandas(plain, npartitions=20).persist()
    wait(frame)
    found = frame.groupby("name").number.sum().compute()
    assert found.to_dict() == plain.groupby("name").number.sum().to_dict()
    back = frame.compute()
    back["name"] = back["name"].astype("object")
    plain["name"] = plain["name"].astype("object")
    pd.testing.assert_frame_equal(back, plain)
    del numbers, frame
    assert client.status == "running"


def test_a_worker_is_killed_while_everybody_spills(tmp_path):
    with cluster_of(tmp_path) as (_, client):
        client.register_plugin(SpillPlugin())
        blocks = client.map(daskjobs.block, range(80))
        wait(blocks)
        before = {state["pid"]: state for state in client.run(daskjobs.spilled).values()}
        checks = client.map(daskjobs.is_block, blocks, range(80))
        victim = next(iter(before))
        os.kill(victim, signal.SIGKILL)
        assert all(client.gather(checks))
        client.wait_for_workers(2, timeout=60)
        after = {state["pid"]: state for state in client.run(daskjobs.spilled).values()}
        assert victim not in after
        assert {state["store"] for state in after.values()} == {OURS}
        assert not Path(before[victim]["directory"]).exists()
        homes = {state["directory"] for state in after.values()}
        assert all(
            any(str(path).startswith(home) for home in homes) for path in files_below(tmp_path)
        )


def test_a_worker_is_not_paused_for_what_it_has_spilled(tmp_path, profile):
    """Its pages do not stay in its memory.

    With the profile "torture" 20 GB are spilled instead of one.
    """
    size, count, limit = 4 << 20, 250 * profile.factor, 400 << 20
    with cluster_of(tmp_path, target=0.1, workers=1, limit=limit) as (_, client):
        client.register_plugin(SpillPlugin())
        client.run(daskjobs.watch)
        blocks = client.map(daskjobs.block, range(count), size=size)
        wait(blocks)
        assert total(client, "spilled") > size * count - limit // 5
        assert all(client.gather(client.map(daskjobs.is_block, blocks, range(count))))
        (seen,) = client.run(daskjobs.watched).values()
        assert not seen["paused"]
        assert seen["rss"] < 0.8 * limit
        assert total(client, "rss") < 0.7 * limit
