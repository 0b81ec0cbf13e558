"""Which Python object stands for which stored one, for as long as it lives.

One stored container has at most one Python object (`d['a'] is d['a']`).  The map from offset to object
is weak: an object's death only puts its reference into `dead`, and the pool looks there when it next
has its lock (a finaliser may run anywhere, even in the middle of a transaction).

An object that must not be used any more (its pool was closed, its transaction was rolled back, it was
freed) is *refused*: what its methods enter first is replaced by a `Guard` that raises.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

__all__ = ["Guard", "Identity", "Reference", "accept", "refuse"]

RECENT_MAX = 512
"""Containers kept alive although nobody holds them, so that ``d['a']['b']`` need not find `a` anew."""


class Reference(weakref.ref[Any]):
    """Weak reference to the Python object of the stored one at `offset`."""

    __slots__ = ("offset",)

    offset: int


class Identity:
    """The weak map.

    Attributes
    ----------
    references
        offset -> `Reference`, possibly to an object that died.
    dead
        References to objects that died since somebody looked.
    recent
        offset -> object: the ones used last, kept alive.
    """

    __slots__ = ("_died", "dead", "recent", "references")

    def __init__(self) -> None:
        self.references: dict[int, Reference] = {}
        self.dead: deque[Reference] = deque()
        self.recent: dict[int, Any] = {}
        self._died = self.dead.append

    def register(self, offset: int, thing: Any) -> None:
        """Let `thing` stand for the object at `offset`."""
        reference = Reference(thing, self._died)
        reference.offset = offset
        self.references[offset] = reference
        recent = self.recent
        if len(recent) >= RECENT_MAX:
            for old in list(recent)[: RECENT_MAX // 2]:
                del recent[old]
        recent[offset] = thing

    def get(self, offset: int) -> Any:
        """Return the living Python object of an offset, or None."""
        reference = self.references.get(offset)
        return None if reference is None else reference()

    def is_held(self, offset: int) -> bool:
        """Whether somebody outside holds the Python object of an offset."""
        self.recent.pop(offset, None)
        reference = self.references.get(offset)
        return reference is not None and reference() is not None

    def forget(self, offset: int) -> Any:
        """Drop an offset; return the object that still stands for it, or None."""
        self.recent.pop(offset, None)
        reference = self.references.pop(offset, None)
        return None if reference is None else reference()

    def living(self) -> Iterator[tuple[int, Any]]:
        """Yield (offset, object) of those alive."""
        for offset, reference in list(self.references.items()):
            thing = reference()
            if thing is not None:
                yield offset, thing


class Guard:
    """Stands where a lock or an operation stood, and refuses.

    Parameters
    ----------
    make
        Returns the exception to raise.
    """

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[], BaseException]) -> None:
        self._make = make

    def __enter__(self) -> NoReturn:
        raise self._make()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Never reached with the block entered."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # asked by the interpreter, which wants AttributeError
            raise AttributeError(name)
        raise self._make()


def refuse(thing: Any, make: Callable[[], BaseException]) -> None:
    """Let every later use of `thing` raise what `make` returns."""
    guard = Guard(make)
    own = getattr(type(thing), "_p_refuse", None)
    if own is not None:
        own(thing, guard)
    else:  # a user's class: it reaches its data through its manager
        thing._p_mm = guard


def accept(thing: Any, manager: Any, offset: int) -> None:
    """Let `thing`, which may have been refused, stand for the object at `offset` again."""
    own = getattr(type(thing), "_p_attach", None)
    if own is not None:
        own(thing, manager, offset)
    else:
        thing._p_mm = manager
        thing._p_oid = (manager.pool_kind, offset)
