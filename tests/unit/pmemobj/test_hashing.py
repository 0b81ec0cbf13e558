"""The stable hash: as documented, the same everywhere, alike for keys that are equal."""

from __future__ import annotations

import datetime
import math
import struct
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.pmemobj.hashing import UnstableHashError, documented_hash, stable_hash

# docs/format-pmemobj.md, "Stable hash"
VECTORS: list[tuple[Any, int]] = [
    (0, 0x0000000000000001),
    (1, 0x9E3779B97F4A7C15),
    (-1, 0xC3910C8D016B07D7),
    (2**61 - 2, 0x63910C8D016B07D7),
    (2**64, 0xF1BBCDCBFA53E0A9),
    (-(2**100), 0x5AC1F58000000001),
    (0.5, 0x5000000000000001),
    (-2.5, 0x73910C8D016B07D7),
    (float("inf"), 0xF09B6E285F656EDB),
    (float("-inf"), 0x0F6491D7A09A9125),
    (1 + 2j, 0x4DC1C12F12B84313),
    ("", 0x0000000000000001),
    ("a", 0x331C82CC53990F7F),
    ("key1", 0xBA96FC1D134AFA91),
    ("\u00e9", 0xE9EBAE25F0B59E17),
    ("\ud800", 0x2D6FED5B46B0EC49),
    ("x" * 100, 0x063029B2A8D4F0BB),
    (b"", 0xE4C413BCA56E5539),
    (b"a", 0xCFF213D7D7CCDC8F),
    (None, 0xFCA86420FCA86421),
    ((), 0x86933AD7E4DD37D9),
    ((1,), 0xF1542BB21CCF72F5),
    ((1, "a"), 0xC6BA3FB5787CEDC9),
    (((),), 0xE9527FD2A50DF6EB),
    (frozenset(), 0x4D0A2BBE35B3010F),
    (frozenset({1}), 0xEB8310E41DDC08C3),
    (frozenset({1, 2, "a"}), 0x250EF53AC5E705E5),
    ((frozenset({(None,)}),), 0x7FC56CAFD1418981),
]


@pytest.mark.parametrize(("value", "expected"), VECTORS, ids=range(len(VECTORS)))
def test_hashes_are_as_documented(value: Any, expected: int) -> None:
    assert stable_hash(value) == expected


@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_the_hash_does_not_depend_on_the_seed(seed: str) -> None:
    code = (
        "from pmshelve.pmemobj.hashing import stable_hash\n"
        "print([stable_hash(v) for v in ('key1', b'a', None, ('x', frozenset(['y', 'z'])), 2.5)])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        capture_output=True,
        check=True,
        text=True,
    )
    values = ("key1", b"a", None, ("x", frozenset(["y", "z"])), 2.5)
    assert found.stdout.strip() == str([stable_hash(value) for value in values])


@pytest.mark.parametrize(
    "equal",
    [
        [1, 1.0, True, 1 + 0j, Fraction(1), Decimal(1), Decimal("1.00")],
        [0, 0.0, -0.0, False, 0j, Fraction(0), Decimal(0), Decimal("-0")],
        [0.5, Fraction(1, 2), Decimal("0.5"), 0.5 + 0j],
        [1 << 100, float(1 << 100), Fraction(1 << 100), Decimal(1 << 100)],
        [math.inf, Decimal("inf"), complex(math.inf, 0)],
        [(1, 2), (1.0, True + 1)],
        [frozenset([1, 2]), frozenset([2.0, 1.0])],
    ],
)
def test_equal_keys_hash_alike(equal: list[Any]) -> None:
    assert len({stable_hash(value) for value in equal}) == 1


@given(
    st.integers()
    | st.floats(allow_nan=False)
    | st.fractions()
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
)
def test_the_documented_formula_is_pythons(value: Any) -> None:
    assert documented_hash(value) == hash(value)


@given(st.recursive(st.integers(0, 3) | st.text(max_size=2), lambda inner: st.tuples(inner, inner)))
def test_a_hash_is_an_odd_word(value: Any) -> None:
    found = stable_hash(value)
    assert 0 < found < 1 << 64
    assert found % 2


def test_all_nans_hash_alike() -> None:
    nans = [
        struct.unpack("<d", bits.to_bytes(8, "little"))[0] for bits in (0x7FF8 << 48, 0xFFF8 << 48)
    ]
    assert {stable_hash(nan) for nan in (*nans, complex(0, math.nan), Decimal("nan"))} == {1}


def test_a_signalling_nan_cannot_be_a_key() -> None:
    with pytest.raises(TypeError, match="signaling"):
        stable_hash(Decimal("snan"))


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2020, 1, 1),
        [],
        (1, []),
        frozenset([datetime.timedelta(1)]),
        type("Text", (str,), {})("a"),
        type("Pair", (tuple,), {})((1, 2)),
    ],
)
def test_other_types_have_no_stable_hash(value: Any) -> None:
    with pytest.raises(UnstableHashError):
        stable_hash(value)


def test_depth_does_not_matter() -> None:
    value: Any = ()
    for _ in range(20_000):
        value = (value,)
    assert stable_hash(value) != stable_hash(value[0])


def test_hashes_of_neighbours_spread_over_the_top_bits() -> None:
    for values in (range(1024), [str(n) for n in range(1024)], [n / 8 for n in range(1024)]):
        slots = {stable_hash(value) >> 54 for value in values}
        assert len(slots) > 500
