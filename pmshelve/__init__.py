"""Python objects that live in a file and are never half written, in two stores.

- `pmshelve.mmapdict.mmapdict`: a `MutableMapping` from str to any value; memory-mapped, and a pickle
- `pmshelve.pmemobj`: pools of lists, dicts and objects, changed in place in transactions
- `pmshelve.open`: the same as `shelve.open`, over either
- `pmshelve.dbm_compat`: the same as dbm modules; `register()` makes `dbm.open` know them
- `pmshelve.errors`: every exception of the package
- `pmshelve.zict_compat`, `pmshelve.dask`, `pmshelve.joblib_compat`, `pmshelve.zarr_compat`: a store behind
  other packages' interfaces, for who has those packages
- `pmshelve.convert`: from other stores' files, and between ours

Importing this package imports none of them, nor NumPy: each is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` to be told so costs ten times this module
if TYPE_CHECKING:
    from typing import Any

    from pmshelve import dbm_compat, errors, mmapdict, pmemobj
    from pmshelve.shelf import open

__all__ = ["__version__", "dbm_compat", "errors", "mmapdict", "open", "pmemobj"]

__version__ = "0.1.0"

_MODULES = frozenset({"dbm_compat", "errors", "mmapdict", "pmemobj"})


if not TYPE_CHECKING:  # to whom the module would have any name

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
