"""Who is measured beside `pmshelve.pmemobj`: stores of small values that change in place.

Each engine has a dict (str keys) and, where it knows such a thing, a list.  As elsewhere, loops are the
engine's own; each operation is a transaction of its own unless a loop's name says otherwise.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from benchmarks.engines import Engine, Item, call, register

__all__ = ["PoolEngine"]

POOL_SIZE = 1 << 30
LMDB_SIZE = 1 << 34


class PoolEngine(Engine):
    """A store of values under str keys, and in a list.

    Attributes
    ----------
    has_list
        Whether the list's loops can be run.
    has_insert
        Whether one may insert in the middle of the list.
    environment
        What is set in the environment of the processes that run the engine.
    """

    text_keys = True
    has_list: ClassVar[bool] = True
    has_insert: ClassVar[bool] = True
    environment: ClassVar[Mapping[str, str]] = {}

    def open(self, directory: Path) -> Any:
        """Open the store in `directory`; make it, with an empty dict and list, if it is not there."""
        raise NotImplementedError

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        target = handle.dict
        for key, value in items:
            target[key] = value

    def read(self, handle: Any, keys: Iterable[Any]) -> None:
        source = handle.dict
        for key in keys:
            source[key]

    def fetch(self, handle: Any, key: Any) -> Any:
        return handle.dict.get(key)

    def append(self, handle: Any, values: Iterable[Any]) -> None:
        """Append each value to the list."""
        append = handle.list.append
        for value in values:
            append(value)

    def extend(self, handle: Any, values: Any) -> None:
        """Append all values in one transaction."""
        handle.list.extend(values)

    def item(self, handle: Any, places: Iterable[int]) -> None:
        """Get the list's value at each place."""
        source = handle.list
        for place in places:
            source[place]

    def insert(self, handle: Any, values: Iterable[Any]) -> None:
        """Insert each value at the list's beginning."""
        insert = handle.list.insert
        for value in values:
            insert(0, value)

    def length(self, handle: Any) -> int:
        """Return how long the list is."""
        return len(handle.list)

    def build_objects(self, handle: Any, count: int) -> None:
        """Store about `count` objects: lists of 99 different texts of 20 characters each."""
        raise NotImplementedError

    def change_one(self, handle: Any) -> None:
        """Make one small change."""
        self.fill(handle, [("changed", 1)])

    def collect(self, handle: Any) -> None:
        """Free what cannot be reached, looking at everything."""
        raise NotImplementedError

    def used(self, handle: Any, directory: Path) -> int:
        """Return the bytes that the store's content takes, the store being open."""
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def texts(number: int) -> list[str]:
    """Return what one of the lists of `build_objects` holds."""
    return [f"{number:010d}{place:010d}" for place in range(99)]


# Ours -----------------------------------------------------------------------------------------


class _OursBase(PoolEngine):
    ours = True
    modules = ("pmshelve.pmemobj.pool", "pmshelve.pmemobj.persistent")
    durability: ClassVar[str] = "lazy"

    def open(self, directory: Path) -> Any:
        from pmshelve import pmemobj

        pool = pmemobj.PersistentObjectPool(
            directory / "store.pool", "c", durability=self.durability
        )
        if pool.root is None:
            with pool.transaction():
                pool.root = pool.new(pmemobj.PersistentDict)
                pool.root["dict"] = pool.new(pmemobj.PersistentDict)
                pool.root["list"] = pool.new(pmemobj.PersistentList)
        return SimpleNamespace(pool=pool, dict=pool.root["dict"], list=pool.root["list"])

    def close(self, handle: Any) -> None:
        handle.pool.close()

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        with handle.pool.transaction():
            self.fill(handle, items)

    def build_objects(self, handle: Any, count: int) -> None:
        from pmshelve.pmemobj import PersistentList

        pool, target = handle.pool, handle.list
        for first in range(0, count // 100, 100):
            with pool.transaction():
                for number in range(first, min(first + 100, count // 100)):
                    target.append(pool.new(PersistentList, texts(number)))

    def collect(self, handle: Any) -> None:
        handle.pool.gc()

    def used(self, handle: Any, directory: Path) -> int:
        """Count the pages in use; the file may have more, and has a journal."""
        pages = handle.pool.stats().pages
        return 4096 * (sum(pages.values()) - pages.get("free", 0))


@register
class Pool(_OursBase):
    """`pmshelve.pmemobj`; a killed process loses nothing, a power cut the last commits."""

    name = "pmshelve-pool"
    note = "durability lazy"


@register
class PoolFull(_OursBase):
    """`pmshelve.pmemobj` with its default: each commit is on the disk."""

    name = "pmshelve-pool-full"
    note = "each commit on the disk"
    durability = "full"


# Peers ----------------------------------------------------------------------------------------


_SLOW = ("pool-dict", "pool-list", "pool-transaction", "pool-space")


@register
class Pynvm(PoolEngine):
    """pynvm over libpmemobj, told that the file is persistent memory: nothing is flushed to the disk."""

    name = "pynvm"
    note = "its flushes off; 20,000 keys, a list of 2,000"
    environment: ClassVar[Mapping[str, str]] = {"PMEM_IS_PMEM_FORCE": "1"}
    limits: ClassVar[Mapping[str, int]] = {
        **dict.fromkeys(_SLOW, 20_000),
        "pool-list": 2_000,  # extending by 200,000 in one transaction ends the process
        "pool-million": 10_000,
    }

    def prepare(self) -> None:
        os.environ.update(self.environment)  # libpmem looks once, when it is loaded
        importlib.import_module("nvm.pmemobj")

    def open(self, directory: Path) -> Any:
        path = directory / "store.pynvm"
        nvm: Any = importlib.import_module("nvm.pmemobj")
        if path.exists():
            pool = nvm.open(str(path))
        else:
            pool = nvm.create(str(path), POOL_SIZE)
            pool.root = pool.new(nvm.PersistentDict)
            pool.root["dict"] = pool.new(nvm.PersistentDict)
            pool.root["list"] = pool.new(nvm.PersistentList)
        return SimpleNamespace(pool=pool, dict=pool.root["dict"], list=pool.root["list"])

    def close(self, handle: Any) -> None:
        handle.dict = handle.list = None
        handle.pool.close()

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        with handle.pool.transaction():
            self.fill(handle, items)

    def extend(self, handle: Any, values: Any) -> None:
        with handle.pool.transaction():
            handle.list.extend(values)

    def build_objects(self, handle: Any, count: int) -> None:
        nvm: Any = importlib.import_module("nvm.pmemobj")
        for number in range(count // 100):
            with handle.pool.transaction():
                handle.list.append(handle.pool.new(nvm.PersistentList, texts(number)))

    def collect(self, handle: Any) -> None:
        handle.pool.gc()

    def used(self, handle: Any, directory: Path) -> int:
        """Add up all blocks, each with libpmemobj's header of 16 bytes."""
        binding: Any = importlib.import_module("_pmem")
        library = ctypes.CDLL("libpmemobj.so.1")

        class Oid(ctypes.Structure):
            _fields_ = (("pool", ctypes.c_uint64), ("offset", ctypes.c_uint64))

        size_of = library.pmemobj_alloc_usable_size
        size_of.restype, size_of.argtypes = ctypes.c_size_t, [Oid]
        total = 0
        oid = binding.lib.pmemobj_first(handle.pool.mm._pool_ptr)  # noqa: SLF001 - it offers no other way
        while oid.off:
            total += size_of(Oid(oid.pool_uuid_lo, oid.off)) + 16
            oid = binding.lib.pmemobj_next(oid)
        return total


@register
class PynvmSynced(Pynvm):
    """pynvm as it comes: each flush is an msync."""

    name = "pynvm-sync"
    note = "each commit on the disk"
    environment: ClassVar[Mapping[str, str]] = {"PMEM_IS_PMEM_FORCE": "0"}


@register
class Zodb(PoolEngine):
    """ZODB over a FileStorage: an OOBTree and a PersistentList; its fsync taken out."""

    name = "zodb"
    note = "FileStorage, its fsync taken out; as pynvm"
    modules = ("ZODB.FileStorage.FileStorage", "BTrees.OOBTree", "persistent.list", "transaction")
    limits: ClassVar[Mapping[str, int]] = {
        **dict.fromkeys(_SLOW, 20_000),
        "pool-list": 2_000,  # it writes the whole list at each commit
        "pool-churn": 20_000,
    }
    synced: ClassVar[bool] = False

    def open(self, directory: Path) -> Any:
        module: Any = importlib.import_module("ZODB.FileStorage.FileStorage")
        module.fsync = os.fsync if self.synced else None
        storage = call(module.__name__, "FileStorage", str(directory / "store.zodb"))
        database = call("ZODB", "DB", storage, cache_size=10_000_000)
        connection = database.open()
        root = connection.root()
        handle = SimpleNamespace(
            database=database, connection=connection, commit=connection.transaction_manager.commit
        )
        if "dict" not in root:
            root["dict"] = call("BTrees.OOBTree", "OOBTree")
            root["list"] = call("persistent.list", "PersistentList")
            handle.commit()
        handle.dict, handle.list = root["dict"], root["list"]
        return handle

    def close(self, handle: Any) -> None:
        handle.connection.close()
        handle.database.close()

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        super().fill(handle, items)
        handle.commit()

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        target, commit = handle.dict, handle.commit
        for key, value in items:
            target[key] = value
            commit()

    def append(self, handle: Any, values: Iterable[Any]) -> None:
        append, commit = handle.list.append, handle.commit
        for value in values:
            append(value)
            commit()

    def extend(self, handle: Any, values: Any) -> None:
        handle.list.extend(values)
        handle.commit()

    def insert(self, handle: Any, values: Iterable[Any]) -> None:
        insert, commit = handle.list.insert, handle.commit
        for value in values:
            insert(0, value)
            commit()

    def build_objects(self, handle: Any, count: int) -> None:
        for number in range(count // 100):
            handle.dict[f"list {number}"] = call("persistent.list", "PersistentList", texts(number))
            if number % 100 == 99:
                handle.commit()
        handle.commit()

    def collect(self, handle: Any) -> None:
        handle.database.pack()


@register
class ZodbSynced(Zodb):
    """ZODB as it comes: each commit is an fsync."""

    name = "zodb-sync"
    note = "each commit on the disk"
    synced = True


class _SqliteList:
    """A table of positions and values, as much of a list as the loops need."""

    def __init__(self, execute: Any) -> None:
        self._execute = execute

    def __len__(self) -> int:
        return int(self._execute("SELECT COUNT(*) FROM list").fetchone()[0])

    def __getitem__(self, place: int) -> Any:
        found = self._execute("SELECT value FROM list WHERE place = ?", (place + 1,)).fetchone()
        return found[0]

    def append(self, value: Any) -> None:
        self._execute("INSERT INTO list (value) VALUES (?)", (value,))


class _SqliteDict:
    def __init__(self, execute: Any) -> None:
        self._execute = execute

    def __getitem__(self, key: str) -> Any:
        found = self._execute("SELECT value FROM dict WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise KeyError(key)
        return found[0]

    def get(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            return None

    def __setitem__(self, key: str, value: Any) -> None:
        self._execute("REPLACE INTO dict (key, value) VALUES (?, ?)", (key, value))


@register
class SqlitePool(PoolEngine):
    """sqlite3: a table for the dict, one for the list."""

    name = "sqlite3"
    note = "WAL, synchronous=OFF"
    modules = ("sqlite3",)
    has_insert = False
    synchronous: ClassVar[str] = "OFF"

    def open(self, directory: Path) -> Any:
        connection = call("sqlite3", "connect", directory / "store.sqlite", isolation_level=None)
        execute = connection.execute
        execute("PRAGMA journal_mode = wal")
        execute(f"PRAGMA synchronous = {self.synchronous}")
        execute("CREATE TABLE IF NOT EXISTS dict (key TEXT PRIMARY KEY, value) WITHOUT ROWID")
        execute("CREATE TABLE IF NOT EXISTS list (place INTEGER PRIMARY KEY, value)")
        return SimpleNamespace(
            connection=connection, dict=_SqliteDict(execute), list=_SqliteList(execute)
        )

    def close(self, handle: Any) -> None:
        handle.connection.close()

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        handle.connection.execute("BEGIN")
        self.fill(handle, items)
        handle.connection.execute("COMMIT")

    def extend(self, handle: Any, values: Any) -> None:
        execute = handle.connection.execute
        execute("BEGIN")
        rows = ((value,) for value in values)
        handle.connection.executemany("INSERT INTO list (value) VALUES (?)", rows)
        execute("COMMIT")

    def build_objects(self, handle: Any, count: int) -> None:
        self.extend(handle, (text for number in range(count // 100) for text in texts(number)))

    def used(self, handle: Any, directory: Path) -> int:
        handle.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return super().used(handle, directory)


@register
class SqlitePoolSynced(SqlitePool):
    """sqlite3 with durable commits."""

    name = "sqlite3-full"
    note = "WAL, synchronous=FULL"
    synchronous = "FULL"


_PLACE = struct.Struct(">Q")


@register
class LmdbPool(PoolEngine):
    """LMDB: bytes to bytes; a number has eight of them."""

    name = "lmdb-dict"
    note = "bytes only, not synced"
    modules = ("lmdb",)
    has_insert = False
    options: ClassVar[Mapping[str, Any]] = {"sync": False, "metasync": False}

    def open(self, directory: Path) -> Any:
        path = str(directory / "store.lmdb")
        environment = call(
            "lmdb", "open", path, map_size=LMDB_SIZE, subdir=False, max_dbs=2, **self.options
        )
        dict_, list_ = (environment.open_db(name) for name in (b"dict", b"list"))
        return SimpleNamespace(environment=environment, dict=dict_, list=list_)

    def close(self, handle: Any) -> None:
        handle.environment.close()

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        begin, target = handle.environment.begin, handle.dict
        for key, value in items:
            with begin(write=True) as transaction:
                transaction.put(key.encode(), _as_bytes(value), db=target)

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        with handle.environment.begin(write=True, db=handle.dict) as transaction:
            for key, value in items:
                transaction.put(key.encode(), _as_bytes(value))

    def read(self, handle: Any, keys: Iterable[Any]) -> None:
        begin, source = handle.environment.begin, handle.dict
        for key in keys:
            with begin() as transaction:
                transaction.get(key.encode(), db=source)

    def fetch(self, handle: Any, key: Any) -> Any:
        with handle.environment.begin(db=handle.dict) as transaction:
            value = transaction.get(key.encode())
            if value is None:
                return None
            return _PLACE.unpack(value)[0] if len(value) == 8 else value.decode()

    def append(self, handle: Any, values: Iterable[Any]) -> None:
        begin, target = handle.environment.begin, handle.list
        place = self.length(handle)
        for value in values:
            with begin(write=True) as transaction:
                transaction.put(_PLACE.pack(place), _as_bytes(value), db=target, append=True)
            place += 1

    def extend(self, handle: Any, values: Any) -> None:
        place = self.length(handle)
        with handle.environment.begin(write=True, db=handle.list) as transaction:
            for value in values:
                transaction.put(_PLACE.pack(place), _as_bytes(value), append=True)
                place += 1

    def item(self, handle: Any, places: Iterable[int]) -> None:
        begin, source = handle.environment.begin, handle.list
        for place in places:
            with begin() as transaction:
                transaction.get(_PLACE.pack(place), db=source)

    def length(self, handle: Any) -> int:
        with handle.environment.begin() as transaction:
            return int(transaction.stat(handle.list)["entries"])

    def build_objects(self, handle: Any, count: int) -> None:
        self.extend(handle, (text for number in range(count // 100) for text in texts(number)))

    def used(self, handle: Any, directory: Path) -> int:
        """Count the pages in use; the file is as long as it ever was."""
        with handle.environment.begin() as transaction:
            stats = [transaction.stat(db) for db in (handle.dict, handle.list)]
        return sum(
            stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
            for stat in stats
        )


@register
class LmdbPoolSynced(LmdbPool):
    """LMDB with its default, durable commits."""

    name = "lmdb-dict-sync"
    note = "each commit on the disk"
    options: ClassVar[Mapping[str, Any]] = {}


def _as_bytes(value: int | str) -> bytes:
    return _PLACE.pack(value) if isinstance(value, int) else value.encode()
