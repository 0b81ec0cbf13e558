"""Compare two revisions: `python -m benchmarks.compare BASE [NEW] --workload put --engine pmshelve`.

Each revision is checked out into a worktree of its own; both are measured by the benchmarks as they
are here, in turns, ten times.  A ratio is that of one turn, so that what changes on the machine from
turn to turn meets both.  Below 1 the new revision takes less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["main", "rows"]

Key = tuple[str, str, str]
Figures = Mapping[Key, float]

_ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def checkout(revision: str | None, place: Path) -> Iterator[Path]:
    """Yield a directory with the package of a revision and the benchmarks of this one.

    None stands for the working tree as it is.
    """
    place.mkdir()
    tree = place / "tree"
    if revision is not None:
        _git("worktree", "add", "--detach", str(tree), revision)
    try:
        source = _ROOT if revision is None else tree
        (place / "pmshelve").symlink_to(source / "pmshelve")
        (place / "benchmarks").symlink_to(_ROOT / "benchmarks")
        yield place
    finally:
        if revision is not None:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    command = ["git", "-C", str(_ROOT), *arguments]
    subprocess.run(command, check=True, capture_output=True)


def measure(place: Path, options: Sequence[str]) -> dict[Key, float]:
    """Run the benchmarks once, in a process of their own, over the package in `place`."""
    output = place / "result.json"
    command = [sys.executable, "-m", "benchmarks.run", "--silent", "--repeats", "1"]
    subprocess.run(
        [*command, "--json", str(output), *options],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(place)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {
        (entry["workload"], entry["metric"], entry["engine"]): entry["samples"][0]
        for entry in json.loads(output.read_text())["results"]
    }


def rows(pairs: Sequence[tuple[Figures, Figures]]) -> Iterator[str]:
    """Yield a line for each figure: both medians, and the median and spread of the ratios."""
    for key in pairs[0][0]:
        if any(key not in base or key not in new for base, new in pairs):
            continue
        base_median = statistics.median(base[key] for base, _ in pairs)
        new_median = statistics.median(new[key] for _, new in pairs)
        ratios = sorted(new[key] / base[key] for base, new in pairs if base[key])
        if not ratios:
            continue
        name = " ".join(key)
        yield (
            f"{name:55}{base_median:12.4g}{new_median:12.4g}"
            f"{statistics.median(ratios):9.3f}  ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both revisions in turns, print the table; return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("base", help="a revision")
    parser.add_argument("new", nargs="?", help="another (the working tree)")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--workload", action="append", default=[])
    parser.add_argument("--engine", action="append", default=[], help="('pmshelve*')")
    parser.add_argument("--count", type=int)
    options = parser.parse_args(arguments)
    passed = [f"--workload={name}" for name in options.workload]
    passed += [f"--engine={name}" for name in options.engine or ["pmshelve*"]]
    passed += [f"--count={options.count}"] if options.count else []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        base = stack.enter_context(checkout(options.base, Path(name, "base")))
        new = stack.enter_context(checkout(options.new, Path(name, "new")))
        pairs = []
        for turn in range(options.turns):
            print(f"turn {turn + 1} of {options.turns}", file=sys.stderr)
            order = (base, new) if turn % 2 == 0 else (new, base)
            found = {place: measure(place, passed) for place in order}
            pairs.append((found[base], found[new]))
    print(f"{'':55}{'base':>12}{'new':>12}{'ratio':>9}  spread")
    print("\n".join(rows(pairs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
