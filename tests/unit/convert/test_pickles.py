"""Pickles that are looked at and moved without being run."""

from __future__ import annotations

import math
import pickle
import pickletools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.convert.compare import is_same_bytes, is_same_form
from pmshelve.convert.pickles import buffer_of, in_one_piece, is_whole, pickled, plain, premake
from pmshelve.convert.source import Unreadable
from pmshelve.mmapdict.picklers.premade import Premade

SCALARS: list[Any] = [None, True, False, 0, -1, 2**31, -(2**63), 2**200, 1.5, "", "ü\0", b"", b"x"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [*SCALARS, [1], {"a": (2,)}, {3}, 1j, "x" * 70_000])
def test_whole_pickles_are_known_and_torn_ones_too(value: Any, protocol: int) -> None:
    raw = pickle.dumps(value, protocol)
    for data in (raw, pickletools.optimize(raw)):
        assert is_whole(data)
        assert not is_whole(data[:-1])
        assert not is_whole(data[:-1] + b"..") or protocol > 1
        assert type(pickled(data)) is Premade
    assert type(pickled(b"")) is Unreadable


@pytest.mark.parametrize("data", [b"", b".", b"..", b"text.", b"\x80\x09.", b"I am text.", b"N"])
def test_what_is_no_pickle(data: bytes) -> None:
    assert not is_whole(data)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_taken_out(protocol: int) -> None:
    for value in SCALARS:
        raw = pickle.dumps(value, protocol)
        found = plain(Premade(raw))
        if isinstance(value, bytes) and protocol < 3:  # those call a function for bytes
            assert type(found) is Premade
        else:
            assert type(found) is type(value)
            assert found == value
    for value in ([], {}, (), {1}, 1j, range(3), type):
        premade = Premade(pickle.dumps(value, protocol))
        assert plain(premade) is premade


@given(st.binary(max_size=60))
def test_no_bytes_make_it_raise_or_run_anything(data: bytes) -> None:
    found = pickled(data)
    if type(found) is Premade:
        plain(found)


@pytest.mark.parametrize("readonly", [False, True])
def test_buffers_go_back_into_the_pickle(readonly: bool) -> None:
    array = np.arange(3000.0)
    array.flags.writeable = not readonly
    value = {"a": array, "again": array, "b": [bytearray(2000), "x"], "c": np.ones((50, 60))}
    value["same"] = value["b"]
    buffers: list[Any] = []
    raw = pickle.dumps(value, 5, buffer_callback=buffers.append)
    premade = Premade(raw, [buffer.raw() for buffer in buffers])
    assert len(premade.buffers) == 2
    found = pickle.loads(in_one_piece(premade))
    assert found["a"] is found["again"]
    assert found["b"] is found["same"]
    assert found["a"].flags.writeable is not readonly
    assert np.array_equal(found["a"], array)
    assert np.array_equal(found["c"], value["c"])
    with pytest.raises(ValueError, match="more buffers"):
        in_one_piece(Premade(raw, premade.buffers[:1]))
    assert in_one_piece(Premade(b"N.")) == b"N."


def test_a_premade_of_one_buffer_is_its_bytes() -> None:
    raw = b"\x80\x05\x97."
    assert buffer_of(Premade(raw, [b"x"])) == b"x"
    other = Premade(raw, [b"x", b"y"])
    assert buffer_of(other) is other
    assert buffer_of(5) == 5


# Comparing --------------------------------------------------------------------------------------


def test_values_are_the_same_if_they_are_written_the_same() -> None:
    nan = float("nan")
    assert is_same_form(nan, nan)
    assert not is_same_form(1, True)
    assert not is_same_form(1, 1.0)
    assert not is_same_form(0.0, -0.0)
    assert not is_same_form(b"x", bytearray(b"x"))
    assert not is_same_form("a", None)
    assert is_same_form(np.arange(5), np.arange(5))
    assert not is_same_form(np.arange(5), np.arange(5.0))
    assert not is_same_form(np.arange(5), np.arange(1, 6))
    premade = Premade(pickle.dumps([1]))
    assert is_same_form(premade, Premade(bytes(premade.raw)))
    assert not is_same_form(premade, Premade(pickle.dumps([2])))
    assert not is_same_form(premade, Premade(premade.raw, [b"x"]))
    assert is_same_form(premake([math.pi, nan]), Premade(pickle.dumps([math.pi, nan], 5)))
    assert not is_same_form(premade, [1])
    assert not is_same_form(np.arange(5), premake([np.arange(5)]))


def test_buffers_are_compared_by_their_bytes() -> None:
    data = bytes(range(256)) * 10_000
    assert is_same_bytes(data, bytearray(data))
    assert is_same_bytes(memoryview(data), np.frombuffer(data, "<u4"))
    assert not is_same_bytes(data, data[:-1])
    assert not is_same_bytes(data, memoryview(data[:-1] + b"\0"))
    assert is_same_bytes(b"", bytearray())
