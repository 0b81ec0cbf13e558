"""Scalars: exact types kept exactly, standard immutables by pickle, everything else refused clearly."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import ipaddress
import math
import pathlib
import pickletools
import re
import struct
import sys
import uuid
import zoneinfo
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import CorruptionError, UnknownTypeError, UnsupportedTypeError


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Flags(enum.Flag):
    A = 1
    B = 2


class Money(int):
    """An immutable class of the user's."""


class Secret:
    """What cannot be pickled."""

    def __reduce__(self) -> Any:
        raise ValueError("not this one")


VALUES: list[Any] = [
    *("", "x" * 15, "\0" * 20, "\ud800\udfff lone", "\U0010ffff" * 9, b"", bytes(range(256)) * 3),
    *(1 << 63, -(1 << 63) - 1, (1 << 20_000) + 1, -(1 << 20_000), (1 << 64) - 1, -(1 << 71)),
    *(1j, complex(-0.0, math.inf), complex(1e300, -1.5)),
    *(
        datetime.datetime(2020, 1, 2, 3, 4, 5, 6),  # noqa: DTZ001 - naive ones are kept too
        datetime.date(1, 1, 1),
        datetime.time(1, 2),
    ),
    *(datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), datetime.timedelta(-1, 2, 3)),
    *(
        datetime.timezone(datetime.timedelta(hours=1)),
        decimal.Decimal("1.10"),
        fractions.Fraction(1, 3),
    ),
    *(
        uuid.UUID(int=5),
        pathlib.PurePosixPath("/a/b"),
        pathlib.PureWindowsPath("c:/x"),
        range(1, 9, 2),
    ),
    *(pathlib.Path("a/b"), ipaddress.ip_address("::1"), ipaddress.ip_network("10.0.0.0/8")),
    *(Color.RED, Color.BLUE, Level.LOW, Flags.A | Flags.B, re.compile("a+", re.IGNORECASE)),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_value_comes_back_as_it_was(pool: Any, make: Any, value: Any) -> None:
    pool.root["value"] = value
    pool.close()
    back = make().root["value"]
    assert type(back) is type(value)
    assert back == value
    if not isinstance(value, int):  # whose text may be too long for Python
        assert repr(back) == repr(value)


def test_a_time_zone_comes_back(pool: Any, make: Any) -> None:
    try:
        zone = zoneinfo.ZoneInfo("Europe/Paris")
    except zoneinfo.ZoneInfoNotFoundError:
        pytest.skip("no time zones on this system")
    pool.root["zone"] = datetime.datetime(2020, 7, 1, tzinfo=zone)
    pool.close()
    back = make().root["zone"]
    assert back.tzinfo.key == "Europe/Paris"
    assert back.utcoffset() == datetime.timedelta(hours=2)


@given(value=st.integers(63, 3000).flatmap(lambda bits: st.integers(-(1 << bits), 1 << bits)))
def test_ints_of_any_size(pool: Any, value: int) -> None:
    assert pool.mm.resurrect(pool.mm.persist(value)) == value


@given(value=st.text(st.characters(codec=None)))
def test_any_text(pool: Any, value: str) -> None:
    assert pool.mm.resurrect(pool.mm.persist(value)) == value


def test_a_nan_keeps_its_bits(pool: Any, make: Any) -> None:
    bits = 0x7FF8000000001234
    pool.root["nan"] = struct.unpack("<d", struct.pack("<Q", bits))[0]
    pool.close()
    assert struct.unpack("<Q", struct.pack("<d", make().root["nan"]))[0] == bits


def test_equal_values_of_different_types_stay_apart(pool: Any, make: Any) -> None:
    values = [1, 1.0, True, 1 + 0j, decimal.Decimal(1), fractions.Fraction(1), Level.LOW]
    pool.root["values"] = tuple(values)
    pool.close()
    assert [type(value) for value in make().root["values"]] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ([], "PersistentList"),
        ({}, "PersistentDict"),
        (set(), "PersistentSet"),
        (bytearray(), "PersistentArray"),
        (np.zeros(2), "PersistentArray"),
        (object(), "persist_via_pickle"),
        (Money(3), "persist_via_pickle"),
        (len, "persist_via_pickle"),
        (np.int64(3), "persist_via_pickle"),
    ],
)
def test_other_types_are_refused_with_a_hint(pool: Any, value: Any, hint: str) -> None:
    with pytest.raises(TypeError, match="Don't know how to persist") as caught:
        pool.root["value"] = value
    assert hint in str(caught.value)
    assert type(value).__name__ in str(caught.value)
    assert "value" not in pool.root


def test_a_nominated_class_is_stored(pool: Any, make: Any) -> None:
    pool.persist_via_pickle(Money)
    pool.root["money"] = Money(7)
    pool.close()
    back = make().root["money"]
    assert type(back) is Money
    assert back == 7


def test_an_enum_of_a_function_is_refused(pool: Any) -> None:
    class Local(enum.Enum):
        A = 1

    with pytest.raises(UnsupportedTypeError, match="found by its name"):
        pool.root["value"] = Local.A
    assert len(pool.root) == 0


def test_what_cannot_be_pickled_is_refused(pool: Any) -> None:
    pool.persist_via_pickle(Secret)
    with pytest.raises(TypeError, match="not this one"):
        pool.root["value"] = Secret()
    assert len(pool.root) == 0


@pytest.mark.parametrize("value", VALUES[16:], ids=range(16, len(VALUES)))
def test_pickles_name_public_classes_only(pool: Any, value: Any) -> None:
    offset = pool.mm.persist(value)[1]
    content = pool.mm.map[offset + 12 : offset + pool.mm.heap.size_of(offset)]
    strings = [
        argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)
    ]
    modules = [text for text in strings if text in sys.modules]
    assert not [name for name in modules if "._" in name or name.startswith("_")]
    assert "_compile" not in strings
    assert "_unpickle" not in strings


def damage(pool: Any, value: Any, at: int, raw: bytes) -> int:
    """Store a value, and change bytes of its content."""
    offset: int = pool.mm.persist(value)[1]
    with pool.transaction():
        pool.mm.snapshot_range(offset, pool.mm.heap.size_of(offset))
        pool.mm.map[offset + 8 + at : offset + 8 + at + len(raw)] = raw
    pool.mm.values.clear()
    return offset


@pytest.mark.parametrize(
    ("value", "at", "raw"),
    [
        ("a long string of text", 3, b"\xff"),
        (1 << 80, 8, b"\0\0\0"),
        (uuid.UUID(int=1), 9, b"?"),
        (uuid.UUID(int=1), 0, b"????"),
        (datetime.date(2020, 1, 1), 30, b"\x8d\xff\xff\xff\xff\xff\xff\xff"),
    ],
)
def test_damage_is_reported(pool: Any, value: Any, at: int, raw: bytes) -> None:
    offset = damage(pool, value, at, raw)
    with pytest.raises(CorruptionError):
        pool.mm.resurrect((pool.mm.pool_kind, offset))
    with pool.transaction():
        pool.mm.free((pool.mm.pool_kind, offset))


def test_a_class_that_is_gone_is_no_damage(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pool.root["color"] = Color.RED
    pool.mm.values.clear()
    monkeypatch.delattr(sys.modules[Color.__module__], "Color")
    with pytest.raises(UnknownTypeError, match="Color"):
        pool.root["color"]
