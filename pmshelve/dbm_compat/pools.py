"""Pools behind the doors for dbm and shelve: one dict as the root, whose class says which door made it.

    root                    door                                 keys     values
    `Bytes`                 `pmshelve.dbm_compat.pmemobj`        bytes    bytes
    `Objects`               `pmshelve.open(backend="pmemobj")`   str      what the pool stores as it is,
                                                                          or the pickle of anything else
    anything else           `pmshelve.pmemobj`                   its user's
    none                    whichever comes first

The class is looked at by its stored name: what the wrong door made is refused before anything of it is
loaded.  Both are dicts like any other to who opens the pool with `pmshelve.pmemobj`.  Their names, this
module's included, are in pool files, and stay.
"""

from __future__ import annotations

import os
import pickle
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any

from pmshelve.errors import (
    CorruptionError,
    FormatError,
    PickleRefusedError,
    UnsupportedTypeError,
    WrongDoorError,
)
from pmshelve.pmemobj.layout import ROOT_OID, TYPE_CODE_SHIFT
from pmshelve.pmemobj.persistent import PersistentDict
from pmshelve.pmemobj.pool import PersistentObjectPool
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN
from pmshelve.pmemobj.superblock import COPY_OFFSETS, MAGIC
from pmshelve.pmemobj.typetable import name_of
from pmshelve.storage import file as storage

__all__ = [
    "Bytes",
    "Objects",
    "PoolStore",
    "face_of",
    "open_store",
    "recognizes",
    "root_type",
    "store_of",
]

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class Bytes(PersistentDict[bytes, bytes]):
    """The content of a dbm database: bytes to bytes."""

    __slots__ = ()


class Objects(PersistentDict[str, Any]):
    """The content of a shelf: str to None, bool, int, float, complex or str, or bytes: a pickle."""

    __slots__ = ()


_ROOTS = {"bytes": Bytes, "native": Objects}
_FACES = {name_of(cls): face for face, cls in _ROOTS.items()}
_DOORS = {
    "bytes": "dbm or shelve.open()",
    "native": 'pmshelve.open(..., backend="pmemobj")',
    "": "pmshelve.pmemobj.open()",
}
_UNPICKLABLE = (pickle.PicklingError, AttributeError, RecursionError, TypeError)
_NATIVE = frozenset({type(None), bool, int, float, complex, str})


class PoolStore:
    """A pool with one dict in it, as the mapping that a `Database` and a `NativeShelf` want.

    Parameters
    ----------
    pool
        The store owns it: closing one closes the other.
    root
        The dict.

    Attributes
    ----------
    reopen
        Opens the pool again after it was closed, for `vacuum`.

    Notes
    -----
    Keys and values are the dict's.  A change outside of a batch is a transaction.
    """

    def __init__(self, pool: PersistentObjectPool, root: Any) -> None:
        self.pool: PersistentObjectPool = pool
        self.root: Any = root
        self.reopen: Callable[[], PersistentObjectPool] | None = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.pool.closed

    def __getitem__(self, key: Any) -> Any:
        return self.root[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.root[key] = value

    def __delitem__(self, key: Any) -> None:
        del self.root[key]

    def __contains__(self, key: object) -> bool:
        return key in self.root

    def __iter__(self) -> Iterator[Any]:
        return iter(self.root)

    def __len__(self) -> int:
        return len(self.root)

    def clear(self) -> None:
        """Remove all keys."""
        self.root.clear()

    def batch(self) -> AbstractContextManager[Any]:
        """Return a context that makes all changes inside of it one; a failing one is undone alone."""
        operation: AbstractContextManager[Any] = self.pool.mm.operation
        return operation

    def vacuum(self) -> None:
        """Free what nothing refers to, and give the file's unused end back, which closing the pool does.

        Other processes may open it in between; then the store ends up closed, with an error that says so.
        """
        self.pool.gc()
        if self.reopen is not None:
            self.pool.close()
            self.pool = self.reopen()
            self.root = self.pool.root

    def sync(self) -> None:
        """Return when everything stored so far is on the disk."""
        self.pool.sync()

    def close(self) -> None:
        """Close the pool."""
        self.pool.close()


class _ObjectStore(PoolStore):
    """A pool with a shelf's objects in it.

    Parameters
    ----------
    protocol
        Of the pickles.
    allow_pickle
        Let reading a value run the unpickler.
    """

    def __init__(
        self, pool: PersistentObjectPool, root: Any, protocol: int | None, allow_pickle: bool
    ) -> None:
        super().__init__(pool, root)
        self._protocol = protocol
        self._loads: Callable[[bytes], Any] = pickle.loads if allow_pickle else self._refuse

    def __getitem__(self, key: Any) -> Any:
        value = self.root[key]
        return self._loads(value) if value.__class__ is bytes else value

    def __setitem__(self, key: Any, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"keys must be str, not {type(key).__name__}")
        if value.__class__ not in _NATIVE:
            try:
                value = pickle.dumps(value, self._protocol)
            except _UNPICKLABLE as error:
                raise UnsupportedTypeError(
                    f"an object of type {type(value).__qualname__} cannot be stored: {error}"
                ) from error
        self.root[str.__str__(key)] = value

    def _refuse(self, _: bytes) -> Any:
        raise PickleRefusedError(
            "the value is a pickle, and the shelf was opened with allow_pickle=False",
            self.pool.filename,
            hint="open it with allow_pickle=True if you trust whoever wrote it",
        )


# Opening --------------------------------------------------------------------------------------


def open_store(
    file: _Path,
    letter: str,
    mode: int,
    *,
    face: str,
    timeout: float | None = 0.0,
    sync: bool = False,
    protocol: int | None = None,
    allow_pickle: bool = True,
) -> PoolStore:
    """Open a pool with one dict in it as the letter of a dbm flag says.

    Parameters
    ----------
    file, mode
        As for `pmshelve.dbm_compat.pmemobj.open`.
    letter
        ``'r'``, ``'w'``, ``'c'`` or ``'n'``.
    face
        ``'bytes'`` or ``'native'``: which door asks.
    timeout
        Seconds to wait for another process that has the pool open.
    sync
        Every commit is on the disk when it returns.
    protocol, allow_pickle
        Of the pickles of face ``'native'``, and whether they may be loaded.

    Raises
    ------
    WrongDoorError
        The pool was made through another door, and is not empty.
    """
    path = os.fsdecode(file)
    if letter == "n":
        _empty(path, mode, timeout)
    elif letter == "c" and _is_empty(path):
        _replace(path, mode)
    elif letter in "rw":
        storage.system.stat(path)  # FileNotFoundError, naming the file as it was named here
    options: dict[str, Any] = {
        "durability": "full" if sync else "lazy",
        "timeout": timeout,
        "allow_pickle": allow_pickle and face == "native",  # bytes need none
    }
    flag: Any = letter if letter in "rw" else "c"
    pool = PersistentObjectPool(path, flag, mode=mode, **options)
    try:
        root = _root_of(pool, face)
    except BaseException:
        pool.close()
        raise
    store = store_of(pool, root, face, protocol=protocol, allow_pickle=allow_pickle)
    store.reopen = partial(PersistentObjectPool, os.path.abspath(path), "w", **options)
    return store


def store_of(
    pool: PersistentObjectPool,
    root: Any,
    face: str,
    *,
    protocol: int | None = None,
    allow_pickle: bool = True,
) -> PoolStore:
    """Return the content of an open pool as its door shows it; arguments as for `open_store`."""
    if face == "native":
        return _ObjectStore(pool, root, protocol, allow_pickle)
    return PoolStore(pool, root)


def _root_of(pool: PersistentObjectPool, face: str) -> Any:
    """Return the dict of a pool, made anew if there is nothing in the pool."""
    name = root_type(pool)
    found = face_of(name)
    if name and not (found and (found == face or not pool.root)):
        what = f"{found} values" if found else f"a {name.rpartition(':')[2]}"
        raise WrongDoorError(f"the pool holds {what}", pool.filename, hint=f"use {_DOORS[found]}")
    if found == face:
        return pool.root
    if pool.readonly:
        return {}  # whoever writes first chooses
    with pool.transaction():
        pool.root = root = pool.new(_ROOTS[face])
    return root


def root_type(pool: PersistentObjectPool) -> str:
    """Return the name of the class of a pool's root, or "", without loading or importing either."""
    mm = pool.mm
    with pool.lock:
        index = (mm.heap.start >> 3) + ROOT_OID
        kind, payload = mm.words[index], mm.words[index + 1]
        if kind != mm.pool_kind:
            root = pool.root  # an immediate value
            return "" if root is None else type(root).__name__
        if not mm.heap.is_block(payload):
            raise CorruptionError("the root is no object", pool.filename, offset=payload)
        code = mm.words[payload >> 3] >> TYPE_CODE_SHIFT
        return mm.types.name(code) if code >= CONTAINER_CODE_MIN else "value"


def face_of(name: str) -> str:
    """Return which door makes roots of the class with this name: ``'bytes'``, ``'native'`` or ``''``."""
    return _FACES.get(name, "")


def recognizes(path: str | bytes) -> bool:
    """Return whether the file begins as a pool does (it may be damaged further on).

    Raises
    ------
    OSError
        It cannot be read.
    """
    fd = storage.system.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        return any(storage.read_at(fd, len(MAGIC), offset) == MAGIC for offset in COPY_OFFSETS)
    finally:
        storage.system.close(fd)


def _is_empty(path: str) -> bool:
    """Whether there is a file with nothing in it, as `tempfile` makes them."""
    try:
        found = storage.system.stat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and not found.st_size


def _empty(path: str, mode: int, timeout: float | None) -> None:
    """Make the file at `path` a pool without a root, whatever it was."""
    try:
        with PersistentObjectPool(path, "w", durability="lazy", timeout=timeout) as pool:
            pool.root = None
    except FileNotFoundError:
        pass  # the caller makes it
    except FormatError:
        target = os.path.realpath(path)
        if not stat.S_ISREG(storage.system.stat(target).st_mode):
            raise  # never rename over a device
        _replace(target, mode)


def _replace(path: str, mode: int) -> None:
    """Put a new pool in the place of a file that is none."""
    target = os.path.realpath(path)
    scratch = f"{target}.{secrets.token_hex(8)}.tmp"
    try:
        PersistentObjectPool(scratch, "x", mode=mode).close()
        storage.replace(scratch, target)
    except BaseException:
        with suppress(OSError):
            storage.unlink(scratch)
        raise
    storage.sync_directory(target)
