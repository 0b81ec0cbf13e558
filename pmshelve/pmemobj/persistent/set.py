"""`PersistentSet` and `PersistentFrozenSet`: sets that live in a pool.

    anchor and table    see `hashtable`; an entry has 3 words: hash, the element's oid

A built-in frozenset that is put into a collection is stored as PersistentFrozenSet, and equals it.  One
that holds others is stored, compared and hashed from the innermost outwards, without recursion.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, MutableSet
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from pmshelve.generics import T, T_co
from pmshelve.pmemobj.hashing import UnstableHashError, hash_set, stable_hash
from pmshelve.pmemobj.layout import TYPE_CODE_SHIFT
from pmshelve.pmemobj.oid import encode_immediate
from pmshelve.pmemobj.persistent import tablecheck
from pmshelve.pmemobj.persistent.hashtable import Table, has_nan, is_nan
from pmshelve.pmemobj.persistent.items import shown, starting
from pmshelve.pmemobj.persistent.tableblock import children, extent, write_table
from pmshelve.pmemobj.persistent.tableiter import Entries
from pmshelve.pmemobj.typetable import register_builtin, register_static

if TYPE_CHECKING:
    from typing_extensions import Self, override

    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["PersistentFrozenSet", "PersistentSet"]

_S = TypeVar("_S")

_FEW = 4
"""Elements that are entered one by one even into an empty set."""
_WIDTH = 3
_TABLE_NUM = 33


class SetBase(Table, AbstractSet[T_co]):  # noqa: PLW1641 - each says how it hashes
    """What both have in common: all that does not change them."""

    __slots__ = ()

    _p_width = _WIDTH
    _p_table_num = _TABLE_NUM
    _p_noun = "Set"
    _p_kind: ClassVar[Any]
    """The built-in class: what operators return."""

    # Elements -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._p_lock:
            return self._p_words[self._p_index + 1]

    def __iter__(self) -> Iterator[T_co]:
        return Entries(self, (1,), "Set")

    def __contains__(self, element: object, /) -> bool:
        with self._p_lock:
            return self._p_locate(element) >= 0

    def _p_locate(self, element: Any) -> int:
        """Find an element; a set is looked up as a frozenset."""
        try:
            changes = self._p_changes
            at = self._p_cache.get(element)
            if at is None or self._p_changes != changes:
                at = self._p_find(element)
        except TypeError:
            if not isinstance(element, set | PersistentSet):
                raise
            at = self._p_find(frozenset(element))
        return at

    def _p_all(self) -> list[Any]:
        """Return all elements."""
        with self._p_lock:
            return self._p_values(1)

    def _p_plain(self) -> Any:
        """Return the built-in set of the same elements."""
        return self._p_kind(self._p_all())

    # Filling ------------------------------------------------------------------------------------

    def _p_merge(self, content: dict[Any, None]) -> None:
        """Add the keys of a dict."""
        count = len(content)
        if count > _FEW:
            if not self._p_words[self._p_index + 1] and not has_nan(content):
                self._p_build(content)
                return
            self._p_reserve(count)
        for element in content:
            if self._p_find(element) < 0:
                self._p_enter(element)

    def _p_build(self, content: dict[Any, None]) -> None:
        """Take all of a dict's keys into this set, which is empty."""
        hashes, run = _own_all(self._p_mm, content, self._p_offset, {})
        if self._p_words[self._p_index + 1]:  # storing ran foreign code
            raise RuntimeError("Set changed size during an update")
        if self._p_words[self._p_index + 3]:
            self._p_drop()
        self._p_fill(hashes, run)

    def _p_enter(self, element: Any) -> None:
        """Add an element that was missed just now."""
        manager = self._p_mm
        changes = self._p_changes
        own = manager.own(element, self._p_offset)
        if self._p_changes != changes and self._p_find(element) >= 0:
            manager.release(*own)  # storing it ran foreign code, which added it
            return
        at = self._p_place(element, own)
        if not self._p_missed:
            self._p_note_odd(element, at)

    # Comparing ----------------------------------------------------------------------------------

    def __eq__(self, other: object, /) -> bool:
        if isinstance(other, _SETS):
            return _is_same(self, other)
        if isinstance(
            other, AbstractSet
        ):  # such as a dict's keys, which know the built-in ones only
            return self._p_plain() == other
        return NotImplemented

    def __le__(self, other: AbstractSet[Any], /) -> bool:
        return self._p_compare(other, operator.le)

    def __lt__(self, other: AbstractSet[Any], /) -> bool:
        return self._p_compare(other, operator.lt)

    def __ge__(self, other: AbstractSet[Any], /) -> bool:
        return self._p_compare(other, operator.ge)

    def __gt__(self, other: AbstractSet[Any], /) -> bool:
        return self._p_compare(other, operator.gt)

    def _p_compare(self, other: Any, operation: Callable[[Any, Any], Any]) -> Any:
        if isinstance(other, AbstractSet):
            return operation(self._p_plain(), _plain(other))
        return NotImplemented

    def issubset(self, other: Iterable[Any], /) -> bool:
        """Whether every element is in `other`."""
        return bool(self._p_plain().issubset(_plain(other)))

    def issuperset(self, other: Iterable[Any], /) -> bool:
        """Whether every element of `other` is in this set."""
        with self._p_lock:
            return all(self._p_find(element) >= 0 for element in list(_plain(other)))

    def isdisjoint(self, other: Iterable[Any], /) -> bool:
        """Whether no element of `other` is in this set."""
        with self._p_lock:
            return all(self._p_find(element) < 0 for element in _plain(other))

    # Combining ----------------------------------------------------------------------------------

    def union(self, *others: Iterable[Any]) -> Any:
        """Return the plain set of all elements of this set and the others."""
        return self._p_plain().union(*map(_plain, others))

    def intersection(self, *others: Iterable[Any]) -> Any:
        """Return the plain set of the elements that all have."""
        return self._p_plain().intersection(*map(_plain, others))

    def difference(self, *others: Iterable[Any]) -> Any:
        """Return the plain set of the elements that none of the others has."""
        return self._p_plain().difference(*map(_plain, others))

    def symmetric_difference(self, other: Iterable[Any], /) -> Any:
        """Return the plain set of the elements that one of both has."""
        return self._p_plain().symmetric_difference(_plain(other))

    def __or__(self, other: Any, /) -> Any:
        return self._p_plain() | _plain(other) if isinstance(other, _SETS) else NotImplemented

    def __and__(self, other: Any, /) -> Any:
        return self._p_plain() & _plain(other) if isinstance(other, _SETS) else NotImplemented

    def __sub__(self, other: Any, /) -> Any:
        return self._p_plain() - _plain(other) if isinstance(other, _SETS) else NotImplemented

    def __xor__(self, other: Any, /) -> Any:
        return self._p_plain() ^ _plain(other) if isinstance(other, _SETS) else NotImplemented

    def __ror__(self, other: Any, /) -> Any:
        return _plain(other) | self._p_plain() if isinstance(other, _SETS) else NotImplemented

    def __rand__(self, other: Any, /) -> Any:
        return _plain(other) & self._p_plain() if isinstance(other, _SETS) else NotImplemented

    def __rsub__(self, other: Any, /) -> Any:
        return _plain(other) - self._p_plain() if isinstance(other, _SETS) else NotImplemented

    def __rxor__(self, other: Any, /) -> Any:
        return _plain(other) ^ self._p_plain() if isinstance(other, _SETS) else NotImplemented

    def __repr__(self) -> str:
        return shown(self, self._p_shown, "...")

    def _p_shown(self) -> str:
        text = repr(self._p_all())[1:-1]
        return f"{{{text}}}" if text else ""

    # Without a Python object ----------------------------------------------------------------------

    @staticmethod
    def _p_children(manager: MemoryManager, offset: int) -> list[int]:
        first, stop = extent(manager, offset, _WIDTH, _TABLE_NUM)
        return children(manager, first, stop, _WIDTH, (1,)) if first else []

    @staticmethod
    def _p_problems(manager: MemoryManager, offset: int) -> Iterator[tuple[str, int, str]]:
        """Yield (problem, offset, invariant) of whatever is wrong with the set at `offset`."""
        return tablecheck.problems(manager, offset, _WIDTH, _TABLE_NUM, (1,))


@register_static
class PersistentSet(SetBase[T], MutableSet[T]):
    """A set in a pool; made by ``pool.new(PersistentSet, ...)``, with the arguments of `set`.

    Notes
    -----
    Behaves as `set` does.  Iteration is in the order of insertion.  Every method is atomic: an `update` that
    fails leaves nothing behind.  What methods and operators derive is a plain `set` (reflected ones: what
    the left operand gives); `copy` returns a new PersistentSet in the same pool.  Which elements can be
    stored, and how they are found, see `PersistentDict`.
    """

    __slots__ = ()

    _p_code = 19
    _p_kind = set

    __hash__: ClassVar[None]  # type: ignore[assignment]

    if TYPE_CHECKING:  # what `SetBase` does, for this class

        @override
        def union(self, *others: Iterable[_S]) -> set[T | _S]: ...
        @override
        def intersection(self, *others: Iterable[Any]) -> set[T]: ...
        @override
        def difference(self, *others: Iterable[Any]) -> set[T]: ...
        @override
        def symmetric_difference(self, other: Iterable[_S], /) -> set[T | _S]: ...
        def __or__(self, other: AbstractSet[_S], /) -> set[T | _S]: ...
        def __and__(self, other: AbstractSet[Any], /) -> set[T]: ...
        def __sub__(self, other: AbstractSet[Any], /) -> set[T]: ...
        def __xor__(self, other: AbstractSet[_S], /) -> set[T | _S]: ...

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self, iterable: Iterable[T], /) -> None: ...
    def __init__(self, /, *args: Any, **kw: Any) -> None:
        operation = starting(self)
        content = _content(self, args, kw)
        with operation:
            self._p_clear()
            self._p_merge(content)

    def add(self, element: T, /) -> None:
        """Add an element, if it is not there."""
        with self._p_lock:
            changes = self._p_changes
            at = self._p_cache.get(element)
            if at is not None and self._p_changes == changes:
                return
            if self._p_find(element) < 0:
                with self._p_op:
                    self._p_enter(element)

    def remove(self, element: T, /) -> None:
        """Remove an element; KeyError if it is not there."""
        with self._p_lock:
            at = self._p_locate(element)
            if at < 0:
                raise KeyError(element)  # outside of the operation: nothing has to be undone
            with self._p_op:
                self._p_take(at, element)

    def discard(self, element: T, /) -> None:
        """Remove an element, if it is there."""
        with self._p_lock:
            at = self._p_locate(element)
            if at >= 0:
                with self._p_op:
                    self._p_take(at, element)

    def pop(self) -> T:
        """Remove and return an element: the one added last.

        Raises
        ------
        KeyError
            The set is empty.
        """
        with self._p_lock:
            words = self._p_words
            if not words[self._p_index + 1]:
                raise KeyError("pop from an empty set")
            at = self._p_last()
            changes = self._p_changes
            kind = words[at + 1]
            element = self._p_loaders[kind & 0xFF](kind, words[at + 2])
            if self._p_changes != changes:
                return self.pop()  # loading it ran foreign code
            with self._p_op:
                self._p_take(at, element)
            return element

    def _p_take(self, at: int, element: Any) -> None:
        """Remove an entry, and release what it held."""
        words = self._p_words
        kind, payload = words[at + 1], words[at + 2]
        self._p_remove(at, element)
        self._p_mm.release(kind, payload)

    def clear(self) -> None:
        """Remove all elements."""
        with self._p_op:
            self._p_clear()

    def copy(self) -> PersistentSet[T]:
        """Return a new PersistentSet in the same pool with the same elements."""
        with self._p_op:
            made: PersistentSet[T] = self._p_mm.new(PersistentSet, self)
            return made

    __copy__ = copy

    # In place -----------------------------------------------------------------------------------

    def update(self, *others: Iterable[T]) -> None:
        """Add all elements of the others.  All of them, or none."""
        content = _union(others)
        with self._p_op:
            self._p_merge(content)

    def difference_update(self, *others: Iterable[Any]) -> None:
        """Remove all elements that one of the others has."""
        content = _union(others)
        with self._p_op:
            self._p_discard_all(content)

    def intersection_update(self, *others: Iterable[Any]) -> None:
        """Remove all elements that one of the others has not."""
        others = tuple(_plain(other) for other in others)
        with self._p_op:
            kept = self._p_plain().intersection(*others)
            self._p_discard_all([element for element in self._p_all() if element not in kept])

    def symmetric_difference_update(self, other: Iterable[T], /) -> None:
        """Remove what is in both, and add what is only in `other`."""
        content = _union((other,))
        with self._p_op:
            for element in content:
                at = self._p_find(element)
                if at < 0:
                    self._p_enter(element)
                else:
                    self._p_take(at, element)

    def _p_discard_all(self, elements: Iterable[Any]) -> None:
        for element in elements:
            at = self._p_find(element)
            if at >= 0:
                self._p_take(at, element)

    def __ior__(self, other: AbstractSet[T], /) -> Self:  # type: ignore[override, misc]
        return self._p_change(self.update, other)

    def __isub__(self, other: AbstractSet[Any], /) -> Self:
        return self._p_change(self.difference_update, other)

    def __iand__(self, other: AbstractSet[Any], /) -> Self:
        return self._p_change(self.intersection_update, other)

    def __ixor__(self, other: AbstractSet[T], /) -> Self:  # type: ignore[override, misc]
        return self._p_change(self.symmetric_difference_update, other)

    def _p_change(self, method: Callable[[Any], None], other: Any) -> Any:
        if not isinstance(other, _SETS):
            return NotImplemented
        method(other)
        return self


@register_static
class PersistentFrozenSet(SetBase[T_co]):
    """A frozenset in a pool; made by ``pool.new(PersistentFrozenSet, ...)``, or of a built-in one.

    Notes
    -----
    Behaves as `frozenset` does; its hash is that of the built-in one.  Its elements are those that
    `__init__` was given when it was made; calling it again changes nothing.  What methods and operators
    derive is a plain `frozenset`, save that reflected ones give what the left operand gives.
    """

    __slots__ = ("_p_hash", "_p_unset")

    _p_code = 20
    _p_kind = frozenset

    _p_hash: int | None
    _p_unset: bool

    if TYPE_CHECKING:  # what `SetBase` does, for this class

        @override
        def union(self, *others: Iterable[_S]) -> frozenset[T_co | _S]: ...
        @override
        def intersection(self, *others: Iterable[Any]) -> frozenset[T_co]: ...
        @override
        def difference(self, *others: Iterable[Any]) -> frozenset[T_co]: ...
        @override
        def symmetric_difference(self, other: Iterable[_S], /) -> frozenset[T_co | _S]: ...
        def __or__(self, other: AbstractSet[_S], /) -> frozenset[T_co | _S]: ...
        def __and__(self, other: AbstractSet[Any], /) -> frozenset[T_co]: ...
        def __sub__(self, other: AbstractSet[Any], /) -> frozenset[T_co]: ...
        def __xor__(self, other: AbstractSet[_S], /) -> frozenset[T_co | _S]: ...

    @overload
    def __init__(self, /) -> None: ...
    @overload
    def __init__(self, iterable: Iterable[T_co], /) -> None: ...
    def __init__(self, /, *args: Any, **kw: Any) -> None:
        operation = starting(self)
        if not self._p_unset:
            return
        content = _content(self, args, kw)
        with operation:
            self._p_merge(content)
            self._p_unset = False

    def _p_new(self, manager: MemoryManager) -> None:
        super()._p_new(manager)
        self._p_unset = True

    def _p_resurrect(self, manager: MemoryManager, oid: tuple[int, int]) -> None:
        super()._p_resurrect(manager, oid)
        self._p_unset = False

    def _p_forget(self) -> None:
        super()._p_forget()
        self._p_hash = None

    def __hash__(self) -> int:
        with self._p_lock:
            known = self._p_hash
            return _note_hash(self, []) if known is None else known

    def copy(self) -> PersistentFrozenSet[T_co]:
        """Return the set itself; of a subclass, a new PersistentFrozenSet in the same pool."""
        if type(self) is PersistentFrozenSet:
            return self
        with self._p_op:
            made: PersistentFrozenSet[T_co] = self._p_mm.new(PersistentFrozenSet, self)
            return made

    __copy__ = copy


_SETS = (set, frozenset, SetBase)


def _plain(other: Any) -> Any:
    """Return what a built-in set can take."""
    return other._p_plain() if isinstance(other, SetBase) else other


def _union(others: Iterable[Any]) -> dict[Any, None]:
    """Return a dict of all elements, in order."""
    content: dict[Any, None] = {}
    for other in others:
        content.update(dict.fromkeys(other._p_all() if isinstance(other, SetBase) else other))
    return content


def _content(made: SetBase[Any], args: tuple[Any, ...], kw: dict[str, Any]) -> dict[Any, None]:
    """Return the elements that a call of `set` with these arguments gives."""
    name = type(made).__name__
    if kw:
        raise TypeError(f"{name}() takes no keyword arguments")
    if len(args) > 1:
        raise TypeError(f"{name} expected at most 1 argument, got {len(args)}")
    return _union(args)


# Sets of sets -----------------------------------------------------------------------------------------


def _is_same(first: Any, second: Any) -> bool:
    """Whether two sets, built-in ones or ours, have equal elements, however deep."""
    kept: list[Any] = []
    waiting = [(first, second)]
    while waiting:
        first, second = waiting.pop()
        if first is second:
            continue
        if len(first) != len(second):
            return False
        ours, theirs = _elements(first, kept), _elements(second, kept)
        if not any(isinstance(element, SetBase) for element in (*ours, *theirs)):
            if frozenset(ours) != frozenset(theirs):
                return False
            continue
        known: dict[int, list[Any]] = {}
        for element in theirs:
            known.setdefault(hash(element), []).append(element)
        for element in ours:
            found = known.get(hash(element), [])
            if len(found) == 1 and isinstance(element, _SETS) and isinstance(found[0], _SETS):
                waiting.append((element, found[0]))
            elif element not in found:
                return False
    return True


def _elements(whole: Any, kept: list[Any]) -> list[Any]:
    """Return the elements of a set, with their hashes noted, for as long as `kept` lives."""
    if not isinstance(whole, SetBase):
        return list(whole)
    elements = whole._p_all()
    kept.append(elements)
    for element in elements:
        if _is_unknown(element):
            _note_hash(element, kept)
    return elements


def _is_unknown(element: Any) -> bool:
    """Whether a frozenset of ours has to find out its hash."""
    ours: Any = PersistentFrozenSet.__hash__
    return type(element).__hash__ is ours and element._p_hash is None


def _note_hash(whole: PersistentFrozenSet[Any], kept: list[Any]) -> int:
    """Note the hash of a frozenset, and of all of those inside, the innermost first.

    Whatever is inside goes to `kept`: held by nobody else, it would be forgotten with its hash.
    """
    waiting = [whole]
    while waiting:
        top = waiting[-1]
        if top._p_hash is not None:
            waiting.pop()
            continue
        elements = top._p_all()
        kept.append(elements)
        unknown = [element for element in elements if _is_unknown(element)]
        if unknown:
            waiting += unknown
        else:
            if top._p_words[top._p_index + 4] >> 8:
                top._p_odd_index()  # keeps elements alive whose hash may be their address
            top._p_hash = hash(frozenset(elements))
            waiting.pop()
    known = whole._p_hash
    assert known is not None
    return known


def _own_all(
    manager: MemoryManager,
    elements: Iterable[Any],
    parent: int,
    done: dict[int, tuple[int, int]],
) -> tuple[list[int], list[int]]:
    """Return the hashes, and all words, of entries for distinct elements.

    Parameters
    ----------
    done
        id -> (offset, hash) of built-in frozensets among them that are stored already.
    """
    hashes: list[int] = []
    run: list[int] = []
    for element in elements:
        if done and type(element) is frozenset:
            offset, number = done[id(element)]
            manager.memory.snapshot(offset, 8)
            manager.words[offset >> 3] += 1
            oid = manager.pool_kind, offset
        else:
            try:
                number = stable_hash(element)
            except UnstableHashError:
                number = 0
            oid = manager.own(element, parent)
        hashes.append(number)
        run += (number, *oid)
    return hashes, run


def _make(manager: MemoryManager, value: frozenset[Any]) -> int:
    """Store a built-in frozenset; return its offset."""
    done: dict[int, tuple[int, int]] = {}
    waiting = [value]
    while waiting:
        whole = waiting[-1]
        inner = [each for each in whole if type(each) is frozenset and id(each) not in done]
        if inner:
            waiting += inner
            continue
        waiting.pop()
        if id(whole) not in done:
            done[id(whole)] = _make_flat(manager, whole, done)
    offset = done[id(value)][0]
    manager.fresh.add(offset)  # until something holds it
    return offset


def _make_flat(
    manager: MemoryManager, value: frozenset[Any], done: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """Store a frozenset all of whose frozensets are `done`; return its offset and hash."""
    offset = manager.heap.zalloc(PersistentFrozenSet._p_size)
    manager.born.append(offset)
    manager.words[offset >> 3] = PersistentFrozenSet._p_code << TYPE_CODE_SHIFT
    # NaNs of the same bits are one element here, however many they were.
    elements: Iterable[Any] = value
    if has_nan(value):
        strange = {encode_immediate(each): each for each in value if is_nan(each)}
        elements = [each for each in value if not is_nan(each)] + list(strange.values())
    hashes, run = _own_all(manager, elements, offset, done)
    if hashes:
        write_table(manager, offset, _WIDTH, _TABLE_NUM, hashes, array("Q", run))
    return offset, hash_set(hashes, len(hashes)) if all(hashes) else 0


register_builtin(frozenset, _make)
