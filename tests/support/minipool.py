"""A heap in miniature on a raw pool, so that its file can be tested without the layers above.

    table   word i: 0, or the first page (counted from the heap's start) of block i
    words   the rest of the first `AREA_SIZE` bytes of the heap: changed word by word, by moves, at
            once
    blocks  `BLOCK_PAGES` pages each, made fresh, freed whole

`content` is everything that must survive: table, words, and the blocks that the table names.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import Memory
from pmshelve.pmemobj.rawpool import RawPool

__all__ = ["AREA_SIZE", "BLOCK_SIZE", "MiniPool", "content", "formatted"]

TABLE = 8
AREA_PAGES = 5
AREA_SIZE = AREA_PAGES * PAGE
BLOCK_PAGES = 2
BLOCK_SIZE = BLOCK_PAGES * PAGE


class Abort(Exception):
    """Rolls a transaction, or an operation in one, back."""


def content(memory: Memory, start: int) -> bytes:
    """Return all that must survive."""
    area = memory.map[start : start + AREA_SIZE]
    blocks = []
    for index in range(TABLE):
        page = memory.words[(start >> 3) + index]
        if page:
            offset = start + page * PAGE
            assert offset + BLOCK_SIZE <= memory.size, "a block outside of the file"
            blocks.append(memory.map[offset : offset + BLOCK_SIZE])
    return area + b"".join(blocks)


def formatted(memory: Memory, start: int, pages: int) -> None:
    """Fill the words of a new pool, in a transaction."""
    assert pages > AREA_PAGES
    words = range(TABLE * 8, AREA_SIZE, 8)
    memory.snapshot(start + TABLE * 8, AREA_SIZE - TABLE * 8)
    for offset in words:
        memory.words[start + offset >> 3] = offset


class MiniPool:
    """The miniature heap of an open pool; all methods change it within a transaction."""

    def __init__(self, raw: RawPool) -> None:
        self.raw = raw
        self.memory = raw.memory
        self.start = raw.heap_offset

    def content(self) -> bytes:
        return content(self.memory, self.start)

    def set_word(self, offset: int, value: int) -> None:
        """Store a word; `offset` counts from the first word behind the table."""
        place = self.start + TABLE * 8 + offset
        self.memory.snapshot(place, 8)
        self.memory.words[place >> 3] = value

    def fill(self, offset: int, data: bytes) -> None:
        """Store many words at once."""
        place = self.start + TABLE * 8 + offset
        self.memory.snapshot(place, len(data))
        self.memory.map[place : place + len(data)] = data

    def move(self, target: int, source: int, size: int) -> None:
        place = self.start + TABLE * 8
        self.memory.move(place + target, place + source, size)

    def allocate(self, index: int, data: bytes) -> None:
        """Make block `index` of pages that no block has, or free it if it is there."""
        memory = self.memory
        word = (self.start >> 3) + index
        pages = {memory.words[(self.start >> 3) + i] for i in range(TABLE)}
        memory.snapshot(word << 3, 8)
        if memory.words[word]:
            memory.note_freed(self.start + memory.words[word] * PAGE, BLOCK_SIZE)
            memory.words[word] = 0
            return
        page = next(p for p in range(AREA_PAGES, 99, BLOCK_PAGES) if p not in pages)
        offset = self.start + page * PAGE
        self.raw.extend(offset + BLOCK_SIZE)
        fresh = memory.is_untouched(offset, BLOCK_SIZE)
        if fresh:
            memory.add_fresh(offset, BLOCK_SIZE)
        else:  # freed not long ago, perhaps in this very transaction
            memory.snapshot(offset, BLOCK_SIZE)
        half = BLOCK_SIZE // 2  # every other block's second half goes past memory
        if fresh and index % 2 and self.raw.place(offset + half, [data[half:]], half):
            data = data[:half]
        memory.map[offset : offset + len(data)] = data
        memory.words[word] = page

    def write_block(self, index: int, offset: int, value: int) -> None:
        """Store a word into a block, if it is there."""
        page = self.memory.words[(self.start >> 3) + index]
        if page:
            place = self.start + page * PAGE + offset
            self.memory.snapshot(place, 8)
            self.memory.words[place >> 3] = value

    # At random --------------------------------------------------------------------------------

    def change(self, rng: random.Random) -> None:
        """Change something."""
        words = AREA_SIZE - TABLE * 8
        kind = rng.random()
        if kind < 0.4:
            for _ in range(rng.randrange(1, 6)):
                self.set_word(rng.randrange(words // 8) * 8, rng.getrandbits(64))
        elif kind < 0.65:
            size = rng.choice((8, 64, 1024, 6000, words // 2)) // 8 * 8
            target, source = (rng.randrange((words - size) // 8 + 1) * 8 for _ in range(2))
            if rng.random() < 0.5:
                target = min(max(source + rng.choice((-16, 16)), 0), words - size)
            self.move(target, source, size)
        elif kind < 0.75:
            size = rng.choice((200, 3000, words)) // 8 * 8
            self.fill(rng.randrange((words - size) // 8 + 1) * 8, rng.randbytes(size))
        elif kind < 0.9:
            self.allocate(rng.randrange(TABLE), rng.randbytes(BLOCK_SIZE))
        else:
            self.write_block(rng.randrange(TABLE), rng.randrange(BLOCK_SIZE // 8) * 8, 77)

    def transaction(self, rng: random.Random, before_commit: Callable[[], Any]) -> bool:
        """Change things in a transaction; return whether it was committed.

        Parameters
        ----------
        before_commit
            Called when everything is changed.
        """
        transaction = self.raw.transaction
        abort = rng.random() < 0.15
        try:
            with transaction:
                for _ in range(rng.choice((1, 1, 2, 4))):
                    self._operation(rng)
                if abort:
                    raise Abort
                before_commit()
        except Abort:
            return False
        return True

    def _operation(self, rng: random.Random) -> None:
        try:
            with self.raw.transaction.operation:
                self.change(rng)
                if rng.random() < 0.3:
                    self.change(rng)
                if rng.random() < 0.15:
                    raise Abort
        except Abort:
            pass
