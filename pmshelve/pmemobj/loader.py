"""Loader: build what a dump holds, in a pool, in transactions of about `BATCH` values.

What is not yet held by another object is held by lists of its own, which nothing leads to, so that a kill
leaves garbage and an empty root.  The last transaction but those that let go of the lists sets the root.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any
from zlib import crc32

from pmshelve.pmemobj.dumpclasses import BATCH, BUILTIN, base_of, root_of
from pmshelve.pmemobj.dumpstream import Pickled, Reference, Source
from pmshelve.pmemobj.layout import OID_NULL, ROOT_OID, TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
)
from pmshelve.pmemobj.persistent.dtypes import restore
from pmshelve.pmemobj.protocol import Persistent
from pmshelve.pmemobj.scalars import CODE_PICKLE, CONTAINER_CODE_MIN
from pmshelve.storage.progress import Pace, Progress

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Loader"]


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


class Loader:
    """Builds what a stream holds.

    Parameters
    ----------
    manager
        The pool's, locked; no transaction is open.
    source
        The stream.
    size
        Bytes of it; 0 if that is not known.
    progress
        Called with the bytes read, and `size`.
    """

    def __init__(
        self,
        manager: MemoryManager,
        source: Source,
        size: int = 0,
        *,
        progress: Progress | None = None,
    ) -> None:
        self._pace = Pace(progress, size)
        self._manager = manager
        self._source = source
        self._classes: list[Any] = list(BUILTIN)
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
        """Read the stream, and set the root; return the number of objects."""
        source, manager = self._source, self._manager
        self._pace.at(0)
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
                    self._pace.at(source.taken)
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
            old = root_of(manager)
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
        cls = self._manager.types.import_class(name)
        if not issubclass(cls, Persistent):
            self._source.fail(f"{name} is no class of persistent objects")
        self._classes.append(cls)

    def _class(self, bases: tuple[Any, ...]) -> Any:
        """Return the class that stands next in the stream; it is stored by one of `bases`."""
        number = self._source.number()
        if number >= len(self._classes):
            self._source.fail("a class was not defined")
        cls = self._classes[number]
        if base_of(cls) not in bases:
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
        base = base_of(type(thing))
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
        return self._manager.scalars.put(
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
