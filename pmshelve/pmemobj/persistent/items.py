"""Runs of oids in memory, which lists and tuples are made of.

    word    2 i        kind of the i-th item
            2 i + 1    its payload

The functions take the word number of item 0.  Runs of nothing but ints, or floats, go to and from memory
as a whole, so that a million of them take milliseconds.
"""

from __future__ import annotations

import operator
import sys
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import countOf
from threading import get_ident
from typing import TYPE_CHECKING, Any

from pmshelve.errors import CorruptionError, ObjectError, StateError
from pmshelve.pmemobj.layout import KIND_POOL, POBJECT_TYPE_NUM
from pmshelve.pmemobj.oid import TAG_FLOAT, TAG_INT

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = [
    "cannot_add",
    "children",
    "index_of",
    "load_all",
    "own_all",
    "own_count",
    "position_of",
    "problems",
    "shown",
    "starting",
]

_SHORT = 8
"""Items below which a plain loop is faster."""


# Into memory ----------------------------------------------------------------------------------


def own_all(manager: MemoryManager, values: Any, parent: int) -> array[int]:
    """Return the words of a run of values, each with one more reference to it.

    Parameters
    ----------
    values
        A list or tuple.
    parent
        Offset of the object that will hold them.
    """
    count = len(values)
    if count > _SHORT:
        run = _numbers(values, count)
        if run is not None:
            return run
    own = manager.own
    words: list[int] = []
    for value in values:
        words += own(value, parent)
    return array("Q", words)


def _numbers(values: Any, count: int) -> array[int] | None:
    """Return the words of a run of nothing but ints of 64 bits, or floats; None for others."""
    tags = {int: (TAG_INT, "q"), float: (TAG_FLOAT, "d")}
    found = tags.get(type(values[0]))  # exactly: a bool is no int here
    if found is None or countOf(map(type, values), type(values[0])) != count:
        return None
    tag, code = found
    try:
        payloads = array(code, values)
    except OverflowError:
        return None
    run = array("Q", [tag, 0]) * count
    memoryview(run)[1::2] = memoryview(payloads).cast("B").cast("Q")
    return run


def own_count(manager: MemoryManager, offsets: list[int], count: int = 1) -> None:
    """Count so many more references to each of the objects at `offsets`."""
    words = manager.words
    snapshot = manager.memory.snapshot
    for offset in offsets:
        snapshot(offset, 8)
        words[offset >> 3] += count


# Out of memory --------------------------------------------------------------------------------


def load_all(manager: MemoryManager, index: int, count: int) -> list[Any]:
    """Return the values of a run.  With the lock held."""
    words = manager.words
    stop = index + 2 * count
    kinds = words[index:stop:2].tolist()
    if count > _SHORT:
        first = kinds[0]
        if first == TAG_INT and kinds.count(TAG_INT) == count:
            return manager.signed[index + 1 : stop : 2].tolist()
        if first == TAG_FLOAT and kinds.count(TAG_FLOAT) == count:
            return manager.doubles[index + 1 : stop : 2].tolist()
    return manager.load_many(kinds, words[index + 1 : stop : 2].tolist())


def children(manager: MemoryManager, index: int, count: int) -> list[int]:
    """Return the offsets of the objects of a run, each as often as it is there."""
    words = manager.words
    stop = index + 2 * count
    if stop << 3 > manager.memory.size:
        raise CorruptionError("a run of items ends behind the pool's end", offset=index << 3)
    kind = manager.pool_kind
    kinds = words[index:stop:2].tolist()
    found = kinds.count(kind)
    if not found:
        return []
    payloads = words[index + 1 : stop : 2].tolist()
    if found == count:
        return payloads
    return [payload for each, payload in zip(kinds, payloads, strict=True) if each == kind]


def problems(
    manager: MemoryManager, index: int, count: int, invariant: str
) -> Iterator[tuple[str, int, str]]:
    """Yield (problem, offset, invariant) of each item of a run that names nothing."""
    heap = manager.heap
    loaders = manager.loaders
    pool_kind = manager.pool_kind
    stop = index + 2 * count
    kinds = manager.words[index:stop:2].tolist()
    payloads = manager.words[index + 1 : stop : 2].tolist()
    for place, kind in enumerate(kinds):
        if kind in (TAG_INT, TAG_FLOAT):
            continue  # any payload is one
        payload = payloads[place]
        offset = (index + 2 * place) << 3
        if kind == pool_kind:
            if not heap.is_block(payload) or heap.type_num_of(payload) != POBJECT_TYPE_NUM:
                yield f"item {place} leads to {payload:#x}, where no object is", offset, invariant
        elif kind & 0xFF == KIND_POOL:
            yield f"item {place} is of another pool", offset, invariant
        else:
            try:
                loaders[kind & 0xFF](kind, payload)
            except CorruptionError as error:
                yield f"item {place}: {error.problem}", offset, invariant


# What the classes share -----------------------------------------------------------------------


def index_of(index: Any, name: str) -> int:
    """Return what somebody indexes a `name` with as an int; the errors are those of the built-in type."""
    try:
        number = operator.index(index)
    except TypeError:
        if hasattr(type(index), "__index__"):
            raise
        found = type(index).__name__
        raise TypeError(f"{name} indices must be integers or slices, not {found}") from None
    if not -sys.maxsize <= number <= sys.maxsize:
        raise IndexError(f"cannot fit {type(index).__name__!r} into an index-sized integer")
    return number


def position_of(index: Any) -> int:
    """Return a position that a method is given as an int, as the built-in types do."""
    number = operator.index(index)
    if not -sys.maxsize <= number <= sys.maxsize:
        raise OverflowError("Python int too large to convert to C ssize_t")
    return number


def cannot_add(whole: Any, other: Any, name: str) -> Any:
    """Return what `other` makes of ``whole + other``; the TypeError of the built-in type if nothing."""
    reflected = getattr(type(other), "__radd__", None)
    result = NotImplemented if reflected is None else reflected(other, whole)
    if result is NotImplemented:
        found = type(other).__name__
        raise TypeError(f'can only concatenate {name} (not "{found}") to {name}')
    return result


def starting(thing: Any) -> Any:
    """Return the operation of an object whose `__init__` begins.

    Raises
    ------
    ObjectError
        Its class was called, instead of given to `pool.new`.
    """
    try:
        return thing._p_op
    except AttributeError:
        name = type(thing).__name__
        raise ObjectError(
            f"a {name} lives in a pool", hint=f"make it with pool.new({name}, ...)"
        ) from None


_shown: set[tuple[int, int]] = set()


@contextmanager
def _showing(thing: Any) -> Iterator[bool]:
    key = id(thing), get_ident()
    if key in _shown:
        yield False
        return
    _shown.add(key)
    try:
        yield True
    finally:
        _shown.discard(key)


def shown(thing: Any, content: Callable[[], str], inside: str) -> str:
    """Return the repr ``Class(content)``; of an object inside of its own repr, ``Class(inside)``.

    Of one that cannot be used any more, ``<Class: why>``: a debugger shows it like any other.
    """
    name = type(thing).__name__
    with _showing(thing) as first:
        try:
            return f"{name}({content() if first else inside})"
        except (ObjectError, StateError) as error:
            return f"<{name}: {error.problem}>"
