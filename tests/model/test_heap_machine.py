"""The heap against a dict of blocks: whatever is done, undone, committed, lost and replayed.

After each step every block holds what it should, the heap knows these blocks and no other, and
`problems()` finds nothing.  Commits, checkpoints and crashes go by a disk that is replayed as the
pool's is, so a store that was not made known, or a record replayed over pages of another owner,
shows as a lost or changed block.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pmshelve.errors import NoSpaceError, StateError
from pmshelve.pmemobj.layout import PAGE
from pmshelve.pmemobj.sizeclass import BLOCK_SIZES
from tests.support.heaps import START, HeapLab

_SIZES = st.one_of(
    st.integers(0, 300),
    st.integers(0, 20_000),
    st.sampled_from([size + near for size in BLOCK_SIZES for near in (-9, -8, -7)]),
    st.integers(0, 1 << 20),
    st.sampled_from([4032, 4033, 8128, 8129, 65472, 65473, 131008, 300_000]),
)
_COUNTS = st.sampled_from([1, 1, 1, 2, 10, 300])

Blocks = dict[int, tuple[int, int, bytes]]


class HeapMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lab = HeapLab()
        self.blocks: Blocks = {}
        self.outer: list[Blocks] = []
        self.committed: Blocks = {}
        self.random = random.Random(1)
        self.lab.begin()

    def teardown(self) -> None:
        self.lab.memory.rollback_all()
        self.lab.close()

    # Blocks -----------------------------------------------------------------------------------

    def _fill(self, offset: int, size: int, type_num: int) -> None:
        content = self.random.randbytes(min(size, 64))
        content = (content * (size // 64 + 1))[:size]
        self.lab.write(offset, content)
        self.blocks[offset] = size, type_num, content

    def _pick(self, number: int) -> int:
        return sorted(self.blocks)[number % len(self.blocks)]

    @rule(size=_SIZES, type_num=st.integers(0, 2**24 - 1), count=_COUNTS)
    def alloc(self, size: int, type_num: int, count: int) -> None:
        for _ in range(count if size < 5000 else 1):
            try:
                offset = self.lab.heap.alloc(size, type_num)
            except NoSpaceError:
                return
            assert offset % 16 == 0
            assert offset not in self.blocks
            self._fill(offset, size, type_num)

    @rule(size=_SIZES)
    def zalloc(self, size: int) -> None:
        try:
            offset = self.lab.heap.zalloc(size)
        except NoSpaceError:
            return
        assert self.lab.read(offset, size) == bytes(size)
        self._fill(offset, size, 30)

    @precondition(lambda self: self.blocks)
    @rule(number=st.integers(0), size=_SIZES, new_type=st.none() | st.just(7), zero=st.booleans())
    def realloc(self, number: int, size: int, new_type: int | None, zero: bool) -> None:
        old = self._pick(number)
        old_size, type_num, content = self.blocks[old]
        resize = self.lab.heap.zrealloc if zero else self.lab.heap.realloc
        try:
            new = resize(old, size, new_type)
        except NoSpaceError:
            return
        assert new == old or new not in self.blocks
        del self.blocks[old]
        kept = min(old_size, size)
        assert self.lab.read(new, kept) == content[:kept]
        if zero:
            assert self.lab.read(new + kept, size - kept) == bytes(size - kept)
        if new == old:  # the caller may store into what is new; the rest it makes known
            self.lab.memory.snapshot(new, (kept + 7) & -8) if kept else None
        self._fill(new, size, type_num if new_type is None else new_type)

    @precondition(lambda self: self.blocks)
    @rule(numbers=st.lists(st.integers(0, 1000), max_size=20))
    def free(self, numbers: list[int]) -> None:
        for number in numbers:
            if self.blocks:
                offset = self._pick(number)
                self.lab.heap.free(offset)
                del self.blocks[offset]

    @precondition(lambda self: self.blocks)
    @rule(share=st.integers(1, 3))
    def free_many(self, share: int) -> None:
        for offset in self.random.sample(sorted(self.blocks), len(self.blocks) // share):
            self.lab.heap.free(offset)
            del self.blocks[offset]

    @precondition(lambda self: self.blocks)
    @rule(number=st.integers(0))
    def write(self, number: int) -> None:
        offset = self._pick(number)
        size, type_num, _ = self.blocks[offset]
        if size:
            self.lab.memory.snapshot(offset, (size + 7) & -8)
        self._fill(offset, size, type_num)

    @rule(offset=st.integers(-(2**65), 2**65) | st.integers(0, START + 3000 * PAGE))
    def no_block(self, offset: int) -> None:
        self._refused(offset)

    @precondition(lambda self: self.blocks)
    @rule(number=st.integers(0), away=st.integers(-200, 5000))
    def near_a_block(self, number: int, away: int) -> None:
        self._refused(self._pick(number) + away)

    def _refused(self, offset: int) -> None:
        heap = self.lab.heap
        assert heap.is_block(offset) == (offset in self.blocks)
        if offset not in self.blocks:
            for refused in (heap.free, heap.size_of, heap.type_num_of):
                with pytest.raises(StateError, match="no block is at offset"):
                    refused(offset)
            with pytest.raises(StateError, match="no block is at offset"):
                heap.realloc(offset, 10)

    @rule(floor=st.sampled_from([0, START + 8 * PAGE, START + 300 * PAGE]))
    def trim(self, floor: int) -> None:
        size = self.lab.heap.trim(floor)
        assert size <= self.lab.memory.size

    # Transactions -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.outer) < 3)
    @rule()
    def begin_inner(self) -> None:
        self.lab.begin()
        self.outer.append(dict(self.blocks))

    @precondition(lambda self: self.outer)
    @rule()
    def end_inner(self) -> None:
        self.lab.memory.merge()
        self.outer.pop()

    @precondition(lambda self: self.outer)
    @rule()
    def roll_back_inner(self) -> None:
        self.lab.rollback()
        self.blocks = self.outer.pop()

    @precondition(lambda self: not self.outer)
    @rule()
    def commit(self) -> None:
        self.lab.commit()
        self.committed = dict(self.blocks)
        self.lab.begin()

    @rule()
    def roll_back(self) -> None:
        self.lab.memory.rollback_all()
        self._back_to_commit()

    @rule(while_committing=st.booleans())
    def crash(self, while_committing: bool) -> None:
        if not while_committing:
            self.lab.memory.rollback_all()
        self.lab.crash(while_committing=while_committing)
        self._back_to_commit()

    def _back_to_commit(self) -> None:
        self.blocks = dict(self.committed)
        self.outer.clear()
        self.lab.begin()

    @precondition(lambda self: not self.outer)
    @rule()
    def checkpoint(self) -> None:
        self.commit()
        self.lab.memory.end()
        self.lab.checkpoint()
        self.lab.begin()

    @rule()
    def reopen(self) -> None:
        self.lab.reopen()

    @rule(full=st.booleans(), more=st.integers(0, 40))
    def disk(self, full: bool, more: int) -> None:
        self.lab.size_max = self.lab.memory.size + more * PAGE if full else 64 << 20

    # Always -----------------------------------------------------------------------------------

    @invariant()
    def blocks_are_what_they_should_be(self) -> None:
        heap = self.lab.heap
        assert list(heap.problems()) == []
        found = {offset: (size, type_num) for offset, size, type_num in heap.blocks()}
        assert found == {offset: block[:2] for offset, block in self.blocks.items()}
        assert list(found) == sorted(found)
        for offset, (size, _, content) in self.blocks.items():
            assert self.lab.read(offset, size) == content

    @invariant()
    def figures_agree(self) -> None:
        heap = self.lab.heap
        end = START
        for offset, size, _, _ in heap.extents():
            assert offset == end
            end += size
        pages = heap.page_counts()
        assert sum(pages.values()) * PAGE == end - START <= self.lab.memory.size - START
        assert sum(size + 8 for size, _, _ in self.blocks.values()) <= heap.used_bytes()
        assert heap.used_bytes() + heap.free_bytes() <= end - START


TestHeap = HeapMachine.TestCase


@pytest.mark.parametrize("seed", range(4))
def test_a_long_walk(seed: int, profile: Any) -> None:
    """As above without shrinking, so with many more blocks: lists get long."""
    machine = HeapMachine()
    pick = random.Random(seed)
    sizes = [pick.randrange(600), pick.randrange(20_000), 40]

    def size() -> int:
        drawn = pick.choice([*sizes, int(2 ** pick.uniform(0, 17))])
        return drawn if pick.random() < 0.9 else BLOCK_SIZES[drawn % len(BLOCK_SIZES)] - 8

    def resize() -> None:
        number = pick.randrange(1000)
        machine.realloc(number, size(), pick.choice([None, 7]), pick.random() < 0.5)
        if machine.blocks:  # a little, so that it may stay in place
            old = machine.blocks[machine._pick(number)][0]
            near = max(0, old + int(pick.gauss(0, 1 + old / 4)))
            machine.realloc(number, near, None, pick.random() < 0.5)

    steps: list[tuple[int, Callable[[], object]]] = [
        (20, lambda: machine.alloc(size(), 30, pick.choice([1, 3, 100]))),
        (3, lambda: machine.zalloc(size())),
        (8, lambda: machine.blocks and resize()),
        (10, lambda: machine.blocks and machine.free(pick.choices(range(1000), k=20))),
        (3, lambda: machine.blocks and machine.free_many(pick.choice([1, 2, 2, 3, 3]))),
        (3, lambda: machine.blocks and machine.write(pick.randrange(1000))),
        (1, lambda: machine.trim(0)),
        (4, lambda: len(machine.outer) < 3 and machine.begin_inner()),
        (3, lambda: machine.outer and machine.end_inner()),
        (3, lambda: machine.outer and machine.roll_back_inner()),
        (8, lambda: machine.outer or machine.commit()),
        (2, machine.roll_back),
        (4, lambda: machine.crash(pick.random() < 0.5)),
        (2, lambda: machine.outer or machine.checkpoint()),
        (1, lambda: machine.disk(pick.random() < 0.5, pick.randrange(40))),
    ]
    weights = [weight for weight, _ in steps]
    try:
        for _ in range(400 * profile.factor):
            pick.choices(steps, weights)[0][1]()
            machine.blocks_are_what_they_should_be()
        machine.figures_agree()
    finally:
        machine.teardown()
