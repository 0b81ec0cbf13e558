"""Mappings of buffers, as zict and dask take them, over both stores.

- `MmapDict`: over an mmapdict file; any size of value, large ones without a copy
- `PmemDict`: over a pool; room is used again in place

Needs zict (``pip install pmshelve[zict]``).  Either is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmshelve.zict_compat.mmap import MmapDict
    from pmshelve.zict_compat.pmem import PmemDict

__all__ = ["MmapDict", "PmemDict"]

_MODULES = {"MmapDict": "mmap", "PmemDict": "pmem"}


if not TYPE_CHECKING:  # to whom the module would have any name

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        if name in _MODULES:
            value = getattr(import_module(f"pmshelve.zict_compat.{_MODULES[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
