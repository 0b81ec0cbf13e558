"""A pool as a dbm module: bytes keys and values, shaped as `dbm.gnu` is.

One file of exactly the given name, one process that writes or any number that read, and nothing half
written whenever a process or the power dies.  Replaced values give their space back at once, and a set
changes a few hundred bytes in place.  `dbm.open` and `shelve.open` find this module once
`pmshelve.dbm_compat.register` was called; it can also be used directly.

The pool's root is a dict of bytes to bytes whose class says that it was made here; see
`pmshelve.dbm_compat.pools` for how the doors tell each other's pools.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from pmshelve.dbm_compat import pools
from pmshelve.dbm_compat.database import Database, error, raise_as_dbm_error
from pmshelve.dbm_compat.mmapdict import parse_flag
from pmshelve.errors import PmshelveError

if TYPE_CHECKING:
    from dbm import _TFlags

__all__ = ["error", "library", "open"]

library = "pmshelve pmemobj"
"""What keeps the data, for programs that print it."""

open_flags = "rwcnfsu"
"""The letters `open` takes in `flag`."""

recognizes: Callable[[str | bytes], bool] = pools.recognizes

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def open(file: _Path, flag: _TFlags = "r", mode: int = 0o666) -> Database:
    """Open a database.

    Parameters
    ----------
    file
        The file's name; nothing is added to it, and no other file appears beside it.
    flag
        ``'r'`` existing, read only; ``'w'`` existing; ``'c'`` create if missing; ``'n'`` always
        empty.  After it may stand ``'s'``: every change is on the disk when the call that made it
        returns; ``'f'``: it is not (the default; `sync` forces it); ``'u'``: taken and without
        effect, the pool is locked as long as it is open.
    mode
        Permissions of a file that is created, subject to the umask.

    Raises
    ------
    FileNotFoundError
        The file is missing and `flag` does not create it.
    error
        The file is not a database, or is a pool made by `pmshelve.open` or `pmshelve.pmemobj`, or
        another process has it open, or the system refused.  The file is as it was.
    ValueError
        Another `flag`.

    Notes
    -----
    With ``'r'`` nothing is written, no lock file either.  Cost O(1) if the database was closed in
    order; else everything in it is looked at once, by the next who writes.
    """
    letter, sync = parse_flag(flag)
    try:
        store = pools.open_store(file, letter, mode, face="bytes", sync=sync)
    except PmshelveError as problem:
        raise_as_dbm_error(problem)
    return Database(store, readonly=letter == "r", bytes_keys=True)
