"""The standard library's dbm modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.engines import Engine, Item, call, register

__all__ = ["SqliteDbm"]


class _Dbm(Engine):
    flag: ClassVar[str] = "c"

    def open(self, directory: Path) -> Any:
        return call(self.modules[0], "open", str(directory / "store.dbm"), self.flag)


@register
class Gdbm(_Dbm):
    """GNU dbm."""

    name = "dbm.gnu"
    note = "one writing process, no readers beside it"
    modules = ("dbm.gnu",)

    def open_reader(self, directory: Path) -> Any:
        return call("dbm.gnu", "open", str(directory / "store.dbm"), "r")


@register
class GdbmSynced(Gdbm):
    """GNU dbm with a `sync()` after each put: its flag "s" alone does not sync each one."""

    name = "dbm.gnu-sync"
    note = "put and sync(); a crash in between may break the file"

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        for key, value in items:
            handle[key] = value
            handle.sync()


@register
class Ndbm(_Dbm):
    """The system's ndbm."""

    name = "dbm.ndbm"
    note = "no lock: one process"
    modules = ("dbm.ndbm",)


class SqliteDbm(MutableMapping[bytes, bytes]):
    """The same statements, one at a time, as the `dbm.sqlite3` of Python 3.13 executes.

    It stands in for that module on older Pythons, and takes the place of it where the benchmark
    has to choose what `PRAGMA synchronous` says.
    """

    def __init__(self, path: Path, synchronous: str | None = None) -> None:
        import sqlite3

        self.connection = sqlite3.connect(path, isolation_level=None)
        self._execute("PRAGMA journal_mode = wal")
        if synchronous:
            self._execute(f"PRAGMA synchronous = {synchronous}")
        self._execute(
            "CREATE TABLE IF NOT EXISTS Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)"
        )

    def _execute(self, statement: str, arguments: tuple[Any, ...] = ()) -> Any:
        return closing(self.connection.execute(statement, arguments))

    def __getitem__(self, key: bytes) -> bytes:
        with self._execute("SELECT value FROM Dict WHERE key = CAST(? AS BLOB)", (key,)) as cursor:
            row = cursor.fetchone()
        if not row:
            raise KeyError(key)
        return bytes(row[0])

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self._execute(
            "REPLACE INTO Dict (key, value) VALUES (CAST(? AS BLOB), CAST(? AS BLOB))", (key, value)
        )

    def __delitem__(self, key: bytes) -> None:
        with self._execute("DELETE FROM Dict WHERE key = CAST(? AS BLOB)", (key,)) as cursor:
            if not cursor.rowcount:
                raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        with self._execute("SELECT key FROM Dict") as cursor:
            for row in cursor:
                yield row[0]

    def __len__(self) -> int:
        with self._execute("SELECT COUNT (key) FROM Dict") as cursor:
            return int(cursor.fetchone()[0])

    def batch(self, items: Iterable[Item]) -> None:
        """Put all items in one transaction."""
        self._execute("BEGIN")
        for key, value in items:
            self[key] = value
        self._execute("COMMIT")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


@register
class Sqlite(Engine):
    """`dbm.sqlite3` where Python has it, else its statements."""

    name = "dbm.sqlite3"
    note = "SQLite's default: each commit on the disk"
    modules = ("sqlite3",)
    limits: ClassVar[Mapping[str, int]] = dict.fromkeys(("put", "random", "shelf", "delete"), 5_000)

    def open(self, directory: Path) -> Any:
        path = directory / "store.sqlite"
        with suppress(ImportError):
            return call("dbm.sqlite3", "open", path, "c")
        return SqliteDbm(path)

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        with closing(SqliteDbm(self._path(handle))) as batch:
            batch.batch(items)

    def _path(self, handle: Any) -> Path:
        # The standard module's object does not tell; its connection does.
        connection = getattr(handle, "_cx", None) or handle.connection
        return Path(connection.execute("PRAGMA database_list").fetchone()[2])


@register
class SqliteNotSynced(Sqlite):
    """The statements of `dbm.sqlite3`; the system writes back when it likes."""

    name = "dbm.sqlite3-nosync"
    note = "PRAGMA synchronous=OFF"
    limits: ClassVar[Mapping[str, int]] = {}

    def open(self, directory: Path) -> Any:
        return SqliteDbm(directory / "store.sqlite", synchronous="OFF")


@register
class SqliteSynced(Sqlite):
    """The statements of `dbm.sqlite3` with durable commits."""

    name = "sqlite3-sync"
    note = "WAL, synchronous=FULL"

    def open(self, directory: Path) -> Any:
        return SqliteDbm(directory / "store.sqlite", synchronous="FULL")


@register
class Dumb(_Dbm):
    """The standard library's portable dbm."""

    name = "dbm.dumb"
    note = "index in memory, written at close and at each deletion"
    modules = ("dbm.dumb",)
    limits: ClassVar[Mapping[str, int]] = {"delete": 20}
    repeats_max: ClassVar[Mapping[str, int]] = {"open": 3}
