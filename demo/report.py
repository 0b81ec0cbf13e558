"""How the demo prints what it measured."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path


def section(number: int, title: str) -> None:
    """Begin a part of the report."""
    print(f"\n{number}. {title}\n", flush=True)


def line(what: str, measured: object) -> None:
    """Print one measurement."""
    print(f"   {what:<62} {measured}", flush=True)


def size(count: float) -> str:
    """Return a number of bytes in a unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def seconds(duration: float) -> str:
    """Return a duration in a unit that fits."""
    if duration < 1e-3:
        return f"{duration * 1e6:.1f} µs"
    return f"{duration * 1e3:.1f} ms" if duration < 1 else f"{duration:.2f} s"


def median(durations: Iterable[float]) -> str:
    """Return the median of durations, and how far the slowest was."""
    values = list(durations)
    return f"median {seconds(statistics.median(values))}, slowest {seconds(max(values))}"


def resident() -> int:
    """Return the bytes of memory that this process occupies now.

    Where the system does not tell, the most that it ever occupied.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except (OSError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
