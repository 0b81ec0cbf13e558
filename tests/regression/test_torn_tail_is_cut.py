"""semidbm skips a torn last record when it opens, leaves it there, and appends behind it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pmshelve.mmapdict import mmapdict
from tests.support.layout import read_layout
from tests.support.stores import assert_content, assert_sound


@pytest.mark.parametrize(
    "value", ["text", [1, 2], np.arange(300), b"x" * 70_000], ids=["text", "list", "array", "large"]
)
def test_torn_tail_is_cut_before_the_next_append(tmp_path: Path, value: object) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = 1
        start = read_layout(path.read_bytes()).terminator
        store["b"] = value
    whole = path.read_bytes()
    for size in [*range(start + 1, len(whole), max(1, (len(whole) - start) // 60))]:
        path.write_bytes(whole[:size])
        content: dict[str, object] = {"a": 1}
        if size >= len(whole) - 11:
            content["b"] = value
        with mmapdict(path, readonly=True) as store:
            assert_content(store, content)
        assert path.stat().st_size == size
        for number in range(3):
            with mmapdict(path) as store:
                store["c"] = number
                content.pop("c", None)
                content["c"] = number
                assert_sound(store, content)


def test_torn_batch_is_wholly_gone(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update(a=1, b=2)
        start = read_layout(path.read_bytes()).terminator
        with store.batch():
            store["a"] = 10
            store["c"] = np.arange(100)
            del store["b"]
            store["d"] = "d" * 300
    whole = path.read_bytes()
    # What the batch changed before it is as it was when the batch was published.
    for size in range(start + 12, len(whole) - 11, 37):
        path.write_bytes(whole[:size])
        with mmapdict(path, readonly=True) as store:
            assert "c" not in store
            assert "d" not in store
        with mmapdict(path) as store:
            assert "c" not in store
            assert store.get("a") in (1, None)  # its older entry was retired by the batch
            store["new"] = 1
            assert list(store.check()) == []
            content = dict(store)
            assert "c" not in content
        with mmapdict(path) as store:
            assert_sound(store, content)


def test_repair_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = 1
        store["b"] = "x" * 1000
    os.truncate(path, path.stat().st_size - 500)
    mmapdict(path).close()
    repaired = path.read_bytes()
    mmapdict(path).close()
    assert path.read_bytes()[:18] == repaired[:18]
    assert len(path.read_bytes()) == len(repaired)
