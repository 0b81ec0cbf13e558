"""LMDB through py-lmdb, in its several ways to commit."""

from __future__ import annotations

import shelve
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.engines import Engine, Item, call, register

__all__ = ["LmdbMapping"]

_MAP_SIZE = 1 << 34


class _Lmdb(Engine):
    """py-lmdb with one transaction an operation; the system writes back when it likes."""

    modules = ("lmdb",)
    options: ClassVar[Mapping[str, Any]] = {"sync": False, "metasync": False}

    def open(self, directory: Path) -> Any:
        path = str(directory / "store.lmdb")
        return call("lmdb", "open", path, map_size=_MAP_SIZE, subdir=False, **self.options)

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        begin = handle.begin
        for key, value in items:
            with begin(write=True) as transaction:
                transaction.put(key, value)

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        with handle.begin(write=True) as transaction:
            for key, value in items:
                transaction.put(key, value)

    def read(self, handle: Any, keys: Iterable[Any]) -> None:
        begin = handle.begin
        for key in keys:
            with begin() as transaction:
                transaction.get(key)

    def count_wrong(self, handle: Any, items: Iterable[Item]) -> int:
        begin = handle.begin
        wrong = 0
        for key, value in items:
            with begin() as transaction:
                if transaction.get(key) != value:
                    wrong += 1
        return wrong

    def probe(self, handle: Any, keys: Iterable[Any]) -> None:
        self.read(handle, keys)

    def remove(self, handle: Any, keys: Iterable[Any]) -> None:
        begin = handle.begin
        for key in keys:
            with begin(write=True) as transaction:
                transaction.delete(key)

    def fetch(self, handle: Any, key: Any) -> bytes | None:
        with handle.begin() as transaction:
            value: bytes | None = transaction.get(key)
            return value

    def shelf(self, handle: Any) -> Any:
        return shelve.Shelf(LmdbMapping(handle))


@register
class Lmdb(_Lmdb):
    """LMDB, one transaction a put."""

    name = "lmdb"
    note = "a transaction each, not synced"


@register
class LmdbWritemap(_Lmdb):
    """LMDB that writes through its map, one transaction a put."""

    name = "lmdb-writemap"
    note = "as lmdb, writemap"
    options: ClassVar[Mapping[str, Any]] = {
        "sync": False,
        "metasync": False,
        "writemap": True,
        "map_async": True,
    }


@register
class LmdbSynced(_Lmdb):
    """LMDB with its default, durable commits."""

    name = "lmdb-sync"
    note = "each commit on the disk"
    options: ClassVar[Mapping[str, Any]] = {}


@register
class LmdbBatch(_Lmdb):
    """LMDB with all operations in one transaction."""

    name = "lmdb-batch"
    note = "one transaction for all"

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        self.load(handle, items)

    def read(self, handle: Any, keys: Iterable[Any]) -> None:
        with handle.begin() as transaction:
            for key in keys:
                transaction.get(key)

    def remove(self, handle: Any, keys: Iterable[Any]) -> None:
        with handle.begin(write=True) as transaction:
            for key in keys:
                transaction.delete(key)

    def shelf(self, handle: Any) -> Any:
        return shelve.Shelf(LmdbMapping(handle, handle.begin(write=True)))


class LmdbMapping(MutableMapping[bytes, bytes]):
    """An LMDB environment as the mapping that `shelve.Shelf` wants.

    Parameters
    ----------
    environment
        What `lmdb.open` returned.
    transaction
        Do everything in this one, committed at `close`; by default each operation has its own.
    """

    def __init__(self, environment: Any, transaction: Any = None) -> None:
        self._environment = environment
        self._transaction = transaction

    def __getitem__(self, key: bytes) -> bytes:
        if self._transaction is not None:
            value = self._transaction.get(key)
        else:
            with self._environment.begin() as transaction:
                value = transaction.get(key)
        if value is None:
            raise KeyError(key)
        return bytes(value)

    def __setitem__(self, key: bytes, value: bytes) -> None:
        if self._transaction is not None:
            self._transaction.put(key, value)
        else:
            with self._environment.begin(write=True) as transaction:
                transaction.put(key, value)

    def __delitem__(self, key: bytes) -> None:
        with self._environment.begin(write=True) as transaction:
            if not transaction.delete(key):
                raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        with self._environment.begin() as transaction:
            yield from transaction.cursor().iternext(values=False)

    def __len__(self) -> int:
        return int(self._environment.stat()["entries"])

    def close(self) -> None:
        """Commit what is open and close the environment."""
        if self._transaction is not None:
            self._transaction.commit()
        self._environment.close()
