"""Masked arrays: data and mask mapped, with fill value and hard mask.

Opcodes of a top-level masked array: as for arrays, with two buffers (one without a mask), and

    raw = numpy.ma.MaskedArray(data, mask, None, False, True, 0, fill value, True, hard mask)

where data and mask are calls of `numpy.ndarray`, the mask `numpy.ma.nomask` where there is none,
and the fill value None if it was never set, else an array without dimensions whose data is in raw.

This module imports NumPy; it is loaded when the program has used `numpy.ma`, or one is read.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, Final, NamedTuple

import numpy
import numpy.ma

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict.opcodes import STOP, Buffer, Call, Global, emit, parse
from pmshelve.mmapdict.picklers.array import (
    NDARRAY,
    ArrayDecoder,
    check_size,
    chunks_of,
    load_array,
    order_of,
)
from pmshelve.mmapdict.picklers.base import Blob, Encoded, Places, Source
from pmshelve.mmapdict.picklers.dtypes import dtype_spec, load_dtype
from pmshelve.mmapdict.picklers.generic import RAW_PROTO, encode_buffers, encode_generic
from pmshelve.mmapdict.picklers.plain import encode_raw

__all__ = [
    "MASKED_ARRAY",
    "Form",
    "MaskedDecoder",
    "check_mask",
    "encode_masked",
    "fill_of",
    "is_mappable",
    "is_ordinary",
    "masked_decoder",
]

MASKED_ARRAY: Final = Global("numpy.ma", "MaskedArray")
_NOMASK: Final = Global("numpy.ma", "nomask")

# Encode -----------------------------------------------------------------------------------------

fill_of: Final = operator.attrgetter("_fill_value")
"""Returns a masked array's fill value or None; the property would set it."""


def is_ordinary(array: Any) -> bool:
    """Whether the data below the mask is a plain array, not one of some subclass."""
    return array.baseclass in (numpy.ndarray, numpy.memmap)


def is_mappable(value: Any) -> bool:
    """Whether a value is a masked array that the form above says exactly."""
    if type(value) is not numpy.ma.MaskedArray or not is_ordinary(value):
        return False
    fill = fill_of(value)
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
    forms = tuple((part.shape, dtype_spec(part.dtype), order_of(part)) for part in parts)
    # Only the spec of a structured dtype is not hashable.
    make_raw = _cached_raw if type(forms[0][1]) is str else _make_raw
    raw = make_raw(forms, _fill_form(fill_of(array)), array.hardmask)
    blobs = [Blob(part.nbytes, functools.partial(chunks_of, part)) for part in parts]
    return encode_buffers(blobs, encode_raw([raw])), True


def _fill_form(fill: Any) -> tuple[Any, bytes] | None:
    return None if fill is None else (dtype_spec(fill.dtype), fill.tobytes())


def _make_raw(
    forms: tuple[tuple[tuple[int, ...], Any, str], ...],
    fill: tuple[Any, bytes] | None,
    is_hard: bool,
) -> bytes:
    calls = [
        Call(NDARRAY, (shape, spec, Buffer(number), 0, None, order))
        for number, (shape, spec, order) in enumerate(forms)
    ]
    data_call, mask_call = calls if len(calls) == 2 else (calls[0], _NOMASK)
    fill_call = fill and Call(NDARRAY, ((), *fill, 0, None, "C"))
    arguments = (data_call, mask_call, None, False, True, 0, fill_call, True, is_hard)
    return RAW_PROTO + emit(Call(MASKED_ARRAY, arguments)) + STOP


_cached_raw: Final = functools.lru_cache(1024)(_make_raw)


# Decode -----------------------------------------------------------------------------------------


class Form(NamedTuple):
    """What a masked array is, whatever its content.

    Attributes
    ----------
    data, mask
        Decoders of the two; no mask is None.
    fill
        The fill value, or None.
    is_hard
        Whether masked items stay masked when they are assigned to.
    """

    data: ArrayDecoder
    mask: ArrayDecoder | None
    fill: Any = None
    is_hard: bool = False


class MaskedDecoder:
    """Decodes one masked array."""

    kind = "masked"
    __slots__ = ("_form", "_mask_shift")

    def __init__(self, form: Form, places: Places) -> None:
        self._form = form
        self._mask_shift = places[-1][0] - places[0][0]

    def __call__(self, source: Source, start: int, stop: int) -> Any:
        """Return the masked array whose data and mask lie in [start, stop) of the file."""
        data, mask, fill, is_hard = self._form
        array: Any = numpy.ma.MaskedArray(
            data(source, start, start + data.nbytes), fill_value=fill, hard_mask=is_hard, copy=False
        )
        if mask is not None:
            start += self._mask_shift
            # Setting the property would copy it.
            array._mask = mask(source, start, start + mask.nbytes)  # noqa: SLF001
        return array


def masked_decoder(raw: bytes, places: Places) -> MaskedDecoder:
    """Return the decoder for the raw pickle of a masked array.

    Raises
    ------
    CorruptionError
        It is not as masked arrays are written, or not of its buffers' sizes.
    """
    form = _parse_masked(raw)
    count = 1 if form.mask is None else 2
    check_size(form.data, places, 0, count)
    if form.mask is not None:
        check_size(form.mask, places, 1, count)
    return MaskedDecoder(form, places)


@functools.lru_cache(1024)
def _parse_masked(raw: bytes) -> Form:
    call = parse(raw)
    if type(call) is not Call or call.function != MASKED_ARRAY or len(call.arguments) != 9:
        raise CorruptionError("a masked array is not a call with nine arguments")
    data_call, mask_call, *between, fill_call, keep_mask, is_hard = call.arguments
    if between != [None, False, True, 0] or keep_mask is not True or type(is_hard) is not bool:
        raise CorruptionError("a masked array is not written as it should be")
    data = load_array(data_call, 0)
    mask = None if mask_call == _NOMASK else load_array(mask_call, 1)
    check_mask(data, mask)
    return Form(data, mask, _load_fill(fill_call, data), is_hard)


def check_mask(data: ArrayDecoder, mask: ArrayDecoder | None) -> None:
    """Raise CorruptionError unless a mask fits its data."""
    if mask is None:
        return
    if mask.shape != data.shape or mask.dtype != numpy.ma.make_mask_descr(data.dtype):
        raise CorruptionError("a mask is not of its data's shape, or not a mask")


def _load_fill(call: Any, data: ArrayDecoder) -> Any:
    if call is None:
        return None
    if type(call) is not Call or call.function != NDARRAY or len(call.arguments) != 6:
        raise CorruptionError("a fill value is not an array")
    dtype, content = load_dtype(call.arguments[1]), call.arguments[2]
    if call.arguments[0] != () or type(content) is not bytes or len(content) != dtype.itemsize:
        raise CorruptionError("a fill value is not as large as its dtype says")
    fill = numpy.ndarray((), dtype, bytearray(content))
    try:
        numpy.ma.MaskedArray(numpy.empty(0, data.dtype), fill_value=fill)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorruptionError(f"a fill value does not fit its array: {error}") from error
    return fill
