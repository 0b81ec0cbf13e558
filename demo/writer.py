"""A process that writes until it is killed, and says after each commit that it is done.

Run as: writer.py STORE FIRST.  Commits n = FIRST, FIRST + 1, ... and prints each n.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import numpy as np

from pmshelve.mmapdict import mmapdict


def values(number: int) -> dict[str, Any]:
    """Return what commit `number` stores: anybody can compute what must be there."""
    rows = 1 + number * 7919 % 60_000
    return {
        "latest": number,
        f"commit/{number}": {"number": number, "text": "x" * (number % 1000)},
        f"array/{number % 20}": np.full((rows, 4), number, np.int32),
    }


def main(file: str, first: int) -> None:
    """Commit for ever."""
    store = mmapdict(file)
    for number in itertools.count(first):
        store.update(values(number))  # three keys, one commit: all of it or none
        os.write(1, b"%d\n" % number)  # acknowledged


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
