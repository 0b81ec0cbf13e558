"""Move what a pool holds, by way of a stream, into another: of another size, version or machine.

`dump` writes everything the root leads to.  An object is defined before anything refers to it, so that
both sides go through the stream once:

    tuples and frozensets    after what they hold, complete (they cannot be in a cycle by themselves)
    arrays                   complete
    all others               empty, when they are first met; filled later, piece by piece

Neither side recurses.  `dump` reads the words of the pool: it makes no Python objects but of users'
classes on the bare protocol, and unpickles nothing.  It keeps one number for each object that others may
refer to.

`load` builds in transactions of about `BATCH` values.  What is not yet held by another object is held by
lists of its own, which nothing leads to, so that a kill leaves garbage and an empty root.  The last
transaction but those that let go of the lists sets the root.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any
from zlib import crc32

from pmshelve.errors import (
    CorruptionError,
    ObjectError,
    PmshelveError,
    StateError,
    TransactionError,
    UnsupportedTypeError,
)
from pmshelve.pmemobj.collector import Collector
from pmshelve.pmemobj.dumpstream import (
    BUILTIN_NAMES,
    Pickled,
    Reference,
    Source,
    Target,
    encode_pickle,
    encode_reference,
    encode_value,
)
from pmshelve.pmemobj.layout import (
    KIND_POOL,
    OID_NULL,
    REFCOUNT_MASK,
    ROOT_OID,
    TYPE_CODE_SHIFT,
)
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
from pmshelve.pmemobj.persistent.dtypes import restore
from pmshelve.pmemobj.persistent.tableblock import extent
from pmshelve.pmemobj.protocol import Persistent
from pmshelve.pmemobj.scalars import CODE_PICKLE, CONTAINER_CODE_MIN, _pickle
from pmshelve.pmemobj.typetable import name_of

if TYPE_CHECKING:
    from pmshelve.pmemobj.protocol import Oid
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["BATCH", "dump", "load"]

BATCH = 2000
"""Values written in one record, and stored in one transaction; about."""

_PIECE = 1 << 20

_BUILTIN: tuple[Any, ...] = (
    PersistentList,
    PersistentDict,
    PersistentTuple,
    PersistentSet,
    PersistentFrozenSet,
    PersistentArray,
    PersistentObject,
)
assert tuple(cls.__name__ for cls in _BUILTIN) == BUILTIN_NAMES


def _base_of(cls: type) -> Any:
    """Return the class of this package that stores instances of `cls`; None if it does so itself."""
    return next((base for base in _BUILTIN if issubclass(cls, base)), None)


def _pairs(kinds: list[int], payloads: list[int]) -> Iterator[Oid]:
    return zip(kinds, payloads, strict=True)


def _root(manager: MemoryManager) -> Oid:
    index = (manager.heap.start >> 3) + ROOT_OID
    return manager.words[index], manager.words[index + 1]


# Dump -------------------------------------------------------------------------------------------


def dump(manager: MemoryManager, file: IO[bytes]) -> int:
    """Write everything that the root leads to; return the number of objects.

    Parameters
    ----------
    file
        Has `write`; a binary file, a pipe.

    Raises
    ------
    UnknownTypeError
        A class cannot be imported.
    ObjectError
        A class on the bare protocol has no `_p_dump`.

    Notes
    -----
    The pool's lock is held meanwhile: other threads wait.  A class that derives from none of this package's
    collections takes part by two methods: `_p_dump` returns an iterable of whatever can be persisted, and
    `_p_load`, called on an object just made with `_p_new`, is given a list of the same.
    """
    with manager.lock:
        return _Dump(manager, Target(file)).run()


class _Dump:
    def __init__(self, manager: MemoryManager, target: Target) -> None:
        self._manager = manager
        self._words = manager.words
        self._target = target
        self._numbers: dict[int, int] = {}  # offset -> number of the object
        self._classes: dict[int, tuple[int, Any]] = {}  # type code -> number, base
        self._class_count = len(BUILTIN_NAMES)
        self._to_fill: deque[int] = deque()
        self._last: list[int] = []  # to be filled when all others are: what they hash may need it

    def run(self) -> int:
        """Write the stream."""
        kind, payload = _root(self._manager)
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
        return len(self._numbers)

    # Definitions --------------------------------------------------------------------------------

    def _define(self, oids: list[Oid]) -> None:
        """Define what these oids name, unless it is defined, or a value by itself."""
        pool_kind, numbers = self._manager.pool_kind, self._numbers
        stack = [payload for kind, payload in oids if kind == pool_kind and payload not in numbers]
        open_: set[int] = set()
        while stack:
            offset = stack[-1]
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
            base = _base_of(cls)
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
        shape, dtype = arrayblock._read_description(manager, told)
        target.put(b"A")
        target.numbers(number, len(dtype))
        target.put(dtype)
        target.numbers(order, len(shape), *shape, size)
        for start in range(first, first + size, _PIECE):
            target.put(manager.map[start : min(start + _PIECE, first + size)])

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
            found = encode_pickle(_pickle(value))
        if found is None:
            raise UnsupportedTypeError(
                f"{owner.__name__}._p_dump gave a {type(value).__name__}",
                hint="give numbers, text, bytes, nominated values and persistent objects",
            )
        return found


# Load -------------------------------------------------------------------------------------------


def load(manager: MemoryManager, file: IO[bytes], *, replace: bool = False) -> int:
    """Build what `dump` wrote, and make it the root; return the number of objects.

    Parameters
    ----------
    file
        Has `read`.
    replace
        Also if the pool has a root: the new one takes its place.

    Raises
    ------
    StateError
        The pool is not empty.
    NotAStoreError, VersionError, CorruptionError
        The stream cannot be read.
    UnknownTypeError
        A class cannot be imported.

    Notes
    -----
    If it fails, the root is what it was.  The classes that the stream names are imported, and what it
    holds as pickles is loaded when it is read or used as a key: do not load what strangers made.
    """
    with manager.lock:
        if not replace and _root(manager) not in (OID_NULL, (1, 0)):
            raise StateError(
                "the pool is not empty", manager.path, hint="load into a new pool, or replace=True"
            )
        if manager.transaction().depth:
            raise TransactionError("load called inside of a transaction", manager.path)
        loading = _Load(manager, Source(file))
        try:
            count = loading.run()
        except BaseException:
            with suppress(PmshelveError):  # what is left then is garbage, which `gc` finds
                loading.let_go()
            raise
        loading.let_go()
        Collector(manager).collect()
        return count


class _Stored:
    """Stands for a scalar in the pool, where a collection takes a value."""

    __slots__ = ("_p_mm", "_p_oid")

    def __init__(self, manager: MemoryManager, offset: int) -> None:
        self._p_mm = manager
        self._p_oid = (manager.pool_kind, offset)

    def _p_new(self, manager: Any) -> None:
        raise AssertionError

    def _p_resurrect(self, manager: Any, oid: Any) -> None:
        raise AssertionError

    def _p_traverse(self) -> Any:
        return ()

    def _p_substructures(self) -> Any:
        return ()


class _Load:
    def __init__(self, manager: MemoryManager, source: Source) -> None:
        self._manager = manager
        self._source = source
        self._classes: list[Any] = list(_BUILTIN)
        self._offsets = array("Q")
        self._held: list[Any] = []  # lists of what nothing may hold yet
        self._steps = {
            b"C": self._read_class,
            b"S": self._read_scalar,
            b"M": self._read_mutable,
            b"T": self._read_immutable,
            b"F": self._read_immutable,
            b"A": self._read_array,
            b"X": self._read_fill,
        }

    def run(self) -> int:
        """Read the stream."""
        source, manager = self._source, self._manager
        code = source.take(1)
        while code != b"R":
            with manager.operation:
                self._work = 0
                while code != b"R" and self._work < BATCH:
                    self._code = code
                    step = self._steps.get(code)
                    if step is None:
                        source.fail(f"no record has code {code!r}")
                    self._work += 1
                    step()
                    code = source.take(1)
        self._set_root()
        return len(self._offsets)

    def _set_root(self) -> None:
        manager, source = self._manager, self._source
        with manager.operation:
            value = self._value()
            source.end()
            index = (manager.heap.start >> 3) + ROOT_OID
            old = _root(manager)
            new = manager.own(value)
            manager.memory.snapshot(index << 3, 16)
            manager.words[index], manager.words[index + 1] = new
            if old != OID_NULL:
                manager.release(*old)

    def let_go(self) -> None:
        """Leave the objects to what holds them."""
        while self._held:
            held = self._held.pop()
            if held._p_mm is self._manager:  # else it was made in the transaction that failed
                PersistentList.clear(held)

    # Records ------------------------------------------------------------------------------------

    def _add(self, thing: Any) -> None:
        """Let the next number stand for an object, and hold it."""
        if not self._held or len(self._offsets) % BATCH == 0:
            self._held.append(self._manager.new(PersistentList))
        PersistentList.append(self._held[-1], thing)
        self._offsets.append(thing._p_oid[1])

    def _read_class(self) -> None:
        name = self._source.text()
        cls = self._manager.types._import(name)
        if not issubclass(cls, Persistent):
            self._source.fail(f"{name} is no class of persistent objects")
        self._classes.append(cls)

    def _class(self, bases: tuple[Any, ...]) -> Any:
        """Return the class that stands next in the stream; it is stored by one of `bases`."""
        number = self._source.number()
        if number >= len(self._classes):
            self._source.fail("a class was not defined")
        cls = self._classes[number]
        if _base_of(cls) not in bases:
            self._source.fail(f"a {cls.__name__} cannot be made of this record")
        return cls

    def _read_scalar(self) -> None:
        manager = self._manager
        value = self._source.value()
        offset = self._store_pickle(value) if isinstance(value, Pickled) else None
        if offset is None:
            offset = manager.scalars.store(value)
        if offset is None:
            self._source.fail("a value needs no definition")
        self._add(_Stored(manager, offset))

    def _read_mutable(self) -> None:
        cls = self._class((PersistentList, PersistentDict, PersistentSet, PersistentObject, None))
        self._add(self._manager.make(cls))

    def _read_immutable(self) -> None:
        base: Any = PersistentTuple if self._code == b"T" else PersistentFrozenSet
        cls = self._class((base,))
        thing = self._manager.make(cls)
        base.__init__(thing, self._values(self._source.number(), plain=self._code == b"F"))
        self._add(thing)

    def _read_array(self) -> None:
        cls = self._class((PersistentArray,))
        thing = self._manager.make(cls)
        PersistentArray.__init__(thing, _read_array(self._source))
        self._work += BATCH
        self._add(thing)

    def _read_fill(self) -> None:
        thing = self._object(self._source.number())
        count = self._source.number()
        base = _base_of(type(thing))
        if base is PersistentList:
            PersistentList.extend(thing, self._values(count))
        elif base is PersistentSet:
            PersistentSet.update(thing, self._values(count, plain=True))
        elif base is PersistentDict:
            self._enter(thing, count)
        elif base is PersistentObject:
            table = PersistentObject._p_attributes(thing)
            if table is None:
                table = PersistentObject._p_make_attributes(thing)
            self._enter(table, count)
            PersistentObject._p_forget(thing)
        elif base is None and hasattr(thing, "_p_load"):
            thing._p_load([self._loaded(value) for value in self._values(count)])
        else:
            self._source.fail(f"a {type(thing).__name__} cannot be filled")

    def _enter(self, table: Any, count: int) -> None:
        if count % 2:
            self._source.fail("a key has no value")
        for _ in range(count // 2):
            key = self._loaded(self._value())
            PersistentDict.__setitem__(table, key, self._value())
        self._work += count

    # Values -------------------------------------------------------------------------------------

    def _values(self, count: int, *, plain: bool = False) -> list[Any]:
        self._work += count
        if plain:  # they are hashed, or shown to somebody else
            return [self._loaded(self._value()) for _ in range(count)]
        return [self._value() for _ in range(count)]

    def _value(self) -> Any:
        """Return the next value, as a collection can take it."""
        value = self._source.value()
        if isinstance(value, Reference):
            return self._object(value.number)
        if isinstance(value, Pickled):
            return _Stored(self._manager, self._store_pickle(value))
        return value

    def _object(self, number: int) -> Any:
        if number >= len(self._offsets):
            self._source.fail("an object was not defined")
        manager = self._manager
        offset = self._offsets[number]
        if manager.words[offset >> 3] >> TYPE_CODE_SHIFT < CONTAINER_CODE_MIN:
            return _Stored(manager, offset)
        return manager.load(manager.pool_kind, offset)

    def _loaded(self, value: Any) -> Any:
        """Return the value itself of what stands for one."""
        return self._manager.load(*value._p_oid) if value.__class__ is _Stored else value

    def _store_pickle(self, value: Pickled) -> int:
        content = value.content
        return self._manager.scalars._put(
            CODE_PICKLE, crc32(content).to_bytes(4, "little") + content
        )


def _read_array(source: Source) -> Any:
    """Return the ndarray that stands next in a stream."""
    import numpy as np

    try:
        dtype = restore(source.sized())
        order: Any = "F" if source.number() else "C"
        shape = tuple(source.number() for _ in range(source.number()))
        data = source.sized()
        if math.prod(shape) * dtype.itemsize != len(data):
            source.fail("an array has another size")
        return np.ndarray(shape, dtype, data or bytes(dtype.itemsize), order=order)
    except (TypeError, OverflowError, MemoryError) as error:
        source.fail(f"an array cannot be made: {error}")
