"""The table of a PersistentDict, PersistentSet or PersistentFrozenSet.  (docs/format-pmemobj.md, D1-D6)

    anchor   word  field
                0  object header
                1  used: entries that live
                2  fill: entries, dead ones included
                3  offset of the table block, 0 for none
                4  log2 of the slots (8 bits), above it the number of *odd* entries

    table    the index, then the entries in order of insertion: see `tableblock`

A slot holds the number of an entry plus one, or 0.  Looking up begins at the slot that the top bits of the
stable hash name and goes on by 1, 2, 3 ... slots, to an empty one.  At most two thirds of the slots are in
use.  A deleted entry is all zero and keeps its slot until the table is built anew, which happens when
entries run out, or when three quarters of them are dead.

An entry whose key has no stable hash is odd: its hash is 0 and no slot leads to it.  Odd entries are
indexed in memory, by Python's own dict, when they are first needed.

Kept in Python, and dropped by `_p_forget`: where the table is; `_p_cache`, which knows the entry of keys
used lately; the index of odd keys.  `_p_changes` counts whatever moves, adds or removes an entry, so that
what ran foreign code (`__eq__` and `__hash__` of keys, pickling) knows to look again; `_p_edits` counts
replaced values.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.hashing import MULTIPLIER, UnstableHashError, stable_hash
from pmshelve.pmemobj.layout import TYPE_CODE_SHIFT
from pmshelve.pmemobj.oid import SHORT_MAX, encode_immediate
from pmshelve.pmemobj.persistent.base import Container
from pmshelve.pmemobj.persistent.keyhash import lookup_hash
from pmshelve.pmemobj.persistent.tableblock import (
    BYTE_SLOTS,
    SIZE_MASK,
    SLOTS_MAX,
    SLOTS_MIN,
    shape,
    stage,
    write_index,
    write_table,
)
from pmshelve.pmemobj.scalars import CODE_STR

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["PLAIN", "Table", "has_nan", "is_nan"]

PLAIN = frozenset({str, int, bytes, float, bool, complex, type(None)})
"""Types of keys that run no foreign code when they are hashed or compared with each other."""

_CACHE_MAX = 1 << 17
_TRIES = 100
_WORD = (1 << 64) - 1
_KEEP = 5  # entries of a table that is not made smaller


class Table(Container):
    """What dict and sets share: finding, adding and removing entries.

    Methods named `_p_...` are called with the pool's lock held; those that change, in an operation.
    """

    __slots__ = (
        "_p_before",
        "_p_cache",
        "_p_changes",
        "_p_edits",
        "_p_free",
        "_p_full",
        "_p_limit",
        "_p_loaders",
        "_p_mask",
        "_p_missed",
        "_p_odd",
        "_p_shift",
        "_p_slots",
        "_p_table",
        "_p_tail",
        "_p_view",
    )

    _p_size = 40
    _p_width: ClassVar[int]
    """Words of an entry."""
    _p_table_num: ClassVar[int]
    """Type number of the table block."""
    _p_noun: ClassVar[str]
    """What messages call it."""

    _p_view: Any
    _p_odd: dict[Any, int] | None
    _p_full: tuple[int, dict[Any, int]] | None

    def _p_attach(self, manager: MemoryManager, offset: int) -> None:
        super()._p_attach(manager, offset)
        self._p_loaders = manager.loaders
        self._p_changes = self._p_edits = 0
        self._p_cache: dict[Any, int] = {}
        self._p_forget()

    def _p_forget(self) -> None:
        self._p_changes += 1
        self._p_cache.clear()
        self._p_table = -1  # not looked at yet
        self._p_odd = self._p_full = None
        self._p_tail = _WORD

    # The table ----------------------------------------------------------------------------------

    def _p_settle(self) -> None:
        """Find out where the table is and what shape it has."""
        words, index = self._p_words, self._p_index
        table = words[index + 3]
        log2 = words[index + 4] & 0xFF
        if not table:
            if any(words[index + 1 : index + 5]):
                raise self._p_damaged("a collection without a table is not empty")
            self._p_before = self._p_limit = -self._p_width
            self._p_table = self._p_shift = self._p_mask = 0
            return
        heap = self._p_mm.heap
        if not (
            heap.is_block(table)
            and heap.type_num_of(table) == self._p_table_num
            and SLOTS_MIN <= log2 <= SLOTS_MAX
        ):
            raise self._p_damaged("the offset of a table leads to none")
        width = self._p_width
        first = table + shape(log2) >> 3
        capacity = ((heap.size_of(table) + table >> 3) - first) // width
        if not words[index + 1] <= words[index + 2] <= capacity:
            raise self._p_damaged("the counts of a table contradict each other")
        self._p_adopt(table, log2, capacity)

    def _p_adopt(self, table: int, log2: int, capacity: int) -> None:
        """Use a table from now on."""
        memory = self._p_mm.memory
        width = self._p_width
        self._p_before = (table + shape(log2) >> 3) - width
        self._p_limit = self._p_before + width * (capacity + 1)
        self._p_shift = 64 - log2
        self._p_mask = (1 << log2) - 1
        if log2 <= BYTE_SLOTS:
            self._p_view, self._p_slots = memory.bytes, table
        else:
            self._p_view, self._p_slots = memory.halves, table >> 2
        self._p_table = table
        self._p_changes += 1
        self._p_cache.clear()
        self._p_odd = self._p_full = None
        self._p_tail = _WORD

    def _p_damaged(self, problem: str) -> CorruptionError:
        return CorruptionError(problem, self._p_mm.path, offset=self._p_offset, invariant="D1")

    # Finding ------------------------------------------------------------------------------------

    # One straight run: this is what every access to a key that is not in the cache costs.
    def _p_find(self, key: Any) -> int:  # noqa: C901, PLR0912, PLR0915
        """Return the word number of a key's entry, -1 for none.

        After -1, `_p_missed` is the hash to store the key with, and `_p_free` the slot it belongs in, or
        -1 where that is not known.
        """
        cls = type(key)
        if cls is str:
            try:
                raw = key.encode()
            except UnicodeEncodeError:
                raw = key.encode("utf-8", "surrogatepass")
            size = len(raw)
            number = ((size << 32) + crc32(raw)) * MULTIPLIER & _WORD | 1
        elif cls in PLAIN:
            number = stable_hash(key)
        else:
            return self._p_find_slowly(key)
        if self._p_table <= 0:
            if self._p_table < 0:
                self._p_settle()
            if not self._p_table:
                self._p_missed = number
                self._p_free = -1
                return -1
        words = self._p_words
        width = self._p_width
        at: int
        before, limit = self._p_before, self._p_limit
        view, slots, mask = self._p_view, self._p_slots, self._p_mask
        slot = number >> self._p_shift
        step = 0
        while True:
            place = view[slots + slot]
            if not place:
                break
            at = before + width * place
            if at >= limit:
                raise self._p_damaged("a slot leads to no entry")
            if words[at] == number:
                kind = words[at + 1]
                if not kind:
                    found = False
                elif cls is not str:
                    stored = self._p_loaders[kind & 0xFF](kind, words[at + 2])
                    found = stored == key or (
                        key != key and (kind, words[at + 2]) == encode_immediate(key)  # noqa: PLR0124
                    )
                elif size <= SHORT_MAX:
                    found = (kind, words[at + 2]) == encode_immediate(key)
                else:
                    found = self._p_is_text(kind, words[at + 2], raw)
                if found:
                    cache = self._p_cache
                    if len(cache) >= _CACHE_MAX:
                        cache.clear()
                    cache[key] = at
                    return at
            step += 1
            if step > mask:
                raise self._p_damaged("an index has no empty slot")
            slot = (slot + step) & mask
        if words[self._p_index + 4] >> 8:
            return self._p_find_slowly(key)
        self._p_missed = number
        self._p_free = slot
        return -1

    def _p_is_text(self, kind: int, payload: int, raw: bytes) -> bool:
        """Whether an oid names the str whose UTF-8 is `raw`, too long for an oid."""
        manager = self._p_mm
        if kind != manager.pool_kind:
            return False
        words = self._p_words
        size = len(raw)
        try:
            if words[payload >> 3] >> TYPE_CODE_SHIFT != CODE_STR:
                return False
            if words[(payload >> 3) - 1] & SIZE_MASK != size + 8:
                return False
        except IndexError:
            raise self._p_damaged("a key leads out of the pool") from None
        return bool(manager.map[payload + 8 : payload + 8 + size] == raw)

    def _p_find_slowly(self, key: Any) -> int:
        """Do as `_p_find` where foreign code may run, and change this very collection meanwhile."""
        for _ in range(_TRIES):
            changes = self._p_changes
            at = self._p_search(key)
            if self._p_changes == changes:
                return at
        raise RuntimeError(f"{self._p_noun} changed size during a lookup")

    def _p_search(self, key: Any) -> int:
        hash(key)  # what is unhashable is a TypeError, with Python's message
        try:
            number: int | None = stable_hash(key)
            missed = number
        except UnstableHashError:
            number = lookup_hash(key)
            missed = 0
        if self._p_table < 0:
            self._p_settle()
        at = -1
        if self._p_words[self._p_index + 1]:
            if number is None:
                at = self._p_full_index().get(key, -1)
            elif number:
                at = self._p_probe(number, key)
            if at < 0 and self._p_words[self._p_index + 4] >> 8:
                at = self._p_odd_index().get(key, -1)
                if at >= 0 and not self._p_words[at + 1]:
                    self._p_forget()  # equality is not what it was: the caller looks again
                if at >= 0 and not self._p_words[at + 1]:
                    at = -1  # removed, and kept there by a hash that is never the same
        assert missed is not None
        self._p_missed = missed
        self._p_free = -1
        return at

    def _p_probe(self, number: int, key: Any) -> int:
        """Look a key up by a stable hash, comparing as Python's dict does."""
        changes = self._p_changes
        words = self._p_words
        width = self._p_width
        slot = number >> self._p_shift
        mask = self._p_mask
        for step in range(1, mask + 2):
            place = self._p_view[self._p_slots + slot]
            if not place:
                return -1
            at: int = self._p_before + width * place
            if at >= self._p_limit:
                raise self._p_damaged("a slot leads to no entry")
            if words[at] == number:
                kind = words[at + 1]
                if kind:
                    stored = self._p_loaders[kind & 0xFF](kind, words[at + 2])
                    if stored is key or stored == key:
                        return at
                    if self._p_changes != changes:
                        return -1  # the caller looks again
            slot = (slot + step) & mask
        raise self._p_damaged("an index has no empty slot")

    def _p_odd_index(self) -> dict[Any, int]:
        """Return key -> entry of those without a stable hash."""
        odd = self._p_odd
        if odd is None:
            changes = self._p_changes
            odd = {key: at for at, number, key in self._p_entries() if not number}
            if self._p_changes == changes:
                self._p_odd = odd
        return odd

    def _p_full_index(self) -> dict[Any, int]:
        """Return key -> entry of all: for keys of a class that may equal anything."""
        full = self._p_full
        if full is None or full[0] != self._p_changes:
            changes = self._p_changes
            full = changes, {key: at for at, _, key in self._p_entries()}
            self._p_full = full
        return full[1]

    def _p_entries(self) -> list[tuple[int, int, Any]]:
        """Return (word number, hash, key) of the entries that live."""
        first, stop = self._p_span()
        words, width = self._p_words, self._p_width
        kinds = words[first + 1 : stop : width].tolist()
        hashes = compress(words[first:stop:width].tolist(), kinds)
        return list(
            zip(compress(range(first, stop, width), kinds), hashes, self._p_values(1), strict=True)
        )

    def _p_span(self) -> tuple[int, int]:
        """Return the word numbers where entries begin, and where they end."""
        if self._p_table < 0:
            self._p_settle()
        first = self._p_before + self._p_width
        return first, first + self._p_width * self._p_words[self._p_index + 2]

    def _p_values(self, *places: int) -> list[Any]:
        """Load the oids at each place, in words from its beginning, of all entries that live.

        Returns those of the first place, then those of the next.
        """
        first, stop = self._p_span()
        words, width = self._p_words, self._p_width
        kinds: list[int] = []
        payloads: list[int] = []
        for place in places:
            found = words[first + place : stop : width].tolist()
            kinds += filter(None, found)
            payloads += compress(words[first + place + 1 : stop : width].tolist(), found)
        return self._p_mm.load_many(kinds, payloads)

    def _p_last(self) -> int:
        """Return the word number of the last entry that lives; there is one."""
        first, stop = self._p_span()
        words, width = self._p_words, self._p_width
        at = min(stop, self._p_tail) - width
        while not words[at + 1]:
            at -= width
            if at < first:
                raise self._p_damaged("a table has fewer entries than it counts")
        self._p_tail = at + width
        return at

    # Adding and removing ------------------------------------------------------------------------

    def _p_place(self, key: Any, oid: tuple[int, int]) -> int:
        """Enter a key that `_p_find` just missed; return the word number of the new entry."""
        words, index = self._p_words, self._p_index
        snapshot = self._p_mm.memory.snapshot
        number = self._p_missed
        fill = words[index + 2]
        at = self._p_before + self._p_width * (fill + 1)
        if at >= self._p_limit:
            self._p_grow()
            self._p_free = -1
            fill = words[index + 2]
            at = self._p_before + self._p_width * (fill + 1)
        if number:
            slot = self._p_free
            if slot < 0:
                slot = self._p_empty_slot(number)
            view = self._p_view
            slot += self._p_slots
            snapshot(slot * view.itemsize & -8, 8)
            view[slot] = fill + 1
            snapshot((index + 1) << 3, 16)
        else:
            snapshot((index + 1) << 3, 32)
            words[index + 4] += 256
        words[index + 1] += 1
        words[index + 2] = fill + 1
        snapshot(at << 3, self._p_width << 3)
        words[at] = number
        words[at + 1], words[at + 2] = oid
        self._p_changes += 1
        self._p_tail = _WORD
        if type(key) in PLAIN:
            self._p_cache[key] = at
        return at

    def _p_note_odd(self, key: Any, at: int) -> None:
        """Enter an odd key in the index in memory, when all is done: its `__hash__` runs."""
        odd = self._p_odd
        if odd is None:
            return
        changes = self._p_changes
        odd[key] = at
        if self._p_changes != changes:
            self._p_odd = None

    def _p_empty_slot(self, number: int) -> int:
        view, slots, mask = self._p_view, self._p_slots, self._p_mask
        slot = number >> self._p_shift
        for step in range(1, mask + 2):
            if not view[slots + slot]:
                return slot
            slot = (slot + step) & mask
        raise self._p_damaged("an index has no empty slot")

    def _p_remove(self, at: int, key: Any) -> None:
        """Remove an entry found with `key`; the caller releases what it held, afterwards.

        Foreign code (`__hash__` of an odd key) may run when all is done.
        """
        words, index, width = self._p_words, self._p_index, self._p_width
        memory = self._p_mm.memory
        odd = None
        if not words[at]:
            kind = words[at + 1]
            stored = self._p_loaders[kind & 0xFF](kind, words[at + 2])
            odd = self._p_odd
            memory.snapshot((index + 4) << 3, 8)
            words[index + 4] -= 256
        if type(key) in PLAIN:
            self._p_cache.pop(key, None)
        else:
            self._p_cache.clear()
        memory.snapshot(at << 3, width << 3)
        memory.map[at << 3 : (at + width) << 3] = bytes(width << 3)
        memory.snapshot((index + 1) << 3, 8)
        used = words[index + 1] = words[index + 1] - 1
        self._p_changes += 1
        self._p_full = None
        capacity = (self._p_limit - self._p_before) // width - 1
        if used * 4 < capacity and capacity > _KEEP:
            if used:
                self._p_rebuild(*stage(used * 2))
            else:
                self._p_drop()
        if odd is not None and odd.pop(stored, -1) != at and self._p_odd is odd:
            self._p_odd = None  # foreign code says what equals what

    def _p_clear(self) -> None:
        """Remove everything and release it."""
        manager = self._p_mm
        table = self._p_words[self._p_index + 3]
        if table:
            children = self._p_children(manager, self._p_offset)
            self._p_drop()
            manager.release_many(children)

    def _p_drop(self) -> None:
        """Free the table."""
        words, index = self._p_words, self._p_index
        table = words[index + 3]
        self._p_mm.memory.snapshot((index + 1) << 3, 32)
        words[index + 1] = words[index + 2] = words[index + 3] = words[index + 4] = 0
        self._p_forget()
        self._p_mm.heap.free(table)

    # Growing and shrinking ------------------------------------------------------------------------

    def _p_reserve(self, count: int) -> None:
        """Make room for `count` more entries."""
        _, stop = self._p_span()
        if not self._p_table or (self._p_limit - stop) // self._p_width < count:
            self._p_rebuild(*stage(self._p_words[self._p_index + 1] + count))

    def _p_grow(self) -> None:
        """Make room for at least one more entry."""
        words, index = self._p_words, self._p_index
        used, fill = words[index + 1], words[index + 2]
        if used != fill and used * 4 < fill * 3:
            self._p_rebuild(*stage(used * 4 // 3 + 1))
            return
        log2, capacity = stage(fill + 1)
        if used == fill and self._p_table and log2 == 64 - self._p_shift:
            self._p_extend(log2, capacity)
        else:
            self._p_rebuild(log2, capacity)

    def _p_extend(self, log2: int, capacity: int) -> None:
        """Give the table more entries and the same index."""
        manager = self._p_mm
        index = self._p_index
        table = manager.heap.realloc(self._p_table, shape(log2) + capacity * self._p_width * 8)
        if table != self._p_table:
            manager.memory.snapshot((index + 3) << 3, 8)
            self._p_words[index + 3] = table
        self._p_adopt(table, log2, capacity)

    def _p_rebuild(self, log2: int, capacity: int) -> None:
        """Copy the entries that live into a new table."""
        words, index, width = self._p_words, self._p_index, self._p_width
        used = words[index + 1]
        old = words[index + 3]
        runs = self._p_runs()
        heap = self._p_mm.heap
        table = heap.alloc(shape(log2) + capacity * width * 8, self._p_table_num)
        at = first = table + shape(log2) >> 3
        for start, stop in runs:
            words[at : at + stop - start] = words[start:stop]
            at += stop - start
        write_index(self._p_mm, table, log2, words[first:at:width].tolist())
        self._p_mm.memory.snapshot((index + 2) << 3, 24)
        words[index + 2] = used
        words[index + 3] = table
        words[index + 4] = words[index + 4] & ~0xFF | log2
        if old:
            heap.free(old)
        self._p_adopt(table, log2, capacity)

    def _p_runs(self) -> list[tuple[int, int]]:
        """Return (first, stop) in words of the runs of entries that live."""
        first, stop = self._p_span()
        words, width = self._p_words, self._p_width
        if words[self._p_index + 1] == words[self._p_index + 2]:
            return [(first, stop)]
        runs = []
        start = first
        for place, kind in enumerate(words[first + 1 : stop : width].tolist()):
            if not kind:
                at = first + width * place
                if at > start:
                    runs.append((start, at))
                start = at + width
        if stop > start:
            runs.append((start, stop))
        return runs

    def _p_fill(self, hashes: list[int], flat: list[int]) -> None:
        """Make the table of a collection that has none, from all words of its entries."""
        write_table(
            self._p_mm, self._p_offset, self._p_width, self._p_table_num, hashes, array("Q", flat)
        )
        self._p_forget()

    # Without a Python object ------------------------------------------------------------------------

    @staticmethod
    def _p_blocks(manager: MemoryManager, offset: int) -> list[int]:
        table = manager.words[(offset >> 3) + 3]
        return [table] if table else []


def is_nan(key: Any) -> bool:
    """Whether a key is a float that does not equal itself."""
    return type(key) is float and key != key  # noqa: PLR0124


def has_nan(keys: Iterable[Any]) -> bool:
    """Whether there is a NaN among keys: those that differ in Python may be one in a pool."""
    return any(key != key for key in keys if type(key) is float)  # noqa: PLR0124
