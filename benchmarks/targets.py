"""The figures the stores are built to reach, each tied to what measures it.

`peers` are what peers did on the machine where the targets were set.  The machine of a run may be
faster or slower, so a report divides what the same peers do in the same run by these, and calls
the median of that the run's `pace`: 1.3 says that everything takes 1.3 times as long there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True)
class Target:
    """One figure to reach.

    Attributes
    ----------
    text
        What it is about.
    workload, metric, engine
        What is measured.
    limit
        The figure; None stands for the best peer of the same run.
    more_is_better
        Whether the limit is a lower one.
    base
        Divide by this metric of the same engine: the limit is a ratio.
    rivals
        Which engines a limit of None compares with; all peers of the workload by default.
    of_rival
        The share of such a peer's figure that may be reached at most.
    peers
        What peers did where the target was set.
    """

    text: str
    workload: str
    metric: str
    engine: str
    limit: float | None
    more_is_better: bool = False
    base: str | None = None
    rivals: tuple[str, ...] = ()
    of_rival: float = 1.0
    peers: Mapping[str, float] = field(default_factory=dict)


_PUT = {
    "lmdb": 3.0,
    "lmdb-writemap": 1.2,
    "dbm.gnu": 2.9,
    "dbm.sqlite3-nosync": 8.9,
    "dbm.dumb": 14.0,
    "zict.File": 16.0,
    "diskcache": 40.0,
    "mmappickle": 2_000.0,
}
_PUT_ALONE = {"semidbm": 1.5, "leveldb": 1.1}
_GET = {"dbm.gnu": 0.36, "lmdb": 1.05, "semidbm": 1.5, "dbm.sqlite3": 6.1, "mmappickle": 44.0}
_DELETE = {"lmdb": 5.2, "dbm.gnu": 3.9, "semidbm": 1.5}
_PUTS = {"dbm.sqlite3-nosync": 77_000.0, "lmdb": 235_000.0, "mmappickle": 137.0}
_GETS = {"dbm.sqlite3-nosync": 135_000.0, "lmdb": 809_000.0, "mmappickle": 569.0}
_OPEN = {"lmdb": 0.25, "dbm.gnu": 0.1, "dbm.sqlite3": 2.5, "semidbm": 860.0, "dbm.dumb": 8_600.0}
_SHELF_RIVALS = (
    "lmdb",
    "lmdb-writemap",
    "lmdb-batch",
    "dbm.gnu",
    "dbm.ndbm",
    "dbm.sqlite3",
    "dbm.sqlite3-nosync",
    "dbm.dumb",
    "semidbm",
)
_POOL = "pmshelve-pool"

TARGETS: tuple[Target, ...] = (
    *(
        Target(f"{text}{face}", workload, metric, f"pmshelve{door}{way}", limit, peers=peers)
        for text, workload, metric, way, limit, peers in (
            ("put, visible to other processes", "put", "put", "", 4.0, _PUT),
            ("put, exclusive", "put", "put", "-exclusive", 2.2, _PUT_ALONE),
            ("put, in a batch", "put", "put", "-batch", 1.2, {"lmdb-batch": 0.37}),
            ("get, key seen before", "get", "seen", "", 0.6, _GET),
            ("get, key seen before, exclusive", "get", "seen", "-exclusive", 0.4, _GET),
            ("get, first touch through a checkpoint", "get", "first", "", 2.0, _GET),
            ("missing key, index in memory", "missing", "memory", "", 0.2, {}),
            ("missing key, through a checkpoint", "missing", "reopened", "", 0.8, {}),
            ("delete", "delete", "delete", "", 2.5, _DELETE),
        )
        for door, face in (("", ""), ("-dbm", ", dbm face"))
    ),
    *(
        Target(f"shelf, {metric}, {way}", "shelf", metric, engine, None, rivals=_SHELF_RIVALS)
        for way, engine in (
            ("exclusive", "pmshelve-shelf-exclusive"),
            ("in a batch", "pmshelve-shelf-batch"),
        )
        for metric in ("set", "get seen")
    ),
    Target("shelf, set, visible", "shelf", "set", "pmshelve-shelf", 7.0),
    *(
        Target(f"dask's spilling, {what}, {metric}", workload, metric, "pmshelve-dask", None,
               rivals=("dask",), of_rival=share)
        for what, workload, metric, share in (
            ("4 KiB bytes", "spill-bytes", "set", 1 / 1.4),
            ("4 KiB bytes", "spill-bytes", "get", 1 / 1.2),
            ("4 KiB arrays", "spill-arrays", "set", 1 / 1.4),
            ("4 KiB arrays", "spill-arrays", "get", 1 / 1.2),
            ("1 MiB arrays", "spill-large", "set", 1.0),
            ("1 MiB arrays", "spill-large", "get", 1.0),
            ("a computation", "spill-cluster", "wall", 1.0),
        )
    ),
    *(
        Target(f"zict mapping, {what}, {metric}", workload, metric, "pmshelve-zict", None,
               rivals=(rival,), of_rival=share)
        for what, workload, metric, rival, share in (
            ("4 KiB", "zict-bytes", "set", "zict-file", 1 / 5),
            ("4 KiB", "zict-bytes", "get", "zict-file", 1 / 3),
            ("1 MiB", "zict-large", "set", "zict-file-memmap", 1.0),
            ("1 MiB", "zict-large", "get", "zict-file", 1 / 3),
            ("dask's serialiser", "zict-dask", "set, get, delete", "zict-lmdb", 1.0),
        )
    ),
    *(
        Target(f"zict mapping, {what}, set again", workload, "set again", "pmshelve-zict", 1.2,
               base="set")
        for what, workload in (("4 KiB", "zict-bytes"), ("1 MiB", "zict-large"))
    ),
    Target("put on the disk", "synced", "put", "pmshelve-sync", None),
    Target(
        "put, file of 100,000 keys against 500",
        "growth",
        "at 100,000",
        "pmshelve",
        1.25,
        base="at 500",
    ),
    Target("one writer beside one reader: puts", "processes", "puts", "pmshelve", 150_000, True,
           peers=_PUTS),
    Target("one reader beside one writer: gets", "processes", "gets", "pmshelve", 300_000, True,
           peers=_GETS),
    Target("torn or missing values there", "processes", "wrong values", "pmshelve", 0),
    Target("open a million-key file and get, ms", "open", "open and get", "pmshelve", 1.0,
           peers=_OPEN),
    Target("memory that takes, MiB", "open", "memory, total", "pmshelve", 5.0),
    Target("import pmshelve, ms", "import", "import", "import pmshelve", 15.0),
    Target("import pmshelve brings NumPy", "import", "brings NumPy", "import pmshelve", 0),
    *(
        Target(f"array of {size}: put, of a bare pwrite", "arrays", f"put, {size}, of pwrite",
               "pmshelve-arrays", share, True)
        for size, share in (("64 KiB", 0.55), ("1 MiB", 0.85), ("64 MiB", 0.95))
    ),
    *(
        Target(f"array of {size}: get", "arrays", f"get, {size}", "pmshelve-arrays", 5.0)
        for size in ("64 KiB", "1 MiB", "64 MiB")
    ),
    *(
        Target(f"array of {size}: get and sum, of {what}", "arrays", f"sum, {size}, of {metric}",
               "pmshelve-arrays", 0.95, True)
        for size in ("64 KiB", "1 MiB", "64 MiB")
        for what, metric in (
            ("summing an open numpy.memmap", "memmap"),
            ("opening and summing one", "opening memmap"),
        )
    ),
    Target("set of a dict, each a transaction", "pool-dict", "set", _POOL, 15.0,
           peers={"pynvm": 42.0, "zodb": 102.0}),
    Target("get of a dict, first", "pool-dict", "get first", _POOL, 2.5,
           peers={"pynvm": 13.0, "zodb": 1.9}),
    Target("get of a dict, again", "pool-dict", "get again", _POOL, 0.6,
           peers={"pynvm": 7.0, "zodb": 0.4}),
    Target("append to a list, each a transaction", "pool-list", "append", _POOL, 10.0,
           peers={"pynvm": 30.0, "zodb": 181.0}),
    Target("getitem of a list, once read", "pool-list", "getitem", _POOL, 0.6,
           peers={"pynvm": 2.2, "zodb": 0.1}),
    Target("insert at 0 of a list of 2,000", "pool-list", "insert", _POOL, 20.0,
           peers={"pynvm": 202.0, "zodb": 311.0}),
    Target("extend a list by a million ints, ms", "pool-list", "extend, a million", _POOL, 100.0),
    Target("set, of 100 in one transaction", "pool-transaction", "set", _POOL, 7.0,
           peers={"pynvm": 46.0, "zodb": 6.0}),
    Target("bytes of an entry beyond its 116", "pool-space", "an entry", _POOL, 150.0,
           peers={"pynvm": 268.0}),
    Target("commit on the disk, of pwrite and fdatasync", "pool-durable",
           "commit, of pwrite and fdatasync", "pmshelve-pool-full", 1.2),
    Target("open an empty pool, ms", "pool-million", "open, empty", _POOL, 1.0,
           peers={"pynvm": 6.0}),
    Target("open a pool of a million objects, ms", "pool-million", "open", _POOL, 1.0,
           peers={"pynvm": 6.0}),
    Target("memory that takes, MiB", "pool-million", "memory", _POOL, 10.0),
    Target("close it after one change, ms", "pool-million", "close after one change", _POOL, 20.0),
    Target("collect all its garbage, ms", "pool-million", "collect all", _POOL, 5_000.0),
    Target("churn of a million values: space, of the live bytes", "pool-churn",
           "space, of the live bytes", _POOL, 1.5),
)  # fmt: skip
