"""A manager to read by: as `MemoryManager`, but without what lies behind the end of the file.

The address space behind the file's end is reserved, and touching it kills the process.  Code that goes
by what is stored, and must not trust it, is handed a `Reader` where it expects the manager: an index
out of the file is an IndexError, and a slice ends there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.layout import ROOT_OID, TYPE_CODE_SHIFT
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["Reader", "damaged", "root_offset"]


class _Bytes:
    """Bytes of memory, as slices of a mmap are."""

    __slots__ = ("_view",)

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def __getitem__(self, where: Any) -> Any:
        found = self._view[where]
        return found if found.__class__ is int else bytes(found)

    def __len__(self) -> int:
        return len(self._view)


class _Memory:
    """The views of a `Memory`, up to the file's end."""

    __slots__ = ("bytes", "changes", "doubles", "map", "signed", "size", "words")

    def __init__(self, memory: Any) -> None:
        size = memory.size & ~7
        self.size = memory.size
        self.bytes = memory.bytes[:size].toreadonly()
        self.map = _Bytes(self.bytes)
        self.words = memory.words[: size >> 3].toreadonly()
        self.signed = memory.signed[: size >> 3].toreadonly()
        self.doubles = memory.doubles[: size >> 3].toreadonly()
        self.changes = None


class Reader:
    """Stand-in for a manager; everything that is no memory is the manager's own.

    Attributes
    ----------
    memory, words, signed, doubles, map
        As the manager's, read-only and bounded.
    """

    def __init__(self, manager: MemoryManager) -> None:
        self._manager = manager
        self.heap = manager.heap
        self.loaders = manager.loaders
        self.pool_kind = manager.pool_kind
        self.memory = _Memory(manager.memory)
        self.words = self.memory.words
        self.signed = self.memory.signed
        self.doubles = self.memory.doubles
        self.map = self.memory.map
        self._kinds: dict[int, tuple[Any, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def code_of(self, offset: int) -> int:
        """Return an object's type code."""
        header: int = self.words[offset >> 3]
        return header >> TYPE_CODE_SHIFT

    def is_container(self, offset: int) -> bool:
        """Whether an object may hold others."""
        return self.code_of(offset) >= CONTAINER_CODE_MIN

    def functions_of(self, code: int) -> tuple[Any, Any]:
        """Return what gives a container's children, and its blocks, given a reader and its offset.

        Raises
        ------
        UnknownTypeError
            The class of this code cannot be imported.
        CorruptionError
            There is no such code.
        """
        known = self._kinds.get(code)
        if known is None:
            manager = self._manager
            cls = manager.types.class_of(code)
            if manager.types.is_static(cls):
                known = cls._p_children, cls._p_blocks
            else:  # a class of a user's own; it is asked through an object
                known = (
                    lambda _, offset: manager.children_of(offset),
                    lambda _, offset: manager.blocks_of(offset),
                )
            self._kinds[code] = known
        return known

    def size_of(self, offset: int) -> int:
        """Return about how many words there are to look at in a container."""
        heap = self._manager.heap
        _, blocks = self.functions_of(self.code_of(offset))
        total = heap.size_of(offset)
        for block in blocks(self, offset):
            total += heap.size_of(block)
        return total >> 3


def root_offset(manager: MemoryManager) -> int:
    """Return the offset of the root object, 0 if the root is none."""
    index = (manager.heap.start >> 3) + ROOT_OID
    kind, payload = manager.words[index : index + 2]
    return payload if kind == manager.pool_kind else 0


def damaged(manager: MemoryManager | Reader, offset: int, target: int = 0) -> CorruptionError:
    """Return what to raise where an object cannot be read, or leads to `target`, which is none."""
    leads = f"leads to {target:#x}, where no object is" if target else "cannot be read"
    return CorruptionError(
        f"the object at {offset:#x} {leads}",
        manager.path,
        hint="see check(); nothing was freed",
        offset=offset,
        invariant="R1",
    )
