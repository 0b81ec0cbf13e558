"""Plain values: one opcode each, of exactly their type, without the unpickler."""

from __future__ import annotations

import contextlib
import enum
import math
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import CorruptionError, PickleRefusedError
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.codec import encode
from tests.support.codec import OFFSET, FakeSource, load_body, no_op, place, stored


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "value"


@pytest.mark.parametrize(
    ("value", "opcodes"),
    [
        (None, b"N"),
        (True, b"\x88"),
        (False, b"\x89"),
        (0, b"K\x00"),
        (255, b"K\xff"),
        (256, b"M\x00\x01"),
        (-1, b"J\xff\xff\xff\xff"),
        (2**31, b"\x8a\x05\x00\x00\x00\x80\x00"),
        (1.5, b"G\x3f\xf8\0\0\0\0\0\0"),
        ("é", b"\x8c\x02\xc3\xa9"),
        (b"\x00", b"C\x01\x00"),
        ("t" * 256, b"X\x00\x01\x00\x00" + b"t" * 256),
        (b"b" * 65_536, b"B\x00\x00\x01\x00" + b"b" * 65_536),
    ],
)
def test_opcodes_of_the_format(value: Any, opcodes: bytes) -> None:
    assert encode(value) == (opcodes, False)


@pytest.mark.parametrize(
    ("value", "opcode"),
    [(b"b" * 65_537, b"\x8e"), ("t" * 65_537, b"\x8d"), ("é" * 40_000, b"\x8d")],
)
def test_large_ones_go_to_the_file_uncopied(value: Any, opcode: bytes) -> None:
    body, reduces = encode(value)
    (blob,) = body
    assert isinstance(blob, Blob)
    assert not reduces
    assert (blob.opcode, blob.aligned, blob.reserve) == (opcode, False, False)
    assert blob.chunks is not None
    (chunk,) = blob.chunks()
    assert blob.size == len(chunk)
    assert chunk is value if isinstance(value, bytes) else chunk == value.encode()


_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**2100), 2**2100)
    | st.floats()
    | st.text(st.characters(codec=None, exclude_categories=()))
    | st.binary(max_size=300)
    | st.sampled_from([255, 256, 65_536, 65_537, 200_000]).map(lambda size: b"N0" * (size // 2))
    | st.sampled_from([255, 256, 65_536, 65_537, 200_000]).map(lambda size: "K\0" * (size // 2))
)


@given(value=_values, padding=st.sampled_from([0, 2, 3, 4, 27, 200]), own=st.booleans())
def test_round_trip(tmp_path_factory: Any, value: Any, padding: int, own: bool) -> None:
    opcodes = place(encode(value), padding=padding)
    source = FakeSource(tmp_path_factory.mktemp("plain") / "value", opcodes, allow_pickle=False)
    for read in (source.get(own=own), load_body(opcodes)):
        assert type(read) is type(value)
        if isinstance(value, float):
            assert struct.pack("d", read) == struct.pack("d", value)
        else:
            assert read == value


def test_nan_keeps_its_payload(path: Path) -> None:
    (value,) = struct.unpack("<d", b"\1\2\3\4\5\6\xf8\x7f")
    assert math.isnan(value)
    assert struct.pack("<d", stored(path, value).get()) == b"\1\2\3\4\5\6\xf8\x7f"


class Text(str):
    __slots__ = ()


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize("value", [Text("a"), Number.ONE])
def test_subclasses_keep_their_type(path: Path, value: Any) -> None:
    source = stored(path, value)
    assert type(source.get()) is type(value)
    assert source.get() == value
    source.allow_pickle = False
    with pytest.raises(PickleRefusedError):
        source.get()


def test_bytes_are_read_without_their_padding_or_a_decoder(path: Path) -> None:
    from pmshelve.mmapdict.picklers.codec import resolve

    source = stored(path, b"abc")
    assert resolve(source, OFFSET, source.stop) == (OFFSET + 2, OFFSET + 5, None)
    assert source.reads == [(OFFSET, source.stop)]


def test_of_large_bytes_only_the_ends_are_read(path: Path) -> None:
    from pmshelve.mmapdict.picklers.codec import resolve

    source = stored(path, bytes(10_000_000))
    assert resolve(source, OFFSET, source.stop) == (OFFSET + 9, OFFSET + 9 + 10_000_000, None)
    assert sum(stop - start for start, stop in source.reads) < 2000


@pytest.mark.parametrize(
    "opcodes",
    {
        "nothing": b"",
        "bytes past the end": b"C\x05abc",
        "short size": b"B\x05",
        "text past the end": b"X\xff\xff\xff\xffabc",
        "huge": b"\x8e" + (2**63).to_bytes(8, "little") + b"abc",
        "short number": b"J\0\0",
        "short float": b"G\0",
        "no padding": b"K\x01" + b"01",
        "text not UTF-8": b"\x8c\x01\xff" + no_op(4),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_cut_or_changed_is_corrupt(path: Path, opcodes: tuple[str, bytes]) -> None:
    with pytest.raises((CorruptionError, PickleRefusedError)):
        FakeSource(path, opcodes[1], allow_pickle=False).get()
    with pytest.raises(CorruptionError):
        FakeSource(path, opcodes[1]).get()


@given(value=_values, at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_changed_byte_reads_as_something_or_is_refused(
    tmp_path_factory: Any, value: Any, at: int, byte: int
) -> None:
    opcodes = bytearray(place(encode(value), padding=5))
    opcodes[at % len(opcodes)] = byte
    path = tmp_path_factory.mktemp("plain") / "value"
    with contextlib.suppress(CorruptionError, PickleRefusedError):
        FakeSource(path, bytes(opcodes), allow_pickle=False).get()
