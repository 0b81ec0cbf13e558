"""Reads the store with `pickle.load`, in a process that cannot import pmshelve.

Run as: stock.py STORE.  The last line is a fingerprint of all that it read.
"""

from __future__ import annotations

import pickle
import sys
import time

import numpy as np
from contents import fingerprint
from report import line, seconds

sys.modules["pmshelve"] = None  # type: ignore[assignment]  # any import of it fails from here on


def main(file: str) -> None:
    """Load everything into memory, as any Python program could."""
    started = time.perf_counter()
    with open(file, "rb") as stream:
        content = pickle.load(stream)
    line(f"pickle.load of all {len(content)} keys", seconds(time.perf_counter() - started))
    arrays = [value for value in content.values() if isinstance(value, np.ndarray)]
    assert all(array.flags.writeable for array in arrays)
    line("arrays among them, all writable", len(arrays))
    assert not any(name.startswith("pmshelve.") for name in sys.modules)
    print(fingerprint(content))


if __name__ == "__main__":
    main(sys.argv[1])
