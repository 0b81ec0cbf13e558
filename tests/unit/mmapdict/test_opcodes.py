"""Opcodes: padding does nothing, literals survive, and no bytes run, crash or hang the parser."""

from __future__ import annotations

import contextlib
import math
import pickle
import pickletools
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict import opcodes
from pmshelve.mmapdict.opcodes import Buffer, Call, Global, emit, find_buffers, parse

# Padding ----------------------------------------------------------------------------------------


def test_padding_has_its_size_and_no_effect() -> None:
    for size in (0, *range(2, 1100), 10_000):
        padding = opcodes.pad(size)
        assert len(padding) == size
        assert pickle.loads(b"\x80\x04K\x07" + padding + b".") == 7
        assert opcodes.skip_padding(b"K\x07" + padding + b"R", 2) == size + 2
        assert opcodes.is_padding(padding) == (size <= opcodes.PAD_SIZE_MAX)


def test_padding_is_that_of_the_format() -> None:
    assert opcodes.pad(2) == b"N0"
    assert opcodes.pad(3) == b"K\x000"
    assert opcodes.pad(4) == b"C\x01\x000"
    assert opcodes.pad(258) == b"C\xff" + bytes(255) + b"0"


@pytest.mark.parametrize("size", [1, -1, -258])
def test_padding_of_no_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="cannot pad"):
        opcodes.pad(size)


@pytest.mark.parametrize("data", [b"0", b"N", b"NN", b"K\x010", b"C\x01\x010", b"N0N0", b"C\x050"])
def test_what_is_not_one_piece_of_padding(data: bytes) -> None:
    assert not opcodes.is_padding(data)


@pytest.mark.parametrize(
    "data", [b"", b"N", b"NR", b"K\x01", b"C", b"C\x05\x00", b"R", b"C\x01\x01"]
)
def test_only_padding_is_skipped(data: bytes) -> None:
    assert opcodes.skip_padding(data, 0) == 0


# Literals ---------------------------------------------------------------------------------------

_atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**3000), 2**3000)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=400)
)
_literals = st.recursive(
    _atoms,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


def types(value: Any) -> Any:
    """Return a value's types, all the way down."""
    if isinstance(value, dict):
        return dict, [types(item) for item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [types(item) for item in value]
    return type(value)


@given(value=_literals)
def test_parse_and_stock_pickle_read_what_emit_writes(value: Any) -> None:
    data = emit(value)
    for read in (parse(data), parse(b"\x80\x05" + data + b"."), pickle.loads(data + b".")):
        assert read == value
        assert types(read) == types(value)


def test_integers_take_the_opcodes_of_pickle() -> None:
    for bits in (*range(70), 2030, 2031, 2032, 2039, 2040, 2041, 5000):
        for number in (2**bits, 2**bits - 1, -(2**bits), -(2**bits) - 1):
            data = opcodes.emit_int(number)
            assert pickle.dumps(number, 2) == b"\x80\x02" + data + b"."
            assert parse(data) == number


@pytest.mark.parametrize("number", [math.inf, -math.inf, -0.0, 5e-324, math.pi])
def test_floats_keep_their_bits(number: float) -> None:
    assert parse(emit(number)).hex() == number.hex()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_536, 70_000])
def test_sizes_of_text_and_bytes(size: int) -> None:
    for value in ("t" * size, b"b" * size, "é" * size, "\ud800" * size):
        assert parse(emit(value)) == value
        assert pickle.loads(emit(value) + b".") == value


def test_calls_and_names_stay_what_they_are() -> None:
    call = Call(Global("os", "system"), ("true", Buffer(0), [Buffer(1)], {"k": Global("a", "b")}))
    data = emit(call)
    assert parse(data) == call
    assert type(parse(data)) is Call
    assert [opcode.name for opcode, _, _ in pickletools.genops(data + b".")].count("REDUCE") == 1


def test_a_call_that_was_parsed_can_be_made_by_pickle() -> None:
    call = Call(Global("fractions", "Fraction"), (1, 3))
    assert str(pickle.loads(emit(call) + b".")) == "1/3"


@pytest.mark.parametrize("value", [1j, {1}, bytearray(), object(), [object()], (1j,), {"a": 1j}])
def test_what_is_no_literal_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="not a literal"):
        emit(value)


def test_bytearrays_are_read() -> None:
    assert parse(b"\x96" + (3).to_bytes(8, "little") + b"abc") == bytearray(b"abc")


@pytest.mark.parametrize(
    "data",
    {
        "nothing": b"",
        "only a protocol": b"\x80\x04",
        "two objects": b"NN",
        "a mark": b"(",
        "a mark below": b"(N",
        "bytes behind the end": b"N.N",
        "a second protocol": b"N\x80\x04",
        "an unknown protocol": b"\x80\x09N",
        "a protocol cut off": b"\x80",
        "an opcode that runs": b"cos\nsystem\n",
        "an instance": b"(ios\nsystem\n",
        "a build": b"}}b",
        "a memo": b"N\x94",
        "a persistent id": b"NQ",
        "an unknown opcode": b"\xff",
        "an empty stack": b"\x85",
        "a tuple too small": b"N\x86",
        "no mark": b"Nt",
        "a mark in a tuple": b"N(\x85",
        "short bytes": b"C\x05abcd",
        "short size": b"B\x01\x00",
        "short number": b"J\x00",
        "short float": b"G\x00\x00",
        "text not UTF-8": b"\x8c\x01\xff",
        "name not text": b"K\x01\x8c\x01a\x93",
        "call of no function": b"K\x01)R",
        "call of a text": b"\x8c\x01a)R",
        "call without a tuple": b"\x8c\x01a\x8c\x01b\x93]R",
        "append to a tuple": b")(e",
        "set in a list": b"]NNs",
        "set an odd item": b"}(Nu",
        "set under a number": b"}(K\x01Nu",
        "set under a tuple": b"}()Nu",
        "pop from nothing": b"0N",
    }.items(),
    ids=lambda item: item[0],
)
def test_malformed_opcodes_are_refused(data: tuple[str, bytes]) -> None:
    with pytest.raises(CorruptionError):
        parse(data[1])


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(CorruptionError):
        parse(data)


@given(value=_literals, at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_one_changed_byte_is_parsed_or_refused(value: Any, at: int, byte: int) -> None:
    data = bytearray(emit(Call(Global("numpy", "ndarray"), (value, Buffer(0)))))
    data[at % len(data)] = byte
    with contextlib.suppress(CorruptionError):
        parse(bytes(data))


def test_no_truncation_is_taken_for_the_whole() -> None:
    call = Call(Global("numpy", "ndarray"), ((3, 400), {"names": ["a"]}, Buffer(0), 1.5))
    data = emit((1, call))
    for size in range(len(data)):
        try:
            assert parse(data[:size]) == 1  # the first item, alone
        except CorruptionError:
            continue
        assert size == 2


def test_nesting_however_deep_does_not_overflow_the_stack() -> None:
    for data in (b")" + b"\x85" * 300_000, b"(" * 300_000 + b"t" * 300_000):
        parsed = parse(data)
        for _ in range(299_999):
            (parsed,) = parsed
    with pytest.raises(CorruptionError):
        parse(b"}(" + b")" + b"\x85" * 300_000 + b"Nu")


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x96", b"\x8d", b"B", b"X", b"\x8b"])
def test_a_size_that_is_not_there_takes_no_memory(opcode: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptionError):
            parse(opcode + b"\xff\xff\xff\x7f\0\0\0\0" + b"data")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


# Large data -------------------------------------------------------------------------------------


def buffers_in(data: bytes, start: int = 0) -> tuple[list[tuple[int, int]], int]:
    reads = []

    def read(first: int, last: int) -> bytes:
        assert first <= last <= len(data)
        reads.append(last - first)
        return data[first:last]

    found = find_buffers(read, start, len(data))
    assert sum(reads) <= 600 * (1 + len(found[0]))  # nothing of the data is read
    return found


def bytearray8(data: bytes) -> bytes:
    return b"\x96" + len(data).to_bytes(8, "little") + data


@pytest.mark.parametrize("padding", [0, 2, 3, 63, 255, 258])
def test_buffers_are_found_behind_padding(padding: int) -> None:
    lead = b"x" * 10 + opcodes.pad(padding)
    data = lead + bytearray8(b"\x96" * 5000) + bytearray8(b"") + opcodes.pad(padding)
    data += bytearray8(b"N0") + b"es"
    first = len(lead) + 9
    second, third = first + 5000 + 9, first + 5000 + 9 + padding + 9
    assert buffers_in(data, 10) == ([(first, 5000), (second, 0), (third, 2)], len(data) - 2)


def test_no_buffers_are_no_error() -> None:
    assert buffers_in(b"") == ([], 0)
    assert buffers_in(b"es") == ([], 0)
    assert buffers_in(b"N0e") == ([], 2)


def test_a_header_cut_off_is_not_a_buffer() -> None:
    assert buffers_in(b"N0\x96\x01\0\0") == ([], 2)


@pytest.mark.parametrize("size", [6, 2**32, 2**63, 2**64 - 1])
def test_a_buffer_past_the_end_is_refused(size: int) -> None:
    with pytest.raises(CorruptionError, match="past the end"):
        buffers_in(b"\x96" + size.to_bytes(8, "little") + b"12345")


def test_much_padding_takes_no_recursion() -> None:
    data = opcodes.pad(2) * 5000 + bytearray8(b"abc")
    assert find_buffers(lambda a, b: data[a:b], 0, len(data)) == ([(10_009, 3)], len(data))
