"""The peers: other ways to keep bytes under keys, driven the way their users drive them.

Importing this module registers them all.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import peers_dbm, peers_lmdb  # noqa: F401 - they register themselves
from benchmarks.engines import Engine, Item, call, register
from benchmarks.framework import KEY_SIZE, VALUE_SIZE

RECORD_SIZE = KEY_SIZE + VALUE_SIZE


@register
class Semidbm(Engine):
    """semidbm, a log with its index in memory."""

    name = "semidbm"
    note = "one process; index in memory"
    modules = ("semidbm",)

    def open(self, directory: Path) -> Any:
        return call("semidbm", "open", str(directory / "store.semidbm"), "c")

    def compact(self, handle: Any) -> None:
        handle.compact()


@register
class LevelDb(Engine):
    """LevelDB through plyvel."""

    name = "leveldb"
    note = "one process"
    modules = ("plyvel",)
    sync: ClassVar[bool] = False

    def open(self, directory: Path) -> Any:
        return call("plyvel", "DB", str(directory / "store.leveldb"), create_if_missing=True)

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        put = handle.put
        if self.sync:
            for key, value in items:
                put(key, value, sync=True)
        else:
            for key, value in items:
                put(key, value)

    def read(self, handle: Any, keys: Iterable[Any]) -> None:
        get = handle.get
        for key in keys:
            get(key)

    def probe(self, handle: Any, keys: Iterable[Any]) -> None:
        self.read(handle, keys)

    def remove(self, handle: Any, keys: Iterable[Any]) -> None:
        delete = handle.delete
        for key in keys:
            delete(key)

    def fetch(self, handle: Any, key: Any) -> bytes | None:
        value: bytes | None = handle.get(key)
        return value


@register
class LevelDbSynced(LevelDb):
    """LevelDB that syncs its log at each put."""

    name = "leveldb-sync"
    note = "each commit on the disk"
    sync = True


@register
class ZictFile(Engine):
    """`zict.File`: a directory with a file a key."""

    name = "zict.File"
    note = "a file a key; 5,000 keys"
    modules = ("zict",)
    text_keys = True
    limits: ClassVar[Mapping[str, int]] = dict.fromkeys(
        ("put", "random", "get", "missing", "delete"), 5_000
    )
    keep_files = True

    def open(self, directory: Path) -> Any:
        return call("zict", "File", str(directory / "store.zict"))

    def close(self, handle: Any) -> None:
        del handle


@register
class DiskCache(Engine):
    """`diskcache.Cache`."""

    name = "diskcache"
    note = "5,000 keys"
    modules = ("diskcache",)
    text_keys = True
    limits: ClassVar[Mapping[str, int]] = dict.fromkeys(
        ("put", "random", "get", "missing", "delete"), 5_000
    )

    def open(self, directory: Path) -> Any:
        return call("diskcache", "Cache", str(directory / "store.diskcache"))


@register
class SqliteDict(Engine):
    """sqlitedict with autocommit."""

    name = "sqlitedict"
    note = "autocommit; 5,000 keys"
    modules = ("sqlitedict",)
    text_keys = True
    limits: ClassVar[Mapping[str, int]] = dict.fromkeys(
        ("put", "random", "get", "missing", "delete"), 5_000
    )

    def open(self, directory: Path) -> Any:
        return call("sqlitedict", "SqliteDict", str(directory / "store.sqlite"), autocommit=True)


@register
class MmapPickle(Engine):
    """mmappickle, whose API and file format the mmapdict implements."""

    name = "mmappickle"
    note = "500 keys: its cost grows with the file"
    modules = ("mmappickle",)
    text_keys = True
    limits: ClassVar[Mapping[str, int]] = dict.fromkeys(
        ("put", "random", "get", "missing", "delete", "vacuum", "processes"), 500
    )
    repeats_max: ClassVar[Mapping[str, int]] = {"growth": 2, "processes": 3}

    def prepare(self) -> None:
        numpy = call("importlib", "import_module", "numpy")
        if not hasattr(numpy, "float"):
            numpy.float = float  # a name NumPy dropped and mmappickle 1.0 still asks for
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().prepare()

    def open(self, directory: Path) -> Any:
        return call("mmappickle", "mmapdict", str(directory / "store.mmdp"))

    def compact(self, handle: Any) -> None:
        handle.vacuum()

    def close(self, handle: Any) -> None:
        handle._file.close()  # noqa: SLF001 - it has no close of its own


@register
class PlainAppend(Engine):
    """What any log has to do: one `pwrite` of key and value at the end of a file."""

    name = "os.pwrite"
    note = "baseline: key and value appended to a file"
    synced: ClassVar[bool] = False

    def open(self, directory: Path) -> Any:
        return os.open(directory / "store.log", os.O_RDWR | os.O_CREAT)

    def close(self, handle: Any) -> None:
        os.close(handle)

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        offset = os.fstat(handle).st_size
        pwrite, synced = os.pwrite, self.synced
        for key, value in items:
            offset += pwrite(handle, key + value, offset)
            if synced:
                os.fdatasync(handle)

    def fetch(self, handle: Any, key: Any) -> bytes | None:
        data = os.pread(handle, os.fstat(handle).st_size, 0)
        records = [data[at : at + RECORD_SIZE] for at in range(0, len(data), RECORD_SIZE)]
        return {record[:KEY_SIZE]: record[KEY_SIZE:] for record in records}.get(key)


@register
class PlainAppendSynced(PlainAppend):
    """One `pwrite` and one `fdatasync`."""

    name = "os.pwrite+fdatasync"
    note = "baseline"
    synced = True


@register
class PickleAlone(Engine):
    """Pickling without a store below it: what a shelf of any kind costs at least."""

    name = "pickle"
    note = "baseline: dumps and loads alone"
    text_keys = True

    def open(self, directory: Path) -> Any:
        return {}

    def close(self, handle: Any) -> None:
        handle.clear()

    def shelf(self, handle: Any) -> Any:
        return handle

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        dumps = pickle.dumps
        for key, value in items:
            handle[key] = dumps(value)

    def read(self, handle: Any, keys: Iterable[Any]) -> None:
        loads = pickle.loads
        for key in keys:
            loads(handle[key])

    def fetch(self, handle: Any, key: Any) -> Any:
        return pickle.loads(handle[key])
