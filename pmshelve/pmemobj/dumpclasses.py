"""What both sides of a dump know: this package's collections, by number, and where a pool's root is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pmshelve.pmemobj.dumpstream import BUILTIN_NAMES
from pmshelve.pmemobj.layout import ROOT_OID
from pmshelve.pmemobj.persistent import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
)

if TYPE_CHECKING:
    from pmshelve.pmemobj.protocol import Oid
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["BATCH", "BUILTIN", "base_of", "root_of"]

BATCH = 2000
"""Values written in one record, and stored in one transaction; about."""

BUILTIN: tuple[Any, ...] = (
    PersistentList,
    PersistentDict,
    PersistentTuple,
    PersistentSet,
    PersistentFrozenSet,
    PersistentArray,
    PersistentObject,
)
assert tuple(cls.__name__ for cls in BUILTIN) == BUILTIN_NAMES


def base_of(cls: type) -> Any:
    """Return the class of this package that stores instances of `cls`; None if it does so itself."""
    return next((base for base in BUILTIN if issubclass(cls, base)), None)


def root_of(manager: MemoryManager) -> Oid:
    """Return the oid of the root."""
    index = (manager.heap.start >> 3) + ROOT_OID
    return manager.words[index], manager.words[index + 1]
