"""What is wrong with a dict's or set's table: every broken invariant, not just the first.

    D1   the table is a block of its type number, and holds the index and `fill` entries at least
    D2   `used` entries live; the others are all zero; `used` <= `fill`
    D3   an entry's hash is the stable hash of its key; 0 if there is none, and word 4 counts those
    D4   each entry with a hash is found by it: its number is in exactly one slot, with no empty one
         before it; an odd entry is in none; every slot leads to an entry
    D5   oids name values, or objects of this pool
    D6   no two keys are equal

docs/format-pmemobj.md has them too.  Works on memory alone: no collection is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pmshelve.errors import CorruptionError, FormatError
from pmshelve.pmemobj.hashing import (
    CODE_FROZENSET,
    CODE_TUPLE,
    UnstableHashError,
    hash_set,
    hash_tuple,
    stable_hash,
)
from pmshelve.pmemobj.layout import KIND_POOL, POBJECT_TYPE_NUM, TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent.tableblock import BYTE_SLOTS, extent, shape
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["problems"]

_Problem = tuple[str, int, str]
_UNKNOWN = object()


def problems(
    manager: MemoryManager, offset: int, width: int, type_num: int, places: tuple[int, ...]
) -> Iterator[_Problem]:
    """Yield (problem, offset, invariant).

    Parameters
    ----------
    width
        Words of an entry.
    type_num
        Of the table block.
    places
        Where in an entry oids stand.
    """
    words, heap = manager.words, manager.heap
    index = offset >> 3
    used, fill, table, shape_word = words[index + 1 : index + 5].tolist()
    if not table:
        if used or fill or shape_word:
            yield "a collection without a table is not empty", offset, "D1"
        return
    if not heap.is_block(table) or not 2 <= shape_word & 0xFF <= 32:
        yield "the offset of a table leads to none", offset, "D1"
        return
    try:
        first, stop = extent(manager, offset, width, type_num)
    except CorruptionError as error:
        yield error.problem, offset, "D1"
        return
    rows = [words[at : at + width].tolist() for at in range(first, stop, width)]
    live = [place for place, row in enumerate(rows) if row[1]]
    odd = sum(1 for place in live if not rows[place][0])
    if len(live) != used:
        yield f"{len(live)} entries live, {used} are counted", offset, "D2"
    if odd != shape_word >> 8:
        yield f"{odd} keys have no hash, {shape_word >> 8} are counted", offset, "D3"
    for place, problem, invariant in _row_problems(manager, rows, places):
        yield problem, (first + width * place) << 3, invariant
    for problem in _index_problems(manager, table, shape_word & 0xFF, rows):
        yield problem, table, "D4"


def _row_problems(
    manager: MemoryManager, rows: list[list[int]], places: tuple[int, ...]
) -> Iterator[tuple[int, str, str]]:
    """Yield (entry, problem, invariant)."""
    sound = []
    for place, row in enumerate(rows):
        if not row[1]:
            if any(row):
                yield place, f"the dead entry {place} is not zero", "D2"
            continue
        found = list(_oid_problems(manager, row, places))
        for problem in found:
            yield place, f"entry {place}: {problem}", "D5"
        if not found:
            sound.append(place)
    yield from _key_problems(manager, rows, sound)


def _oid_problems(manager: MemoryManager, row: list[int], places: tuple[int, ...]) -> Iterator[str]:
    for place in places:
        kind, payload = row[place], row[place + 1]
        if kind == manager.pool_kind:
            if not _is_object(manager, payload):
                yield f"its oid leads to {payload:#x}, where no object is"
        elif kind & 0xFF == KIND_POOL:
            yield "its oid is of another pool"
        else:
            try:
                manager.loaders[kind & 0xFF](kind, payload)
            except CorruptionError as error:
                yield error.problem


def _key_problems(
    manager: MemoryManager, rows: list[list[int]], live: list[int]
) -> Iterator[tuple[int, str, str]]:
    """Yield (entry, problem, invariant) of keys: their hashes, and whether they are equal."""
    known: dict[Any, int] = {}
    for place in live:
        number, kind, payload = rows[place][:3]
        try:
            right, key = _hash_of(manager, kind, payload)
        except (FormatError, TypeError, RecursionError) as error:
            yield place, f"entry {place}: its key cannot be read: {error}", "D5"
            continue
        if number != right:
            yield place, f"entry {place} has the hash {number:#x}, not {right:#x}", "D3"
        elif key is not _UNKNOWN:
            other = known.setdefault(key, place)
            if other != place:
                yield place, f"entries {other} and {place} have equal keys", "D6"


def _hash_of(manager: MemoryManager, kind: int, payload: int) -> tuple[int, Any]:
    """Return the stable hash of a stored key, 0 for none; and the key, if it is a scalar."""
    if kind != manager.pool_kind:
        key = manager.loaders[kind & 0xFF](kind, payload)
        return stable_hash(key), key
    if not _is_object(manager, payload):
        raise CorruptionError(f"{payload:#x} is no object", offset=payload, invariant="D5")
    words = manager.words
    index = payload >> 3
    code = words[index] >> TYPE_CODE_SHIFT
    if code < CONTAINER_CODE_MIN:
        key = manager.scalars.load(payload, code)
        try:
            return stable_hash(key), key
        except UnstableHashError:
            return 0, _UNKNOWN  # comparing it could run foreign code
    if code == CODE_TUPLE:
        first, stop, width = index + 2, index + 2 + 2 * words[index + 1], 2
        if stop << 3 > payload + manager.heap.size_of(payload):
            raise CorruptionError("a tuple is too long", offset=payload, invariant="D5")
    elif code == CODE_FROZENSET:
        first, stop = extent(manager, payload, 3, 33)
        first, stop, width = first + 1, stop + 1, 3
    else:
        return 0, _UNKNOWN
    hashes = [
        _hash_of(manager, words[at], words[at + 1])[0]
        for at in range(first, stop, width)
        if words[at] or code == CODE_TUPLE
    ]
    combine = hash_tuple if code == CODE_TUPLE else hash_set
    return (combine(hashes, len(hashes)) if all(hashes) else 0), _UNKNOWN


def _is_object(manager: MemoryManager, offset: int) -> bool:
    heap = manager.heap
    return heap.is_block(offset) and heap.type_num_of(offset) == POBJECT_TYPE_NUM


def _index_problems(
    manager: MemoryManager, table: int, log2: int, rows: list[list[int]]
) -> Iterator[str]:
    raw = manager.memory.bytes[table : table + shape(log2)]
    slots: list[int] = list(raw[: 1 << log2]) if log2 <= BYTE_SLOTS else raw.cast("I").tolist()
    homes: dict[int, int] = {}
    for slot, number in enumerate(slots):
        if number > len(rows):
            yield f"slot {slot} leads to entry {number - 1}, where none is"
        elif number and number - 1 in homes:
            yield f"entry {number - 1} has two slots"
        elif number:
            homes[number - 1] = slot
    if 0 not in slots:
        yield "no slot is empty"
        return
    for place, row in enumerate(rows):
        if row[1] and not row[0] and place in homes:
            yield f"a slot leads to entry {place}, which has no hash"
        elif row[1] and row[0] and not _is_found(slots, log2, row[0], place + 1):
            yield f"entry {place} is not found by its hash"


def _is_found(slots: list[int], log2: int, number: int, wanted: int) -> bool:
    """Whether looking a hash up meets a slot with `wanted`."""
    mask = (1 << log2) - 1
    slot = number >> 64 - log2
    for step in range(1, mask + 2):
        if slots[slot] == wanted:
            return True
        if not slots[slot]:
            return False
        slot = (slot + step) & mask
    return False
