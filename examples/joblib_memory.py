"""joblib.Memory over one file: results of any kind, arrays memory-mapped, no directory tree.

`joblib_compat.register()` is the only new line in a program that uses `joblib.Memory`.  Shown here:
results that come back mapped; workers that fill one cache together; a reference to a result that is
sent to another process; limits; what is left on the disk.

    python examples/joblib_memory.py [DIRECTORY]
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from pmshelve import joblib_compat

joblib_compat.register()


def simulate(seed: int, size: int = 250_000) -> dict[str, Any]:
    """Stand for something slow whose result is large."""
    path = np.random.default_rng(seed).standard_normal(size).cumsum()
    return {"seed": seed, "path": path, "highest": float(path.max())}


def highest(reference: Any) -> float:
    """Look at a result in another process: only the pages that it touches are read."""
    return float(reference.get()["path"].max())


def main(directory: Path) -> None:
    """Show it."""
    memory = joblib.Memory(
        directory / "results.mmdpickle", backend="mmapdict", mmap_mode="r", verbose=0
    )
    cached = memory.cache(simulate)

    # Two processes, twelve calls, six different ones.
    results = joblib.Parallel(n_jobs=2)(joblib.delayed(cached)(seed % 6) for seed in range(12))
    print(f"{len(results)} calls, {len(memory.store_backend.get_items())} results kept")

    result = cached(3)
    path = result["path"]
    print(f"same as computed: {np.array_equal(path, simulate(3)['path'])}")
    print(f"mapped: {not path.flags.owndata}, read-only: {not path.flags.writeable}")

    # A reference is small, whatever it refers to.
    reference = cached.call_and_shelve(3)
    print(f"a reference pickles to less than 1 KiB: {len(pickle.dumps(reference)) < 1024}")
    (there,) = joblib.Parallel(n_jobs=2)([joblib.delayed(highest)(reference)])
    print(f"looked at by another process: {there == result['highest']}")

    files = [path for path in directory.rglob("*") if path.is_file()]
    before = files[0].stat().st_size
    memory.reduce_size(items_limit=2)
    print(f"after reduce_size: {len(memory.store_backend.get_items())} results kept")
    print(f"files: {len(files)}, smaller: {files[0].stat().st_size < before / 2}")
    print(f"used last, so it was kept: {cached.check_call_in_cache(3)}")
    print(f"the array that we hold is still right: {path.max() == result['highest']}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
