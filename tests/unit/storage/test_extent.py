"""Extents, and the holes in them."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.storage.extent import HOLE, Extent, disk_size, holes, split_holes

ranges = st.lists(st.integers(0, 60), unique=True).map(
    lambda edges: list(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


@given(edges=st.lists(st.integers(1, 59), unique=True), gaps=ranges)
def test_every_byte_is_accounted_for_once(edges: list[int], gaps: list[tuple[int, int]]) -> None:
    bounds = [0, *sorted(edges), 60]
    extents = [
        Extent(start, stop - start, f"kind {start}", stop - start)
        for start, stop in itertools.pairwise(bounds)
    ]
    expected = [kind for extent in extents for kind in [extent.kind] * extent.size]
    for start, stop in gaps:
        expected[start:stop] = [HOLE] * (stop - start)
    found = list(split_holes(extents, gaps))
    assert [kind for extent in found for kind in [extent.kind] * extent.size] == expected
    position = 0
    for extent in found:
        assert extent.offset == position
        assert extent.size > 0
        position += extent.size
    assert sum(extent.number for extent in found) <= len(extents)


def test_the_part_that_begins_it_stands_for_an_extent() -> None:
    found = list(split_holes([Extent(0, 100, "slab", 50, 1, 7)], [(40, 60)]))
    assert found == [
        Extent(0, 40, "slab", 25, 1, 7),
        Extent(40, 20, HOLE, 0, 0),
        Extent(60, 40, "slab", 25, 0, 7),
    ]


def test_holes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"a" * 65536)
        file.seek(1 << 20)
        file.write(b"b" * 65536)
        file.truncate(1 << 21)
    fd = os.open(path, os.O_RDONLY)
    try:
        found = list(holes(fd, 1 << 21))
        if disk_size(fd) > 1 << 20:
            pytest.skip("this file system has no holes")
        assert found == [(65536, 1 << 20), ((1 << 20) + 65536, 1 << 21)]
        assert list(holes(fd, 65536)) == []
        assert list(holes(fd, 0)) == []
    finally:
        os.close(fd)
