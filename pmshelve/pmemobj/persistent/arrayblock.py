"""The words of a PersistentArray: an anchor, a block of data, and a description.

    anchor   word  field
             0     object header, type code 21
             1     offset of the data block (type number 34), 0 if the array has no bytes
             2     offset of the first element, a multiple of 64 within the data block; 0 likewise
             3     size of the elements, bytes
             4     offset of the description block (type number 35)
             5     order of the elements: 0 C (last index fastest), 1 Fortran

    description    word  field
                   0     number of dimensions
                   1..   length of each; behind them the dtype (see `dtypes`), to the block's end

Two NumPy arrays over the same bytes: one, writable, never leaves this package; the other, read-only, is what
users get.  The latter's base is an `Owner`, which holds the Python object of the PersistentArray, hence the
block, and a buffer of the mapping, hence the memory.  While there are owners the elements stay where they are.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.persistent.base import Container
from pmshelve.pmemobj.persistent.dtypes import describe, restore
from pmshelve.pmemobj.sizeclass import SMALL_MAX

if TYPE_CHECKING:
    from pmshelve.pmemobj.store import MemoryManager

__all__ = ["DATA_TYPE_NUM", "DESCRIPTION_TYPE_NUM", "ArrayBlock", "read_description"]

DATA_TYPE_NUM = 34
DESCRIPTION_TYPE_NUM = 35

_ALIGNMENT = 64
_SIZE_MAX = (1 << 40) - 4096
_NDIM_MAX = 64


class Owner:
    """Lends the bytes of an array to NumPy, through the array interface, and keeps them there."""

    __slots__ = ("__array_interface__", "__weakref__", "_kept")

    def __init__(self, address: int, size: int, readonly: bool, *kept: Any) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, readonly),
        }
        self._kept = kept


class ArrayBlock(Container):
    """What a PersistentArray knows of its memory.  Every method is called with the lock held."""

    __slots__ = ("_p_data", "_p_owners")

    _p_code: ClassVar[int] = 21
    _p_size: ClassVar[int] = 48

    def _p_attach(self, manager: MemoryManager, offset: int) -> None:
        super()._p_attach(manager, offset)
        self._p_data: Any = None
        self._p_owners: weakref.WeakSet[Owner] = weakref.WeakSet()

    def _p_forget(self) -> None:
        self._p_data = None

    # Arrays over the memory ---------------------------------------------------------------------

    def _p_array(self) -> Any:
        """Return the elements as a writable array, for use inside of this package."""
        data = self._p_data
        if data is None:
            import numpy as np

            shape, dtype, order = self._p_describe()
            buffer = self._p_buffer() or bytearray(dtype.itemsize)
            data = self._p_data = np.ndarray(shape, dtype, buffer, order=order)
        return data

    def _p_buffer(self) -> memoryview:
        _, first, size = self._p_words[self._p_index + 1 : self._p_index + 4].tolist()
        return self._p_mm.memory.bytes[first : first + size]

    def _p_window(self, *, readonly: bool) -> Any:
        """Return the elements as an array for users, which keeps block and memory."""
        import numpy as np

        data = self._p_array()
        if not data.nbytes:
            window = np.empty(data.shape, data.dtype, order=self._p_order())
            window.flags.writeable = not readonly
            return window
        address = data.__array_interface__["data"][0]
        owner = Owner(address, data.nbytes, readonly, self, self._p_buffer())
        self._p_owners.add(owner)
        raw: Any = np.asarray(owner)
        return np.ndarray(data.shape, data.dtype, raw, order=self._p_order())

    def _p_demand_unviewed(self) -> None:
        if len(self._p_owners):
            raise BufferError(
                "the elements of the array cannot be moved while views of them are in use: "
                "drop the views, or copy them"
            )

    # Reading the words --------------------------------------------------------------------------

    def _p_order(self) -> Any:
        return "F" if self._p_words[self._p_index + 5] else "C"

    def _p_describe(self) -> tuple[tuple[int, ...], Any, Any]:
        """Return shape, dtype and order."""
        words = self._p_words
        _, block, first, size, told, _ = words[self._p_index : self._p_index + 6].tolist()
        heap = self._p_mm.heap
        shape, text = read_description(self._p_mm, told)
        dtype = restore(text)
        problem = _data_problem(heap, block, first, size)
        if problem or math.prod(shape) * dtype.itemsize != size:
            raise CorruptionError(
                problem or f"{shape} elements of {dtype} have not {size} bytes",
                offset=self._p_offset,
                invariant="A2" if problem else "A3",
            )
        return shape, dtype, self._p_order()

    # Changing -----------------------------------------------------------------------------------

    def _p_snapshot(self, low: int, high: int) -> None:
        """Keep a range of the elements' bytes, counted from the first."""
        first = self._p_words[self._p_index + 2]
        low, high = first + low & -8, first + high + 7 & -8
        if low < high:
            self._p_mm.memory.snapshot(low, high - low)

    def _p_snapshot_all(self) -> None:
        self._p_snapshot(0, self._p_words[self._p_index + 3])

    def _p_replace(self, shape: tuple[int, ...], dtype: Any, order: str, *, zero: bool) -> Any:
        """Make new blocks in the place of those there are; return the new elements."""
        manager = self._p_mm
        heap, memory, words = manager.heap, manager.memory, self._p_words
        base = self._p_index
        description = describe(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size > _SIZE_MAX:
            raise MemoryError(f"an array of {size} bytes; at most {_SIZE_MAX} are possible")
        old = words[base + 1], words[base + 4]
        block = first = 0
        if size:
            allocate = heap.zalloc if zero or dtype.names is not None else heap.alloc
            block = allocate(_block_size(size), DATA_TYPE_NUM)
            first = block + _ALIGNMENT - 1 & -_ALIGNMENT
        told = heap.alloc(8 + 8 * len(shape) + len(description), DESCRIPTION_TYPE_NUM)
        _write_description(manager, told, shape, description)
        memory.snapshot(self._p_offset + 8, 40)
        new = (block, first, size, told, int(order == "F"))
        for place, word in enumerate(new, base + 1):
            words[place] = word
        for gone in old:
            if gone:
                heap.free(gone)
        self._p_forget()
        return self._p_array()

    def _p_resize(self, length: int) -> None:
        """Let a C-ordered array have so many rows; new ones are zero."""
        manager = self._p_mm
        memory, words = manager.memory, self._p_words
        base = self._p_index
        _, block, first, old, told, _ = words[base : base + 6].tolist()
        size = length * (self._p_array().strides[0] if old else 0)
        if not old or not size or size > _SIZE_MAX:
            data = self._p_array()
            self._p_replace((length, *data.shape[1:]), data.dtype, self._p_order(), zero=True)
            return
        end = block + manager.heap.size_of(block)
        moved = manager.heap.realloc(block, _block_size(size))
        start = moved + _ALIGNMENT - 1 & -_ALIGNMENT
        if moved != block:  # a new block, known as a whole
            memory.map.move(start, moved + first - block, min(old, size))
        elif first + old < end:  # the rest of the old one; what is behind it is known
            memory.snapshot(first + old & -8, end - (first + old & -8))
        if size > old:
            self._p_zero(start + old, start + size)
        memory.snapshot(self._p_offset + 8, 24)
        words[base + 1], words[base + 2], words[base + 3] = moved, start, size
        memory.snapshot(told + 8, 8)
        words[(told >> 3) + 1] = length
        self._p_forget()

    def _p_zero(self, start: int, stop: int) -> None:
        import numpy as np

        np.frombuffer(self._p_mm.memory.bytes[start:stop], np.uint8)[:] = 0

    # Without an object ------------------------------------------------------------------------

    @staticmethod
    def _p_children(manager: MemoryManager, offset: int) -> list[int]:  # noqa: ARG004
        return []

    @staticmethod
    def _p_blocks(manager: MemoryManager, offset: int) -> list[int]:
        index = offset >> 3
        return [block for block in (manager.words[index + 1], manager.words[index + 4]) if block]

    @staticmethod
    def _p_problems(manager: MemoryManager, offset: int) -> Iterator[tuple[str, int, str]]:
        """Yield (problem, offset, invariant) of all that is wrong with the array at `offset`.

        What a dtype means is for NumPy to say; it is not asked here.
        """
        heap, words = manager.heap, manager.words
        if heap.size_of(offset) < ArrayBlock._p_size:
            yield "the anchor of an array is too short", offset, "A1"
            return
        _, block, first, size, told, order = words[offset >> 3 : (offset >> 3) + 6].tolist()
        try:
            shape, text = read_description(manager, told)
        except CorruptionError as error:
            yield error.problem, told, "A1"
        else:
            count = math.prod(shape)
            if bool(size) > bool(count) or (count and size % count):
                yield f"{size} bytes are not {shape} elements", offset, "A3"
            if not text.isascii():
                yield "the dtype of an array is no text", told, "A1"
        problem = _data_problem(heap, block, first, size)
        if problem:
            yield problem, offset, "A2"
        if order > 1:
            yield f"an array has order {order}", offset, "A1"


def _block_size(size: int) -> int:
    """Return the size of a block that has room for so many bytes, from a multiple of 64 on."""
    size = size + 7 & -8
    return size if size > SMALL_MAX else size + 48  # a run of pages is aligned, a small block to 16


def _data_problem(heap: Any, block: int, first: int, size: int) -> str:
    if not size:
        return "an array without bytes has a block for them" if block or first else ""
    if not heap.is_block(block) or heap.type_num_of(block) != DATA_TYPE_NUM:
        return f"no data of an array is at {block:#x}"
    if first % _ALIGNMENT or not block <= first <= first + size <= block + heap.size_of(block):
        return f"{size} bytes at {first:#x} are not within the data block"
    return ""


def _write_description(
    manager: MemoryManager, told: int, shape: tuple[int, ...], text: bytes
) -> None:
    words = manager.words
    for place, word in enumerate((len(shape), *shape), told >> 3):
        words[place] = word
    start = told + 8 + 8 * len(shape)
    manager.map[start : start + len(text)] = text


def read_description(manager: MemoryManager, told: int) -> tuple[tuple[int, ...], bytes]:
    """Return shape and dtype text of the description at an offset; CorruptionError if it is none."""
    heap = manager.heap
    if not heap.is_block(told) or heap.type_num_of(told) != DESCRIPTION_TYPE_NUM:
        raise CorruptionError("no description of an array is there", offset=told, invariant="A1")
    size = heap.size_of(told)
    ndim = manager.words[told >> 3] if size >= 8 else 0
    start = 8 + 8 * ndim
    if ndim > _NDIM_MAX or size <= start:
        raise CorruptionError("the description of an array is cut", offset=told, invariant="A1")
    index = (told >> 3) + 1
    shape = tuple(manager.words[index : index + ndim].tolist())
    return shape, manager.map[told + start : told + size]
