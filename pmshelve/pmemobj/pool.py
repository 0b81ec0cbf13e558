"""`PersistentObjectPool`: the file, opened; it wires the layers and ends them in the right order.

    created or opened, replayed  ->  [unclean: full gc]  ->  in use  ->  gc, trimmed, checkpoint, closed

A shutdown is clean if `close` came to the end of `gc`; whatever else ended the process (a kill, an error)
leaves the mark off, and the next writer collects before it hands the pool out.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from pmshelve.errors import (
    ClosedError,
    ObjectError,
    PmshelveError,
    ReadOnlyError,
    StorageError,
    TransactionError,
)
from pmshelve.pmemobj import check as checking
from pmshelve.pmemobj import persistent as _collections  # noqa: F401 - they register their type codes
from pmshelve.pmemobj import rawpool
from pmshelve.pmemobj.collector import Collector
from pmshelve.pmemobj.heap import Heap
from pmshelve.pmemobj.layout import MIN_POOL_SIZE, OID_NULL, ROOT_OID
from pmshelve.pmemobj.store import MemoryManager, closed
from pmshelve.pmemobj.transaction import Transaction

if TYPE_CHECKING:
    from typing_extensions import Self, TypedDict, Unpack

    from pmshelve.pmemobj.check import PoolStats, Problem
    from pmshelve.pmemobj.memory import Memory
    from pmshelve.pmemobj.persistent import (
        PersistentDict,
        PersistentFrozenSet,
        PersistentList,
        PersistentSet,
        PersistentTuple,
    )
    from pmshelve.pmemobj.protocol import Persistable
    from pmshelve.storage.progress import Progress

    _AnyCollection = (
        PersistentList[Any]
        | PersistentDict[Any, Any]
        | PersistentSet[Any]
        | PersistentFrozenSet[Any]
        | PersistentTuple[Any]
    )

    class _Options(TypedDict, total=False):
        """Further arguments of `PersistentObjectPool`."""

        durability: Literal["full", "lazy", "none"]
        max_size: int | None
        timeout: float | None
        allow_pickle: bool
        progress: Progress | None


__all__ = ["PersistentObjectPool", "PoolSizeError", "create", "open"]

logger = logging.getLogger("pmshelve.pmemobj")

_open_pools: weakref.WeakSet[PersistentObjectPool] = weakref.WeakSet()

_Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_Arguments = ParamSpec("_Arguments")
_New = TypeVar("_New", bound="Persistable")
_Collection = TypeVar("_Collection", bound="_AnyCollection")


class PoolSizeError(StorageError, ValueError):
    """A pool of this size cannot be made."""

    _default_errno = 22  # EINVAL, as libpmemobj


def create(
    filename: _Path,
    pool_size: int = MIN_POOL_SIZE,
    mode: int = 0o666,
    debug: bool = False,
    **options: Unpack[_Options],
) -> PersistentObjectPool:
    """Make a pool in a new file; see `PersistentObjectPool`.

    Raises
    ------
    FileExistsError
        There is a file of that name.
    """
    return PersistentObjectPool(filename, "x", pool_size, mode, debug, **options)


def open(filename: _Path, debug: bool = False, **options: Unpack[_Options]) -> PersistentObjectPool:
    """Open an existing pool for reading and writing; see `PersistentObjectPool`.

    Raises
    ------
    FileNotFoundError
        There is no file of that name.
    """
    return PersistentObjectPool(filename, "w", debug=debug, **options)


def _format(memory: Memory, start: int, pages: int) -> None:
    Heap.format(memory, start, pages)


class PersistentObjectPool:
    """Persistent Python objects in one file.

    Parameters
    ----------
    filename
        The file's name.
    flag
        ``'w'`` existing, to read and write; ``'x'`` new; ``'c'`` existing or new; ``'r'`` existing, to
        read only, along with any number of other readers.
    pool_size
        Bytes allocated up front if the file is made, at least `MIN_POOL_SIZE`.  The pool grows beyond on
        its own.
    mode
        Permissions if the file is made, subject to the umask.
    debug
        Default of `gc`'s argument.
    durability
        ``'full'``: a commit is on the disk when it returns.  ``'lazy'``: `sync`, `close` and checkpoints
        see to that; a killed process loses nothing, a power cut the last commits, each as a whole.
        ``'none'``: only `sync` and `close` do; a killed process loses nothing, but a pool that is in use
        when the machine stops is refused afterwards (`CorruptionError`).
    max_size
        Bytes the file may grow to; None for as far as address space and disk go.
    timeout
        Seconds to wait for another process that has the pool open.
    allow_pickle
        Let reading a value run the unpickler, and import the class of a stored object, which the file
        names; both can run any code.  Without it such values are refused.
    progress
        Called as ``progress(done, total)`` now and then, with thousandths of the work, while garbage is
        collected after an unclean end.  What it raises leaves the pool closed, and that for next time.

    Attributes
    ----------
    mm
        The `MemoryManager`.
    lock
        Held by a running transaction, and by every method while it runs.
    filename, readonly, closed
    recovered
        Counts, as `gc` returns them, of the collection that opening made after an unclean end; else {}.

    Raises
    ------
    FileNotFoundError, FileExistsError
        As `flag` says.
    LockTimeoutError
        Another process has the pool open.  The message says which, where the system tells.
    PoolSizeError
        `pool_size` is too small.
    NotAStoreError, VersionError, CorruptionError
        The file is no pool, of a newer format, or damaged; it is left as it was.

    Notes
    -----
    Opening a pool that was closed cleanly costs the same whatever it holds.  Threads may share a pool:
    a transaction keeps the others waiting.  A forked child may not use its parent's.
    """

    def __init__(
        self,
        filename: _Path,
        flag: Literal["w", "x", "c", "r"] = "w",
        pool_size: int = MIN_POOL_SIZE,
        mode: int = 0o666,
        debug: bool = False,
        *,
        durability: Literal["full", "lazy", "none"] = "full",
        max_size: int | None = None,
        timeout: float | None = 0.0,
        allow_pickle: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self._closed = True
        self._collected = False
        self._closing = False
        self._swept = False  # no garbage is left from before
        self._before_close: Callable[[], None] = _nothing
        self.recovered: dict[str, int] = {}
        if flag not in {"w", "x", "c", "r"}:
            raise ValueError(f"flag must be one of 'w', 'x', 'c' or 'r', not {flag!r}")
        if durability not in {"full", "lazy", "none"}:
            raise ValueError(f"durability must be 'full', 'lazy' or 'none', not {durability!r}")
        self.filename: str = os.fsdecode(filename)
        self.readonly: bool = flag == "r"
        self._debug = debug
        self._pid = os.getpid()
        self._raw = self._open_raw(flag, pool_size, mode, durability, max_size, timeout)
        self._swept = self._raw.was_clean
        try:
            self._wire()
            self.mm.scalars.allow_pickle = self.mm.types.allow_import = allow_pickle
            self._closed = False
            _open_pools.add(self)
            if not self._raw.was_clean and not self.readonly:
                self._recover(progress)
        except BaseException:
            self._closed = True
            self._raw.close(clean=False)
            raise

    def _open_raw(
        self,
        flag: str,
        pool_size: int,
        mode: int,
        durability: str,
        max_size: int | None,
        timeout: float | None,
    ) -> rawpool.RawPool:
        path = self.filename
        options: dict[str, Any] = {"durability": durability, "timeout": timeout}
        if flag == "x" or (flag == "c" and not os.path.exists(path)):
            if pool_size < MIN_POOL_SIZE:
                raise PoolSizeError(
                    f"size {pool_size} smaller than {MIN_POOL_SIZE}",
                    path,
                    hint="pass a larger pool_size",
                )
            try:
                return rawpool.create(
                    path, pool_size, mode, format=_format, max_size=max_size, **options
                )
            except FileExistsError:
                if flag == "x":
                    raise  # else somebody made it just now
        return rawpool.open(path, readonly=flag == "r", max_size=max_size, **options)

    def _wire(self) -> None:
        raw = self._raw
        memory = raw.memory
        self.lock: threading.RLock = threading.RLock()
        transaction = Transaction(memory, raw.write, self.lock)
        self._transaction = transaction
        raw.transaction = transaction
        heap = Heap(memory, raw.heap_offset, self.filename)
        heap.extend = raw.extend
        heap.prepare = raw.prepare
        self.mm: MemoryManager = MemoryManager(heap, transaction, raw.pool_kind, self.filename)
        if self.readonly:
            transaction.refusal = ReadOnlyError(
                "the pool is open for reading only", self.filename, hint="open it with flag 'w'"
            )

    def _recover(self, progress: Progress | None) -> None:
        logger.warning("%s: not closed cleanly; collecting garbage", self.filename)
        try:
            # Without it, for the sake of subclasses whose `gc` knows of none.
            options: dict[str, Any] = {} if progress is None else {"progress": progress}
            _, self.recovered = self.gc(**options)
        except ObjectError as error:  # a class is not importable here; nothing was freed
            logger.warning("%s: not collected: %s", self.filename, str(error))

    # Content ----------------------------------------------------------------------------------

    @property
    def root(self) -> Any:
        """What everything else is reached from; set it to anything that can be persisted.

        Only what is reachable from it is kept when the pool is closed.
        """
        with self.lock:
            mm = self._usable()
            index = (mm.heap.start >> 3) + ROOT_OID
            kind, payload = mm.words[index], mm.words[index + 1]
            return mm.loaders[kind & 0xFF](kind, payload) if kind else None

    @root.setter
    def root(self, value: Any) -> None:
        with self.lock:
            mm = self._usable()
            with mm.operation:
                index = (mm.heap.start >> 3) + ROOT_OID
                old = mm.words[index], mm.words[index + 1]
                new = mm.own(value)
                mm.memory.snapshot(index << 3, 16)
                mm.words[index], mm.words[index + 1] = new
                if old != OID_NULL:
                    mm.release(*old)

    @overload
    def new(self, typ: type[_Collection], /) -> _Collection: ...
    @overload
    def new(
        self, typ: Callable[_Arguments, _New], /, *args: _Arguments.args, **kw: _Arguments.kwargs
    ) -> _New: ...
    def new(self, typ: Any, /, *args: Any, **kw: Any) -> Any:
        """Return a new instance of a class that supports the `Persistent` protocol, in this pool.

        Parameters
        ----------
        typ
            The class; also as ``PersistentList[int]``, for type checkers.
        *args, **kw
            For its constructor.

        Raises
        ------
        TypeError
            `typ` is no such class, or was defined in a function.
        """
        return self._usable().new(typ, *args, **kw)

    def persist_via_pickle(self, *types: type) -> None:
        """Let instances of exactly these classes be stored, as pickles.

        Parameters
        ----------
        *types
            Classes of immutable objects that hold no persistent ones.
        """
        self._usable().persist_via_pickle(*types)

    def transaction(self) -> Transaction:
        """Return the pool's transaction: a context manager, also with `begin`, `commit` and `abort`."""
        return self._usable().transaction()

    # Looking after ----------------------------------------------------------------------------

    def gc(
        self, debug: bool | None = None, *, progress: Progress | None = None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Free every object that cannot be reached from the root or from a living Python object.

        Parameters
        ----------
        debug
            Log each object that is freed; None for what the pool was opened with.
        progress
            Called as ``progress(done, total)`` now and then, with thousandths of the work, about.  What
            it raises ends the work: what was freed by then is, and the rest is left for the next time.

        Returns
        -------
        tuple
            Live objects by type name, and counts of what was found and freed: ``orphans0-gced``,
            ``orphans1-gced``, ``collections-gced``, ``containers-live``, ``other-live`` and so on.

        Raises
        ------
        TransactionError
            Called inside of a transaction.
        UnknownTypeError
            A stored object's class cannot be imported, so what it holds is unknown; nothing was freed.
        """
        with self.lock:
            mm = self._usable()
            self._transaction.drop_leftovers()
            if self._transaction.depth:
                raise TransactionError("gc called inside of a transaction", self.filename)
            if self._transaction.refusal is not None:
                raise self._transaction.refusal.with_traceback(None)
            mm.free_dead()
            collector = Collector(mm, debug=self._debug if debug is None else debug)
            if not (self._closing and self._swept):
                was_swept, self._swept = self._swept, False
                try:
                    found = collector.collect(repair=not was_swept, progress=progress)
                    self._swept = True
                finally:  # it may be interrupted
                    self._swept = self._swept or (was_swept and not collector.has_begun)
            if self._closing:  # Python objects keep nothing any more
                found = collector.collect_suspects()
            self._collected = True
            return found

    def check(self, *, progress: Progress | None = None) -> list[Problem]:
        """Return every broken invariant of the pool; empty if it is sound.

        Parameters
        ----------
        progress
            Called as ``progress(done, total)`` now and then, with thousandths of the work, about.

        Notes
        -----
        With `allow_pickle` off no class is imported, and what objects of users' classes hold is left out.
        """
        with self.lock:
            mm = self._usable()
            imports = mm.types.allow_import
            return list(checking.problems(mm, self._raw, import_classes=imports, progress=progress))

    def stats(self, *, walk: bool = False) -> PoolStats:
        """Return sizes and counts.

        Parameters
        ----------
        walk
            Count the blocks too, which costs a walk over all of them.
        """
        with self.lock:
            return checking.stats(self._usable(), self._raw, walk=walk)

    def dump(self, file: IO[bytes], *, progress: Progress | None = None) -> int:
        """Write everything reachable from the root to a stream that `load` reads; return the objects.

        Parameters
        ----------
        file
            Has `write`; a binary file, a pipe.
        progress
            Called as ``progress(done, total)`` now and then, with the bytes written, and about how many
            that will be.
        """
        from pmshelve.pmemobj import transfer

        with self.lock:
            return transfer.dump(self._usable(), file, progress=progress)

    def load(self, file: IO[bytes], *, progress: Progress | None = None) -> int:
        """Fill this pool, which must be empty, from a stream that `dump` wrote; return the objects.

        Parameters
        ----------
        file
            Has `read`.
        progress
            Called as ``progress(done, total)`` now and then, with thousandths of the work, about; with 0
            of 0 where the size of `file` is not known.  What it raises leaves the pool empty.
        """
        from pmshelve.pmemobj import transfer

        with self.lock:
            return transfer.load(self._usable(), file, progress=progress)

    def sync(self) -> None:
        """Return when every commit so far is on the disk."""
        with self.lock:
            self._usable()
            if not self.readonly:
                self._raw.sync()

    # Ending -----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Collect garbage, make everything last, give the file back.  Twice is fine.

        Raises
        ------
        TransactionError
            Called inside of a transaction; the pool stays open.
        OSError
            The pool could not be brought to a clean end; it is closed, and what was committed is kept.
        """
        if self._closed:
            return
        if self._pid != os.getpid():  # the file is the parent's
            self._end(clean=False, size=None)
            return
        with self.lock:
            if self.closed:  # by another thread, just now
                return
            self._transaction.drop_leftovers()
            if self._transaction.depth:
                raise TransactionError("close called inside of a transaction", self.filename)
            self._before_close()
            clean, size = False, None
            try:
                if not self.readonly and self._transaction.refusal is None:
                    clean, size = self._settle()
            finally:
                self._end(clean=clean, size=size)

    def leave(self) -> None:
        """Close without collecting garbage if that was cut short: whoever opens it next does.

        As `close` where there is no garbage from before.
        """
        with self.lock:
            if self._closed or self._swept or self.readonly:
                self.close()
            else:
                self._end(clean=False, size=None)

    def _settle(self) -> tuple[bool, int | None]:
        """Bring the pool to its clean end; return whether it got there, and the file's size then."""
        self._closing, self._collected = True, False
        identity = self.mm.identity
        identity.recent.clear()
        try:
            self.gc()
        except ObjectError as error:
            logger.warning("%s: not collected: %s", self.filename, str(error))
        finally:
            self._closing = False
        return self._collected, self._raw.trim(self.mm.heap.trim, self.mm.operation)

    def _end(self, *, clean: bool, size: int | None) -> None:
        self._closed = True
        self._transaction.refusal = closed()
        self.mm.refuse_all(closed)
        self._raw.close(clean=clean, size=size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """Close what nobody closed."""
        if getattr(self, "_closed", True) or self._pid != os.getpid():
            return
        try:
            if self._transaction.depth:  # a thread ended in the middle of one
                self._end(clean=False, size=None)
            else:
                self.close()
        except PmshelveError:
            logger.exception("%s: dropped, and could not be closed", self.filename)

    def _usable(self) -> MemoryManager:
        if self._closed:
            raise ClosedError("the pool was closed", self.filename, hint="open it again")
        return self.mm

    def __repr__(self) -> str:
        state = " closed" if self._closed else " read-only" if self.readonly else ""
        return f"<PersistentObjectPool {self.filename!r}{state}>"


def _nothing() -> None:
    return None


def _close_all() -> None:
    """Close at exit what is still open: later there are no modules to do it with."""
    for pool in list(_open_pools):
        if pool.lock.acquire(timeout=1.0):  # else some thread is busy with it for ever
            try:
                pool._drop()
            finally:
                pool.lock.release()


atexit.register(_close_all)
