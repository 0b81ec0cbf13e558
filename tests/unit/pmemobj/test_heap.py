"""The heap, case by case: where blocks go, what is given back, what is refused, what is found out."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pmshelve.errors import CorruptionError, NoSpaceError, PmshelveError, StateError
from pmshelve.pmemobj.heap import Heap
from pmshelve.pmemobj.layout import (
    BLOCK_SIZE_MAX,
    PAGE,
    ROOT_BINS,
    ROOT_CLASSES,
    ROOT_PAGE_COUNT,
    ROOT_TABLE,
    ROOT_TABLE_CAPACITY,
)
from pmshelve.pmemobj.sizeclass import BLOCK_COUNTS, BLOCK_SIZES, SLAB_PAGES, class_of
from tests.support.heaps import START, HeapLab


@pytest.fixture
def lab() -> Iterator[HeapLab]:
    lab = HeapLab(pages=400)
    lab.begin()
    yield lab
    assert list(lab.heap.problems()) == []
    lab.memory.rollback_all()
    assert list(lab.heap.problems()) == []
    lab.close()


def _root(lab: HeapLab, word: int) -> int:
    return lab.memory.words[(START >> 3) + word]


def _kinds(lab: HeapLab) -> dict[str, int]:
    return {kind: count for kind, count in lab.heap.page_counts().items() if count}


def _empty(lab: HeapLab) -> dict[str, int]:
    pages = _root(lab, ROOT_PAGE_COUNT)
    table = _root(lab, ROOT_TABLE_CAPACITY) // 256
    return {"free": pages - table - 1, "table": table, "root": 1}


# Blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 40, 1000, 3560, 3561, 5000, 14296, 14297, 200_000])
def test_a_block_has_its_size_and_type_and_is_aligned(lab: HeapLab, size: int) -> None:
    offset = lab.heap.alloc(size, 77)
    assert offset % (64 if size > 14296 else 16) == 0
    assert (lab.heap.size_of(offset), lab.heap.type_num_of(offset)) == (size, 77)
    assert list(lab.heap.blocks()) == [(offset, size, 77)]
    lab.heap.free(offset)
    assert list(lab.heap.blocks()) == []


def test_zalloc_zeroes_what_was_used_before(lab: HeapLab) -> None:
    for size in (30, 5000, 100_000, 3 << 20):
        offset = lab.heap.alloc(size)
        lab.write(offset, b"\xff" * size)
        lab.heap.free(offset)
        again = lab.heap.zalloc(size)
        assert again == offset
        assert lab.read(again, size) == bytes(size)


def test_blocks_of_a_slab_are_taken_lowest_first(lab: HeapLab) -> None:
    blocks = [lab.heap.alloc(100) for _ in range(10)]
    assert blocks == [blocks[0] + 112 * index for index in range(10)]
    for index in (7, 2, 5):
        lab.heap.free(blocks[index])
    assert [lab.heap.alloc(100) for _ in range(3)] == [blocks[2], blocks[5], blocks[7]]


def test_an_allocation_makes_two_ranges_known_and_a_free_one(lab: HeapLab) -> None:
    lab.heap.alloc(100)
    kept = lab.heap.alloc(100)
    lab.commit()
    lab.begin()
    lab.heap.alloc(100)
    assert lab.memory.changes is not None
    assert len(lab.memory.changes.saved) == 2
    lab.commit()
    lab.begin()
    lab.heap.free(kept)
    assert len(lab.memory.changes.saved) == 1


@pytest.mark.parametrize("number", range(len(BLOCK_SIZES)))
def test_slabs_of_every_class_fill_and_empty(lab: HeapLab, number: int) -> None:
    count = 2 * BLOCK_COUNTS[number] + 1
    blocks = [lab.heap.alloc(BLOCK_SIZES[number] - 8) for _ in range(count)]
    assert _kinds(lab)["slab"] == 3 * SLAB_PAGES[number]
    assert list(lab.heap.problems()) == []
    random.Random(number).shuffle(blocks)
    for offset in blocks:
        lab.heap.free(offset)
    assert _kinds(lab)["slab"] == SLAB_PAGES[number]  # one is kept
    assert list(lab.heap.problems()) == []
    lab.heap.trim(lab.memory.size)
    assert _kinds(lab) == _empty(lab)


def test_a_slab_with_room_again_does_not_come_before_the_one_in_use(lab: HeapLab) -> None:
    first = [lab.heap.alloc(3000) for _ in range(4)]  # a slab
    second = [lab.heap.alloc(3000) for _ in range(2)]  # half of one
    lab.heap.free(first[0])
    assert lab.heap.alloc(3000) == second[1] + 3056
    for offset in first[1:]:
        lab.heap.free(offset)
    assert _kinds(lab)["slab"] == 3  # given back at once: the other has room
    for offset in (*second, second[1] + 3056):
        lab.heap.free(offset)
    assert _kinds(lab)["slab"] == 3  # empty too, but the only one


def test_freed_pages_serve_any_class(lab: HeapLab) -> None:
    before = _root(lab, ROOT_PAGE_COUNT)
    for size in (20, 200, 2000, 20_000, 200_000, 300_000, 3000, 300):
        blocks = []
        while True:
            lab.size_max = START + before * PAGE
            try:
                blocks.append(lab.heap.alloc(size))
            except NoSpaceError:
                break
        assert lab.heap.used_bytes() > 0.9 * before * PAGE
        for offset in blocks:
            lab.heap.free(offset)
    assert _root(lab, ROOT_PAGE_COUNT) == before


def test_free_neighbours_become_one_in_every_order(lab: HeapLab) -> None:
    for order in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]:
        runs = [lab.heap.alloc(20_000) for _ in range(3)]
        for index in order:
            lab.heap.free(runs[index])
            assert list(lab.heap.problems()) == []
        assert _kinds(lab) == _empty(lab)


def test_the_best_of_several_free_extents_is_taken(lab: HeapLab) -> None:
    runs = [lab.heap.alloc(pages * PAGE - 64) for pages in (30, 5, 20, 5, 10, 5)]
    for index in (0, 2, 4):
        lab.heap.free(runs[index])
    assert lab.heap.alloc(9 * PAGE) == runs[4]
    assert lab.heap.alloc(18 * PAGE) == runs[2]
    assert lab.heap.alloc(18 * PAGE) == runs[0]


# Resizing -------------------------------------------------------------------------------------


def test_realloc_keeps_the_data_and_the_type(lab: HeapLab) -> None:
    offset = lab.heap.alloc(10, 5)
    lab.write(offset, b"0123456789")
    for size in (12, 300, 20_000, 400_000, 15_000, 11, 10):
        offset = lab.heap.realloc(offset, size)
        assert lab.heap.type_num_of(offset) == 5
        assert lab.heap.size_of(offset) == size
        assert lab.read(offset, 10) == b"0123456789"
    offset = lab.heap.realloc(offset, 3, 6)
    assert lab.heap.type_num_of(offset) == 6
    assert list(lab.heap.blocks()) == [(offset, 3, 6)]


def test_realloc_within_a_class_or_a_run_stays_in_place(lab: HeapLab) -> None:
    small, large = lab.heap.alloc(90), lab.heap.alloc(50_000)
    assert lab.heap.realloc(small, 104) == small
    assert lab.heap.realloc(large, 53_000) == large
    assert lab.heap.realloc(large, 20_000) == large
    assert _kinds(lab)["run"] == 5
    assert lab.heap.realloc(large, 150_000) == large  # what is behind is free
    wall = lab.heap.alloc(15_000)
    assert wall == large + 37 * PAGE
    assert lab.heap.realloc(large, 160_000) != large


def test_the_last_run_grows_with_the_heap(lab: HeapLab) -> None:
    first = lab.heap.alloc(50_000)
    assert lab.heap.realloc(first, 300 * PAGE) == first
    lab.write(first, b"x" * (299 * PAGE))
    size = lab.memory.size
    assert lab.heap.realloc(first, 450 * PAGE) == first
    assert lab.memory.size > size
    offset = lab.heap.realloc(first, 550 * PAGE)
    assert offset != first  # the page table, outgrown, moved in between
    assert _root(lab, ROOT_TABLE_CAPACITY) > 512
    assert lab.read(offset, 299 * PAGE) == b"x" * (299 * PAGE)


def test_a_run_without_a_byte_to_spare_grows(lab: HeapLab) -> None:
    offset = lab.heap.zalloc(5 * PAGE - 64)
    for size in (5 * PAGE - 63, 40 * PAGE - 64, 40 * PAGE):
        assert lab.heap.zrealloc(offset, size) == offset
        assert lab.read(offset, size) == bytes(size)


def test_zrealloc_zeroes_what_is_new(lab: HeapLab) -> None:
    filler = lab.heap.alloc(500_000)
    lab.write(filler, b"\xff" * 500_000)
    lab.heap.free(filler)
    offset = lab.heap.alloc(5)
    lab.write(offset, b"abcde")
    for size in (7, 90, 15_000, 100_000, 100_050, 300_000):
        before = lab.heap.size_of(offset)
        kept = lab.read(offset, before)
        offset = lab.heap.zrealloc(offset, size)
        assert lab.read(offset, size) == kept + bytes(size - before)
    assert lab.heap.zrealloc(offset, 4) != offset


# Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["alloc", "zalloc"])
def test_impossible_requests_are_refused(lab: HeapLab, method: str) -> None:
    alloc: Callable[..., int] = getattr(lab.heap, method)
    for size, type_num, error in [
        (-1, 30, ValueError),
        (10, -1, ValueError),
        (10, 1 << 24, ValueError),
        (1 << 20, 1 << 24, ValueError),
        (BLOCK_SIZE_MAX + 1, 30, MemoryError),
        (1 << 70, 30, MemoryError),
        (BLOCK_SIZE_MAX, 30, NoSpaceError),
        (2.0, 30, TypeError),
        ("x", 30, TypeError),
        (10, "x", TypeError),
    ]:
        with pytest.raises(error):
            alloc(size, type_num)
    assert _kinds(lab) == _empty(lab)


def test_impossible_resizes_are_refused_and_the_block_stays(lab: HeapLab) -> None:
    for size in (40, 100_000):
        offset = lab.heap.alloc(size)
        for new_size, type_num, error in [
            (-1, None, ValueError),
            (1, 1 << 24, ValueError),
            (1 << 41, None, MemoryError),
            (1 << 40 - 1, None, NoSpaceError),
        ]:
            for method in (lab.heap.realloc, lab.heap.zrealloc):
                with pytest.raises(error):
                    method(offset, new_size, type_num)
        assert lab.heap.size_of(offset) == size


def test_what_is_no_block_is_refused(lab: HeapLab) -> None:
    small, run = lab.heap.alloc(5000), lab.heap.alloc(50_000)
    freed = [lab.heap.alloc(100), lab.heap.alloc(100), lab.heap.alloc(60_000)]
    for offset in freed[1:]:
        lab.heap.free(offset)
    last = lab.heap.size_of(small) + small
    table = _root(lab, ROOT_TABLE)
    past = START + _root(lab, ROOT_PAGE_COUNT) * PAGE
    bad = [0, -16, 8, START, START + 48, table, table + 64, small + 8, small - 16, small + 16, last]
    bad += [
        run + 64,
        run + PAGE,
        run - 8,
        freed[1],
        freed[2],
        past + 48,
        past + 64,
        1 << 50,
        -(1 << 70),
    ]
    bad += [small + 8 * PAGE - 40 & -PAGE | 48]  # the slab's rest behind its last block
    before = lab.read(START, 300 * PAGE)
    for offset in bad:
        assert not lab.heap.is_block(offset)
        for method in (lab.heap.free, lab.heap.size_of, lab.heap.type_num_of):
            with pytest.raises(StateError, match=r"test.pool: no block is at offset") as caught:
                method(offset)
            assert isinstance(caught.value, PmshelveError)
        with pytest.raises(StateError):
            lab.heap.realloc(offset, 5)
    assert lab.read(START, 300 * PAGE) == before
    assert lab.heap.is_block(small)
    assert lab.heap.is_block(run)


# Growth ---------------------------------------------------------------------------------------


def test_the_heap_grows_modestly_and_its_table_moves() -> None:
    lab = HeapLab(pages=16)
    lab.begin()
    sizes = []
    blocks = []
    for _ in range(1500):
        blocks.append(lab.heap.alloc(20_000))
        size = lab.memory.size
        if not sizes or size != sizes[-1]:
            sizes.append(size)
    steps = [after - before for before, after in itertools.pairwise(sizes)]
    assert sum(step < 1 << 20 for step in steps) <= 6  # up to what the table has entries for
    assert all(step <= (1 << 20) + size // 5 for step, size in zip(steps, sizes, strict=False))
    assert len(steps) < 30
    assert _root(lab, ROOT_TABLE_CAPACITY) == 8192
    assert list(lab.heap.problems()) == []
    lab.memory.rollback_all()
    assert _root(lab, ROOT_PAGE_COUNT) == 16
    assert _kinds(lab) == _empty(lab)
    lab.begin()
    assert [lab.heap.alloc(20_000) for _ in range(1500)] == blocks
    lab.memory.rollback_all()
    lab.close()


def test_a_full_disk_is_used_up_to_its_last_page(lab: HeapLab) -> None:
    lab.heap.alloc(300 * PAGE)
    lab.size_max = lab.memory.size + 100 * PAGE  # less than the step
    offset = lab.heap.alloc(150 * PAGE)
    lab.size_max = lab.memory.size
    before = lab.read(START, lab.memory.size - START)
    with pytest.raises(NoSpaceError):
        lab.heap.alloc(150 * PAGE)
    with pytest.raises(NoSpaceError):
        lab.heap.realloc(offset, 400 * PAGE)
    assert lab.read(START, lab.memory.size - START) == before
    lab.heap.free(offset)
    assert lab.heap.alloc(150 * PAGE) == offset


def test_empty_slabs_are_given_back_before_the_heap_grows(lab: HeapLab) -> None:
    free = _kinds(lab)["free"]
    lab.heap.free(lab.heap.alloc(5000))
    assert _kinds(lab)["slab"] == 5
    lab.size_max = lab.memory.size
    assert lab.heap.alloc(free * PAGE - 64)


def test_a_free_extent_past_the_bounded_look_is_found_before_the_heap_grows(lab: HeapLab) -> None:
    fitting = lab.heap.alloc(22 * PAGE - 64)
    runs = [lab.heap.alloc(size) for _ in range(20) for size in (16 * PAGE - 64, 4000)]
    rest = lab.heap.alloc(lab.heap.page_counts()["free"] * PAGE - 64)
    lab.size_max = lab.memory.size
    lab.heap.free(fitting)
    for offset in runs[2::2]:
        lab.heap.free(offset)
    assert lab.heap.alloc(20 * PAGE) == fitting
    lab.heap.free(rest)


# Giving back ----------------------------------------------------------------------------------


def test_an_emptied_heap_shrinks_to_root_and_table() -> None:
    lab = HeapLab(pages=16)
    lab.begin()
    blocks = [lab.heap.alloc(size) for _ in range(300) for size in (100, 5000, 50_000)]
    assert lab.memory.size > 16 << 20
    for offset in blocks:
        lab.heap.free(offset)
    floor = START + 100 * PAGE
    assert lab.heap.trim(floor) == floor
    assert list(lab.heap.problems()) == []
    assert lab.heap.trim(0) == START + 2 * PAGE
    assert list(lab.heap.problems()) == []
    assert lab.heap.trim(0) == START + 2 * PAGE
    assert lab.heap.alloc(100_000)
    lab.memory.rollback_all()
    lab.close()


def test_a_table_at_the_end_moves_down_and_is_shortened() -> None:
    lab = HeapLab(pages=16)
    lab.begin()
    low = lab.heap.alloc(40_000)
    blocks = [lab.heap.alloc(50_000) for _ in range(800)]
    lab.commit()
    lab.begin()
    for offset in blocks:
        lab.heap.free(offset)
    size = lab.heap.trim(0)
    assert size <= START + 20 * PAGE
    assert _root(lab, ROOT_TABLE_CAPACITY) == 256
    assert list(lab.heap.blocks()) == [(low, 40_000, 30)]
    assert list(lab.heap.problems()) == []
    lab.rollback()
    assert len(list(lab.heap.blocks())) == 801
    assert list(lab.heap.problems()) == []
    lab.begin()
    for offset in blocks:
        lab.heap.free(offset)
    assert lab.heap.trim(0) == size
    lab.commit()
    lab.crash()
    assert list(lab.heap.problems()) == []
    assert list(lab.heap.blocks()) == [(low, 40_000, 30)]
    lab.close()


def test_a_table_much_too_large_is_shortened_where_it_is(lab: HeapLab) -> None:
    blocks = [lab.heap.alloc(1 << 20) for _ in range(20)]
    high = _root(lab, ROOT_TABLE)
    for offset in blocks:
        lab.heap.free(offset)
    lab.heap.trim(high)  # moves it down, but leaves the heap its size
    table, capacity = _root(lab, ROOT_TABLE), _root(lab, ROOT_TABLE_CAPACITY)
    assert table < high
    lab.commit()
    lab.begin()
    lab.heap.alloc(100)
    lab.heap.trim(0)
    assert list(lab.heap.problems()) == []
    assert _root(lab, ROOT_TABLE_CAPACITY) < capacity / 2
    lab.rollback()
    assert (_root(lab, ROOT_TABLE), _root(lab, ROOT_TABLE_CAPACITY)) == (table, capacity)
    lab.begin()


# What reaches the disk how ----------------------------------------------------------------------


def test_large_untouched_runs_need_no_snapshot(lab: HeapLab) -> None:
    assert lab.memory.changes is not None
    changes = lab.memory.changes
    offset = lab.heap.alloc(100_000)
    assert changes.fresh == {offset - 64: 25 * PAGE}
    lab.heap.free(offset)
    assert lab.heap.alloc(100_000) == offset  # freed since the last checkpoint: not again
    assert changes.saved[offset - 8][8:] == lab.read(offset, 100_000)
    small = lab.heap.alloc(60_000)
    assert len(changes.saved[small - 8]) == 60_008
    assert list(changes.fresh) == [offset - 64]


def test_pages_that_a_commit_may_yet_lose_are_not_written_at_once(lab: HeapLab) -> None:
    offset = lab.heap.alloc(100_000)
    lab.write(offset, b"a" * 100_000)
    lab.commit()
    lab.checkpoint()
    lab.begin()
    lab.heap.free(offset)
    assert lab.heap.alloc(100_000) == offset
    lab.write(offset, b"b" * 100_000)
    lab.crash(while_committing=True)
    assert lab.read(offset, 100_000) == b"a" * 100_000
    lab.begin()


# Churn ----------------------------------------------------------------------------------------


def _churn(lab: HeapLab, draw: Callable[[], int], live_bytes: int, steps: int) -> float:
    """Allocate and free at random at constant live size; return heap pages used per live byte."""
    pick = random.Random(7)
    heap = lab.heap
    live: list[tuple[int, int]] = []
    total, worst = 0, 0.0
    while total <= live_bytes:
        size = draw()
        live.append((heap.alloc(size), size))
        total += size
    for step in range(steps):
        if total > live_bytes:
            index = pick.randrange(len(live))
            offset, size = live[index]
            live[index] = live[-1]
            live.pop()
            heap.free(offset)
            total -= size
        else:
            size = draw()
            live.append((heap.alloc(size), size))
            total += size
        if step % 10_000 == 9_999:
            lab.commit()
            lab.checkpoint()
            lab.begin()
            pages = heap.page_counts()
            worst = max(worst, (sum(pages.values()) - pages["free"]) * PAGE / total)
    assert {offset for offset, _ in live} == {offset for offset, _, _ in heap.blocks()}
    return worst


_MIXES: dict[str, tuple[float, Callable[[random.Random], int]]] = {
    "log-uniform 16 B to 32 KiB": (1.3, lambda pick: int(2 ** pick.uniform(4, 15))),
    "uniform up to 4 KiB": (1.3, lambda pick: pick.randrange(16, 4096)),
    "uniform 4 to 32 KiB": (1.2, lambda pick: pick.randrange(4096, 32768)),
    "just over 16 KiB": (1.35, lambda pick: pick.randrange(16384, 17000)),
    "objects": (1.35, lambda pick: 8 + int(pick.expovariate(1 / 60))),
    "small and middling": (1.2, lambda pick: pick.choice((24, 24, 24, 24, 100, 5000))),
}


@pytest.mark.parametrize("mix", _MIXES)
def test_a_churn_leaves_little_unused(mix: str, profile: Any, record_property: Any) -> None:
    bound, draw = _MIXES[mix]
    lab = HeapLab(pages=64)
    lab.begin()
    pick = random.Random(11)
    used = _churn(lab, lambda: draw(pick), 4 << 20, 50_000 * profile.factor)
    record_property("pages per live byte", used)
    assert used < bound
    assert list(lab.heap.problems()) == []
    lab.memory.rollback_all()
    lab.close()


# Damage ---------------------------------------------------------------------------------------


def _sample() -> HeapLab:
    """Return a heap with every kind of extent, and no room to grow: reads outside would raise."""
    pages = 400
    lab = HeapLab(pages, reserved=START + pages * PAGE)
    pick = random.Random(3)
    lab.begin()
    blocks = [
        lab.heap.alloc(int(2 ** pick.uniform(0, 16 if pick.random() < 0.1 else 9)))
        for _ in range(500)
    ]
    for offset in pick.sample(blocks, 300):
        lab.heap.free(offset)
    lab.memory.end()
    assert list(lab.heap.problems()) == []
    return lab


def _where(lab: HeapLab, kind: str) -> int:
    return next(offset for offset, _, name, _ in lab.heap.extents() if name == kind)


def _entry(lab: HeapLab, offset: int) -> int:
    return (_root(lab, ROOT_TABLE) >> 3) + (offset - START) // PAGE * 2


@pytest.mark.parametrize(
    ("invariant", "damage"),
    [
        ("H1", lambda lab: (START >> 3, 5)),
        ("H1", lambda lab: ((START >> 3) + ROOT_PAGE_COUNT, 1 << 20)),
        ("H1", lambda lab: ((START >> 3) + ROOT_TABLE, START + 8)),
        ("H1", lambda lab: ((START >> 3) + ROOT_TABLE_CAPACITY, 256)),
        ("H1", lambda lab: (_entry(lab, START + PAGE), 0)),
        ("H2", lambda lab: (_entry(lab, _where(lab, "run")), 0)),
        ("H2", lambda lab: (_entry(lab, _where(lab, "run")) + 1, 1)),
        ("H2", lambda lab: (_entry(lab, _where(lab, "run")), 0x3 | 1 << 4 | 5 << 12)),
        ("H2", lambda lab: (_entry(lab, START), 3 | 1 << 12)),
        ("H2", lambda lab: (_entry(lab, START + 400 * PAGE), 1)),
        ("H3", lambda lab: (_entry(lab, START + 399 * PAGE), 0)),
        ("H3", lambda lab: (_entry(lab, _where(lab, "free")) + 1, 77)),
        ("H3", lambda lab: ((START >> 3) + ROOT_BINS, 1)),
        ("H4", lambda lab: (_where(lab, "slab") >> 3, 0)),
        ("H4", lambda lab: ((_where(lab, "slab") >> 3) + 4, 0)),
        ("H4", lambda lab: ((START >> 3) + ROOT_CLASSES + class_of(100), 0)),
        ("H6", lambda lab: ((next(lab.heap.blocks())[0] - 8) >> 3, 1 << 20)),
    ],
)
def test_broken_invariants_are_told_apart(
    invariant: str, damage: Callable[[HeapLab], tuple[int, int]]
) -> None:
    lab = _sample()
    index, value = damage(lab)
    lab.memory.words[index] = value
    found = list(lab.heap.problems())
    assert invariant in {number for _, _, number in found}
    assert all(text and START <= offset <= lab.memory.size for text, offset, _ in found)
    if invariant == "H1":
        with pytest.raises(CorruptionError, match=r"test.pool: .*\[H1\]"):
            lab.reopen()
    lab.close()


def _raises(lab: HeapLab, invariant: str, call: Callable[..., object], *arguments: int) -> None:
    with pytest.raises(CorruptionError, match=r"test\.pool: ") as caught:
        call(*arguments)
    assert caught.value.invariant == invariant
    assert "pmshelve check" in caught.value.hint
    lab.memory.rollback_all()
    lab.close()


def test_a_full_slab_that_is_listed_is_found_out() -> None:
    lab = _sample()
    lab.begin()
    slab = lab.heap.alloc(100) & -PAGE
    lab.memory.map[slab + 8 : slab + 40] = b"\xff" * 32
    _raises(lab, "H4", lab.heap.alloc, 100)


def test_a_run_that_leaves_the_heap_is_found_out() -> None:
    for method in ("free", "realloc"):
        lab = _sample()
        run = _where(lab, "run")
        lab.memory.words[_entry(lab, run)] |= 1 << 40
        lab.begin()
        arguments = (run + 64,) if method == "free" else (run + 64, 9)
        _raises(lab, "H2", getattr(lab.heap, method), *arguments)


@pytest.mark.parametrize("wrong", [1, 1 << 20])
def test_free_pages_that_do_not_agree_are_found_out(wrong: int) -> None:
    damaged = HeapLab(pages=100)
    damaged.begin()
    runs = [damaged.heap.alloc(5 * PAGE) for _ in range(3)]
    damaged.heap.free(runs[0])
    damaged.memory.words[_entry(damaged, runs[1] & -PAGE) - 2] += wrong << 12
    _raises(damaged, "H3", damaged.heap.free, runs[1])


def test_a_full_slab_with_links_is_a_problem() -> None:
    lab = HeapLab(pages=100)
    lab.begin()
    blocks = [lab.heap.alloc(3000) for _ in range(4)]
    slab = blocks[0] & -PAGE
    lab.memory.words[_entry(lab, slab) + 1] = 3
    assert [number for _, _, number in lab.heap.problems()] == ["H4"]
    lab.memory.rollback_all()
    lab.close()


def test_a_heap_has_a_most_of_pages(lab: HeapLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmshelve.pmemobj.pages.PAGES_MAX", 1000)
    with pytest.raises(MemoryError, match="at most 1000 pages"):
        lab.heap.alloc(2000 * PAGE)


def test_two_free_neighbours_and_a_second_empty_slab_are_problems() -> None:
    lab = _sample()
    free = _where(lab, "free")
    entry = _entry(lab, free)
    count = lab.memory.words[entry] >> 12
    assert count > 1
    lab.memory.words[entry] = 1 | 1 << 12
    lab.memory.words[entry + 2] = 1 | (count - 1) << 12
    assert "H3" in {number for _, _, number in lab.heap.problems()}
    lab.close()
    lab = HeapLab(pages=100)
    lab.begin()
    blocks = [lab.heap.alloc(3000) for _ in range(8)]
    lab.heap.free(blocks[0])
    lab.heap.free(blocks[4])
    slab = (blocks[0] - 48) >> 3
    lab.memory.words[slab + 1] &= ~0xF
    assert [number for _, _, number in lab.heap.problems()] == ["H5"]
    lab.memory.rollback_all()
    lab.close()


def test_a_damaged_heap_neither_hangs_nor_is_left(profile: Any) -> None:
    """Whatever a few words of it hold: an error of ours, or the call does what it can."""
    lab = _sample()
    image = lab.memory.map[:]
    words = lab.memory.words
    blocks = [offset for offset, _, _ in lab.heap.blocks()]
    places = [START + 8 * index for index in range(128)]
    places += [_root(lab, ROOT_TABLE) + 8 * index for index in range(800)]
    for offset, _, kind, _ in lab.heap.extents():
        if kind == "slab":
            places += [offset + 8 * index for index in range(5)]
    places += [offset - 8 for offset in blocks]
    pick = random.Random(5)
    reported = 0
    for _ in range(300 * profile.factor):
        lab.memory.map[:] = image
        for _ in range(pick.choice([1, 1, 1, 2, 5])):
            index = pick.choice(places) >> 3
            words[index] = pick.choice(
                [
                    words[index] ^ 1 << pick.randrange(64),
                    words[index] ^ 1 << pick.randrange(12, 24),
                    (words[index] + pick.choice([-1, 1, 16, 1 << 12, 1 << 32])) % 2**64,
                    pick.choice([0, 2**64 - 1, pick.getrandbits(64)]),
                    words[pick.choice(places) >> 3],
                ]
            )
        reported += bool(list(lab.heap.problems()))
        try:
            lab.reopen()
        except CorruptionError:
            continue
        _use(lab, blocks, pick)
        assert lab.memory.map[:START] == bytes(START)
    assert reported > 200 * profile.factor
    lab.close()


def _use(lab: HeapLab, blocks: list[int], pick: random.Random) -> None:
    heap = lab.heap
    assert len(list(heap.blocks())) < 100_000
    assert len(list(heap.extents())) <= 400
    heap.used_bytes(), heap.free_bytes(), heap.page_counts()
    for _ in range(30):
        lab.begin()
        try:
            step = pick.randrange(5)
            if step == 0:
                heap.free(pick.choice(blocks))
            elif step == 1:
                heap.alloc(int(2 ** pick.uniform(0, 16)))
            elif step == 2:
                heap.realloc(pick.choice(blocks), int(2 ** pick.uniform(0, 16)))
            elif step == 3:
                heap.is_block(pick.randrange(1 << 21))
            elif pick.random() < 0.2:
                heap.trim(0)
            lab.memory.end()
        except (CorruptionError, StateError, NoSpaceError):
            lab.rollback()


def test_a_heap_must_fit_the_file() -> None:
    lab = HeapLab(pages=4)
    for pages in (0, 1, 2, 5):
        with pytest.raises(ValueError, match="does not fit"):
            Heap.format(lab.memory, START, pages)
    assert list(Heap.format(lab.memory, START, 3).problems()) == []
    for start in (START + 8, 1 << 30):
        with pytest.raises(CorruptionError, match="outside of the file"):
            Heap(lab.memory, start)
    lab.close()


def test_a_heap_without_an_extend_does_not_grow() -> None:
    lab = HeapLab(pages=4)
    lab.begin()
    heap = Heap.format(lab.memory, START, 4)
    with pytest.raises(NoSpaceError, match="cannot grow to"):
        heap.alloc(100_000)
    assert heap.extend is not None
    assert heap.base_address() > 0
    lab.memory.rollback_all()
    lab.close()
