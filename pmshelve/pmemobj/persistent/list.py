"""`PersistentList`: a list whose items are a run of oids in one block.

What a method takes from outside is brought into the pool (`own_all`) before it looks at the list, since that
may run other people's code; what it gives up is released when the list is whole again.
"""

from __future__ import annotations

import operator
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex, TypeVar, overload

from pmshelve.generics import T
from pmshelve.pmemobj.oid import TAG_FLOAT, TAG_INT
from pmshelve.pmemobj.persistent import compare
from pmshelve.pmemobj.persistent.items import (
    cannot_add,
    children,
    index_of,
    load_all,
    own_all,
    own_count,
    position_of,
    shown,
    starting,
)
from pmshelve.pmemobj.persistent.itemsblock import FORGOTTEN, LENGTH_MAX, ItemsBlock
from pmshelve.pmemobj.typetable import register_static

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison, SupportsRichComparisonT
    from typing_extensions import Self

__all__ = ["PersistentList"]

_S = TypeVar("_S")

_CHUNK = 512
"""Items that an iteration reads at a time."""
_CHUNK_MIN = 32
_NUMBERS = ({TAG_INT}, {TAG_FLOAT})


@register_static
class PersistentList(ItemsBlock, MutableSequence[T]):
    """A list in a pool; make it with ``pool.new(PersistentList, iterable)``.

    Parameters
    ----------
    iterable
        What it holds first.

    Notes
    -----
    Behaves as `list` does, with these differences: what cannot be persisted is a TypeError; `extend` and the
    like add all or nothing if the iterable raises; slices and the results of ``+`` and ``*`` are plain
    lists, so that they leave nothing in the pool; `copy` returns a PersistentList in the same pool.  A float
    is a new object each time it is read, so a NaN is not found by `in`, `index`, `count` and `remove`.

    Each method is a transaction by itself, or a part of the running one.  Any thread may call them.
    Appending costs O(1) amortised; inserting and deleting move what follows, and write the move only.
    """

    __slots__ = ()

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self, iterable: Iterable[T], /) -> None: ...
    def __init__(self, iterable: Iterable[Any] = (), /) -> None:
        operation = starting(self)
        values = _as_run(iterable)
        with operation:
            run = self._p_own(values)
            self._p_splice(0, self._p_words[self._p_index + 1], run)

    # Reading ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._p_lock:
            return self._p_words[self._p_index + 1]

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> T: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[T]: ...
    def __getitem__(self, index: Any, /) -> Any:
        if index.__class__ is not int:
            if isinstance(index, slice):
                return self._p_get_slice(index)
            index = index_of(index, "list")
        with self._p_lock:
            words = self._p_words
            base = self._p_index
            length = words[base + 1]
            if index < 0:
                index += length
            if 0 <= index < length:
                at = (words[base + 2] >> 3) + 2 * index
                kind = words[at]
                if kind == TAG_INT:  # without a call
                    return self._p_mm.signed[at + 1]
                return self._p_mm.loaders[kind & 0xFF](kind, words[at + 1])
        index_of(index, "list")  # raises for a huge one
        raise IndexError("list index out of range")

    def _p_get_slice(self, index: slice) -> list[Any]:
        with self._p_lock:
            length = self._p_words[self._p_index + 1]
            places = range(length)[index]
            if not places:
                return []
            low, high = min(places[0], places[-1]), max(places[0], places[-1]) + 1
            values = self._p_values(low, high)
        return values[:: places.step] if len(places) > 1 else values

    def _p_all(self) -> list[Any]:
        """Return all items."""
        with self._p_lock:
            return self._p_values(0, self._p_words[self._p_index + 1])

    def _p_chunks(self, start: int = 0, stop: int = sys.maxsize) -> Iterator[tuple[int, list[Any]]]:
        """Yield (index of the first, values) of runs of items, from `start` up to `stop`."""
        size = _CHUNK_MIN
        while True:
            with self._p_lock:
                end = min(self._p_words[self._p_index + 1], stop, start + size)
                if start >= end:
                    return
                values = self._p_values(start, end)
            yield start, values
            start = end
            size = min(2 * size, 16 * _CHUNK)

    def __iter__(self) -> Iterator[T]:
        # A run of oids is read ahead; the version tells whether it still is what the list holds.
        position = 0
        size = _CHUNK_MIN
        while True:
            with self._p_lock:
                version = self._p_version
                words = self._p_words
                base = self._p_index
                count = min(words[base + 1] - position, size)
                if count <= 0:
                    return
                manager = self._p_mm
                at = (words[base + 2] >> 3) + 2 * position
                stop = at + 2 * count
                kinds = words[at:stop:2].tolist()
                objects = manager.pool_kind in kinds
                values: list[Any] = (
                    words[at + 1 : stop : 2].tolist() if objects else load_all(manager, at, count)
                )
            size = _CHUNK
            if not objects:
                for value in values:
                    position += 1
                    yield value
                    if self._p_version != version:
                        break
                continue
            loaders = manager.loaders
            for kind, payload in zip(kinds, values, strict=True):
                with self._p_lock:
                    if self._p_version != version:
                        break
                    value = loaders[kind & 0xFF](kind, payload)
                position += 1
                yield value

    def __reversed__(self) -> Iterator[T]:
        return self._p_backwards(PersistentList.__len__(self))

    def _p_backwards(self, position: int) -> Iterator[Any]:
        while position:
            position -= 1
            try:
                value = PersistentList.__getitem__(self, position)
            except IndexError:
                return
            yield value

    def __contains__(self, value: object, /) -> bool:
        return any(value in values for _, values in self._p_chunks())

    def index(
        self, value: T, start: SupportsIndex = 0, stop: SupportsIndex = sys.maxsize, /
    ) -> int:
        """Return the first index of a value; ValueError if it is not there."""
        start, stop, _ = slice(_bound(start), _bound(stop)).indices(PersistentList.__len__(self))
        for first, values in self._p_chunks(start, stop):
            try:
                return first + values.index(value)
            except ValueError:
                continue
        raise ValueError(f"{value!r} is not in list")

    def count(self, value: T, /) -> int:
        """Return the number of items equal to a value."""
        return sum(values.count(value) for _, values in self._p_chunks())

    def copy(self) -> PersistentList[T]:
        """Return a new PersistentList, in the same pool, of the same items."""
        with self._p_lock:
            copied: PersistentList[T] = self._p_mm.new(PersistentList, self)
            return copied

    __copy__ = copy

    def __repr__(self) -> str:
        return shown(self, lambda: repr(self._p_all()), "[...]")

    def __eq__(self, other: object, /) -> bool:
        if not isinstance(other, list | PersistentList):
            return NotImplemented
        return compare.equal_collections(self, other)

    def __lt__(self, other: list[T] | PersistentList[T], /) -> bool:
        return self._p_order(other, operator.lt)

    def __le__(self, other: list[T] | PersistentList[T], /) -> bool:
        return self._p_order(other, operator.le)

    def __gt__(self, other: list[T] | PersistentList[T], /) -> bool:
        return self._p_order(other, operator.gt)

    def __ge__(self, other: list[T] | PersistentList[T], /) -> bool:
        return self._p_order(other, operator.ge)

    def _p_order(self, other: Any, operation: Callable[[Any, Any], Any]) -> Any:
        if not isinstance(other, list | PersistentList):
            return NotImplemented
        return compare.order(self, other, operation)

    @overload
    def __add__(self, other: list[T] | PersistentList[T], /) -> list[T]: ...
    @overload
    def __add__(self, other: list[_S] | PersistentList[_S], /) -> list[T | _S]: ...
    def __add__(self, other: Any, /) -> Any:
        if isinstance(other, list | PersistentList):
            return self._p_all() + _plain(other)
        return cannot_add(self, other, "list")

    def __radd__(self, other: list[_S], /) -> list[T | _S]:
        if isinstance(other, list):
            return _plain(other) + self._p_all()
        return NotImplemented

    def __mul__(self, count: SupportsIndex, /) -> list[T]:
        return self._p_all() * count

    __rmul__ = __mul__

    # Changing one item ------------------------------------------------------------------------

    def append(self, value: T, /) -> None:
        """Add a value at the end."""
        # Written out: the most frequent change.
        with self._p_op:
            manager = self._p_mm
            offset = self._p_offset
            kind, payload = manager.own(value, offset)
            words = self._p_words
            base = self._p_index
            length = words[base + 1]
            if length >= words[base + 3]:
                self._p_reserve(length + 1)
            at = words[base + 2] + 16 * length
            snapshot = manager.memory.snapshot
            snapshot(at, 16)
            at >>= 3
            words[at] = kind
            words[at + 1] = payload
            snapshot(offset + 8, 8)
            words[base + 1] = length + 1
            self._p_version += 1

    def insert(self, index: SupportsIndex, value: T, /) -> None:
        """Put a value before an index."""
        index = position_of(index)
        with self._p_op:
            manager = self._p_mm
            kind, payload = manager.own(value, self._p_offset)
            words = self._p_words
            length = words[self._p_index + 1]
            index = max(index + length, 0) if index < 0 else min(index, length)
            at = self._p_gap(index, index, 1)
            manager.memory.snapshot(at, 16)
            at >>= 3
            words[at] = kind
            words[at + 1] = payload

    @overload
    def __setitem__(self, index: SupportsIndex, value: T, /) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T], /) -> None: ...
    def __setitem__(self, index: Any, value: Any, /) -> None:
        if index.__class__ is not int:
            if isinstance(index, slice):
                self._p_set_slice(index, value)
                return
            index = index_of(index, "list")
        with self._p_op:
            manager = self._p_mm
            kind, payload = manager.own(value, self._p_offset)
            words = self._p_words
            base = self._p_index
            length = words[base + 1]
            if index < 0:
                index += length
            if not 0 <= index < length:
                index_of(index, "list")
                raise IndexError("list assignment index out of range")
            at = words[base + 2] + 16 * index
            manager.memory.snapshot(at, 16)
            at >>= 3
            old_kind, old_payload = words[at], words[at + 1]
            words[at] = kind
            words[at + 1] = payload
            self._p_version += 1
            manager.release(old_kind, old_payload)

    def pop(self, index: SupportsIndex = -1, /) -> T:
        """Remove the item at an index, the last by default, and return it."""
        place = index = position_of(index)
        with self._p_op:
            length = self._p_words[self._p_index + 1]
            if not length:
                raise IndexError("pop from empty list")
            if index < 0:
                index += length
            if not 0 <= index < length:
                raise IndexError("pop index out of range")
            # The value is held from here on, so that the release leaves an object alone.
            version = self._p_version
            value = self._p_values(index, index + 1)[0]
            if self._p_version != version:
                return PersistentList.pop(self, place)  # loading it ran foreign code
            self._p_drop(index)
        return value

    def __delitem__(self, index: SupportsIndex | slice, /) -> None:
        if isinstance(index, slice):
            self._p_delete_slice(index)
            return
        index = index_of(index, "list")
        with self._p_op:
            length = self._p_words[self._p_index + 1]
            if index < 0:
                index += length
            if not 0 <= index < length:
                raise IndexError("list assignment index out of range")
            self._p_drop(index)

    def remove(self, value: T, /) -> None:
        """Remove the first item equal to a value; ValueError if it is not there."""
        with self._p_op:
            try:
                index = PersistentList.index(self, value)
            except ValueError:
                raise ValueError("list.remove(x): x not in list") from None
            self._p_delete_slice(slice(index, index + 1))

    def _p_drop(self, index: int) -> None:
        """Remove the item at an index, which is there."""
        words = self._p_words
        at = (words[self._p_index + 2] >> 3) + 2 * index
        kind, payload = words[at], words[at + 1]
        self._p_gap(index, index + 1, 0)
        self._p_mm.release(kind, payload)

    # Changing many ----------------------------------------------------------------------------

    def extend(self, iterable: Iterable[T], /) -> None:
        """Add the items of an iterable at the end: all of them, or none if something raises."""
        operation = self._p_op
        values = _as_run(iterable)
        with operation:
            run = self._p_own(values)
            length = self._p_words[self._p_index + 1]
            self._p_splice(length, length, run)

    def __iadd__(self, other: Iterable[T], /) -> Self:  # type: ignore[misc]
        PersistentList.extend(self, other)
        return self

    def __imul__(self, count: SupportsIndex, /) -> Self:
        count = len([] * count) + operator.index(count)  # a list's own complaints
        with self._p_op:
            length = self._p_words[self._p_index + 1]
            if count <= 0:
                PersistentList.clear(self)
            elif length * count > LENGTH_MAX:
                raise MemoryError
            elif count > 1:
                run = self._p_share(self, count - 1)
                self._p_splice(length, length, run * (count - 1))
        return self

    def clear(self) -> None:
        """Remove all items."""
        with self._p_op:
            self._p_splice(0, self._p_words[self._p_index + 1], array("Q"))

    def reverse(self) -> None:
        """Reverse the order of the items."""
        with self._p_op:
            run = self._p_read(0, self._p_words[self._p_index + 1])
            kinds, payloads = run[0::2], run[1::2]
            run[0::2], run[1::2] = kinds[::-1], payloads[::-1]
            self._p_write(0, run)

    @overload
    def sort(
        self: PersistentList[SupportsRichComparisonT], *, key: None = None, reverse: bool = False
    ) -> None: ...
    @overload
    def sort(
        self, *, key: Callable[[T], SupportsRichComparison], reverse: bool = False
    ) -> None: ...
    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """Sort the items, stably.

        Raises
        ------
        ValueError
            The list was modified meanwhile, by the key function or a comparison; as after any other
            exception, the items are as they were.
        """
        with self._p_op:
            version = self._p_version % FORGOTTEN
            values = self._p_all()
            run = self._p_read(0, len(values))
            if set(run[0::2]) in _NUMBERS:  # the values are all there is to them
                values.sort(key=key, reverse=reverse)
                run = own_all(self._p_mm, values, self._p_offset)
            else:
                keys = values if key is None else [key(value) for value in values]
                places = sorted(range(len(values)), key=keys.__getitem__, reverse=reverse)
                for half in (0, 1):
                    run[half::2] = array("Q", map(run[half::2].__getitem__, places))
            if self._p_version % FORGOTTEN != version:
                raise ValueError("list modified during sort")
            self._p_write(0, run)

    def _p_set_slice(self, index: slice, value: Any) -> None:
        extended = index.indices(0)[2] != 1
        try:
            values = _as_run(value)
        except TypeError:
            if hasattr(type(value), "__iter__"):
                raise
            problem = "must assign iterable to extended slice" if extended else None
            raise TypeError(problem or "can only assign an iterable") from None
        with self._p_op:
            run = self._p_own(values)
            length = self._p_words[self._p_index + 1]
            start, stop, step = index.indices(length)
            if not extended:
                self._p_splice(start, max(start, stop), run)
                return
            places = range(start, stop, step)
            if len(run) != 2 * len(places):
                raise ValueError(
                    f"attempt to assign sequence of size {len(run) // 2} "
                    f"to extended slice of size {len(places)}"
                )
            self._p_set_places(places, run)

    def _p_set_places(self, places: range, run: array[int]) -> None:
        if not places:
            return
        if places.step < 0:
            places = places[::-1]
            run[0::2], run[1::2] = run[0::2][::-1], run[1::2][::-1]
        first, last, step = places[0], places[-1], places.step
        whole = self._p_read(first, last + 1)
        old = array("Q", bytes(8 * len(run)))
        for half in (0, 1):
            old[half::2] = whole[half :: 2 * step]
            whole[half :: 2 * step] = run[half::2]
        self._p_write(first, whole)
        self._p_release(old)

    def _p_delete_slice(self, index: slice) -> None:
        with self._p_op:
            length = self._p_words[self._p_index + 1]
            places = range(length)[index]
            if not places:
                return
            if places.step < 0:
                places = places[::-1]
            start, stop, step = places[0], places[-1] + 1, places.step
            if step == 1:
                self._p_splice(start, stop, array("Q"))
                return
            old = self._p_read(start, stop)
            gone = array("Q", bytes(16 * len(places)))
            kept = array("Q", bytes(8 * len(old) - 8 * len(gone)))
            for half in (0, 1):
                words = old[half::2]
                gone[half::2] = words[::step]
                del words[::step]
                kept[half::2] = words
            self._p_write(start, kept)
            self._p_gap(start + len(kept) // 2, stop, 0)
            self._p_release(gone)

    # Into the pool ----------------------------------------------------------------------------

    def _p_own(self, values: Any) -> array[int]:
        """Bring values into the pool; return their run, which counts as held."""
        manager = self._p_mm
        if type(values) is PersistentList:
            if values._p_mm is manager:
                return self._p_share(values, 1)
            values = values._p_all()
        return own_all(manager, values, self._p_offset)

    def _p_share(self, other: PersistentList[Any], count: int) -> array[int]:
        """Return the run of a list of the same pool, with so many more references."""
        words = other._p_words
        length = words[other._p_index + 1]
        at = words[other._p_index + 2] >> 3
        own_count(self._p_mm, children(self._p_mm, at, length), count)
        return other._p_read(0, length)


compare.register(
    PersistentList, compare.Known("list", PersistentList.__len__, PersistentList._p_all)
)


def _as_run(iterable: Any) -> Any:
    """Return an iterable as a list or tuple, or as the PersistentList that it is."""
    if type(iterable) in (list, tuple, PersistentList):
        return iterable
    # Into a list that is not empty, so that a length hint beyond reason does no harm.
    values: list[Any] = [None]
    values.extend(iterable)
    del values[0]
    return values


def _plain(whole: Any) -> list[Any]:
    return whole._p_all() if isinstance(whole, PersistentList) else list.copy(whole)


def _bound(index: Any) -> int:
    try:
        return operator.index(index)
    except TypeError:
        raise TypeError("slice indices must be integers or have an __index__ method") from None
