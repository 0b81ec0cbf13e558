"""A dbm object over any mapping of str or bytes keys: bytes go in, bytes come out.

A key's *name* is what the mapping below calls it.  Where that has str keys, a name is the str whose UTF-8
form the key is; bytes that are not UTF-8 become lone surrogates (`surrogateescape`), which no UTF-8 text
holds, so the two never meet.  Where it has bytes keys, a name is the key.  Values are kept as bytes.

Behaviour is that of the standard library's `dbm.dumb`, in exception types and messages too, with
`firstkey`, `nextkey` and `reorganize` of `dbm.gnu` beside it.  As there, `error` is `OSError`
itself, so one clause catches what the system reports (a missing file, a full disk) and what the
database does; errors of pmshelve that are no `OSError` are raised as one, the original as cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, ValuesView
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, overload

from pmshelve.errors import ClosedError, PmshelveError

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem
    from typing_extensions import Buffer, Self

    _Data = str | Buffer
    _T = TypeVar("_T")
    _Key = TypeVar("_Key", str, bytes)

__all__ = ["Database", "error", "raise_as_dbm_error"]

error = OSError
"""What goes wrong is one of these, in every dbm module of ours."""

_CLOSED = "DBM object has already been closed"
_READ_ONLY = "The database is opened for reading only"
_BAD_KEY = "keys must be bytes or strings"
_BAD_VALUE = "values must be bytes or strings"


class _Store(Protocol):
    """What a `Database` asks of the mapping below it."""

    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __delitem__(self, key: Any, /) -> None: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def clear(self) -> None: ...
    def batch(self) -> AbstractContextManager[Any]: ...
    def vacuum(self) -> object: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class Database(MutableMapping[bytes, bytes]):
    """An open database, as `open` of a dbm module returns it.

    Parameters
    ----------
    store
        Where keys and values are kept.  The database owns it: closing one closes the other.
    readonly
        Refuse every change, as a database opened with flag ``'r'`` does.
    bytes_keys
        Whether the store's keys are bytes, not str.

    Notes
    -----
    Keys and values may be str (encoded as UTF-8), bytes, or anything with the buffer interface;
    what comes back is bytes.  A call costs one call of the store and about 0.1 µs.  As safe from
    threads, processes and crashes as the store is.
    """

    def __init__(self, store: _Store, *, readonly: bool = False, bytes_keys: bool = False) -> None:
        self._store: _Store | None = store
        self._readonly = readonly
        # What `_lookup` would do for keys of this class, written out where it is done most.
        self._decoded = None if bytes_keys else bytes
        self._name: Callable[[Any], Any] = _same if bytes_keys else _name
        self._encode: Callable[[Any], bytes] = bytes if bytes_keys else _encode
        # Bound once, because every key goes through one of them.
        self._get: Callable[[Any], Any] = store.__getitem__
        self._set: Callable[[Any, bytes], None] = store.__setitem__
        self._delete: Callable[[Any], None] = store.__delitem__
        self._has: Callable[[Any], bool] = store.__contains__
        self._walk: tuple[list[Any], int] = ([], 0)

    # One key --------------------------------------------------------------------------------

    def __getitem__(self, key: _Data) -> bytes:
        try:
            name = key.decode() if key.__class__ is self._decoded else self._lookup(key)
        except UnicodeDecodeError:
            name = _decode(key)
        try:
            value = self._get(name)
        except KeyError:
            raise KeyError(self._encode(name)) from None
        except PmshelveError as problem:
            raise_as_dbm_error(problem)
        if value.__class__ is bytes:
            return value
        raise error(
            f"the value of {self._encode(name)!r} is not bytes but {type(value).__name__}; "
            "open the file with pmshelve.open"
        )

    def __setitem__(self, key: _Data, value: _Data) -> None:
        if self._readonly:
            raise error(_READ_ONLY)
        try:
            name = key.decode() if key.__class__ is self._decoded else self._name(key)
        except UnicodeDecodeError:
            name = _decode(key)
        if value.__class__ is not bytes:
            value = _to_bytes(value, _BAD_VALUE)
        try:
            self._set(name, value)
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    def __delitem__(self, key: _Data) -> None:
        if self._readonly:
            raise error(_READ_ONLY)
        try:
            name = key.decode() if key.__class__ is self._decoded else self._lookup(key)
        except UnicodeDecodeError:
            name = _decode(key)
        try:
            self._delete(name)
        except KeyError:
            raise KeyError(self._encode(name)) from None
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    def __contains__(self, key: object) -> bool:
        try:
            name = key.decode() if key.__class__ is self._decoded else self._lookup(key)
        except UnicodeDecodeError:
            name = _decode(key)
        except KeyError:
            return False
        try:
            return self._has(name)
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    if TYPE_CHECKING:  # `MutableMapping` does it; any key that is taken elsewhere is taken here

        @overload
        def get(self, key: _Data, default: None = None) -> bytes | None: ...
        @overload
        def get(self, key: _Data, default: _T) -> bytes | _T: ...
        def get(self, key: Any, default: Any = None) -> Any:
            """Return the value of `key`, or `default`."""

        @overload
        def pop(self, key: _Data) -> bytes: ...
        @overload
        def pop(self, key: _Data, default: _T) -> bytes | _T: ...
        def pop(self, key: Any, default: Any = None) -> Any:
            """Delete `key` and return its value, or `default`."""

        def setdefault(self, key: _Data, default: _T) -> bytes | _T:
            """Return the value of `key`, which is set to `default` if it does not exist."""

    def _lookup(self, key: Any) -> Any:
        """Return the store's name for `key`; as in `dbm.dumb`, what cannot be a key is missing."""
        try:
            return self._name(key)
        except TypeError:
            self._open_store()
            hash(key)
            raise KeyError(key) from None

    # All keys -------------------------------------------------------------------------------

    def __len__(self) -> int:
        store = self._open_store()
        try:
            return len(store)
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    def keys(self) -> list[bytes]:  # type: ignore[override]
        """Return all keys as a list."""
        return [self._encode(name) for name in self._names()]

    def iterkeys(self) -> Iterator[bytes]:
        """Return an iterator over the keys as they are now."""
        return map(self._encode, self._names())

    __iter__ = iterkeys

    def items(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        """Return all pairs of key and value as a list."""
        pairs: Iterator[tuple[bytes, Any]] = ((key, self.get(key)) for key in self.iterkeys())
        return [pair for pair in pairs if pair[1] is not None]  # None: deleted in between

    def values(self) -> ValuesView[bytes]:
        """Return a view of the values."""
        self._open_store()
        return super().values()

    def firstkey(self) -> bytes | None:
        """Return the first key in the database's own order, or None if it is empty."""
        self._walk = (self._names(), 0)
        return self._key_at(*self._walk)

    def nextkey(self, key: _Data) -> bytes | None:
        """Return the key that follows `key`, or None.

        Notes
        -----
        Keys deleted on the way are left out, keys added on the way may be.  A walk in order costs
        O(1) a step; a step from any other key costs O(n).
        """
        name = self._lookup(key)
        names, position = self._walk
        if position >= len(names) or names[position] != name:
            names = self._names()
            try:
                position = names.index(name)
            except ValueError:
                return None
        self._walk = (names, position + 1)
        return self._key_at(*self._walk)

    def _key_at(self, names: list[Any], position: int) -> bytes | None:
        """Return the first key from `position` on that is still there, and remember where it is."""
        while position < len(names) and self._encode(names[position]) not in self:
            position += 1
        if position == len(names):
            self._walk = ([], 0)
            return None
        self._walk = (names, position)
        return self._encode(names[position])

    def _names(self) -> list[Any]:
        store = self._open_store()
        try:
            return list(store)
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    # Many changes ---------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[Self]:
        """Make all changes inside the `with` block one: all or nothing, at any instant."""
        store = self._writable_store()
        try:
            with store.batch():
                yield self
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    @overload
    def update(self, pairs: SupportsKeysAndGetItem[_Key, _Data], /, **others: _Data) -> None: ...
    @overload
    def update(self, pairs: Iterable[tuple[_Data, _Data]], /, **others: _Data) -> None: ...
    @overload
    def update(self, /, **others: _Data) -> None: ...
    def update(self, /, *pairs: Any, **others: Any) -> None:
        """Store all pairs, given as `dict.update` takes them, in one batch."""
        with self.batch():
            super().update(*pairs, **others)

    def clear(self) -> None:
        """Remove all keys.  Cost O(1)."""
        if self._readonly and not len(self):
            return  # as every module of the standard library
        store = self._writable_store()
        try:
            store.clear()
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    # The whole ------------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything stored so far is on the disk."""
        if self._store is None:
            return  # as dbm.dumb
        try:
            self._store.sync()
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    def reorganize(self) -> None:
        """Give back the space of replaced and deleted values."""
        store = self._writable_store()
        try:
            store.vacuum()
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    def close(self) -> None:
        """Close the database; every later use but `close` and `sync` raises `error`."""
        store, self._store = self._store, None
        if store is None:
            return
        self._get = self._set = self._delete = self._has = _refuse
        self._walk = ([], 0)
        try:
            store.close()
        except PmshelveError as problem:
            raise_as_dbm_error(problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_store(self) -> _Store:
        if self._store is None:
            raise error(_CLOSED)
        return self._store

    def _writable_store(self) -> _Store:
        if self._readonly:
            raise error(_READ_ONLY)
        return self._open_store()


def raise_as_dbm_error(problem: PmshelveError) -> NoReturn:
    """Raise `problem` as an instance of `error`; as itself where it is one already."""
    if isinstance(problem, ClosedError):
        raise error(_CLOSED) from problem
    if isinstance(problem, error):
        raise problem
    raise error(str(problem)) from problem


def _refuse(*_: object) -> NoReturn:
    raise error(_CLOSED)


def _name(key: Any) -> str:
    """Return the name of any kind of key in a store of str keys."""
    if key.__class__ is str and key.isascii():
        name: str = key
        return name
    return _decode(_to_bytes(key, _BAD_KEY))


def _same(key: Any) -> bytes:
    """Return the name of any kind of key in a store of bytes keys."""
    return key if key.__class__ is bytes else _to_bytes(key, _BAD_KEY)


def _decode(key: Any) -> str:
    return bytes.decode(key, "utf-8", "surrogateescape")


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _to_bytes(thing: object, problem: str) -> bytes:
    if isinstance(thing, str):
        return thing.encode()
    try:
        return memoryview(thing).tobytes()  # type: ignore[arg-type]
    except (TypeError, BufferError):
        raise TypeError(problem) from None
