"""`PersistentDict`: a dict that lives in a pool.

    anchor and table    see `hashtable`; an entry has 5 words: hash, the key's oid, the value's oid

Entries stand in insertion order.  A key keeps its first form: after ``d[1] = "a"; d[True] = "b"`` the dict
is ``{1: "b"}``.
"""

from __future__ import annotations

from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from pmshelve.errors import ObjectError
from pmshelve.generics import K, V
from pmshelve.pmemobj.hashing import UnstableHashError, stable_hash
from pmshelve.pmemobj.persistent import tablecheck
from pmshelve.pmemobj.persistent.compare import Known, equal_collections, register
from pmshelve.pmemobj.persistent.hashtable import Table, has_nan
from pmshelve.pmemobj.persistent.items import shown, starting
from pmshelve.pmemobj.persistent.tableblock import children, extent
from pmshelve.pmemobj.persistent.tableiter import Entries
from pmshelve.pmemobj.persistent.tuple import PersistentTuple
from pmshelve.pmemobj.typetable import register_static

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem
    from typing_extensions import Self

    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["PersistentDict"]

_S = TypeVar("_S")
_T = TypeVar("_T")

_MISSING = object()
_WORD = "dictionary"
_FEW = 4
"""Keys that are entered one by one even into an empty dict."""


class _FromKeys:
    """``d.fromkeys(...)`` makes a dict in the pool of `d`; the class alone knows no pool."""

    def __get__(self, owner: Any, cls: type) -> Any:
        def fromkeys(iterable: Iterable[Any], value: Any = None, /) -> Any:
            """Return a new dict, in the same pool, with these keys and one value."""
            if owner is None:
                raise ObjectError(
                    f"{cls.__name__}.fromkeys knows no pool",
                    hint=f"use pool.new({cls.__name__}, dict.fromkeys(...))",
                )
            with owner._p_op:
                made = owner._p_mm.new(cls)
                made.update(dict.fromkeys(iterable, value))
                return made

        return fromkeys


@register_static
class PersistentDict(Table, MutableMapping[K, V]):
    """A dict in a pool; made by ``pool.new(PersistentDict, ...)``, with the arguments of `dict`.

    Notes
    -----
    Behaves as `dict` does, with these additions:

    * Every method is atomic: an `update` that fails leaves nothing behind.
    * Keys are found by a stable hash, part of the file format.  Those of other types (dates, enums, your
      own) are found through Python's hash, by an index made in memory when it is first needed.
    * A NaN is the same key as every other NaN of the same bits.
    * Calling `__init__` again replaces the content.
    * `copy` returns a new PersistentDict in the same pool; ``|`` a plain dict.

    A get or set of a key costs O(1); all methods may be called from any thread.
    """

    __slots__ = ()

    _p_code = 17
    _p_width = 5
    _p_table_num = 32
    _p_noun = _WORD

    __hash__: ClassVar[None]  # type: ignore[assignment]

    if TYPE_CHECKING:

        @overload
        def fromkeys(
            self, iterable: Iterable[_T], value: None = None, /
        ) -> PersistentDict[_T, Any | None]: ...
        @overload
        def fromkeys(self, iterable: Iterable[_T], value: _S, /) -> PersistentDict[_T, _S]: ...
        def fromkeys(self, iterable: Any, value: Any = None, /) -> Any:
            """Return a new dict, in the same pool, with these keys and one value."""

    else:
        fromkeys = _FromKeys()

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self: PersistentDict[str, V], /, **kw: V) -> None: ...
    @overload
    def __init__(self, content: SupportsKeysAndGetItem[K, V], /) -> None: ...
    @overload
    def __init__(
        self: PersistentDict[str, V], content: SupportsKeysAndGetItem[str, V], /, **kw: V
    ) -> None: ...
    @overload
    def __init__(self, content: Iterable[tuple[K, V]], /) -> None: ...
    @overload
    def __init__(
        self: PersistentDict[str, V], content: Iterable[tuple[str, V]], /, **kw: V
    ) -> None: ...
    def __init__(self, /, *args: Any, **kw: Any) -> None:
        operation = starting(self)
        content = _content(type(self).__name__, args, kw)
        with operation:
            self._p_clear()
            self._p_merge(content)

    # One key ------------------------------------------------------------------------------------

    def __getitem__(self, key: K) -> V:
        with self._p_lock:
            changes = self._p_changes
            at = self._p_cache.get(key)
            if at is None or self._p_changes != changes:
                at = self._p_find(key)
                if at < 0:
                    missing = getattr(type(self), "__missing__", None)
                    if missing is None:
                        raise KeyError(key)
                    return missing(self, key)
            words = self._p_words
            kind = words[at + 3]
            return self._p_loaders[kind & 0xFF](kind, words[at + 4])

    @overload
    def get(self, key: K, default: None = None, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V, /) -> V: ...
    @overload
    def get(self, key: K, default: _T, /) -> V | _T: ...
    def get(self, key: Any, default: Any = None, /) -> Any:
        """Return the value of a key, or `default`."""
        with self._p_lock:
            changes = self._p_changes
            at = self._p_cache.get(key)
            if at is None or self._p_changes != changes:
                at = self._p_find(key)
                if at < 0:
                    return default
            words = self._p_words
            kind = words[at + 3]
            return self._p_loaders[kind & 0xFF](kind, words[at + 4])

    def __contains__(self, key: object) -> bool:
        with self._p_lock:
            changes = self._p_changes
            at = self._p_cache.get(key)
            if at is None or self._p_changes != changes:
                at = self._p_find(key)
            return at >= 0

    def __setitem__(self, key: K, value: V) -> None:
        with self._p_op:
            self._p_set(key, value)

    def _p_set(self, key: Any, value: Any) -> None:
        # Ownership first, then the store, then the release of what was there: both ends may run
        # foreign code (pickling, deallocation), which finds the dict whole.
        manager = self._p_mm
        oid = manager.own(value, self._p_offset)
        changes = self._p_changes
        at = self._p_cache.get(key)
        if at is None or self._p_changes != changes:
            at = self._p_find(key)
            if at < 0:
                self._p_add(key, oid)
                return
        words = self._p_words
        at += 3
        old, payload = words[at], words[at + 1]
        manager.memory.snapshot(at << 3, 16)
        words[at], words[at + 1] = oid
        self._p_edits += 1
        if old & 0xFF == 0xFF:
            manager.release(old, payload)

    def _p_add(self, key: Any, oid: tuple[int, int]) -> None:
        """Enter a key that was missed just now, with an oid that is owned already."""
        manager = self._p_mm
        changes = self._p_changes
        own = manager.own(key, self._p_offset)
        if self._p_changes != changes:  # storing the key ran foreign code
            at = self._p_find(key)
            if at >= 0:
                words = self._p_words
                old = words[at + 3], words[at + 4]
                manager.memory.snapshot((at + 3) << 3, 16)
                words[at + 3], words[at + 4] = oid
                self._p_edits += 1
                manager.release(*own)
                manager.release(*old)
                return
        at = self._p_place(key, own)
        self._p_words[at + 3], self._p_words[at + 4] = oid
        if not self._p_missed:
            self._p_note_odd(key, at)

    def __delitem__(self, key: K) -> None:
        with self._p_lock:
            at = self._p_find(key)
            if at < 0:
                raise KeyError(key)  # outside of the operation: nothing has to be undone
            with self._p_op:
                self._p_take(at, key)

    @overload
    def pop(self, key: K, /) -> V: ...
    @overload
    def pop(self, key: K, default: V, /) -> V: ...
    @overload
    def pop(self, key: K, default: _T, /) -> V | _T: ...
    def pop(self, key: Any, default: Any = _MISSING, /) -> Any:
        """Remove a key and return its value, or `default` if there is none.

        Raises
        ------
        KeyError
            There is neither.
        """
        with self._p_lock:
            at = self._p_find(key)
            if at >= 0:
                changes, edits = self._p_changes, self._p_edits
                kind = self._p_words[at + 3]
                value = self._p_loaders[kind & 0xFF](kind, self._p_words[at + 4])
                if self._p_changes != changes or self._p_edits != edits:
                    return self.pop(key, default)  # loading it ran foreign code
                with self._p_op:
                    self._p_take(at, key)
                return value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def _p_take(self, at: int, key: Any) -> None:
        """Remove an entry, and release what it held."""
        words = self._p_words
        held = words[at + 1], words[at + 2], words[at + 3], words[at + 4]
        self._p_remove(at, key)
        release = self._p_mm.release
        release(held[0], held[1])
        release(held[2], held[3])

    def popitem(self) -> tuple[K, V]:
        """Remove the pair that was inserted last, and return it.

        Raises
        ------
        KeyError
            The dict is empty.
        """
        with self._p_lock:
            words = self._p_words
            if not words[self._p_index + 1]:
                raise KeyError("popitem(): dictionary is empty")
            at = self._p_last()
            changes = self._p_changes
            pair = self._p_pair(at)
            if self._p_changes != changes:
                return self.popitem()  # loading the pair ran foreign code
            with self._p_op:
                self._p_take(at, pair[0])
            return pair

    def _p_pair(self, at: int) -> tuple[Any, Any]:
        words, loaders = self._p_words, self._p_loaders
        kind, other = words[at + 1], words[at + 3]
        return loaders[kind & 0xFF](kind, words[at + 2]), loaders[other & 0xFF](
            other, words[at + 4]
        )

    @overload
    def setdefault(
        self: PersistentDict[K, _T | None], key: K, default: None = None, /
    ) -> _T | None: ...
    @overload
    def setdefault(self, key: K, default: V, /) -> V: ...
    def setdefault(self, key: Any, default: Any = None, /) -> Any:
        """Return the value of a key, which is set to `default` if there is none."""
        with self._p_lock:
            at = self._p_find(key)
            if at < 0:
                with self._p_op:
                    self._p_set(key, default)
                    at = self._p_find(key)
            kind = self._p_words[at + 3]
            return self._p_loaders[kind & 0xFF](kind, self._p_words[at + 4])

    # All keys -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._p_lock:
            return self._p_words[self._p_index + 1]

    def __iter__(self) -> Iterator[K]:
        return Entries(self, (1,), _WORD)

    def __reversed__(self) -> Iterator[K]:
        return Entries(self, (1,), _WORD, backwards=True)

    def keys(self) -> KeysView[K]:
        """Return a view of the keys."""
        return _Keys(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values."""
        return _Values(self)

    def items(self) -> ItemsView[K, V]:
        """Return a view of the pairs."""
        return _Items(self)

    def clear(self) -> None:
        """Remove all keys."""
        with self._p_op:
            self._p_clear()

    def copy(self) -> PersistentDict[K, V]:
        """Return a new PersistentDict in the same pool with the same keys and values."""
        with self._p_op:
            made: PersistentDict[K, V] = self._p_mm.new(PersistentDict, self)
            return made

    __copy__ = copy

    @overload
    def update(self, content: SupportsKeysAndGetItem[K, V], /) -> None: ...
    @overload
    def update(
        self: PersistentDict[str, V], content: SupportsKeysAndGetItem[str, V], /, **kw: V
    ) -> None: ...
    @overload
    def update(self, content: Iterable[tuple[K, V]], /) -> None: ...
    @overload
    def update(
        self: PersistentDict[str, V], content: Iterable[tuple[str, V]], /, **kw: V
    ) -> None: ...
    @overload
    def update(self: PersistentDict[str, V], /, **kw: V) -> None: ...
    def update(self, /, *args: Any, **kw: Any) -> None:
        """Set keys to values, from a mapping or pairs, and keywords.  All of them, or none."""
        content = _content("update", args, kw)
        with self._p_op:
            self._p_merge(content)

    def _p_plain(self) -> dict[Any, Any]:
        """Return a plain dict of the same keys and values."""
        return dict(self._p_pairs())

    def _p_pairs(self) -> list[tuple[Any, Any]]:
        with self._p_lock:
            both = self._p_values(1, 3)
            count = len(both) // 2
            return list(zip(both[:count], both[count:], strict=True))

    def _p_merge(self, content: dict[Any, Any]) -> None:
        count = len(content)
        if count > _FEW:
            if not self._p_words[self._p_index + 1] and not has_nan(content):
                self._p_build(content)
                return
            self._p_reserve(count)
        for key, value in content.items():
            self._p_set(key, value)

    def _p_build(self, content: dict[Any, Any]) -> None:
        """Take all of a plain dict into this one, which is empty."""
        own, offset = self._p_mm.own, self._p_offset
        hashes = []
        flat: list[int] = []
        for key, value in content.items():
            try:
                number = stable_hash(key)
            except UnstableHashError:
                number = 0
            hashes.append(number)
            flat.append(number)
            flat += own(key, offset)
            flat += own(value, offset)
        if self._p_words[self._p_index + 1]:  # storing ran foreign code
            raise RuntimeError("dictionary changed size during an update")
        if self._p_words[self._p_index + 3]:
            self._p_drop()
        self._p_fill(hashes, flat)

    # Operators ----------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if isinstance(other, dict | PersistentDict):
            return equal_collections(self, other)
        return NotImplemented

    @overload
    def __or__(self, other: dict[K, V] | PersistentDict[K, V]) -> dict[K, V]: ...
    @overload
    def __or__(self, other: dict[_S, _T] | PersistentDict[_S, _T]) -> dict[K | _S, V | _T]: ...
    def __or__(self, other: Any) -> Any:
        if not isinstance(other, dict | PersistentDict):
            return NotImplemented
        return self._p_plain() | _plain(other)

    @overload
    def __ror__(self, other: dict[K, V]) -> dict[K, V]: ...
    @overload
    def __ror__(self, other: dict[_S, _T]) -> dict[K | _S, V | _T]: ...
    def __ror__(self, other: Any) -> Any:
        if not isinstance(other, dict | PersistentDict):
            return NotImplemented
        return _plain(other) | self._p_plain()

    def __ior__(self, other: SupportsKeysAndGetItem[K, V] | Iterable[tuple[K, V]]) -> Self:  # type: ignore[misc]
        self.update(other)
        return self

    def __repr__(self) -> str:
        return shown(self, lambda: repr(self._p_plain()), "{...}")

    # Without a Python object ----------------------------------------------------------------------

    @staticmethod
    def _p_children(manager: MemoryManager, offset: int) -> list[int]:
        first, stop = extent(manager, offset, 5, 32)
        return children(manager, first, stop, 5, (1, 3)) if first else []

    @staticmethod
    def _p_problems(manager: MemoryManager, offset: int) -> Iterator[tuple[str, int, str]]:
        """Yield (problem, offset, invariant) of whatever is wrong with the dict at `offset`."""
        return tablecheck.problems(manager, offset, 5, 32, (1, 3))


def _content(name: str, args: tuple[Any, ...], kw: dict[str, Any]) -> dict[Any, Any]:
    """Return as a plain dict what a call of `dict` with these arguments would hold."""
    if len(args) > 1:
        raise TypeError(f"{name} expected at most 1 argument, got {len(args)}")
    if not args:
        return kw
    content: dict[Any, Any] = dict(_plain(args[0]))
    content.update(kw)
    return content


def _plain(mapping: Any) -> Any:
    return mapping._p_plain() if isinstance(mapping, PersistentDict) else mapping


def _get(mapping: PersistentDict[Any, Any], key: Any, default: Any) -> Any:
    return PersistentDict.get(mapping, key, default)


register(PersistentDict, Known("dict", PersistentDict.__len__, PersistentDict._p_pairs, _get))


# Views ----------------------------------------------------------------------------------------------


class _View:
    """What the three views have in common."""

    __slots__ = ()

    if TYPE_CHECKING:
        _mapping: PersistentDict[Any, Any]
    _places: ClassVar[tuple[int, ...]]
    _name: ClassVar[str]

    @property
    def mapping(self) -> MappingProxyType[Any, Any]:
        """A read-only proxy of the dict."""
        return MappingProxyType(self._mapping)

    def __iter__(self) -> Iterator[Any]:
        return Entries(self._mapping, self._places, _WORD)

    def __reversed__(self) -> Iterator[Any]:
        return Entries(self._mapping, self._places, _WORD, backwards=True)

    def __repr__(self) -> str:
        return f"{self._name}({list(self)!r})"


class _Keys(_View, KeysView[Any]):
    __slots__ = ()
    _places = (1,)
    _name = "dict_keys"

    def __contains__(self, key: object) -> bool:
        return key in self._mapping


class _Values(_View, ValuesView[Any]):
    __slots__ = ()
    _places = (3,)
    _name = "dict_values"


class _Items(_View, ItemsView[Any, Any]):
    __slots__ = ()
    _places = (1, 3)
    _name = "dict_items"

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple | PersistentTuple) or len(item) != 2:
            return False
        value = PersistentDict.get(self._mapping, item[0], _MISSING)
        return value is item[1] or bool(value == item[1])
