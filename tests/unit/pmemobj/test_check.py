"""Every broken invariant is reported, and damage of any kind is survived."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve import pmemobj
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentList,
    PersistentSet,
    PersistentTuple,
)
from pmshelve.pmemobj.check import PoolStats, Problem, problems, stats
from pmshelve.pmemobj.layout import ROOT_OID, ROOT_TYPES, TYPE_CODE_SHIFT
from tests.support.userclasses import Counter, LinkedList, MyDict, MyList, Point

LONG = "a string that is too long to stand in an oid"


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Any]:
    """A pool with everything in it, whose memory a test may damage."""
    pool = pmemobj.create(tmp_path / "full.pool", durability="lazy")
    root = pool.root = pool.new(PersistentDict)
    root["list"] = pool.new(PersistentList, [1, LONG, None, LONG.encode() * 500, 10**30, 2j])
    root["set"] = pool.new(PersistentSet, range(50))
    root["tuple"] = pool.new(PersistentTuple, [root["list"], LONG])
    root["array"] = pool.new(PersistentArray, np.arange(500))
    root["point"] = pool.new(Point, root["list"])
    root["counter"] = pool.new(Counter, 7)
    root["queue"] = pool.new(LinkedList, [1, LONG, root["list"]])
    root["path"] = Path("/a/b")
    root["mine"] = pool.new(MyList, [1])
    root["other"] = pool.new(MyDict, a=1)
    assert pool.check() == []
    yield pool
    pool._end(clean=False, size=None)


def found(pool: Any, **options: Any) -> list[Problem]:
    with pool.lock:
        return list(problems(pool.mm, pool._raw, **options))


def store(pool: Any, offset: int, word: int) -> None:
    """Damage a word of memory behind everybody's back."""
    pool.mm.words[offset // 8] = word
    pool.mm.types.forget()


def offset_of(pool: Any, key: str) -> int:
    offset: int = pool.root[key]._p_oid[1]
    return offset


def header_of(pool: Any, offset: int) -> int:
    header: int = pool.mm.words[offset // 8]
    return header


def texts(pool: Any) -> str:
    return "\n".join(map(str, found(pool)))


# What is wrong ----------------------------------------------------------------------------------


def test_a_count_that_is_too_low_or_too_high(full: Any) -> None:
    at = offset_of(full, "list")
    header = header_of(full, at)
    store(full, at, header - 1)
    assert found(full) == [Problem("an object is held 4 times, its count says 3", at, "R2")]
    store(full, at, header + 1)
    assert found(full) == [Problem("an object is held 4 times, its count says 5", at, "R2")]
    store(full, at, header)
    assert found(full) == []


def test_a_type_code_that_nobody_has(full: Any) -> None:
    at = offset_of(full, "list")
    for code in (9, 15, 30, 63, 500):
        header = header_of(full, at)
        store(full, at, code << TYPE_CODE_SHIFT | 4)
        assert "type code" in texts(full)
        store(full, at, header)
    assert found(full) == []


def test_a_reference_to_nowhere(full: Any) -> None:
    at = full.mm.heap.start + 8 * (ROOT_OID + 1)
    root = header_of(full, at)
    for target in (root + 8, root + 16, 1 << 50, 8, full.mm.heap.start):
        store(full, at, target)
        assert any(each.invariant == "R1" and "no object is" in each.text for each in found(full))
    store(full, at, root)
    store(full, at - 8, 77)
    assert "the root is no oid" in texts(full)


def test_a_block_that_belongs_to_two(full: Any) -> None:
    first, second = offset_of(full, "list"), offset_of(full, "mine")
    for word in (1, 2, 3):
        store(full, second + 8 * word, header_of(full, first + 8 * word))
    assert any(each.invariant == "R4" and "belongs to two" in each.text for each in found(full))


def test_a_block_that_belongs_to_nothing(full: Any) -> None:
    with full.transaction():
        lost = full.mm.alloc(100, 31)
        full.mm.alloc(100, 1000)
    assert found(full) == [Problem("a block of type 31 belongs to no object", lost[1], "R5")]


def test_scalars_that_cannot_be_decoded(full: Any) -> None:
    for offset, size, type_num in list(full.mm.heap.blocks()):
        code = header_of(full, offset) >> TYPE_CODE_SHIFT if type_num == 30 else 0
        if code in (1, 3, 5):
            old = header_of(full, offset + 8)
            store(full, offset + 8, 0xFFFF_FFFF_FFFF_FFFF)
            if code == 3:
                store(full, offset + size // 8 * 8, 0)
            assert any(each.offset in range(offset, offset + size) for each in found(full))
            store(full, offset + 8, old)


def test_a_type_table_that_leads_nowhere(full: Any) -> None:
    at = full.mm.heap.start + 8 * ROOT_TYPES
    node = header_of(full, at)
    for target in (node + 16, 64, 1 << 60):
        store(full, at, target)
        assert "T2: the type table is damaged" in texts(full)
    store(full, at, node)
    store(full, node, node)
    assert "T2: the type table is damaged" in texts(full)
    store(full, node, 0)
    store(full, node + 8, 1000)
    assert "T2: the type table is damaged" in texts(full)


def test_names_of_the_type_table(full: Any) -> None:
    node = header_of(full, full.mm.heap.start + 8 * ROOT_TYPES)
    first, second = header_of(full, node + 16), header_of(full, node + 24)
    word = header_of(full, first)
    store(full, first, 0xFFFF_FFFF_FFFF_FFFF)
    assert "is no text" in texts(full)
    full.mm.map[first : first + full.mm.heap.size_of(first)] = b"x" * full.mm.heap.size_of(first)
    assert "names no class" in texts(full)
    store(full, first, word)
    store(full, node + 24, first)
    assert "a class is in the type table twice" in texts(full)
    assert "belongs to two" in texts(full)
    store(full, node + 24, second + 16)
    assert "is no block" in texts(full)
    store(full, node + 24, offset_of(full, "list"))
    assert any(each.invariant == "T2" for each in found(full))


def test_the_superblock(full: Any) -> None:
    full.mm.map[0:8] = b"nonsense"
    full.mm.map[4096:4104] = b"nonsense"
    assert any(each.invariant == "S1" for each in found(full))


def test_the_heap_comes_first(full: Any) -> None:
    store(full, full.mm.heap.start, 0)
    assert [each.invariant for each in found(full)] == ["H1"]


def test_a_users_class_that_raises_anything(full: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinkedList, "_p_traverse", lambda self: 1 / 0)
    assert "cannot be read: ZeroDivisionError" in texts(full)


# What is none of its business -------------------------------------------------------------------


def test_what_python_holds_and_nobody_else_is_no_problem(full: Any) -> None:
    mine = full.new(PersistentList, [LONG])
    mine.append(mine)
    other = full.new(PersistentDict)
    full.mm.persist(LONG)
    assert found(full) == []
    assert {each.severity for each in found(full, notes=True)} == {"note"}
    assert {each.offset for each in found(full, notes=True)} >= {mine._p_oid[1], other._p_oid[1]}
    assert all(each.invariant == "R6" for each in found(full, notes=True))


def test_raw_blocks_are_no_problem(full: Any) -> None:
    with full.transaction():
        full.mm.alloc(100)
        full.mm.alloc(2)
        full.mm.alloc(0)
    assert found(full) == []


def test_without_importing_nothing_of_a_users_runs(
    full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in (LinkedList, Counter, MyDict):
        monkeypatch.setattr(cls, "_p_traverse", lambda self: pytest.fail("called"))
    monkeypatch.setattr(
        "pmshelve.pmemobj.typetable.import_module", lambda name: pytest.fail("imported")
    )
    full.mm.types.forget()
    assert found(full, import_classes=False) == []
    at = offset_of(full, "list")
    store(full, at, header_of(full, at) - 1 - 1)
    assert len(found(full, import_classes=False)) == 1


def test_a_class_that_is_gone_is_no_damage(full: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support import userclasses

    monkeypatch.delattr(userclasses, "LinkedList")
    full.mm.types.forget()
    full.mm.identity.references.clear()
    assert found(full) == []
    assert found(full, import_classes=False) == []


def test_a_read_only_pool_can_be_checked(pool: Any, make: Callable[..., Any]) -> None:
    pool.root["point"] = pool.new(Point, 1, LONG)
    pool.root["queue"] = pool.new(LinkedList, [LONG])
    pool.close()
    assert make("r").check() == []


# Any damage -------------------------------------------------------------------------------------


def test_any_damage_is_survived(full: Any, profile: Any) -> None:
    heap = full.mm.heap
    words = full.mm.words
    starts = [offset // 8 for offset, _, _ in heap.blocks()]
    sizes = [size // 8 + 1 for _, size, _ in heap.blocks()]
    places = [
        place
        for start, size in zip(starts, sizes, strict=True)
        for place in range(start - 1, start + min(size, 12))
    ]
    table = heap.start // 8 + 512
    places += range(heap.start // 8, heap.start // 8 + 128)
    places += range(table, table + 200)
    generator = random.Random(5)
    whole = bytes(full.mm.map[: full.mm.memory.size])
    began = time.perf_counter()
    reported = 0
    for _ in range(400 * profile.factor):
        changed = [generator.choice(places) for _ in range(generator.choice([1, 1, 2, 8]))]
        for place in changed:
            words[place] = generator.choice(
                [
                    0,
                    words[place] ^ 1 << generator.randrange(64),
                    generator.getrandbits(64),
                    words[generator.choice(places)],
                    full.mm.memory.size - 8,
                    1 << 39,
                ]
            )
        full.mm.types.forget()
        full.mm.identity.references.clear()
        full.mm.values.clear()
        problems_found = found(full, notes=True, import_classes=False)
        assert all(isinstance(each, Problem) for each in problems_found)
        reported += bool(problems_found)
        full.mm.map[heap.start : len(whole)] = whole[heap.start :]
    full.mm.types.forget()
    assert found(full) == []
    assert reported > 200 * profile.factor
    assert time.perf_counter() - began < 300 * profile.factor  # it ends


# Figures ----------------------------------------------------------------------------------------


def test_stats(full: Any) -> None:
    short = full.stats()
    assert isinstance(short, PoolStats)
    assert short.path == full.filename
    assert short.file_size == Path(full.filename).stat().st_size
    assert 0 < short.used < short.heap_size < short.file_size
    assert short.used + short.free <= short.heap_size
    assert sum(short.pages.values()) * 4096 == short.heap_size
    assert short.classes[0] == "tests.support.userclasses:Point"
    assert (short.block_count, short.block_sizes, short.objects) == (None, {}, {})
    long = full.stats(walk=True)
    assert long.block_count == sum(long.block_sizes.values()) == len(list(full.mm.heap.blocks()))
    assert long.objects["PersistentList"] == 1
    assert long.objects["LinkedList"] == 1
    assert long.used == short.used
    with pytest.raises(AttributeError):
        long.used = 5


def test_stats_of_memory_without_a_file(full: Any) -> None:
    with full.lock:
        assert stats(full.mm, None).path is None
        assert list(problems(full.mm, None)) == []
