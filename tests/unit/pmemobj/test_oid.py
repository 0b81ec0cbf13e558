"""Immediates: values that are an oid, bit for bit as the format document says."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import CorruptionError
from pmshelve.pmemobj.oid import DECODERS, SHORT_MAX, encode_immediate

# docs/format-pmemobj.md, "Oids and immediates"
VECTORS: list[tuple[Any, int, int]] = [
    (None, 1, 0),
    (False, 2, 0),
    (True, 2, 1),
    (0, 3, 0),
    (-1, 3, 0xFFFFFFFFFFFFFFFF),
    (1.5, 4, 0x3FF8000000000000),
    (-0.0, 4, 0x8000000000000000),
    ("", 5, 0),
    ("a", 0x610105, 0),
    ("h\u00e9llo", 0x6F6C6CA9C3680605, 0),
    ("exactly14bytes", 0x6C74636178650E05, 0x7365747962343179),
    ("\ud800", 0x80A0ED0305, 0),
    (b"\0\xff", 0xFF000206, 0),
]


def decode(oid: tuple[int, int]) -> Any:
    return DECODERS[oid[0] & 0xFF](*oid)


@pytest.mark.parametrize(("value", "kind", "payload"), VECTORS)
def test_values_have_the_documented_oids(value: Any, kind: int, payload: int) -> None:
    assert encode_immediate(value) == (kind, payload)
    assert repr(decode((kind, payload))) == repr(value)


@given(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None), max_size=SHORT_MAX // 4)
    | st.binary(max_size=SHORT_MAX)
)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    oid = encode_immediate(value)
    assert oid is not None
    back = decode(oid)
    assert type(back) is type(value)
    assert repr(back) == repr(value)


@given(st.integers(0, (1 << 64) - 1))
def test_every_pattern_of_bits_is_a_float(bits: int) -> None:
    value = struct.unpack("<d", bits.to_bytes(8, "little"))[0]
    assert encode_immediate(value) == (4, bits)
    back = decode((4, bits))
    assert struct.pack("<d", back) == bits.to_bytes(8, "little")


@pytest.mark.parametrize(
    "value",
    [
        *(1 << 63, -(1 << 63) - 1, "x" * 15, "\u00e9" * 8, b"x" * 15, 1j, (), [], object()),
        *(type("Text", (str,), {})("a"), type("Count", (int,), {})(1)),
    ],
)
def test_what_is_longer_or_not_exactly_of_the_type_is_none(value: Any) -> None:
    assert encode_immediate(value) is None


def test_equal_values_of_different_types_stay_apart() -> None:
    values = [1, 1.0, True, 0, 0.0, -0.0, False, "", b""]
    oids = [encode_immediate(value) for value in values]
    assert len(set(oids)) == len(values)
    assert math.copysign(1, decode((4, 1 << 63))) == -1


@pytest.mark.parametrize(
    "oid",
    [
        *((0, 0), (1, 1), (0x101, 0), (2, 2), (0x102, 0), (0x103, 0), (0x104, 0), (7, 0), (254, 0)),
        (0x0F05, 0),  # longer than an oid
        (0x61620105, 0),  # bytes behind the end
        (0x610105, 1),
        (0xFF0105, 0),  # no UTF-8
        (0x0F06, 0),
        (0x61620106, 0),
        (255, 4096),  # an object: the manager's
    ],
)
def test_what_names_no_value_is_damage(oid: tuple[int, int]) -> None:
    with pytest.raises(CorruptionError, match="names no value"):
        decode(oid)
