"""cachetools over a store: caches that outlive the program, bounded ones, and layers of both.

`cachetools.cached` takes any mapping.  A store wants str keys, so a key function makes them.
`zict.LRU` bounds a store: what it evicts is deleted from the file.  A `cachetools` cache in memory
before the store is a decorator more.

    python examples/cachetools_cache.py [DIRECTORY]
"""

from __future__ import annotations

import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cachetools
import numpy as np
import zict

from pmshelve.mmapdict import mmapdict


def text_key(*args: Any, **kwargs: Any) -> str:
    """Return a str for plain arguments: numbers, text, tuples.  1 and 1.0 are two keys."""
    return repr((args, sorted(kwargs.items())))


def persistent(directory: Path) -> None:
    """Show a cache that the next run finds again."""
    computed: list[int] = []
    for run in ("first", "second"):
        with mmapdict(directory / "persistent.mmdpickle", mmap_mode="r") as store:
            # The store is safe to share; with a condition, a thread waits for one that computes the
            # same call already.
            @cachetools.cached(cache=store, key=text_key, condition=threading.Condition())
            def squares(count: int) -> Any:
                computed.append(count)
                return np.arange(count) ** 2

            with ThreadPoolExecutor(4) as pool:
                results = list(pool.map(squares, [10, 100_000] * 8))
            total = sum(int(result.sum()) for result in results)
            mapped = not squares(100_000).flags.owndata
            print(f"{run} run: {len(computed)} computed, total {total}, mapped: {mapped}")


def bounded(directory: Path) -> None:
    """Show a cache of at most three results: what is evicted leaves the file."""
    path = directory / "bounded.mmdpickle"
    with mmapdict(path, autovacuum=True) as store:
        cache: zict.LRU[str, Any] = zict.LRU(3, store)

        @cachetools.cached(cache=cache, key=text_key)
        def zeros(count: int) -> Any:
            return np.zeros(count)

        for count in (1000, 2000, 3000, 1000, 4000):  # 2000 was not used for longest
            zeros(count)
        print(f"kept in the file: {sorted(len(value) for value in store.values())}")
    with mmapdict(path) as store:
        print(f"kept for the next run: {len(zict.LRU(3, store))}")


def layered(directory: Path) -> None:
    """Show memory before the file: values in memory are handed out as they are."""
    with mmapdict(directory / "layered.mmdpickle") as store:
        asked_file = []

        @cachetools.cached(cache=cachetools.LRUCache(2), key=text_key)
        @cachetools.cached(cache=store, key=text_key)
        def text(number: int) -> str:
            asked_file.append(number)
            return str(number) * 3

        for number in (1, 2, 3, 1, 1, 1):
            text(number)
        print(f"computed: {asked_file}, in the file: {sorted(store.values())}")


def main(directory: Path) -> None:
    """Show all three."""
    persistent(directory)
    bounded(directory)
    layered(directory)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
