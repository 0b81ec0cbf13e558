"""The table block of a dict or set: its shape, made and read without a Python object.

    table    offset  size         field
                  0  slots        index: ``2**log2`` slots of 1 byte, or of 4 if there are more than 256;
                                  rounded up to 8
                     8 width n    entries: hash, key's oid (a dict: value's oid); in order of insertion

What the words of an entry and of the index mean is said in `hashtable`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pmshelve.errors import CorruptionError

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = [
    "BYTE_SLOTS",
    "SIZE_MASK",
    "SLOTS_MAX",
    "SLOTS_MIN",
    "children",
    "extent",
    "shape",
    "stage",
    "write_index",
    "write_table",
]

SIZE_MASK = (1 << 40) - 1
"""Of a block's header: its size."""
SLOTS_MIN, SLOTS_MAX = 2, 32
"""log2 of the fewest and most slots."""
BYTE_SLOTS = 8
"""log2 of the most slots of one byte."""


def shape(log2: int) -> int:
    """Return the bytes of an index of ``2**log2`` slots."""
    return (1 << log2) + 7 & -8 if log2 <= BYTE_SLOTS else 4 << log2


def stage(count: int) -> tuple[int, int]:
    """Return (log2 of the slots, capacity) of the smallest table for `count` entries.

    Capacities are two thirds of the slots, and half of them, so that a table grows by a third or a
    half: one that just grew wastes at most a third of its entries.
    """
    log2 = max(SLOTS_MIN, count.bit_length())
    if (2 << log2) // 3 < count:
        log2 += 1
    if log2 > SLOTS_MAX:
        raise MemoryError(f"a table of {count} entries")
    half = 1 << log2 - 1
    return log2, half if log2 > 4 and half >= count else (2 << log2) // 3


def write_index(manager: MemoryManager, table: int, log2: int, hashes: list[int]) -> None:
    """Write the index of a new table whose entries have these hashes."""
    shift, mask = 64 - log2, (1 << log2) - 1
    slots = [0] * (mask + 1)
    for place, number in enumerate(hashes, 1):
        if number:
            slot = number >> shift
            step = 0
            while slots[slot]:
                step += 1
                slot = (slot + step) & mask
            slots[slot] = place
    raw = bytes(slots) if log2 <= BYTE_SLOTS else array("I", slots).tobytes()
    manager.map[table : table + shape(log2)] = raw.ljust(shape(log2), b"\0")


def write_table(
    manager: MemoryManager,
    offset: int,
    width: int,
    type_num: int,
    hashes: list[int],
    entries: array[int],
) -> None:
    """Make the table of the collection at `offset`, which has none, from all words of its entries."""
    words = manager.words
    index = offset >> 3
    count = len(hashes)
    log2, capacity = stage(count)
    table = manager.heap.alloc(shape(log2) + capacity * width * 8, type_num)
    first = table + shape(log2) >> 3
    words[first : first + len(entries)] = memoryview(entries)
    write_index(manager, table, log2, hashes)
    manager.memory.snapshot((index + 1) << 3, 32)
    words[index + 1] = words[index + 2] = count
    words[index + 3] = table
    words[index + 4] = log2 | hashes.count(0) << 8


def extent(manager: MemoryManager, offset: int, width: int, type_num: int) -> tuple[int, int]:
    """Return the word numbers where the entries of the collection at `offset` begin and end.

    Raises
    ------
    CorruptionError
        What should be its table cannot be one.
    """
    words = manager.words
    index = offset >> 3
    table = words[index + 3]
    if not table:
        return 0, 0
    log2 = words[index + 4] & 0xFF
    if table & 7 or not 8 <= table < manager.memory.size or log2 > SLOTS_MAX:
        raise _no_table(manager, offset)
    header = words[(table >> 3) - 1]
    first = table + shape(log2) >> 3
    stop = first + width * words[index + 2]
    end = table + (header & SIZE_MASK)
    if header >> 40 != type_num or stop << 3 > end or end > manager.memory.size:
        raise _no_table(manager, offset)
    return first, stop


def _no_table(manager: MemoryManager, offset: int) -> CorruptionError:
    return CorruptionError(
        "the offset of a table leads to none", manager.path, offset=offset, invariant="D1"
    )


def children(
    manager: MemoryManager, first: int, stop: int, width: int, places: Iterable[int]
) -> list[int]:
    """Return the offsets of the objects that entries hold at these places."""
    words = manager.words
    kind = manager.pool_kind
    found: list[int] = []
    for place in places:
        kinds = words[first + place : stop : width].tolist()
        count = kinds.count(kind)
        if not count:
            continue
        payloads = words[first + place + 1 : stop : width].tolist()
        if count == len(kinds):
            found += payloads
        else:
            found += [
                payload for each, payload in zip(kinds, payloads, strict=True) if each == kind
            ]
    return found
