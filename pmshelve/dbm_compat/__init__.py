"""Our stores as modules of the standard library's `dbm`, and as what `shelve.open` opens.

`mmapdict` and `pmemobj` are such modules.  `register` makes `dbm.open`, `dbm.whichdb` and `shelve.open`
know them, so that unchanged programs use them; ``python -m pmshelve run script.py`` does the same from
outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pmshelve.dbm_compat import mmapdict
from pmshelve.dbm_compat.registry import register, unregister

if TYPE_CHECKING:
    from pmshelve.dbm_compat import pmemobj

__all__ = ["mmapdict", "pmemobj", "register", "unregister"]


if not TYPE_CHECKING:  # to whom the module would have any name

    def __getattr__(name: str) -> Any:
        if name == "pmemobj":  # a store of its own, which not everybody needs
            from importlib import import_module

            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
