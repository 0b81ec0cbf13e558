"""The main job, on real input: this Python installation's own library, kept in one file.

Run as: library.py [--file PATH] [--seconds LIMIT].  It shows, and says what it measured:

1. several processes fill one store at the same time with each module's source, facts and arrays;
2. a second process gets the arrays as memory maps, in microseconds and without reading them;
3. stock `pickle.load` reads the same file where pmshelve cannot be imported;
4. what overwriting, deleting and `vacuum()` do to the space, while a view stays valid;
5. writers killed with SIGKILL halfway lose nothing that they had acknowledged;
6. a pool of small objects: an index of the library's words, built across a kill, and asked.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from report import line, seconds, section, size
from survey import library
from words import index
from writer import values

import pmshelve
from pmshelve.mmapdict import EmptyNDArray, mmapdict

HERE = Path(__file__).parent
KILLS = 10


def main() -> None:
    """Run the six parts."""
    arguments = argparse.ArgumentParser(description="pmshelve on the library of this Python")
    arguments.add_argument("--file", help="keep the store there (default: a temporary file)")
    arguments.add_argument(
        "--seconds", type=float, default=25, help="stop filling after so long (default: 25)"
    )
    options = arguments.parse_args()
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="pmshelve-demo-"))
        file = options.file or os.path.join(directory, "library.mmdpickle")
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"pmshelve {pmshelve.__version__}, CPython {version}, NumPy {np.__version__}: {file}")
        fill(file, options.seconds)
        compare(read_elsewhere(file), read_with_pickle(file))
        change(file)
        kill(os.path.join(directory, "killed.mmdpickle"))
        index(os.path.join(directory, "words.pool"))
    print(f"\nDone in {seconds(time.perf_counter() - started)}.")


def child(script: str, *arguments: object) -> list[str]:
    """Return the command that runs one of the demo's other processes."""
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def fill(file: str, limit: float) -> None:
    """Fill the store from several processes, then add one array of everything."""
    section(1, f"Fill one store with {library()}, from several processes at once")
    shares = max(2, min(4, os.cpu_count() or 2))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file)
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            child("collect.py", file, share, shares, limit), stdout=subprocess.PIPE, text=True
        )
        for share in range(shares)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("a process that fills the store failed")
    summaries = [json.loads(output) for output in outputs]
    duration = time.perf_counter() - started
    kept, found, rows, putting = (
        sum(summary[field] for summary in summaries)
        for field in ("kept", "found", "rows", "putting")
    )
    line(f"modules kept by {shares} processes (parsing included)", f"{kept} in {seconds(duration)}")
    if kept < found:
        line("left out: not valid Python, or the time was up", found - kept)
    with mmapdict(file) as store:
        collect_all(store, rows)
        counts = [
            f"{len(store)} keys",
            f"{store.commit_number} commits",
            size(os.stat(file).st_size),
        ]
        line("the store", ", ".join(counts))
        example = next(key for key in store if key.endswith("/facts") and store[key]["classes"])
        facts = store[example]
    line("one commit (4 values of a module), lock wait included", seconds(putting / max(kept, 1)))
    line(f"for example {example}", f"{facts['lines']} lines, classes {facts['classes']}")


def collect_all(store: mmapdict, rows: int) -> None:
    """Allocate one array for the tokens of all modules, and fill it in place."""
    store["all/tokens"] = EmptyNDArray((rows, 5), np.int32)
    target, position = store["all/tokens"], 0
    for key in list(store):
        if key.endswith("/tokens") and not key.startswith("all/"):
            part = store[key]
            target[position : position + len(part)] = part
            position += len(part)
    target.flush()


def read_elsewhere(file: str) -> str:
    """Read the store in a second process; return its fingerprint of the content."""
    section(2, "Reopen it in a second process: arrays are memory maps")
    return run_child("reader.py", file)


def read_with_pickle(file: str) -> str:
    """Read the file in a process without pmshelve; return its fingerprint of the content."""
    section(3, "Open the same file with nothing but stock pickle.load")
    return run_child("stock.py", file)


def run_child(script: str, file: str) -> str:
    """Run a script, pass on what it says but for the last line, which is returned."""
    output = subprocess.run(child(script, file), stdout=subprocess.PIPE, check=True, text=True)
    *report, last = output.stdout.splitlines()
    print("\n".join(report))
    return last


def compare(mapped: str, loaded: str) -> None:
    """Show that two processes read the same."""
    if mapped != loaded:
        sys.exit("the two processes read different content")
    line("same keys, types and values as process 2 read (SHA-256)", f"yes, {mapped[:16]}...")


def change(file: str) -> None:
    """Overwrite and delete, then vacuum, with a view that outlives it all."""
    section(4, "Overwrite, delete, vacuum")
    with mmapdict(file) as store:
        view, content = store["all/tokens"], int(store["all/tokens"].sum())
        before = len(store)
        names = [key for key in store if key.endswith("/tokens")]
        started = time.perf_counter()
        for key in names[::2]:
            del store[key]
        for key in names[1::2]:
            store[key] = store[key][::2].copy()
        duration = time.perf_counter() - started
        line(
            f"deleted {len(names[::2])} arrays and overwrote {len(names[1::2])} by half of each",
            f"{seconds(duration)}, {before} keys, now {len(store)}",
        )
        space("space", store)
        started = time.perf_counter()
        store.vacuum()
        line("vacuum", seconds(time.perf_counter() - started))
        space("space", store)
        assert int(view.sum()) == content
        line("a view taken before, of a value that is gone, still holds", "yes")
        assert list(store.check()) == []
        line("check() of every invariant of the file", "nothing wrong")
        del view


def space(what: str, store: mmapdict) -> None:
    """Print where the bytes of the file are."""
    stats = store.stats()
    line(
        what, f"live {size(stats.live_size)}, dead {size(stats.dead_size)}, file {size(stats.size)}"
    )


def kill(file: str) -> None:
    """Kill a writer again and again, and look for what it had acknowledged."""
    section(5, f"Kill a writer with SIGKILL halfway, {KILLS} times")
    count = torn = untold = lost = 0
    for _ in range(KILLS):
        acknowledged = write_and_kill(file, count)
        torn += unfinished(file)
        with mmapdict(file) as store:
            count = store.get("latest", -1) + 1
            lost += lost_or_torn(store, max(count, acknowledged))
        untold += count - acknowledged
    with open(file, "rb") as stream:
        assert pickle.load(stream)["latest"] == count - 1
    line("commits acknowledged (3 keys each, one an array)", count - untold)
    line("commits lost, in whole or in part (looked for after each kill)", lost)
    line("commits found whole whose acknowledgement the kill cut off", untold)
    line("kills that left an unfinished entry behind the file's end", f"{torn} of {KILLS}")
    with mmapdict(file) as store:
        before = os.stat(file).st_size
        store.vacuum()
        line("vacuum", f"{size(before)} to {size(os.stat(file).st_size)}")
    if lost:
        sys.exit("acknowledged commits were lost")


def write_and_kill(file: str, first: int) -> int:
    """Start a writer, kill it after some commits; return how many were ever acknowledged."""
    process = subprocess.Popen(child("writer.py", file, first), stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = [process.stdout.readline() for _ in range(random.randrange(1, 40))]
    time.sleep(random.uniform(0, 2e-3))
    process.kill()
    told += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    return int(told[-1]) + 1


def unfinished(file: str) -> bool:
    """Tell whether anything follows the pickle in the file."""
    with open(file, "rb") as stream:
        pickle.load(stream)
        return bool(stream.read(1))


def lost_or_torn(store: mmapdict, count: int) -> int:
    """Return how many of the first `count` commits are not all there; no later one may be."""
    bad = set()
    for number in range(count):
        expected = values(number)
        del expected["latest"]
        if number < count - 20:  # its array was replaced since
            del expected[f"array/{number % 20}"]
        if not all(key in store and np.array_equal(store[key], expected[key]) for key in expected):
            bad.add(number)
    if len(store) > 1 + count + min(count, 20):
        sys.exit("the store holds more than was ever committed")
    return len(bad)


if __name__ == "__main__":
    main()
