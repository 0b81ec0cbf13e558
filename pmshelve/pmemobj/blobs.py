"""Large values that never lie in the pool's memory: written to the file, and mapped from there.

    a bytes value's block, a run    page 0: headers, the first bytes     pages 1 to n: the rest
    written                         in memory, as all else               by one call, from its buffers
    read                            a private map of these pages of the file, one for each reader

A run that held nothing goes home before the record that gives it a meaning (see "fresh ranges" in
docs/format-pmemobj.md), so its pages are in the file as soon as it is committed, and stay as they are
until it is freed: nothing changes a bytes value.  A reader's map shows them, and what the reader
stores into it stays there.

While there is a reader, the block must not become another's.  A value that is removed meanwhile is in
*limbo*: its block has no references, as one that nobody has taken yet, and is freed when the last
reader has gone.  If the process dies first, the next opener's collection does it.

    state     references  readers   entered by
    stored            1       any   a commit
    limbo             0        >0   `Blobs.remove`, in the transaction that removes the value
    free                         0  `settle`, after the last reader's map has ended

What is done after a commit (settling, giving blocks back) may fail for want of space, and is then tried
again later: the caller's change has been made, and he is not told that it failed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pmshelve.errors import ClosedError, CorruptionError, PmshelveError
from pmshelve.pmemobj.layout import (
    BLOCK_SIZE_MAX,
    OBJECT_HEADER,
    PAGE,
    POBJECT_TYPE_NUM,
    REFCOUNT_MASK,
    RUN_DATA,
    TYPE_CODE_SHIFT,
)
from pmshelve.pmemobj.memory import pages_of
from pmshelve.pmemobj.scalars import CODE_BYTES
from pmshelve.pmemobj.sizeclass import SMALL_MAX
from pmshelve.storage.file import expect_random_access
from pmshelve.storage.region import CAN_DETACH, detach, drop_inner_pages

if TYPE_CHECKING:
    from pmshelve.pmemobj.rawpool import RawPool
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["LARGE_SIZE_MIN", "WINDOWS_MAX", "Blobs"]

LARGE_SIZE_MIN = 1 << 16
"""Size from which a value may go past memory, and come back as a map of its own."""
WINDOWS_MAX = 512
"""Maps alive in this process at most, each of which holds a descriptor (before Python 3.13)."""

_FIRST = PAGE - RUN_DATA - OBJECT_HEADER
"""Bytes of a value in the first page of its run."""
_RENEW_SIZE_MIN = 1 << 22
"""Size from which a checkpoint costs less than to log a value, where checkpoints are synced."""
_RECENT_MAX = 1 << 8
"""Pages that may have been freed before a checkpoint is made for a value between 16 and 64 KiB."""
_GIVE_BACK_MIN = 1 << 22
_GIVE_BACK_SYNCED_MIN = 1 << 26
"""Bytes that are freed before their blocks are given back, which takes a checkpoint."""
_TOUCHED_MAX = 1 << 25
"""Bytes of the file read or stored through memory before its pages are given back."""

_windows: set[Any] = set()  # of all pools of this process


class Blobs:
    """The bytes values of one pool.  Every method is called with the pool's lock held.

    Parameters
    ----------
    manager, raw
        The pool's.

    Attributes
    ----------
    limbo
        Offsets of the values that were removed and are still being read; after a rollback also of some
        that were not removed.
    """

    def __init__(self, manager: MemoryManager, raw: RawPool) -> None:
        self._manager = manager
        self._raw = raw
        self._heap = manager.heap
        self.limbo: set[int] = set()
        self._ended: deque[tuple[Any, int]] = deque()
        self._readers: dict[int, set[Any]] = {}
        self._unread: list[int] = []  # in limbo, without a reader, and not freed yet
        self._placed = 0, 0  # where the running operation wrote past memory
        self._touched = 0
        much = _GIVE_BACK_MIN if raw.unsynced else _GIVE_BACK_SYNCED_MIN
        self._give_back_pages = much // PAGE
        expect_random_access(raw.memory.map)
        _all.add(self)
        raw.free_runs = manager.heap.free_runs

    # Writing ----------------------------------------------------------------------------------

    def begin(self, size: int = 0) -> None:
        """Do what is due before a transaction that is to store a value of this size.

        Space freed since the last checkpoint cannot be written past memory, so one is made.
        """
        raw = self._raw
        if raw.memory.changes is not None:
            return
        if self._placed[1]:  # by an operation that failed, perhaps: the pages are free then
            raw.freed.update(pages_of(*self._placed))
            self._placed = 0, 0
        if self._ended or self._unread:
            self.settle()
        recent = len(raw.memory.recent)
        if raw.unsynced and size >= raw.memory.fresh_min:
            renewing_pays = recent > (0 if size >= LARGE_SIZE_MIN else _RECENT_MAX)
        else:
            renewing_pays = recent > 0 and size >= _RENEW_SIZE_MIN
        if renewing_pays:
            raw.checkpoint()

    def store(self, parts: Sequence[memoryview], size: int) -> int:
        """Store buffers, of `size` bytes in all, as one bytes value; return its offset.

        In an operation.  The value has one reference: the caller's.
        """
        heap = self._heap
        raw = self._raw
        memory = heap.memory
        raw.leading = size > SMALL_MAX and raw.places(size)
        try:
            offset = heap.alloc(OBJECT_HEADER + size)
        finally:
            leading, raw.leading = raw.leading, False
        memory.words[offset >> 3] = CODE_BYTES << TYPE_CODE_SHIFT | 1
        at = offset + OBJECT_HEADER
        if leading and size > _FIRST:
            start = offset - RUN_DATA
            assert memory.changes is not None
            first, rest = _split(parts, _FIRST)
            if start in memory.changes.fresh:
                self._placed = start + PAGE, size - _FIRST
                if raw.place(start + PAGE, rest, size - _FIRST):
                    rest = []
            if rest:
                raw.prepare(start + PAGE, size - _FIRST)
            parts = [*first, *rest]
        for part in parts:
            stop = at + len(part)
            memory.bytes[at:stop] = part
            at = stop
        self._touched += at - offset
        return offset

    # Reading ----------------------------------------------------------------------------------

    def _find(self, kind: int, payload: int) -> tuple[int, int]:
        """Return offset and size of the bytes of a stored bytes value.

        Raises
        ------
        CorruptionError
            The oid names something else.
        """
        manager = self._manager
        words = manager.words
        stop = size = code = -1
        if OBJECT_HEADER < payload < self._heap.memory.size:
            size = (words[(payload >> 3) - 1] & BLOCK_SIZE_MAX) - OBJECT_HEADER
            code = words[payload >> 3] >> TYPE_CODE_SHIFT
            stop = payload + OBJECT_HEADER + size
        if kind != manager.pool_kind or code != CODE_BYTES or size < 0 or stop > len(self):
            raise CorruptionError(
                "a value is not bytes", manager.path, offset=payload, invariant="V2"
            )
        return payload + OBJECT_HEADER, size

    def __len__(self) -> int:
        return self._heap.memory.size

    def read(self, kind: int, payload: int) -> bytearray | memoryview:
        """Return the bytes of a value in memory of the caller's own."""
        offset, size = self._find(kind, payload)
        if size >= LARGE_SIZE_MIN:
            window = self._window(payload, offset, size)
            if window is not None:
                return window
        content = bytearray(self._heap.memory.bytes[offset : offset + size])
        self._touched += size
        if self._touched > _TOUCHED_MAX:
            self._relax()
        return content

    def _window(self, payload: int, offset: int, size: int) -> memoryview | None:
        """Return a private map of a value's bytes; None where they have to be copied."""
        raw = self._raw
        if self._ended or self._unread:
            self.settle()
        memory = raw.memory
        # A value is as a whole in the file, or not yet; its first page may differ in the header alone.
        if len(_windows) >= WINDOWS_MAX or (offset + size - 1) // PAGE in memory.dirty:
            return None
        if memory.changes is not None or not CAN_DETACH:
            return None
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        try:
            private = raw.window(start, offset + size - start)
        except OSError:
            return None
        # The callback may run at any moment, in any thread: it only enqueues.
        ended = self._ended

        def tell(reference: Any) -> None:
            _windows.discard(reference)
            ended.append((reference, payload))

        reference = weakref.ref(private, tell)
        _windows.add(reference)
        self._readers.setdefault(payload, set()).add(reference)
        return memoryview(private)[offset - start :]

    # Removing ---------------------------------------------------------------------------------

    def remove(self, oid: tuple[int, int]) -> None:
        """Give up the one reference to what a key had; in an operation.

        What is still being read stays, without references.
        """
        kind, payload = oid
        manager = self._manager
        if kind != manager.pool_kind:
            return
        if payload not in self._readers:
            manager.release(kind, payload)
            return
        index = payload >> 3
        self.limbo.add(payload)
        manager.unowned.add(payload)  # the collection at close frees it, if nothing else does
        self._heap.memory.snapshot(payload, 8)
        manager.words[index] -= 1

    def end(self) -> None:
        """Do what is due after a commit."""
        self._placed = 0, 0
        if self._touched > _TOUCHED_MAX:
            self._relax()
        self._give_back_much()

    def keys_read(self, root: Any) -> list[Any]:
        """Return the keys of a dict whose values somebody may be reading."""
        return [key for key, payload in root._p_offsets() if payload in self._readers]

    def settle(self) -> None:
        """Free what was in limbo and is read no more; where that fails it is tried again later."""
        if self._raw.memory.changes is not None:
            return  # some finalizer called, which must not free what may be rolled back
        while self._ended:
            reference, payload = self._ended.popleft()
            readers = self._readers.get(payload)
            if readers is None or reference not in readers:
                continue
            readers.discard(reference)
            if not readers:
                del self._readers[payload]
                if payload in self.limbo:
                    self._unread.append(payload)
        if self._unread:
            with contextlib.suppress(PmshelveError):
                self._free_unread()

    def _free_unread(self) -> None:
        manager = self._manager
        heap = self._heap
        with manager.operation:
            for payload in dict.fromkeys(self._unread):
                # It may have been freed just before a signal, or taken back by a rollback.
                if (
                    payload not in self._readers
                    and heap.is_block(payload)
                    and heap.type_num_of(payload) == POBJECT_TYPE_NUM
                    and not manager.words[payload >> 3] & REFCOUNT_MASK
                ):
                    heap.free(payload)
        self.limbo.difference_update(self._unread)
        manager.unowned.difference_update(self._unread)
        self._unread.clear()
        self._give_back_much()

    def _give_back_much(self) -> None:
        if len(self._raw.memory.recent) + len(self._raw.freed) >= self._give_back_pages:
            self.give_back()

    def give_back(self) -> None:
        """Give the blocks of what was freed back to the file system, if that can be done now."""
        with contextlib.suppress(PmshelveError):
            self._raw.give_back()

    # Memory and blocks ------------------------------------------------------------------------

    def _relax(self) -> None:
        """Give the memory back that only holds what the file holds."""
        self._touched = 0
        memory = self._raw.memory
        if memory.changes is None:
            drop_inner_pages(memory.map, memory.clean_runs())

    def part(self) -> None:
        """Let every reader have its bytes in memory of its own, and free what is in limbo.

        Before the pool is closed, which cuts its file, and before a fork, whose child cannot be asked
        what it reads.  Costs the memory of all that is being read.
        """
        for readers in list(self._readers.values()):
            for reference in list(readers):
                private = reference()
                if private is not None and not detach(private):
                    raise MemoryError("no memory for the buffers of this store that are in use")
        self._ended.extend(
            (reference, payload)
            for payload, readers in self._readers.items()
            for reference in readers
        )

    def part_for_good(self) -> None:
        """Do so before the pool is closed."""
        self.part()
        self.settle()


def _before_fork() -> None:
    for blobs in list(_all):
        try:
            with blobs._manager.lock:
                blobs.part()
        except ClosedError:
            pass


_all: weakref.WeakSet[Blobs] = weakref.WeakSet()
os.register_at_fork(before=_before_fork)


def _split(parts: Sequence[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """Cut a sequence of buffers in two, the first of `size` bytes."""
    first: list[memoryview] = []
    for place, part in enumerate(parts):
        if len(part) > size:
            first.append(part[:size])
            return first, [part[size:], *parts[place + 1 :]]
        first.append(part)
        size -= len(part)
    return first, []
