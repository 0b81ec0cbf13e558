"""Every example runs, as a process of its own, says what it claims, and leaves sound files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pmshelve.mmapdict import mmapdict
from tests.support.processes import ROOT, run_isolated

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object) -> list[str]:
    """Return the lines that an example prints; warnings in it are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def content(path: Path) -> dict[str, object]:
    """Return what a file holds, after its check."""
    with mmapdict(path, readonly=True, mmap_mode=None) as store:
        assert store.check() == []
        return dict(store)


def test_joblib_memory(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    assert run("joblib_memory.py", tmp_path) == [
        "12 calls, 6 results kept",
        "same as computed: True",
        "mapped: True, read-only: True",
        "a reference pickles to less than 1 KiB: True",
        "looked at by another process: True",
        "after reduce_size: 2 results kept",
        "files: 1, smaller: True",
        "used last, so it was kept: True",
        "the array that we hold is still right: True",
    ]
    outputs = [
        value
        for key, value in content(tmp_path / "results.mmdpickle").items()
        if key.endswith("/output.pkl")
    ]
    assert len(outputs) == 2
    assert all(isinstance(value, dict) and value["path"].size == 250_000 for value in outputs)


def test_cachetools_cache(tmp_path: Path) -> None:
    pytest.importorskip("cachetools", minversion="6")
    pytest.importorskip("zict")
    total = 8 * sum(n * n for n in range(10)) + 8 * sum(n * n for n in range(100_000))
    assert run("cachetools_cache.py", tmp_path) == [
        f"first run: 2 computed, total {total}, mapped: True",
        f"second run: 2 computed, total {total}, mapped: True",
        "kept in the file: [1000, 3000, 4000]",
        "kept for the next run: 3",
        "computed: [1, 2, 3], in the file: ['111', '222', '333']",
    ]
    assert sorted(content(tmp_path / "persistent.mmdpickle")) == ["((10,), [])", "((100000,), [])"]
    assert len(content(tmp_path / "bounded.mmdpickle")) == 3


def test_memoize(tmp_path: Path) -> None:
    assert run("memoize.py", tmp_path) == [
        "one call: True, computed 1",
        "typed: float, computed 2",
        "None is a result: True, computed 3",
        "exceptions are not kept: computed 5",
        "64 calls by 8 threads: {49}, computed 6",
        "no key: an argument of type PosixPath cannot be part of a key",
        "the next run: 49, computed 0",
    ]
    kept = content(tmp_path / "memo.mmdpickle")
    assert list(kept.values()) == [9, 9.0, None, 49]
    assert {key.partition("/")[0] for key in kept} == {"__main__.main.<locals>.power"}


def test_memoized_calls_run_one_at_a_time_also_after_one_failed() -> None:
    code = """
import sys, threading, time
sys.path[:0] = sys.argv[1:]
from memoize import memoize

calls, running = [], threading.Semaphore(1)

@memoize({})
def slow(x):
    assert running.acquire(blocking=False), "two at once"
    calls.append(x)
    time.sleep(0.1)
    running.release()
    if len(calls) == 1:
        raise ZeroDivisionError
    return x

def call():
    try:
        slow(1)
    except ZeroDivisionError:
        pass
    except AssertionError as error:
        print(error)

threads = [threading.Thread(target=call) for _ in range(6)]
for thread in threads:
    thread.start()
    time.sleep(0.035)
for thread in threads:
    thread.join()
print(len(calls))
"""
    assert run_isolated(code, EXAMPLES, ROOT, block=()) == b"2\n"


def test_fsspec_mapping(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    if sys.version_info >= (3, 11):
        pytest.importorskip("zarr", minversion="3.1")
    lines = run("fsspec_mapping.py", tmp_path)
    names = [".zarray", "0.0", "0.1", "1.0", "1.1"]
    if sys.version_info >= (3, 11):
        assert lines.pop(2) == "opened by zarr: (400, 600), equal: True"
    else:
        assert lines.pop(2) == "zarr 3 needs CPython 3.11"
    assert lines == [
        f"taken in: {names}, equal: True",
        f"put out as files: {names}",
        f"served by reference: {names}",
        "equal: True",
        "a part of a chunk: True",
    ]
    files = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert content(tmp_path / "dataset.mmdpickle") == files


def test_zarr_store(tmp_path: Path) -> None:
    pytest.importorskip("zarr", minversion="3.1")
    lines = run("zarr_store.py", tmp_path)
    counts = [int(count) for line in lines for count in re.findall(r"keys: (\d+)", line)]
    # Two groups' and three arrays' metadata; 16 chunks, 4 shards, and 12 chunks that are not 0.
    assert counts == [5 + 16 + 4 + 12, 2 + 12]
    assert [line for line in lines if "keys" not in line] == [
        "equal: True",
        "a part of a shard: [[505010, 505011], [506010, 506011]]",
        "written by several processes: [0, 1, 2, 3]",
        f"opened again: {{'made by': 'an example'}}, {400 * 100 * (1 + 2 + 3)}",
        "files: ['arrays.mmdpickle']",
    ]
    assert len(content(tmp_path / "arrays.mmdpickle")) == counts[1]


def test_zarr_store_compares(tmp_path: Path) -> None:
    pytest.importorskip("zarr", minversion="3.1")
    lines = run("zarr_store.py", "--compare", 4, 1)
    assert lines[0].startswith("int32 array of 1024 x 1024, 4 MiB")
    rows = [line.rsplit(maxsplit=4)[1:] for line in lines[2:]]
    assert [row[0] for row in rows] == ["MmapDictStore", "LocalStore", "ZipStore"] * 4
    assert all(float(time) > 0 for row in rows for time in row[1:])


def test_the_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text()
    named = set(re.findall(r"^\| \[(\w+\.py)\]", index, re.MULTILINE))
    assert named == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_how_it_is_run(path: Path) -> None:
    assert f"    python examples/{path.name}" in path.read_text().split('"""')[1]


def test_the_page_on_caches_runs(tmp_path: Path) -> None:
    for name in ("cachetools", "fsspec", "joblib", "zict"):
        pytest.importorskip(name)
    page = (ROOT / "docs" / "caches.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    if sys.version_info < (3, 11):
        blocks = [block for block in blocks if "import zarr" not in block]
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks))
    subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        timeout=120,
    )
    assert len(content(tmp_path / "squares.mmdpickle")) == 2
