"""None, bool, int, float, str and bytes: one opcode each, and no pickle machinery.

    value               opcode
    None, True, False   NONE, NEWTRUE, NEWFALSE
    int                 BININT1, BININT2, BININT, LONG1, LONG4: the shortest that holds it
    float               BINFLOAT
    str                 SHORT_BINUNICODE, BINUNICODE up to 64 KiB, else BINUNICODE8
    bytes               SHORT_BINBYTES, BINBYTES up to 64 KiB, else BINBYTES8

`ENCODERS` has the types, which are exact, and `resolve_plain` the opcodes.  A str of more than
64 KiB is the one value that is held twice while it is written: once as its UTF-8.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict.opcodes import (
    BINBYTES8,
    BINUNICODE8,
    COVERED_SIZE_MAX,
    NEWFALSE,
    NEWTRUE,
    NONE,
    PAD_SIZE_MAX,
    SHORT_BYTES,
    emit_bytes,
    emit_int,
    is_padding,
)
from pmshelve.mmapdict.picklers.base import Blob, Decoder, Encoded, Resolved, Source

__all__ = ["ENCODERS", "encode_bytes", "encode_raw", "resolve_plain"]

# Encode -----------------------------------------------------------------------------------------

_SHORT_TEXT: Final = tuple(b"\x8c" + bytes((size,)) for size in range(256))
_BYTES_HEAD: Final = struct.Struct("<cI")
_FLOAT: Final = struct.Struct(">cd")
_INT_SMALL: Final = tuple(b"K" + bytes((value,)) for value in range(256))
_NONE: Final = (NONE, False)
_TRUE: Final = (NEWTRUE, False)
_FALSE: Final = (NEWFALSE, False)


def encode_bytes(value: bytes) -> Encoded:
    """Encode bytes; up to 255 of them without any further call."""
    size = len(value)
    if size < 256:
        return SHORT_BYTES[size] + value, False
    if size <= COVERED_SIZE_MAX:
        return _BYTES_HEAD.pack(b"B", size) + value, False
    return [Blob(size, lambda: (value,), BINBYTES8, aligned=False)], False


def encode_str(value: str) -> Encoded:
    """Encode text as UTF-8 with surrogatepass, as `pickle` does."""
    data = value.encode("utf-8", "surrogatepass")
    size = len(data)
    if size < 256:
        return _SHORT_TEXT[size] + data, False
    if size <= COVERED_SIZE_MAX:
        return _BYTES_HEAD.pack(b"X", size) + data, False
    return [Blob(size, lambda: (data,), BINUNICODE8, aligned=False)], False


def encode_int(value: int) -> Encoded:
    """Encode an integer of any size."""
    return (_INT_SMALL[value] if 0 <= value < 256 else emit_int(value)), False


ENCODERS: Final[dict[type, Callable[[Any], Encoded]]] = {
    bytes: encode_bytes,
    str: encode_str,
    int: encode_int,
    float: lambda value: (_FLOAT.pack(b"G", value), False),
    bool: lambda value: _TRUE if value else _FALSE,
    type(None): lambda _: _NONE,
}


def encode_raw(parts: list[bytes]) -> list[bytes | Blob]:
    """Return the opcode that pushes the bytes of all `parts` together, which are not joined."""
    size = sum(map(len, parts))
    if size <= COVERED_SIZE_MAX:
        return [emit_bytes(b"".join(parts))]
    return [Blob(size, lambda: parts, BINBYTES8, aligned=False)]


# Decode -----------------------------------------------------------------------------------------


def decode_none(*_: object) -> None:
    """Return None."""


def decode_true(*_: object) -> bool:
    """Return True."""
    return True


def decode_false(*_: object) -> bool:
    """Return False."""
    return False


def decode_unsigned(source: Source, start: int, stop: int) -> int:
    """Return the integer of BININT1 and BININT2."""
    return int.from_bytes(source.read(start, stop), "little")


def decode_signed(source: Source, start: int, stop: int) -> int:
    """Return the integer of BININT, LONG1 and LONG4."""
    return int.from_bytes(source.read(start, stop), "little", signed=True)


def decode_float(source: Source, start: int, stop: int) -> float:
    """Return the number of BINFLOAT."""
    (number,) = _F8.unpack(source.read(start, stop))
    return float(number)


def decode_str(source: Source, start: int, stop: int) -> str:
    """Return the text of all three opcodes for text."""
    try:
        return source.read(start, stop).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise CorruptionError("text is not UTF-8", source.path, offset=start) from error


_F8: Final = struct.Struct(">d")
_FIXED: Final[dict[int, tuple[int, Decoder]]] = {  # opcode -> size of its argument, decoder
    0x4E: (0, decode_none),
    0x88: (0, decode_true),
    0x89: (0, decode_false),
    0x4B: (1, decode_unsigned),
    0x4D: (2, decode_unsigned),
    0x4A: (4, decode_signed),
    0x47: (8, decode_float),
}
_SIZED: Final[
    dict[int, tuple[int, Decoder | None]]
] = {  # opcode -> size of its size field, decoder
    0x43: (1, None),
    0x42: (4, None),
    0x8E: (8, None),
    0x8C: (1, decode_str),
    0x58: (4, decode_str),
    0x8D: (8, decode_str),
    0x8A: (1, decode_signed),
    0x8B: (4, decode_signed),
}


def resolve_plain(source: Source, start: int, stop: int, head: bytes) -> Resolved | None:
    """Resolve a value that is one opcode, followed by nothing but padding.

    Parameters
    ----------
    head
        The first bytes of the value, at least ten if it has as many.

    Returns
    -------
    None where the value is anything else.

    Raises
    ------
    CorruptionError
        The opcode's data reaches past `stop`.
    """
    opcode = head[0]
    decoder: Decoder | None
    first = start
    if opcode in _SIZED:
        width, decoder = _SIZED[opcode]
        start += 1 + width
        end = start + int.from_bytes(head[1 : 1 + width], "little")
    elif opcode in _FIXED:
        width, decoder = _FIXED[opcode]
        start += 1
        end = start + width
    else:
        return None
    if end > stop:
        raise CorruptionError("a value reaches past its end", source.path, offset=start)
    if stop - end > PAD_SIZE_MAX:
        return None
    whole = len(head) == stop - first
    rest = head[end - first :] if whole else source.read(end, stop)
    return (start, end, decoder) if is_padding(rest) else None
