"""`MmapDict`: an mmapdict as the mapping of buffers that zict and dask take.

    value of             kept as                          comes back as
    up to SMALL_MAX      bytes, under the entry's crc     a bytearray
    more                 `Chunks`, from where it is       a memoryview of a private map of the file

`__getitem__`, `__setitem__` and `__delitem__` are the common case in a straight line over the store's
own.  In an exclusive store whatever changes passes through the store's table of entries, so a value
that was read is the right one if its entry is still the same there afterwards.

Memory: the pages of a shared map count as the process's own, and the system brings them in by the
hundred.  So behind the last few megabytes that were appended the map is not used (`OpenFile.cool`):
values are read, and entries turned off, by calls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

try:
    from zict.common import ZictBase
except ImportError as error:
    raise ImportError(
        "MmapDict needs zict, which is not installed: pip install pmshelve[zict]"
    ) from error

from pmshelve.errors import FormatError, NoSpaceError, PmshelveError, UnsupportedTypeError
from pmshelve.mmapdict import mmapdict, vacuum
from pmshelve.mmapdict.picklers import ArrayPickler, GenericPickler, MaskedArrayPickler
from pmshelve.mmapdict.picklers.chunks import Chunks, decode_chunks
from pmshelve.mmapdict.session import ABSENT
from pmshelve.storage import file as disk
from pmshelve.storage.binary import PAGE_SIZE
from pmshelve.zict_compat import sharing
from pmshelve.zict_compat.keys import Key, decode_key, encode_key, text_of
from pmshelve.zict_compat.parts import Value, join_small, parts_of

if TYPE_CHECKING:
    from pmshelve.mmapdict import Stats
    from pmshelve.mmapdict.check import Problem

    Base = ZictBase[Key, Any]
else:
    Base = ZictBase

__all__ = ["SMALL_MAX", "MmapDict"]

Buffer = bytearray | memoryview
"""What a get returns."""

SMALL_MAX = 1 << 15
"""Bytes up to which joining a value's parts and copying it out costs less than a map of its own."""
WARM_SIZE = 1 << 23
"""Bytes at the file's end that stay mapped; they may be three times as many before the rest goes."""
WASTE_MIN = 1 << 26
"""Bytes of dead entries that still have disk blocks, below which a vacuum is not worth it."""
RESTART_SIZE = 1 << 28
"""Size from which on a file whose last key is deleted is replaced by an empty one."""
_NEVER = 1 << 62
_SLOW_GETS = 64


class MmapDict(Base):
    """A mapping of buffers in one file: for `zict.Buffer`, `zict.Cache` and the like.

    Parameters
    ----------
    path
        The file's name; made if it is missing.
    exclusive
        Keep other processes out.  Then a set or get takes no lock on the file, the disk blocks of what
        is deleted are given back at once, and opening costs a scan after a process that did not close
        the file.  With False any number of processes use the file together, and its dead part is
        vacuumed away when it is the larger one.
    timeout
        Seconds to wait for another process; None for ever.
    mode
        Permission bits of a file that is made, under the umask.
    scratch
        The file is for this process alone and is removed by `close`: nothing is synced for those who
        open it later.  Needs `exclusive`.

    Attributes
    ----------
    path
        The file's real path.

    Raises
    ------
    LockTimeoutError
        Another process has the file open exclusively (or at all, if `exclusive`).
    NotAStoreError, VersionError, WrongDoorError, CorruptionError
        The file is none, of a newer format, a dbm's, damaged; it was left as it was.
    StateError
        This process has it open already, with ``exclusive=False``.
    OSError

    Notes
    -----
    Keys are str, bytes, int, float, bool, None and tuples of these, nested as you like; 1, 1.0 and True
    are one key.  Values are anything with the buffer interface, or a list or tuple of such: their bytes
    one behind the other, which are not copied on their way to the file if they are many.  What comes
    back is a bytearray or a writable memoryview, the caller's own: changing it never changes the store,
    and nothing that happens to the store changes it.  The blocks of a value that is deleted while its
    memoryview is in use are given back when that is gone.

    A set or delete happens as a whole or not at all, also if the process is killed; a power cut may take
    what was not synced.  All methods may be called from any thread.  Keys come in the order in which they
    were set last.  Within a process any number of MmapDicts of one file share one open store, with the
    options of the first.  Pickling passes path and options; unpickling opens the file, which must be
    there.  A forked child opens it anew.  Nothing here ever runs the unpickler.
    """

    path: str

    def __init__(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        exclusive: bool = True,
        timeout: float | None = 60.0,
        mode: int = 0o666,
        scratch: bool = False,
    ) -> None:
        super().__init__()
        if scratch and not exclusive:
            raise ValueError("scratch=True needs exclusive=True: others would lose the file")
        self.path = os.path.realpath(os.fsdecode(path))
        self._options: dict[str, Any] = {
            "exclusive": exclusive,
            "timeout": timeout,
            "mode": mode,
            "scratch": scratch,
        }
        self._shared: sharing.Shared | None = None
        self._open()

    def _open(self) -> None:
        exclusive, scratch = self._options["exclusive"], self._options["scratch"]
        self._shared, store = sharing.acquire(
            self.path, self._make, exclusive=exclusive, scratch=scratch
        )
        self._store: Any = store
        self._log: Any = store._log  # noqa: SLF001 (these three: parts of the package)
        self._entries: Any = store._entries  # noqa: SLF001
        self._views: Any = store._views  # noqa: SLF001
        self._tail_due = self._dead_due = self._gets = 0

    def _make(self) -> mmapdict[Any]:
        exclusive = self._options["exclusive"]
        store: mmapdict[Any] = mmapdict(
            self.path,
            picklers=(ArrayPickler, MaskedArrayPickler, GenericPickler),
            timeout=self._options["timeout"],
            mode=self._options["mode"],
            exclusive=exclusive,
            autovacuum=not exclusive,
            mmap_mode="c",
            allow_pickle=False,
            face="native",
            convert=False,
        )
        if exclusive:
            # An index that knows of entries keeps them where they are.  (Closing writes one.)
            store._index.limit = _NEVER  # noqa: SLF001
            store._log.cool(0)  # noqa: SLF001 (what is there is read by calls)
        return store

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ZictBase.__init__(self)
        self.path, self._options = state["path"], state["options"]
        self._shared = None
        os.stat(self.path)  # a copy of a store that is gone is an error, not a new store
        self._open()

    # One key ----------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> Buffer:
        """Return the value of `key` in memory of the caller's own."""
        text: Any = key
        if key.__class__ is not str or text < "\x01":
            text = text_of(key)
        log = self._log
        m = log.map  # first: where another thread replaces the file, it is gone before the file is
        entries = self._entries
        entry = entries.get(text)
        if entry.__class__ is tuple and log.exclusive and log.map is m and m:
            _, start, stop, decoder, _, _ = entry
            value: Buffer
            try:
                if decoder is decode_chunks:
                    value = decode_chunks(self._views, start, stop)
                elif decoder is not None:
                    return self._get(text, key)
                elif start >= log.cold:
                    value = bytearray(m[start:stop])
                else:
                    value = bytearray(stop - start)
                    disk.read_into(log.fd, value, start)
            except OSError:
                return self._get(text, key)
            if entries.get(text) is entry and log.map is m:
                return value
        return self._get(text, key)

    def _get(self, text: str, key: Key) -> Buffer:
        """Return a value in whatever way it takes."""
        store = self._store
        if self._log.exclusive:
            value = store._get(text)  # noqa: SLF001 (a part of the package)
        else:
            value = store.get(text, ABSENT)
        if value is ABSENT:
            raise KeyError(key)
        self._gets += 1
        if not self._gets % _SLOW_GETS:
            self._log.chill()
        if value.__class__ is bytes:
            return bytearray(value)
        if value.__class__ is memoryview:
            return value
        raise FormatError(
            f"the value is of type {type(value).__name__}, not bytes",
            self.path,
            key,
            "read it with pmshelve.mmapdict.mmapdict",
        )

    def __setitem__(self, key: Key, value: Value) -> None:
        """Set `key` to the bytes of a buffer, or of a list of buffers."""
        text: Any = key
        if key.__class__ is not str or text < "\x01":
            text = encode_key(key)
        try:
            data: Any = join_small(value, SMALL_MAX) if value.__class__ is list else None
            if data is None:
                parts, size = parts_of(value)
                data = b"".join(parts) if size <= SMALL_MAX else Chunks(parts, size)
            try:
                self._store[text] = data
            except NoSpaceError:
                if not self._make_room():
                    raise
                self._store[text] = data
        except PmshelveError as error:
            error.key, error.path = key, self.path
            raise
        log = self._log
        if log.tail > self._tail_due or (log.dead_size or 0) > self._dead_due:
            self._tidy()

    def __delitem__(self, key: Key) -> None:
        """Delete `key`."""
        text: Any = key
        if key.__class__ is not str or text < "\x01":
            text = text_of(key)
        try:
            del self._store[text]
        except KeyError:
            raise KeyError(key) from None
        log = self._log
        if (log.dead_size or 0) > self._dead_due or (
            not log.live_count and log.tail > RESTART_SIZE
        ):
            self._tidy()

    def pop(self, key: Key, default: Any = ABSENT) -> Any:
        """Delete `key` and return its value, or `default`; no other change comes in between."""
        store = self._store
        store._begin_write()  # noqa: SLF001 (a part of the package)
        try:
            value = self[key]
            del self[key]
            return value
        except KeyError:
            if default is ABSENT:
                raise
            return default
        finally:
            store._end_write()  # noqa: SLF001

    def __contains__(self, key: object) -> bool:
        """Whether there is such a key."""
        try:
            text = encode_key(key)  # type: ignore[arg-type]
        except UnsupportedTypeError:
            return False
        store = self._store
        if self._log.exclusive:
            entry = self._entries.get(text, store)
            if entry is not store:
                return entry is not None
        return text in store

    # All keys ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys there are now."""
        return map(decode_key, self._store)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._store)

    def clear(self) -> None:
        """Delete all keys at once; the file becomes a small one."""
        self._store.clear()

    # Room and memory --------------------------------------------------------------------------

    def _tidy(self) -> None:
        """Let go of memory and disk blocks that are not needed; say when to look again."""
        log, store = self._log, self._store
        store._begin_write()  # noqa: SLF001 (here and below: a part of the package)
        try:
            if log.tail - log.cold > 3 * WARM_SIZE:
                log.cool(WARM_SIZE)
                if self._views.runs is not None:
                    self._views.runs.give_back()
            if log.exclusive:
                self._shrink()
        finally:
            store._end_write()  # noqa: SLF001
        self._tail_due = log.tail + WARM_SIZE
        self._dead_due = (log.dead_size or 0) + WARM_SIZE

    def _make_room(self) -> bool:
        """Give back all disk blocks that can be; return whether these are any."""
        store, runs = self._store, self._views.runs
        if not self._log.exclusive or runs is None:
            return False
        before = self._views.given_back
        store._begin_write()  # noqa: SLF001
        try:
            self._log.cool(0)
            runs.give_back(PAGE_SIZE)
        finally:
            store._end_write()  # noqa: SLF001
        return bool(self._views.given_back > before)

    def _shrink(self) -> None:
        """Rewrite the file where what was deleted cannot be given back otherwise."""
        log, views = self._log, self._views
        if views.ended:
            views.settle()
        if views.is_held(0, log.tail) or not _is_replaceable(log):
            return  # a file that is rewritten in place would change under whoever looks at it
        dead = log.dead_size or 0
        wasted = dead - views.given_back
        if not log.live_count and log.tail > RESTART_SIZE:
            vacuum.clear(self._store)
        elif wasted > WASTE_MIN and wasted > log.tail - dead:
            self._store.vacuum()

    # Looking after ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Return when everything stored so far is on the disk."""
        self._store.sync()

    def stats(self) -> Stats:
        """Return sizes and counts; see `pmshelve.mmapdict.Stats`."""
        return self._store.stats()  # type: ignore[no-any-return]

    def check(self) -> list[Problem]:
        """Return every broken invariant of the file; empty if it is sound."""
        return self._store.check()  # type: ignore[no-any-return]

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._shared is None

    def close(self) -> None:
        """Close the store; the last that has the file open closes the file.  Twice is fine.

        Buffers that were read stay as they are.
        """
        shared = getattr(self, "_shared", None)
        if shared is not None:
            self._shared = None
            self._store = self._log = self._entries = self._views = sharing.Closed(self.path)
            sharing.release(shared)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self)} elements"
        return f"<{type(self).__name__}: {self.path}, {state}>"


def _is_replaceable(log: Any) -> bool:
    """Whether a vacuum can put a new file in the place of the old one."""
    return os.fstat(log.fd).st_nlink == 1 and os.access(os.path.dirname(log.path), os.W_OK)
