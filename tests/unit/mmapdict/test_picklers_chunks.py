"""The bytes of several buffers as one value: what it looks like, and who reads it."""

from __future__ import annotations

import importlib.util
import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest

from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.picklers.chunks import CHUNKS_RAW, Chunks
from tests.support.processes import Worker
from tests.support.stores import stock_load

PARTS = (b"head", bytearray(b"x" * 5000), memoryview(b"y" * 70_000))
DATA = b"".join(PARTS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["other"] = "first"
        store["key"] = Chunks(PARTS, len(DATA))
    return path


def test_raw_is_a_pickle_of_nothing_but_the_buffer():
    names = [op.name for op, _, _ in pickletools.genops(CHUNKS_RAW)]
    assert names == ["PROTO", "NEXT_BUFFER", "STOP"]
    assert pickle.loads(CHUNKS_RAW, buffers=[b"data"]) == b"data"
    out: list[Any] = []
    assert (
        pickle.dumps(pickle.PickleBuffer(bytearray()), 5, buffer_callback=out.append) == CHUNKS_RAW
    )


def test_stock_pickle_reads_a_bytearray(path: Path):
    loaded = stock_load(path)
    assert loaded == {"other": "first", "key": DATA}
    assert type(loaded["key"]) is bytearray


@pytest.mark.parametrize("mode", ["r+", "r", "c", None])
@pytest.mark.parametrize("allow_pickle", [True, False])
def test_a_store_gives_a_view_in_every_mode(path: Path, mode: Any, allow_pickle: bool):
    with mmapdict(path, mmap_mode=mode, allow_pickle=allow_pickle) as store:
        view = store["key"]
        assert type(view) is memoryview
        assert (view.format, view.ndim, view.readonly) == ("B", 1, mode == "r")
        assert view == DATA
        if mode != "r":
            view[0] = 0
            assert store["key"][0] == (0 if mode == "r+" else DATA[0])
        del view


def test_data_begins_at_a_multiple_of_64(path: Path):
    assert path.read_bytes().index(DATA) % 64 == 0


@pytest.mark.parametrize("exclusive", [False, True])
def test_in_a_batch(tmp_path: Path, exclusive: bool):
    with mmapdict(tmp_path / "new", exclusive=exclusive) as store:
        with store.batch():
            store["key"] = Chunks(PARTS, len(DATA))
            assert store["key"] == DATA
        assert store["key"] == DATA


def test_it_survives_a_vacuum(path: Path):
    with mmapdict(path) as store:
        del store["other"]
        store.vacuum()
        assert store["key"] == DATA
        assert store.check() == []


def test_it_is_a_value_only_by_itself(path: Path):
    with mmapdict(path) as store:
        with pytest.raises(TypeError, match="value of their own"):
            store["list"] = [Chunks(PARTS, len(DATA))]
        assert "list" not in store


def test_a_part_that_is_shorter_than_was_said_leaves_no_trace(path: Path):
    with mmapdict(path) as store:

        class Failing:
            def __len__(self) -> int:
                return 3

            def __buffer__(self, flags: int) -> memoryview:
                raise ValueError("no buffer")

        with pytest.raises((TypeError, ValueError)):
            store["key"] = Chunks([b"abc", Failing()], 6)
        assert store["key"] == DATA
        assert store.check() == []


_THEIRS = """
import warnings
warnings.simplefilter("ignore")
import numpy
if not hasattr(numpy, "float"):
    numpy.float = float  # the name it was written with, gone since NumPy 1.24
import mmappickle
"""


@pytest.mark.skipif(
    importlib.util.find_spec("mmappickle") is None, reason="mmappickle is not installed"
)
def test_mmappickle_reads_it(path: Path):
    with mmapdict(path, exclusive=True, mmap_mode="c") as store:
        for number in range(300):  # and what is left of a run
            store[f"n{number}"] = b"x" * 200
        for number in range(290):
            del store[f"n{number}"]
    with Worker(_THEIRS) as theirs:
        theirs.run("their = mmappickle.mmapdict(path)", path=str(path))
        assert theirs.eval("bytes(their['key'])") == DATA
        assert theirs.eval("len(list(their.keys()))") == 12
        theirs.run("their['new'] = 'theirs'")
    with mmapdict(path) as store:
        assert store["new"] == "theirs"
        assert store["key"] == DATA
        assert store.check() == []
