"""A pool as the commands see it: a mapping from text to values, and what is done with all of it.

Unless it is told to trust the file, nothing here imports a class that the file names, or unpickles.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pmshelve.dbm_compat.pools import face_of, root_type, store_of
from pmshelve.errors import CorruptionError, PmshelveError
from pmshelve.pmemobj.persistent import PersistentDict, PersistentTuple
from pmshelve.pmemobj.pool import PersistentObjectPool
from pmshelve.pmemobj.typetable import name_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from pmshelve.dbm_compat.pools import PoolStore
    from pmshelve.storage.progress import Progress

__all__ = ["PoolFile"]


class PoolFile:
    """An open pool.

    Parameters
    ----------
    path
        The file's name.
    writable
        Open for writing; else nothing is written at all.
    trusted
        Let reading import the classes that the file names, and run the unpickler.
    progress
        Called while garbage is collected, in a pool that was not closed in order.
    """

    def __init__(
        self,
        path: str,
        *,
        writable: bool = False,
        trusted: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self._pool = PersistentObjectPool(
            path, "w" if writable else "r", allow_pickle=trusted or writable, progress=progress
        )
        self._trusted = trusted

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._pool.leave()  # closing would collect all that the interrupted work did not
        else:
            self._pool.close()

    # What it holds ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        with self._telling_damage():
            return iter([self._as_text(key) for key in self._store()])

    def __contains__(self, text: str) -> bool:
        with self._telling_damage():
            store = self._store()
            return any(key in store for key in self._keys_of(text))

    def __getitem__(self, text: str) -> Any:
        with self._telling_damage():
            store = self._store()
            for key in self._keys_of(text):
                if key in store:
                    return store[key]
        raise KeyError(text)

    @contextmanager
    def _telling_damage(self) -> Iterator[None]:
        try:
            yield
        except (AssertionError, IndexError) as error:  # what an offset out of the pool leads to
            raise CorruptionError(
                f"the pool is damaged: {error}", self._pool.filename, hint="see what check says"
            ) from error

    def _store(self) -> PoolStore:
        """Return the root's content, if that is a dict."""
        name = root_type(self._pool)
        known = face_of(name) or name == name_of(PersistentDict)
        if not known and not (self._trusted and isinstance(self._pool.root, PersistentDict)):
            raise PmshelveError(
                f"the root is a {name.rpartition(':')[2]}" if name else "the pool has no root",
                self._pool.filename,
                hint="keys can be listed, and looked up, where it is a PersistentDict",
            )
        return store_of(self._pool, self._pool.root, face_of(name), allow_pickle=self._trusted)

    def _as_text(self, key: Any) -> str:
        """Return how a key is shown, and named on the command line."""
        if isinstance(key, str):
            return key
        if isinstance(key, bytes) and self._is_dbm():
            return key.decode("utf-8", "surrogateescape")
        return repr(tuple(key) if isinstance(key, PersistentTuple) else key)

    def _keys_of(self, text: str) -> Iterator[Any]:
        """Yield the keys that a text may stand for."""
        if self._is_dbm():
            yield os.fsencode(text)
            return
        yield text
        try:
            key = ast.literal_eval(text)
            hash(key)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return
        if not isinstance(key, str):
            yield key

    def _is_dbm(self) -> bool:
        return face_of(root_type(self._pool)) == "bytes"

    # What it is ---------------------------------------------------------------------------------

    def dump(self, stream: IO[bytes], *, progress: Progress | None = None) -> int:
        """Write everything that the root leads to; return the number of objects."""
        return self._pool.dump(stream, progress=progress)

    def check(self, *, progress: Progress | None = None) -> list[Any]:
        """Return every broken invariant."""
        return list(self._pool.check(progress=progress))

    def vacuum(self, *, progress: Progress | None = None) -> None:
        """Free what cannot be reached; closing gives the file's unused end back."""
        self.collect(progress=progress)

    def collect(self, *, progress: Progress | None = None) -> tuple[dict[str, int], dict[str, int]]:
        """Free what cannot be reached; return what `PersistentObjectPool.gc` does.

        What was freed when the pool was opened, if it had not been closed in order, counts too.
        """
        live, counts = self._pool.gc(progress=progress)
        for name, number in self._pool.recovered.items():
            if name.endswith(("-gced", "-mended")):
                counts[name] = counts.get(name, 0) + number
        return live, counts
