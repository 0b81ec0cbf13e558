"""What a pool file is, told without opening the pool: no lock, nothing written, no class imported."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pmshelve.errors import CorruptionError, FormatError, VersionError
from pmshelve.pmemobj import persistent as _collections  # noqa: F401 - they register their type codes
from pmshelve.pmemobj.extents import Walk
from pmshelve.pmemobj.layout import (
    OBJECT_HEADER,
    PAGE,
    POBJECT_TYPE_NUM,
    TYPE_CODE_SHIFT,
    TYPE_NUM_SHIFT,
)
from pmshelve.pmemobj.peek import Peek
from pmshelve.pmemobj.scalars import CONTAINER_CODE_MIN
from pmshelve.pmemobj.sizeclass import BLOCK_COUNTS, BLOCK_SIZES
from pmshelve.pmemobj.superblock import CLEAN, ORDERED, UNSYNCED, VERSION
from pmshelve.pmemobj.typetable import TypeTable
from pmshelve.storage.extent import Extent
from pmshelve.storage.progress import Progress

__all__ = ["Description", "add_slab", "describe"]

_TRIES = 4
_PAUSE = 0.005
_SIZE_MASK = (1 << TYPE_NUM_SHIFT) - 1


@dataclass
class Description:
    """What is known of a pool file; sizes are in bytes, None stands for what is not known.

    Attributes
    ----------
    format, uuid, pool_size, max_size
        As the superblock says; `max_size` 0: none.
    clean
        Whether the pool was closed in order, so that the next opener has nothing to do.
    durability
        'full', 'lazy' or 'none': how it is, or was last, used.
    journal_size, journal_used, journal_records
        Of the journal: its bytes, those that hold records, and how many records: transactions that
        were committed since the last checkpoint.
    journal_torn
        Whether it ends in what may be the beginning of a record: a commit that was cut short.
    heap_size, used, free
        Bytes of the heap; what blocks take; what can be allocated before the heap grows.
    pages
        Pages of 4096 bytes by what they hold.
    slabs
        Of each size class that has any: 'block_size', 'slabs', 'size' (bytes), 'blocks', 'used'.
    root, root_class
        What the root is: the name of its class without module, and with it; "" none.
    classes
        Names in the type table.
    block_count, objects
        Blocks; objects, garbage included, by the name of their class.
    changing
        Whether somebody wrote whenever it was looked at: what the heap holds is not known.
    problem
        What is damaged, or "".
    """

    format: int = VERSION
    uuid: str | None = None
    pool_size: int | None = None
    max_size: int | None = None
    clean: bool | None = None
    durability: str | None = None
    journal_size: int | None = None
    journal_used: int | None = None
    journal_records: int | None = None
    journal_torn: bool | None = None
    heap_size: int | None = None
    used: int | None = None
    free: int | None = None
    pages: dict[str, int] = field(default_factory=dict)
    slabs: list[dict[str, int]] = field(default_factory=list)
    root: str | None = None
    root_class: str | None = None
    classes: list[str] = field(default_factory=list)
    block_count: int | None = None
    objects: dict[str, int] = field(default_factory=dict)
    changing: bool = False
    problem: str = ""


class _Names(TypeTable):
    """The names of type codes, and no heap."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._names = names


def describe(path: str, *, blocks: bool = True, progress: Progress | None = None) -> Description:
    """Return what a pool file is.

    Parameters
    ----------
    path
        The file's name.
    blocks
        Count the objects, too.
    progress
        Called with the bytes gone through, of the file's.

    Raises
    ------
    OSError
        The file cannot be read.
    VersionError
        It is of a format that this package does not know.

    Notes
    -----
    While somebody writes, the pool is looked at up to four times; see `peek`.  Costs what
    `extents.Walk` does.
    """
    for attempt in range(_TRIES):
        found = Description()
        last = attempt == _TRIES - 1
        try:
            with Peek(path) as peek:
                _tell_superblock(found, peek)
                try:
                    _tell_heap(found, peek, blocks=blocks, progress=progress)
                except CorruptionError as error:
                    found.problem = f"{error.problem} (at offset {error.offset})"
                if peek.is_settled():
                    return found
        except CorruptionError as error:  # or it was read while it was written
            found.problem = error.problem
            if last:
                return found
            time.sleep(_PAUSE)
        except VersionError:
            raise
        except FormatError as error:
            found.problem = error.problem
            return found
    known = Description(changing=True)
    with suppress(CorruptionError), Peek(path) as peek:
        _tell_superblock(known, peek)
    return known


def _tell_superblock(found: Description, peek: Peek) -> None:
    block, records = peek.block, peek.found
    found.uuid = str(uuid.UUID(bytes=block.uuid))
    found.pool_size, found.max_size = block.pool_size, block.max_size
    found.clean = bool(block.flags & CLEAN) and not records.records and not records.torn
    found.durability = "full" if block.flags & ORDERED else "lazy"
    if block.flags & UNSYNCED:
        found.durability = "none"
    found.journal_size, found.journal_used = block.journal_size, records.tail[0]
    found.journal_records, found.journal_torn = len(records.records), records.torn
    found.heap_size = peek.size - block.heap_offset


def _tell_heap(found: Description, peek: Peek, *, blocks: bool, progress: Progress | None) -> None:
    found.classes = peek.class_names()
    names = _Names(found.classes)
    found.root, found.root_class = _root_of(peek, names)
    pages = dict.fromkeys(("free", "run", "slab", "table", "damage"), 0)
    slabs: dict[int, dict[str, int]] = {}
    codes: dict[int, int] = {}
    found.used = found.free = 0
    count = 0
    walk = Walk(peek, blocks=blocks, progress=progress)
    for extent in walk:
        if extent.kind in pages:
            pages[extent.kind] += extent.size // PAGE
        if extent.kind == "slab":
            add_slab(slabs, extent)
            found.used += extent.used
            whole = BLOCK_COUNTS[extent.size_class] * BLOCK_SIZES[extent.size_class]
            found.free += whole - extent.used
        elif extent.kind == "run":
            found.used += extent.size
        elif extent.kind == "free":
            found.free += extent.size
        if blocks and extent.kind in {"slab", "run"}:
            count += len(walk.blocks)
            _count_objects(codes, walk.blocks)
    found.pages = {kind: number for kind, number in pages.items() if number or kind != "damage"}
    found.slabs = [slabs[number] for number in sorted(slabs)]
    if walk.problem:
        found.problem = f"{walk.problem} (at offset {walk.problem_offset})"
    if blocks:
        found.block_count = count
        found.objects = _named(codes, names)


def add_slab(slabs: dict[int, dict[str, int]], extent: Extent) -> None:
    """Add a slab to the figures of its size class."""
    number = extent.size_class
    size = BLOCK_SIZES[number]
    known = slabs.setdefault(
        number, {"block_size": size, "slabs": 0, "size": 0, "blocks": 0, "used": 0}
    )
    known["slabs"] += 1
    known["size"] += extent.size
    known["blocks"] += BLOCK_COUNTS[number]
    known["used"] += extent.used // size


def _count_objects(codes: dict[int, int], blocks: list[tuple[int, int, int]]) -> None:
    for _, header, word in blocks:
        if header >> TYPE_NUM_SHIFT == POBJECT_TYPE_NUM and header & _SIZE_MASK >= OBJECT_HEADER:
            code = word >> TYPE_CODE_SHIFT
            codes[code] = codes.get(code, 0) + 1


def _named(codes: dict[int, int], names: TypeTable) -> dict[str, int]:
    objects: dict[str, int] = {}
    for code, number in sorted(codes.items()):
        # What a program allocated with the default type number and filled as it liked.
        name = names.short_name(code) if names.is_known(code) else "(no object)"
        objects[name] = objects.get(name, 0) + number
    return objects


def _root_of(peek: Peek, names: TypeTable) -> tuple[str, str]:
    kind, payload = peek.root()
    if kind != peek.block.pool_id:
        return ("value", "") if kind > 1 else ("", "")  # None is 1
    code = _code_of(peek, payload)
    if code < CONTAINER_CODE_MIN:
        return "value", ""
    return names.short_name(code), names.name(code)


def _code_of(peek: Peek, offset: int) -> Any:
    if offset % 16 or not peek.block.heap_offset < offset < peek.size:
        peek.damaged("the root is no object", offset, "R1")
    return peek.words(offset, 1)[0] >> TYPE_CODE_SHIFT
