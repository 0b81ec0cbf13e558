"""Our own stores as sources: mmapdict files, mmappickle's included, and pools whose root is a dict.

Persistent containers in a pool become the built-in ones that they behave as.  Objects of a user's own
persistent classes do not: only their program knows what else they could be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pmshelve.convert.pickles import pickled
from pmshelve.convert.source import Item, Source, Unreadable
from pmshelve.dbm_compat.pools import face_of, root_type
from pmshelve.errors import CorruptionError, ObjectError, PickleRefusedError, PmshelveError
from pmshelve.mmapdict import mmapdict
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentSet,
    PersistentTuple,
)
from pmshelve.pmemobj.persistent.base import Container
from pmshelve.pmemobj.pool import PersistentObjectPool
from pmshelve.pmemobj.typetable import name_of
from pmshelve.zict_compat import pmemstore
from pmshelve.zict_compat.keys import decode_key

__all__ = ["BuffersSource", "MmapdictSource", "PoolSource", "is_of_buffers"]


class MmapdictSource(Source):
    """An mmapdict file: Python's values, or a dbm's bytes.

    Parameters
    ----------
    path
        The file's name.
    shelf
        Whether a dbm's bytes are pickles.
    is_zict
        Whether the file is one of `MmapDict`, so that its keys stand for others.
    """

    kind = "mmapdict"

    def __init__(self, path: str, *, shelf: bool = False, is_zict: bool = False) -> None:
        super().__init__(path)
        self._is_zict = is_zict
        self._store = mmapdict(path, readonly=True, mmap_mode="r", allow_pickle=False)
        self._store._views.keep_pickles = True  # noqa: SLF001 - a part of the package
        self._commit = self._store.commit_number
        self.face = self._store.face
        self.has_bytes_keys = self._is_dbm = self.face == "bytes"
        self._is_shelf = shelf and self._is_dbm
        if self._is_shelf:
            self.face, self.is_pickles = "native", True

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[Item]:
        for name in self._store:
            key: Any = name.encode("utf-8", "surrogateescape") if self._is_dbm else name
            try:
                value = self._store[name]
                if self._is_zict and not self._is_dbm:
                    key = decode_key(name)
            except KeyError:
                value = Unreadable("it was deleted meanwhile")
            except (PmshelveError, ImportError) as error:
                value = Unreadable(_problem(error))
            yield Item(key, pickled(value) if self._is_shelf and type(value) is bytes else value)

    def is_changed(self) -> bool:
        """Whether it was changed since it was opened."""
        return self._store.commit_number != self._commit

    def close(self) -> None:
        """Let go of it."""
        self._store.close()


class BuffersSource(Source):
    """A pool of `pmshelve.zict_compat.PmemDict`.

    Parameters
    ----------
    path
        The file's name.
    timeout
        Seconds to wait for a process that has it open to write.
    """

    kind = "pmemobj"
    face = "zict"

    def __init__(self, path: str, *, timeout: float | None = 60.0) -> None:
        super().__init__(path)
        self._store = pmemstore.Store(os.path.realpath(path))
        self._store.open("r", {"timeout": timeout})

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[Item]:
        for name in self._store.keys():  # noqa: SIM118 - it is no mapping
            yield Item(decode_key(name), self._store.get(name))

    def is_changed(self) -> bool:
        """Return False: it is locked."""
        return False

    def close(self) -> None:
        """Let go of it."""
        self._store.close()


class PoolSource(Source):
    """A pool with a dict as its root, made through any other door.

    Parameters
    ----------
    path
        The file's name.
    shelf
        Whether a dbm's bytes are pickles.
    unpickle
        Let reading a date, decimal or the like run the unpickler.
    timeout
        Seconds to wait for a process that has it open to write.
    """

    kind = "pmemobj"

    def __init__(
        self,
        path: str,
        *,
        shelf: bool = False,
        unpickle: bool = False,
        timeout: float | None = 60.0,
    ) -> None:
        super().__init__(path)
        self._pool = PersistentObjectPool(path, "r", timeout=timeout, allow_pickle=unpickle)
        try:
            with self._telling_damage():
                name = root_type(self._pool)
                made_by = face_of(name)
                self._root = self._pool.root
        except BaseException:
            self._pool.close()
            raise
        if not isinstance(self._root, PersistentDict):
            self._pool.close()
            what = f"a {name.rpartition(':')[2]}" if name else "nothing"
            raise PmshelveError(
                f"the pool's root is {what}, not a dict",
                path,
                hint="`dump` and `load` move whole pools",
            )
        self.face = made_by or "native"
        self.has_bytes_keys = made_by == "bytes"
        self.is_pickles = shelf and made_by == "bytes"
        self._holds_pickles = self.is_pickles or made_by == "native"
        if self.is_pickles:
            self.face = "native"

    def __len__(self) -> int:
        return len(self._root)

    def __iter__(self) -> Iterator[Item]:
        with self._telling_damage():
            for key in self._root:
                try:
                    yield Item(_plain(key, {}), self._value(key))
                except (ObjectError, RecursionError) as error:
                    yield Item(key, Unreadable(_problem(error)))

    def _value(self, key: Any) -> Any:
        value = self._root[key]
        if self._holds_pickles and type(value) is bytes:
            return pickled(value)
        return _plain(value, {})

    @contextmanager
    def _telling_damage(self) -> Iterator[None]:
        try:
            yield
        except (AssertionError, IndexError) as error:  # what an offset out of the pool leads to
            raise CorruptionError(f"the pool is damaged: {error}", self.path) from error

    def is_changed(self) -> bool:
        """Return False: it is locked."""
        return False

    def close(self) -> None:
        """Let go of it."""
        self._root = None
        self._pool.close()


def is_of_buffers(path: str, timeout: float | None = 60.0) -> bool:
    """Whether a pool is one of `PmemDict`."""
    with PersistentObjectPool(path, "r", timeout=timeout, allow_pickle=False) as pool:
        return root_type(pool) == name_of(pmemstore.Buffers)


def _problem(error: Exception) -> str:
    if isinstance(error, PickleRefusedError):
        return "the value needs the unpickler: --unpickle (unpickle=True)"
    return error.problem if isinstance(error, PmshelveError) else str(error)


def _plain(value: Any, memo: dict[int, Any]) -> Any:
    """Return a stored value as Python's own types have it; what is met twice is made once."""
    if not isinstance(value, Container):
        return value
    if id(value) in memo:
        return memo[id(value)][1]
    make = _MAKERS.get(type(value))
    if make is None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ObjectError(f"a persistent object of class {kind}, which is nothing outside a pool")
    return make(value, memo)


def _plain_list(value: Any, memo: dict[int, Any]) -> list[Any]:
    made: list[Any] = []
    memo[id(value)] = value, made
    made.extend(_plain(item, memo) for item in value)
    return made


def _plain_dict(value: Any, memo: dict[int, Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    memo[id(value)] = value, made
    for key, item in value.items():
        made[_plain(key, memo)] = _plain(item, memo)
    return made


def _made_of(kind: type) -> Any:
    def make(value: Any, memo: dict[int, Any]) -> Any:
        made = kind(_plain(item, memo) for item in value)
        memo[id(value)] = value, made
        return made

    return make


def _plain_array(value: Any, memo: dict[int, Any]) -> Any:
    made = value.view().copy(order="K")
    memo[id(value)] = value, made
    return made


_MAKERS: dict[type, Any] = {
    PersistentList: _plain_list,
    PersistentDict: _plain_dict,
    PersistentTuple: _made_of(tuple),
    PersistentSet: _made_of(set),
    PersistentFrozenSet: _made_of(frozenset),
    PersistentArray: _plain_array,
}
