"""Masked arrays: data and mask mapped, with fill value and hard mask.

Opcodes of a top-level masked array: as for arrays, with two buffers (one without a mask), and

    raw = numpy.ma.MaskedArray(data, mask, None, False, True, 0, fill value, True, hard mask)

where data and mask are calls of `numpy.ndarray`, the mask `numpy.ma.nomask` where there is none,
and the fill value None if it was never set, else an array without dimensions whose data is in raw.

This module imports NumPy; it is loaded when the program has used `numpy.ma`, or one is read.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy
import numpy.ma

from ...errors import CorruptionError
from ..opcodes import STOP, Buffer, Call, Global, emit, parse
from .array import (
    NDARRAY,
    ArrayDecoder,
    array_decoder,
    chunks_of,
    order_of,
)
from .base import Blob, Encoded, Source
from .dtypes import dtype_spec, load_dtype
from .generic import RAW_PROTO, encode_buffers, encode_generic
from .plain import encode_raw

__all__ = ["MASKED_ARRAY", "MaskedDecoder", "encode_masked", "is_mappable", "is_ordinary", "parse_masked"]

MASKED_ARRAY: Final = Global("numpy.ma", "MaskedArray")
_NOMASK: Final = Global("numpy.ma", "nomask")

# Encode -----------------------------------------------------------------------------------------


def is_ordinary(array: Any) -> bool:
    """Whether the data below the mask is a plain array, not one of some subclass."""
    return array.baseclass in (numpy.ndarray, numpy.memmap)


def is_mappable(value: Any) -> bool:
    """Whether a value is a masked array that the form above says exactly."""
    if type(value) is not numpy.ma.MaskedArray or not is_ordinary(value):
        return False
    fill = value._fill_value  # the property would set it
    return dtype_spec(value.dtype) is not None and (
        fill is None or dtype_spec(fill.dtype) is not None
    )


def encode_masked(array: Any) -> Encoded:
    """Encode a masked array; what its form cannot say goes generically."""
    if not is_mappable(array):
        return encode_generic(array)
    parts = [numpy.ndarray.view(array, numpy.ndarray)]
    mask = numpy.ma.getmask(array)
    if mask is not numpy.ma.nomask:
        parts.append(numpy.asarray(mask))
    calls = [
        Call(NDARRAY, (part.shape, dtype_spec(part.dtype), Buffer(index), 0, None, order_of(part)))
        for index, part in enumerate(parts)
    ]
    data_call, mask_call = calls if len(calls) == 2 else (calls[0], _NOMASK)
    arguments = (data_call, mask_call, None, False, True, 0, _fill_call(array), True, array.hardmask)
    raw = RAW_PROTO + emit(Call(MASKED_ARRAY, arguments)) + STOP
    blobs = [Blob(part.nbytes, functools.partial(chunks_of, part)) for part in parts]
    return encode_buffers(blobs, encode_raw([raw])), True


def _fill_call(array: Any) -> Call | None:
    fill = array._fill_value
    if fill is None:
        return None
    return Call(NDARRAY, ((), dtype_spec(fill.dtype), fill.tobytes(), 0, None, "C"))


# Decode -----------------------------------------------------------------------------------------


class MaskedDecoder:
    """Decodes one masked array.

    Parameters
    ----------
    data, mask
        Decoders of the two; no mask is None.
    fill
        The fill value, or None.
    is_hard
        Whether masked items stay masked when they are assigned to.
    places
        Where the data is, and the mask, counted from the start of the value's window.
    """

    kind = "masked"
    __slots__ = ("data", "fill", "is_hard", "mask", "places")

    def __init__(
        self,
        data: ArrayDecoder,
        mask: ArrayDecoder | None,
        fill: Any = None,
        is_hard: bool = False,
        places: tuple[int, ...] = (0,),
    ) -> None:
        self.data = data
        self.mask = mask
        self.fill = fill
        self.is_hard = is_hard
        self.places = places

    def __call__(self, source: Source, start: int, stop: int) -> Any:
        """Return the masked array whose data and mask lie in [start, stop) of the file."""
        data = self._part(source, self.data, start + self.places[0])
        mask: Any = numpy.ma.nomask
        if self.mask is not None:
            mask = self._part(source, self.mask, start + self.places[1])
        return numpy.ma.MaskedArray(
            data, mask=mask, fill_value=self.fill, hard_mask=self.is_hard, copy=False
        )

    def _part(self, source: Source, decoder: ArrayDecoder, start: int) -> Any:
        return decoder(source, start, start + decoder.nbytes)


def parse_masked(raw: bytes, places: list[tuple[int, int]]) -> MaskedDecoder | None:
    """Return the decoder for the raw pickle of a masked array; None if it is none.

    Parameters
    ----------
    places
        Offset and size of each buffer.
    """
    call = parse(raw)
    if type(call) is not Call or call.function != MASKED_ARRAY:
        return None
    if len(call.arguments) != 9 or call.arguments[2:6] != (None, False, True, 0):
        raise CorruptionError("a masked array is not written as it should be")
    data_call, mask_call, fill_call, is_hard = (call.arguments[i] for i in (0, 1, 6, 8))
    data = _part_decoder(data_call, 0, places)
    mask = None if mask_call == _NOMASK else _part_decoder(mask_call, 1, places)
    start = places[0][0]
    return MaskedDecoder(
        data, mask, _load_fill(fill_call), is_hard is True, tuple(at - start for at, _ in places)
    )


def _part_decoder(call: Any, index: int, places: list[tuple[int, int]]) -> ArrayDecoder:
    if type(call) is not Call or call.function != NDARRAY or index >= len(places):
        raise CorruptionError("a part of a masked array is not an array")
    decoder = array_decoder(call)
    if call.arguments[2] != Buffer(index) or decoder.nbytes != places[index][1]:
        raise CorruptionError("a part of a masked array is not as large as its buffer")
    return decoder


def _load_fill(call: Any) -> Any:
    if call is None:
        return None
    if type(call) is not Call or call.function != NDARRAY or len(call.arguments) != 6:
        raise CorruptionError("a fill value is not an array")
    dtype, data = load_dtype(call.arguments[1]), call.arguments[2]
    if call.arguments[0] != () or type(data) is not bytes or len(data) != dtype.itemsize:
        raise CorruptionError("a fill value is not as large as its dtype says")
    return numpy.ndarray((), dtype, bytearray(data))
