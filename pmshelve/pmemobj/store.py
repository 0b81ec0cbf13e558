"""`MemoryManager`: blocks of the heap as counted objects.

    oid   names what is stored: an immediate value, or an object in this pool
    persist    Python value -> oid        resurrect    oid -> Python value
    incref/decref    references from stored objects; the last one gone frees the object, and what only
                     it held, at once

    references    Python object alive    then
    > 0           either                 stored
    0             yes                    kept until that Python object goes: its death is noticed at the
                                         end of the next transaction
    0             no                     freed (a new scalar is given to a container, or left to `gc`)

Freeing goes through a list of its own, never through recursion, so that depth does not matter.

What is kept in Python beside the pool: living objects (`identity`), values of scalars read (`values`),
objects made or freed since the transaction began (`born`), and what garbage may be found by when the pool is
closed, without a look at everything.  Every cycle of garbage can be reached from

* a *suspect*: a container that lost a reference, and was not freed: others are left, or somebody holds
  it in Python.  Only the collector clears it.
* or a *fresh* one: a container that was made and not yet given to one that is neither.

`unowned` has what `persist` was asked to store, and perhaps nobody took.  All of them may name more
than there is, after a rollback say, but never less.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pmshelve.errors import (
    ClosedError,
    CorruptionError,
    ObjectError,
    StateError,
    TransactionError,
    UnsupportedTypeError,
)
from pmshelve.pmemobj.identity import Guard, Identity, accept, refuse
from pmshelve.pmemobj.layout import (
    BLOCK_SIZE_MAX,
    KIND_POOL,
    OBJECT_HEADER,
    OID_NULL,
    POBJECT_TYPE_NUM,
    REFCOUNT_MASK,
    TYPE_CODE_SHIFT,
)
from pmshelve.pmemobj.oid import DECODERS, encode_immediate
from pmshelve.pmemobj.protocol import Oid, Persistent
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN, Scalars
from pmshelve.pmemobj.typetable import TypeTable

if TYPE_CHECKING:
    import mmap

    from pmshelve.pmemobj.heap import Heap
    from pmshelve.pmemobj.memory import Memory
    from pmshelve.pmemobj.transaction import Operation, Transaction

__all__ = ["MemoryManager"]

logger = logging.getLogger("pmshelve.pmemobj")

_VALUES_MAX = 4096
_VALUE_SIZE_MAX = 1024
"""Bytes of the largest value that is kept once it was read."""
_UNOWNED_MAX = 10_000
_MISSING = object()


class MemoryManager:
    """The memory of one open pool; ``pool.mm``, never made by hand.

    Notes
    -----
    Every method is atomic by itself, and part of a transaction if called inside of one.  All may be
    called from any thread; the pool's lock is taken for the call.

    Attributes
    ----------
    memory, heap, lock, operation
        The layers below, for classes that keep structures of their own.
    words, signed, doubles, map
        The pool's memory as 64-bit words and as bytes; call `snapshot_range` before a store.
    pool_kind
        First word of the oids of this pool.
    """

    def __init__(
        self, heap: Heap, transaction: Transaction, pool_kind: int, path: object = None
    ) -> None:
        memory = heap.memory
        self.heap: Heap = heap
        self.memory: Memory = memory
        self.words: memoryview[int] = memory.words
        self.signed: memoryview[int] = memory.signed
        self.doubles: memoryview[float] = memory.doubles
        self.map: mmap.mmap = memory.map
        self.pool_kind: int = pool_kind
        self.path: object = path
        self.lock: threading.RLock = transaction.lock
        self.operation: Operation = transaction.operation
        self.identity: Identity = Identity()
        self.values: dict[int, Any] = {}
        # Offsets of new objects; (offset, object) where one stood for what was freed or moved.
        self.born: list[Any] = []
        self.suspects: set[int] = set()
        self.fresh: set[int] = set()
        self.cleared: list[int] = []  # were fresh when the transaction began
        self.unowned: set[int] = set()
        self._unowned_max = _UNOWNED_MAX
        self.loaders: list[Callable[[int, int], Any]] = list(DECODERS)
        self.loaders[KIND_POOL] = self.load
        self._unstarted: list[tuple[Any, int]] | None = None
        self.scalars: Scalars = Scalars(heap)
        self.types: TypeTable = TypeTable(heap)
        self._transaction = transaction
        transaction.mark = self.born.__len__
        transaction.after_rollback = self._after_rollback
        transaction.after_commit = self._after_commit

    # Transactions -------------------------------------------------------------------------------

    def transaction(self) -> Transaction:
        """Return the context manager of a transaction; see `pmshelve.pmemobj.transaction`."""
        return self._transaction

    def _after_rollback(self, mark: int) -> None:
        identity = self.identity
        self.values.clear()
        self.fresh.update(self.cleared)
        born = self.born
        while len(born) > mark:
            offset = born[-1]
            if offset.__class__ is tuple:
                offset, thing = offset
                accept(thing, self, offset)
                identity.register(offset, thing)
            else:
                self.suspects.discard(offset)
                self.fresh.discard(offset)
                thing = identity.get(offset)
                if thing is not None:
                    refuse(thing, _aborted)
                identity.forget(offset)
            del born[-1]  # only now: a signal in between must not make us forget it
        self.types.forget()
        for _, thing in identity.living():
            forget = getattr(thing, "_p_forget", None)
            if forget is not None:
                forget()

    def _after_commit(self) -> None:
        if self.born:
            self.born.clear()
        if self.cleared:
            self.cleared.clear()
        if len(self.unowned) > self._unowned_max:
            words = self.words
            self.unowned = {
                offset for offset in self.unowned if not words[offset >> 3] & REFCOUNT_MASK
            }
            self._unowned_max = max(_UNOWNED_MAX, 2 * len(self.unowned))
        if self.identity.dead:
            try:
                self.free_dead()
            except Exception as error:  # noqa: BLE001 - what was committed is; `gc` finds the rest
                logger.warning("%s: garbage is left to gc: %s", self.path, error)

    def free_dead(self) -> None:
        """Free what only Python objects held that are gone now.

        Called with the lock held, outside of transactions.
        """
        identity = self.identity
        references, dead = identity.references, identity.dead
        zero = []
        while dead:
            reference = dead.popleft()
            offset = reference.offset
            if references.get(offset) is reference:
                del references[offset]
                if not self.words[offset >> 3] & REFCOUNT_MASK:
                    zero.append(offset)
        if zero:
            with self.operation:
                for offset in zero:
                    self._deallocate(offset)

    def snapshot_range(self, oid_or_offset: Any, size: int, offset: int = 0) -> None:
        """Make a range of a block part of the running transaction: store into it afterwards.

        Parameters
        ----------
        oid_or_offset
            The block's oid, or a bare offset in the pool.
        size
            Bytes; rounded outwards to multiples of 8.
        offset
            From the beginning of the block.

        Raises
        ------
        TransactionError
            Called outside of a transaction.
        ValueError
            The range is not inside of the block.
        """
        with self.lock:
            self._demand_transaction("snapshot_range")
            start = self._offset_of(oid_or_offset) + offset
            room = self.heap.size_of(start - offset)
            if offset < 0 or size < 0 or offset + size > room:
                raise ValueError(f"{size} bytes at {offset} are not inside of a block of {room}")
            if size:
                low = start & ~7
                self.memory.snapshot(low, -(-(start + size) // 8) * 8 - low)

    def _demand_transaction(self, name: str) -> None:
        if self.memory.changes is None:
            raise TransactionError(f"{name} called outside of transaction", self.path)

    # Blocks -------------------------------------------------------------------------------------

    def otuple(self, oid: Any) -> Oid:
        """Return `oid`, any pair of integers, as a tuple."""
        kind, payload = oid
        return int(kind), int(payload)

    def alloc(self, size: int, type_num: int = POBJECT_TYPE_NUM) -> Oid:
        """Return the oid of `size` new bytes of undefined content.  Only in a transaction."""
        oid = self._allocate("alloc", self.heap.alloc, size, type_num)
        if type_num == POBJECT_TYPE_NUM and size >= OBJECT_HEADER:
            self.words[oid[1] >> 3] = 0  # of no class, and nobody's, until the header is written
        return oid

    def zalloc(self, size: int, type_num: int = POBJECT_TYPE_NUM) -> Oid:
        """Return the oid of `size` new bytes, all zero.  Only in a transaction."""
        return self._allocate("zalloc", self.heap.zalloc, size, type_num)

    def realloc(self, oid: Any, size: int, type_num: int | None = None) -> Oid:
        """Return the oid of a block of `size` bytes with the content of `oid`, which is freed.

        New bytes are zero.  Only in a transaction.

        Raises
        ------
        ValueError
            `oid` names no block, or one of another type number than `type_num`.
        """
        offset = self._offset_of(oid)
        with self.lock:
            self._demand_transaction("realloc")
            found = self.heap.type_num_of(offset)
            if type_num is not None and type_num != found:
                raise StateError(
                    f"the block at {offset:#x} has type number {found}, not {type_num}", self.path
                )
            with self.operation:
                moved = self._allocate("realloc", self.heap.zrealloc, offset, size)
                if found == POBJECT_TYPE_NUM:
                    self._note_moved(offset, moved[1])
                return moved

    def _note_moved(self, old: int, offset: int) -> None:
        """Let what is known in Python of the object at `old` be known of `offset`."""
        self.values.pop(old, None)
        if old == offset:
            return
        for names in (self.suspects, self.fresh, self.unowned):
            if old in names:
                names.add(offset)
        thing = self.identity.forget(old)
        if thing is not None:
            self.born += ((old, thing), offset)
            self.identity.register(offset, thing)

    def zrealloc(self, oid: Any, size: int, type_num: int | None = None) -> Oid:
        """Do as `realloc`, whose new bytes are zero too."""
        return self.realloc(oid, size, type_num)

    def _allocate(self, name: str, how: Callable[..., int], *arguments: Any) -> Oid:
        with self.lock:
            self._demand_transaction(name)
            with self.operation:
                return self.pool_kind, how(*arguments)

    def free(self, oid: Any) -> None:
        """Give a block back.  Only in a transaction.

        Raises
        ------
        TransactionError
            Called outside of a transaction.
        ValueError
            `oid` names no block, or one freed before.
        """
        offset = self._offset_of(oid)
        with self.lock:
            self._demand_transaction("free")
            with self.operation:
                is_object = self.heap.type_num_of(offset) == POBJECT_TYPE_NUM
                self.heap.free(offset)
                if is_object:
                    self._forget_object(offset)

    def direct(self, oid: Any) -> int:
        """Return the address, in this process, of a block's first byte."""
        with self.lock:
            offset = self._offset_of(oid)
            self.heap.size_of(offset)  # raises for what is no block
            return self.heap.base_address() + offset

    def view(self, oid: Any) -> memoryview:
        """Return the bytes of a block as a writable memoryview.

        Notes
        -----
        Call `snapshot_range` before a store, in a transaction: what is stored without is not written to
        the file.  A view must be released before the pool is closed, or its memory stays mapped.
        """
        with self.lock:
            offset = self._offset_of(oid)
            return self.memory.bytes[offset : offset + self.heap.size_of(offset)]

    def _offset_of(self, oid: Any) -> int:
        if oid.__class__ is int:
            return int(oid)
        kind, payload = oid
        if kind != self.pool_kind:
            if tuple(oid) == OID_NULL:
                raise ValueError("the oid is OID_NULL")
            raise ValueError(f"oid ({kind:#x}, {payload:#x}) is no block of this pool")
        return int(payload)

    # Reference counts -----------------------------------------------------------------------------

    def incref(self, oid: Any) -> None:
        """Count one more reference to an object; immediates have no count."""
        kind, payload = oid
        if self._is_object(kind, payload):
            with self.operation:
                self.memory.snapshot(payload, 8)
                self.words[payload >> 3] += 1

    def decref(self, oid: Any) -> None:
        """Count one reference less; without any left the object is freed.

        Raises
        ------
        ValueError
            `oid` is OID_NULL or names no object of this pool, or there was no reference.
        """
        kind, payload = oid
        if self._is_object(kind, payload):
            with self.operation:
                self.release(kind, payload)

    def xdecref(self, oid: Any) -> None:
        """Do as `decref` if `oid` is not OID_NULL."""
        if tuple(oid) != OID_NULL:
            self.decref(oid)

    def _is_object(self, kind: int, payload: int) -> bool:
        """Whether an oid names an object; False for immediates, ValueError for anything else."""
        if kind & 0xFF != KIND_POOL and kind:
            return False
        with self.lock:
            offset = self._offset_of((kind, payload))
            if self.heap.type_num_of(offset) != POBJECT_TYPE_NUM:
                raise ValueError(f"the block at {offset:#x} is no object")
        return True

    def own(self, value: Any, parent: int = 0) -> Oid:
        """Return the oid of `value`, with one more reference to it.  For collections.

        Parameters
        ----------
        parent
            Offset of the object that holds it from now on.
        """
        oid = encode_immediate(value)
        if oid is not None:
            return oid
        store = self.scalars.storers.get(type(value))
        if store is not None:  # a new block, which the transaction knows: nothing to snapshot
            offset = store(value)
            self.words[offset >> 3] += 1
            return self.pool_kind, offset
        oid = self._persist(value)
        kind, payload = oid
        if kind == self.pool_kind:
            self.memory.snapshot(payload, 8)
            header = self.words[payload >> 3] = self.words[payload >> 3] + 1
            if header >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN:
                fresh = self.fresh
                if payload in fresh and parent not in fresh and parent not in self.suspects:
                    fresh.discard(payload)
                    self.cleared.append(payload)
        return oid

    def release(self, kind: int, payload: int) -> None:
        """Give up one reference.  For collections, inside of an operation."""
        if kind != self.pool_kind:
            return
        if payload >= self.memory.size:
            raise self._damaged_oid(payload)
        index = payload >> 3
        header = self.words[index]
        count = header & REFCOUNT_MASK
        if not count:
            raise StateError(f"the object at {payload:#x} has no references left", self.path)
        self.memory.snapshot(payload, 8)
        self.words[index] = header - 1
        if count > 1:
            if header >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN:
                self.suspects.add(payload)
        elif header >> TYPE_CODE_SHIFT < CONTAINER_CODE_MIN:
            self.values.pop(payload, None)
            self.heap.free(payload)
        elif self.identity.is_held(payload):
            self.suspects.add(payload)
        else:
            self._deallocate(payload)

    def release_many(self, offsets: Iterable[int]) -> None:
        """Give up one reference to each of the objects at `offsets`."""
        kind = self.pool_kind
        for offset in offsets:
            self.release(kind, offset)

    def _deallocate(self, offset: int) -> None:
        """Free an object that has no references, and whatever only it held."""
        words, snapshot, free = self.words, self.memory.snapshot, self.heap.free
        end = self.memory.size
        waiting = [offset]
        while waiting:
            offset = waiting.pop()
            for child in self._strip(offset):
                if child >= end:
                    raise self._damaged_oid(child)
                index = child >> 3
                header = words[index]
                count = header & REFCOUNT_MASK
                if not count:
                    raise self._damaged_oid(child)  # what is held has a reference
                code = header >> TYPE_CODE_SHIFT
                if count == 1 and code < CONTAINER_CODE_MIN:
                    self.values.pop(child, None)
                    free(child)
                    continue
                snapshot(child, 8)
                words[index] = header - 1
                if count > 1:
                    if code >= CONTAINER_CODE_MIN:
                        self.suspects.add(child)
                elif self.identity.is_held(child):
                    self.suspects.add(child)
                else:
                    waiting.append(child)
            free(offset)
            self._forget_object(offset)

    def _strip(self, offset: int) -> list[int]:
        """Free the blocks of an object; return the offsets of the objects it gives up."""
        free = self.heap.free
        cls = self.types.class_of(self.words[offset >> 3] >> TYPE_CODE_SHIFT)
        if self.types.is_static(cls):
            children: list[int] = cls._p_children(self, offset)
            for block in cls._p_blocks(self, offset):
                free(block)
            return children
        thing = self.load(self.pool_kind, offset)
        deallocate = getattr(thing, "_p_deallocate", None)
        if deallocate is not None:
            deallocate()
            children = []
        else:
            children = self.children_of(offset)
            for block in self.blocks_of(offset):
                free(block)
        refuse(thing, _freed)
        return children

    def _forget_object(self, offset: int) -> None:
        for names in (self.suspects, self.fresh):
            if offset in names:
                names.discard(offset)
                self.cleared.append(offset)  # a rollback makes it one again
        self.values.pop(offset, None)
        thing = self.identity.forget(offset)
        if thing is not None:
            refuse(thing, _freed)
            self.born.append((offset, thing))

    def children_of(self, offset: int) -> list[int]:
        """Return the offsets of the objects that a container holds, each as often."""
        cls = self.types.class_of(self.words[offset >> 3] >> TYPE_CODE_SHIFT)
        if self.types.is_static(cls):
            children: list[int] = cls._p_children(self, offset)
            return children
        kind = self.pool_kind
        held = self.load(kind, offset)._p_traverse()
        return [payload for space, payload in map(tuple, held) if space == kind]

    def blocks_of(self, offset: int) -> list[int]:
        """Return the offsets of the blocks that a container owns."""
        cls = self.types.class_of(self.words[offset >> 3] >> TYPE_CODE_SHIFT)
        if self.types.is_static(cls):
            blocks: list[int] = cls._p_blocks(self, offset)
            return blocks
        owned = self.load(self.pool_kind, offset)._p_substructures()
        return [payload for space, payload in map(tuple, owned) if space]

    # Values ---------------------------------------------------------------------------------------

    def new(self, typ: Any, /, *args: Any, **kw: Any) -> Any:
        """Return a new instance of a class that supports the `Persistent` protocol.

        Raises
        ------
        TypeError
            `typ` is no such class, or cannot be found again by name (it was defined in a function).
        """
        if not issubclass(type(typ), type):  # PersistentList[int], say
            typ = getattr(typ, "__origin__", typ)
        if not (isinstance(typ, type) and issubclass(typ, Persistent)):
            raise UnsupportedTypeError(
                f"{typ!r} does not support the Persistent protocol",
                hint="subclass PersistentObject or Persistent",
            )
        with self.operation:
            thing = self.make(typ)
            start = getattr(thing, "_v__init__", None)
            if start is not None:
                start()
            thing.__init__(*args, **kw)
            return thing

    def make(self, typ: Any) -> Any:
        """Return a new instance whose constructor was not called.  Inside of an operation."""
        code = self.types.code_of(typ)
        thing = typ.__new__(typ)
        thing._p_new(self)
        offset = thing._p_oid[1]
        self.memory.snapshot(offset, 8)
        self.words[offset >> 3] = code << TYPE_CODE_SHIFT
        self.identity.register(offset, thing)
        self.born.append(offset)
        self.fresh.add(offset)
        return thing

    def persist(self, obj: Any) -> Oid:
        """Return the oid of a value, storing it if it is not stored yet.

        Raises
        ------
        TypeError
            The type cannot be persisted; nothing was stored.
        ValueError
            The object is in another pool, or its own was closed.
        """
        oid = self._persist(obj)
        kind, payload = oid
        if kind == self.pool_kind and not self.words[payload >> 3] & REFCOUNT_MASK:
            self.unowned.add(payload)
        return oid

    def _persist(self, obj: Any) -> Oid:
        oid = encode_immediate(obj)
        if oid is not None:
            return oid
        if isinstance(obj, Persistent):
            return self._oid_of(obj)
        with self.operation:
            offset = self.scalars.store(obj)
            if offset is None:
                offset = self._persist_builtin(obj)
            return self.pool_kind, offset

    def _oid_of(self, thing: Any) -> Oid:
        manager = getattr(thing, "_p_mm", None)
        if manager is self:
            oid: Oid = thing._p_oid
            return oid
        name = type(thing).__name__
        if manager is None:
            raise ObjectError(f"this {name} is in no pool", hint="make it with pool.new()")
        if isinstance(manager, Guard):
            with manager:
                pass
        raise StateError(f"this {name} is in another pool", self.path, hint="copy it: pool.new()")

    def _persist_builtin(self, value: Any) -> int:
        """Store an immutable built-in collection as the persistent class that equals it."""
        make = self.types.builtin_maker(type(value))
        if make is None:
            raise self.scalars.unsupported(value)
        offset: int = make(self, value)
        return offset

    def persist_via_pickle(self, *types: type) -> None:
        """Let instances of exactly these immutable classes be stored as pickles."""
        for typ in types:
            if not isinstance(typ, type):
                raise TypeError(f"a class is nominated, not {typ!r}")
            self.types.demand_durable(typ)
        self.scalars.nominate(*types)

    def resurrect(self, oid: Any) -> Any:
        """Return the Python value of an oid: the object itself, or what stands for it."""
        kind, payload = oid
        if not kind and not payload:
            raise ValueError("the oid is OID_NULL")
        if self._is_object(kind, payload):
            with self.lock:
                return self.load(kind, payload)
        return self.loaders[kind & 0xFF](kind, payload)

    def load(self, kind: int, payload: int) -> Any:
        """Return the object of a pool's oid.  For collections, with the lock held."""
        reference = self.identity.references.get(payload)
        if reference is not None:
            thing = reference()
            if thing is not None:
                return thing
        value = self.values.get(payload, _MISSING)
        if value is not _MISSING:
            return value
        if payload >= self.memory.size:
            raise self._damaged_oid(payload)
        code = self.words[payload >> 3] >> TYPE_CODE_SHIFT
        if code < CONTAINER_CODE_MIN:
            value = self.scalars.load(payload, code)
            if self.words[(payload >> 3) - 1] & BLOCK_SIZE_MAX <= _VALUE_SIZE_MAX:
                values = self.values
                if len(values) >= _VALUES_MAX:
                    values.clear()
                values[payload] = value
            return value
        if not self.heap.is_block(payload):
            raise self._damaged_oid(payload)
        cls = self.types.class_of(code)
        thing = cls.__new__(cls)
        thing._p_resurrect(self, (kind, payload))
        self.identity.register(payload, thing)
        if hasattr(thing, "_v__init__"):
            self._start(thing, payload)
        return thing

    def load_many(self, kinds: list[int], payloads: list[int]) -> list[Any]:
        """Return the values of many oids; for collections, with the lock held.

        Objects' own `_v__init__` run when all are loaded: one that removes an object further on finds
        it held.
        """
        loaders = self.loaders
        loaded: list[tuple[Any, int]] = []
        started = 0
        outer, self._unstarted = self._unstarted, loaded
        try:
            try:
                values = [
                    loaders[kind & 0xFF](kind, payload)
                    for kind, payload in zip(kinds, payloads, strict=True)
                ]
            finally:
                self._unstarted = outer
            for thing, _ in loaded:
                thing._v__init__()
                started += 1
        except BaseException:
            for _, offset in loaded[started:]:  # half made: the next one who reads them tries again
                self.identity.forget(offset)
            raise
        return values

    def _start(self, thing: Any, offset: int) -> None:
        if self._unstarted is not None:
            self._unstarted.append((thing, offset))
            return
        try:
            thing._v__init__()
        except BaseException:
            self.identity.forget(offset)  # half made: the next one who reads it tries again
            raise

    def _damaged_oid(self, payload: int) -> CorruptionError:
        return CorruptionError(
            "an oid leads to no object", self.path, offset=payload, invariant="R1"
        )

    # Ending ---------------------------------------------------------------------------------------

    def refuse_all(self, make: Callable[[], BaseException]) -> None:
        """Let every use of every Python object of this pool raise what `make` returns."""
        for offset, thing in self.identity.living():
            self.identity.forget(offset)
            refuse(thing, make)
        self.identity.recent.clear()
        self.values.clear()
        self.lock = self.operation = Guard(make)  # type: ignore[assignment]


def _aborted() -> BaseException:
    return TransactionError("the object was made in a transaction that was aborted")


def _freed() -> BaseException:
    return StateError("the object was freed")


def closed() -> BaseException:
    """Return the error of an object whose pool was closed."""
    return ClosedError("the pool was closed", hint="open it again")
