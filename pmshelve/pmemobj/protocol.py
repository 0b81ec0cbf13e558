"""`Persistent`: what a class does to keep its data in a pool.

A pool asks five things of a class, and nothing of its base classes: subclassing the ABC is a
convenience.  The anchor of an object is one block of type `POBJECT_TYPE_NUM` whose first word is the
object header (reference count and type code, written by the manager); behind it the class may put
what it likes, and point to further blocks (its *substructures*) and objects (by oid).

docs/pmemobj-classes.md works two examples: a counter, and a linked list with substructures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Oid", "Persistable", "Persistent"]

Oid = tuple[int, int]
"""Names what is stored: (kind, payload).  See `pmshelve.pmemobj.oid`."""


class Persistable(Protocol):
    """What `Persistent` asks of a class, for type checkers: it need not be subclassed."""

    def _p_new(self, manager: MemoryManager, /) -> Any: ...
    def _p_resurrect(self, manager: MemoryManager, oid: Oid, /) -> Any: ...
    def _p_traverse(self) -> Iterable[Oid]: ...
    def _p_substructures(self) -> Iterable[Oid]: ...


class Persistent(ABC):
    """Abstract base of classes whose instances live in a pool.

    Attributes
    ----------
    _p_mm
        The `MemoryManager` of the pool the object is in.
    _p_oid
        The oid of the object's anchor.

    Notes
    -----
    `_p_deallocate`, where a class has it, is called when the last reference to the object is gone: it
    gives up what the object holds (`decref` of children, `free` of substructures); the manager frees the
    anchor itself afterwards.  Without it the manager does both, from `_p_traverse` and
    `_p_substructures`.
    """

    __slots__ = ()

    _p_mm: MemoryManager
    _p_oid: Oid

    @abstractmethod
    def _p_new(self, manager: MemoryManager) -> None:
        """Allocate and initialise the anchor; set `_p_mm` and `_p_oid`.  In a transaction."""

    @abstractmethod
    def _p_resurrect(self, manager: MemoryManager, oid: Oid) -> None:
        """Become the object stored at `oid`; set `_p_mm` and `_p_oid`."""

    @abstractmethod
    def _p_traverse(self) -> Iterable[Oid]:
        """Return the oids of the objects that this one holds a reference to, each as often."""

    @abstractmethod
    def _p_substructures(self) -> Iterable[Oid]:
        """Return the oids of the blocks that belong to this object and are no objects."""

    @classmethod
    def __subclasshook__(cls, other: type[Any]) -> Any:
        if cls is not Persistent:
            return NotImplemented
        names = ("_p_new", "_p_resurrect", "_p_traverse", "_p_substructures")
        if all(any(name in base.__dict__ for base in other.__mro__) for name in names):
            return True
        return NotImplemented
