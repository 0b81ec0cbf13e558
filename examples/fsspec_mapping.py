"""fsspec in both directions: mappings into and out of a store, and a store read where it lies.

`fsspec.get_mapper` makes a mapping of any place that fsspec knows (S3, HTTP, a zip file; here memory
and a directory).  A store takes it in with `update`, in one commit, and goes out the same way.

A value that is an array lies in the file as it is, at an offset that its view tells.  So a table of
(file, offset, size) is all that fsspec's reference file system needs to serve the values itself, in
parts and over HTTP or S3 too, to programs that have never heard of pmshelve.

    python examples/fsspec_mapping.py [DIRECTORY]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.reference import ReferenceFileSystem

from pmshelve.mmapdict import mmapdict


def make_dataset(target: Any, array: Any) -> None:
    """Write an array in zarr's format 2, not compressed, four chunks, through any mapping."""
    rows, columns = (size // 2 for size in array.shape)
    target[".zarray"] = json.dumps(
        {"zarr_format": 2, "shape": array.shape, "chunks": (rows, columns), "order": "C"}
        | {"dtype": array.dtype.str, "fill_value": 0, "compressor": None, "filters": None}
    ).encode()
    for row in range(2):
        for column in range(2):
            chunk = array[row * rows :, column * columns :][:rows, :columns]
            target[f"{row}.{column}"] = chunk.tobytes()


def references(store: mmapdict) -> dict[str, list[Any]]:
    """Return where in the file each value is: what fsspec's reference file system reads by."""
    return {
        key: [f"file://{store.path}", value.offset, value.nbytes] for key, value in store.items()
    }


def main(directory: Path) -> None:
    """Show both."""
    array = np.arange(400 * 600, dtype="<i4").reshape(400, 600)
    remote = fsspec.get_mapper("memory://dataset")
    make_dataset(remote, array)

    with mmapdict(directory / "dataset.mmdpickle") as store:
        store.update(remote)  # one batch: all of it or nothing
        print(f"taken in: {sorted(store)}, equal: {dict(store) == dict(remote)}")

        copy = fsspec.get_mapper(str(directory / "copy"), create=True)
        copy.update(store)
        print(f"put out as files: {sorted(path.name for path in (directory / 'copy').iterdir())}")
    show_zarr(directory / "dataset.mmdpickle", array)

    # As arrays of bytes, the values can be read by name, offset and size alone.
    path = directory / "chunks.mmdpickle"
    with mmapdict(path) as store:
        for key, value in copy.items():
            store[key] = np.frombuffer(value, np.uint8)
        table = references(store)
    served = ReferenceFileSystem(table, remote_protocol="file", skip_instance_cache=True)
    print(f"served by reference: {sorted(served.find('', withdirs=False))}")
    print(f"equal: {all(served.cat(key) == value for key, value in remote.items())}")
    part = np.frombuffer(served.cat_file("1.0", start=400, end=440), "<i4")
    print(f"a part of a chunk: {part.tolist() == array[200, 100:110].tolist()}")


def show_zarr(path: Path, array: Any) -> None:
    """Open what was taken in as a zarr array."""
    if sys.version_info < (3, 11):
        print("zarr 3 needs CPython 3.11")
        return
    import zarr

    from pmshelve.zarr_compat import MmapDictStore

    with MmapDictStore(path, read_only=True) as store:
        opened = zarr.open_array(store, mode="r", zarr_format=2)
        print(f"opened by zarr: {opened.shape}, equal: {bool((opened[:] == array).all())}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
