"""What the built-in collections have in common: the anchor, and how methods enter the pool.

Every method that reads does so inside ``with self._p_lock:``, every one that changes inside
``with self._p_op:``.  Both are the pool's own, or guards that refuse (see `identity`), so that a closed
pool or an aborted transaction costs the hot paths no check.

Two static functions of each class work without a Python object, for freeing, collecting and checking:
`_p_children` (offsets of the objects held, with repetition) and `_p_blocks` (offsets of the blocks
owned).  A subclass that overrides `_p_traverse` or `_p_substructures` is asked through an object.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pmshelve.pmemobj.protocol import Oid, Persistent

if TYPE_CHECKING:
    from pmshelve.pmemobj.identity import Guard
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Container"]


class Container(Persistent):
    """Base of the collections of this package.

    Attributes
    ----------
    _p_offset
        Of the anchor's data, bytes.
    _p_index
        The same in words: ``_p_words[_p_index]`` is the object header.
    _p_words
        The pool's memory as unsigned words.
    _p_lock, _p_op
        What methods that read, and that change, enter first.
    """

    __slots__ = (
        "__weakref__",
        "_p_index",
        "_p_lock",
        "_p_mm",
        "_p_offset",
        "_p_oid",
        "_p_op",
        "_p_words",
    )

    _p_code: ClassVar[int] = 0
    """Type code of exactly this class; subclasses get theirs from the type table."""

    _p_size: ClassVar[int] = 8
    """Bytes of the anchor."""

    _p_lock: Any
    _p_op: Any

    def _p_attach(self, manager: MemoryManager, offset: int) -> None:
        self._p_mm = manager
        self._p_oid = (manager.pool_kind, offset)
        self._p_offset = offset
        self._p_index = offset >> 3
        self._p_words = manager.words
        self._p_lock = manager.lock
        self._p_op = manager.operation

    def _p_new(self, manager: MemoryManager) -> None:
        self._p_attach(manager, manager.heap.zalloc(self._p_size))

    def _p_resurrect(self, manager: MemoryManager, oid: Oid) -> None:
        self._p_attach(manager, oid[1])

    def _p_refuse(self, guard: Guard) -> None:
        self._p_forget()
        self._p_lock = self._p_op = self._p_mm = guard  # type: ignore[assignment]

    def _p_forget(self) -> None:
        """Drop whatever this Python object remembers of the stored one."""

    @staticmethod
    def _p_children(manager: MemoryManager, offset: int) -> list[int]:
        """Return the offsets of the objects that the one at `offset` holds, each as often."""
        raise NotImplementedError

    @staticmethod
    def _p_blocks(manager: MemoryManager, offset: int) -> list[int]:
        """Return the offsets of the blocks that belong to the object at `offset`."""
        raise NotImplementedError

    def _p_traverse(self) -> Iterable[Oid]:
        kind = self._p_mm.pool_kind
        return [(kind, child) for child in self._p_children(self._p_mm, self._p_offset)]

    def _p_substructures(self) -> Iterable[Oid]:
        kind = self._p_mm.pool_kind
        return [(kind, block) for block in self._p_blocks(self._p_mm, self._p_offset)]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"cannot pickle a {name}, which lives in a pool; pickle a plain copy of it, "
            "or use pool.dump()"
        )
