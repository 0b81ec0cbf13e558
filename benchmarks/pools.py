"""What is measured of stores whose values are small and change in place, by name.

    pool-dict         set new keys, each in its own transaction; get after reopening, and again
    pool-list         append, get, insert at the front of 2,000, extend by a million ints
    pool-transaction  100 sets in one transaction
    pool-space        what an entry takes beyond the 16 characters of its key and the 100 of its value
    pool-durable      a commit on the disk, beside overwriting 200 bytes of a file and fdatasync
    pool-million      in fresh processes: open an empty store and one of a million objects, change
                      one and close, collect the garbage of all
    pool-churn        values of mixed sizes replaced a million times: space, of what is alive

Values are ints where nothing else is said, else texts.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import pool_engines
from benchmarks.engines import Engine
from benchmarks.framework import KEY_SIZE, VALUE_SIZE, Job, Sample, check, measure, workload
from benchmarks.pool_engines import PoolEngine

__all__ = ["LIVE_SHARE", "churn_values"]

_ROOT = Path(__file__).parent.parent
_ENGINES = ("pmshelve-pool", "pynvm", "zodb", "sqlite3", "lmdb-dict")
_LISTS = tuple(name for name in _ENGINES)
INSERT_LENGTH = 2_000
EXTEND_FACTOR = 10
TOGETHER = 100
LIVE_SHARE = 50


def _pairs(job: Job, engine: Engine) -> list[tuple[Any, Any]]:
    return [(key, number) for number, key in enumerate(job.keys(engine))]


@workload("pool-dict", "set and get small values, each set a transaction", _ENGINES)
def pool_dict(engine: Engine, job: Job) -> Iterator[Sample]:
    """Set every key, reopen, get every key twice."""
    pairs = _pairs(job, engine)
    job.warm()
    handle = engine.open(job.directory)
    try:
        yield measure("set", len(pairs), engine.fill, handle, pairs)
    finally:
        engine.close(handle)
    handle = engine.open(job.directory)
    try:
        for metric in ("get first", "get again"):
            keys = job.keys(engine)
            yield measure(metric, len(keys), engine.read, handle, keys)
        check(engine, handle, pairs)
    finally:
        engine.close(handle)


@workload("pool-list", "append, get, insert, extend a list", _LISTS)
def pool_list(engine: Engine, job: Job) -> Iterator[Sample]:
    """Each in a store of its own, but for the gets."""
    assert isinstance(engine, PoolEngine)
    numbers = list(range(10**6, 10**6 + job.count))
    job.warm()
    with _opened(engine, job, "append") as handle:
        yield measure("append", len(numbers), engine.append, handle, numbers)
        engine.item(handle, range(len(numbers)))
        yield measure("getitem", len(numbers), engine.item, handle, range(len(numbers)))
    if engine.has_insert:
        with _opened(engine, job, "insert") as handle:
            engine.extend(handle, numbers[:INSERT_LENGTH])
            count = min(1_000, job.count)
            yield measure("insert", count, engine.insert, handle, numbers[:count])
    with _opened(engine, job, "extend") as handle:
        many = list(range(job.count * EXTEND_FACTOR))
        sample = measure("extend", 1, engine.extend, handle, many)
        whole = 10**6 / len(many)  # an engine that is given less is counted as if it were linear
        yield Sample("extend, a million", sample.value * whole / 1e3, "ms", count=len(many))
        if engine.length(handle) != len(many):
            raise RuntimeError(f"{engine.name} has {engine.length(handle)} of {len(many)}")


class _opened:  # noqa: N801 - used as a function is
    """Open a store in a directory of its own."""

    def __init__(self, engine: Engine, job: Job, name: str) -> None:
        self._engine = engine
        self._directory = job.directory / name

    def __enter__(self) -> Any:
        self._directory.mkdir()
        self._handle = self._engine.open(self._directory)
        return self._handle

    def __exit__(self, *exception: object) -> None:
        self._engine.close(self._handle)


@workload("pool-transaction", "100 sets in one transaction", _ENGINES)
def pool_transaction(engine: Engine, job: Job) -> Iterator[Sample]:
    """Set every key, a hundred at a time."""
    pairs = _pairs(job, engine)
    job.warm()
    handle = engine.open(job.directory)

    def fill() -> None:
        for first in range(0, len(pairs), TOGETHER):
            engine.load(handle, pairs[first : first + TOGETHER])

    try:
        yield measure("set", len(pairs), fill)
        check(engine, handle, pairs)
    finally:
        engine.close(handle)


@workload("pool-space", "space of an entry beyond key and value", _ENGINES)
def pool_space(engine: Engine, job: Job) -> Iterator[Sample]:
    """Set keys of 16 characters to texts of 100."""
    assert isinstance(engine, PoolEngine)
    items: list[Any] = [(key, value.decode()) for key, value in job.items(engine)]
    handle = engine.open(job.directory)
    try:
        before = engine.used(handle, job.directory)
        for first in range(0, len(items), TOGETHER):
            engine.load(handle, items[first : first + TOGETHER])
        used = engine.used(handle, job.directory) - before
        check(engine, handle, items)
    finally:
        engine.close(handle)
    yield Sample("an entry", used / len(items) - KEY_SIZE - VALUE_SIZE, "B", count=len(items))


_DURABLE = ("pmshelve-pool-full", "pynvm-sync", "zodb-sync", "sqlite3-full", "lmdb-dict-sync")


@workload("pool-durable", "a commit on the disk", _DURABLE)
def pool_durable(engine: Engine, job: Job) -> Iterator[Sample]:
    """Set a value and overwrite a file in turns."""
    result = run_child(
        "durable", engine, job.directory, min(job.count, 200 if job.quick else 2_000)
    )
    yield Sample("commit", result["commit"], count=int(result["count"]))
    yield Sample("pwrite and fdatasync", result["overwrite"], count=int(result["count"]))
    yield Sample("commit, of pwrite and fdatasync", result["ratio"], "ratio")


@workload("pool-million", "open, change and collect a million objects", _ENGINES, shared_files=True)
def pool_million(engine: Engine, job: Job) -> Iterator[Sample]:
    """Do each in a process of its own; the large store is built once a run."""
    assert isinstance(engine, PoolEngine)
    large, empty = job.directory / "large", job.directory / "empty"
    if "built" not in job.shared:
        job.shared["built"] = True
        for place in (large, empty):
            place.mkdir()
            handle = engine.open(place)
            if place == large:
                engine.build_objects(handle, job.count * 10)
            engine.close(handle)
    job.warm()
    result = run_child("open", engine, empty)
    yield Sample("open, empty", result["open"], "ms")
    result = run_child("open", engine, large)
    yield Sample("open", result["open"], "ms")
    yield Sample("memory", result["memory"], "MiB")
    result = run_child("close", engine, large)
    yield Sample("close after one change", result["close"], "ms")
    if type(engine).collect is not PoolEngine.collect:
        result = run_child("collect", engine, large)
        yield Sample("collect all", result["collect"], "ms")


_CHURNED = ("pmshelve-pool", "zodb", "sqlite3", "lmdb-dict")


def churn_values(source: random.Random, count: int) -> list[Any]:
    """Return texts of 16 to 4,096 characters, as many of them in each octave."""
    return ["x" * int(2 ** source.uniform(4, 12)) for _ in range(count)]


@workload("pool-churn", "replace values of mixed sizes again and again", _CHURNED)
def pool_churn(engine: Engine, job: Job) -> Iterator[Sample]:
    """Keep the number of keys; replace a random one's value each time."""
    assert isinstance(engine, PoolEngine)
    source = random.Random(6)
    count = job.count * 10
    if engine.limits.get("pool-churn"):
        count = job.count
    keys = job.keys(engine)[: max(100, count // LIVE_SHARE)]
    handle = engine.open(job.directory)
    live = dict(zip(keys, churn_values(source, len(keys)), strict=True))
    try:
        engine.load(handle, live.items())
        for _ in range(count // TOGETHER):
            items = list(
                zip(source.choices(keys, k=TOGETHER), churn_values(source, TOGETHER), strict=True)
            )
            engine.load(handle, items)
            live.update(items)
        check(engine, handle, list(live.items()))
        used = engine.used(handle, job.directory)
    finally:
        engine.close(handle)
    alive = sum(len(key) + len(value) for key, value in live.items())
    yield Sample("space, of the live bytes", used / alive, "ratio", count=count)


def run_child(role: str, engine: Engine, directory: Path, *arguments: object) -> dict[str, float]:
    """Run one role of `benchmarks.pool_child`; return what it measured."""
    assert isinstance(engine, PoolEngine)
    command = [sys.executable, "-m", "benchmarks.pool_child", role, engine.name, str(directory)]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(_ROOT), **engine.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise RuntimeError(f"a process of the benchmark failed: {last[0]}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


assert pool_engines  # the engines register themselves
