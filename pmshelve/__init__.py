"""Persistent dicts in one file: memory-mapped values, crash-safe, and a valid pickle.

============================  ==================================================================
`pmshelve.mmapdict.mmapdict`  the store: a `MutableMapping` from str to any value
`pmshelve.open`               the same as `shelve.open`, over such a store
`pmshelve.dbm_compat`         the same as a dbm module; `register()` makes `dbm.open` know it
`pmshelve.errors`             every exception of the package
============================  ==================================================================

Importing this package imports none of them, nor NumPy: each is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` to be told so costs ten times this module
if TYPE_CHECKING:
    from typing import Any

    from pmshelve import dbm_compat, errors, mmapdict
    from pmshelve.shelf import open

__all__ = ["__version__", "dbm_compat", "errors", "mmapdict", "open"]

__version__ = "0.1.0"

_MODULES = frozenset({"dbm_compat", "errors", "mmapdict"})


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"pmshelve.{name}")
    if name in __all__:
        value = globals()[name] = getattr(import_module("pmshelve.shelf"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
