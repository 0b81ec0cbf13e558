"""One of several processes that fill a store at the same time, each with its share of the library.

Run as: collect.py STORE SHARE SHARES SECONDS.  Prints a JSON summary.
"""

from __future__ import annotations

import json
import sys
import time

from survey import library, paths, survey

from pmshelve.mmapdict import mmapdict


def main(file: str, share: int, shares: int, limit: float) -> None:
    """Survey every `shares`-th module, stop after `limit` seconds."""
    root = library()
    found = paths(root)[share::shares]
    begun, putting, kept, rows = time.monotonic(), 0.0, 0, 0
    with mmapdict(file) as store:
        for path in found:
            module = survey(path, root)
            if module is not None:
                started = time.perf_counter()
                store.update(module.items())  # one commit for the four keys
                putting += time.perf_counter() - started
                kept, rows = kept + 1, rows + len(module.tokens)
            if time.monotonic() - begun > limit:
                break
    print(json.dumps({"found": len(found), "kept": kept, "rows": rows, "putting": putting}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
