"""Dumper: what the root of a pool leads to, as records of a stream.

An object is defined before anything refers to it; which is written whole, and which empty first, is said
in `transfer`.  The words of the pool are read: no Python objects are made but of users' classes on the bare
protocol, and nothing is unpickled.  One number is kept for each object that others may refer to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pmshelve.errors import CorruptionError, ObjectError, UnsupportedTypeError
from pmshelve.pmemobj.dumpclasses import BATCH, base_of, root_of
from pmshelve.pmemobj.dumpstream import (
    BUILTIN_NAMES,
    Target,
    encode_pickle,
    encode_reference,
    encode_value,
)
from pmshelve.pmemobj.layout import KIND_POOL, OID_NULL, REFCOUNT_MASK, TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
    arrayblock,
)
from pmshelve.pmemobj.persistent.tableblock import extent
from pmshelve.pmemobj.protocol import Persistent
from pmshelve.pmemobj.scalars import CODE_PICKLE, CONTAINER_CODE_MIN, pickled
from pmshelve.pmemobj.typetable import name_of
from pmshelve.storage.progress import Pace, Progress

if TYPE_CHECKING:
    from pmshelve.pmemobj.protocol import Oid
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Dumper"]

_PIECE = 1 << 20


class Dumper:
    """Writes what a pool holds.

    Parameters
    ----------
    manager
        The pool's, locked.
    target
        The stream.
    progress
        Called with the bytes written, and about how many that will be: as many as blocks take.
    """

    def __init__(
        self, manager: MemoryManager, target: Target, *, progress: Progress | None = None
    ) -> None:
        self._pace = Pace(progress, 0 if progress is None else manager.heap.used_bytes())
        self._manager = manager
        self._words = manager.words
        self._target = target
        self._numbers: dict[int, int] = {}  # offset -> number of the object
        self._classes: dict[int, tuple[int, Any]] = {}  # type code -> number, base
        self._class_count = len(BUILTIN_NAMES)
        self._to_fill: deque[int] = deque()
        self._last: list[int] = []  # to be filled when all others are: what they hash may need it

    def run(self) -> int:
        """Write the stream; return the number of objects."""
        kind, payload = root_of(self._manager)
        if (kind, payload) == OID_NULL:
            kind, payload = 1, 0  # None
        self._define([(kind, payload)])
        while self._to_fill or self._last:
            while self._to_fill:
                self._fill(self._to_fill.popleft())
            if self._last:
                self._write_fills(self._last.pop())
        self._target.put(b"R", self._value(kind, payload))
        self._target.end()
        self._pace.end()
        return len(self._numbers)

    # Definitions --------------------------------------------------------------------------------

    def _define(self, oids: list[Oid]) -> None:
        """Define what these oids name, unless it is defined, or a value by itself."""
        pool_kind, numbers = self._manager.pool_kind, self._numbers
        stack = [payload for kind, payload in oids if kind == pool_kind and payload not in numbers]
        open_: set[int] = set()
        while stack:
            offset = stack[-1]
            self._pace.at(self._target.position)
            if offset in numbers:
                stack.pop()
                continue
            code = self._words[offset >> 3] >> TYPE_CODE_SHIFT
            if code < CONTAINER_CODE_MIN:
                self._define_scalar(stack.pop())
                continue
            number, base = self._class(code)
            if base not in (PersistentTuple, PersistentFrozenSet):
                stack.pop()
                self._define_whole(offset, number, base)
                continue
            missing = [
                payload
                for kind, payload in self._oids(offset, base)
                if kind == pool_kind and payload not in numbers and self._needs_number(payload)
            ]
            if not missing:
                stack.pop()
                self._define_immutable(offset, number, base)
            elif offset in open_:
                raise CorruptionError(
                    "a tuple holds itself", self._manager.path, offset=offset, invariant="R7"
                )
            else:
                open_.add(offset)
                stack += missing

    def _needs_number(self, offset: int) -> bool:
        """Whether an object is one that others refer to; a scalar held once stands where it is held."""
        header = self._words[offset >> 3]
        return header >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN or header & REFCOUNT_MASK > 1

    def _number(self, offset: int) -> None:
        self._numbers[offset] = len(self._numbers)

    def _define_scalar(self, offset: int) -> None:
        if self._needs_number(offset):
            self._target.put(b"S", self._scalar(offset))
            self._number(offset)

    def _define_immutable(self, offset: int, number: int, base: Any) -> None:
        oids = [oid for oid in self._oids(offset, base) if oid[0]]
        self._target.put(b"T" if base is PersistentTuple else b"F")
        self._target.numbers(number, len(oids))
        for oid in oids:
            self._target.put(self._value(*oid))
        self._number(offset)

    def _define_whole(self, offset: int, number: int, base: Any) -> None:
        self._number(offset)
        if base is PersistentArray:
            self._write_array(offset, number)
            return
        self._target.put(b"M")
        self._target.numbers(number)
        self._to_fill.append(offset)

    def _class(self, code: int) -> tuple[int, Any]:
        """Return the number of a class in the stream, defining it if need be, and its base."""
        known = self._classes.get(code)
        if known is None:
            cls = self._manager.types.class_of(code)
            base = base_of(cls)
            if cls is base:
                number = BUILTIN_NAMES.index(cls.__name__)
            else:
                if base is None and not hasattr(cls, "_p_dump"):
                    raise ObjectError(
                        f"objects of {name_of(cls)} cannot be dumped",
                        self._manager.path,
                        hint="give the class _p_dump and _p_load",
                    )
                number = self._class_count
                self._class_count += 1
                self._target.put(b"C")
                self._target.text(self._manager.types.name(code))
            known = self._classes[code] = number, base
        return known

    # Content ------------------------------------------------------------------------------------

    def _fill(self, offset: int) -> None:
        """Write the content of a mutable object, or define all of it and put it off."""
        _, base = self._class(self._words[offset >> 3] >> TYPE_CODE_SHIFT)
        if base in (PersistentDict, PersistentSet) and self._hashes_mutable(offset, base):
            for oids in self._pieces(offset, base):
                self._define(oids)
            self._last.append(offset)
        elif base is None:
            self._write_state(offset)
        else:
            self._write_fills(offset)

    def _hashes_mutable(self, offset: int, base: Any) -> bool:
        """Whether there are keys whose hash may depend on what they are filled with."""
        width = 2 if base is PersistentDict else 1
        pool_kind = self._manager.pool_kind
        for kind, payload in self._oids(offset, base)[::width]:
            if kind == pool_kind:
                code = self._words[payload >> 3] >> TYPE_CODE_SHIFT
                if code >= CONTAINER_CODE_MIN:
                    return True
        return False

    def _write_fills(self, offset: int) -> None:
        _, base = self._class(self._words[offset >> 3] >> TYPE_CODE_SHIFT)
        for oids in self._pieces(offset, base):
            self._define(oids)
            self._write_fill(offset, [self._value(*oid) for oid in oids])

    def _write_fill(self, offset: int, values: list[bytes]) -> None:
        self._pace.at(self._target.position)
        self._target.put(b"X")
        self._target.numbers(self._numbers[offset], len(values))
        self._target.put(*values)

    def _pieces(self, offset: int, base: Any) -> Iterator[list[Oid]]:
        """Yield the oids that a mutable object holds, some at a time."""
        if base is PersistentObject:
            table = self._words[(offset >> 3) + 1]
            if not table:
                return
            offset, base = table, PersistentDict
        oids = self._oids(offset, base)
        for first in range(0, len(oids), BATCH):
            yield oids[first : first + BATCH]

    def _oids(self, offset: int, base: Any) -> list[Oid]:
        """Return the oids that an object holds, in order; of a dict, keys and values by turns."""
        manager, words = self._manager, self._words
        index = offset >> 3
        if base is PersistentList or base is PersistentTuple:
            first = words[index + 2] >> 3 if base is PersistentList else index + 2
            stop = first + 2 * words[index + 1]
            return [*_pairs(words[first:stop:2].tolist(), words[first + 1 : stop : 2].tolist())]
        width, type_num = base._p_width, base._p_table_num
        first, stop = extent(manager, offset, width, type_num)
        columns = [words[first + place : stop : width].tolist() for place in range(1, width)]
        if width == 3:
            return [oid for oid in _pairs(*columns) if oid[0]]
        return [
            oid
            for key_kind, key, kind, payload in zip(*columns, strict=True)
            if key_kind  # else the entry is dead
            for oid in ((key_kind, key), (kind, payload))
        ]

    def _value(self, kind: int, payload: int) -> bytes:
        if kind != self._manager.pool_kind:
            if kind & 0xFF == KIND_POOL:
                raise CorruptionError(
                    "an oid is of another pool", self._manager.path, invariant="R1"
                )
            found = encode_value(self._manager.loaders[kind & 0xFF](kind, payload))
            assert found is not None
            return found
        number = self._numbers.get(payload)
        return self._scalar(payload) if number is None else encode_reference(number)

    def _scalar(self, offset: int) -> bytes:
        manager = self._manager
        code = self._words[offset >> 3] >> TYPE_CODE_SHIFT
        if code == CODE_PICKLE:
            return encode_pickle(manager.map[offset + 12 : offset + manager.heap.size_of(offset)])
        found = encode_value(manager.scalars.load(offset, code))
        assert found is not None
        return found

    def _write_array(self, offset: int, number: int) -> None:
        manager, target = self._manager, self._target
        first, size, told, order = self._words[(offset >> 3) + 2 : (offset >> 3) + 6].tolist()
        shape, dtype = arrayblock.read_description(manager, told)
        target.put(b"A")
        target.numbers(number, len(dtype))
        target.put(dtype)
        target.numbers(order, len(shape), *shape, size)
        for start in range(first, first + size, _PIECE):
            target.put(manager.map[start : min(start + _PIECE, first + size)])
            self._pace.at(target.position)

    def _write_state(self, offset: int) -> None:
        """Write what an object of a user's own class says about itself."""
        thing = self._manager.load(self._manager.pool_kind, offset)
        values: list[Any] = list(thing._p_dump())
        self._define([value._p_oid for value in values if isinstance(value, Persistent)])
        self._write_fill(offset, [self._plain(value, type(thing)) for value in values])

    def _plain(self, value: Any, owner: type) -> bytes:
        if isinstance(value, Persistent):
            return self._value(*value._p_oid)
        found = encode_value(value)
        if found is None and self._manager.scalars.is_nominated(type(value)):
            found = encode_pickle(pickled(value))
        if found is None:
            raise UnsupportedTypeError(
                f"{owner.__name__}._p_dump gave a {type(value).__name__}",
                hint="give numbers, text, bytes, nominated values and persistent objects",
            )
        return found


def _pairs(kinds: list[int], payloads: list[int]) -> Iterator[Oid]:
    return zip(kinds, payloads, strict=True)
