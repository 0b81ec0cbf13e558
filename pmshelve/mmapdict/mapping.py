"""The class `mmapdict`: a dict in one append-only file that is a valid pickle.

The dict methods over `session.Session`.  `__getitem__`, `__contains__`, `__setitem__` and
`__delitem__` are written out for speed: each is the common case in a straight line, and hands
everything else to the session.
"""

from __future__ import annotations

import os
from collections.abc import (
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from threading import get_ident
from typing import IO, TYPE_CHECKING, Any, Literal, TypeVar, overload

from pmshelve.errors import ObjectError, StorageError
from pmshelve.generics import V
from pmshelve.mmapdict import frame, index, vacuum
from pmshelve.mmapdict.batch import Batch
from pmshelve.mmapdict.check import Problem, check
from pmshelve.mmapdict.frame import encode_key
from pmshelve.mmapdict.fsck import fsck
from pmshelve.mmapdict.index import Place
from pmshelve.mmapdict.opcodes import SHORT_BYTES
from pmshelve.mmapdict.picklers.generic import RAW_AT, decode_pickle
from pmshelve.mmapdict.scan import place_of_bytes
from pmshelve.mmapdict.session import ABSENT, DEFAULT, DOUBTFUL, Session, drop_read_buffer
from pmshelve.mmapdict.stats import Stats, collect
from pmshelve.storage.lock import EXCLUSIVE, SHARED
from pmshelve.storage.progress import Progress

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem
    from typing_extensions import Self

__all__ = ["mmapdict"]

_T = TypeVar("_T")

CLEAR_ONE_BY_ONE_MAX = 64
"""Entries up to which clearing flips flags; beyond, the file is replaced by an empty one."""


class mmapdict(Session, MutableMapping[str, V]):  # noqa: N801 (the name is mmappickle's)
    """A persistent dict in one file that is, at every commit, a valid pickle.

    Parameters
    ----------
    file
        A name (str, bytes or path-like), or a binary file object with a descriptor.  A file that
        does not exist is created; an ordinary pickled dict is converted.
    readonly
        Open for reading only.
    picklers
        Classes that write and read values, instead of all subclasses of `BasePickler`.
    timeout
        Seconds to wait for a lock; None for ever.
    sync
        Return from each change only when it is on the disk.
    mmap_mode
        How arrays come back, as NumPy names it: 'r+' (changes go to the file; the default where
        the store is writable), 'r', 'c' (changes stay in memory), None (loaded into memory).
    exclusive
        Keep all others out for as long as the store is open; saves the locking.
    allow_pickle
        Whether reading may run the unpickler.  Bytes, text, numbers and arrays never need it.
    face
        None accepts any file; 'native' or 'bytes' only one written through that interface.
    autovacuum
        Vacuum when more than half of the file, and at least 1 MiB, is dead.
    mode
        Permission bits of a new file, under the umask.
    convert
        Whether an ordinary pickled dict may be converted.

    Raises
    ------
    FileNotFoundError
        `readonly`, and there is no such file.
    TypeError
        `file` is neither a name nor a file object that can be used.
    NotAStoreError, VersionError
        (`ValueError`) The file holds something else; it was left as it was.
    WrongDoorError
        The file was written through the other interface.
    LockTimeoutError
        Others held the lock for longer than `timeout`.

    Notes
    -----
    Any number of processes and threads may use one file at once.  A get costs the same whatever
    the file holds; so does a put.  After a crash each change is there whole or not at all.
    Source of the interface and of the container: mmappickle 1.0.
    """

    def __init__(
        self,
        file: str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes],
        readonly: bool | None = None,
        picklers: Iterable[type] | None = None,
        *,
        timeout: float | None = 60.0,
        sync: bool = False,
        mmap_mode: Literal["r+", "r", "c"] | None = DEFAULT,
        exclusive: bool = False,
        allow_pickle: bool = True,
        face: Literal["native", "bytes"] | None = None,
        autovacuum: bool = False,
        mode: int = 0o666,
        convert: bool = True,
    ) -> None:
        super().__init__(
            file,
            readonly,
            picklers,
            timeout=timeout,
            sync=sync,
            mmap_mode=mmap_mode,
            exclusive=exclusive,
            allow_pickle=allow_pickle,
            face=face,
            autovacuum=autovacuum,
            mode=mode,
            convert=convert,
        )

    # Reading ----------------------------------------------------------------------------------

    def __getitem__(self, key: str) -> V:
        """Return the value of `key`; arrays and large buffers in it memory-mapped.

        Raises
        ------
        KeyError
            There is no such key.
        PickleRefusedError
            The value needs the unpickler and `allow_pickle` is False.
        """
        # The state comes first: where another thread replaces all of it, it is set last.
        value: V
        log = self._log
        state = log.state
        m = log.map
        entry = self._entries.get(key)
        if entry.__class__ is tuple and self._batch is None:
            # Looked at before, since the file may have shrunk; and after, since it may have moved.
            if log.map is m if log.exclusive else m[18:116] == state or log.is_same(m, state):
                flag, start, stop, decoder, _, _ = entry
                try:
                    if decoder is None:
                        value = m[start:stop]
                    else:
                        value = decoder(self._views, start, stop)
                    if m[flag] == 0x88 and (
                        log.map is m
                        if log.exclusive
                        else m[18:116] == state or log.is_kept(m, state)
                    ):
                        return value
                except Exception:  # noqa: BLE001, S110 (done again below, where it is known to be real)
                    pass
        elif entry is None and m[18:116] == state and self._batch is None:
            value = self._first_get(key, m, state)
            if value is not ABSENT:
                return value
        value = self._get(key)
        if value is ABSENT:
            raise KeyError(key)
        return value

    def _first_get(self, key: str, m: Any, state: bytes) -> Any:
        """Return a small bytes value that a checkpoint knows; ABSENT where it is not that easy."""
        known, log = self._index, self._log
        if known.complete or key.__class__ is not str or not self._codec.plain:
            return ABSENT
        offset = known.find(log, key)
        place = None if offset is None else place_of_bytes(m, offset, log.tail)
        if place is None:
            return ABSENT
        value = m[place[1] : place[2]]
        if m[place[0]] != 0x88 or m[18:116] != state:
            return ABSENT
        self._entries.setdefault(key, place)  # a writer's newer one stays
        return value

    def __contains__(self, key: object) -> bool:  # noqa: C901 (hot)
        """Whether there is such a key."""
        log = self._log
        state = log.state
        m = log.map
        entry = self._entries.get(key, DEFAULT)  # type: ignore[call-overload]
        if self._batch is None:
            if log.map is m if log.exclusive else m[18:116] == state:
                if entry is DEFAULT:
                    known = self._index
                    if known.complete:
                        return False
                    if key.__class__ is str and known.find(log, key) is None:
                        return False
                elif entry is None:
                    return False
                elif entry.__class__ is tuple:
                    flag = entry[0]
                    if flag < len(m) and m[flag] == 0x88:
                        return True
            elif entry.__class__ is tuple and log.is_same(m, state):
                flag = entry[0]
                if flag < len(m) and m[flag] == 0x88:
                    return True
        return self._contains(key)

    def _contains(self, key: Any) -> bool:
        self._refresh()
        place = self._find(key)
        if place is DOUBTFUL:
            with self._held():
                place = self._find(key, sure=True)
        return place is not None

    def __len__(self) -> int:
        """Return the number of keys."""
        if self._in_batch() and self._batch is not None:
            return (self._log.live_count or 0) + self._batch.live_change
        self._refresh()
        log = self._log
        if log.live_count is not None:
            return log.live_count
        if log.lock.try_shared():
            log.lock.release()
        else:
            # A writer is at work: the last count is right as of just before its change.
            block = log.superblock
            if (
                block is not None
                and frame.next_commit(block.stamp) == block.commit
                and block.live_count != frame.UNKNOWN
            ):
                return block.live_count
        with self._held():
            if log.live_count is None:
                self._recount()
            return self._log.live_count or 0

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys there are now, in file order: the key set last comes last."""
        return iter(self._keys())

    def __reversed__(self) -> Iterator[str]:
        """Iterate over the keys, the one set last first."""
        return reversed(self._keys())

    def keys(self) -> KeysView[str]:
        """Return a set-like view of the keys."""
        return KeysView(self)

    def items(self) -> ItemsView[str, V]:
        """Return a view of the pairs; one deleted by others during an iteration is left out."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values."""
        return _Values(self)

    @overload
    def get(self, key: str, default: None = None) -> V | None: ...
    @overload
    def get(self, key: str, default: V) -> V: ...
    @overload
    def get(self, key: str, default: _T) -> V | _T: ...
    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, or `default`."""
        try:
            return self[key]
        except KeyError:
            value = self._get(key)  # the value's own KeyError is not ours to swallow
            return default if value is ABSENT else value

    # Writing ----------------------------------------------------------------------------------

    def __setitem__(self, key: str, value: V) -> None:  # noqa: C901, PLR0912, PLR0915 (hot)
        """Set `key` to `value`, atomically.

        Raises
        ------
        TypeError
            The key is no str, or the value cannot be stored.
        ReadOnlyError
            (`io.UnsupportedOperation`)
        NoSpaceError, StorageError, LockTimeoutError
            In all these cases nothing was changed.

        Notes
        -----
        Cost O(size of the value), whatever the file holds.  Large buffers are written from where
        they are.  The older value's space is dead until `vacuum()`.
        """
        if key.__class__ is not str:
            key = _as_key(key)
        log = self._log
        if value.__class__ is bytes and len(value) < 256 and self._plain:  # type: ignore[arg-type]
            encoded: Any = SHORT_BYTES[len(value)] + value, False  # type: ignore[arg-type, operator]
        else:
            try:
                encoded = self._encode(value)
            except ObjectError as error:
                error.key, error.path = key, log.name
                raise
        batch = self._batch
        if batch is not None and batch.owner == get_ident():
            batch.set(key, value, encoded)
            return
        if not log.ready:
            self._prepare_write()
        prefix = b""
        if key < "\x01":
            stored, prefix = encode_key(key)
        else:
            try:
                stored = key.encode()
            except UnicodeEncodeError:
                stored, prefix = encode_key(key)
            if len(stored) > 255:
                stored, prefix = encode_key(key)
        known, entries = self._index, self._entries
        lock = log.lock
        # `lock.acquire()`, and below `lock.release()`, written out
        if not lock.grab(False):
            lock.enter()
        if lock.depth:
            lock.depth += 1
        else:
            lock.take()
        try:
            if not log.exclusive and log.map[18:116] != log.sound:
                self._catch_up()
            entry = entries.get(key)
            if entry is None and not known.complete:
                entry = known.lookup(log, key)
            old = None if entry is None else self._old(entry)
            place: Place | int
            place = tail = log.tail
            body, reduces = encoded
            if body.__class__ is bytes:
                if prefix:
                    body = prefix + body
                log.append(stored, body, reduces, old)
                end = tail + 11 + len(stored) + len(body)
                if value.__class__ is bytes:
                    place = (log.tail - 2, end - len(value), end, None, tail, False)  # type: ignore[arg-type]
                elif reduces and self._plain and not prefix:
                    start = end - len(body) + (RAW_AT + 2 if body[RAW_AT] == 0x43 else RAW_AT + 5)
                    place = (log.tail - 2, start, end - 1, decode_pickle, tail, True)
            else:
                place = self._append_large(stored, prefix, encoded, old)
            entries[key] = place  # never out of the dict meanwhile: other threads look
            if entry is not None:
                known.disordered = True
            if log.exclusive and (old is not None or self._views.ended):
                self._give_back(old, replaced=True)
            fresh = known.fresh = known.fresh + 1
            if fresh >= known.limit:
                self._write_checkpoint(index.MERGE_MAX)
        except StorageError as error:
            error.key = key if error.key is None else error.key
            raise
        except (KeyboardInterrupt, SystemExit, MemoryError):
            self._distrust()
            raise
        finally:
            if lock.depth > 1:
                lock.depth -= 1
                lock.let_go()
            else:
                lock.release()
            if log.file is not None:
                drop_read_buffer(log.file)
        if self._autovacuum:
            self._vacuum_if_due()

    def __delitem__(self, key: str) -> None:  # noqa: C901, PLR0912 (hot)
        """Delete `key`, atomically.

        Raises
        ------
        KeyError
            There is no such key.
        """
        log = self._log
        batch = self._batch
        if batch is not None and batch.owner == get_ident():
            batch.delete(key)
            return
        if not log.ready:
            self._prepare_write()
        lock = log.lock
        if not lock.grab(False):  # as in __setitem__
            lock.enter()
        if lock.depth:
            lock.depth += 1
        else:
            lock.take()
        try:
            if not log.exclusive and log.map[18:116] != log.sound:
                self._catch_up()
            known, entries = self._index, self._entries
            entry = entries.get(key)
            if entry is None and not known.complete and isinstance(key, str):
                entry = known.lookup(log, key)
            old = None if entry is None else self._old(entry)
            if known.complete:
                entries.pop(key, None)
            elif isinstance(key, str):
                entries[key] = None
            if old is None:
                raise KeyError(key)
            log.delete(old)
            if log.exclusive:
                self._give_back(old)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            self._distrust()
            raise
        finally:
            if lock.depth > 1:
                lock.depth -= 1
                lock.let_go()
            else:
                lock.release()
            if log.file is not None:
                drop_read_buffer(log.file)
        if self._autovacuum:
            self._vacuum_if_due()

    @overload
    def pop(self, key: str) -> V: ...
    @overload
    def pop(self, key: str, default: V) -> V: ...
    @overload
    def pop(self, key: str, default: _T) -> V | _T: ...
    def pop(self, key: str, default: Any = DEFAULT) -> Any:
        """Delete `key` and return its value, or `default`; atomic among all writers."""
        self._begin_write()
        try:
            value = self._get(key)
            if value is ABSENT:
                if default is DEFAULT:
                    raise KeyError(key)
                return default
            del self[key]
            return value
        finally:
            self._end_write()

    def popitem(self) -> tuple[str, V]:
        """Delete the key that was set last and return it with its value."""
        self._begin_write()
        try:
            keys = self._keys()
            if not keys:
                raise KeyError("popitem(): the store is empty")
            return keys[-1], self.pop(keys[-1])
        finally:
            self._end_write()

    @overload
    def setdefault(self: mmapdict[_T | None], key: str, default: None = None) -> _T | None: ...
    @overload
    def setdefault(self, key: str, default: V) -> V: ...
    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of `key`, which is set to `default` first if it does not exist."""
        self._begin_write()
        try:
            if self._get(key) is ABSENT:
                self[key] = default
            return self[key]
        finally:
            self._end_write()

    @overload
    def update(self, other: SupportsKeysAndGetItem[str, V], /, **pairs: V) -> None: ...
    @overload
    def update(self, other: Iterable[tuple[str, V]], /, **pairs: V) -> None: ...
    @overload
    def update(self, /, **pairs: V) -> None: ...
    def update(self, other: Any = (), /, **pairs: V) -> None:
        """Set many keys in one batch: all of them or, if one fails, none."""
        with self.batch():
            if isinstance(other, Mapping):
                for key in other:
                    self[key] = other[key]
            elif hasattr(other, "keys"):
                for key in other.keys():  # noqa: SIM118 (what has keys() need not be iterable)
                    self[key] = other[key]
            else:
                for key, value in other:
                    self[key] = value
            for key, value in pairs.items():
                self[key] = value

    def clear(self) -> None:
        """Delete all keys at once: beyond a few by one replacement of the file, however many.

        In a batch, and up to 64 keys, they are deleted one by one.
        """
        self._begin_write()
        try:
            if self._in_batch() or len(self) <= CLEAR_ONE_BY_ONE_MAX:
                with self.batch():
                    for key in self._keys():
                        del self[key]
            else:
                vacuum.clear(self)
        finally:
            self._end_write()

    def batch(self) -> Batch[V]:
        """Return a context manager: what is changed in it takes effect at once, at its end.

        Changes cost less than one by one.  Others see all of them or none, also after a crash;
        this thread sees them at once, arrays as copies.  An exception in the block undoes them.  A batch in a batch
        joins it.  The lock is held from beginning to end.
        """
        return self._batch if self._in_batch() and self._batch is not None else Batch(self)

    # The store as a whole ---------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether the store may be changed."""
        return self._log.writable

    @property
    def readonly(self) -> bool:
        """Whether the store is open for reading only."""
        return not self._log.writable

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._log.closed

    @property
    def path(self) -> str | None:
        """Absolute path of the file; None for a file object."""
        return self._log.path

    @property
    def face(self) -> str:
        """Through which interface the file is written: 'native', or 'bytes' for dbm."""
        self._refresh()
        block = self._log.superblock
        return "native" if block is None else block.face_name

    @property
    def timeout(self) -> float | None:
        """Seconds to wait for a lock; None for ever."""
        return self._log.lock.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._log.lock.timeout = seconds

    @property
    def commit_number(self) -> int:
        """Count of committed changes; while it stays the same, so do the keys.

        It grows by at least one with each change, by whatever process, and wraps from 2**30 to 1.
        """
        self._refresh()
        return self._log.commit

    @commit_number.setter
    def commit_number(self, commit: int) -> None:
        if type(commit) is not int:
            raise TypeError(f"commit_number must be an int, not {type(commit).__name__}")
        if not 0 <= commit <= frame.COMMIT_MAX:
            raise ValueError(f"commit_number must be from 0 to {frame.COMMIT_MAX}, not {commit}")
        self._begin_write()
        try:
            self._log.set_commit(commit)
        finally:
            self._end_write()

    def sync(self) -> None:
        """Return when all that was written so far is on the disk."""
        log = self._log
        log.check_usable()
        if not log.writable:
            return
        self._begin_write()
        try:
            log.datasync()
            if self._batch is None:
                log.set_synced_end()
        finally:
            self._end_write()

    def vacuum(self, chunk_size: int = 1048576, *, progress: Progress | None = None) -> None:
        """Give the space of dead entries back.

        Parameters
        ----------
        chunk_size
            Bytes to copy at a time.
        progress
            Called as ``progress(done, total)`` now and then, with bytes of the present file.  What
            it raises ends the vacuum, and the store is as it was; see `pmshelve.storage.progress`.

        Notes
        -----
        The live entries go to a new file, which then takes this one's name: views that exist, here
        or in other processes, stay valid (writing through one no longer reaches the store), and a
        crash leaves the old file or the new one.  Where the file cannot be replaced (a file object
        was handed in, it has several names, the directory is read-only ...), it is rewritten in
        place; then no views of it may be in use elsewhere.
        """
        if type(chunk_size) is not int or chunk_size < 1:
            raise ValueError(f"chunk_size must be a positive number of bytes, not {chunk_size!r}")
        self._begin_write()
        try:
            vacuum.vacuum(self, chunk_size=chunk_size, progress=progress)
        finally:
            self._end_write()

    def fsck(self, *, progress: Progress | None = None) -> bool:
        """Check the file and mend what is broken, keeping every entry whose value is whole.

        Parameters
        ----------
        progress
            Called as ``progress(done, total)`` now and then, with thousandths of the work.  What it
            raises ends the work; what was mended by then stays so, and calling again does the rest.

        Returns
        -------
        True if the file was sound.  What was found is logged.
        """
        log = self._log
        if log.closed or log.failed:
            log.check_usable()
        return fsck(self, progress=progress)

    def check(self, *, progress: Progress | None = None) -> list[Problem]:
        """Return every broken invariant of the file (see docs/format-mmapdict.md); [] if sound.

        Parameters
        ----------
        progress
            Called as ``progress(done, total)`` now and then, with bytes: the file's, and then those
            of the newest checkpoint.
        """
        log = self._log
        if log.damage is None:
            self._refresh()
        log.lock.acquire(EXCLUSIVE if log.writable else SHARED)
        try:
            if log.damage is None and not log.exclusive and self._batch is None:
                self._catch_up()
            return list(check(self._log, progress=progress))
        finally:
            log.lock.release()

    def stats(self) -> Stats:
        """Return sizes and counts."""
        with self._held():
            if self._log.live_count is None or self._log.dead_size is None:
                self._recount()
            return collect(self._log, self._index)

    def entry_size(self, key: str) -> int:
        """Return how many bytes of the file are the entry of `key`; the value is not looked at.

        Raises
        ------
        KeyError
            There is no such key.
        """
        with self._held():
            place = self._find(key, sure=True)
            if place is None:
                raise KeyError(key)
            size: int = place[0] + 2 - place[4]  # from the entry's head to behind its flag
            return size

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(self, *_exc: object) -> None:
        """Close the store."""
        self.close()

    def __repr__(self) -> str:
        state = "closed " if self._log.closed else ""
        return f"<{state}{type(self).__name__} {self._log.name!r}>"

    # Copies in other processes ----------------------------------------------------------------

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's name; unpickling opens it again."""
        log = self._log
        path = log.path
        if path is None and isinstance(log.name, str) and os.path.exists(log.name):
            path = os.path.abspath(log.name)
        if path is None:
            raise TypeError("a store on a file object without a name cannot be pickled")
        options = {
            "timeout": log.lock.timeout,
            "sync": log.synced,
            "mmap_mode": self._views.mmap_mode,
            "allow_pickle": self._views.allow_pickle,
            "autovacuum": self._autovacuum,
        }
        picklers = [type(pickler) for pickler in self._picklers]
        return _unpickle, (type(self), path, not log.writable, picklers, options)


def _unpickle(
    kind: type[mmapdict[V]],
    path: str,
    readonly: bool,
    picklers: list[type],
    options: dict[str, Any],
) -> mmapdict[V]:
    os.stat(path)  # a copy of a store that is gone is an error, not a new store
    return kind(path, readonly, picklers, **options)


def _as_key(key: object) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    raise TypeError(f"keys are str, not {type(key).__name__}: {key!r}")


class _Items(ItemsView[str, V]):
    _mapping: mmapdict[V]

    def __iter__(self) -> Iterator[tuple[str, V]]:
        for key in self._mapping:
            value = self._mapping._get(key)  # noqa: SLF001 (a part of the store)
            if value is not ABSENT:
                yield key, value


class _Values(ValuesView[V]):
    _mapping: mmapdict[V]

    def __iter__(self) -> Iterator[V]:
        for _key, value in _Items(self._mapping):
            yield value
