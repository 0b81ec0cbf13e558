"""pynvm cached by value: persist 1, then 1.0, and the float came back as an int."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.mmapdict import mmapdict
from tests.support.stores import stock_load
from tests.support.values import assert_same, stored_values

_TWINS: list[Any] = [1, 1.0, True, 0, 0.0, -0.0, False, "1", b"1", math.nan, (1,), (1.0,), (True,),
                     [1], [1.0], {"a": 1}, {"a": 1.0}, 2**53, float(2**53)]  # fmt: skip


@pytest.mark.parametrize("first", range(len(_TWINS)))
def test_equal_values_keep_their_types(tmp_path: Path, first: int) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        for number in range(len(_TWINS)):
            twin = _TWINS[(first + number) % len(_TWINS)]
            store[str(number)] = twin
            store["same key"] = twin
            assert_same(store[str(number)], twin)
            assert_same(store["same key"], twin)
        loaded = stock_load(path)
        for number in range(len(_TWINS)):
            assert_same(loaded[str(number)], _TWINS[(first + number) % len(_TWINS)])


@given(value=stored_values(), batched=st.booleans())
def test_what_is_decoded_is_what_was_encoded(
    tmp_path_factory: pytest.TempPathFactory, value: Any, batched: bool
) -> None:
    path = tmp_path_factory.mktemp("round") / "store"
    with mmapdict(path) as store:
        if batched:
            with store.batch():
                store["a"] = value
                assert_same(store["a"], value)
        else:
            store["a"] = value
        assert_same(store["a"], value)
        assert_same(stock_load(path)["a"], value)
    with mmapdict(path, readonly=True, mmap_mode=None) as store:
        assert_same(store["a"], value)
