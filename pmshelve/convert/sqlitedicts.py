"""A table of an sqlitedict file: keys are text, values pickles, unless its user chose otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from pmshelve.convert.pickles import pickled
from pmshelve.convert.source import Item, Source
from pmshelve.convert.sqlite import Database, quoted
from pmshelve.errors import PmshelveError

__all__ = ["SqliteDictSource", "tables_of"]

_COLUMNS = [("key", "TEXT"), ("value", "BLOB")]


def tables_of(database: Database) -> list[str]:
    """Return the names of the tables that sqlitedict made."""
    return [name for name, columns in database.tables().items() if columns == _COLUMNS]


class SqliteDictSource(Source):
    """One table.

    Parameters
    ----------
    path
        The file's name.
    table
        The table's; None if there is only one.
    timeout
        Seconds to wait for somebody who writes.

    Notes
    -----
    A value is taken for what its column says: a blob for a pickle, which is what sqlitedict writes
    unless it is told otherwise; text and numbers for themselves.
    """

    kind = "sqlitedict"
    is_pickles = True

    def __init__(
        self, path: str, *, table: str | None = None, timeout: float | None = 60.0
    ) -> None:
        super().__init__(path)
        self._database = Database(path, timeout)
        try:
            self._table = quoted(self._choose(table))
        except BaseException:
            self._database.close()
            raise

    def _choose(self, table: str | None) -> str:
        names = tables_of(self._database)
        if table is None and len(names) == 1:
            return names[0]
        if table in names:
            return str(table)
        listed = ", ".join(repr(name) for name in names) or "none"
        problem = "no table to convert" if not names else "several tables"
        if table is not None:
            problem = f"no sqlitedict table {table!r}"
        raise PmshelveError(problem, self.path, hint=f"choose one with --table (table=): {listed}")

    def __len__(self) -> int:
        return int(self._database.one(f"SELECT count(*) FROM {self._table}"))  # noqa: S608 - quoted

    def __iter__(self) -> Iterator[Item]:
        query = f"SELECT key, value FROM {self._table} ORDER BY rowid"  # noqa: S608 - quoted
        for key, value in self._database.rows(query):
            yield Item(key, pickled(value) if isinstance(value, bytes) else value)

    def is_changed(self) -> bool:
        """Whether it was changed since it was opened."""
        return self._database.is_changed

    def close(self) -> None:
        """Let go of it."""
        self._database.close()
