"""A store by its own interface: untyped, typed, and in the functions that take any mapping."""

from __future__ import annotations

import io
import os
from collections.abc import ItemsView, KeysView, Mapping, MutableMapping, ValuesView
from pathlib import Path
from typing import Any

from known import assert_type

from pmshelve.mmapdict import EmptyNDArray, Stats, mmapdict
from pmshelve.mmapdict.picklers import BasePickler, GenericPickler

# Without a type, values are Any, in the strictest mode too.
untyped = mmapdict("untyped")
assert_type(untyped, mmapdict[Any])
untyped["a"] = 1
untyped["a"] = "text"
print(untyped["a"].upper())
untyped.close()

# With one, it is as for dict[str, int].
counts: mmapdict[int] = mmapdict("counts")
counts["a"] = 1
assert_type(counts["a"], int)
assert_type(counts.get("a"), int | None)
assert_type(counts.get("a", 0), int)
assert_type(counts.get("b", "none"), int | str)
assert_type(counts.setdefault("c", 3), int)
assert_type(counts.pop("c"), int)
assert_type(counts.pop("c", None), int | None)
assert_type(counts.pop("c", 0), int)
assert_type(counts.keys(), KeysView[str])
assert_type(counts.values(), ValuesView[int])
assert_type(counts.items(), ItemsView[str, int])
assert_type(len(counts), int)
assert_type("a" in counts, bool)
for key, value in counts.items():
    assert_type(key, str)
    assert_type(value, int)
for key in reversed(counts):
    assert_type(key, str)
assert_type(sum(counts.values()), int)
counts.update({"d": 4}, e=5)
counts.update([("f", 6)])
counts.update(g=7)
assert_type(counts.popitem(), tuple[str, int])
with counts.batch() as same:
    assert_type(same, mmapdict[int])
    same["h"] = 8
assert_type(counts.stats(), Stats)
assert_type(counts.stats().dead_size, int)
assert_type(counts.check() == [], bool)
assert_type(counts.commit_number, int)
assert_type(counts.path, str | None)
counts.vacuum()
counts.sync()
counts.close()

# Options, names of every kind, and files.
with mmapdict[str](
    Path("texts"), timeout=None, sync=True, mmap_mode="c", exclusive=True, autovacuum=True
) as texts:
    assert_type(texts, mmapdict[str])
    texts["a"] = "text"
with mmapdict(b"texts", True, allow_pickle=False, face="native") as read:
    assert_type(read.readonly, bool)
with mmapdict("texts", picklers=[GenericPickler]):
    pass
with open("texts", "r+b") as file, mmapdict[str](file) as texts:
    assert_type(texts["a"], str)
assert os.path.exists("texts")
assert issubclass(GenericPickler, BasePickler)
assert isinstance(io.BytesIO(), io.IOBase)


def total(numbers: Mapping[str, int]) -> int:
    return sum(numbers.values())


def put(numbers: MutableMapping[str, int]) -> None:
    numbers["put"] = 10


with mmapdict[int]("counts") as counts:
    put(counts)
    assert_type(total(counts), int)


# A class over a store, generic itself.
class Log(mmapdict[list[str]]):
    def add(self, key: str, line: str) -> None:
        self[key] = [*self.get(key, []), line]


with Log("log") as log:
    assert_type(log, Log)
    log.add("today", "written")
    assert_type(log["today"], list[str])

with mmapdict("arrays") as arrays:
    arrays["empty"] = EmptyNDArray((3, 4), "f8")
    assert arrays["empty"].shape == (3, 4)
