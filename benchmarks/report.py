"""Tables out of the JSON of `benchmarks.run`: `python -m benchmarks.report FILE [--write PAGE]`.

With `--write`, the tables go into a Markdown page between lines `<!-- benchmark: NAME -->` and
`<!-- end -->`, where NAME is `environment`, `targets`, `skipped` or a workload; so that every figure
of that page comes from a command.  What is about the workloads of `pools.py`, `spill.py` and
`zict_stores.py` has blocks of its own: `pool environment` and so on.  With `--part`, blocks of what was not measured stay as they are.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.framework import WORKLOADS
from benchmarks.targets import TARGETS, Target

__all__ = ["Figures", "main", "summary", "write_page"]

_BLOCK = re.compile(r"(<!-- benchmark: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_MORE_IS_BETTER = ("1/s", "x")

Entry = dict[str, Any]


class Figures:
    """The results of one run, by workload, metric and engine."""

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        self.outcome = outcome
        self._entries: dict[tuple[str, str, str], Entry] = {
            (entry["workload"], entry["metric"], entry["engine"]): entry
            for entry in outcome["results"]
        }

    def entry(self, workload: str, metric: str, engine: str) -> Entry | None:
        """Return what was measured, or None."""
        return self._entries.get((workload, metric, engine))

    def metrics(self, workload: str) -> list[str]:
        """Return a workload's metrics in the order in which they came."""
        return list(dict.fromkeys(w[1] for w in self._entries if w[0] == workload))

    def engines(self, workload: str, metric: str) -> list[Entry]:
        """Return all engines' results of one metric."""
        return [e for key, e in self._entries.items() if key[:2] == (workload, metric)]

    def workloads(self) -> list[str]:
        """Return the names of the workloads that ran."""
        return list(dict.fromkeys(key[0] for key in self._entries))


def median(entry: Entry) -> float:
    """Return the median of an entry's samples."""
    return float(statistics.median(entry["samples"]))


def ratios(entry: Entry, base: Entry) -> list[float]:
    """Return the ratios of two entries, repeat by repeat."""
    bases = dict(zip(base["repeats"], base["samples"], strict=True))
    pairs = zip(entry["repeats"], entry["samples"], strict=True)
    return [value / bases[repeat] for repeat, value in pairs if bases.get(repeat)]


# Targets.


def best_rival(figures: Figures, target: Target) -> Entry | None:
    """Return the peer that a target without a figure of its own is compared with."""
    entries = [
        entry
        for entry in figures.engines(target.workload, target.metric)
        if not entry["ours"] and not entry["note"].startswith("baseline")
        if not target.rivals or entry["engine"] in target.rivals
    ]
    return min(entries, key=median, default=None)


def pace(figures: Figures, target: Target) -> float | None:
    """Return how many times as long peers take in this run as where the target was set."""
    factors = []
    for engine, then in target.peers.items():
        entry = figures.entry(target.workload, target.metric, engine)
        if entry:
            now = median(entry)
            factors.append(then / now if target.more_is_better else now / then)
    return statistics.median(factors) if factors else None


def judge(figures: Figures, target: Target) -> tuple[list[float], float] | None:
    """Return the samples to judge and the limit, or None if something was not measured."""
    entry = figures.entry(target.workload, target.metric, target.engine)
    if entry is None:
        return None
    if target.base is not None:
        base = figures.entry(target.workload, target.base, target.engine)
        return None if base is None or target.limit is None else (ratios(entry, base), target.limit)
    if target.limit is not None:
        return entry["samples"], target.limit
    rival = best_rival(figures, target)
    return None if rival is None else (ratios(entry, rival), target.of_rival)


def target_rows(figures: Figures, group: str = "") -> Iterator[list[str]]:
    """Yield one row for each target of a group of workloads."""
    for target in TARGETS:
        if group_of(target.workload) != group:
            continue
        judged = judge(figures, target)
        if judged is None:
            yield [target.text, _limit(target), "not measured", "", "", "", ""]
            continue
        samples, limit = judged
        middle = statistics.median(samples)
        passed = middle >= limit if target.more_is_better else middle <= limit
        speed = pace(figures, target)
        yield [
            target.text,
            _limit(target),
            _spread(samples),
            _cpu(figures, target),
            "pass" if passed else "**short**",
            f"{speed:.2f}" if speed else "",
            _rivals(figures, target),
        ]


def _cpu(figures: Figures, target: Target) -> str:
    """Write the CPU time of an operation, where that is what the target is about."""
    entry = figures.entry(target.workload, target.metric, target.engine)
    compared = target.base is not None or target.limit is None
    if entry is None or compared or entry["unit"] != "us" or not entry["cpu"]:
        return ""
    return number(statistics.median(entry["cpu"]))


def _limit(target: Target) -> str:
    if target.limit is None:
        share = "" if target.of_rival == 1 else f"{number(target.of_rival)} of "
        return f"≤ {share}best peer"
    return f"{'≥' if target.more_is_better else '≤'} {number(target.limit)}"


def _rivals(figures: Figures, target: Target) -> str:
    """List the peers of a target in the same run, best first, at most eight."""
    entries = [
        entry
        for entry in figures.engines(target.workload, target.metric)
        if not entry["ours"]
        if not target.rivals or entry["engine"] in target.rivals
    ]
    if not entries or entries[0]["unit"] == "count":
        return ""
    entries.sort(key=median, reverse=entries[0]["unit"] in _MORE_IS_BETTER)
    return ", ".join(f"{entry['engine']} {number(median(entry))}" for entry in entries[:8])


# Text.


def number(value: float) -> str:
    """Write a figure with three digits."""
    if value >= 1_000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _spread(samples: Sequence[float]) -> str:
    middle = number(statistics.median(samples))
    if len(samples) < 2:
        return middle
    return f"{middle} ({number(min(samples))} to {number(max(samples))})"


def table(head: Sequence[str], rows: Iterator[list[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def targets_table(figures: Figures, group: str) -> str:
    """Return the table of all targets of a group."""
    head = ["target", "figure", "reached", "CPU", "", "pace", "peers in the same run"]
    return table(head, target_rows(figures, group))


_GROUPS = {"pool-": "pool ", "spill-": "spill ", "zict-": "zict "}


def group_of(workload: str) -> str:
    """Return what the names of a workload's common blocks begin with: "" for the mmapdict's."""
    return next((group for begin, group in _GROUPS.items() if workload.startswith(begin)), "")


def workload_table(figures: Figures, workload: str) -> str:
    """Return one table for a workload: a row for each engine, a column for each metric."""
    metrics = figures.metrics(workload)
    entries = {entry["engine"]: entry for m in metrics for entry in figures.engines(workload, m)}
    first = figures.engines(workload, metrics[0])
    order = sorted((median(entry), entry["engine"]) for entry in first)
    if first[0]["unit"] in _MORE_IS_BETTER:
        order.reverse()
    head = ["engine"]
    for metric in metrics:
        unit = figures.engines(workload, metric)[0]["unit"]
        head.append(
            metric if unit in ("x", "ratio", "count") else f"{metric}, {_UNITS.get(unit, unit)}"
        )
    rows = (
        [f"**{name}**" if entries[name]["ours"] else name]
        + [_cell(figures.entry(workload, metric, name)) for metric in metrics]
        + [entries[name]["note"]]
        for _, name in order
    )
    return table([*head, ""], rows)


_UNITS = {"us": "µs"}


def _cell(entry: Entry | None) -> str:
    return "" if entry is None else _spread(entry["samples"])


def environment_text(figures: Figures) -> str:
    """Say what was measured, where and how."""
    about, settings = figures.outcome["environment"], figures.outcome["settings"]
    kind = "virtual machine" if about["virtual"] else "machine"
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"{about['cpu_count']}-core {about['machine']} {kind} ({about['cpu']}), "
        f"{about['memory_gib']} GiB, {about['system']}, {about['filesystem']}; {about['python']}; "
        f"{packages}. Revision {about['commit']}, {about['date']}; {settings['count']:,} keys, "
        f"{settings['repeats']} repeats."
    )


def skipped_text(figures: Figures, group: str) -> str:
    """Say which engines were left out and why."""
    concerned = {
        name
        for workload in WORKLOADS.values()
        if group_of(workload.name) == group
        for name in workload.engines
    }
    skipped = {n: why for n, why in figures.outcome["skipped"].items() if n in concerned}
    if not skipped:
        return "All engines were there."
    return "\n".join(f"* {name}: {reason}" for name, reason in skipped.items())


def blocks(figures: Figures) -> dict[str, str]:
    """Return every block that a page may ask for, by name."""
    result = {}
    for group in sorted({group_of(workload) for workload in figures.workloads()}):
        result[f"{group}environment"] = environment_text(figures)
        result[f"{group}targets"] = targets_table(figures, group)
        result[f"{group}skipped"] = skipped_text(figures, group)
    for workload in figures.workloads():
        result[workload] = workload_table(figures, workload)
    return result


def summary(outcome: Mapping[str, Any]) -> str:
    """Return everything as one text."""
    figures = Figures(outcome)
    parts = blocks(figures)
    failed = "\n".join(f"FAILED {what}: {why}" for what, why in outcome.get("failed", {}).items())
    lines = [f"{name}\n\n{text}\n" for name, text in parts.items()]
    return "\n".join([*lines, failed] if failed else lines)


def write_page(page: str, outcome: Mapping[str, Any], *, part: bool = False) -> str:
    """Return a page with the text between its markers renewed.

    Parameters
    ----------
    part
        Leave blocks of what was not measured as they are.

    Raises
    ------
    KeyError
        The page asks for a block of something that was not measured.
    """
    parts = blocks(Figures(outcome))

    def renewed(found: re.Match[str]) -> str:
        if part and found[2] not in parts:
            return found[0]
        return f"{found[1]}{parts[found[2]]}\n{found[3]}"

    return _BLOCK.sub(renewed, page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into a page; return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("file", type=Path, nargs="+", help="what benchmarks.run --json wrote")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="a Markdown page to renew")
    parser.add_argument("--part", action="store_true", help="leave what was not measured as it is")
    options = parser.parse_args(arguments)
    outcome = merge([json.loads(path.read_text()) for path in options.file])
    if options.write:
        page = write_page(options.write.read_text(), outcome, part=options.part)
        options.write.write_text(page)
    else:
        print(summary(outcome))
    return 0


def merge(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put runs of different workloads together; of the same workload the last one counts."""
    merged = dict(outcomes[0])
    for outcome in outcomes[1:]:
        ran = {entry["workload"] for entry in outcome["results"]}
        kept = [entry for entry in merged["results"] if entry["workload"] not in ran]
        merged = {
            **outcome,
            "results": kept + outcome["results"],
            "skipped": {**merged["skipped"], **outcome["skipped"]},
        }
    return merged


if __name__ == "__main__":
    sys.exit(main())
