"""`find_fault` accepts the body of any pickle, and nothing that would not load."""

from __future__ import annotations

import collections
import datetime
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.mmapdict.wellformed import find_fault
from tests.support.values import stored_values

VALUES: list[Any] = [
    None,
    True,
    1,
    -(2**100),
    1.5,
    "text",
    b"bytes" * 100,
    bytearray(b"b"),
    (),
    (1, 2, 3, 4),
    [1, [2, (3,)]],
    {"a": {1, 2}, "b": frozenset((3,))},
    collections.OrderedDict(z=1),
    datetime.date(2018, 3, 5),
    ValueError("x"),
    print,
]


def body(value: Any, protocol: int) -> bytes:
    """Return a pickle without PROTO, FRAME and STOP."""
    data = pickle.dumps(value, protocol)
    parts = list(pickletools.genops(data))
    ends = [position for _, _, position in parts[1:]] + [len(data)]
    return b"".join(
        data[position:end]
        for (op, _, position), end in zip(parts, ends, strict=True)
        if op.name not in ("PROTO", "FRAME", "STOP")
    )


def fault(data: bytes) -> str | None:
    return find_fault(lambda start, stop: data[start:stop], 0, len(data))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_any_pickle_is_well_formed(value: Any, protocol: int) -> None:
    assert fault(body(value, protocol)) is None


@given(stored_values(), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_any_pickled_value_is_well_formed(value: Any, protocol: int) -> None:
    assert fault(body(value, protocol)) is None


@given(stored_values(), st.data())
def test_no_beginning_of_a_pickle_is_well_formed_unless_it_loads(
    value: Any, data: st.DataObject
) -> None:
    whole = body(value, 4)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    if fault(cut) is None:
        pickle.loads(cut + b".")


@pytest.mark.parametrize(
    ("opcodes", "problem"),
    [
        (b"", "do not leave one object"),
        (b"NN", "do not leave one object"),
        (b"(N", "do not leave one object"),
        (b"0", "POP finds the stack empty"),
        (b"K", "BININT1 reaches past the value's end"),
        (b"C\x02a", "SHORT_BINBYTES reaches past the value's end"),
        (b"X\xff\xff\xff\xffa", "BINUNICODE reaches past"),
        (b"\x8e" + b"\xff" * 8, "BINBYTES8 reaches past"),
        (b"T\xff\xff\xff\xff", "BINSTRING has a negative size"),
        (b"I12", "INT has no end of line"),
        (b"cos\n", "GLOBAL has no end of line"),
        (b"t", "TUPLE finds no mark"),
        (b"(NRN", "REDUCE finds the stack empty"),
        (b"Ns", "SETITEM finds the stack empty"),
        (b"h\x01", "BINGET gets what was never put"),
        (b"Nq\x02h\x03\x86", "BINGET gets what was never put"),
        (b"Nr\xff\xff\xff\x7f", "LONG_BINPUT puts where nothing belongs"),
        (b"\x80\x04N", "opcode 0x80 has no place"),
        (b"\x95" + bytes(8) + b"N", "opcode 0x95 has no place"),
        (b"N.", "opcode 0x2e has no place"),
        (b"\x97", "opcode 0x97 has no place"),
        (b"P1\n", "opcode 0x50 has no place"),
        (b"\xff", "opcode 0xff has no place"),
    ],
)
def test_what_is_not_well_formed(opcodes: bytes, problem: str) -> None:
    assert problem in str(fault(opcodes))


@pytest.mark.parametrize(
    "opcodes", [b"(0N", b"Nq\x02h\x02\x86", b"N\x94h\x07\x86", b"Np5\nh\x05\x86", b"N20", b"(N1N"]
)
def test_unusual_opcodes_that_load(opcodes: bytes) -> None:
    assert fault(opcodes) is None


def test_marks_nested_without_end_are_refused() -> None:
    assert "nested too deep" in str(fault(b"(" * 200_000))


def test_data_is_stepped_over_unread() -> None:
    data = b"\x8e" + (1 << 20).to_bytes(8, "little")
    read: list[int] = []

    def reading(start: int, stop: int) -> bytes:
        read.append(stop - start)
        return (data + bytes(1 << 20) + b"0N")[start:stop]

    assert find_fault(reading, 0, len(data) + (1 << 20) + 2) is None
    assert sum(read) < 1 << 16


def test_a_file_that_shrinks_meanwhile_is_no_value() -> None:
    assert find_fault(lambda _start, _stop: b"", 0, 100) is not None


@given(st.binary(max_size=300))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    assert fault(data) is None or isinstance(fault(data), str)
