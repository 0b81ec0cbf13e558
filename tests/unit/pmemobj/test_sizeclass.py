"""Classes and bins: what is part of the format is pinned, the arithmetic is checked for every size."""

from __future__ import annotations

import itertools

import pytest

from pmshelve.pmemobj.layout import BIN_COUNT, CLASS_COUNT_MAX, PAGE, SLAB_DATA
from pmshelve.pmemobj.sizeclass import (
    ALL_USED,
    BIN_FIRSTS,
    BLOCK_COUNTS,
    BLOCK_SIZES,
    RUN_CLASS,
    SLAB_BITMAPS,
    SLAB_HEADS,
    SLAB_PAGES,
    SMALL_MAX,
    bin_of,
    class_of,
    run_capacity,
    run_pages,
)

_PINNED = """
16:1:253 32:1:126 48:1:84 64:1:63 80:1:50 96:1:42 112:1:36 128:1:31 144:1:28 160:1:25 176:1:23
192:1:21 208:2:39 224:1:18 240:2:33 256:2:31 288:1:14 320:2:25 352:2:23 384:2:21 416:3:29 448:1:9
480:3:25 512:4:31 576:1:7 640:3:19 704:3:17 768:4:21 832:5:24 896:2:9 960:4:17 1024:8:31 1088:4:15
1216:3:10 1344:1:3 1472:4:11 1616:2:5 1808:4:9 2016:1:2 2256:5:9 2448:3:5 2704:2:3 3056:3:4
3392:5:6 3568:7:8 4672:8:7 5104:5:4 5440:4:3 6112:3:2 6800:5:3 7152:7:4 9536:7:3 10208:5:2
10896:8:3 14304:7:2
"""


def _capacity(size: int) -> int:
    number = class_of(size)
    return run_pages(size) * PAGE if number == RUN_CLASS else BLOCK_SIZES[number]


def test_the_classes_are_those_of_the_format() -> None:
    classes = zip(BLOCK_SIZES, SLAB_PAGES, BLOCK_COUNTS, strict=True)
    assert [":".join(map(str, each)) for each in classes] == _PINNED.split()


def test_sizes_that_take_runs_though_smaller_than_the_largest_class() -> None:
    runs = [size for size in range(SMALL_MAX + 1) if class_of(size) == RUN_CLASS]
    assert runs == [*range(3561, 4025), *range(7145, 8121), *range(10889, 12217)]
    assert class_of(SMALL_MAX + 1) == RUN_CLASS


def test_every_size_fits_its_block_and_no_smaller_class_has_room_for_it() -> None:
    for size in range(SMALL_MAX + 1):
        number = class_of(size)
        if number == RUN_CLASS:
            assert run_capacity(run_pages(size)) >= size > run_capacity(run_pages(size) - 1)
        else:
            assert BLOCK_SIZES[number] >= size + 8
            assert number == 0 or BLOCK_SIZES[number - 1] < size + 8


def test_little_of_a_block_is_not_asked_for() -> None:
    waste = [1 - (size + 8) / _capacity(size) for size in range(100_000)]
    assert max(waste[105:3561]) < 0.125
    assert max(waste[3561:16321]) < 0.15
    assert max(waste[16321:]) < 0.21


def test_slabs_are_cut_to_fit_and_waste_little() -> None:
    assert len(BLOCK_SIZES) <= CLASS_COUNT_MAX
    for block, pages, count in zip(BLOCK_SIZES, SLAB_PAGES, BLOCK_COUNTS, strict=True):
        assert block % 16 == 0
        assert 1 <= pages <= 8
        assert 2 <= count <= 256
        assert 0 <= pages * PAGE - SLAB_DATA - count * block < pages * PAGE / 30


def test_heads_and_bitmaps_of_slabs() -> None:
    assert len(set(SLAB_HEADS)) == len(SLAB_HEADS)
    assert SLAB_HEADS[2].to_bytes(8, "little") == b"SLAB\x02\x01\0\0"
    for count, bitmap in zip(BLOCK_COUNTS, SLAB_BITMAPS, strict=True):
        bits = sum(word << 64 * index for index, word in enumerate(bitmap))
        assert bits == (1 << 256) - (1 << count)
        assert all(0 <= word <= ALL_USED for word in bitmap)


def test_each_page_count_has_a_bin_and_each_bin_a_first() -> None:
    assert len(BIN_FIRSTS) == BIN_COUNT
    for number, (first, after) in enumerate(itertools.pairwise(BIN_FIRSTS)):
        assert bin_of(first) == bin_of(after - 1) == number
    for count in range(1, 10_000):
        number = bin_of(count)
        assert BIN_FIRSTS[number] <= count < BIN_FIRSTS[number + 1]
    assert bin_of(2**32 - 1) == BIN_COUNT - 1


@pytest.mark.parametrize(
    ("size", "pages"), [(0, 1), (4032, 1), (4033, 2), (1 << 40, (1 << 28) + 1)]
)
def test_pages_of_runs(size: int, pages: int) -> None:
    assert run_pages(size) == pages
    assert run_capacity(pages) >= size
