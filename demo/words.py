"""The part of the demo that is about a pool: an index of the library's words, built across kills."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from indexer import words_of
from report import line, seconds, section, size
from survey import library, paths

from pmshelve.pmemobj import PersistentObjectPool

HERE = Path(__file__).parent
ASKED = ("mmap", "struct", "errno")


def index(file: str) -> None:
    """Build the index in another process, kill that in the middle, go on, ask."""
    section(6, "Index the library's words in a pool, kill that halfway, go on, ask")
    root = library()
    found = paths(root)
    wanted = {str(path.relative_to(root)): words_of(path) for path in found}
    logging.getLogger("pmshelve.pmemobj").setLevel(logging.ERROR)  # that it was not closed, we know
    told, duration = build(file, len(found) // 2)
    line(f"indexed {told} modules, each a transaction on the disk", seconds(duration))
    started = time.perf_counter()
    with PersistentObjectPool(file) as pool:
        line(
            "SIGKILL; open it again, collect what it left behind",
            seconds(time.perf_counter() - started),
        )
        kept = inspect(pool, wanted)
        line("modules acknowledged, and found whole", f"{told}, {kept}")
        if kept < told:
            sys.exit("acknowledged modules were lost")
    _, duration = build(file, None)
    line(f"another process went on with the other {len(found) - kept}", seconds(duration))
    ask(file, wanted)


def build(file: str, kill_after: int | None) -> tuple[int, float]:
    """Run the indexer to its end, or kill it after so many modules; return how many it told of."""
    started = time.perf_counter()
    command = [sys.executable, str(HERE / "indexer.py"), file]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = 0
        for text in process.stdout:
            told = int(text)
            if told == kill_after:
                process.kill()
    if process.returncode and kill_after is None:
        sys.exit("the indexer failed")
    return told, time.perf_counter() - started


def inspect(pool: PersistentObjectPool, wanted: dict[str, list[str]]) -> int:
    """Compare an index with one made here, in memory; return the number of its modules."""
    problems = pool.check()
    if problems:
        sys.exit(f"the pool is damaged: {problems[0]}")
    modules = list(pool.root["modules"])
    expected: dict[str, list[int]] = {}
    for number, name in enumerate(modules):
        for word in wanted[name]:
            expected.setdefault(word, []).append(number)
    lists = pool.root["words"]
    if lists.keys() != expected.keys():
        sys.exit("the index has other words than its modules")
    if any(list(lists[word]) != numbers for word, numbers in expected.items()):
        sys.exit("a word's list is not what it should be")
    if pool.root["count"] != sum(map(len, expected.values())):
        sys.exit("the count is not that of the lists")
    return len(modules)


def ask(file: str, wanted: dict[str, list[str]]) -> None:
    """Open the finished index and query it."""
    started = time.perf_counter()
    with PersistentObjectPool(file, "r") as pool:
        opened = time.perf_counter() - started
        started = time.perf_counter()
        modules = having(pool.root, ASKED)
        duration = time.perf_counter() - started
        line("open the finished index", seconds(opened))
        line(f"which modules have all of {', '.join(ASKED)}: {len(modules)}", seconds(duration))
        assert modules == sorted(name for name in wanted if set(ASKED) <= {*wanted[name]})
        line("for example", modules[0] if modules else "none")
        inspect(pool, wanted)
        root = pool.root
        counts = (
            f"{len(root['modules'])} modules, {len(root['words'])} words, {root['count']} places"
        )
        line("the pool", f"{counts}, {size(os.stat(file).st_size)}")
    line(
        "check() of the pool, and every list against one made in memory", "nothing wrong, each time"
    )


def having(root: Any, words: tuple[str, ...]) -> list[str]:
    """Return the names of the modules that have all of some words."""
    lists = root["words"]
    numbers = set.intersection(*(set(lists.get(word, ())) for word in words))
    names = root["modules"]
    return sorted(names[number] for number in numbers)
