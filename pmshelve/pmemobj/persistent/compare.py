"""Equality and order of collections inside of collections, at any depth.

The built-in types compare what they hold by calling themselves again, and end at a few thousand levels.
Here the levels are a list of iterators instead:

    equal(a, b)                as ``a == b`` of the built-in types, for whatever is persistent or plain
    equal_collections(a, b)    the same for the `__eq__` of a collection, which has made sure that the
                               other one is of its kind
    order(a, b, operation)     ``a < b`` and so on, for lists or tuples

*Known* collections are looked into: exactly those whose class is registered, or inherits its `__eq__` from
one that is.  A list and a PersistentList are of one kind, "list"; known collections of different kinds
differ.  All else is compared with ``==``, sets too: they compare by hash, and what they hold has no depth
worth speaking of.

A collection that contains itself makes ``==`` endless; `RecursionError` says so, as it does of the
built-in types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["Known", "equal", "equal_collections", "order", "register"]

_MISSING = object()

_PLAIN = frozenset({int, float, str, bytes, bool, complex, type(None)})
"""Types that hold nothing: ``==`` of lists of them is done by the built-in type, at its speed."""


class Known(NamedTuple):
    """How to look into a collection.

    Attributes
    ----------
    kind
        "list", "tuple" or "dict".
    size
        Returns the number of its items.
    items
        Returns a list or tuple of them; of a dict, an iterable of its pairs.
    get
        Of a dict: ``get(collection, key, default)``.
    """

    kind: str
    size: Callable[[Any], int]
    items: Callable[[Any], Any]
    get: Callable[[Any, Any, Any], Any] | None = None


_known: list[tuple[type, Any, Known]] = []  # class, its __eq__, how


def register(cls: type, known: Known) -> None:
    """Let instances of a class, and of those that inherit its `__eq__`, be looked into."""
    _known.append((cls, cls.__eq__, known))


register(list, Known("list", list.__len__, list.copy))
register(tuple, Known("tuple", tuple.__len__, lambda whole: list(tuple.__iter__(whole))))
register(dict, Known("dict", dict.__len__, lambda whole: list(dict.items(whole)), dict.get))


def _find(cls: type) -> Known | None:
    equality = cls.__eq__
    for _, known_equality, known in _known:
        if known_equality is equality:
            return known
    return None


def _find_base(thing: Any) -> Known:
    for cls, _, known in _known:
        if isinstance(thing, cls):
            return known
    raise AssertionError("the caller knows the class")


def equal(first: Any, second: Any) -> bool:
    """Whether ``first == second``, or they are one object."""
    if first is second:
        return True
    inner = _pairs(first, second)
    if inner is None:
        return bool(first == second)
    return _is_same(first, second, inner)


def equal_collections(first: Any, second: Any) -> bool:
    """Whether two instances of registered classes of one kind hold the same.

    In a subclass's instance what is stored counts, even if the subclass compares otherwise.
    """
    if first is second:
        return True
    inner = _open(first, second, _find_base(first), _find_base(second))
    return _is_same(first, second, inner)


def _is_same(first: Any, second: Any, inner: Iterator[Any] | bool) -> bool:
    if isinstance(inner, bool):
        return inner
    return _difference(first, second, inner) is None


def order(first: Any, second: Any, operation: Callable[[Any, Any], Any]) -> Any:
    """Return ``operation(first, second)`` for two lists, or two tuples, of registered classes.

    The first items that differ decide; without any, the lengths do.
    """
    hows = _find_base(first), _find_base(second)
    while True:
        ours, theirs = hows[0].items(first), hows[1].items(second)
        chain = _difference(first, second, zip(ours, theirs, strict=False), quick=False)
        if chain is None:
            return operation(len(ours), len(theirs))
        for one, other in chain:
            known, inner = _find(type(one)), _find(type(other))
            if known is None or inner is None or known.kind != inner.kind or known.kind == "dict":
                return operation(one, other)
            first, second, hows = one, other, (known, inner)
        # The innermost are of one kind and differ in length: look into what both have.


def _pairs(first: Any, second: Any, quick: bool = True) -> Iterator[Any] | bool | None:
    """Return an iterator of what is to be compared in two collections, or the result; None if `==`
    has to say.
    """
    known = _find(type(first))
    if known is None:
        return None
    other = _find(type(second))
    if other is None:
        return None
    if known.kind != other.kind:
        return False
    return _open(first, second, known, other, quick)


def _open(
    first: Any, second: Any, known: Known, other: Known, quick: bool = True
) -> Iterator[Any] | bool:
    if known.size(first) != other.size(second):
        return False
    ours = known.items(first)
    if known.kind == "dict":
        assert other.get is not None
        return _matches(ours, second, other.get)
    theirs = other.items(second)
    if quick and _PLAIN.issuperset(map(type, ours)):
        return bool(ours == theirs)
    return zip(ours, theirs, strict=False)  # of one length, unless another thread is at work


def _matches(
    pairs: Iterable[tuple[Any, Any]], second: Any, get: Callable[[Any, Any, Any], Any]
) -> Iterator[Any]:
    for key, value in pairs:
        yield value, get(second, key, _MISSING)


def _difference(
    first: Any, second: Any, inner: Iterator[Any], *, quick: bool = True
) -> list[tuple[Any, Any]] | None:
    """Return the pairs, from the outermost to the innermost, that make two collections differ.

    None if they are equal.
    """
    levels = [inner]
    chain: list[tuple[Any, Any]] = [(first, second)]
    path = {(id(first), id(second))}
    while levels:
        for one, other in levels[-1]:
            if one is other:
                continue
            if other is _MISSING:
                return [*chain[1:], (one, other)]
            deeper = None
            if type(one) not in _PLAIN and type(other) not in _PLAIN:
                deeper = _pairs(one, other, quick)
            if deeper is None:
                deeper = bool(one == other)
            if deeper is True:
                continue
            if deeper is False:
                return [*chain[1:], (one, other)]
            if (id(one), id(other)) in path:
                raise RecursionError("a collection that contains itself cannot be compared")
            path.add((id(one), id(other)))
            chain.append((one, other))
            levels.append(deeper)
            break
        else:
            levels.pop()
            one, other = chain.pop()
            path.discard((id(one), id(other)))
    return None
