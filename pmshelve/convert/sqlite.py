"""SQLite files, read so that nothing is written: not to them, and where that can be, not beside them.

    the file                                  opened
    with a rollback journal (the default)     mode=ro: locks it for reading, writes nothing
    in WAL mode, closed in order              immutable=1: mode=ro would leave a -wal and a -shm behind
    in WAL mode, in use or left by a kill     mode=ro: what is in the -wal counts; the -shm is there
    in WAL mode, a -wal without its -shm      refused: reading it makes a -shm

All reading is one transaction, so it sees one state.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pmshelve.convert import files
from pmshelve.convert.source import fingerprint
from pmshelve.errors import CorruptionError, LockTimeoutError, PmshelveError, StorageError

__all__ = ["MAGIC", "Database", "quoted"]

MAGIC = b"SQLite format 3\0"
_WAL_VERSION = b"\x02"


class Database:
    """An SQLite file, open for reading.

    Parameters
    ----------
    path
        The file's name.
    timeout
        Seconds to wait for somebody who writes.
    """

    def __init__(self, path: str, timeout: float | None = 60.0) -> None:
        self.path = path
        self._before = fingerprint([path])
        options, self._is_fixed = self._how()
        uri = Path(os.path.abspath(path)).as_uri() + "?" + options
        self._connection: Any = None
        with self._reporting():
            self._connection = sqlite3.connect(
                uri, timeout=9e5 if timeout is None else timeout, uri=True, isolation_level=None
            )
        try:
            self._connection.text_factory = _text
            with self._reporting():
                self._connection.execute("BEGIN")
                self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except BaseException:
            self.close()
            raise

    def _how(self) -> tuple[str, bool]:
        """Return the options to open it with, and whether they rely on nobody writing to it."""
        if files.read(self.path, 1, 18) != _WAL_VERSION or os.path.exists(self.path + "-shm"):
            return "mode=ro", False
        if not files.size(self.path + "-wal"):
            return "immutable=1", True
        raise PmshelveError(
            "the SQLite file was not closed in order, and its -shm file is missing",
            self.path,
            hint="open it once with the library that wrote it, or copy it together with its -wal",
        )

    @property
    def is_changed(self) -> bool:
        """Whether the file was changed since it was opened, and no transaction keeps that away."""
        return self._is_fixed and fingerprint([self.path]) != self._before

    def rows(self, query: str, *arguments: Any) -> Iterator[Any]:
        """Yield the rows of a query."""
        with self._reporting():
            yield from self._connection.execute(query, arguments)

    def one(self, query: str, *arguments: Any) -> Any:
        """Return the first value of the first row of a query."""
        with self._reporting():
            row = self._connection.execute(query, arguments).fetchone()
        return None if row is None else row[0]

    def tables(self) -> dict[str, list[tuple[str, str]]]:
        """Return the names of the tables, and their columns: name and declared type."""
        names = [name for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type='table'")]
        return {
            name: [
                (column, kind.upper())
                for _, column, kind, *_ in self.rows(f"PRAGMA table_info({quoted(name)})")
            ]
            for name in names
            if not name.startswith("sqlite_")
        }

    def close(self) -> None:
        """Close it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            text = str(error)
            if "locked" in text or "busy" in text:
                raise LockTimeoutError("another process is writing", self.path) from error
            hint = "if its last user was killed, open it once with the library that wrote it"
            raise StorageError(f"SQLite cannot read it: {text}", self.path, hint=hint) from error
        except sqlite3.DatabaseError as error:
            raise CorruptionError(f"SQLite cannot read it: {error}", self.path) from error


def quoted(name: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
