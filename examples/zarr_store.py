"""zarr arrays in one file: `MmapDictStore` is a zarr store over an mmapdict.

Chunks that are not compressed go from the mapped file into the array that is asked for; a shard is
read in parts; several processes write chunks of one array; deleting a group is one commit.

    python examples/zarr_store.py [DIRECTORY]
    python examples/zarr_store.py --compare [MEGABYTES [ROUNDS]]    measure against zarr's own stores
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, ZipStore

from pmshelve.mmapdict import mmapdict
from pmshelve.zarr_compat import MmapDictStore


def fill(store: MmapDictStore, row: int) -> int:
    """Write one row of chunks, in a process of its own: the store comes here by its file's name."""
    with store:
        array = zarr.open_array(store, path="shared", mode="r+")
        array[row * 100 : (row + 1) * 100] = row
    return row


def main(directory: Path) -> None:
    """Show it."""
    path = directory / "arrays.mmdpickle"
    with MmapDictStore(path) as store:
        root = zarr.create_group(store, attributes={"made by": "an example"})
        data = np.arange(1000 * 1000, dtype="i4").reshape(1000, 1000)
        array = root.create_array("a/plain", data=data, chunks=(250, 250), compressors=None)
        print(f"equal: {bool((array[:] == data).all())}")

        sharded = root.create_array("a/sharded", data=data, chunks=(50, 50), shards=(500, 500))
        print(f"a part of a shard: {sharded[505:507, 10:12].tolist()}")

        root.create_array("shared", shape=(400, 400), chunks=(100, 100), dtype="i4")
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            list(pool.map(fill, [store] * 4, range(4)))
        print(f"written by several processes: {root['shared'][:, 0][::100].tolist()}")

        print(f"in the group: {sorted(root)}, keys: {len(keys(path))}")
        del root["a"]
        print(f"after the deletion: {sorted(root)}, keys: {len(keys(path))}")

    with MmapDictStore(path, read_only=True) as store:
        root = zarr.open_group(store, mode="r")
        print(f"opened again: {dict(root.attrs)}, {int(root['shared'][:].sum())}")
    print(f"files: {[path.name for path in directory.iterdir()]}")


def keys(path: Path) -> list[str]:
    """Return the keys of the file, which any mmapdict sees."""
    with mmapdict(path, readonly=True) as file:
        return list(file)


# Measuring ----------------------------------------------------------------------------------------

STORES: dict[str, Callable[[Path, str], Any]] = {
    "MmapDictStore": lambda path, mode: MmapDictStore(path, read_only=mode == "r"),
    "LocalStore": lambda path, mode: LocalStore(path, read_only=mode == "r"),
    "ZipStore": lambda path, mode: ZipStore(path, mode=mode, read_only=mode == "r"),
}


def measure(make: Callable[[Path, str], Any], data: Any, options: dict[str, Any]) -> list[float]:
    """Return the seconds that writing an array, reading it, and reading 100 small parts took."""
    spot = np.random.default_rng(0).integers(0, len(data) - 16, (100, 2))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "store"
        start = time.perf_counter()
        with make(path, "w") as store:
            array = zarr.create_array(store, shape=data.shape, dtype=data.dtype, **options)
            array[:] = data
        written = time.perf_counter()
        with make(path, "r") as store:
            array = zarr.open_array(store, mode="r")
            whole = array[:]
            read = time.perf_counter()
            for row, column in spot:
                array[row : row + 16, column : column + 16]
            end = time.perf_counter()
        assert (whole == data).all()
    return [written - start, read - written, end - read]


def compare(megabytes: int = 64, rounds: int = 5) -> None:
    """Print a table: the best of several rounds, in which the stores take turns."""
    side = int((megabytes * 2**20 / 4) ** 0.5) // 1024 * 1024
    data = np.random.default_rng(0).integers(0, 1000, (side, side), dtype="i4")
    print(f"int32 array of {side} x {side}, {data.nbytes >> 20} MiB; seconds (best of {rounds})")
    print(f"{'chunks':32}{'store':16}{'write':>8}{'read':>8}{'100 parts':>11}")
    cases: dict[str, dict[str, Any]] = {
        "64 x 64 (16 KiB), plain": {"chunks": (64, 64), "compressors": None},
        "512 x 512 (1 MiB), plain": {"chunks": (512, 512), "compressors": None},
        "512 x 512, zstd": {"chunks": (512, 512)},
        "64 x 64 in shards of 4 MiB": {"chunks": (64, 64), "shards": (1024, 1024)},
    }
    for name, options in cases.items():
        times: dict[str, list[list[float]]] = {store: [] for store in STORES}
        for _ in range(rounds):
            for store, make in STORES.items():
                times[store].append(measure(make, data, options))
        for store, taken in times.items():
            write, read, parts = (min(column) for column in zip(*taken, strict=True))
            print(f"{name:32}{store:16}{write:8.3f}{read:8.3f}{parts:11.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compare"]:
        compare(*map(int, sys.argv[2:]))
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
