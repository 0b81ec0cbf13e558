"""`entry_size`: the bytes of the file that one entry takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.mmapdict import mmapdict

VALUES = [None, b"x" * 10, "t" * 100_000, np.arange(5), np.zeros(100_000), {"a": [1]}, 2**70]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("key", ["k", "long" * 100])
def test_the_sizes_of_all_entries_make_up_the_live_size(
    tmp_path: Path, key: str, value: Any
) -> None:
    with mmapdict(tmp_path / "store") as store:
        store["other"] = 1
        store[key] = "replaced"
        store[key] = value
        for _ in range(2):
            assert store.entry_size(key) + store.entry_size("other") == store.stats().live_size
            store.vacuum()


def test_a_missing_key_is_a_key_error_and_nothing_is_loaded(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "store", allow_pickle=False) as store:
        store["object"] = {1, 2}
        assert store.entry_size("object") > 10
        with pytest.raises(KeyError):
            store.entry_size("missing")
        del store["object"]
        with pytest.raises(KeyError):
            store.entry_size("object")


def test_within_a_batch_it_sees_the_batch(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "store") as store:
        store["a"] = b""
        with store.batch():
            store["a"] = b"x" * 100
            del store["a"]
            with pytest.raises(KeyError):
                store.entry_size("a")
            store["a"] = b"x" * 200
            assert store.entry_size("a") > 200
