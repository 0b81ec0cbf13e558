"""Values written by mmappickle, or by anybody's own pickler: any body of a pickle.

mmappickle writes arrays as calls that current NumPy cannot make any more:

    array    numpy.core.fromnumeric.reshape(
                 numpy.core.multiarray.fromstring(<BINBYTES8 data>, str(dtype)), shape)
    masked   numpy.ma.core.MaskedArray(array, array)

They are recognised and mapped, never run.  Everything else is given to the unpickler.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, Final

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict.opcodes import (
    BINBYTES,
    BINBYTES8,
    NEXT_BUFFER,
    SHORT_BINBYTES,
    Buffer,
    Call,
    Global,
    emit,
    parse,
)
from pmshelve.mmapdict.picklers.generic import loads
from pmshelve.mmapdict.wellformed import find_fault

if TYPE_CHECKING:
    from pmshelve.mmapdict.picklers.array import ArrayDecoder
    from pmshelve.mmapdict.picklers.base import Decoder, Places, Resolved, Source

__all__ = ["LEGACY_HEADS", "decode_body", "resolve_legacy_array"]

_RESHAPE: Final = Global("numpy.core.fromnumeric", "reshape")
_FROMSTRING: Final = Global("numpy.core.multiarray", "fromstring")
_MASKED_ARRAY: Final = Global("numpy.ma.core", "MaskedArray")

_ARRAY_HEAD: Final = emit(_RESHAPE) + emit(_FROMSTRING)
_MASKED_HEAD: Final = emit(_MASKED_ARRAY) + _ARRAY_HEAD
LEGACY_HEADS: Final = (_ARRAY_HEAD, _MASKED_HEAD)
_SIZE_WIDTHS: Final = {SHORT_BINBYTES: 1, BINBYTES: 4, BINBYTES8: 8}
_PROBE_SIZE: Final = 4096


def decode_body(source: Source, start: int, stop: int) -> Any:
    """Return the object that the opcodes in [start, stop) stand for, by unpickling them."""
    # Damaged opcodes can make the unpickler allocate gigabytes (one bit makes BINPUT LONG_BINPUT).
    looked_at = source.allow_pickle or source.keep_pickles
    fault = find_fault(source.read, start, stop) if looked_at else None
    if fault is not None:
        raise CorruptionError(f"the value is broken: {fault}", offset=start, invariant="L2")
    return loads(source, b"\x80\x04" + source.read(start, stop) + b".", start)


def resolve_legacy_array(source: Source, start: int, stop: int) -> Resolved | None:
    """Resolve an array or masked array of mmappickle; None where the value is none."""
    outline = _outline(source, start, stop)
    if outline is None:
        return None
    opcodes, places = outline
    call = parse(opcodes)
    if type(call) is not Call:
        return None
    end = places[-1][0] + places[-1][1]
    if call.function == _MASKED_ARRAY and len(places) == len(call.arguments) == 2:
        return places[0][0], end, _masked_decoder(call, places)
    return places[0][0], end, _array_decoder(call, places[0][1])


def _outline(source: Source, start: int, stop: int) -> tuple[bytes, Places] | None:
    """Return the opcodes with NEXT_BUFFER for each array's data, and where the data is."""
    parts: list[bytes] = []
    places: Places = []
    while len(places) < 3:
        probe = source.read(start, min(stop, start + _PROBE_SIZE))
        index = probe.find(_ARRAY_HEAD)
        if index < 0:
            parts.append(probe)
            return (b"".join(parts), places) if start + len(probe) == stop else None
        index += len(_ARRAY_HEAD)
        width = _SIZE_WIDTHS.get(probe[index : index + 1])
        if width is None:
            return None
        size = int.from_bytes(probe[index + 1 : index + 1 + width], "little")
        parts += [probe[:index], NEXT_BUFFER]
        start += index + 1 + width
        if size > stop - start:
            raise CorruptionError("an array reaches past the end of its value", offset=start)
        places.append((start, size))
        start += size
    return None


def _array_decoder(call: Any, size: int) -> ArrayDecoder:
    from pmshelve.mmapdict.picklers.array import make_decoder

    if type(call) is not Call or call.function != _RESHAPE or len(call.arguments) != 2:
        raise CorruptionError("an array is not written as mmappickle does")
    inner, shape = call.arguments
    if type(inner) is not Call or inner.function != _FROMSTRING or len(inner.arguments) != 2:
        raise CorruptionError("an array is not written as mmappickle does")
    decoder = make_decoder(shape, _load_dtype(inner.arguments[1]), "C")
    if decoder.nbytes != size or type(inner.arguments[0]) is not Buffer:
        raise CorruptionError("an array is not as large as its data")
    return decoder


def _masked_decoder(call: Call, places: Places) -> Decoder:
    from pmshelve.mmapdict.picklers.masked import Form, MaskedDecoder, check_mask

    data, mask = (
        _array_decoder(part, size) for part, (_, size) in zip(call.arguments, places, strict=True)
    )
    if mask.shape == () != data.shape:  # mmappickle's way to write no mask
        return MaskedDecoder(Form(data, None), places)
    check_mask(data, mask)
    return MaskedDecoder(Form(data, mask), places)


def _load_dtype(name: Any) -> Any:
    """Return the dtype with this `str`: a name, or the literal of a structured dtype."""
    import numpy

    if type(name) is not str:
        raise CorruptionError("a dtype is not text")
    try:
        literal = ast.literal_eval(name) if name[:1] in "[{(" else name
        dtype = numpy.dtype(literal)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        raise CorruptionError(f"a dtype is not one: {error}") from error
    if dtype.hasobject or dtype.subdtype is not None:
        raise CorruptionError("a dtype is not one of plain data")
    return dtype
