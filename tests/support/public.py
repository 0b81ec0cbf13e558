"""Which modules are public: the package's own children, but for a few, and some of theirs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pmshelve

__all__ = ["MODULES", "importable"]

_INTERNAL = {"__main__", "cli", "generics", "storage"}  # nothing in them is for users' programs
_INNER = {"dbm_compat.mmapdict", "dbm_compat.pmemobj", "mmapdict.picklers"}
_CHILDREN = {each.name for each in pkgutil.iter_modules(pmshelve.__path__)} - _INTERNAL

MODULES = ["pmshelve", *(f"pmshelve.{name}" for name in sorted(_CHILDREN | _INNER))]
"""Their dotted names."""


def importable() -> Iterator[ModuleType]:
    """Yield those whose optional packages are installed."""
    for name in MODULES:
        try:
            module = importlib.import_module(name)
            for public in module.__all__:
                getattr(module, public)
        except ImportError:
            continue
        yield module
