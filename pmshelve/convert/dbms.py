"""Files of the standard library's dbm modules; a shelf is one whose values are pickles.

    kind          files                  found by
    dbm.gnu       NAME                   the magic number in the first 4 bytes
    dbm.ndbm      NAME.db                Berkeley DB's magic number at offset 0 or 12
                  NAME.pag, NAME.dir     both are there, and NAME.dir is no text of dbm.dumb's
    dbm.dumb      NAME.dir, NAME.dat     NAME.dir is text: a literal of a key, offset and size a line
    dbm.sqlite3   NAME                   an SQLite file with the table Dict (key BLOB, value BLOB)

dbm.gnu and dbm.ndbm are read by the module of that name, so by a Python that has it; the others by
any.  dbm.gnu locks the file against writers while it is read.
"""

from __future__ import annotations

import ast
import dbm
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pmshelve.convert import files
from pmshelve.convert.pickles import is_whole, pickled
from pmshelve.convert.source import Item, Source, Unreadable
from pmshelve.convert.sqlite import Database
from pmshelve.errors import PmshelveError, StorageError

__all__ = ["SQLITE_COLUMNS", "DbmSource", "SqliteDbmSource", "base_names", "is_dumb", "is_gnu"]

SQLITE_COLUMNS = [("key", "BLOB"), ("value", "BLOB")]

_GNU_MAGICS = frozenset({0x13579ACE, 0x13579ACD, 0x13579ACF})
_BERKELEY_MAGIC = 0x00061561
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_SUFFIXES = {"dbm.dumb": (".dir", ".dat"), "dbm.ndbm": (".db", ".pag", ".dir"), "dbm.gnu": ("",)}


# What is it -------------------------------------------------------------------------------------


def is_gnu(head: bytes) -> bool:
    """Whether a file begins as one of GNU dbm does, whatever machine wrote it."""
    return any(int.from_bytes(head[:4], order) in _GNU_MAGICS for order in _ORDERS)


def is_berkeley(head: bytes) -> bool:
    """Whether a file begins as a hash of Berkeley DB does, which is what most ndbms are."""
    return any(
        int.from_bytes(head[at : at + 4], order) == _BERKELEY_MAGIC
        for at in (0, 12)
        for order in _ORDERS
    )


def is_dumb(base: str) -> bool:
    """Whether there are the two files of a `dbm.dumb` database."""
    if not (os.path.isfile(base + ".dir") and os.path.isfile(base + ".dat")):
        return False
    line = files.read(base + ".dir", 1 << 16).split(b"\n", 1)[0].rstrip()
    if not line:
        return not files.size(base + ".dir")
    try:
        key, (offset, size) = ast.literal_eval(line.decode("latin-1"))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return isinstance(key, str) and isinstance(offset, int) and isinstance(size, int)


def is_ndbm(base: str) -> bool:
    """Whether there are the files of an ndbm database."""
    if os.path.isfile(base + ".db") and is_berkeley(files.read(base + ".db", 16)):
        return True
    pair = os.path.isfile(base + ".pag") and os.path.isfile(base + ".dir")
    return pair and not is_dumb(base)


def base_names(path: str) -> Iterator[tuple[str, str]]:
    """Yield kind and base name of each database of several files that `path` names, or is part of."""
    bases = {path: None}
    for suffix in (".db", ".dir", ".dat", ".pag"):
        if path.endswith(suffix) and os.path.isfile(path):
            bases[path[: -len(suffix)]] = None
    for base in bases:
        if is_dumb(base):
            yield "dbm.dumb", base
        if is_ndbm(base):
            yield "dbm.ndbm", base


# What is in it ----------------------------------------------------------------------------------


class _Base(Source):
    """What all of them do with a value."""

    has_bytes_keys = True

    def __init__(self, path: str, *, shelf: bool) -> None:
        super().__init__(path)
        self.face = "native" if shelf else "bytes"
        self.is_pickles = self._is_shelf = shelf

    def _remark(self) -> None:
        """Say so if the values may be pickles, and nobody said that they are."""
        if self._is_shelf:
            return
        for _, value in self:
            if isinstance(value, bytes) and value[:1] == b"\x80" and is_whole(value):
                self.notes.append("the values look like pickles: if this is a shelf, add --shelf")
            break

    def _item(self, key: bytes, value: bytes) -> Item:
        return Item(key, pickled(value) if self._is_shelf else value)


class DbmSource(_Base):
    """A database that a module of the standard library reads.

    Parameters
    ----------
    path
        The base name.
    kind
        The module's name.
    shelf
        Whether the values are pickles.
    """

    def __init__(self, path: str, kind: str, *, shelf: bool = False) -> None:
        super().__init__(path, shelf=shelf)
        self.kind = kind
        try:
            self._module: Any = importlib.import_module(kind)
        except ImportError as error:
            raise PmshelveError(
                f"a {kind} database, and this Python was built without {kind}",
                path,
                hint="run this with a Python that has it, such as the one that wrote the file",
            ) from error
        self._errors: Any = (OSError, *dbm.error, self._module.error)
        self._database: Any = None
        self.watch()
        with self._reporting():
            self._database = self._module.open(path, "r")
        try:
            self._remark()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        with self._reporting():
            return len(self._database)

    def __iter__(self) -> Iterator[Item]:
        with self._reporting():
            for key in self._keys():
                yield self._read(key)

    def _read(self, key: bytes) -> Item:
        try:
            value = self._database[key]
        except KeyError:
            return Item(key, Unreadable("the database lists the key, and has no value for it"))
        # dbm.dumb hands out what is left of a value whose file is too short, and says nothing.
        size = getattr(self._database, "_index", {}).get(key, (0, len(value)))[1]
        if len(value) != size:
            return Item(key, Unreadable(f"of its {size} bytes only {len(value)} are there"))
        return self._item(key, value)

    def _keys(self) -> Iterator[bytes]:
        database = self._database
        if not hasattr(database, "firstkey"):
            yield from database.keys()
            return
        key = database.firstkey()
        while key is not None:
            yield key
            key = database.nextkey(key)

    def files(self) -> list[str]:
        """Return the names of what it is read from."""
        names = [self.path + suffix for suffix in _SUFFIXES[self.kind]]
        return [name for name in names if os.path.isfile(name)]

    def close(self) -> None:
        """Let go of it."""
        database, self._database = self._database, None
        if database is not None:
            database.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except PmshelveError:
            raise
        except self._errors as error:
            cause = error if isinstance(error, OSError) else None
            problem = f"{self.kind} cannot read it: {error}"
            raise StorageError(problem, self.path, cause=cause) from error


class SqliteDbmSource(_Base):
    """A database of `dbm.sqlite3`, which CPython has since 3.13, read by any Python."""

    kind = "dbm.sqlite3"

    def __init__(self, path: str, *, shelf: bool = False, timeout: float | None = 60.0) -> None:
        super().__init__(path, shelf=shelf)
        self._database = Database(path, timeout)
        try:
            self._remark()
        except BaseException:
            self._database.close()
            raise

    def __len__(self) -> int:
        return int(self._database.one("SELECT count(*) FROM Dict"))

    def __iter__(self) -> Iterator[Item]:
        for key, value in self._database.rows("SELECT key, value FROM Dict ORDER BY rowid"):
            if isinstance(key, _TEXT) and isinstance(value, _TEXT):
                yield self._item(_bytes(key), _bytes(value))
            else:
                yield Item(key, Unreadable("it is a number, where dbm.sqlite3 has bytes"))

    def is_changed(self) -> bool:
        """Whether it was changed since it was opened."""
        return self._database.is_changed

    def close(self) -> None:
        """Let go of it."""
        self._database.close()


_TEXT = bytes | str


def _bytes(value: bytes | str) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
