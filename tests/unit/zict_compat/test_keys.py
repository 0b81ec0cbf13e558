"""Keys as text: one text exactly where a dict has one key."""

from __future__ import annotations

import collections
import enum
import math
import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from pmshelve.errors import FormatError
from pmshelve.zict_compat.keys import decode_key, encode_key

ATOMS = st.one_of(
    st.text(st.characters(), max_size=8),
    st.sampled_from(
        ["", "\0", "\0a", "\x01", "1", "None", "('a',)", "\ud800", "'", '"', "\\", "\n"]
    ),
    st.binary(max_size=6),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, -(2**63), 2**64, 10**400, -(10**400)]),
    st.floats(allow_nan=False),
    st.sampled_from([0.0, -0.0, 1.0, 2.0**63, 1e300, 5e-324, math.inf, -math.inf]),
    st.booleans(),
    st.none(),
)
KEYS = st.recursive(ATOMS, lambda keys: st.lists(keys, max_size=4).map(tuple), max_leaves=8)


@given(st.lists(KEYS, max_size=12))
@example([1, 1.0, True, "1", b"1", (1,), (1.0,), ((True,),), ("1",)])
@example([0, -0.0, False, None, "None", (), ((),), ""])
def test_a_dict_of_texts_has_the_keys_of_a_dict(keys: list[Any]):
    expected: dict[Any, int] = {}
    texts: dict[str, int] = {}
    for number, key in enumerate(keys):
        expected[key] = number
        texts[encode_key(key)] = number
    assert {decode_key(text): number for text, number in texts.items()} == expected


@given(KEYS)
def test_what_comes_back_equals_what_was_encoded(key: Any):
    text = encode_key(key)
    decoded = decode_key(text)
    assert type(text) is str
    assert (decoded, hash(decoded)) == (key, hash(key))
    assert encode_key(decoded) == text


@given(st.text(st.characters(), max_size=8))
def test_a_str_is_its_own_text_unless_it_begins_with_nul(key: str):
    assert (encode_key(key) == key) is not key.startswith("\0")


@given(st.text(max_size=12).map("\0".__add__))
@example("\0pmshelve/1")
@example("\0(1,)")
@example("\0(1, )")
@example("\x000x1")
@example("\x001.0")
@example("\0'é'")
@example("\0((")
@example("\0")
def test_other_texts_are_refused(text: str):
    try:
        key = decode_key(text)
    except FormatError:
        return
    assert encode_key(key) == text


def test_int_of_any_size():
    big = 7 ** (sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else 4300)
    assert decode_key(encode_key((big, -big))) == (big, -big)


def test_no_text_is_one_of_the_stores_own_keys():
    assert not encode_key("\0pmshelve/1").startswith("\0pmshelve")


class Color(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024


class Loud(str):
    """A str that equals its other case."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.upper() == other.upper()

    def __hash__(self) -> int:
        return hash(self.upper())


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        (Color.RED, "red"),
        (Level.HIGH, 3),
        (Point(1, Level.HIGH), (1, 3)),
        (np.int64(5), 5),
        (np.uint8(5), 5),
        (np.float64(0.5), 0.5),
        (np.float64(2), 2),
        (np.str_("a"), "a"),
        (np.bytes_(b"a"), b"a"),
        ((np.int32(1), "b"), (1, "b")),
    ],
    ids=repr,
)
def test_what_a_dict_takes_for_a_plain_key_is_that_key(key: Any, plain: Any):
    assert {plain: 1}[key] == 1
    assert encode_key(key) == encode_key(plain)
    assert type(decode_key(encode_key(key))) is type(plain)


REFUSED: list[Any] = [
    math.nan,
    ("a", math.nan),
    np.float64("nan"),
    object(),
    1j,
    frozenset(),
    [],
    {},
]
REFUSED += [Loud("a"), ([],), bytearray(b"a"), np.array(1), range(3), slice(1), Ellipsis, int]


@pytest.mark.parametrize(
    "key",
    REFUSED,
    ids=lambda key: type(key).__name__,
)
def test_other_keys_are_type_errors(key: Any):
    with pytest.raises(TypeError):
        encode_key(key)


def test_text_does_not_depend_on_what_this_python_can_print():
    assert encode_key(("é\U0001fae8", "\ud800")) == "\0('\\xe9\\U0001fae8', '\\ud800')"
