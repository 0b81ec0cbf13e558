"""Which class a size belongs to, and how a class's slabs are cut.  (docs/format-pmemobj.md, "Heap")

A block is 8 bytes of header and its data.  Blocks of one class are equal, and cut from slabs of a
few pages, so that a freed one serves the next of its class.  Block sizes are multiples of 16:

    up to 128       16, 32, 48 ... 128
    up to 1024      eight to each doubling: 144, 160 ... 256, 288 ... 512, 576 ... 1024
    up to 14304     what so many equal blocks in so few pages come to, from `_FITTED`

A size between two classes that fits its whole pages better takes pages of its own: a *run*.  At
most a sixth of a block is not asked for (an eighth below 4 KiB, a quarter for runs of 5 pages and
more), the 16 and 32 bytes of the smallest aside; and at most a thirtieth of a slab is no block.

Pure arithmetic over constants: a class's number and a slab's cut are part of the format.
"""

from __future__ import annotations

from pmshelve.pmemobj.layout import (
    BIN_COUNT,
    BLOCK_HEADER,
    CLASS_COUNT_MAX,
    PAGE,
    RUN_DATA,
    SLAB_DATA,
)

__all__ = [
    "ALL_USED",
    "BIN_FIRSTS",
    "BLOCK_COUNTS",
    "BLOCK_SIZES",
    "CLASS_OF",
    "RUN_CLASS",
    "SLAB_BITMAPS",
    "SLAB_HEADS",
    "SLAB_PAGES",
    "SMALL_MAX",
    "bin_of",
    "class_of",
    "run_capacity",
    "run_pages",
]

ALL_USED = (1 << 64) - 1
"""A bitmap word with no bit free; bits past a slab's last block count as used."""

RUN_CLASS = 255
"""In `CLASS_OF`: no class, the size takes a page run."""

_SLAB_MAGIC = int.from_bytes(b"SLAB", "little")
_SLAB_PAGES_MAX = 8
_BITMAP_BITS = 256

_FITTED = (  # pages, blocks
    (4, 15), (3, 10), (1, 3), (4, 11), (2, 5), (4, 9), (1, 2), (5, 9), (3, 5), (2, 3), (3, 4),
    (5, 6), (7, 8),  # 3568; sizes up to 4024 take a run of 1 page
    (8, 7), (5, 4), (4, 3), (3, 2), (5, 3), (7, 4),  # 7152; up to 8120, of 2
    (7, 3), (5, 2), (8, 3),  # 10896; up to 12216, of 3
    (7, 2),  # 14304; from there on, of 4 and more
)  # fmt: skip


def _stepped() -> list[int]:
    """Return the block sizes up to 1 KiB."""
    return [*range(16, 256, 16), *range(256, 512, 32), *range(512, 1025, 64)]


def _cut(block: int) -> tuple[int, int]:
    """Return the pages and blocks of a stepped class's slab: the fewest that waste little."""

    def cut(pages: int) -> int:
        return min((pages * PAGE - SLAB_DATA) // block, _BITMAP_BITS)

    def waste(pages: int) -> float:
        return 1 - cut(pages) * block / (pages * PAGE)

    pages = min(range(1, _SLAB_PAGES_MAX + 1), key=lambda pages: (waste(pages) > 1 / 30, pages))
    return pages, cut(pages)


def _classes() -> list[tuple[int, int, int]]:
    """Return (block size, slab pages, blocks of a slab) of each class, ascending."""
    stepped = [(block, *_cut(block)) for block in _stepped()]
    fitted = [
        ((pages * PAGE - SLAB_DATA) // blocks & ~15, pages, blocks) for pages, blocks in _FITTED
    ]
    return stepped + fitted


def run_pages(size: int) -> int:
    """Return the pages of a run whose block has `size` bytes of data."""
    return (size + RUN_DATA + PAGE - 1) // PAGE


def run_capacity(pages: int) -> int:
    """Return the most bytes of data that a run of so many pages has room for."""
    return pages * PAGE - RUN_DATA


BLOCK_SIZES = tuple(block for block, _, _ in _classes())
SLAB_PAGES = tuple(pages for _, pages, _ in _classes())
BLOCK_COUNTS = tuple(blocks for _, _, blocks in _classes())

SLAB_HEADS = tuple(
    _SLAB_MAGIC | number << 32 | pages << 40 for number, pages in enumerate(SLAB_PAGES)
)
"""Word 0 of a class's slabs."""

SLAB_BITMAPS = tuple(
    tuple((ALL_USED << max(0, min(64, count - 64 * word))) & ALL_USED for word in range(4))
    for count in BLOCK_COUNTS
)
"""Words 1 to 4 of a class's empty slabs: bits that stand for no block are set."""

SMALL_MAX = BLOCK_SIZES[-1] - BLOCK_HEADER
"""The largest size that may have a class."""


def _class_of_units(units: int) -> int:
    """Return the class of a block that takes so many times 16 bytes, header included."""
    number = next(number for number, block in enumerate(BLOCK_SIZES) if block >= 16 * units)
    size = 16 * units - BLOCK_HEADER
    fits_pages = run_capacity(run_pages(size)) < BLOCK_SIZES[number] - BLOCK_HEADER
    return RUN_CLASS if number and fits_pages and size > PAGE // 2 else number


CLASS_OF = bytes(_class_of_units(max(units, 1)) for units in range(BLOCK_SIZES[-1] // 16 + 1))
"""Class by (size + 23) // 16, the block's size in units of 16 bytes; sizes up to `SMALL_MAX`."""


def class_of(size: int) -> int:
    """Return the class of blocks with `size` bytes of data; `RUN_CLASS` for a page run."""
    return CLASS_OF[(size + 23) >> 4] if size <= SMALL_MAX else RUN_CLASS


# Bins of free extents ---------------------------------------------------------------------------


def bin_of(count: int) -> int:
    """Return the bin of a free extent of `count` pages.

    Below 16 pages each count has its own; then each doubling has two, and the last takes the rest.
    """
    if count < 16:
        return count - 1
    log = count.bit_length() - 1
    number = 7 + 2 * log + (count >> (log - 1) & 1)
    return number if number < BIN_COUNT else BIN_COUNT - 1


BIN_FIRSTS = tuple(
    number + 1 if number < 15 else (3 - number % 2) << ((number - 7) // 2 - 1)
    for number in range(BIN_COUNT)
)
"""The least page count of each bin."""

assert len(BLOCK_SIZES) <= CLASS_COUNT_MAX
assert max(SLAB_PAGES) <= _SLAB_PAGES_MAX
assert all(bin_of(first) == number for number, first in enumerate(BIN_FIRSTS))
