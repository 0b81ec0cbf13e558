"""Pickles that are stored and handed out as they are."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.picklers.premade import Premade

VALUES: list[Any] = [
    [1, "x"],
    {"a": "y" * 300},
    ["z" * 100_000, b"b" * 100_000],
    {"array": np.arange(4000.0), "again": [np.ones(3), bytearray(3000)]},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("mmap_mode", ["r+", "r", "c", None])
def test_a_pickle_goes_from_store_to_store_unopened(
    tmp_path: Path, value: Any, mmap_mode: str | None
) -> None:
    with mmapdict(tmp_path / "one") as store:
        store["k"] = value
    with (
        mmapdict(tmp_path / "one", mmap_mode=mmap_mode, allow_pickle=False) as one,
        mmapdict(tmp_path / "two") as two,
    ):
        one._views.keep_pickles = True
        premade = one["k"]
        assert type(premade) is Premade
        assert premade.nbytes == len(premade.raw) + sum(map(len, premade.buffers))
        assert "Premade" in repr(premade)
        two["k"] = premade
        two["long " * 100] = premade
        assert str(two["k"]) == str(value)
        assert two.check() == []
        del premade
    with open(tmp_path / "two", "rb") as file:
        assert str(pickle.load(file)) == str({"k": value, "long " * 100: value})


def test_a_premade_of_any_buffer_and_protocol(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "store") as store:
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            for value in ([1, 2], ["x" * 70_000]):
                raw = pickle.dumps(value, protocol)
                for data in (raw, bytearray(raw), memoryview(raw)):
                    store["k"] = Premade(data)
                    assert store["k"] == value
        assert store.check() == []


def test_it_is_a_value_of_its_own_only(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "store") as store:
        with pytest.raises(TypeError, match="cannot be stored"):
            store["k"] = [Premade(b"N.")]
        assert "k" not in store
