"""Workloads that need processes of their own.

- open: a million-key file in a fresh process; open it and get one key
- processes: one process that writes and one that reads, at once, on one file
- import: what `import pmshelve` costs, and whether it brings NumPy along
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.child import numbered_key, numbered_value
from benchmarks.engines import Engine, register
from benchmarks.framework import WARM_SIZE, Job, Sample, workload

_ROOT = Path(__file__).parent.parent
_LOADED_COUNT = 1_000
_IMPORT = """
import sys, time
start = time.perf_counter()
import {module}
seconds = time.perf_counter() - start
print(seconds, "numpy" in sys.modules)
"""


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT)}


def _child(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.child", *map(str, arguments)]


_OPEN = ("pmshelve", "pmshelve-dbm", "lmdb", "dbm.gnu", "dbm.sqlite3", "semidbm", "dbm.dumb")


@workload("open", "open a million-key file and get one key", _OPEN, shared_files=True)
def open_million(engine: Engine, job: Job) -> Iterator[Sample]:
    """Start a process that opens the file; the file is built once a run."""
    count = job.count * 10
    if "built" not in job.shared:
        job.shared["built"] = True
        handle = engine.open(job.directory)
        engine.load(handle, ((numbered_key(engine, n), numbered_value(n)) for n in range(count)))
        engine.close(handle)
    job.warm()
    number = count * 2 // 3 + job.shared.setdefault("opened", 0)
    job.shared["opened"] += 1
    command = _child("open", engine.name, job.directory, number)
    output = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    result = json.loads(output.stdout)
    yield Sample("open and get", result["seconds"] * 1e3, "ms")
    for kind in ("total", "private"):
        if f"memory_{kind}" in result:
            yield Sample(f"memory, {kind}", result[f"memory_{kind}"] / 2**20, "MiB")


_PROCESSES = (
    "pmshelve",
    "pmshelve-dbm",
    "lmdb",
    "lmdb-writemap",
    "dbm.sqlite3-nosync",
    "mmappickle",
)


@workload("processes", "a writer and a reader process at once", _PROCESSES)
def processes(engine: Engine, job: Job) -> Iterator[Sample]:
    """Run both for a while on one file that holds some keys already."""
    count = min(_LOADED_COUNT, job.count)  # it is 500 for mmappickle
    handle = engine.open(job.directory)
    engine.load(handle, [(numbered_key(engine, n), numbered_value(n)) for n in range(count)])
    engine.close(handle)
    (job.directory / "counter").write_bytes(count.to_bytes(8, "little").ljust(4096, b"\0"))
    job.warm(2 * WARM_SIZE)
    seconds = 0.3 if job.quick else 2.0
    pair = [_start(role, engine, job.directory, seconds) for role in ("write", "read")]
    try:
        for process in pair:
            _expect_ready(process)
        for process in pair:
            _send(process, "go\n")
        writer, reader = (_result(process) for process in pair)
    finally:
        for process in pair:
            process.kill()
            process.wait()
    yield Sample("puts", writer["rate"], "1/s", writer["cpu_rate"])
    yield Sample("gets", reader["rate"], "1/s", reader["cpu_rate"])
    yield Sample("wrong values", reader["wrong"], "count")


def _result(process: subprocess.Popen[str]) -> dict[str, float]:
    output, errors = process.communicate()
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        raise RuntimeError(f"a process of the benchmark failed: {last[0]}")
    result: dict[str, float] = json.loads(output)
    return result


def _start(role: str, engine: Engine, directory: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        _child(role, engine.name, directory, seconds),
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _expect_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    if line != "ready\n":
        raise RuntimeError(f"a process of the benchmark said {line!r}")


def _send(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


class _Module(Engine):
    """Not a store: a module to import."""

    module: ClassVar[str]

    def open(self, directory: Path) -> Any:
        return directory


@register
class PackageModule(_Module):
    """What `import pmshelve` loads."""

    name = "import pmshelve"
    ours = True
    modules = ("pmshelve",)
    module = "pmshelve"


@register
class StoreModule(_Module):
    """What it takes to have the class."""

    name = "import pmshelve.mmapdict"
    ours = True
    modules = ("pmshelve.mmapdict",)
    module = "pmshelve.mmapdict"


@register
class ShelveModule(_Module):
    """The standard library's shelve, for comparison."""

    name = "import shelve"
    module = "shelve"


@register
class LmdbModule(_Module):
    """lmdb, for comparison."""

    name = "import lmdb"
    modules = ("lmdb",)
    module = "lmdb"


@register
class NumpyModule(_Module):
    """NumPy, for comparison."""

    name = "import numpy"
    modules = ("numpy",)
    module = "numpy"


_IMPORTS = (
    "import pmshelve",
    "import pmshelve.mmapdict",
    "import shelve",
    "import lmdb",
    "import numpy",
)


@workload("import", "what an import costs in a fresh process", _IMPORTS)
def import_time(engine: Engine, _job: Job) -> Iterator[Sample]:
    """Import the module in a fresh interpreter."""
    assert isinstance(engine, _Module)
    command = [sys.executable, "-c", _IMPORT.format(module=engine.module)]
    output = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    seconds, numpy = output.stdout.split()
    yield Sample("import", float(seconds) * 1e3, "ms")
    yield Sample("brings NumPy", float(numpy == "True"), "count")
