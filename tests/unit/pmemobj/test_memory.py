"""Memory taken back, and made again from a record: against a plain bytearray."""

from __future__ import annotations

import mmap
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.pmemobj import journal
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.memory import Memory

SIZE = 4 * PAGE
WORDS = SIZE // 8


def new_memory() -> Memory:
    memory = Memory(mmap.mmap(-1, SIZE), SIZE)
    memory.map[:] = random.Random(5).randbytes(SIZE)
    return memory


def ranges(size_max: int) -> st.SearchStrategy[tuple[int, int]]:
    """(offset, size), near each other so that they meet often."""
    return st.tuples(st.integers(0, 40), st.integers(1, size_max)).map(
        lambda pair: (pair[0] * 8, pair[1] * 8)
    )


steps = st.one_of(
    st.tuples(st.just("store"), ranges(12)),
    st.tuples(st.just("move"), ranges(20), st.integers(0, 40)),
    st.tuples(st.just("fresh"), st.integers(0, 3)),
    st.tuples(st.just("begin")),
    st.tuples(st.just("merge")),
    st.tuples(st.just("rollback")),
)


class Model:
    """Runs steps on memory and on a bytearray, with a copy of it for each level."""

    def __init__(self) -> None:
        self.memory = new_memory()
        self.bytes = bytearray(self.memory.map[:])
        self.saved = [bytes(self.bytes)]
        self.stores = 0
        self.memory.begin()

    def run(self, step: tuple) -> None:
        getattr(self, step[0])(*step[1:])
        assert self.memory.map[:] == bytes(self.bytes)

    def store(self, where: tuple[int, int]) -> None:
        offset, size = where
        self.stores += 1
        data = random.Random(self.stores).randbytes(size)
        self.memory.snapshot(offset, size)
        self.memory.map[offset : offset + size] = data
        self.bytes[offset : offset + size] = data

    def move(self, where: tuple[int, int], to: int) -> None:
        source, size = where
        target = to * 8
        self.memory.move(target, source, size)
        self.bytes[target : target + size] = bytes(self.bytes[source : source + size])

    def fresh(self, index: int) -> None:
        """The last page's quarters hold nothing, so what is there after a rollback is no matter."""
        offset, size = 3 * PAGE + index * 1024, 1024
        data = random.Random(self.stores).randbytes(size)
        self.memory.add_fresh(offset, size)
        self.memory.map[offset : offset + size] = data
        self.bytes[offset : offset + size] = data

    def begin(self) -> None:
        self.memory.begin()
        self.saved.append(bytes(self.bytes))

    def merge(self) -> None:
        if len(self.saved) > 1:
            self.memory.merge()
            self.saved.pop()

    def rollback(self) -> None:
        if len(self.saved) > 1:
            self.memory.rollback()
            self.bytes[: 3 * PAGE] = self.saved.pop()[: 3 * PAGE]


@given(st.lists(steps, max_size=40), st.booleans())
def test_rollback_restores_every_byte_and_a_record_makes_them_again(
    done: list[tuple], commit: bool
) -> None:
    model = Model()
    for step in done:
        model.run(step)
    memory = model.memory
    if not commit:
        memory.rollback_all()
        assert memory.map[: 3 * PAGE] == model.saved[0][: 3 * PAGE]
        assert memory.changes is None
        return
    while memory.outer:
        memory.merge()
    changes = memory.end()
    items = list(journal.changed_items(memory, changes.saved))
    items += [
        (journal.RANGE, start, size, memory.bytes[start : start + size])
        for start, size in changes.fresh.items()
    ]
    buffers, tail = journal.encode(items, journal.first_tail(7))
    found = scan(b"".join(buffers))
    assert found.tail == tail
    other = new_memory()
    for record in found.records:
        journal.apply(other, record)
    assert other.map[: 3 * PAGE] == bytes(model.bytes[: 3 * PAGE])
    for start, size in changes.fresh.items():  # a fresh range that was rolled back holds anything
        assert other.map[start : start + size] == bytes(model.bytes[start : start + size])


def scan(data: bytes, start: int = 7) -> journal.Scan:
    """Return what a journal holds, in a pool where any offset is within the heap."""
    return journal.scan(data, journal.first_tail(start), SIZE, SIZE, 0, lambda size, offset: b"")


@given(st.lists(ranges(12), max_size=80))
def test_the_ordinary_record_is_the_same_as_the_general_one(done: list[tuple[int, int]]) -> None:
    memory = new_memory()
    memory.begin()
    for offset, size in done:
        memory.snapshot(offset, size)
        memory.map[offset : offset + size] = bytes(size)
    saved = memory.end().saved
    tail = journal.first_tail(99)
    record, after = journal.encode_ranges(memory, saved, tail)
    buffers, other = journal.encode(list(journal.changed_items(memory, saved)), tail)
    assert (record, after) == (b"".join(buffers), other)
    touched = {(start + i) // PAGE for start, old in saved.items() for i in range(len(old))}
    assert memory.dirty == touched


def test_many_neighbouring_ranges_are_no_recursion() -> None:
    """Items appended one by one, and then all of them saved as one range."""
    memory = new_memory()
    before = memory.map[:]
    memory.begin()
    for offset in range(0, 3 * PAGE, 8):
        memory.snapshot(offset, 8)
        memory.words[offset >> 3] = 1
    memory.snapshot(0, SIZE)
    memory.map[:] = bytes(SIZE)
    memory.rollback()
    assert memory.map[:] == before


def test_an_empty_range_does_not_keep_a_later_one_from_being_saved() -> None:
    memory = new_memory()
    before = memory.map[:]
    memory.begin()
    memory.snapshot(64, 0)
    memory.snapshot(56, 16)
    memory.words[8] = 1
    memory.snapshot(64, 16)
    memory.words[8] = memory.words[9] = 2
    memory.rollback()
    assert memory.map[:] == before


def test_a_view_keeps_the_address_space() -> None:
    memory = new_memory()
    view = memory.bytes[:8]
    assert not memory.release()
    assert len(view) == 8
    with pytest.raises(ValueError, match="released"):
        memory.words[0]


def test_a_consumer_of_a_view_keeps_it_too() -> None:
    memory = new_memory()
    consumer = memoryview(memory.words)
    assert not memory.release()
    assert consumer[0] == int.from_bytes(random.Random(5).randbytes(8), "little")


def test_untouched_is_what_no_record_writes() -> None:
    memory = new_memory()
    memory.dirty.add(1)
    memory.note_freed(2 * PAGE, PAGE)
    assert memory.is_untouched(0, PAGE)
    assert not memory.is_untouched(PAGE - 8, 16)
    assert not memory.is_untouched(2 * PAGE, 8)
    assert memory.is_untouched(3 * PAGE, PAGE)
    assert list(memory.dirty_runs()) == [(PAGE, PAGE)]
