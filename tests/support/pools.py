"""What must hold of a pool and its file whenever nobody is changing it."""

from __future__ import annotations

import collections
import shutil
from pathlib import Path
from typing import Any

from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentFrozenSet,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
)
from pmshelve.pmemobj.layout import POBJECT_TYPE_NUM, REFCOUNT_MASK, TYPE_CODE_SHIFT
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN
from pmshelve.storage import file as disk

__all__ = [
    "assert_counts_exact",
    "assert_nothing_leaked",
    "assert_sound",
    "block_sizes",
    "crash_copy",
    "plain",
    "used",
    "without_syncs",
]


def objects(pool: Any) -> dict[int, int]:
    """Return the stored reference count of every object of a pool, by offset."""
    words = pool.mm.words
    return {
        offset: words[offset >> 3] & REFCOUNT_MASK
        for offset, _, type_num in pool.mm.heap.blocks()
        if type_num == POBJECT_TYPE_NUM
    }


def counted(pool: Any) -> collections.Counter[int]:
    """Return how often each object is held, counted anew."""
    manager = pool.mm
    counts: collections.Counter[int] = collections.Counter()
    for offset in objects(pool):
        if manager.words[offset >> 3] >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN:
            counts.update(manager.children_of(offset))
    kind, payload = root_oid(pool)
    if kind == manager.pool_kind:
        counts[payload] += 1
    return counts


def root_oid(pool: Any) -> tuple[int, int]:
    """Return the oid of the root as it is stored."""
    from pmshelve.pmemobj.layout import ROOT_OID

    word = (pool.mm.heap.start >> 3) + ROOT_OID
    return pool.mm.words[word], pool.mm.words[word + 1]


def assert_counts_exact(pool: Any) -> None:
    """Fail unless every stored reference count is the number of references there are."""
    stored = objects(pool)
    actual = counted(pool)
    assert not actual.keys() - stored.keys(), "references to what is no object"
    wrong = {
        offset: (count, actual[offset])
        for offset, count in stored.items()
        if count != actual[offset]
    }
    assert not wrong, f"offset: (stored, counted): {wrong}"


def assert_nothing_leaked(pool: Any) -> None:
    """Fail unless, after a collection, every block can be reached from the root."""
    pool.gc()
    manager = pool.mm
    held = [offset for offset, _ in manager.identity.living()]
    reached: set[int] = set()
    kind, payload = root_oid(pool)
    waiting = held
    if kind == manager.pool_kind:
        waiting.append(payload)
    while waiting:
        offset = waiting.pop()
        if offset in reached:
            continue
        reached.add(offset)
        if manager.words[offset >> 3] >> TYPE_CODE_SHIFT >= CONTAINER_CODE_MIN:
            waiting.extend(manager.children_of(offset))
            reached.update(manager.blocks_of(offset))
    for node, names in manager.types.nodes():
        reached.update((node, *names))
    blocks = {offset for offset, _, _ in manager.heap.blocks()}
    assert reached <= blocks, "something reached is no block"
    lost = {
        offset: (size, type_num)
        for offset, size, type_num in manager.heap.blocks()
        if offset not in reached
    }
    assert not lost, f"offset: (size, type number) of what nothing leads to: {lost}"


def assert_sound(pool: Any) -> None:
    """Fail unless `check` is silent and every reference count is exact."""
    assert list(pool.check()) == []
    assert_counts_exact(pool)


def block_sizes(pool: Any) -> collections.Counter[tuple[int, int]]:
    """Return how many blocks there are of each (size, type number)."""
    return collections.Counter((size, type_num) for _, size, type_num in pool.mm.heap.blocks())


def used(pool: Any) -> int:
    """Return the bytes that all blocks hold."""
    return sum(size for _, size, _ in pool.mm.heap.blocks())


def crash_copy(pool: Any, path: str | Path) -> Path:
    """Copy the file as a SIGKILL of this process would leave it now; return the copy's path."""
    path = Path(path)
    shutil.copyfile(pool.filename, path)
    return path


def plain(value: Any, within: frozenset[Any] = frozenset()) -> Any:
    """Return the plain Python object that a persistent one equals, nested ones included.

    An object of a user's class is the dict of its attributes; inside of itself, its class alone.
    """
    if isinstance(value, PersistentArray):
        import numpy as np

        return np.array(value)
    if isinstance(value, PersistentDict):
        return {plain(key): plain(item, within) for key, item in value.items()}
    if isinstance(value, PersistentList):
        return [plain(item, within) for item in value]
    if isinstance(value, PersistentSet):
        return {plain(item, within) for item in value}
    if isinstance(value, PersistentFrozenSet | frozenset):
        return frozenset(plain(item, within) for item in value)
    if isinstance(value, PersistentTuple | tuple):
        return tuple(plain(item, within) for item in value)
    if isinstance(value, PersistentObject):
        if value in within:
            return type(value)
        within |= {value}
        return {name: plain(getattr(value, name), within) for name in sorted(value._p_known())}
    return value


def without_syncs(patch: Any) -> None:
    """Leave out what only matters when the power is cut; it takes most of the time."""
    patch.setattr(disk.system, "fdatasync", lambda _fd: None)
    patch.setattr(disk.system, "fsync", lambda _fd: None)
