"""Make the standard library's `dbm` know our modules.

`dbm` has no call to register a module, so this one (and it alone) uses its private names.  They
mean the same in CPython 3.10 to 3.15:

=================  ===========================================================================
`dbm._names`       names of the modules `dbm.open` imports when it is first called
`dbm._modules`     the modules it imported, by the names `dbm.whichdb` may answer
`dbm._defaultmod`  the one that makes new files; None until `dbm.open` was first called
`dbm.whichdb`      looked up as a global by `dbm.open`, so a function put in its place is used
=================  ===========================================================================

`shelve.open` opens what `dbm.open` opens, and needs nothing of its own.
"""
# ruff: noqa: SLF001 - that is what this module is for

from __future__ import annotations

import dbm
import importlib
import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from threading import RLock
from types import ModuleType
from typing import Any, NamedTuple

__all__ = ["MODULES", "register", "unregister"]

MODULES = {
    "mmapdict": "pmshelve.dbm_compat.mmapdict",
    "pmemobj": "pmshelve.dbm_compat.pmemobj",
}
"""Short names of our dbm modules, and the dotted names that `dbm.whichdb` answers."""

_dbm: Any = dbm  # the type checker's idea of it has no private names
_lock = RLock()


class _Before(NamedTuple):
    """What `register` found, for `unregister` to put back."""

    modules: frozenset[str]
    default: ModuleType | None
    whichdb: Callable[..., str | None]
    replacement: Callable[..., str | None]


_before: _Before | None = None


def register(default: str | None = None) -> None:
    """Make `dbm.open`, `dbm.whichdb` and `shelve.open` know our modules, in this process.

    Parameters
    ----------
    default
        The module that shall make new files from now on: ``'mmapdict'``, ``'pmemobj'``, or the dotted
        name of either.  None leaves that as it is; existing files are opened with the module they
        belong to.

    Raises
    ------
    ValueError
        There is no such module.

    Notes
    -----
    Calling it again changes nothing but the default; one `unregister` undoes any number of calls.
    """
    global _before  # noqa: PLW0603 - what is registered is a fact of the process
    with _lock:
        chosen = None if default is None else importlib.import_module(_dotted(default))
        if _before is None:
            _before = _install()
        if chosen is not None:
            _import_stock_modules()
            _dbm._defaultmod = chosen


def unregister() -> None:
    """Undo `register`: `dbm` is as it was before.

    Notes
    -----
    What others changed in between stays: a module they made the default, a `whichdb` they put
    around ours (which then answers as the one before ours did).
    """
    global _before
    with _lock:
        if _before is None:
            return
        before, _before = _before, None
        if _dbm.whichdb is before.replacement:
            _dbm.whichdb = before.whichdb
        _dbm._names[:] = [name for name in _dbm._names if name not in MODULES.values()]
        if getattr(_dbm._defaultmod, "__name__", None) in MODULES.values():
            _dbm._defaultmod = before.default
        added = {*MODULES.values()}
        if _dbm._defaultmod is None:  # the next dbm.open imports the stock modules anew
            added.update(_dbm._names)
        for name in added - before.modules:
            _dbm._modules.pop(name, None)


def _dotted(name: str) -> str:
    dotted = MODULES.get(name, name)
    if dotted not in MODULES.values():
        raise ValueError(f"no dbm module {name!r} here; there is {', '.join(MODULES)}")
    return dotted


def _install() -> _Before:
    modules, default, whichdb = frozenset(_dbm._modules), _dbm._defaultmod, _dbm.whichdb
    replacement = _wrap(whichdb)
    before = _Before(modules, default, whichdb, replacement)
    for name in MODULES.values():
        _dbm._modules[name] = importlib.import_module(name)
        _dbm._names.append(name)
    _dbm.whichdb = replacement
    return before


def _import_stock_modules() -> None:
    """Do what the first `dbm.open` does, which it leaves out once there is a default."""
    if _dbm._defaultmod is not None:
        return
    for name in _dbm._names:
        with suppress(ImportError):
            _dbm._modules[name] = importlib.import_module(name)


def _wrap(stock: Callable[..., str | None]) -> Callable[..., str | None]:
    modules: list[Any] = [importlib.import_module(name) for name in MODULES.values()]

    @wraps(stock)
    def whichdb(filename: Any) -> str | None:
        path = os.fsdecode(filename)  # CPython 3.10's own takes nothing but str
        for module in modules if _before is not None else ():
            with suppress(OSError):
                if module.recognizes(path):
                    return str(module.__name__)
        return stock(path)

    return whichdb
