"""A diskcache directory: a Cache, Index or Deque, or the shards of a FanoutCache.

Each row of the table Cache says what its value is and where:

    mode   value                                        in the row, or in a file that it names
    0, 1   bytes, text or a number as SQLite keeps it   row
    2, 3   bytes, text in UTF-8                         file
    4      a pickle                                     row or file

A cache made with `JSONDisk` has compressed JSON in place of both keys and values, which its first keys
tell: nothing else does.  What expired is
left out; when something will, and its tag, are not kept.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from typing import Any

from pmshelve.convert import files
from pmshelve.convert.pickles import Refusing, pickled
from pmshelve.convert.source import Item, Source, Unreadable
from pmshelve.convert.sqlite import MAGIC, Database
from pmshelve.errors import NotAStoreError

__all__ = ["DiskCacheSource", "shards_of"]

DATABASE = "cache.db"

_RAW_MODES, _BINARY_MODE, _TEXT_MODE, _PICKLE_MODE = (0, 1), 2, 3, 4
_FIRST_KEYS = "SELECT key FROM Cache LIMIT 20"
_QUERY = "SELECT key, raw, expire_time, tag, mode, filename, value FROM Cache ORDER BY rowid"


def shards_of(directory: str) -> list[str]:
    """Return the directories that have a cache's database: this one, or its numbered ones."""
    if _has_database(directory):
        return [directory]
    names = sorted(name for name in os.listdir(directory) if re.fullmatch(r"\d{3,}", name))
    return [
        path for path in (os.path.join(directory, name) for name in names) if _has_database(path)
    ]


def _has_database(directory: str) -> bool:
    path = os.path.join(directory, DATABASE)
    return os.path.isfile(path) and files.read(path, len(MAGIC)) == MAGIC


class DiskCacheSource(Source):
    """All that has not expired, in the order in which it was first stored.

    Parameters
    ----------
    path
        The directory.
    timeout
        Seconds to wait for somebody who writes.
    """

    kind = "diskcache"

    def __init__(self, path: str, *, timeout: float | None = 60.0) -> None:
        super().__init__(path)
        self._now = time.time()
        self._shards: list[tuple[str, Database]] = []
        try:
            shards = shards_of(path)
            if not shards:
                raise NotAStoreError(f"no diskcache directory: there is no {DATABASE} in it", path)
            for shard in shards:
                self._shards.append((shard, Database(os.path.join(shard, DATABASE), timeout)))
            keys = [key for _, database in self._shards for (key,) in database.rows(_FIRST_KEYS)]
            self._is_json = bool(keys) and all(map(_is_json, keys))
            self._take_stock()
        except BaseException:
            self.close()
            raise

    def _take_stock(self) -> None:
        """Count what is not moved."""
        live = "expire_time IS NULL OR expire_time > ?"
        self.left_out = {
            "caches, deques and indexes inside of it": len(_inner(self.path)),
            "expired": self._sum("SELECT count(*) FROM Cache WHERE expire_time <= ?", self._now),
            "expiry times": self._sum(
                "SELECT count(*) FROM Cache WHERE expire_time > ?", self._now
            ),
            "tags": self._sum(
                f"SELECT count(*) FROM Cache WHERE tag IS NOT NULL AND ({live})",  # noqa: S608
                self._now,
            ),
        }

    def _sum(self, query: str, *arguments: Any) -> int:
        return sum(int(database.one(query, *arguments)) for _, database in self._shards)

    def __len__(self) -> int:
        return self._sum("SELECT count(*) FROM Cache")

    def __iter__(self) -> Iterator[Item]:
        for directory, database in self._shards:
            for key, raw, expires, _, mode, name, value in database.rows(_QUERY):
                if expires is None or expires > self._now:
                    yield self._item(directory, key, raw, mode, name, value)

    def _item(self, directory: str, key: Any, raw: Any, mode: Any, name: Any, value: Any) -> Item:
        try:
            found = self._key(key, raw)
        except Exception as error:  # noqa: BLE001 - whatever a key that is no pickle leads to
            return Item(key, Unreadable(f"the key cannot be read: {error}"))
        try:
            return Item(found, self._value(directory, mode, name, value))
        except OSError as error:
            return Item(found, Unreadable(f"its file cannot be read: {error}"))
        except (ValueError, zlib.error) as error:
            return Item(found, Unreadable(f"the value cannot be read: {error}"))

    def _key(self, key: Any, raw: Any) -> Any:
        if not raw:
            return Refusing(io.BytesIO(key)).load()
        return _from_json(key) if self._is_json else key

    def _value(self, directory: str, mode: Any, name: Any, value: Any) -> Any:
        if name is not None:
            value = files.content(_inside(directory, name))
        if mode == _PICKLE_MODE:
            return pickled(value)
        if self._is_json:
            return _from_json(value)
        if mode == _TEXT_MODE:
            return bytes(value).decode()
        if mode == _BINARY_MODE or mode in _RAW_MODES:
            return value
        raise ValueError(f"unknown mode {mode!r}")

    def files(self) -> list[str]:
        """Return the names of what it is read from."""
        return [self.path, *(database.path for _, database in self._shards)]

    def is_changed(self) -> bool:
        """Whether it was changed since it was opened."""
        return any(database.is_changed for _, database in self._shards)

    def close(self) -> None:
        """Let go of it."""
        for _, database in self._shards:
            database.close()


def _inner(directory: str) -> list[str]:
    """Return the directories of what `FanoutCache.cache`, `.deque` and `.index` made."""
    return [
        path
        for kind in ("cache", "deque", "index")
        for path, _, _ in os.walk(os.path.join(directory, kind))
        if _has_database(path)
    ]


def _is_json(key: Any) -> bool:
    try:
        _from_json(key)
    except (TypeError, ValueError, zlib.error):
        return False
    return True


def _from_json(data: Any) -> Any:
    return json.loads(zlib.decompress(data).decode())


def _inside(directory: str, name: str) -> str:
    """Return the path of a value's file, which lies below the directory, whatever the row says."""
    path = os.path.normpath(os.path.join(directory, name))
    if not path.startswith(os.path.normpath(directory) + os.sep):
        raise ValueError(f"its file {name!r} is not in the cache's directory")
    return path
