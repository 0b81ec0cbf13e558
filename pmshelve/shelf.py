"""`pmshelve.open`: the standard library's `shelve.open`, over our stores.

Two classes, because a file's values are of one of two kinds, and the file says which:

* `NativeShelf`: values are kept as the store keeps them.  In an mmapdict, arrays come back mapped, copy
  on write, so that changing one never changes the shelf (a shelf hands out copies) and nothing is read
  that is not looked at; a pool keeps numbers and text as they are and anything else as a pickle.  All of
  this module's files are of this kind, unless a serializer is given.
* `ClassicShelf`: values are bytes that a serializer made, as in every other shelf.  It serves files
  made by `shelve.open` through `pmshelve.dbm_compat`, and is CPython 3.15's `shelve.Shelf` on
  every Python.
"""

from __future__ import annotations

import os
import pickle
import shelve
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, overload

from pmshelve.dbm_compat import mmapdict as mmapdict_door
from pmshelve.dbm_compat.database import Database
from pmshelve.dbm_compat.mmapdict import parse_flag
from pmshelve.errors import NotAStoreError, PickleRefusedError, WrongDoorError

if TYPE_CHECKING:
    from dbm import _TFlags

    from _typeshed import SupportsKeysAndGetItem
    from typing_extensions import Self

    from pmshelve.dbm_compat.pools import PoolStore
    from pmshelve.mmapdict import mmapdict

    Base = shelve.Shelf[Any]
    _Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    _MmapMode = Literal["r+", "r", "c"]
else:
    Base = shelve.Shelf

__all__ = ["BaseShelf", "ClassicShelf", "NativeShelf", "ShelveError", "open"]

_Serializer = Callable[[Any, int], Any]
_Deserializer = Callable[[bytes], Any]
_T = TypeVar("_T")

if TYPE_CHECKING or not hasattr(shelve, "ShelveError"):

    class ShelveError(Exception):
        """Only one of serializer and deserializer was given."""

else:  # pragma: no cover - CPython 3.15
    ShelveError = shelve.ShelveError


@overload
def open(
    filename: _Path,
    flag: _TFlags = "c",
    protocol: int | None = None,
    writeback: bool = False,
    *,
    backend: Literal["mmapdict"] = "mmapdict",
    serializer: None = None,
    deserializer: None = None,
    mode: int = 0o666,
    timeout: float | None = 60.0,
    exclusive: bool = False,
    sync: bool = False,
    mmap_mode: _MmapMode | None = "c",
    allow_pickle: bool = True,
) -> BaseShelf: ...
@overload
def open(
    filename: _Path,
    flag: _TFlags = "c",
    protocol: int | None = None,
    writeback: bool = False,
    *,
    backend: Literal["mmapdict"] = "mmapdict",
    serializer: _Serializer,
    deserializer: _Deserializer,
    mode: int = 0o666,
    timeout: float | None = 60.0,
    exclusive: bool = False,
    sync: bool = False,
    mmap_mode: _MmapMode | None = "c",
    allow_pickle: bool = True,
) -> ClassicShelf: ...
@overload
def open(
    filename: _Path,
    flag: _TFlags = "c",
    protocol: int | None = None,
    writeback: bool = False,
    *,
    backend: Literal["pmemobj"],
    serializer: None = None,
    deserializer: None = None,
    mode: int = 0o666,
    timeout: float | None = 60.0,
    sync: bool = False,
    allow_pickle: bool = True,
) -> BaseShelf: ...
@overload
def open(
    filename: _Path,
    flag: _TFlags = "c",
    protocol: int | None = None,
    writeback: bool = False,
    *,
    backend: Literal["pmemobj"],
    serializer: _Serializer,
    deserializer: _Deserializer,
    mode: int = 0o666,
    timeout: float | None = 60.0,
    sync: bool = False,
    allow_pickle: bool = True,
) -> ClassicShelf: ...
def open(
    filename: _Path,
    flag: str = "c",
    protocol: int | None = None,
    writeback: bool = False,
    *,
    backend: str = "mmapdict",
    serializer: _Serializer | None = None,
    deserializer: _Deserializer | None = None,
    mode: int = 0o666,
    timeout: float | None = 60.0,
    exclusive: bool = False,
    sync: bool = False,
    mmap_mode: str | None = "c",
    allow_pickle: bool = True,
) -> BaseShelf:
    """Open a shelf: a persistent dict with str keys and values of any kind that pickle takes.

    Parameters
    ----------
    filename
        The file's name; nothing is added to it.
    flag
        ``'r'`` existing, read only; ``'w'`` existing; ``'c'`` create if missing (default); ``'n'``
        always empty.  A following ``'s'`` means `sync`.
    protocol
        Of the pickles, where values are pickled by a `ClassicShelf`.
    writeback
        Remember every value that is used and store it again in `sync` and `close`.
    backend
        The store: ``'mmapdict'`` (default), for values of any size and any number of processes; or
        ``'pmemobj'``, a pool: for many small values that change, one process at a time.
    serializer, deserializer
        Both or none: ``serializer(value, protocol)`` returns what is kept, as bytes, str or anything
        with the buffer interface; ``deserializer(data)`` turns the bytes into the value again.
    mode
        Permissions of a file that is created, subject to the umask.
    timeout, exclusive, sync, allow_pickle
        As for `pmshelve.mmapdict.mmapdict`.  A pool is always exclusive to the process that writes.
    mmap_mode
        How arrays and other large buffers come back: ``'c'`` (default) mapped, and changes stay in
        memory; ``'r'`` mapped and read-only; ``'r+'`` mapped, and changes go to the file; None
        loaded into memory.  Of an mmapdict only.

    Raises
    ------
    FileNotFoundError
        The file is missing and `flag` does not create it.
    NotAStoreError, CorruptionError
        The file is no store, or damaged; it is left as it was.
    WrongDoorError
        A serializer was given for a file of native values; or the file is of the other `backend`, or a
        pool that was not made here.
    ShelveError
        Only one of serializer and deserializer was given.
    LockTimeoutError, OSError, ValueError

    Notes
    -----
    A file made by `shelve.open` through our dbm modules is served as well, as a `ClassicShelf`. An
    ordinary pickled dict is converted, unless `flag` is ``'r'``.  Space of replaced values is given
    back by itself when it exceeds what is in use.  Any number of processes may have the shelf open
    and change it; see `mmapdict` for threads, forks and what survives a crash.
    """
    letter, synced = parse_flag(flag)
    _check_pair(serializer, deserializer)
    options: dict[str, Any] = {
        "timeout": timeout,
        "sync": sync or synced,
        "allow_pickle": allow_pickle,
    }
    if backend == "mmapdict":
        options.update(exclusive=exclusive, mmap_mode=mmap_mode)
    elif backend != "pmemobj":
        raise ValueError(f"no backend {backend!r}; there is 'mmapdict' and 'pmemobj'")
    elif mmap_mode != "c":
        raise ValueError(
            f"mmap_mode={mmap_mode!r} is not for backend 'pmemobj', which maps no values"
        )
    else:
        options.update(protocol=protocol)
    store: Any
    if serializer is None:
        try:
            store = _open_store(backend, filename, letter, mode, face="native", **options)
            return NativeShelf(store, protocol, writeback)
        except (
            WrongDoorError
        ):  # a dbm's; else the opening below is refused too, for the same reason
            if not allow_pickle:
                deserializer = _refuse_pickle
    store = _open_store(backend, filename, letter, mode, face="bytes", **options)
    return ClassicShelf(
        Database(store, readonly=letter == "r", bytes_keys=backend == "pmemobj"),
        protocol,
        writeback,
        serializer=serializer or pickle.dumps,
        deserializer=deserializer or pickle.loads,
    )


def _open_store(backend: str, filename: _Path, *arguments: Any, face: str, **options: Any) -> Any:
    """Open a file as the store that `backend` names."""
    try:
        if backend == "mmapdict":
            if face == "bytes":
                options["convert"] = False
            return mmapdict_door.open_store(filename, *arguments, face=face, **options)
        from pmshelve.dbm_compat import pools

        return pools.open_store(filename, *arguments, face=face, **options)
    except NotAStoreError as error:
        from pmshelve.dbm_compat import pools

        others = {"mmapdict": pools.recognizes, "pmemobj": mmapdict_door.recognizes}
        other = "pmemobj" if backend == "mmapdict" else "mmapdict"
        if others[backend](os.fspath(filename)):
            raise WrongDoorError(
                f"not a file of backend {backend!r}",
                filename,
                hint=f"open it with backend={other!r}",
            ) from error
        raise


class BaseShelf(Base):
    """What both kinds of shelf do in one batch, or better than `shelve.Shelf` of older Pythons."""

    dict: Any
    cache: Any
    writeback: bool
    keyencoding: str
    _protocol: int

    _put: Callable[[str, Any], None]
    """Stores one value without remembering it."""

    def __setitem__(self, key: str, value: Any) -> None:
        self._put(key, value)
        if self.writeback:
            self.cache[key] = value

    @overload
    def update(self, pairs: SupportsKeysAndGetItem[str, Any], /, **others: Any) -> None: ...
    @overload
    def update(self, pairs: Iterable[tuple[str, Any]], /, **others: Any) -> None: ...
    @overload
    def update(self, /, **others: Any) -> None: ...
    def update(self, /, *pairs: Any, **others: Any) -> None:
        """Store all pairs, given as `dict.update` takes them, in one batch."""
        with self.batch():
            super().update(*pairs, **others)

    def clear(self) -> None:
        """Remove all keys."""
        self.dict.clear()
        self.cache.clear()

    @contextmanager
    def batch(self) -> Iterator[Self]:
        """Make all changes inside the `with` block one: all or nothing, at any instant.

        Notes
        -----
        If the block raises, nothing is changed (but values remembered because of `writeback`, and
        changed in place, stay as they are).
        """
        cache = self.cache.copy()
        try:
            with self._atomic():
                yield self
        except BaseException:
            self.cache = cache
            raise

    def reorganize(self) -> None:
        """Sync, then give back the space of replaced and deleted values, if the store can."""
        self.sync()
        self._compact()

    def _compact(self) -> None:
        raise NotImplementedError

    def _atomic(self) -> AbstractContextManager[Any]:
        batch = getattr(self.dict, "batch", nullcontext)
        context: AbstractContextManager[Any] = batch()
        return context

    def sync(self) -> None:
        """Store the remembered values again and forget them; return when all is on the disk."""
        if self.writeback and self.cache:
            with self._atomic():
                for key, value in self.cache.items():
                    self._put(key, value)
            self.cache = {}
        if hasattr(self.dict, "sync"):
            self.dict.sync()

    def close(self) -> None:
        """Sync and close; every later use but `close` raises ValueError."""
        store = self.dict
        try:
            super().close()
        finally:  # shelve's own leaves the store open if its sync fails, and tries again at `del`
            self.cache = {}
            if hasattr(store, "close"):
                store.close()


class NativeShelf(BaseShelf):
    """A shelf that keeps values as the store keeps them.

    Parameters
    ----------
    store
        Where they are kept.  The shelf owns it: closing one closes the other.
    protocol
        Kept for programs that look at it; the store has its own way to write values.
    writeback
        As for `open`.
    """

    def __init__(
        self,
        store: mmapdict[Any] | PoolStore,
        protocol: int | None = None,
        writeback: bool = False,
    ) -> None:
        super().__init__(store, protocol, writeback)  # type: ignore[arg-type]
        # Bound once, because every key goes through one of them.
        self._get: Callable[[str], Any] = store.__getitem__
        self._put: Callable[[str, Any], None] = store.__setitem__

    def __getitem__(self, key: str) -> Any:
        if self.writeback or self.cache:
            return self._remember(key)
        return self._get(key)

    def _remember(self, key: str) -> Any:
        try:
            return self.cache[key]
        except KeyError:
            value = self._get(key)
        if self.writeback:
            self.cache[key] = value
        return value

    def __delitem__(self, key: str) -> None:
        del self.dict[key]
        self.cache.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self.dict

    def __iter__(self) -> Iterator[str]:
        return iter(self.dict)

    @overload
    def get(self, key: str, default: None = None) -> Any | None: ...
    @overload
    def get(self, key: str, default: _T) -> Any | _T: ...
    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default` if there is none."""
        try:
            return self[key]
        except KeyError:
            if key in self.dict:  # then it came out of the value's own code
                raise
            return default

    def _compact(self) -> None:
        self.dict.vacuum()

    def close(self) -> None:
        """Sync and close; every later use but `close` raises ValueError."""
        try:
            super().close()
        finally:  # from here on they raise, as all else of the closed shelf does
            self._get, self._put = self.dict.__getitem__, self.dict.__setitem__


class ClassicShelf(BaseShelf):
    """A shelf over any mapping of bytes keys to bytes values: `shelve.Shelf` of CPython 3.15.

    Parameters
    ----------
    dict
        The mapping.  Its `batch`, `sync`, `reorganize` and `close` are used if it has them.
    protocol, writeback, serializer, deserializer
        As for `open`.
    keyencoding
        How str keys become bytes.
    """

    def __init__(
        self,
        dict: Any,  # noqa: A002 - its name in shelve.Shelf
        protocol: int | None = None,
        writeback: bool = False,
        keyencoding: str = "utf-8",
        *,
        serializer: _Serializer | None = None,
        deserializer: _Deserializer | None = None,
    ) -> None:
        _check_pair(serializer, deserializer)
        super().__init__(dict, protocol, writeback, keyencoding)
        self.serializer: _Serializer = serializer or pickle.dumps
        self.deserializer: _Deserializer = deserializer or pickle.loads

    def __getitem__(self, key: str) -> Any:
        try:
            return self.cache[key]
        except KeyError:
            value = self.deserializer(self.dict[key.encode(self.keyencoding)])
        if self.writeback:
            self.cache[key] = value
        return value

    def _put(self, key: str, value: Any) -> None:
        data = self.serializer(value, self._protocol)
        self.dict[key.encode(self.keyencoding)] = data

    def _compact(self) -> None:
        if hasattr(self.dict, "reorganize"):
            self.dict.reorganize()


def _check_pair(serializer: object, deserializer: object) -> None:
    if (serializer is None) != (deserializer is None):
        raise ShelveError("serializer and deserializer must be given together")


def _refuse_pickle(_: bytes) -> NoReturn:
    raise PickleRefusedError(
        "the value is a pickle, and this shelf was opened with allow_pickle=False",
        hint="open it with allow_pickle=True if you trust whoever wrote it",
    )
