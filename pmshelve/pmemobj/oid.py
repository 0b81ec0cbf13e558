"""Oids: what names a stored value.  (docs/format-pmemobj.md, "Oids and immediates")

An oid is a pair of 64-bit words, *kind* and *payload*; the low byte of the kind is its tag.  Small
values are the oid itself, and need no memory, no count and no cleaning up:

    tag   value                      rest of the kind                              payload
      0   none at all (OID_NULL)     0                                             0
      1   None                       0                                             0
      2   bool                       0                                             0 or 1
      3   int of 64 bits, signed     0                                             two's complement
      4   float                      0                                             IEEE 754 bits
      5   str of 0..14 bytes UTF-8   length << 8 | the first 6 bytes << 16         the 8 other bytes
      6   bytes, 0..14 of them       as str                                        as str
    255   an object in the pool      the pool's own 56 bits                        its offset

Bytes stand in little-endian order, missing ones are zero; lone surrogates have three bytes each
("surrogatepass").  Every value has exactly one oid (V1), so equal pairs are identical values, and
values of different types never share one: 1, 1.0 and True stay what they were, NaN keeps its bits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pmshelve.errors import CorruptionError

__all__ = ["DECODERS", "SHORT_MAX", "TAG_BYTES", "TAG_STR", "encode_immediate"]

SHORT_MAX = 14
"""Bytes of the longest immediate str or bytes."""

TAG_NONE = 1
TAG_BOOL = 2
TAG_INT = 3
TAG_FLOAT = 4
TAG_STR = 5
TAG_BYTES = 6

_INT_MIN = -(1 << 63)
_INT_MAX = (1 << 63) - 1
_WORD = (1 << 64) - 1
_HEAD = (1 << 48) - 1  # of the six bytes that stand in the kind

_pack_float = struct.Struct("<d").pack
_unpack_float = struct.Struct("<d").unpack
_from_bytes = int.from_bytes


def encode_immediate(value: Any) -> tuple[int, int] | None:  # noqa: C901
    """Return the oid of a value that is one, or None.

    Types are exact: what derives from int or str is not an int or str.
    """
    # Written out, in order of frequency: every value that enters a collection comes through here.
    cls = type(value)
    if cls is str:
        if len(value) > SHORT_MAX:
            return None
        try:
            raw = value.encode()  # half the time of naming an error handler
        except UnicodeEncodeError:
            raw = value.encode("utf-8", "surrogatepass")
        size = len(raw)
        if size > SHORT_MAX:
            return None
        word = _from_bytes(raw, "little")
        return TAG_STR | size << 8 | (word & _HEAD) << 16, word >> 48
    if cls is int:
        if _INT_MIN <= value <= _INT_MAX:
            return TAG_INT, value & _WORD
        return None
    if value is None:
        return TAG_NONE, 0
    if cls is float:
        return TAG_FLOAT, _from_bytes(_pack_float(value), "little")
    if cls is bool:
        return TAG_BOOL, 1 if value else 0
    if cls is bytes:
        size = len(value)
        if size > SHORT_MAX:
            return None
        word = _from_bytes(value, "little")
        return TAG_BYTES | size << 8 | (word & _HEAD) << 16, word >> 48
    return None


def _decode_none(kind: int, payload: int) -> None:
    if kind != TAG_NONE or payload:
        raise _damaged(kind, payload)


def _decode_bool(kind: int, payload: int) -> bool:
    if kind != TAG_BOOL or payload > 1:
        raise _damaged(kind, payload)
    return payload == 1


def _decode_int(kind: int, payload: int) -> int:
    if kind != TAG_INT:
        raise _damaged(kind, payload)
    return payload if payload <= _INT_MAX else payload - (1 << 64)


def _decode_float(kind: int, payload: int) -> float:
    if kind != TAG_FLOAT:
        raise _damaged(kind, payload)
    value: float = _unpack_float(payload.to_bytes(8, "little"))[0]
    return value


def _decode_str(kind: int, payload: int) -> str:
    size = kind >> 8 & 0xFF
    try:
        text = (
            (kind >> 16 | payload << 48).to_bytes(size, "little").decode("utf-8", "surrogatepass")
        )
    except (OverflowError, UnicodeDecodeError):
        raise _damaged(kind, payload) from None
    if size > SHORT_MAX:
        raise _damaged(kind, payload)
    return text


def _decode_bytes(kind: int, payload: int) -> bytes:
    size = kind >> 8 & 0xFF
    try:
        raw = (kind >> 16 | payload << 48).to_bytes(size, "little")
    except OverflowError:
        raise _damaged(kind, payload) from None
    if size > SHORT_MAX:
        raise _damaged(kind, payload)
    return raw


def _refuse(kind: int, payload: int) -> Any:
    raise _damaged(kind, payload)


def _damaged(kind: int, payload: int) -> CorruptionError:
    return CorruptionError(f"oid ({kind:#x}, {payload:#x}) names no value", invariant="V1")


_DECODERS: dict[int, Callable[[int, int], Any]] = {
    TAG_NONE: _decode_none,
    TAG_BOOL: _decode_bool,
    TAG_INT: _decode_int,
    TAG_FLOAT: _decode_float,
    TAG_STR: _decode_str,
    TAG_BYTES: _decode_bytes,
}

DECODERS: tuple[Callable[[int, int], Any], ...] = tuple(
    _DECODERS.get(tag, _refuse) for tag in range(256)
)
"""For each tag: (kind, payload) -> value.  Those of no immediate raise `CorruptionError`."""
