"""NumPy arrays: their memory goes to the file as it is, and comes back as a view of the file.

Opcodes of a top-level array, whose *raw* holds one call in literal opcodes and nothing else:

    functools.partial(pickle.loads, buffers=[<64-byte aligned BYTEARRAY8 data>])(raw)
    raw = numpy.ndarray(shape, dtype, NEXT_BUFFER, 0, None, order)

C- and Fortran-contiguous arrays keep their order and are written from their own memory; any other
is written in C order, `CHUNK_SIZE` bytes at a time.  Arrays that this cannot say exactly (see
`dtypes`) are encoded generically.

This module imports NumPy; it is loaded when the program has, or when an array is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict.opcodes import STOP, Buffer, Call, Global, emit, parse
from pmshelve.mmapdict.picklers.base import Blob, Encoded, Places, Source
from pmshelve.mmapdict.picklers.dtypes import dtype_spec, load_dtype
from pmshelve.mmapdict.picklers.generic import RAW_PROTO, encode_buffers, encode_generic
from pmshelve.mmapdict.picklers.plain import encode_raw

if TYPE_CHECKING:
    from pmshelve.mmapdict.picklers.empty import EmptyNDArray

__all__ = [
    "CHUNK_SIZE",
    "NDARRAY",
    "ArrayDecoder",
    "array_decoder",
    "check_size",
    "chunks_of",
    "encode_array",
    "encode_empty",
    "load_array",
    "make_decoder",
    "order_of",
]

Order = Literal["C", "F"]

CHUNK_SIZE: Final = 1 << 20
"""Bytes of a non-contiguous array that are made contiguous at a time."""

NDARRAY: Final = Global("numpy", "ndarray")

_BYTE: Final = numpy.dtype(numpy.uint8)

# Encode -----------------------------------------------------------------------------------------


def order_of(array: Any) -> Order:
    """Return the order, 'C' or 'F', in which `chunks_of` hands over the array's items."""
    return "F" if array.flags.fnc else "C"


def chunks_of(array: Any) -> Iterable[memoryview]:
    """Return the bytes of an array in order: its own memory if contiguous, else copies of parts."""
    if array.nbytes == 0:
        return ()
    if type(array) is not numpy.ndarray:
        array = numpy.ndarray.view(array, numpy.ndarray)
    flags = array.flags
    if flags.fnc:
        array = array.T
    elif not flags.c_contiguous:
        return _copied_chunks(array)
    return (memoryview(array.reshape(-1).view(_BYTE)),)


def _copied_chunks(array: Any) -> Iterator[memoryview]:
    row_size = array[:1].nbytes
    if row_size > CHUNK_SIZE and array.ndim > 1:
        for row in array:
            if row.flags.c_contiguous:
                yield from chunks_of(row)
            else:
                yield from _copied_chunks(row)
        return
    count = max(1, CHUNK_SIZE // row_size)
    for start in range(0, len(array), count):
        yield from chunks_of(numpy.ascontiguousarray(array[start : start + count]))


def encode_array(array: Any) -> Encoded:
    """Encode an array of any dtype, shape and layout."""
    spec = dtype_spec(array.dtype)
    if spec is None:
        return encode_generic(array)
    raw = _raw_of(array.shape, spec, order_of(array))
    return encode_buffers([Blob(array.nbytes, functools.partial(chunks_of, array))], raw), True


def encode_empty(stub: EmptyNDArray) -> Encoded:
    """Encode an array of zeros: the space is allocated, nothing is written."""
    spec = dtype_spec(stub.dtype)
    if spec is None:
        raise TypeError(f"an array of dtype {stub.dtype} cannot be allocated in a file")
    raw = _raw_of(stub.shape, spec, "C")
    return encode_buffers([Blob(stub.nbytes, None, reserve=stub.reserve)], raw), True


def _raw_of(shape: tuple[int, ...], spec: Any, order: Order) -> list[bytes | Blob]:
    # The spec of a structured dtype is a dict, which no cache takes.
    make = _cached_raw if type(spec) is str else _make_raw
    return make(shape, spec, order)


def _make_raw(shape: tuple[int, ...], spec: Any, order: Order) -> list[bytes | Blob]:
    call = Call(NDARRAY, (shape, spec, Buffer(0), 0, None, order))
    return encode_raw([RAW_PROTO + emit(call) + STOP])


_cached_raw: Final = functools.lru_cache(1024)(_make_raw)

# Decode -----------------------------------------------------------------------------------------

_new_array: Final = numpy.ndarray.__new__
_memmap: Final = numpy.memmap


class ArrayDecoder:
    """Decodes one array: a view of the file, or an array in memory where the mode is None."""

    kind = "array"
    __slots__ = ("dtype", "nbytes", "order", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: numpy.dtype[Any], order: Order) -> None:
        self.shape = shape
        self.dtype = dtype
        self.order = order
        self.nbytes = math.prod(shape) * dtype.itemsize

    def __call__(self, source: Source, start: int, stop: int) -> Any:
        """Return the array whose data is [start, stop) of the file.

        Returns
        -------
        A `numpy.memmap` with `filename`, `offset` and `mode`, or an `ndarray`.
        """
        # NumPy cannot map nothing.
        buffer, position = source.window(start, stop) if start < stop else (bytearray(), 0)
        mode = source.mmap_mode
        if mode is None:
            return _new_array(
                numpy.ndarray, self.shape, self.dtype, buffer, position, None, self.order
            )
        array: Any = _new_array(_memmap, self.shape, self.dtype, buffer, position, None, self.order)
        if mode == "r":
            array.flags.writeable = False
        array._mmap = buffer  # noqa: SLF001  # whence views of it have it
        array.filename = source.path
        array.offset = start
        array.mode = mode
        return array


def array_decoder(raw: bytes, places: Places) -> ArrayDecoder:
    """Return the decoder for the raw pickle of a top-level array.

    Raises
    ------
    CorruptionError
        It is not as arrays are written, or not of its buffer's size.
    """
    decoder = _parse_array(raw)
    check_size(decoder, places, 0, 1)
    return decoder


@functools.lru_cache(1024)
def _parse_array(raw: bytes) -> ArrayDecoder:
    return load_array(parse(raw), 0)


def load_array(call: Any, index: int) -> ArrayDecoder:
    """Return the decoder for a parsed call of `numpy.ndarray` on the buffer of this index."""
    if type(call) is not Call or call.function != NDARRAY or len(call.arguments) != 6:
        raise CorruptionError("an array is not a call with six arguments")
    shape, spec, buffer, offset, strides, order = call.arguments
    is_plain = buffer == Buffer(index) and (offset, strides) == (0, None) and order in ("C", "F")
    if not is_plain:
        raise CorruptionError("an array's buffer or order is not written as it should be")
    return make_decoder(shape, load_dtype(spec), order)


def check_size(decoder: ArrayDecoder, places: Places, index: int, count: int) -> None:
    """Raise CorruptionError unless an array is as large as its buffer, one of `count`."""
    if len(places) != count or decoder.nbytes != places[index][1]:
        raise CorruptionError("an array is not as large as its buffer", offset=places[0][0])


def make_decoder(shape: Any, dtype: numpy.dtype[Any], order: Order) -> ArrayDecoder:
    """Return the decoder for arrays of this form, if there can be any."""
    if type(shape) is not tuple or any(type(size) is not int or size < 0 for size in shape):
        raise CorruptionError("an array's shape is not one")
    decoder = ArrayDecoder(shape, dtype, order)
    try:
        # What NumPy refuses is refused here; a shape with items was compared with the data's size.
        if decoder.nbytes == 0:
            numpy.empty(shape, dtype)
        else:
            numpy.empty((1,) * len(shape), _BYTE)
    except (ValueError, OverflowError, MemoryError) as error:
        raise CorruptionError(f"an array's shape is not one: {error}") from error
    return decoder
