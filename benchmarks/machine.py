"""The machine under the benchmarks: what it is, how to warm it, how much memory is in use.

A virtual machine gives memory that was not touched for some seconds back to its host, and touching
it again costs ten times as much as usual.  So each measurement is preceded by touching as much
memory as it is going to need, page cache included (`warm_memory`).
"""

from __future__ import annotations

import datetime
import importlib.metadata
import mmap
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["environment", "memory_used", "warm_memory"]

_PACKAGES = (
    "numpy",
    "lmdb",
    "semidbm",
    "plyvel",
    "zict",
    "diskcache",
    "sqlitedict",
    "mmappickle",
    "zodb",
    "btrees",
    "pynvm",
)
_CHUNK = bytes(1 << 20)


def warm_memory(size: int) -> None:
    """Touch `size` bytes of fresh memory and give them back to the system."""
    with mmap.mmap(-1, max(size, len(_CHUNK))) as memory:
        for _ in range(len(memory) // len(_CHUNK)):
            memory.write(_CHUNK)


def memory_used() -> dict[str, int]:
    """Return this process' resident memory in bytes: `total`, and `private` where it is known.

    Pages of mapped files count in `total`; the system may drop them at any time.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return {"total": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "total": _kib(fields["VmRSS"]),
        "private": _kib(fields.get("RssAnon", fields["VmRSS"])),
    }


def _kib(field: str) -> int:
    return int(field.split(maxsplit=1)[0]) * 1024


def environment(directory: Path) -> dict[str, Any]:
    """Describe machine, interpreter, packages and commit, without a name or a path in it."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count() or 0,
        "virtual": _is_virtual(),
        "memory_gib": round(_memory_size() / 2**30),
        "filesystem": _filesystem(directory),
        "packages": _versions(),
        "commit": _commit(),
    }


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _cpu_name() -> str:
    return _cpuinfo().get("model name", platform.processor() or platform.machine())


def _is_virtual() -> bool:
    return "hypervisor" in _cpuinfo().get("flags", "").split()


def _memory_size() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _filesystem(directory: Path) -> str:
    """Return the type of the file system that holds `directory`."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    place = str(directory.resolve())
    found = ("", "unknown")
    for _, point, kind, *_ in mounts:
        inside = point in ("/", place) or place.startswith(point + "/")
        if inside and len(point) >= len(found[0]):
            found = (point, kind)
    return found[1]


def _versions() -> dict[str, str]:
    installed = importlib.metadata.distributions()
    versions = {found.metadata["Name"].lower(): found.version for found in installed}
    return {package: versions[package] for package in _PACKAGES if package in versions}


def _commit() -> str:
    """Return the revision that is measured, with a plus sign if the tree has changes."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty=+"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()
