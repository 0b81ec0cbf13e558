"""A process that indexes the library's words in a pool until it is done or killed.

Run as: indexer.py POOL.  Goes on after the modules that are there.  Each module is one transaction, on
the disk when its number is printed:

    root    "modules"   PersistentList   names, in the order in which they came
            "words"     PersistentDict   word -> PersistentList of the numbers of the modules that have it
            "count"     int              all numbers in all those lists
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from survey import library, paths

from pmshelve.pmemobj import PersistentDict, PersistentList, PersistentObjectPool

_WORD = re.compile(r"[a-z_]{3,}")


def words_of(path: Path) -> list[str]:
    """Return the different words of a module, in the order of the alphabet."""
    return sorted(set(_WORD.findall(path.read_text(errors="replace").lower())))


def open_index(pool: PersistentObjectPool) -> Any:
    """Return the root of an index, made if there is none."""
    if pool.root is None:
        with pool.transaction():
            pool.root = pool.new(PersistentDict, count=0)
            pool.root["modules"] = pool.new(PersistentList)
            pool.root["words"] = pool.new(PersistentDict)
    return pool.root


def add(pool: PersistentObjectPool, index: Any, name: str, words: list[str]) -> None:
    """Add one module: all of it, or nothing."""
    with pool.transaction():
        lists, number = index["words"], len(index["modules"])
        for word in words:
            found = lists.get(word)
            if found is None:
                lists[word] = pool.new(PersistentList, [number])
            else:
                found.append(number)
        index["modules"].append(name)
        index["count"] += len(words)


def main(file: str) -> None:
    """Index what is missing."""
    root = library()
    with PersistentObjectPool(file, "c") as pool:
        index = open_index(pool)
        for path in paths(root)[len(index["modules"]) :]:
            add(pool, index, str(path.relative_to(root)), words_of(path))
            os.write(1, b"%d\n" % len(index["modules"]))  # acknowledged


if __name__ == "__main__":
    main(sys.argv[1])
