"""Our stores as modules of the standard library's `dbm`, and as what `shelve.open` opens.

`mmapdict` is such a module.  `register` makes `dbm.open`, `dbm.whichdb` and `shelve.open` know it,
so that unchanged programs use it; ``python -m pmshelve run script.py`` does the same from outside.
"""

from __future__ import annotations

from pmshelve.dbm_compat import mmapdict
from pmshelve.dbm_compat.registry import register, unregister

__all__ = ["mmapdict", "register", "unregister"]
