"""`MmapDictStore` beyond zarr's own checks: what is copied, what is one commit, other processes."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("zarr", minversion="3.1")

import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu

from pmshelve import pmemobj, zarr_compat
from pmshelve.convert import convert
from pmshelve.dbm_compat import mmapdict as dbm_door
from pmshelve.errors import NotAStoreError, UnsupportedTypeError, WrongDoorError
from pmshelve.mmapdict import mmapdict
from pmshelve.zarr_compat import SMALL_SIZE_MAX, MmapDictStore
from tests.support.processes import ROOT, Worker, run_isolated

LARGE = bytes(range(256)) * 1024  # 256 KiB


def buffer(data: bytes) -> Any:
    return cpu.Buffer.from_bytes(data)


def names(store: MmapDictStore, listing: str, *prefix: str) -> list[str]:
    async def collect() -> list[str]:
        return [name async for name in getattr(store, listing)(*prefix)]

    return sorted(asyncio.run(collect()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def store(path: Path) -> Iterator[MmapDictStore]:
    with MmapDictStore(path) as store:
        yield store


# What is read -------------------------------------------------------------------------------------


def test_a_large_value_is_a_read_only_view_of_the_map(store: MmapDictStore) -> None:
    store.set_sync("a/c/0", buffer(LARGE))
    first, second = store.get_sync("a/c/0"), store.get_sync("a/c/0")
    array = first.as_numpy_array()
    assert array.tobytes() == LARGE
    assert np.shares_memory(array, second.as_numpy_array())  # so neither is a copy
    assert not array.flags.writeable
    with mmapdict(store.path, readonly=True) as file:
        assert file["a/c/0"].offset > 0  # it lies in the file as it is


@pytest.mark.parametrize("data", [b"", b"x", LARGE[:SMALL_SIZE_MAX], LARGE], ids=len)
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (None, lambda data: data),
        (RangeByteRequest(3, 70_000), lambda data: data[3:70_000]),
        (RangeByteRequest(500_000, 500_001), lambda data: b""),
        (OffsetByteRequest(1), lambda data: data[1:]),
        (SuffixByteRequest(5), lambda data: data[-5:]),
        (SuffixByteRequest(10**9), lambda data: data),
    ],
)
def test_parts_of_values(
    store: MmapDictStore, data: bytes, part: Any, expected: Callable[[bytes], bytes]
) -> None:
    store.set_sync("k", buffer(data))
    assert store.get_sync("k", byte_range=part).to_bytes() == expected(data)
    assert asyncio.run(store.getsize("k")) == len(data)


def test_a_part_of_a_large_value_is_no_copy(store: MmapDictStore) -> None:
    store.set_sync("k", buffer(LARGE))
    whole = store.get_sync("k").as_numpy_array()
    part = store.get_sync("k", byte_range=RangeByteRequest(100_000, 100_100)).as_numpy_array()
    assert np.shares_memory(whole, part)
    assert part.tobytes() == LARGE[100_000:100_100]


def test_views_outlive_changes_vacuum_and_close(store: MmapDictStore) -> None:
    store.set_sync("k", buffer(LARGE))
    view = store.get_sync("k").as_numpy_array()
    store.set_sync("k", buffer(b"new"))
    with mmapdict(store.path) as file:
        file.vacuum()
    assert store.get_sync("k").to_bytes() == b"new"
    store.close()
    assert view.tobytes() == LARGE


def test_values_that_come_from_a_mapping_are_read_as_well(store: MmapDictStore) -> None:
    with mmapdict(store.path) as file:
        file.update({"small": b"s", "large": LARGE, "array": np.arange(3, dtype=np.uint8)})
    assert store.get_sync("small").to_bytes() == b"s"
    assert store.get_sync("large").to_bytes() == LARGE
    assert store.get_sync("array").to_bytes() == bytes([0, 1, 2])


@pytest.mark.parametrize("value", [1, "text", np.arange(3.0), np.zeros((2, 2), np.uint8)])
def test_what_is_no_bytes_is_refused(store: MmapDictStore, value: Any) -> None:
    with mmapdict(store.path) as file:
        file["odd"] = value
    with pytest.raises(UnsupportedTypeError, match=r"which zarr did not write \(key 'odd'\)"):
        store.get_sync("odd")


def test_nothing_is_unpickled(store: MmapDictStore) -> None:
    with mmapdict(store.path) as file:
        file["odd"] = Path("an object")
    with pytest.raises(TypeError, match="allow_pickle"):
        store.get_sync("odd")


# What is listed -----------------------------------------------------------------------------------


def test_a_directory_and_a_key_of_one_name_are_listed_once(store: MmapDictStore) -> None:
    for key in ("foo", "foo-bar/x", "foo/x", "foo/y/z", "foo0", "g"):
        store.set_sync(key, buffer(b""))
    assert names(store, "list_dir", "") == ["foo", "foo-bar", "foo0", "g"]
    assert names(store, "list_dir", "foo") == names(store, "list_dir", "foo/") == ["x", "y"]
    assert names(store, "list_prefix", "foo/") == ["foo/x", "foo/y/z"]
    assert asyncio.run(store.getsize_prefix("foo")) == 0


def test_a_listing_follows_other_writers(store: MmapDictStore) -> None:
    store.set_sync("a", buffer(b"1"))
    assert names(store, "list") == ["a"]
    with mmapdict(store.path) as other:
        other["b"] = b"2"
        assert names(store, "list") == ["a", "b"]
        del other["a"]
        assert names(store, "list") == ["b"]


def test_a_listing_is_that_of_the_file_that_is_there(store: MmapDictStore, tmp_path: Path) -> None:
    """Also of another file with as many commits, whether it came by itself or by a conversion."""
    sources = [str(tmp_path / name) for name in "abc"]
    for source in sources:
        with mmapdict(source) as other:
            other[f"{source[-1]}/key"] = b"1"
            other.pop("none", None)
    store.set_sync("own/key", buffer(b"1"))
    assert names(store, "list") == ["own/key"]
    for source in sources:
        convert(source, store.path, overwrite=True)
        assert names(store, "list") == names(store, "list_prefix", source[-1])
        assert names(store, "list_dir", source[-1]) == ["key"]
    with mmapdict(sources[0]) as other:
        other.commit_number = store._opened().commit_number
    store.close()
    os.replace(sources[0], store.path)
    assert names(store, "list") == ["a/key"]
    assert not asyncio.run(store.is_empty("a"))


# What is one commit -------------------------------------------------------------------------------


def test_a_directory_is_deleted_in_one_commit(store: MmapDictStore) -> None:
    for n in range(100):
        store.set_sync(f"a/{n}", buffer(b"x"))
    store.set_sync("ab/0", buffer(b"stays"))
    with mmapdict(store.path, readonly=True) as file:
        seen: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                seen.append(len(file))

        watcher = threading.Thread(target=watch)
        watcher.start()
        asyncio.run(store.delete_dir("a"))
        done.set()
        watcher.join()
        seen.append(len(file))
    assert set(seen) <= {101, 1}
    assert seen[-1] == 1
    assert names(store, "list") == ["ab/0"]


def test_many_keys_are_set_all_or_none(store: MmapDictStore) -> None:
    with pytest.raises(TypeError, match="must be a zarr Buffer, not bytes"):
        asyncio.run(store._set_many([("a", buffer(b"1")), ("b", b"2")]))
    assert names(store, "list") == []
    asyncio.run(store._set_many([("a", buffer(b"1")), ("b", buffer(LARGE))]))
    assert names(store, "list") == ["a", "b"]


def test_only_one_of_many_sets_what_is_not_there(path: Path) -> None:
    stores = [MmapDictStore(path) for _ in range(4)]
    try:

        async def race() -> None:
            calls = [s.set_if_not_exists("k", buffer(b"%d" % n)) for n, s in enumerate(stores)]
            await asyncio.gather(*calls)

        asyncio.run(race())
        won = {store.get_sync("k").to_bytes() for store in stores}
        assert len(won) == 1
        with mmapdict(path, readonly=True) as file:
            assert file.commit_number == 1  # the others wrote nothing
    finally:
        for store in stores:
            store.close()


def test_space_of_overwritten_chunks_is_given_back(store: MmapDictStore) -> None:
    for n in range(200):
        store.set_sync("k", buffer(bytes([n]) * 100_000))
    assert Path(store.path).stat().st_size < 3_000_000
    assert store.get_sync("k").to_bytes() == bytes([199]) * 100_000


# Files and processes ------------------------------------------------------------------------------


def test_a_copy_in_another_process_reads_and_writes(store: MmapDictStore) -> None:
    store.set_sync("k", buffer(LARGE))
    with Worker() as worker:
        worker.run("from zarr.core.buffer import cpu")
        assert worker.eval("copy.get_sync('k').to_bytes()", copy=store) == LARGE
        worker.run("copy.set_sync('new', cpu.Buffer.from_bytes(b'from there'))", copy=store)
        assert store.get_sync("new").to_bytes() == b"from there"


def test_an_unopened_store_can_be_pickled_and_makes_no_file(path: Path) -> None:
    store = MmapDictStore(path, timeout=5.0, sync=True)
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert hash(copy) == hash(store)
    assert copy != store.with_read_only(True)
    assert copy._options == store._options == store.with_read_only(True)._options
    assert not path.exists()


def test_a_missing_file_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MmapDictStore(path, read_only=True).get_sync("k")
    assert not path.exists()


def test_a_closed_store_opens_again(store: MmapDictStore) -> None:
    store.set_sync("k", buffer(b"1"))
    store.close()
    store.close()
    assert store.get_sync("k").to_bytes() == b"1"


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    pmemobj.create(tmp_path / "pool").close()
    with pytest.raises(NotAStoreError):
        MmapDictStore(tmp_path / "pool").get_sync("k")
    with dbm_door.open(tmp_path / "dbm", "c") as database:
        database["k"] = b"v"
    with pytest.raises(WrongDoorError):
        MmapDictStore(tmp_path / "dbm").get_sync("k")


def test_stock_python_reads_the_file(store: MmapDictStore) -> None:
    array = zarr.create_array(
        store, name="a", shape=(300, 300), chunks=(200, 200), dtype="<i4", compressors=None
    )
    array[:] = np.arange(90_000).reshape(300, 300)
    with open(store.path, "rb") as file:
        content = pickle.load(file)
    assert sorted(content) == [
        *("a/c/0/0", "a/c/0/1", "a/c/1/0", "a/c/1/1", "a/zarr.json", "zarr.json")
    ]
    chunk = np.asarray(content["a/c/0/0"]).view("<i4").reshape(200, 200)
    assert (chunk == array[:200, :200]).all()


# Under zarr ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_arrays_come_back(path: Path, zarr_format: Any) -> None:
    data = np.random.default_rng(1).integers(0, 100, (300, 200)).astype("i4")
    with MmapDictStore(path) as store:
        group = zarr.create_group(store, zarr_format=zarr_format)
        array = group.create_array("x/y", shape=data.shape, chunks=(64, 64), dtype=data.dtype)
        array[:] = data
        array[10:20, 5:100] += 1
        array.attrs["unit"] = "m"
    data[10:20, 5:100] += 1
    with MmapDictStore(path, read_only=True) as store:
        array = zarr.open_group(store, mode="r")["x/y"]
        assert (array[:] == data).all()
        assert array.attrs["unit"] == "m"
        with pytest.raises(ValueError, match="read-only"):
            zarr.open_array(store, path="x/y", mode="r+")[:] = 0


def test_a_shard_is_read_in_parts(store: MmapDictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    data = np.arange(256 * 256, dtype="<i8").reshape(256, 256)
    array = zarr.create_array(
        store, name="a", shape=data.shape, shards=data.shape, chunks=(32, 32), dtype=data.dtype
    )
    array[:] = data
    asked: list[Any] = []
    get = MmapDictStore.get_sync

    def spy(self: Any, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
        asked.append(byte_range)
        return get(self, key, prototype=prototype, byte_range=byte_range)

    monkeypatch.setattr(MmapDictStore, "get_sync", spy)
    assert (array[40:50, 40:50] == data[40:50, 40:50]).all()
    assert asked
    assert None not in asked


def test_public_names_are_pinned() -> None:
    assert zarr_compat.__all__ == ["MmapDictStore"]


def test_what_is_missing_without_zarr_is_said() -> None:
    code = """
import sys; sys.path.insert(0, sys.argv[1])
try:
    import pmshelve.zarr_compat
except ImportError as error:
    print(error)
"""
    said = run_isolated(code, ROOT, block=("zarr",))
    assert b"pip install pmshelve[zarr]" in said
