"""A second process that opens the store, gets every array, and says what that cost.

Run as: reader.py STORE.  The last line is a fingerprint of all that it read.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from contents import fingerprint
from report import line, median, resident, seconds, size

from pmshelve.mmapdict import mmapdict


def get_all(store: mmapdict, names: list[str]) -> tuple[dict[str, Any], list[float]]:
    """Return the values of `names`, and how long each get took."""
    values, durations = {}, []
    for name in names:
        started = time.perf_counter()
        values[name] = store[name]
        durations.append(time.perf_counter() - started)
    return values, durations


def main(file: str) -> None:
    """Get every array without touching its data, then touch it."""
    started = time.perf_counter()
    store = mmapdict(file, readonly=True)
    line("open the file", seconds(time.perf_counter() - started))
    started = time.perf_counter()
    _ = store["all/tokens"]
    line(
        "get the largest array (the first one imports array support)",
        seconds(time.perf_counter() - started),
    )

    names = [key for key in store if key.endswith(("/tokens", "/histogram"))]
    before = resident()
    arrays, durations = get_all(store, names)
    held = resident() - before
    assert all(isinstance(array, np.memmap) for array in arrays.values())
    total = sum(array.nbytes for array in arrays.values())
    line(f"get each of {len(names)} arrays, all numpy.memmap", median(durations))
    line("get each of them again", median(get_all(store, names)[1]))
    line(f"memory that these arrays of {size(total)} took", size(held))

    largest = arrays["all/tokens"]
    before = resident()
    started = time.perf_counter()
    checksum = int(largest.sum())
    duration = time.perf_counter() - started
    line(
        f"sum one of {size(largest.nbytes)} ({checksum}): now it is read",
        f"{seconds(duration)}, memory {size(resident() - before)}",
    )
    for name, array in arrays.items():  # every array agrees with the facts beside it
        module, _, kind = name.rpartition("/")
        if module != "all":
            facts = store[f"{module}/facts"]
            assert facts[kind] == len(array) if kind == "tokens" else facts["size"] == array.sum()
    line("arrays, sources and facts agree with each other", "yes, all")
    print(fingerprint(store))
    del arrays, largest, array
    store.close()


if __name__ == "__main__":
    main(sys.argv[1])
