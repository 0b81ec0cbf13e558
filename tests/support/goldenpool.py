"""The pools of tests/data, made anew: the same bytes on every Python, whatever PYTHONHASHSEED is.

    python -m tests.support.goldenpool

writes them.  Do that for a new format version only, under a new name.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from pmshelve import pmemobj
from pmshelve.pmemobj import rawpool, superblock
from pmshelve.pmemobj.heap import Heap
from tests.support.pools import crash_copy
from tests.support.stores import DATA

KINDS = ["closed", "killed"]


class Person(pmemobj.PersistentObject):
    """One that is in the golden pools, under the name it has here."""


def content() -> dict[Any, Any]:
    """Return what the golden pools hold, as plain objects; the object's attributes as a dict."""
    return {
        "immediates": [None, True, False, 0, -1, 2**63 - 1, -(2**63), 1.5, -0.0, "", "é", b"\0"],
        "objects": ["a text of some length", b"bytes" * 9, 2**64, -(10**40), 1 + 2j, "\ud800" * 9],
        "numbers": list(range(0, 3000, 7)),
        ("a", ("tuple", 1)): (1, (2, "nested tuples", ())),
        frozenset(["one: their order is the plain set's"]): frozenset(
            [1, 2.5, "a member of some length"]
        ),
        "set": {1, "two", b"three", (4, 5), None},
        "many": {f"key {number}": number * number for number in range(300)},
        "person": {"name": "Ada", "born": 1815, "friends": ["Charles"]},
        1: "one",
        2.5: "two and a half",
    }


def fill(pool: Any) -> None:
    """Put `content` into a pool, with some history: things replaced, freed, moved."""
    new = pool.new
    plain = content()
    pool.root = root = new(pmemobj.PersistentDict)
    for key, value in plain.items():
        root[key] = "something that is replaced"
        if isinstance(value, list):
            root[key] = new(pmemobj.PersistentList, value)
        elif isinstance(value, set):
            # In a known order: a set's own depends on PYTHONHASHSEED.
            root[key] = new(pmemobj.PersistentSet, sorted(value, key=repr))
        elif isinstance(value, frozenset):
            root[key] = new(pmemobj.PersistentFrozenSet, sorted(value, key=repr))
        elif key == "person":
            root[key] = person = new(Person)
            person.name, person.born = value["name"], value["born"]
            person.friends = new(pmemobj.PersistentList, value["friends"])
        elif isinstance(value, dict):
            root[key] = new(pmemobj.PersistentDict, value)
        else:
            root[key] = value
    root["cycle"] = new(pmemobj.PersistentList, [root])
    with pool.transaction():
        root["gone"] = bytes(10_000)
        root["numbers"].insert(0, "first")
    del root["gone"], root["numbers"][0]


def counted() -> Callable[[int], bytes]:
    """Return a source of bytes that are no longer random."""
    state = 0

    def take(size: int) -> bytes:
        nonlocal state
        state += 1
        return bytes((state * 31 + place * 7) % 251 for place in range(size))

    return take


def make(kind: str) -> bytes:
    """Return the bytes of a golden pool."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pool")
        with mock.patch.object(superblock, "random_bytes", counted()):
            rawpool.create(path, 512 << 10, journal_size=64 << 10, format=Heap.format).close()
            with pmemobj.open(path, durability="lazy") as pool:
                fill(pool)
                crash_copy(pool, Path(directory, "copy"))
        return Path(directory, "copy" if kind == "killed" else "pool").read_bytes()


def path_of(kind: str) -> Path:
    """Return where a golden pool is kept, compressed."""
    return DATA / f"golden-1-{kind}.pool.gz"


def load(kind: str) -> bytes:
    """Return the bytes of a golden pool of tests/data."""
    return gzip.decompress(path_of(kind).read_bytes())


if __name__ == "__main__":
    # Under its importable name: `Person` of `__main__` could not be found again.
    from tests.support import goldenpool

    for each in KINDS:
        path_of(each).write_bytes(gzip.compress(goldenpool.make(each), mtime=0))
