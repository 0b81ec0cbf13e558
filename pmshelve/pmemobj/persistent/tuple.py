"""`PersistentTuple`: a tuple; its items stand in the anchor itself.

    anchor   word  field
             0     object header, type code 18
             1     length: number of items
             2..   the items, oids of 16 bytes (Q4)

A built-in tuple that is put into a collection is stored as this class, and equals it.  One that holds
others is stored from the innermost outwards, without recursion; a tuple that is held twice is stored once.
"""

from __future__ import annotations

import operator
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, TypeVar, overload

from pmshelve.errors import CorruptionError, StateError
from pmshelve.generics import T_co
from pmshelve.pmemobj.layout import BLOCK_SIZE_MAX, OID_SIZE, REFCOUNT_MASK, TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent import compare
from pmshelve.pmemobj.persistent.base import Container
from pmshelve.pmemobj.persistent.items import (
    cannot_add,
    children,
    index_of,
    load_all,
    own_all,
    problems,
    shown,
    starting,
)
from pmshelve.pmemobj.typetable import register_builtin, register_static

if TYPE_CHECKING:
    from pmshelve.pmemobj.protocol import Oid
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["PersistentTuple"]

_S = TypeVar("_S")

_HEAD = 16
"""Bytes before the items."""
_LENGTH_MAX = (BLOCK_SIZE_MAX - _HEAD) // OID_SIZE


@register_static
class PersistentTuple(Container, Sequence[T_co]):
    """A tuple in a pool; made with ``pool.new(PersistentTuple, iterable)``, or of a built-in tuple.

    Parameters
    ----------
    iterable
        What it holds.

    Notes
    -----
    Behaves as `tuple` does; hash and order are those of the built-in tuple of the same items.  Slices and the
    results of ``+`` and ``*`` are plain tuples.  A subclass hands the items to ``super().__init__``, before
    it stores itself anywhere; what calls `__init__` again changes nothing.
    """

    __slots__ = ("_p_hash", "_p_unset")

    _p_hash: int | None
    _p_unset: bool

    _p_code: ClassVar[int] = 18
    _p_size: ClassVar[int] = _HEAD

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self, iterable: Iterable[T_co], /) -> None: ...
    def __init__(self, iterable: Iterable[Any] = (), /) -> None:
        operation = starting(self)
        values = iterable if type(iterable) in (list, tuple) else list(iterable)
        with operation:
            if self._p_unset and values:
                self._p_fill(values)
            self._p_unset = False

    def _p_attach(self, manager: MemoryManager, offset: int) -> None:
        super()._p_attach(manager, offset)
        self._p_hash = None
        self._p_unset = False

    def _p_new(self, manager: MemoryManager) -> None:
        super()._p_new(manager)
        self._p_unset = True

    def _p_resurrect(self, manager: MemoryManager, oid: Oid) -> None:
        problem = _head_problem(manager, oid[1])
        if problem:
            raise CorruptionError(problem, manager.path, offset=oid[1], invariant="Q4")
        self._p_attach(manager, oid[1])

    def _p_fill(self, values: Any) -> None:
        """Take the items: the anchor, made before they were known, becomes as large as they need."""
        manager = self._p_mm
        old = self._p_offset
        run = own_all(manager, values, old)
        if self._p_words[self._p_index] & REFCOUNT_MASK:
            raise StateError("a tuple is held by something before it has its items", manager.path)
        offset = manager.heap.realloc(old, _HEAD + 8 * len(run))
        if offset == old:
            manager.memory.snapshot(offset + 8, 8)
        else:
            identity = manager.identity
            identity.forget(old)
            self._p_attach(manager, offset)
            identity.register(offset, self)
            manager.fresh.discard(old)
            manager.fresh.add(offset)
            manager.born.append(offset)
        _store(manager, offset, run)

    # Reading ----------------------------------------------------------------------------------

    def _p_all(self) -> list[Any]:
        """Return all items."""
        with self._p_lock:
            return load_all(self._p_mm, self._p_index + 2, self._p_words[self._p_index + 1])

    def __len__(self) -> int:
        with self._p_lock:
            return self._p_words[self._p_index + 1]

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> T_co: ...
    @overload
    def __getitem__(self, index: slice, /) -> tuple[T_co, ...]: ...
    def __getitem__(self, index: Any, /) -> Any:
        if index.__class__ is not int:
            if isinstance(index, slice):
                return tuple(self._p_all()[index])
            index = index_of(index, "tuple")
        with self._p_lock:
            words = self._p_words
            at = self._p_index
            length = words[at + 1]
            if index < 0:
                index += length
            if 0 <= index < length:
                at += 2 + 2 * index
                kind = words[at]
                return self._p_mm.loaders[kind & 0xFF](kind, words[at + 1])
        index_of(index, "tuple")  # raises for a huge one
        raise IndexError("tuple index out of range")

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._p_all())

    def __reversed__(self) -> Iterator[T_co]:
        return iter(self._p_all()[::-1])

    def __contains__(self, value: object, /) -> bool:
        return value in self._p_all()

    def index(
        self, value: Any, start: SupportsIndex = 0, stop: SupportsIndex = sys.maxsize, /
    ) -> int:
        """Return the first index of a value; ValueError if it is not there."""
        return tuple(self._p_all()).index(value, start, stop)

    def count(self, value: Any, /) -> int:
        """Return the number of items equal to a value."""
        return self._p_all().count(value)

    def __repr__(self) -> str:
        return shown(self, lambda: repr(tuple(self._p_all())), "(...)")

    def __eq__(self, other: object, /) -> bool:
        if not isinstance(other, tuple | PersistentTuple):
            return NotImplemented
        return compare.equal_collections(self, other)

    def __hash__(self) -> int:
        with self._p_lock:
            known = self._p_hash
            if known is None:
                known = self._p_hash = _hash(self)
            return known

    def __lt__(self, other: tuple[Any, ...] | PersistentTuple[Any], /) -> bool:
        return self._p_order(other, operator.lt)

    def __le__(self, other: tuple[Any, ...] | PersistentTuple[Any], /) -> bool:
        return self._p_order(other, operator.le)

    def __gt__(self, other: tuple[Any, ...] | PersistentTuple[Any], /) -> bool:
        return self._p_order(other, operator.gt)

    def __ge__(self, other: tuple[Any, ...] | PersistentTuple[Any], /) -> bool:
        return self._p_order(other, operator.ge)

    def _p_order(self, other: Any, operation: Callable[[Any, Any], Any]) -> Any:
        if not isinstance(other, tuple | PersistentTuple):
            return NotImplemented
        return compare.order(self, other, operation)

    @overload
    def __add__(self, other: tuple[T_co, ...] | PersistentTuple[T_co], /) -> tuple[T_co, ...]: ...
    @overload
    def __add__(self, other: tuple[_S, ...] | PersistentTuple[_S], /) -> tuple[T_co | _S, ...]: ...
    def __add__(self, other: Any, /) -> Any:
        if isinstance(other, tuple | PersistentTuple):
            return (*self._p_all(), *_items(other))
        return cannot_add(self, other, "tuple")

    def __radd__(self, other: tuple[_S, ...], /) -> tuple[T_co | _S, ...]:
        if isinstance(other, tuple):
            return (*_items(other), *self._p_all())
        return NotImplemented

    def __mul__(self, count: SupportsIndex, /) -> tuple[T_co, ...]:
        return tuple(self._p_all()) * count

    __rmul__ = __mul__

    # Without an object ------------------------------------------------------------------------

    @staticmethod
    def _p_children(manager: MemoryManager, offset: int) -> list[int]:
        index = offset >> 3
        return children(manager, index + 2, manager.words[index + 1])

    @staticmethod
    def _p_blocks(manager: MemoryManager, offset: int) -> list[int]:  # noqa: ARG004
        return []

    @staticmethod
    def _p_problems(manager: MemoryManager, offset: int) -> Iterator[tuple[str, int, str]]:
        """Yield (problem, offset, invariant) of all that is wrong with the tuple at `offset`."""
        problem = _head_problem(manager, offset)
        if problem:
            yield problem, offset, "Q4"
            return
        index = offset >> 3
        length = manager.words[index + 1]
        yield from problems(manager, index + 2, length, "Q3")


def _head_problem(manager: MemoryManager, offset: int) -> str:
    """Return what is wrong with a tuple's anchor, "" if nothing is."""
    size = manager.heap.size_of(offset)
    if size < _HEAD:
        return "the anchor of a tuple is too short"
    length = manager.words[(offset >> 3) + 1]
    if size != _HEAD + OID_SIZE * length:
        return f"a tuple of {length} items is in a block of {size} bytes"
    return ""


def _items(whole: Any) -> Any:
    return whole._p_all() if isinstance(whole, PersistentTuple) else tuple.__iter__(whole)


# Hash -----------------------------------------------------------------------------------------


class _Hashed:
    """Stands for an item whose hash is known."""

    __slots__ = ("_hash",)

    def __init__(self, number: int) -> None:
        self._hash = number

    def __eq__(self, other: object) -> bool:
        raise AssertionError("never compared")

    def __hash__(self) -> int:
        return self._hash


def _hash(whole: Any) -> int:
    """Return the hash of a tuple of tuples, from the innermost outwards, whatever the depth."""
    ours: Any = PersistentTuple.__hash__
    stack: list[tuple[Iterator[Any], list[Any]]] = [(iter(whole._p_all()), [])]
    while True:
        items, done = stack[-1]
        for item in items:
            if type(item).__hash__ is ours:
                stack.append((iter(item._p_all()), []))
                break
            done.append(item)
        else:
            stack.pop()
            number = hash(tuple(done))
            if not stack:
                return number
            stack[-1][1].append(_Hashed(number))


# Built-in tuples --------------------------------------------------------------------------------


def _store(manager: MemoryManager, offset: int, run: array[int]) -> None:
    """Fill a tuple's block, known already."""
    words = manager.words
    index = offset >> 3
    words[index + 1] = len(run) // 2
    words[index + 2 : index + 2 + len(run)] = memoryview(run)


def _make(manager: MemoryManager, value: tuple[Any, ...]) -> int:
    """Store a built-in tuple; return its offset."""
    if tuple in map(type, value):
        offset = _make_nested(manager, value)
    else:
        offset = _make_flat(manager, value, {})
    manager.fresh.add(offset)  # until something holds it
    return offset


def _make_flat(manager: MemoryManager, value: tuple[Any, ...], done: dict[int, int]) -> int:
    """Store a tuple all of whose tuples are `done`: id -> offset."""
    size = _HEAD + OID_SIZE * len(value)
    offset = manager.heap.alloc(size)
    manager.born.append(offset)
    index = offset >> 3
    words = manager.words
    words[index] = PersistentTuple._p_code << TYPE_CODE_SHIFT
    if not done:
        run = own_all(manager, value, offset)
    else:
        kind = manager.pool_kind
        pairs: list[int] = []
        for item in value:
            if type(item) is tuple:
                inner = done[id(item)]
                manager.memory.snapshot(inner, 8)
                words[inner >> 3] += 1
                pairs += (kind, inner)
            else:
                pairs += manager.own(item, offset)
        run = array("Q", pairs)
    _store(manager, offset, run)
    return offset


def _make_nested(manager: MemoryManager, value: tuple[Any, ...]) -> int:
    done: dict[int, int] = {}
    stack = [value]
    while stack:
        whole = stack[-1]
        waiting = [item for item in whole if type(item) is tuple and id(item) not in done]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if id(whole) not in done:
            done[id(whole)] = _make_flat(manager, whole, done)
    return done[id(value)]


compare.register(
    PersistentTuple, compare.Known("tuple", PersistentTuple.__len__, PersistentTuple._p_all)
)
register_builtin(tuple, _make)
