"""A scheduler and two workers started as separate commands, as docs/dask.md says."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed")

import distributed
from distributed import wait

from tests.support import daskjobs

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def command(*arguments, log, **environment):
    """Run one of dask's commands; end it as a batch system does, and wait for it."""
    done = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "0.02",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=done | environment,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"did not end:\n{log.read_text()}") from None


def test_workers_started_as_commands_spill_into_our_store(tmp_path):
    address = tmp_path / "scheduler.json"
    disks = [tmp_path / "disk-1", tmp_path / "disk-2"]

    def start(how, *more, disk, log):
        options = ["--scheduler-file", str(address), "--nthreads", "1", "--memory-limit", "500MiB"]
        options += [how, "pmshelve.dask.preload", "--local-directory", str(disk), *more]
        return command("worker", *options, log=log, DASK_PMSHELVE__SPILL_BACKEND="mmapdict")

    with contextlib.ExitStack() as stack:
        log = tmp_path / "scheduler.log"
        options = ["--port", "0", "--dashboard-address", ":0", "--scheduler-file", str(address)]
        stack.enter_context(command("scheduler", *options, log=log))
        killed = stack.enter_context(
            start("--preload", "--no-nanny", disk=disks[0], log=tmp_path / "worker-1.log")
        )
        stack.enter_context(start("--preload-nanny", disk=disks[1], log=tmp_path / "worker-2.log"))
        end = time.monotonic() + 60
        while not address.exists():
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        with distributed.Client(scheduler_file=str(address)) as client:
            client.wait_for_workers(2, timeout=60)
            blocks = client.map(daskjobs.block, range(60))
            wait(blocks)
            states = list(client.run(daskjobs.spilled).values())
            assert {state["store"] for state in states} == {"pmshelve.dask.slow"}
            assert {state["kind"] for state in states} == {
                "distributed.spill",
                "pmshelve.dask.buffer",
            }
            assert {state["target"] for state in states} == {int((500 << 20) * 0.02)}
            assert sum(state["spilled"] for state in states) > 38 << 20
            for disk in disks:
                assert len(list(disk.rglob("spill-*.mmapdict"))) == 1
            assert all(client.gather(client.map(daskjobs.is_block, blocks, range(60))))
            # A worker that is killed and has no nanny is cleaned up after by the next one.
            killed.kill()
            killed.wait()
            (left,) = disks[0].rglob("spill-*")
            with start("--preload", "--no-nanny", disk=disks[0], log=tmp_path / "next.log"):
                client.wait_for_workers(2, timeout=60)
                assert not left.exists()
                assert all(client.gather(client.map(daskjobs.is_block, blocks, range(60))))
    for disk in disks:
        assert not list(disk.rglob("spill-*"))
