"""What kind of source a name stands for, by what is in the files; and opening it.

Nothing is opened with the library that wrote it, and nothing is unpickled, to find out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pmshelve.convert import files
from pmshelve.errors import NotAStoreError
from pmshelve.storage import file as storage

if TYPE_CHECKING:
    from pmshelve.convert.source import Source

__all__ = ["KINDS", "Options", "open_source"]

KINDS = {
    "mmapdict": "an mmapdict file, of pmshelve or mmappickle",
    "pmemobj": "a pool of pmshelve whose root is a dict",
    "pickle": "a pickled dict",
    "dbm.gnu": "a dbm.gnu database",
    "dbm.ndbm": "a dbm.ndbm database",
    "dbm.dumb": "a dbm.dumb database",
    "dbm.sqlite3": "a dbm.sqlite3 database",
    "sqlitedict": "a table of an sqlitedict file",
    "diskcache": "a diskcache directory",
    "zict": "a directory of zict.File",
}
"""Kinds of sources, and what they are."""

_ALIASES = {"mmappickle": "mmapdict", "zict.File": "zict"}


class Options(NamedTuple):
    """What a user says of a source; see `convert`."""

    shelf: bool = False
    table: str | None = None
    unpickle: bool = False
    timeout: float | None = 60.0
    face: str | None = None


def open_source(path: str, kind: str | None, options: Options) -> Source:
    """Open a source to read it.

    Parameters
    ----------
    path
        A file, a directory, or the name that `dbm.open` is given.
    kind
        One of `KINDS`; ``'dbm'`` for any of the dbm modules; None to find out.

    Raises
    ------
    ValueError
        There is no such kind.
    NotAStoreError
        The content says nothing, or several things.
    FileNotFoundError
    """
    wanted = _ALIASES.get(kind or "", kind)
    if wanted is not None and wanted not in KINDS and wanted != "dbm":
        raise ValueError(f"no kind {kind!r}; there is dbm, {', '.join(KINDS)}")
    found = list(dict.fromkeys(_candidates(path, options.timeout)))
    if wanted == "dbm":
        found = [pair for pair in found if pair[0].startswith("dbm.")]
    elif wanted is not None:
        # Whatever it looks like: its opener says what is wrong.
        found = [pair for pair in found if pair[0] == wanted] or [(wanted, path)]
    if len(found) == 1:
        name, base = found[0]
        source: Source = _OPENERS[name](base, options)
        return source
    if not found:
        storage.system.stat(path)  # FileNotFoundError, where that is all
    raise NotAStoreError(_problem(found, wanted), path, hint=_hint(found))


def _problem(found: list[tuple[str, str]], wanted: str | None) -> str:
    if found:
        return "this may be " + " or ".join(f"{KINDS[kind]} ({base})" for kind, base in found)
    return "not a dbm database" if wanted == "dbm" else "not a store of a known kind"


def _hint(found: list[tuple[str, str]]) -> str:
    kinds = ", ".join(kind for kind, _ in found) or ", ".join(KINDS)
    return f"say which kind with --from (kind=): {kinds}"


# Looking ----------------------------------------------------------------------------------------


def _candidates(path: str, timeout: float | None) -> Iterator[tuple[str, str]]:
    """Yield each kind that the name may stand for, and the name to open it by."""
    from pmshelve.convert.dbms import base_names

    bases = list(base_names(path))
    yield from bases
    if os.path.isdir(path):
        yield from _of_directory(path)
    elif os.path.isfile(path) and all(base == path for _, base in bases):
        yield from _of_file(
            path, timeout
        )  # else it is a part: of pickles behind each other, perhaps


def _of_directory(path: str) -> Iterator[tuple[str, str]]:
    from pmshelve.convert.diskcaches import shards_of
    from pmshelve.convert.zictfiles import is_zict_directory

    if shards_of(path):
        yield "diskcache", path
    elif is_zict_directory(path):
        yield "zict", path


def _of_file(path: str, timeout: float | None) -> Iterator[tuple[str, str]]:
    from pmshelve.convert.dbms import is_gnu
    from pmshelve.convert.pickledict import is_pickle
    from pmshelve.convert.sqlite import MAGIC
    from pmshelve.dbm_compat import mmapdict, pools

    head = files.read(path, 64)
    if mmapdict.recognizes(path):
        yield "mmapdict", path
    elif pools.recognizes(path):
        yield "pmemobj", path
    elif head.startswith(MAGIC):
        yield from _of_sqlite(path, timeout)
    elif is_gnu(head):
        yield "dbm.gnu", path
    elif is_pickle(path, head):
        yield "pickle", path


def _of_sqlite(path: str, timeout: float | None) -> Iterator[tuple[str, str]]:
    from pmshelve.convert.dbms import SQLITE_COLUMNS
    from pmshelve.convert.sqlite import Database
    from pmshelve.convert.sqlitedicts import tables_of

    database = Database(path, timeout)
    try:
        tables = database.tables()
        if {"Cache", "Settings"} <= tables.keys():
            yield "diskcache", os.path.dirname(path) or "."
        if tables.get("Dict") == SQLITE_COLUMNS:
            yield "dbm.sqlite3", path
        if tables_of(database):
            yield "sqlitedict", path
    finally:
        database.close()


# Opening ----------------------------------------------------------------------------------------


def _mmapdict(path: str, options: Options) -> Source:
    from pmshelve.convert.stores import MmapdictSource

    return MmapdictSource(path, shelf=options.shelf, is_zict=options.face == "zict")


def _pool(path: str, options: Options) -> Source:
    from pmshelve.convert.stores import BuffersSource, PoolSource, is_of_buffers

    if is_of_buffers(path, options.timeout):
        return BuffersSource(path, timeout=options.timeout)
    return PoolSource(path, shelf=options.shelf, unpickle=options.unpickle, timeout=options.timeout)


def _pickle(path: str, options: Options) -> Source:
    from pmshelve.convert.pickledict import PickledDictSource

    return PickledDictSource(path, unpickle=options.unpickle)


def _dbm(kind: str) -> Callable[[str, Options], Source]:
    def open_it(path: str, options: Options) -> Source:
        from pmshelve.convert.dbms import DbmSource

        return DbmSource(path, kind, shelf=options.shelf)

    return open_it


def _sqlite_dbm(path: str, options: Options) -> Source:
    from pmshelve.convert.dbms import SqliteDbmSource

    return SqliteDbmSource(path, shelf=options.shelf, timeout=options.timeout)


def _sqlitedict(path: str, options: Options) -> Source:
    from pmshelve.convert.sqlitedicts import SqliteDictSource

    return SqliteDictSource(path, table=options.table, timeout=options.timeout)


def _diskcache(path: str, options: Options) -> Source:
    from pmshelve.convert.diskcaches import DATABASE, DiskCacheSource

    if os.path.basename(path) == DATABASE and os.path.isfile(path):
        path = os.path.dirname(path) or "."
    return DiskCacheSource(path, timeout=options.timeout)


def _zict(path: str, _: Options) -> Source:
    from pmshelve.convert.zictfiles import ZictFileSource

    return ZictFileSource(path)


_OPENERS: dict[str, Callable[[str, Options], Any]] = {
    "mmapdict": _mmapdict,
    "pmemobj": _pool,
    "pickle": _pickle,
    "dbm.gnu": _dbm("dbm.gnu"),
    "dbm.ndbm": _dbm("dbm.ndbm"),
    "dbm.dumb": _dbm("dbm.dumb"),
    "dbm.sqlite3": _sqlite_dbm,
    "sqlitedict": _sqlitedict,
    "diskcache": _diskcache,
    "zict": _zict,
}
