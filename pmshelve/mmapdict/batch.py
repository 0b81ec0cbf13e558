"""Many changes, one lock, one commit: all of them or none, at any instant.

Entries are staged behind the terminator, where nobody looks; what the batch changed is kept beside
the index until the batch is published.  Only the thread that began the batch sees it before.
"""

from __future__ import annotations

from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic

from pmshelve.errors import StateError
from pmshelve.generics import V
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import LIVE, encode_entry, encode_key, lay_out
from pmshelve.mmapdict.logfile import STAGE_SIZE_MAX
from pmshelve.mmapdict.picklers.base import Foreign
from pmshelve.mmapdict.picklers.generic import RAW_AT, decode_pickle

if TYPE_CHECKING:
    from pmshelve.mmapdict.index import Old, Place
    from pmshelve.mmapdict.mapping import mmapdict

__all__ = ["Batch"]

_MISSING: Any = object()


class Batch(Generic[V]):
    """The context manager that `mmapdict.batch()` returns; entering gives the store itself."""

    __slots__ = ("_depth", "_doomed", "_stage", "_store", "changes", "live_change", "olds", "owner")

    def __init__(self, store: mmapdict[V]) -> None:
        self._store = store
        self._depth = 0
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._doomed = False
        self.owner: int = 0
        self.changes: dict[str, Place | int | None] = {}
        self.olds: list[Old] = []
        self.live_change: int = 0

    def abandon(self) -> None:
        """Undo the batch, of this thread, before its end: the store is being closed."""
        self._depth = 0
        self._store._log.abort_batch()
        self._store._batch = None
        self._store._end_write()

    def _lose(self) -> None:
        """In a forked child: the batch is the parent's."""
        self._depth = 0
        self._start_afresh()
        self._store._batch = None

    def __enter__(self) -> mmapdict[V]:
        store = self._store
        if self._depth == 0:
            self._start_afresh()
            store._begin_write()
            try:
                self._stage = store._log.begin_batch()
                self._stage.on_fork = self._lose
            except BaseException:
                store._end_write()
                raise
            self.owner = get_ident()
            store._batch = self
        self._depth += 1
        return store

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._depth:
            if kind is None:
                self._store._log.check_usable()
            return
        self._depth -= 1
        self._doomed = self._doomed or kind is not None
        if self._depth:
            return
        store = self._store
        log = store._log
        try:
            if self._doomed or not self.changes:
                log.abort_batch()
            else:
                log.publish_batch(self.olds, self.live_change)
                store._merge(self)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            log.staging = store._batch = None
            store._distrust()
            raise
        finally:
            store._batch = None
            self._stage.on_fork = None  # a cycle, otherwise
            store._end_write()
        if self._doomed and kind is None:
            raise StateError(
                "a batch nested in this one failed, so nothing of it was written", log.name
            )

    def _retire(self, key: str, olds: list[Old]) -> bool:
        """Note that the newest entry of `key` is to be retired; whether there was a live one."""
        store = self._store
        known = self.changes.get(key, _MISSING)
        entry: Any = store._index.lookup(store._log, key) if known is _MISSING else known
        if entry is None:
            return False
        if entry.__class__ is tuple:
            flag = entry[0]
            old = (flag, entry[5], flag + 2 - entry[4])
        else:
            old = store._index.extent(store._log, entry)
            flag = old[0]
        if known is _MISSING:
            m = store._log.map
            if (m[flag] if flag < len(m) else store._log.byte(flag)) != LIVE:
                return False
        olds.append(old)
        return True

    def set(self, key: str, value: Any, encoded: Any) -> None:
        """Stage a value.  (Written out for small ones: a batch is for many of them.)"""
        body, reduces = encoded
        if body.__class__ is not bytes:
            self._set_large(key, encoded)
            return
        prefix = b""
        try:
            stored = key.encode()
        except UnicodeEncodeError:
            stored = b""
        if not 0 < len(stored) < 256 or stored[0] == 0:
            stored, prefix = encode_key(key)
            body = prefix + body
        changes, stage, store = self.changes, self._stage, self._store
        if key in changes or key in store._entries or not store._index.complete:
            if not self._retire(key, self.olds):
                self.live_change += 1
            changes.pop(key, None)  # last set, last in the order
        else:
            self.live_change += 1
        offset = stage.position
        data = encode_entry(stored, body, reduces, offset)
        stage.pending.append(data)
        stage.position = end = offset + len(data)
        stage.count += 1
        if value.__class__ is bytes:
            stop = offset + 11 + len(stored) + len(body)
            changes[key] = (end - 2, stop - len(value), stop, None, offset, False)
        elif reduces and store._plain and not prefix:
            start = offset + 11 + len(stored)
            stop = start + len(body) - 1
            start += RAW_AT + 2 if body[RAW_AT] == 0x43 else RAW_AT + 5
            changes[key] = (end - 2, start, stop, decode_pickle, offset, True)
        else:
            changes[key] = offset
        if end - stage.written > STAGE_SIZE_MAX:
            stage.flush()

    def _set_large(self, key: str, encoded: Any) -> None:
        if encoded.__class__ is Foreign:
            raise StateError(
                "a pickler of your own writes to the file by itself, which a batch cannot do",
                self._store._log.name,
                key,
                hint="set this key outside of the batch",
            )
        stored, prefix = encode_key(key)
        body, reduces = encoded
        changes, stage = self.changes, self._stage
        olds: list[Old] = []
        live = self._retire(key, olds)
        offset = stage.position
        stage.add_layout(lay_out(stored, [prefix, *body], reduces, offset))
        self.olds += olds
        if not live:
            self.live_change += 1
        changes.pop(key, None)  # last set, last in the order
        changes[key] = offset

    def delete(self, key: str) -> None:
        """Stage a tombstone; KeyError where there is nothing to delete."""
        if not self._retire(key, self.olds):
            raise KeyError(key)
        stored, prefix = encode_key(key)
        stage = self._stage
        tombstone = frame.encode_dead(stored, prefix + b"N", stage.position)
        self.live_change -= 1
        self.changes[key] = None
        stage.dead_size += len(tombstone)
        stage.add(tombstone)
