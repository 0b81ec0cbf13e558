"""Journal: one record for each transaction, with what makes it so.  (docs/format-pmemobj.md, J1-J9)

A record says what the words of memory become, never what they were:

    offset   size   field
         0      4   crc       CRC-32 of all that follows, begun with the crc of the record before
                              (the first: with the low half of the superblock's `start`)
         4      4   count     of items, n
         8      8   sequence  one more than the record before; the first has the superblock's `start`
        16    8*n   targets   offset in the file, for each item
    16+8*n    8*n   sizes     size | kind << 56, for each item
   16+16*n    ...   data      of each item, one behind the other

    kind  target                size                 data
    0     of a range            of the range         its bytes (size)
    1     of a move             of what is moved     its source (8)
    2     of an extent          of the extent        crc at the extent's start (8)
    3     size of the file      0                    none

Little-endian; all offsets and sizes are multiples of 8.  Items are applied in order.  An extent,
behind the end of the heap, holds one record of the same form with the same sequence, which was too
large for the journal; nothing else stands in the record that points to it.

A record counts if its sequence is the one expected, it fits into the journal, and its crc agrees;
the first that does not ends the journal.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.memory import Memory
from pmshelve.storage.binary import U32, U64, crc32

__all__ = [
    "HEADER",
    "MOVE",
    "OVERFLOW",
    "RANGE",
    "SIZE",
    "Item",
    "Scan",
    "Tail",
    "apply",
    "encode",
    "encode_ranges",
    "first_tail",
    "scan",
]

RANGE = 0
MOVE = 1
OVERFLOW = 2
SIZE = 3

HEADER = 16
_KIND_SHIFT = 56
_SIZE_MASK = (1 << _KIND_SHIFT) - 1
_HEAD = struct.Struct("<IIQ")
assert _HEAD.size == HEADER

_PACKERS: list[Callable[..., bytes]] = [struct.Struct(f"<IQ{2 * n}Q").pack for n in range(64)]
_PACK_CRC = U32.pack

Item = tuple[int, int, int, Any]
"""Kind, target, size, data."""


Tail = tuple[int, int, int]
"""Where the journal ends: position of the next record, its sequence, and what its crc begins with."""


def first_tail(start: int) -> Tail:
    """Return the tail of a journal without records."""
    return 0, start, start & 0xFFFFFFFF


# Writing --------------------------------------------------------------------------------------


def encode_ranges(memory: Memory, saved: dict[int, bytes], tail: Tail) -> tuple[bytes, Tail]:
    """Return the record of a transaction that changed these ranges, and the tail behind it.

    The ranges' pages are noted as dirty.

    This is what almost every commit does, so it is written out.
    """
    content = memory.map
    dirty = memory.dirty
    add_dirty = dirty.add
    parts = [b""]
    add_part = parts.append
    sizes: list[int] = []
    add_size = sizes.append
    for offset, old in saved.items():
        size = len(old)
        add_size(size)
        stop = offset + size
        add_part(content[offset:stop])
        page = offset >> 12
        add_dirty(page)
        if stop - 1 >> 12 != page:
            dirty.update(range(page + 1, (stop - 1 >> 12) + 1))
    position, sequence, seed = tail
    count = len(sizes)
    pack = _PACKERS[count] if count < 64 else struct.Struct(f"<IQ{2 * count}Q").pack
    parts[0] = pack(count, sequence, *saved, *sizes)
    body = b"".join(parts)
    crc = crc32(body, seed)
    record = _PACK_CRC(crc) + body
    return record, (position + len(record), sequence + 1, crc)


def encode(items: Sequence[Item], tail: Tail) -> tuple[list[Any], Tail]:
    """Return the buffers of the record of any items, and the tail behind it."""
    count = len(items)
    table = [item[1] for item in items]
    table += [item[2] | item[0] << _KIND_SHIFT for item in items]
    buffers = [item[3] for item in items if len(item[3])]
    size = HEADER + 16 * count + sum(map(len, buffers))
    position, sequence, seed = tail
    head = struct.pack(f"<IQ{2 * count}Q", count, sequence, *table)
    crc = crc32(head, seed)
    for buffer in buffers:
        crc = crc32(buffer, crc)
    return [_PACK_CRC(crc) + head, *buffers], (position + size, sequence + 1, crc)


def changed_items(memory: Memory, saved: dict[Any, Any]) -> Iterator[Item]:
    """Yield the items of what a transaction changed: its moves, then the ranges' final bytes.

    Moves may go first because nothing near one had been changed when it was made (see
    `Memory.move`): whatever was stored there since is among the ranges.
    """
    ranges: list[tuple[int, int]] = []
    for key, old in saved.items():
        if key.__class__ is tuple:
            target, source, size = key
            yield MOVE, target, size, U64.pack(source)
        else:
            ranges.append((key, len(old)))
    content = memory.bytes
    for offset, size in ranges:
        yield RANGE, offset, size, content[offset : offset + size]


# Reading --------------------------------------------------------------------------------------


class Scan(NamedTuple):
    """What a journal holds.

    Attributes
    ----------
    records
        The items of each, in order; an extent's in place of the item that points to it.
    tail
        Where it ends.
    size
        What the file's size became by it.
    torn
        Whether something follows that looks like the beginning of a record.
    """

    records: list[list[Item]]
    tail: Tail
    size: int
    torn: bool


def scan(
    journal: bytes,
    tail: Tail,
    size: int,
    file_size: int,
    heap_offset: int,
    read: Callable[[int, int], bytes],
    path: object = None,
) -> Scan:
    """Return the records of a journal.

    Parameters
    ----------
    journal
        The whole of it.
    tail
        As `first_tail` gives it.
    size
        What the superblock says the file's size is.
    file_size
        What it is.
    read
        Reads from the file, given size and offset.

    Raises
    ------
    CorruptionError
        A record is sound and nonsense.
    """
    view = memoryview(journal)
    records: list[list[Item]] = []
    while True:
        record = _read_record(view, tail)
        if record is None:
            break
        items, next_tail = record
        if len(items) == 1 and items[0][0] == OVERFLOW:
            inner = _read_extent(items[0], tail, read)
            if inner is None:
                break
            items = inner
        grown = _grown(items, size)
        if grown > file_size:
            break  # the power went before the size was on the disk
        _check(items, heap_offset, grown, path)
        size, tail = grown, next_tail
        records.append(items)
    return Scan(records, tail, size, begins(journal[tail[0] : tail[0] + HEADER], tail))


def _read_record(view: memoryview, tail: Tail) -> tuple[list[Item], Tail] | None:
    """Return the items of the record that begins at the tail, and the next tail; None: no record."""
    start, expected, seed = tail
    if start + HEADER > len(view):
        return None
    crc, count, sequence = _HEAD.unpack_from(view, start)
    position = start + HEADER + 16 * count
    if sequence != expected or position > len(view):
        return None
    table = struct.unpack_from(f"<{2 * count}Q", view, start + HEADER)
    items: list[Item] = []
    for target, word in zip(table[:count], table[count:], strict=True):
        kind, size = word >> _KIND_SHIFT, word & _SIZE_MASK
        length = size if kind == RANGE else 0 if kind == SIZE else 8
        items.append((kind, target, size, view[position : position + length]))
        position += length
    if position > len(view) or crc32(view[start + 4 : position], seed) != crc:
        return None
    return items, (position, sequence + 1, crc)


def _read_extent(item: Item, tail: Tail, read: Callable[[int, int], bytes]) -> list[Item] | None:
    """Return the items of the record in an extent; None if it is not the one that is meant."""
    _, offset, size, data = item
    # Its head first: what a crash left there should not decide how much is read.
    head = read(HEADER, offset)
    if len(head) < HEADER or _HEAD.unpack(head)[::2] != (U64.unpack(data)[0], tail[1]):
        return None
    record = _read_record(memoryview(read(size, offset)), (0, tail[1], tail[2]))
    return None if record is None else record[0]


def _grown(items: Iterable[Item], size: int) -> int:
    for kind, target, _, _ in items:
        if kind == SIZE:
            size = target
    return size


def _check(items: Iterable[Item], heap_offset: int, size: int, path: object) -> None:
    """Raise unless all items stay within the heap; their record's crc agrees already."""
    for kind, target, length, data in items:
        places = [target]
        if kind == MOVE:
            places.append(U64.unpack(data)[0])
        elif kind == SIZE:
            places, length = [heap_offset], target - heap_offset
        elif kind != RANGE:
            places = [-1]
        for place in places:
            if place < heap_offset or place + length > size:
                raise CorruptionError(
                    "a record of the journal points out of the heap",
                    path,
                    hint="the file was left as it was",
                    offset=max(place, 0),
                    invariant="J4",
                )


def begins(head: bytes, tail: Tail) -> bool:
    """Whether a journal with these first bytes may hold any records."""
    return head[8:16] == U64.pack(tail[1])


def holds_later(journal: bytes, tail: Tail) -> bool:
    """Whether behind the journal's end there is a record that came later than the missing one."""
    wanted = U64.pack(tail[1] + 1)
    place = journal.find(wanted, tail[0])
    while place >= 0:
        if place % 8 == 0:
            return True
        place = journal.find(wanted, place + 1)
    return False


def apply(memory: Memory, items: Iterable[Item]) -> None:
    """Make memory what a record says."""
    content = memory.map
    for kind, target, size, data in items:
        if kind == RANGE:
            content[target : target + size] = data
        elif kind == MOVE:
            content.move(target, U64.unpack(data)[0], size)
