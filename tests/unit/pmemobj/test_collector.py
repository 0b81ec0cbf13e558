"""What nothing leads to is freed, and nothing else; at any size, whatever interrupts it."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmshelve import pmemobj
from pmshelve.errors import (
    CorruptionError,
    StateError,
    TransactionError,
    UnknownTypeError,
)
from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObject, PersistentTuple
from pmshelve.pmemobj import collector as collecting
from pmshelve.pmemobj.collector import Collector
from pmshelve.pmemobj.layout import REFCOUNT_MASK, TYPE_CODE_SHIFT
from pmshelve.pmemobj.search import Search
from tests.support.pools import assert_counts_exact, assert_nothing_leaked, assert_sound, crash_copy
from tests.support.userclasses import Deallocating, LinkedList, MyDict, Point

LONG = "a string that is too long to stand in an oid"


def assert_collected_nothing(counts: dict[str, int]) -> None:
    assert {name for name, count in counts.items() if name.endswith("-gced") and count} == set()


def make_cycle(pool: Any, length: int = 2) -> list[Any]:
    links = [pool.new(PersistentList) for _ in range(length)]
    for number, link in enumerate(links):
        link.append(links[(number + 1) % length])
        link.append(f"{LONG} {number}")
    return links


def set_count(pool: Any, thing: Any, count: int) -> None:
    """Damage a stored reference count."""
    manager, offset = pool.mm, thing._p_oid[1]
    with manager.operation:
        manager.memory.snapshot(offset, 8)
        header = manager.words[offset >> 3]
        manager.words[offset >> 3] = header >> TYPE_CODE_SHIFT << TYPE_CODE_SHIFT | count


def count_of(pool: Any, offset: int) -> int:
    count: int = pool.mm.words[offset >> 3] & REFCOUNT_MASK
    return count


@pytest.fixture
def vanishing() -> Iterator[type]:
    """A class that can be found, until the fixture's user takes it away."""

    class Vanishing(PersistentObject):
        pass

    Vanishing.__qualname__ = "Vanishing"
    Vanishing.__module__ = __name__
    module = sys.modules[__name__]
    module.Vanishing = Vanishing  # type: ignore[attr-defined]
    yield Vanishing
    if hasattr(module, "Vanishing"):
        del module.Vanishing


# The whole pool ---------------------------------------------------------------------------------


def test_an_empty_pool_has_nothing_and_nothing_is_found(make: Callable[..., Any]) -> None:
    types, counts = make().gc()
    assert types == {}
    assert set(counts) == {
        "collections-gced",
        "containers-live",
        "containers-total",
        "counts-mended",
        "orphans0-gced",
        "orphans1-gced",
        "other-gced",
        "other-live",
        "other-total",
        "structures-gced",
    }
    assert set(counts.values()) == {0}


def test_live_objects_are_counted_by_the_name_of_their_class(pool: Any) -> None:
    pool.root["list"] = pool.new(PersistentList, [1, 2.5, None, "short", LONG, LONG.encode()])
    pool.root["big"] = 10**30
    pool.root["complex"] = 2j
    pool.root["path"] = Path("/a/b")
    pool.root["point"] = pool.new(Point)
    pool.root["tuple"] = (1, 2)
    types, counts = pool.gc()
    assert types == {
        "PersistentDict": 2,  # one holds the attributes of the point
        "PersistentList": 1,
        "PersistentTuple": 1,
        "Point": 1,
        "bytes": 1,
        "complex": 1,
        "int": 1,
        "pickle": 1,
        "str": 1,
    }
    assert counts["containers-live"] == counts["containers-total"] == 5
    assert counts["other-live"] == counts["other-total"] == 5
    assert_collected_nothing(counts)


def test_replacing_the_root_frees_the_old_one_without_a_collector(pool: Any) -> None:
    pool.root = pool.new(PersistentList, [1, 2, LONG])
    before = pool.gc()
    pool.root = pool.new(PersistentList, [3, 4, LONG])
    after = pool.gc()
    assert before == after
    assert_collected_nothing(after[1])


def test_an_object_that_nobody_took_is_an_orphan(pool: Any) -> None:
    pool.new(PersistentList)
    pool.new(PersistentDict)
    types, counts = pool.gc()
    assert counts["orphans0-gced"] == 2
    assert "PersistentList" not in types
    assert_collected_nothing(pool.gc()[1])


def test_a_scalar_that_nobody_took_is_an_orphan(pool: Any) -> None:
    pool.mm.persist(LONG)
    types, counts = pool.gc()
    assert counts["orphans0-gced"] == 1
    assert "str" not in types


def test_what_an_orphan_held_goes_with_it(pool: Any) -> None:
    pool.new(PersistentList, [LONG, pool.new(PersistentList, [LONG + "2"])])
    _, counts = pool.gc()
    assert counts["orphans0-gced"] == 1
    assert counts["collections-gced"] == 1
    assert counts["other-gced"] == 2
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_a_cycle_is_collected_when_nothing_else_leads_to_it(pool: Any, length: int) -> None:
    pool.root["cycle"] = make_cycle(pool, length)[0]
    types, counts = pool.gc()
    assert types["PersistentList"] == length
    assert_collected_nothing(counts)
    del pool.root["cycle"]
    gc.collect()
    types, counts = pool.gc(debug=True)
    assert counts["collections-gced"] == length
    assert counts["other-gced"] == length
    assert counts["containers-total"] == 1 + length
    assert "PersistentList" not in types
    assert_collected_nothing(pool.gc()[1])
    assert_nothing_leaked(pool)


def test_a_cycle_through_all_kinds_of_collections(pool: Any) -> None:
    top = pool.new(PersistentDict)
    point = pool.new(Point)
    queue = pool.new(LinkedList)
    point.x = top
    queue.append(point)
    top["tuple"] = pool.new(PersistentTuple, [1, queue])
    pool.root["top"] = top
    del pool.root["top"]
    del top, point, queue
    gc.collect()
    _, counts = pool.gc()
    assert counts["collections-gced"] == 5  # and the attributes of the point
    assert_nothing_leaked(pool)


def test_what_a_python_object_stands_for_is_kept(pool: Any) -> None:
    first, _ = make_cycle(pool)
    lone = pool.new(PersistentList, [LONG])
    types, counts = pool.gc()
    assert types["PersistentList"] == 3
    assert_collected_nothing(counts)
    assert first[0][0] is first
    assert lone == [LONG]
    del first, lone, _
    gc.collect()
    _, counts = pool.gc()
    assert counts["collections-gced"] == 2
    assert counts["orphans0-gced"] + counts["other-gced"] <= 4
    assert_nothing_leaked(pool)


def test_survivors_keep_exact_counts(pool: Any) -> None:
    kept = pool.new(PersistentList, [LONG])
    pool.root["kept"] = kept
    cycle = make_cycle(pool)
    for link in cycle:
        link.extend([kept, kept])
    assert count_of(pool, kept._p_oid[1]) == 5
    del cycle, link
    gc.collect()
    assert pool.gc()[1]["collections-gced"] == 2
    assert count_of(pool, kept._p_oid[1]) == 1
    assert_sound(pool)


def test_survivors_held_by_python_only_keep_exact_counts(pool: Any) -> None:
    kept = pool.new(PersistentList, [LONG])
    cycle = make_cycle(pool)
    cycle[0].append(kept)
    del cycle
    gc.collect()
    assert pool.gc()[1]["collections-gced"] == 2
    assert count_of(pool, kept._p_oid[1]) == 0
    assert kept == [LONG]
    pool.root["kept"] = kept
    assert_sound(pool)


def test_depth_does_not_matter(pool: Any) -> None:
    with pool.transaction():
        inner = pool.new(PersistentList, [LONG])
        bottom = inner
        for _ in range(10_000):
            inner = pool.new(PersistentList, [inner])
        bottom.append(inner)  # so that only a collector can free it
        pool.root["deep"] = inner
    del inner, bottom
    assert pool.gc()[0]["PersistentList"] == 10_001
    del pool.root["deep"]
    gc.collect()
    assert pool.gc()[1]["collections-gced"] == 10_001
    assert_nothing_leaked(pool)


def test_debug_logs_each_orphan(pool: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool.new(PersistentList)
    with caplog.at_level(logging.WARNING, "pmshelve.pmemobj"):
        pool.gc(debug=True)
    assert ["orphan: the PersistentList" in record.message for record in caplog.records] == [True]
    caplog.clear()
    pool.new(PersistentList)
    with caplog.at_level(logging.WARNING, "pmshelve.pmemobj"):
        pool.gc()
    assert not caplog.records


def test_not_in_the_middle_of_a_transaction(pool: Any) -> None:
    with pool.transaction(), pytest.raises(TransactionError, match="inside of a transaction"):
        pool.gc()


# Blocks that are no objects ---------------------------------------------------------------------


def test_a_structure_that_belongs_to_nothing_is_freed(pool: Any) -> None:
    with pool.transaction():
        pool.mm.alloc(100, 31)
    assert pool.gc()[1]["structures-gced"] == 1
    assert_nothing_leaked(pool)


def test_blocks_of_users_type_numbers_are_left_alone(pool: Any) -> None:
    with pool.transaction():
        oid = pool.mm.zalloc(100, 1234)
    assert_collected_nothing(pool.gc()[1])
    with pool.transaction():
        pool.mm.free(oid)


def test_what_alloc_gave_and_nobody_holds_is_freed(pool: Any) -> None:
    with pool.transaction():
        raw = pool.mm.alloc(64)
        short = pool.mm.alloc(3)
        held = pool.mm.alloc(64)
        pool.mm.incref(held)
    _, counts = pool.gc()
    assert counts["orphans0-gced"] == 1
    assert counts["orphans1-gced"] == 1
    assert counts["structures-gced"] == 1
    for oid in (raw, short, held):
        assert not pool.mm.heap.is_block(oid[1])


# Users' classes -----------------------------------------------------------------------------------


def test_users_own_hook_frees_what_was_held(pool: Any) -> None:
    kept = pool.new(PersistentList)
    pool.root["kept"] = kept
    queue = pool.new(Deallocating, [LONG, kept, kept, 5])
    queue.append(queue)
    other = pool.new(PersistentList, [queue])
    queue.append(other)
    Deallocating.calls.clear()
    del queue, other
    gc.collect()
    _, counts = pool.gc()
    assert Deallocating.calls == ["deallocated"]
    assert counts["collections-gced"] == 2
    assert count_of(pool, kept._p_oid[1]) == 1
    assert_nothing_leaked(pool)


def test_a_class_that_is_gone_keeps_everything_as_it_was(pool: Any, vanishing: type) -> None:
    pool.root["there"] = pool.new(vanishing)
    pool.new(PersistentList)
    pool.mm.persist(LONG)
    pool.mm.identity.recent.clear()
    gc.collect()
    del sys.modules[__name__].Vanishing  # type: ignore[attr-defined]
    pool.mm.types.forget()
    before = sorted(pool.mm.heap.blocks())
    with pytest.raises(UnknownTypeError, match=r"test_collector:Vanishing"):
        Collector(pool.mm).collect()
    assert sorted(pool.mm.heap.blocks()) == before
    sys.modules[__name__].Vanishing = vanishing  # type: ignore[attr-defined]
    assert pool.gc()[1]["orphans0-gced"] == 1  # the list went when its Python object did


def test_garbage_of_a_class_that_is_gone_keeps_everything_too(pool: Any, vanishing: type) -> None:
    thing = pool.new(vanishing)
    thing.me = thing
    pool.new(PersistentList)
    del thing
    gc.collect()
    pool.mm.identity.recent.clear()
    gc.collect()
    del sys.modules[__name__].Vanishing  # type: ignore[attr-defined]
    pool.mm.types.forget()
    with pytest.raises(UnknownTypeError):
        Collector(pool.mm).collect()
    sys.modules[__name__].Vanishing = vanishing  # type: ignore[attr-defined]
    assert_nothing_leaked(pool)


# Damage -----------------------------------------------------------------------------------------


def test_a_count_that_is_too_low_is_corrected_and_reported(
    pool: Any, caplog: pytest.LogCaptureFixture
) -> None:
    thing = pool.root["a"] = pool.new(PersistentList)
    pool.root["b"] = thing
    set_count(pool, thing, 1)
    with caplog.at_level(logging.WARNING, "pmshelve.pmemobj"):
        assert pool.gc()[1]["counts-mended"] == 1
    assert "held 2 times, not 1" in caplog.text
    assert_sound(pool)


def test_a_count_that_is_too_high_is_corrected_only_in_a_repair(pool: Any) -> None:
    thing = pool.root["a"] = pool.new(PersistentList)
    set_count(pool, thing, 3)
    assert pool.gc()[1]["counts-mended"] == 0
    assert count_of(pool, thing._p_oid[1]) == 3
    with pool.lock:
        assert Collector(pool.mm).collect(repair=True)[1]["counts-mended"] == 1
    assert_sound(pool)


def test_garbage_with_wrong_counts_is_freed_all_the_same(pool: Any) -> None:
    high, low = make_cycle(pool)
    set_count(pool, high, 7)
    set_count(pool, low, 0)
    del high, low
    pool.mm.identity.recent.clear()
    pool.mm.identity.dead.clear()
    gc.collect()
    pool.mm.identity.references.clear()
    assert pool.gc()[1]["counts-mended"] == 1
    assert_nothing_leaked(pool)


@pytest.mark.parametrize("target", [64, 8, 1 << 60, 0x5000])
def test_a_reference_to_nowhere_is_an_error_and_nothing_is_freed(pool: Any, target: int) -> None:
    thing = pool.root["a"] = pool.new(PersistentList, [LONG])
    pool.new(PersistentDict)
    pool.mm.identity.recent.clear()
    at = pool.mm.words[thing._p_oid[1] // 8 + 2] // 8 + 1
    right = pool.mm.words[at]
    pool.mm.words[at] = target
    before = sorted(pool.mm.heap.blocks())
    with pool.lock, pytest.raises(CorruptionError, match="where no object is"):
        Collector(pool.mm).collect()
    assert sorted(pool.mm.heap.blocks()) == before
    pool.mm.words[at] = right


# Kills ------------------------------------------------------------------------------------------


def test_a_kill_at_any_commit_leaves_garbage_and_nothing_else(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collecting, "BATCH", 3)
    pool = make()
    pool.root = pool.new(PersistentList, [LONG])
    kept = pool.new(PersistentDict)
    pool.root.append(kept)
    for length in (1, 2, 5):
        for link in make_cycle(pool, length):
            link.append(kept)
    pool.new(PersistentList, [pool.new(PersistentTuple, [LONG, LONG + "2", kept])])
    del link, kept
    gc.collect()
    copies: list[Path] = []
    write = pool.mm._transaction._write

    def write_and_copy() -> None:
        write()
        copies.append(crash_copy(pool, tmp_path / f"copy{len(copies)}.pool"))

    monkeypatch.setattr(pool.mm._transaction, "_write", write_and_copy)
    pool.gc()
    assert len(copies) > 8
    for copy in copies:
        left = pmemobj.PersistentObjectPool(copy, "r")
        assert left.check() == []
        assert_counts_exact(left)
        left.close()
        with pmemobj.open(copy) as left:
            assert left.root == [LONG, {}]
            assert_collected_nothing(left.gc()[1])
            assert_sound(left)
            assert_nothing_leaked(left)


# At close ---------------------------------------------------------------------------------------


def left_after(pool: Any, make: Callable[..., Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Close a pool, which collects suspects only, and tell what a full collection finds then."""
    pool.close()
    again = make("w")
    found: tuple[dict[str, int], dict[str, int]] = again.gc()
    assert_sound(again)
    return found


def test_close_frees_what_python_objects_held(pool: Any, make: Callable[..., Any]) -> None:
    mine = pool.new(PersistentList, [LONG])
    cycle = make_cycle(pool)
    pool.mm.persist(LONG)
    types, counts = left_after(pool, make)
    assert types == {"PersistentDict": 1}
    assert_collected_nothing(counts)
    for thing in (mine, *cycle):
        with pytest.raises(StateError, match="closed"):
            len(thing)


def test_close_frees_cycles_that_were_let_go(pool: Any, make: Callable[..., Any]) -> None:
    pool.root["cycle"] = make_cycle(pool)[0]
    pool.close()
    pool = make("w")
    del pool.root["cycle"]
    types, counts = left_after(pool, make)
    assert types == {"PersistentDict": 1}
    assert_collected_nothing(counts)


def test_close_keeps_what_is_reached_another_way(pool: Any, make: Callable[..., Any]) -> None:
    cycle = make_cycle(pool)
    pool.root["a"] = cycle[0]
    pool.root["b"] = cycle[1]
    pool.close()
    pool = make("w")
    del pool.root["a"]
    assert pool.mm.suspects
    types, counts = left_after(pool, make)
    assert types["PersistentList"] == 2
    assert_collected_nothing(counts)


def test_a_cycle_closed_over_something_detached_is_found(
    pool: Any, make: Callable[..., Any]
) -> None:
    # The parts were attached once, so they are not new; the cycle is made when they are not.
    outer = pool.root["outer"] = pool.new(PersistentList)
    inner = pool.new(PersistentList)
    outer.append(inner)
    assert not pool.mm.fresh
    del pool.root["outer"]
    inner.append(outer)
    types, _ = left_after(pool, make)
    assert types == {"PersistentDict": 1}


def test_an_orphan_that_held_part_of_a_cycle(pool: Any, make: Callable[..., Any]) -> None:
    cycle = make_cycle(pool)
    pool.root["cycle"] = cycle[0]
    pool.close()
    pool = make("w")
    holder = pool.new(PersistentList, [pool.root["cycle"]])
    del pool.root["cycle"]
    assert len(holder) == 1
    types, _ = left_after(pool, make)
    assert types == {"PersistentDict": 1}


def test_objects_given_away_at_once_are_not_looked_at(pool: Any) -> None:
    for number in range(20):
        pool.root[number] = pool.new(PersistentList, [LONG])
    assert not pool.mm.fresh
    assert not pool.mm.suspects


def test_a_rollback_brings_suspicion_back(pool: Any, make: Callable[..., Any]) -> None:
    first, second = make_cycle(pool)
    with pytest.raises(KeyError), pool.transaction():
        pool.root["first"] = first
        raise KeyError
    assert "first" not in pool.root
    types, _ = left_after(pool, make)
    assert types == {"PersistentDict": 1}
    del second


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    search = Search._containers

    def counting(self: Any, offset: int) -> list[int]:
        children = search(self, offset)
        found.append(len(children))
        return children

    monkeypatch.setattr(Search, "_containers", counting)
    return found


def test_a_large_suspect_near_the_root_is_not_looked_into(pool: Any, looked: list[int]) -> None:
    pool.root["large"] = pool.new(PersistentDict, {f"{LONG}{i}": i for i in range(5000)})
    pool.root["again"] = pool.root["large"]
    del pool.root["again"]
    with pool.lock:
        Collector(pool.mm).collect_suspects()
    assert looked == [1]


def test_a_small_suspect_in_a_large_pool_is_enough(pool: Any, looked: list[int]) -> None:
    small = [pool.new(PersistentList, [LONG]) for _ in range(3000)]
    pool.root["all"] = pool.new(PersistentList, small)
    pool.root["one"] = small[2500]
    del pool.root["one"]
    pool.mm.fresh.clear()
    with pool.lock:
        Collector(pool.mm).collect_suspects()
    assert len(looked) < 100
    assert_nothing_leaked(pool)


def test_suspects_of_which_one_leads_everywhere(pool: Any, make: Callable[..., Any]) -> None:
    everything = pool.new(PersistentList)
    pool.root["everything"] = everything
    for _ in range(500):
        everything.append(pool.new(PersistentList, [everything, pool.root]))
    pool.root["again"] = everything
    pool.close()
    pool = make("w")
    first = pool.root["everything"][0]
    first.append(first)
    del pool.root["again"]
    pool.root["everything"].pop(0)
    types, counts = left_after(pool, make)
    assert types["PersistentList"] == 500
    assert_collected_nothing(counts)


def test_collecting_suspects_of_a_class_that_is_gone(pool: Any, vanishing: type) -> None:
    thing = pool.root["there"] = pool.new(vanishing)
    pool.root["again"] = thing
    del pool.root["again"], thing
    gc.collect()
    pool.mm.identity.recent.clear()
    assert pool.mm.suspects
    pool.root = 5  # lets the search from the root end at once
    del sys.modules[__name__].Vanishing  # type: ignore[attr-defined]
    pool.mm.types.forget()
    pool.mm.suspects.update(
        offset
        for offset, _, type_num in pool.mm.heap.blocks()
        if type_num == pmemobj.POBJECT_TYPE_NUM
    )
    sys.modules[__name__].Vanishing = vanishing  # type: ignore[attr-defined]
    assert_nothing_leaked(pool)


def test_a_subclass_with_its_own_traverse(pool: Any, make: Callable[..., Any]) -> None:
    mine = pool.new(MyDict)
    mine["me"] = mine
    assert not pool.mm.types.is_static(MyDict)
    pool.root["mine"] = mine
    types, _ = pool.gc()
    assert types["MyDict"] == 1
    del pool.root["mine"], mine
    types, _ = left_after(pool, make)
    assert types == {"PersistentDict": 1}


# Any graph --------------------------------------------------------------------------------------

edges = st.lists(st.tuples(st.integers(-1, 9), st.integers(0, 9)), max_size=40)


@given(
    before=edges,
    removed=st.lists(st.integers(0, 60), max_size=30),
    after=edges,
    held=st.sets(st.integers(0, 9)),
    whole=st.booleans(),
)
@settings(max_examples=25)
def test_any_graph_is_left_as_python_would_leave_it(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[int, int]],
    removed: list[int],
    after: list[tuple[int, int]],
    held: set[int],
    whole: bool,
) -> None:
    path = tmp_path_factory.mktemp("graph") / "a.pool"
    with pmemobj.create(path, durability="lazy") as pool:
        pool.root = pool.new(PersistentList)
        nodes = {number: pool.new(PersistentList, [number]) for number in range(10)}
        nodes[-1] = pool.root
        arrows: list[tuple[int, int]] = []

        def connect(pairs: list[tuple[int, int]]) -> None:
            for source, target in pairs:
                nodes[source].append(nodes[target])
                arrows.append((source, target))

        connect(before)
        for place in removed:
            if arrows:
                source, target = arrows.pop(place % len(arrows))
                nodes[source].remove(nodes[target])
        connect(after)
        if whole:
            for number in set(range(10)) - held:
                del nodes[number]
            gc.collect()
            pool.gc()
            assert_sound(pool)
            assert {thing[0] for thing in nodes.values() if thing is not pool.root} == held
            held = set()
        nodes.clear()
    reached = {-1}
    for _ in range(11):
        reached |= {target for source, target in arrows if source in reached}
    with pmemobj.open(path) as pool:
        assert pool.stats(walk=True).objects == {"PersistentList": len(reached)}
        assert_sound(pool)
        assert_collected_nothing(pool.gc()[1])


# After an unclean end -----------------------------------------------------------------------------


def test_an_unclean_end_is_followed_by_a_full_collection_that_mends(
    pool: Any, tmp_path: Path
) -> None:
    thing = pool.root["a"] = pool.new(PersistentList)
    make_cycle(pool)
    set_count(pool, thing, 5)
    copy = crash_copy(pool, tmp_path / "copy.pool")
    set_count(pool, thing, 1)
    with pmemobj.open(copy) as again:
        assert again.check() == []
        assert_collected_nothing(again.gc()[1])
        mine = make_cycle(again)  # held by Python when the pool is closed
    assert len(mine) == 2
    with pmemobj.PersistentObjectPool(copy, "r") as again:
        assert again.stats(walk=True).objects == {"PersistentDict": 1, "PersistentList": 1}


def test_a_collection_that_could_not_be_done_is_done_at_close(
    pool: Any, tmp_path: Path, vanishing: type
) -> None:
    pool.root["there"] = pool.new(vanishing)
    cycle = make_cycle(pool)
    copy = crash_copy(pool, tmp_path / "copy.pool")
    del cycle
    del sys.modules[__name__].Vanishing  # type: ignore[attr-defined]
    again = pmemobj.open(copy)
    assert again.stats(walk=True).objects["PersistentList"] == 2
    sys.modules[__name__].Vanishing = vanishing  # type: ignore[attr-defined]
    again.close()
    with pmemobj.PersistentObjectPool(copy, "r") as again:
        assert "PersistentList" not in again.stats(walk=True).objects
    del pool.root["there"]
