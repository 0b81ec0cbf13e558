"""A heap without a pool: anonymous memory, and a disk that is replayed as a pool's would be."""

from __future__ import annotations

import mmap

from pmshelve.errors import NoSpaceError
from pmshelve.pmemobj.heap import Heap
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import Changes, Memory

START = 2 * PAGE
RESERVED = 64 << 20


class HeapLab:
    """One heap, what of it is on disk, and the records since the last checkpoint.

    Attributes
    ----------
    size_max
        Bytes that the file may have; `NoSpaceError` past them.
    disk
        The file.
    records
        Of each commit since the last checkpoint, the ranges it changed.
    """

    def __init__(self, pages: int = 8, reserved: int = RESERVED) -> None:
        self.size_max = reserved
        self.memory = Memory(mmap.mmap(-1, reserved), START + pages * PAGE)
        self.heap = self._open(Heap.format(self.memory, START, pages, "test.pool"))
        self.disk = bytearray(self.memory.map[: self.memory.size])
        self.records: list[list[tuple[int, bytes]]] = []

    def _open(self, heap: Heap) -> Heap:
        heap.extend = self._extend
        return heap

    def _extend(self, size: int) -> None:
        if size > self.size_max:
            raise NoSpaceError("the disk is full")
        self.memory.size = max(self.memory.size, size)

    def close(self) -> None:
        assert self.memory.release()

    # Transactions -----------------------------------------------------------------------------

    def begin(self) -> None:
        self.memory.begin()

    def rollback(self) -> None:
        self.memory.rollback()

    def commit(self) -> None:
        """Make the transaction's changes last: fresh ranges to the disk, the rest to a record."""
        changes = self.memory.end()
        self._write_fresh(changes)
        record = []
        for offset, old in changes.saved.items():
            record.append((offset, self.memory.map[offset : offset + len(old)]))
            self.memory.dirty.update(range(offset // PAGE, (offset + len(old) - 1) // PAGE + 1))
        self.records.append(record)

    def _write_fresh(self, changes: Changes) -> None:
        self.disk.extend(bytes(self.memory.size - len(self.disk)))
        for offset, size in changes.fresh.items():
            self.disk[offset : offset + size] = self.memory.map[offset : offset + size]

    def checkpoint(self) -> None:
        self._replay()
        self.records.clear()
        self.memory.dirty.clear()
        self.memory.recent.clear()

    def _replay(self) -> None:
        for record in self.records:
            for offset, new in record:
                self.disk[offset : offset + len(new)] = new

    def crash(self, *, while_committing: bool = False) -> None:
        """Lose memory, and have it again from the disk and the records."""
        if while_committing:  # fresh ranges were written, the record was not
            while self.memory.outer:
                self.memory.merge()
            self._write_fresh(self.memory.end())
        self._replay()
        self.records.clear()
        size = len(self.disk)
        assert self.memory.release()
        self.memory = Memory(mmap.mmap(-1, max(RESERVED, size)), size)
        self.memory.map[:size] = bytes(self.disk)
        self.heap = self._open(Heap(self.memory, START, "test.pool"))

    def reopen(self) -> None:
        """Use another `Heap` over the same memory: none has a state of its own."""
        self.heap = self._open(Heap(self.memory, START, "test.pool"))

    # Blocks -----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        return self.memory.map[offset : offset + size]

    def write(self, offset: int, content: bytes) -> None:
        """Store into a block that was allocated in the same operation."""
        self.memory.map[offset : offset + len(content)] = content
