"""The table of all forms: which encoder takes a value, which decoder its opcodes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict.opcodes import (
    COVERED_SIZE_MAX,
    PAD_SIZE_MAX,
    POP,
    REDUCE,
    SHORT_BINBYTES,
    TUPLE1,
    find_buffers,
    is_padding,
)
from pmshelve.mmapdict.picklers.chunks import CHUNKS_RAW, Chunks, decode_chunks, encode_chunks
from pmshelve.mmapdict.picklers.empty import EmptyNDArray
from pmshelve.mmapdict.picklers.generic import (
    ARRAY_RAW_HEAD,
    BUFFERS_END,
    BUFFERS_HEAD,
    MASKED_RAW_HEAD,
    PICKLE_HEAD,
    BuffersDecoder,
    decode_pickle,
    encode_generic,
    encode_premade,
    forget_writers,
)
from pmshelve.mmapdict.picklers.legacy import LEGACY_HEADS, decode_body, resolve_legacy_array
from pmshelve.mmapdict.picklers.plain import ENCODERS as PLAIN_ENCODERS
from pmshelve.mmapdict.picklers.plain import resolve_plain
from pmshelve.mmapdict.picklers.premade import Premade

if TYPE_CHECKING:
    from pmshelve.mmapdict.picklers.base import Decoder, Encoded, Places, Resolved, Source

__all__ = ["encode", "resolve"]

# Encode -----------------------------------------------------------------------------------------


_CONTAINERS: Final = (dict, list, tuple, set, frozenset)


def _load_array_encoders() -> None:
    import numpy

    from pmshelve.mmapdict.picklers.array import encode_array

    _ENCODERS[numpy.ndarray] = _ENCODERS[numpy.memmap] = encode_array
    forget_writers()
    for container in _CONTAINERS:
        _ENCODERS[container] = encode_generic


def _load_masked_encoders() -> None:
    import numpy.ma

    from pmshelve.mmapdict.picklers.masked import encode_masked

    _ENCODERS[numpy.ma.MaskedArray] = encode_masked


def _encode_empty(stub: EmptyNDArray) -> Encoded:
    from pmshelve.mmapdict.picklers.array import encode_empty

    return encode_empty(stub)


# Modules that no value comes from before the program has loaded them.
_unseen: dict[str, Callable[[], None]] = {
    "numpy": _load_array_encoders,
    "numpy.ma": _load_masked_encoders,
}


def _encode_container(value: Any) -> Encoded:
    """Encode what is most often stored, as long as NumPy is not loaded, whose arrays may be in it."""
    return _encode_other(value) if "numpy" in sys.modules else encode_generic(value)


def _encode_other(value: Any) -> Encoded:
    for module in tuple(_unseen):
        if module in sys.modules:
            _unseen[module]()
            _unseen.pop(module, None)
            return encode(value)
    return encode_generic(value)


_ENCODERS: Final[dict[type, Callable[[Any], Encoded]]] = {
    **PLAIN_ENCODERS,
    **dict.fromkeys(_CONTAINERS, _encode_container),
    EmptyNDArray: _encode_empty,
    Premade: encode_premade,
    Chunks: encode_chunks,
}


def encode(value: Any) -> Encoded:
    """Return the opcodes of a value, and whether REDUCE is to follow them.

    Raises
    ------
    UnsupportedTypeError
        The value cannot be pickled.
    """
    return _ENCODERS.get(type(value), _encode_other)(value)


# Decode -----------------------------------------------------------------------------------------

_HEAD_SIZE: Final = 1024
_RAW_AT: Final = len(PICKLE_HEAD) + 2
_CALL_END: Final = TUPLE1 + REDUCE
_SHORT_SIZE_MIN: Final = _RAW_AT + len(_CALL_END)
_RAW_WIDTHS: Final = {b"C": 1, b"B": 4, b"\x8e": 8}


def resolve(
    source: Source, start: int, stop: int, *, own: bool = True, literal: bool = True
) -> Resolved:
    """Find out what value the opcodes in [start, stop) stand for.

    Parameters
    ----------
    source
        Where they are. Of large data nothing is read.
    start, stop
        Offsets of the value's first opcode, and of the crc field (the memo field in entries of
        mmappickle). The last byte may be a REDUCE, or the POP it becomes when the entry dies.
    own
        Whether the entry is one of pmshelve.
    literal
        Whether arrays are decoded as arrays; else like any other object, by the unpickler.

    Returns
    -------
    Two offsets and a decoder: the value is `decoder(source, start, stop)`, now and whenever it is
    wanted as long as the entry is there; without a decoder it is the bytes between the offsets.

    Raises
    ------
    CorruptionError
        No value is written like this.
    """
    head = source.read(start, stop if stop - start <= _HEAD_SIZE else start + _HEAD_SIZE)
    if not head:
        raise CorruptionError("an entry has no value", source.path, offset=start)
    resolved = _resolve_short(start, stop, head)
    if resolved is not None:
        return resolved
    try:
        resolved = resolve_plain(source, start, stop, head)
        if resolved is None and head.startswith(PICKLE_HEAD):
            resolved = _resolve_pickle(source, start, stop, own)
        elif resolved is None and head.startswith(BUFFERS_HEAD):
            resolved = _resolve_buffers(source, start, stop, own, literal)
        elif resolved is None and head.startswith(LEGACY_HEADS):
            resolved = resolve_legacy_array(source, start, stop)
    except CorruptionError as error:
        # What is wrong was found by those who see bytes and do not know of what file.
        error.path = source.path
        error.offset = start if error.offset is None else error.offset
        raise
    return resolved or (start, stop, decode_body)


def _resolve_short(start: int, stop: int, head: bytes) -> Resolved | None:
    """Resolve the most common values at once: short bytes and objects, without padding."""
    size = stop - start
    if not _SHORT_SIZE_MIN <= size <= _HEAD_SIZE:
        return None
    if head[0] == SHORT_BINBYTES[0] and head[1] == size - 2:
        return start + 2, stop, None
    raw_size = head[_RAW_AT - 1]
    if raw_size != size - _SHORT_SIZE_MIN or head[_RAW_AT - 2] != SHORT_BINBYTES[0]:
        return None
    if head.startswith(PICKLE_HEAD) and head.endswith(_CALL_END):
        return start + _RAW_AT, stop - len(_CALL_END), decode_pickle
    return None


def _resolve_pickle(source: Source, start: int, stop: int, own: bool) -> Resolved | None:
    raw = _find_raw(source, start + len(PICKLE_HEAD), stop, own)
    return raw and (*raw, decode_pickle)


def _resolve_buffers(
    source: Source, start: int, stop: int, own: bool, literal: bool
) -> Resolved | None:
    buffers, position = find_buffers(source.read, start + len(BUFFERS_HEAD), stop)
    end = position + len(BUFFERS_END)
    if not buffers or source.read(position, min(stop, end)) != BUFFERS_END:
        return None
    raw = _find_raw(source, end, stop, own)
    if raw is None:
        return None
    decoder: Decoder | None = None
    if literal and raw[1] - raw[0] <= COVERED_SIZE_MAX:
        decoder = _literal_decoder(source.read(*raw), buffers)
    return buffers[0][0], sum(buffers[-1]), decoder or BuffersDecoder(raw, buffers)


@functools.cache
def _literal_parsers() -> dict[bytes, Callable[[bytes, Places], Decoder]]:
    """Return what reads a raw pickle that begins like this."""
    from pmshelve.mmapdict.picklers.array import array_decoder
    from pmshelve.mmapdict.picklers.masked import masked_decoder

    return {ARRAY_RAW_HEAD: array_decoder, MASKED_RAW_HEAD: masked_decoder}


def _literal_decoder(raw: bytes, places: Places) -> Decoder | None:
    """Return the decoder of a top-level array, masked array or `Chunks`; None for all others."""
    if raw == CHUNKS_RAW and len(places) == 1:
        return decode_chunks
    for head in (ARRAY_RAW_HEAD, MASKED_RAW_HEAD):
        if raw.startswith(head):
            return _literal_parsers()[head](raw, places)
    return None


def _find_raw(source: Source, start: int, stop: int, own: bool) -> tuple[int, int] | None:
    """Return where the bytes are that this opcode pushes, if only their call follows."""
    head = source.read(start, min(stop, start + _HEAD_SIZE))
    width = _RAW_WIDTHS.get(head[:1], 0)
    first = start + 1 + width
    last = first + int.from_bytes(head[1 : 1 + width], "little")
    if width == 0 or not 2 <= stop - last <= 2 + PAD_SIZE_MAX:
        return None
    end = head[last - start :] if len(head) == stop - start else source.read(last, stop)
    is_reduced = end[-1:] == REDUCE or (own and end[-1:] == POP)
    is_call = end[:1] == TUPLE1 and is_reduced and is_padding(end[1:-1])
    return (first, last) if is_call else None
