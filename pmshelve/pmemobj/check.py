"""State the invariants of a pool as code, and yield each that is broken.  (docs/format-pmemobj.md)

    S, J   superblock and journal    the file was opened, so they held; looked at again
    H      heap                      `Heap.problems`
    T      type table                here
    V      scalars                   here
    R      references, ownership     here: every object once, what it holds counted, compared at the end
    others collections               `_p_problems(manager, offset)` of each class

Checking only reads, and trusts nothing: memory is looked at through a `Reader`, what a broken object
seems to hold is not followed, and every object is looked at once.  Objects of classes that are not at
hand, and broken ones, hold what nobody knows; while there are any, a count that is higher than what was
found is no problem, nor is a block that seems to belong to nobody.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

from pmshelve.errors import FormatError, PmshelveError, StateError
from pmshelve.pmemobj import superblock
from pmshelve.pmemobj.layout import (
    JOURNAL_OFFSET,
    OBJECT_HEADER,
    PAGE,
    POBJECT_TYPE_NUM,
    REFCOUNT_MASK,
    ROOT_OID,
    TYPE_CODE_SHIFT,
)
from pmshelve.pmemobj.reader import Reader
from pmshelve.pmemobj.scalars import CODE_PICKLE, CONTAINER_CODE_MIN
from pmshelve.pmemobj.typetable import (
    CODE_MIN,
    NAME_TYPE_NUM,
    NODE_NAMES,
    NODE_TYPE_NUM,
    OWN_TYPE_NUMS,
    TypeTable,
)
from pmshelve.storage.progress import Pace, Progress, part
from pmshelve.storage.region import scratch

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["PoolStats", "Problem", "problems", "stats"]


@dataclass(frozen=True)
class Problem:
    """One broken invariant.

    Attributes
    ----------
    text
        What is wrong.
    offset
        Where, in bytes from the file's start.
    invariant
        Its number in the format document, such as "R2".
    severity
        "problem"; or "note" for what is allowed, and the next collection frees.
    """

    text: str
    offset: int
    invariant: str
    severity: str = "problem"

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text} at offset {self.offset}"


def problems(
    manager: MemoryManager,
    raw: Any,
    *,
    import_classes: bool = True,
    notes: bool = False,
    progress: Progress | None = None,
) -> Iterator[Problem]:
    """Yield every broken invariant of a pool.  With the pool's lock held.

    Parameters
    ----------
    manager, raw
        The pool's.
    import_classes
        Import users' classes, and ask their objects what they hold.  Else nothing but this package's
        own code runs, and what those objects hold is left out.
    notes
        Also yield what is garbage, as notes.
    progress
        Called with thousandths of the work, about.

    Notes
    -----
    Costs some 5 µs an object.
    """
    yield from _check_superblock(manager, raw)
    pace = Pace(progress, 1000)
    pace.at(0)
    found = []
    for each in manager.heap.problems():
        found.append(Problem(*each))
        pace.at(0)
    yield from found
    if any(problem.invariant == "H1" for problem in found):
        return  # nothing can be found by it
    checking = _Check(manager, import_classes=import_classes, progress=progress)
    yield from checking.run(notes=notes)
    pace.end()


def _check_superblock(manager: MemoryManager, raw: Any) -> Iterator[Problem]:
    if raw is None:
        return  # a heap in memory of no file
    memory = manager.memory
    try:
        block = superblock.read(memory.map[:JOURNAL_OFFSET], memory.size, raw.path)
    except FormatError as error:
        invariant = getattr(error, "invariant", "") or "S1"
        yield Problem(error.problem, getattr(error, "offset", 0) or 0, invariant)
        return
    if block.pool_id != manager.pool_kind or block.heap_offset != manager.heap.start:
        yield Problem("the superblock is that of another pool", 0, "S2")


# Objects ----------------------------------------------------------------------------------------

# What is known of a block, in one word: flags, and above them how often it is held.
_OBJECT, _BLOCK, _DONE, _ONE = 1, 2, 4, 8
_FLAGS = _ONE - 1
_COUNT_MAX = (1 << 29) - 1


class _Check:
    """One look at every block."""

    def __init__(
        self, manager: MemoryManager, *, import_classes: bool, progress: Progress | None = None
    ) -> None:
        self._progress = progress
        self._pace = Pace(None, 0)
        self._checked = 0
        self._manager = manager
        self._reader = Reader(manager)
        self._heap = manager.heap
        self._import = import_classes
        self._known = scratch(manager.memory.size // 4 & ~3).cast("I")
        self._objects = array("Q")
        self._blocks = array("Q")
        self._names: list[str] = []
        self._functions: dict[int, tuple[Any, Any, Any] | None] = {}
        self._opaque = 0

    def run(self, *, notes: bool) -> Iterator[Problem]:
        yield from self._list_blocks()
        yield from self._check_types()
        yield from self._check_root()
        for offset in self._reachable() if notes else ():
            yield from self._check_object(offset)
        for offset in self._objects:
            if not self._known[offset >> 4] & _DONE:
                yield from self._check_object(offset)
                if notes:
                    yield Problem("garbage: the root does not lead here", offset, "R6", "note")
        yield from self._compare_counts()
        yield from self._check_owned()

    def _list_blocks(self) -> Iterator[Problem]:
        known = self._known
        end = self._reader.memory.size
        pace = Pace(part(self._progress, 0.1, 0.4), end)
        for offset, size, type_num in self._heap.blocks():
            pace.at(offset)
            if offset + size > end:
                yield Problem(f"a block of {size} bytes ends outside of the file", offset, "H6")
            elif type_num != POBJECT_TYPE_NUM:
                known[offset >> 4] = _BLOCK
                self._blocks.append(offset)
            elif size < OBJECT_HEADER:
                continue  # allocated, and no object yet
            else:
                known[offset >> 4] = _OBJECT
                self._objects.append(offset)
        self._pace = Pace(part(self._progress, 0.4, 1.0), len(self._objects))

    def _what(self, offset: int) -> int:
        """Return what is known of the block at any offset; 0 if there is none."""
        index = offset >> 4
        return self._known[index] if not offset & 15 and index < len(self._known) else 0

    # The type table -----------------------------------------------------------------------------

    def _check_types(self) -> Iterator[Problem]:
        types = TypeTable(self._heap)  # one that remembers nothing
        nodes: list[tuple[int, list[int]]] = []
        try:
            nodes.extend(types.nodes())
            self._names = types.names()
        except FormatError as error:
            offset = getattr(error, "offset", 0) or self._heap.start
            yield Problem(error.problem, offset, "T2")
            self._opaque += 1
            return
        for node, blocks in nodes:
            yield from self._own(node, self._heap.start, NODE_TYPE_NUM, "T2")
            for block in blocks:
                yield from self._own(block, node, NAME_TYPE_NUM, "T2")
        if any(len(blocks) != NODE_NAMES for _, blocks in nodes[:-1]):
            yield Problem("a node of the type table before the last has room", nodes[0][0], "T2")
        for name in self._names:
            if not all(name.partition(":")):
                yield Problem(f"{name!r} in the type table names no class", nodes[0][0], "T3")
        if len(set(self._names)) != len(self._names):
            yield Problem("a class is in the type table twice", nodes[0][0], "T3")

    def _functions_of(self, code: int) -> tuple[Any, Any, Any] | None:
        """Return what gives problems, children and blocks of objects; None if that is not at hand."""
        if code not in self._functions:
            self._functions[code] = self._find_functions(code)
        return self._functions[code]

    def _find_functions(self, code: int) -> tuple[Any, Any, Any] | None:
        types = self._manager.types
        cls: Any
        if self._import or code < CODE_MIN:
            try:
                cls = types.class_of(code)
                return getattr(cls, "_p_problems", None), *self._reader.functions_of(code)
            except PmshelveError:
                return None
        cls = _find_loaded(self._names[code - CODE_MIN])
        if cls is None or not types.is_static(cls):
            return None
        functions = getattr(cls, "_p_problems", None), cls._p_children, cls._p_blocks
        ours = (each is None or each.__module__.startswith("pmshelve.") for each in functions)
        return functions if all(ours) else None

    # One object ---------------------------------------------------------------------------------

    def _check_object(self, offset: int) -> Iterator[Problem]:
        self._known[offset >> 4] |= _DONE
        self._checked += 1
        self._pace.at(self._checked - 1)
        code = self._reader.code_of(offset)
        if code < CONTAINER_CODE_MIN:
            yield from self._check_scalar(offset, code)
            return
        if not self._is_code(code):
            yield Problem(f"no class has type code {code}", offset, "T1")
            self._opaque += 1
            return
        functions = self._functions_of(code)
        if functions is None:
            self._opaque += 1
            return
        find_problems, find_children, find_blocks = functions
        try:
            found = [] if find_problems is None else [*find_problems(self._reader, offset)]
            children = [] if found else find_children(self._reader, offset)
            blocks = [] if found else find_blocks(self._reader, offset)
        except Exception as error:  # noqa: BLE001 - damage, or a user's class that raises anything
            yield Problem(f"an object cannot be read: {error!r}", offset, "R1")
            self._opaque += 1
            return
        if found:
            self._opaque += 1
            for problem in found:
                yield Problem(*problem)
            return
        for block in blocks:
            yield from self._own(block, offset)
        for child in children:
            yield from self._count(child, offset)

    def _is_code(self, code: int) -> bool:
        if code >= CODE_MIN:
            return code - CODE_MIN < len(self._names)
        try:
            self._manager.types.class_of(code)
        except FormatError:
            return False
        return True

    def _check_scalar(self, offset: int, code: int) -> Iterator[Problem]:
        if not code:
            return  # a shell, or what a user allocated: it holds nothing
        try:
            if code == CODE_PICKLE:
                self._check_pickle(offset)
            else:
                self._manager.scalars.load(offset, code)
        except (FormatError, StateError) as error:
            yield Problem(error.problem, offset, getattr(error, "invariant", "") or "V2")

    def _check_pickle(self, offset: int) -> None:
        size = self._heap.size_of(offset)
        content = self._reader.map[offset + 8 : offset + size]
        if len(content) < 4 or int.from_bytes(content[:4], "little") != crc32(content[4:]):
            raise FormatError("the pickle of a value is damaged")

    def _own(
        self, block: int, owner: int, type_num: int | None = None, invariant: str = "R4"
    ) -> Iterator[Problem]:
        """Note that a block belongs to an object, or to the type table."""
        what = self._what(block)
        if not what & _BLOCK:
            yield Problem(f"a structure at {block:#x} is no block", owner, invariant)
        elif what & _DONE:
            yield Problem(f"the block at {block:#x} belongs to two", owner, invariant)
        elif type_num is not None and self._heap.type_num_of(block) != type_num:
            yield Problem(f"the block at {block:#x} is of another type", owner, invariant)
        else:
            self._known[block >> 4] |= _DONE

    def _count(self, child: int, owner: int) -> Iterator[Problem]:
        """Note that an object is held by another."""
        what = self._what(child)
        if not what & _OBJECT:
            yield Problem(f"a reference leads to {child:#x}, where no object is", owner, "R1")
        elif what >> 3 < _COUNT_MAX:
            self._known[child >> 4] = what + _ONE

    # All of them --------------------------------------------------------------------------------

    def _root(self) -> tuple[int, int]:
        index = (self._heap.start >> 3) + ROOT_OID
        kind, payload = self._reader.words[index : index + 2]
        return kind, payload

    def _check_root(self) -> Iterator[Problem]:
        at = self._heap.start + 8 * ROOT_OID
        kind, payload = self._root()
        if kind == self._manager.pool_kind:
            yield from self._count(payload, at)
        elif kind or payload:
            try:
                self._manager.loaders[kind & 0xFF](kind, payload)
            except (PmshelveError, IndexError):
                yield Problem("the root is no oid", at, "R1")
                self._opaque += 1

    def _reachable(self) -> Iterator[int]:
        """Yield each object that the root leads to; its consumer marks it as done."""
        kind, payload = self._root()
        waiting = [payload] if kind == self._manager.pool_kind else []
        while waiting:
            offset = waiting.pop()
            if self._what(offset) & (_OBJECT | _DONE) != _OBJECT:
                continue
            yield offset
            code = self._reader.code_of(offset)
            if code >= CONTAINER_CODE_MIN and self._is_code(code):
                waiting.extend(self._held(offset, code))

    def _held(self, offset: int, code: int) -> Iterable[int]:
        functions = self._functions_of(code)
        try:
            if functions is None or (functions[0] and any(functions[0](self._reader, offset))):
                return ()
            return list(functions[1](self._reader, offset))
        except Exception:  # noqa: BLE001 - reported by `_check_object`
            return ()

    def _compare_counts(self) -> Iterator[Problem]:
        words = self._reader.words
        for offset in self._objects:
            found = self._known[offset >> 4] >> 3
            stored = words[offset >> 3] & REFCOUNT_MASK
            if found != stored and (found > stored or not self._opaque) and found < _COUNT_MAX:
                text = f"an object is held {found} times, its count says {stored}"
                yield Problem(text, offset, "R2")

    def _check_owned(self) -> Iterator[Problem]:
        if self._opaque:
            return
        for offset in self._blocks:
            type_num = self._heap.type_num_of(offset)
            if type_num in OWN_TYPE_NUMS and not self._known[offset >> 4] & _DONE:
                yield Problem(f"a block of type {type_num} belongs to no object", offset, "R5")


def _find_loaded(name: str) -> Any:
    """Return the class of a name if its module is imported already."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for step in path.split("."):
        found = getattr(found, step, None)
    return found if isinstance(found, type) else None


# Figures ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolStats:
    """Sizes and counts of a pool.

    Attributes
    ----------
    path
        The file's name, or None.
    file_size
        Bytes of the file.
    heap_size
        Bytes of the heap, which is all of the file but the superblock and the journal.
    used
        Bytes of the heap that blocks take, headers and rounding included.
    free
        Bytes of the heap that can be allocated before it grows.
    pages
        Pages of 4096 bytes by what they hold: "slab" (small blocks), "run" (a large one), "free" and
        so on.
    classes
        Names of the users' classes that the pool has known.
    block_count
        Number of blocks.  This and the next two only if they were asked for; else None, and empty.
    block_sizes
        Number of blocks by size, bytes; each counts for the next power of two.
    objects
        Number of objects, garbage included, by the name of their class.
    """

    path: str | None
    file_size: int
    heap_size: int
    used: int
    free: int
    pages: dict[str, int]
    classes: tuple[str, ...]
    block_count: int | None = None
    block_sizes: dict[int, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)


def stats(manager: MemoryManager, raw: Any, *, walk: bool = False) -> PoolStats:
    """Return sizes and counts.  With the pool's lock held.

    Parameters
    ----------
    manager, raw
        The pool's.
    walk
        Look at every block, some 0.5 µs each; else only at every extent.
    """
    heap = manager.heap
    pages = heap.page_counts()
    path = getattr(raw, "path", None)
    result = PoolStats(
        path=None if path is None else str(path),
        file_size=manager.memory.size,
        heap_size=sum(pages.values()) * PAGE,
        used=heap.used_bytes(),
        free=heap.free_bytes(),
        pages=pages,
        classes=tuple(manager.types.names()),
    )
    if not walk:
        return result
    sizes: dict[int, int] = {}
    codes: dict[int, int] = {}
    words = manager.words
    for offset, size, type_num in heap.blocks():
        rounded = 1 << max(size - 1, 0).bit_length()
        sizes[rounded] = sizes.get(rounded, 0) + 1
        if type_num == POBJECT_TYPE_NUM and size >= OBJECT_HEADER:
            code = words[offset >> 3] >> TYPE_CODE_SHIFT
            codes[code] = codes.get(code, 0) + 1
    objects: dict[str, int] = {}
    for code, number in sorted(codes.items()):
        name = manager.types.short_name(code)
        objects[name] = objects.get(name, 0) + number
    return replace(
        result,
        block_count=sum(sizes.values()),
        block_sizes=dict(sorted(sizes.items())),
        objects=objects,
    )
