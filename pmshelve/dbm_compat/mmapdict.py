"""An mmapdict file as a dbm module: bytes keys and values, shaped as `dbm.gnu` is.

One file of exactly the given name, any number of reading and writing processes at once, and nothing
half written whenever a process or the power dies.  `dbm.open` and `shelve.open` find this module
once `pmshelve.dbm_compat.register` was called; it can also be used directly.

A file written here holds bytes, one made by `pmshelve.open` or `pmshelve.mmapdict` holds Python's
values as they are; each says so in itself, and the other door refuses it with an error that says
which one to use.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pmshelve.dbm_compat.database import Database, error, raise_as_dbm_error
from pmshelve.errors import FormatError, PmshelveError
from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.frame import COMMIT_OFFSET, HEADER_SIZE, encode_header
from pmshelve.storage import file as storage

if TYPE_CHECKING:
    from dbm import _TFlags

__all__ = ["error", "library", "open"]

library = "pmshelve mmapdict"
"""What keeps the data, for programs that print it."""

open_flags = "rwcnfsu"
"""The letters `open` takes in `flag`."""

_FLAG_PROBLEM = (
    "Flag must be one of 'r', 'w', 'c', or 'n', and may be followed by 'f', 's' and 'u'; not "
)
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
        effect, since locks are held during a call only and never shut anybody out.
    mode
        Permissions of a file that is created, subject to the umask.

    Raises
    ------
    FileNotFoundError
        The file is missing and `flag` does not create it.
    error
        The file is not a database, or is one of Python values (see `pmshelve.open`), or the
        system refused.  The file is as it was.
    ValueError
        Another `flag`.

    Notes
    -----
    With ``'r'`` nothing is written, no lock file either.  Cost O(1) with an index checkpoint in
    the file.  Space of replaced values is given back by itself when it exceeds what is in use.
    An ordinary pickle is never converted, whatever the flag; ``'n'`` replaces it.
    """
    letter, sync = parse_flag(flag)
    try:
        store = open_store(file, letter, mode, face="bytes", convert=False, sync=sync)
    except PmshelveError as problem:
        raise_as_dbm_error(problem)
    return Database(store, readonly=letter == "r")


def parse_flag(flag: object) -> tuple[str, bool]:
    """Return the first letter of a dbm flag, and whether it asks for a sync at every commit."""
    if (
        not isinstance(flag, str)
        or flag[:1] not in {"r", "w", "c", "n"}
        or set(flag[1:]) - {*"fsu"}
    ):
        raise ValueError(f"{_FLAG_PROBLEM}{flag!r}")
    return flag[0], "s" in flag


def open_store(file: _Path, letter: str, mode: int, **options: Any) -> mmapdict[Any]:
    """Open an `mmapdict` as the letter of a dbm flag says.

    Parameters
    ----------
    file, mode
        As for `open`.
    letter
        ``'r'``, ``'w'``, ``'c'`` or ``'n'``.
    **options
        Further arguments of `mmapdict`.
    """
    path = os.fspath(file)
    if letter == "r":
        return mmapdict(path, readonly=True, **options)
    if letter == "w":
        storage.system.stat(path)  # FileNotFoundError, naming the file; mmapdict would create it
    if letter == "n":
        _empty(path, mode, timeout=options.get("timeout", 60.0))
    return mmapdict(path, readonly=False, autovacuum=True, mode=mode, **options)


def recognizes(path: str | bytes) -> bool:
    """Return whether the file begins as an mmapdict file does (it may be damaged further on).

    Raises
    ------
    OSError
        It cannot be read.
    """
    fd = storage.system.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        data = storage.read_at(fd, HEADER_SIZE, 0)
    finally:
        storage.system.close(fd)
    commit = int.from_bytes(data[COMMIT_OFFSET : COMMIT_OFFSET + 4], "little", signed=True)
    return data == encode_header(commit)


def _empty(path: str | bytes, mode: int, timeout: float | None) -> None:
    """Make the file at `path` an empty store, whatever it was; other processes' maps stay valid."""
    try:
        with mmapdict(path, readonly=False, convert=False, mode=mode, timeout=timeout) as store:
            store.clear()
    except FormatError:
        target = os.path.realpath(os.fsdecode(path))
        if not stat.S_ISREG(storage.system.stat(target).st_mode):
            raise  # never rename over a device
        _replace(target, mode)


def _replace(target: str, mode: int) -> None:
    """Put an empty store in the place of a file that is none."""
    scratch = f"{target}.{secrets.token_hex(8)}.tmp"
    try:
        with mmapdict(scratch, readonly=False, mode=mode) as store:
            store.sync()
        storage.replace(scratch, target)
    except BaseException:
        with suppress(OSError):
            storage.unlink(scratch)
        raise
    storage.sync_directory(target)
