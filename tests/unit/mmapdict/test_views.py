"""Views: private maps, their number, and blocks that are given back only when nobody looks."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from pmshelve.mmapdict import mmapdict

np = pytest.importorskip("numpy")


def test_small_buffers_of_a_large_value_keep_their_bytes(tmp_path: Path) -> None:
    with mmapdict(tmp_path / "store", exclusive=True) as store:
        store["a"] = {"small": np.arange(7000) + 1, "text": "x" * 200_000}
        view = store["a"]["small"]
        del store["a"]
        gc.collect()
        store["b"] = 1
        assert (view == np.arange(7000) + 1).all()


def test_small_mask_outlives_its_large_value(tmp_path: Path) -> None:
    data = np.ma.MaskedArray(np.arange(50_000.0), np.arange(50_000) % 2 == 0)
    with mmapdict(tmp_path / "store", exclusive=True) as store:
        store["a"] = data
        mask = store["a"].mask
        del store["a"]
        gc.collect()
        store["b"] = 1
        assert (mask == data.mask).all()


def test_views_beyond_the_descriptors_are_copies(tmp_path: Path) -> None:
    program = """
import resource, sys
import numpy as np
from pmshelve.mmapdict import mmapdict
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
for options in ({"mmap_mode": "c"}, {"exclusive": True}):
    with mmapdict(sys.argv[1], **options) as store:
        store.update({str(i): np.full(20_000, i) for i in range(200)})
        views = [store[str(i)] for i in range(200)]
        assert all((view == i).all() for i, view in enumerate(views))
        del views
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], check=True)
