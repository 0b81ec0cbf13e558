"""What is measured, by name: operations on small values.

    put       new keys in the order of the keys, then each replaced, in random order
    random    new keys in random order
    get       after reopening: `first` touch of each key, then once `seen`, then in random order
    missing   keys that are not there, in the handle that wrote (`memory`) and `reopened`
    delete    every key
    growth    the cost of a put when the file holds 500, 2,000, 100,000 keys
    latency   single puts: median, 99.9 %, the slowest
    synced    puts, each on the disk when it returns
    shelf     small dicts through `shelve`
    vacuum    giving back the space of as many replaced values as there are live ones

How an engine makes a put safe is part of its name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.engines import Engine
from benchmarks.framework import Job, Sample, check, measure, mix, workload

_SMALL = (
    "pmshelve",
    "pmshelve-exclusive",
    "pmshelve-batch",
    "pmshelve-dbm",
    "pmshelve-dbm-exclusive",
    "pmshelve-dbm-batch",
    "pmshelve-dbm-pool",
    "lmdb",
    "lmdb-writemap",
    "lmdb-batch",
    "dbm.gnu",
    "dbm.ndbm",
    "dbm.sqlite3",
    "dbm.sqlite3-nosync",
    "dbm.dumb",
    "semidbm",
    "leveldb",
    "zict.File",
    "diskcache",
    "sqlitedict",
    "mmappickle",
)
_NOT_BATCH = tuple(name for name in _SMALL if name not in {"pmshelve-batch", "pmshelve-dbm-batch"})


@workload("put", "put new keys, then replace them", (*_SMALL, "os.pwrite"))
def put(engine: Engine, job: Job) -> Iterator[Sample]:
    """Put new keys into an empty store, then replace all of them in another order."""
    items = job.items(engine)
    again = items[:]
    mix(again)
    job.warm()
    handle = engine.open(job.directory)
    try:
        yield measure("put", len(items), engine.fill, handle, items)
        check(engine, handle, items)
        yield measure("replace", len(again), engine.fill, handle, again)
        check(engine, handle, items)
    finally:
        engine.close(handle)


@workload("random", "put new keys in random order", _SMALL)
def put_random(engine: Engine, job: Job) -> Iterator[Sample]:
    """Put new keys into an empty store, in no order."""
    items = job.items(engine)
    mix(items)
    job.warm()
    handle = engine.open(job.directory)
    try:
        yield measure("put", len(items), engine.fill, handle, items)
        check(engine, handle, items)
    finally:
        engine.close(handle)


@workload("get", "get every key after reopening: first touch, then seen", _NOT_BATCH)
def get(engine: Engine, job: Job) -> Iterator[Sample]:
    """Get each key three times from a store that was filled, closed and opened again."""
    _build(engine, job)
    job.warm()
    handle = engine.open(job.directory)
    try:
        for metric in ("first", "seen", "random order"):
            keys = job.keys(engine, mixed=metric == "random order")
            yield measure(metric, len(keys), engine.read, handle, keys)
        check(engine, handle, job.items(engine))
    finally:
        engine.close(handle)


def _build(engine: Engine, job: Job) -> None:
    handle = engine.open(job.directory)
    try:
        engine.load(handle, job.items(engine))
    finally:
        engine.close(handle)


@workload("missing", "ask for keys that are not there", _NOT_BATCH)
def missing(engine: Engine, job: Job) -> Iterator[Sample]:
    """Ask the handle that wrote, and one that was opened later."""
    handle = engine.open(job.directory)
    try:
        engine.load(handle, job.items(engine))
        keys = job.keys(engine, absent=True)
        yield measure("memory", len(keys), engine.probe, handle, keys)
    finally:
        engine.close(handle)
    handle = engine.open(job.directory)
    try:
        keys = job.keys(engine, absent=True)
        yield measure("reopened", len(keys), engine.probe, handle, keys)
    finally:
        engine.close(handle)


@workload("delete", "delete every key", _SMALL)
def delete(engine: Engine, job: Job) -> Iterator[Sample]:
    """Delete the keys of a store, in their order."""
    job.warm()
    handle = engine.open(job.directory)
    try:
        # dbm.dumb writes its whole index at each deletion, so only some of its keys are deleted.
        stored = 500 * job.count if engine.name == "dbm.dumb" else job.count
        engine.load(handle, job.items(engine, stored))
        keys = job.keys(engine)
        yield measure("delete", len(keys), engine.remove, handle, keys)
        if engine.fetch(handle, keys[0]) is not None:
            raise RuntimeError(f"{engine.name} still holds a deleted key")
    finally:
        engine.close(handle)


_GROWTH = ("pmshelve", "pmshelve-exclusive", "pmshelve-dbm", "lmdb", "dbm.gnu", "mmappickle")


@workload("growth", "the cost of a put when the file holds more and more", _GROWTH)
def growth(engine: Engine, job: Job) -> Iterator[Sample]:
    """Time some puts at each of several sizes of one file."""
    slow = engine.name == "mmappickle"
    largest = 2_000 if slow and not job.quick else 500 if slow else job.count
    sizes = [size for size in (500, 2_000, 100_000) if size <= largest]
    timed = 50 if slow else min(1_000, job.count)
    items = job.items(engine, sizes[-1] + timed * len(sizes))
    job.warm()
    handle = engine.open(job.directory)
    done = 0
    try:
        for size in sizes:
            if size > done:
                # Put by put: a store filled in one batch may be in better order than it would be.
                engine.fill(handle, items[done:size])
                done = size
            part = items[done : done + timed]
            yield measure(f"at {size:,}", len(part), engine.fill, handle, part)
            done += timed
    finally:
        engine.close(handle)


_LATENCY = ("pmshelve", "pmshelve-exclusive", "lmdb", "dbm.gnu", "dbm.sqlite3-nosync", "semidbm")


@workload("latency", "single puts: what the slow ones cost", _LATENCY)
def latency(engine: Engine, job: Job) -> Iterator[Sample]:
    """Time each put of a filling store by itself."""
    items = job.items(engine)
    job.warm()
    handle = engine.open(job.directory)
    times = []
    try:
        clock = time.perf_counter
        for item in items:
            start = clock()
            engine.fill(handle, (item,))
            times.append(clock() - start)
    finally:
        engine.close(handle)
    times.sort()
    for metric, part in (("median", 0.5), ("99.9 %", 0.999), ("slowest", 1.0)):
        value = times[min(len(times) - 1, int(len(times) * part))]
        yield Sample(metric, value * 1e6, count=len(times))


_SYNCED = (
    "pmshelve-sync",
    "pmshelve-dbm-sync",
    "lmdb-sync",
    "dbm.gnu-sync",
    "sqlite3-sync",
    "leveldb-sync",
    "os.pwrite+fdatasync",
)


@workload("synced", "puts, each on the disk when it returns", _SYNCED)
def synced(engine: Engine, job: Job) -> Iterator[Sample]:
    """Put some keys into a small store, each commit durable."""
    items = job.items(engine, min(job.count, 200 if job.quick else 1_000))
    handle = engine.open(job.directory)
    try:
        engine.fill(handle, items[:20])
        yield measure("put", len(items) - 20, engine.fill, handle, items[20:])
        check(engine, handle, items)
    finally:
        engine.close(handle)


_SHELVES = (
    "pmshelve-shelf",
    "pmshelve-shelf-exclusive",
    "pmshelve-shelf-batch",
    "pmshelve-shelf-pool",
    "lmdb",
    "lmdb-writemap",
    "lmdb-batch",
    "dbm.gnu",
    "dbm.ndbm",
    "dbm.sqlite3",
    "dbm.sqlite3-nosync",
    "dbm.dumb",
    "semidbm",
    "pickle",
)


@workload("shelf", "small dicts through shelve", _SHELVES)
def shelf(engine: Engine, job: Job) -> Iterator[Sample]:
    """Set, then get after reopening, small dicts under str keys."""
    keys = _keys_of_text(job)
    values = [
        {"id": number, "name": "somebody", "score": number / 7} for number in range(len(keys))
    ]
    items = list(zip(keys, values, strict=True))
    job.warm()
    store = engine.shelf(engine.open(job.directory))
    loops = engine if engine.ours or engine.name == "pickle" else Engine()
    try:
        yield measure("set", len(items), loops.fill, store, items)
    finally:
        if engine.name != "pickle":
            store.close()
            store = engine.shelf(engine.open(job.directory))
    try:
        for metric in ("get first", "get seen"):
            again = _keys_of_text(job)
            yield measure(metric, len(again), loops.read, store, again)
        found = store[keys[-1]] if engine.name != "pickle" else engine.fetch(store, keys[-1])
        if found != values[-1]:
            raise RuntimeError(f"{engine.name} returned {found!r} for a dict")
    finally:
        getattr(store, "close", store.clear)()


def _keys_of_text(job: Job) -> list[str]:
    return [f"{number:016d}" for number in range(job.count)]


_VACUUMED = ("pmshelve", "pmshelve-exclusive", "dbm.gnu", "semidbm", "mmappickle")


@workload("vacuum", "give back the space of replaced values", _VACUUMED)
def vacuum(engine: Engine, job: Job) -> Iterator[Sample]:
    """Replace every key once, then vacuum."""
    items = job.items(engine)
    handle = engine.open(job.directory)
    try:
        engine.load(handle, items)
        engine.load(handle, items)
        job.warm()
        yield measure("vacuum, a live key", len(items), engine.compact, handle)
        check(engine, handle, items)
    finally:
        engine.close(handle)
