"""Look into a pool file without its lock: nothing is waited for, nothing is written.

Memory as it was after a commit is the file's home pages with the journal's records over them.  Home
pages that hold anything change only in a checkpoint, which ends with another superblock.  So what was
read after journal and superblock is the pool as it was then, if afterwards the superblock is the same
and no checkpoint is under way; `is_settled` finds that out:

    nothing was committed since                 a checkpoint would write what was read
    something was, and is even while we look    nothing is committed during a checkpoint

The file is read, not mapped: it may get shorter meanwhile.

What moves say is left out: they change the insides of long lists, which nobody looks at here.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from pmshelve.errors import CorruptionError, FormatError
from pmshelve.pmemobj import journal
from pmshelve.pmemobj.journal import RANGE, Tail
from pmshelve.pmemobj.layout import (
    HEAP_MAGIC,
    JOURNAL_OFFSET,
    PAGE,
    ROOT_OID,
    ROOT_PAGE_COUNT,
    ROOT_TABLE,
    ROOT_TYPES,
    TYPE_NUM_SHIFT,
)
from pmshelve.pmemobj.pagetable import ENTRY
from pmshelve.pmemobj.poolfile import PoolFile
from pmshelve.pmemobj.superblock import read
from pmshelve.pmemobj.typetable import NODE_NAMES

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Peek"]

_LOOKS = 25
_PAUSE = 0.002
_TABLE_CHUNK = 1 << 14
_NAME_MAX = 1 << 16
_SIZE_MASK = (1 << TYPE_NUM_SHIFT) - 1


class Peek:
    """A pool file, being looked into.

    Parameters
    ----------
    path
        The file's name.

    Attributes
    ----------
    block
        The superblock.
    found
        What the journal holds.
    end
        Bytes that the file has.

    Raises
    ------
    FormatError
        The file is no pool, or damaged.
    """

    def __init__(self, path: str) -> None:
        self._file = PoolFile.open(path, os.O_RDONLY)
        try:
            self.found = self._file.load()
        except BaseException:
            self._file.close(unlock=False)
            raise
        self.block = self._file.block
        self.end = self._file.end
        self.path = path
        self._changed: dict[int, list[tuple[int, Any]]] = {}
        for items in self.found.records:
            for kind, target, size, data in items:
                if kind == RANGE:
                    for page in range(target // PAGE, (target + size - 1) // PAGE + 1):
                        self._changed.setdefault(page, []).append((target, data))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._file.close(unlock=False)

    @property
    def size(self) -> int:
        """Bytes that the pool has of its file."""
        return self.found.size

    def is_settled(self) -> bool:
        """Whether all that was read is of one state; to be asked afterwards, and then believed."""
        tail = self._tail_behind(self.found.tail)
        if tail == self.found.tail:
            return True
        for _ in range(_LOOKS):
            if tail is None:
                return False
            time.sleep(_PAUSE)
            before, tail = tail, self._tail_behind(tail)
            if tail is not None and tail != before:
                return True
        return False

    def _tail_behind(self, tail: Tail) -> Tail | None:
        """Return where the journal ends now, by way of where it ended; None if it is another one."""
        block = self.block
        content = self._file.read(block.journal_size, block.journal_offset)
        try:
            if read(self._file.read(JOURNAL_OFFSET, 0), self._file.end, self.path) != block:
                return None
            return journal.scan(
                content,
                tail,
                block.file_size,
                sys.maxsize,
                block.heap_offset,
                self._file.read,
                self.path,
            ).tail
        except FormatError:
            return None  # read while it was written

    # Memory -----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of memory; zeros behind the file's end."""
        content = self._file.read(size, offset)
        if len(content) < size:
            content = content.ljust(size, b"\0")
        changed = self._changed
        if not changed:
            return content
        patched: bytearray | None = None
        stop = offset + size
        for page in range(offset // PAGE, (stop - 1) // PAGE + 1):
            for target, data in changed.get(page, ()):
                first, last = (
                    max(target, offset, page * PAGE),
                    min(target + len(data), stop, (page + 1) * PAGE),
                )
                if first < last:
                    if patched is None:
                        patched = bytearray(content)
                    patched[first - offset : last - offset] = data[first - target : last - target]
        return content if patched is None else bytes(patched)

    def words(self, offset: int, count: int) -> tuple[int, ...]:
        """Return words of memory."""
        return struct.unpack(f"<{count}Q", self.read(offset, 8 * count))

    def size_of(self, block: int) -> tuple[int, int]:
        """Return the size and the type number in the header of a block."""
        (header,) = self.words(block - 8, 1)
        return header & _SIZE_MASK, header >> TYPE_NUM_SHIFT

    # The heap's root --------------------------------------------------------------------------

    def entries(self) -> Iterator[tuple[int, int]]:
        """Yield (page, word 0 of its entry) of the page table, in order.

        Raises
        ------
        CorruptionError
            No page table is where the heap's root says.
        """
        start = self.block.heap_offset
        magic, count, table = (
            self.words(start + 8 * at, 1)[0] for at in (0, ROOT_PAGE_COUNT, ROOT_TABLE)
        )
        if magic != HEAP_MAGIC or start + count * PAGE > self.size:
            self.damaged("no heap begins where one should", start, "H1")
        if table % PAGE or not start < table <= self.size - ENTRY * count:
            self.damaged("the page table lies where it cannot", start, "H1")
        for first in range(0, count, _TABLE_CHUNK):
            number = min(_TABLE_CHUNK, count - first)
            words = self.words(table + ENTRY * first, 2 * number)
            yield from enumerate(words[::2], first)

    def page_count(self) -> int:
        """Return the heap's pages."""
        return self.words(self.block.heap_offset + 8 * ROOT_PAGE_COUNT, 1)[0]

    def root(self) -> tuple[int, int]:
        """Return the oid of the root."""
        kind, payload = self.words(self.block.heap_offset + 8 * ROOT_OID, 2)
        return kind, payload

    def class_names(self) -> list[str]:
        """Return the names of the type table, in the order of their codes."""
        names: list[str] = []
        seen: set[int] = set()
        (node,) = self.words(self.block.heap_offset + 8 * ROOT_TYPES, 1)
        while node:
            following, count = self.words(node, 2) if self._is_inside(node) else (0, NODE_NAMES + 1)
            if count > NODE_NAMES or node in seen:
                self.damaged("the type table is damaged", node, "T2")
            seen.add(node)
            names += [self._text(block) for block in self.words(node + 16, count)]
            node = following
        return names

    def _text(self, block: int) -> str:
        size = self.size_of(block)[0] if self._is_inside(block) else _NAME_MAX + 1
        if size > _NAME_MAX:
            self.damaged("a name of the type table is no block", block, "T2")
        try:
            return self.read(block, size).decode()
        except UnicodeDecodeError:
            self.damaged("a name of the type table is no text", block, "T2")

    def _is_inside(self, offset: int) -> bool:
        return not offset % 8 and self.block.heap_offset < offset < self.size

    def damaged(self, problem: str, offset: int, invariant: str) -> NoReturn:
        """Raise what says that the pool holds what is never written."""
        raise CorruptionError(problem, self.path, offset=offset, invariant=invariant)
