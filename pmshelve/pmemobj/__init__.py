"""Persistent Python objects in a memory-mapped file: lists, dicts, sets, tuples, arrays, your classes.

    import pmshelve.pmemobj as pmemobj

    with pmemobj.PersistentObjectPool("notes.pool", flag="c") as pool:
        if pool.root is None:
            pool.root = pool.new(pmemobj.PersistentDict)
        with pool.transaction():  # all of it, or nothing, whatever happens
            pool.root["visits"] = pool.root.get("visits", 0) + 1

The interface is that of pynvm's `nvm.pmemobj`; the pool format is this package's own
(docs/format-pmemobj.md).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pmshelve.pmemobj.layout import MIN_POOL_SIZE, OID_NULL, POBJECT_TYPE_NUM
    from pmshelve.pmemobj.persistent import (
        PersistentArray,
        PersistentDict,
        PersistentFrozenSet,
        PersistentList,
        PersistentObject,
        PersistentSet,
        PersistentTuple,
    )
    from pmshelve.pmemobj.pool import PersistentObjectPool, PoolSizeError, create, open
    from pmshelve.pmemobj.protocol import Persistent
    from pmshelve.pmemobj.store import MemoryManager

__all__ = [
    "MIN_POOL_SIZE",
    "OID_NULL",
    "POBJECT_TYPE_NUM",
    "MemoryManager",
    "Persistent",
    "PersistentArray",
    "PersistentDict",
    "PersistentFrozenSet",
    "PersistentList",
    "PersistentObject",
    "PersistentObjectPool",
    "PersistentSet",
    "PersistentTuple",
    "PoolSizeError",
    "create",
    "open",
]

_HOMES = {
    "MIN_POOL_SIZE": "layout",
    "OID_NULL": "layout",
    "POBJECT_TYPE_NUM": "layout",
    "MemoryManager": "store",
    "Persistent": "protocol",
    "PersistentObjectPool": "pool",
    "PoolSizeError": "pool",
    "create": "pool",
    "open": "pool",
}


if not TYPE_CHECKING:  # to whom the module would have any name

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(f"{__name__}.{_HOMES.get(name, 'persistent')}")
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
