"""Damaged pool files: a clean error or good data; never a hang, a crash, or memory without end.

Superblock and journal carry checksums, so damage there is reported or does not matter.  The heap's own
structures are checked by `check`, and a value's bytes by nobody: what must hold is that whatever is read
is read cleanly, and that where `check` finds nothing, everything can be read.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve import pmemobj
from pmshelve.errors import PmshelveError, UnknownTypeError
from pmshelve.pmemobj import (
    Persistent,
    PersistentArray,
    PersistentDict,
    PersistentList,
    PersistentObject,
    PersistentObjectPool,
    PersistentSet,
    rawpool,
)
from pmshelve.pmemobj.heap import Heap
from tests.support.forks import in_child
from tests.support.guard import time_limit
from tests.support.pools import crash_copy, plain, without_syncs

SIZE = 256 << 10
JOURNAL = 64 << 10
HEAP = 8192 + JOURNAL
STEPS = 12


class Thing(PersistentObject):
    pass


# A valid file -----------------------------------------------------------------------------------


class Image:
    """A valid pool: its bytes, and every content that it had after a commit."""

    def __init__(self, data: bytes, states: list[Any]) -> None:
        self.data = data
        self.states = states

    @property
    def content(self) -> Any:
        return self.states[-1]


def _change(pool: Any, step: int) -> None:
    root = pool.root
    root[f"key {step}"] = f"value {step} " * 5
    root["list"].append((step, "x" * step * 3))
    root["list"].insert(0, step)
    root["set"].add(step * 7)
    root["thing"].n = step
    root["dict"] = pool.new(PersistentDict, {n: str(n) * 9 for n in range(step)})
    if step % 3 == 0:
        root["list"].reverse()
        del root[f"key {step - 1}"]


@functools.cache
def image(kind: str) -> Image:
    """A closed pool, or one as a kill leaves it, its journal full of records."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "pool")
        rawpool.create(path, SIZE, journal_size=JOURNAL, format=Heap.format).close()
        states = []
        with pmemobj.open(path, durability="lazy") as pool:
            pool.root = pool.new(PersistentDict)
            states.append(content_of(pool))
            with pool.transaction():
                numpy = pytest.importorskip("numpy")
                pool.root["list"] = pool.new(PersistentList)
                pool.root["set"] = pool.new(PersistentSet, ["a", "b" * 20])
                pool.root["thing"] = pool.new(Thing)
                pool.root["array"] = pool.new(PersistentArray, numpy.arange(30.0))
                pool.root["cycle"] = pool.new(PersistentList, [pool.root])
                pool.root["frozen"] = frozenset([1, (2, "text " * 5)])
                pool.root["big"] = 7**300
                pool.root["complex"] = 1 + 2j
                pool.root["large"] = bytes(range(256)) * 40
            states.append(content_of(pool))
            if kind == "closed":
                for step in range(1, STEPS):
                    _change(pool, step)
                states = [content_of(pool)]
            else:
                pool._raw.checkpoint()
                states = [content_of(pool)]
                for step in range(1, STEPS):
                    with pool.transaction():
                        _change(pool, step)
                    states.append(content_of(pool))
                crash_copy(pool, Path(directory, "copy"))
        found = Path(directory, "copy" if kind == "killed" else "pool").read_bytes()
        return Image(found, states)


def content_of(pool: Any) -> Any:
    """Return everything that can be reached, as nested plain tuples; raise where it cannot be read.

    Cycles and sharing become numbers.
    """
    seen: dict[int, int] = {}
    keep = []

    def walk(value: Any) -> Any:
        if not isinstance(value, Persistent):
            return value
        if id(value) in seen:
            return "seen", seen[id(value)]
        seen[id(value)] = len(seen)
        keep.append(value)
        if isinstance(value, PersistentArray):
            return "array", plain(value).tolist()
        if isinstance(value, PersistentDict):
            return "dict", tuple((walk(key), walk(item)) for key, item in value.items())
        if isinstance(value, PersistentObject):
            return type(value).__name__, tuple((n, walk(v)) for n, v in vars(value).items())
        return type(value).__name__, tuple(map(walk, value))

    return walk(pool.root)


# Reading a damaged one --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files are opened here, and no power is cut."""
    without_syncs(monkeypatch)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL + 1, "pmshelve.pmemobj"):
        yield


def examine(path: Path, *, writes: bool = False) -> tuple[bool | None, Any]:
    """Open, check, read (and write); return whether `check` found nothing, and content or error.

    (None, None): it was refused.  Errors of the package are clean, anything else is not.
    """
    try:
        with time_limit(20):
            pool = PersistentObjectPool(path, "w" if writes else "r")
    except PmshelveError:
        return None, None
    try:
        with time_limit(20):
            sound = pool.check() == []
            with contextlib.suppress(PmshelveError):
                pool.stats()
            try:
                content = content_of(pool)
            except (PmshelveError, RuntimeError) as error:  # or "keys changed during iteration"
                content = error
            if writes:  # to what may not be there any more, or be something else
                for change in (_write, lambda pool: pool.gc()):
                    with contextlib.suppress(PmshelveError, LookupError, AttributeError):
                        change(pool)
                with contextlib.suppress(PmshelveError, RuntimeError):
                    content_of(pool)
    finally:
        with time_limit(20), contextlib.suppress(PmshelveError):
            pool.close()
    return sound, content


def _write(pool: Any) -> None:
    with pool.transaction():
        root = pool.root
        root["new"] = pool.new(PersistentList, ["text " * 9])
        root["list"].append(1)
        root["list"].pop(0)
        root["large"] = None
        root["set"].add(1)


def try_damage(path: Path, valid: Image, damages: Any, judge: Callable[..., None]) -> None:
    """Judge what is found in the file after each damage: (name, its bytes)."""

    def one(data: bytes) -> None:
        path.write_bytes(data)
        sound, content = examine(path)
        assert path.read_bytes() == data, "reading wrote"
        judge(valid, sound, content)

    in_child_each(damages, one)


def in_child_each(damages: Any, one: Callable[[bytes], None]) -> None:
    """Do one thing to each damaged file, in a child that may crash and must not take much memory."""

    def work() -> list[str]:
        failures = []
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name, data in damages:
            try:
                one(data)
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{os.path.basename(where.filename)}:{where.lineno}"
                failures.append(f"{name}: {place}: {type(error).__name__}: {error}")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024
        if (after - before) * unit > 200 << 20:
            failures.append("it took a lot of memory")
        return failures

    failures = in_child(work)
    assert not failures, "\n".join([f"{len(failures)} failures", *failures[:20]])


def is_clean(valid: Image, sound: bool | None, content: Any) -> None:
    """What must hold of any damage."""
    if sound and isinstance(content, Exception):
        # The name of a class, a dtype and its size: only an import, or NumPy, can judge them.
        judged = (
            isinstance(content, UnknownTypeError) or getattr(content, "invariant", "")[:1] == "A"
        )
        # An object without a type is what an interrupted collection may leave behind.
        assert judged or "type code 0" in str(content), (
            f"check found nothing, and it cannot be read: {content}"
        )


def is_reported_or_harmless(valid: Image, sound: bool | None, content: Any) -> None:
    is_clean(valid, sound, content)
    if sound is not None:
        assert sound, "damage of what has a checksum reached the heap"
        assert content in valid.states, "neither the content, nor one that it had before"


def flipped(data: bytes, offsets: Any, factor: int) -> Iterator[tuple[str, bytes]]:
    for offset in offsets:
        for bit in range(8) if factor > 1 else (offset * 5 % 8,):
            changed = bytearray(data)
            changed[offset] ^= 1 << bit
            yield f"bit {bit} of byte {offset}", bytes(changed)


def used_offsets(data: bytes, start: int, stop: int) -> list[int]:
    """Return the offsets of words that are not zero, each byte, and of some that are."""
    return [
        offset
        for offset in range(start, min(stop, len(data)))
        if any(data[offset & ~7 : (offset | 7) + 1]) or offset % 499 == 0
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pool"


KINDS = ["closed", "killed"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_images_are_valid(path: Path, kind: str) -> None:
    valid = image(kind)
    path.write_bytes(valid.data)
    for writes in (False, True):
        sound, content = examine(path, writes=writes)
        assert sound
        assert content == valid.content
    assert len(valid.states) == (1 if kind == "closed" else STEPS)


# Flipped bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copy", [0, 4096])
def test_a_bit_of_a_superblock(path: Path, kind: str, copy: int, profile: Any) -> None:
    valid = image(kind)
    offsets = used_offsets(valid.data, copy, copy + 512)
    damages = flipped(valid.data, offsets, profile.factor)
    try_damage(path, valid, damages, is_reported_or_harmless)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_of_both_superblocks(path: Path, kind: str, profile: Any) -> None:
    valid = image(kind)

    def damages() -> Iterator[tuple[str, bytes]]:
        for offset in used_offsets(valid.data, 0, 512):
            changed = bytearray(valid.data)
            changed[offset] ^= 1 << offset % 8
            changed[offset + 4096] ^= 1 << offset % 8
            yield f"byte {offset} of both", bytes(changed)

    def refused(valid: Image, sound: bool | None, content: Any) -> None:
        assert sound is None

    try_damage(path, valid, damages(), refused)


def test_a_bit_of_the_journal(path: Path, profile: Any) -> None:
    valid = image("killed")
    offsets = used_offsets(valid.data, 8192, HEAP)
    if profile.factor == 1:
        offsets = random.Random(1).sample(offsets, 150)
    damages = flipped(valid.data, offsets, profile.factor)
    try_damage(path, valid, damages, is_reported_or_harmless)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_of_the_heap(path: Path, kind: str, profile: Any) -> None:
    valid = image(kind)
    offsets = used_offsets(valid.data, HEAP, len(valid.data))
    if profile.factor == 1:
        offsets = random.Random(2).sample(offsets, 150)
    try_damage(path, valid, flipped(valid.data, offsets, profile.factor), is_clean)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_of_the_heaps_first_page(path: Path, kind: str, profile: Any) -> None:
    """The heap root: everything is found from here."""
    valid = image(kind)
    offsets = used_offsets(valid.data, HEAP, HEAP + 4096)
    if profile.factor == 1:
        offsets = offsets[:: max(1, len(offsets) // 80)]
    try_damage(path, valid, flipped(valid.data, offsets, profile.factor), is_clean)


def write_to_damage(path: Path, damages: Any) -> None:
    """Write to the file after each damage, and read it again."""

    def one(data: bytes) -> None:
        path.write_bytes(data)
        examine(path, writes=True)
        assert path.stat().st_size < 4 << 20, "it grew without end"
        examine(path)

    in_child_each(damages, one)


@pytest.mark.parametrize("kind", KINDS)
def test_writing_to_a_damaged_pool(path: Path, kind: str, profile: Any) -> None:
    valid = image(kind)
    offsets = used_offsets(valid.data, 0, len(valid.data))
    if profile.factor == 1:
        offsets = random.Random(3).sample(offsets, 80)
    write_to_damage(path, flipped(valid.data, offsets, profile.factor))


# Words ------------------------------------------------------------------------------------------

NASTY = [0, 1, 0xFF, 1 << 12, 1 << 40, (1 << 64) - 1, 1 << 63, (1 << 40) - 1, HEAP, HEAP + 64]


def nasty(data: bytes, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield files in which one word of the heap has a value that is likely to hurt."""
    words = [offset for offset in used_offsets(data, HEAP, len(data)) if not offset % 8]
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        offset = rng.choice(words)
        other = int.from_bytes(changed[rng.choice(words) :][:8], "little")
        near = int.from_bytes(changed[offset:][:8], "little")
        value = rng.choice(
            [*NASTY, other, other ^ 8, near + 16, near - 16, near + 1, near << 1, offset]
        )
        value &= (1 << 64) - 1
        changed[offset : offset + 8] = value.to_bytes(8, "little")
        yield f"{value:#x} at {offset}", bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_words_with_nasty_values(path: Path, kind: str, profile: Any) -> None:
    valid = image(kind)
    try_damage(path, valid, nasty(valid.data, 4, 120 * profile.factor), is_clean)


@pytest.mark.parametrize("kind", KINDS)
def test_words_with_nasty_values_written_to(path: Path, kind: str, profile: Any) -> None:
    write_to_damage(path, nasty(image(kind).data, 5, 60 * profile.factor))


# Truncated, overwritten, anything ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_that_was_cut(path: Path, kind: str, profile: Any) -> None:
    valid = image(kind)
    step = 61 if profile.factor > 1 else 2003
    sizes = {*range(20), *range(490, 530), *range(0, len(valid.data), step)}
    sizes |= {len(valid.data) - n for n in range(1, 20)}
    damages = ((f"cut to {size}", valid.data[:size]) for size in sorted(sizes))
    try_damage(path, valid, damages, is_reported_or_harmless)


@pytest.mark.parametrize("kind", KINDS)
def test_rubbish_behind_the_end(path: Path, kind: str) -> None:
    valid = image(kind)
    rng = random.Random(6)
    damages = [(f"{n} bytes more", valid.data + rng.randbytes(n)) for n in (1, 8, 4096, 70_000)]
    try_damage(path, valid, damages, is_reported_or_harmless)


@given(st.integers(0), st.sampled_from([8, 64, 512, 4096, 20_000]), st.sampled_from(KINDS))
def test_an_overwritten_range(seed: int, size: int, kind: str) -> None:
    valid = image(kind)
    rng = random.Random(seed)
    start = rng.randrange(len(valid.data))
    changed = bytearray(valid.data)
    rubbish = rng.choice([rng.randbytes(size), bytes(size), b"\xff" * size])
    changed[start : start + size] = rubbish[: len(changed) - start]
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory, "pool")
        found.write_bytes(changed)
        is_clean(valid, *examine(found))
        examine(found, writes=True)


@given(st.integers(0), st.sampled_from(KINDS))
def test_two_sectors_exchanged(seed: int, kind: str) -> None:
    valid = image(kind)
    rng = random.Random(seed)
    one, other = (rng.randrange(len(valid.data) // 512) * 512 for _ in range(2))
    changed = bytearray(valid.data)
    changed[one : one + 512], changed[other : other + 512] = (
        changed[other : other + 512], changed[one : one + 512],
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory, "pool")
        found.write_bytes(changed)
        is_clean(valid, *examine(found))


@given(st.binary(max_size=600))
def test_any_bytes_are_refused(data: bytes) -> None:
    valid = image("killed")
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory, "pool")
        for whole in (data, valid.data[:8] + data, valid.data[:512] + data):
            found.write_bytes(whole)
            assert examine(found) == (None, None)
            assert examine(found, writes=True) == (None, None)
            assert found.read_bytes() == whole
            assert os.listdir(directory) == ["pool"]


@given(st.binary(max_size=600), st.integers(0, JOURNAL - 600))
def test_any_bytes_in_the_journal(data: bytes, offset: int) -> None:
    valid = image("killed")
    changed = bytearray(valid.data)
    start = 8192 + offset
    changed[start : start + len(data)] = data
    with tempfile.TemporaryDirectory() as directory:
        found = Path(directory, "pool")
        found.write_bytes(changed)
        is_reported_or_harmless(valid, *examine(found))
