"""Run the benchmarks: `python -m benchmarks.run [--quick] [--json FILE]`.

Each repeat runs every engine of a workload once, in an order that turns by one from repeat to
repeat, so that what else happens on the machine meets them all alike; figures are medians over the
repeats, ratios are medians of the ratios within each repeat.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (  # noqa: F401 - they register themselves
    arrays,
    peers,
    pools,
    processes,
    spill,
    workloads,
    zict_stores,
)
from benchmarks.engines import ENGINES, Engine
from benchmarks.framework import WORKLOADS, Job, Sample, Workload
from benchmarks.machine import environment
from benchmarks.report import summary

__all__ = ["main", "run"]


@dataclass
class Settings:
    """What to run."""

    workloads: Sequence[str]
    engines: Sequence[str]
    count: int
    repeats: int
    quick: bool
    directory: Path


def run(settings: Settings, progress: Any = None) -> dict[str, Any]:
    """Run everything and return what goes into the JSON file."""
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    results: dict[tuple[str, str, str], dict[str, Any]] = {}
    work = Path(tempfile.mkdtemp(prefix="benchmark-", dir=settings.directory))
    try:
        for name in settings.workloads:
            workload = WORKLOADS[name]
            engines = _available(workload, settings, skipped)
            for engine, repeat, sample in _samples(
                workload, engines, settings, work, failed, progress
            ):
                _add(results, workload, engine, repeat, sample)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return {
        "environment": environment(settings.directory),
        "settings": {
            "count": settings.count,
            "repeats": settings.repeats,
            "quick": settings.quick,
        },
        "skipped": skipped,
        "failed": failed,
        "results": list(results.values()),
    }


def _available(workload: Workload, settings: Settings, skipped: dict[str, str]) -> list[Engine]:
    engines = []
    for name in workload.engines:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in settings.engines):
            continue
        reason = skipped.get(name) or ENGINES[name].missing()
        if reason:
            skipped[name] = reason
        else:
            engines.append(ENGINES[name])
    return engines


def _samples(
    workload: Workload,
    engines: list[Engine],
    settings: Settings,
    work: Path,
    failed: dict[str, str],
    progress: Any,
) -> Iterator[tuple[Engine, int, Sample]]:
    shared: dict[str, dict[str, Any]] = {engine.name: {} for engine in engines}
    for repeat in range(settings.repeats):
        turn = repeat % len(engines) if engines else 0
        for engine in engines[turn:] + engines[:turn]:
            if repeat >= engine.repeats_max.get(workload.name, settings.repeats):
                continue
            if progress:
                print(f"{workload.name} {repeat + 1}: {engine.name}", file=progress, flush=True)
            try:
                samples = _one(workload, engine, settings, work, repeat, shared[engine.name])
            except Exception as error:  # one broken engine must not hide the others' figures
                failed[f"{workload.name}, {engine.name}"] = f"{type(error).__name__}: {error}"
                continue
            for sample in samples:
                yield engine, repeat, sample
    for engine in engines:
        shutil.rmtree(_directory(work, workload, engine, None), ignore_errors=True)


def _directory(work: Path, workload: Workload, engine: Engine, repeat: int | None) -> Path:
    number = "all" if repeat is None else str(repeat)
    return work / f"{workload.name}-{engine.name.replace(' ', '-')}-{number}"


def _one(
    workload: Workload,
    engine: Engine,
    settings: Settings,
    work: Path,
    repeat: int,
    shared: dict[str, Any],
) -> list[Sample]:
    """Run one workload with one engine once."""
    stays = workload.shared_files or engine.keep_files
    directory = _directory(work, workload, engine, None if workload.shared_files else repeat)
    directory.mkdir(exist_ok=True)
    limit = engine.limits.get(workload.name)
    if limit is not None and settings.quick:
        limit = max(20, limit // 25)
    count = settings.count if limit is None else min(settings.count, limit)
    job = Job(directory, count, settings.quick, shared)
    samples = list(workload.run(engine, job))
    if not stays:
        shutil.rmtree(directory)
    return samples


def _add(
    results: dict[tuple[str, str, str], dict[str, Any]],
    workload: Workload,
    engine: Engine,
    repeat: int,
    sample: Sample,
) -> None:
    entry = results.setdefault(
        (workload.name, sample.metric, engine.name),
        {
            "workload": workload.name,
            "metric": sample.metric,
            "engine": engine.name,
            "ours": engine.ours,
            "note": engine.note,
            "unit": sample.unit,
            "count": sample.count,
            "repeats": [],
            "samples": [],
            "cpu": [],
        },
    )
    entry["repeats"].append(repeat)
    entry["samples"].append(float(f"{sample.value:.4g}"))
    if sample.cpu is not None:
        entry["cpu"].append(float(f"{sample.cpu:.4g}"))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=(__doc__ or "").split("\n")[0]
    )
    names = ", ".join(WORKLOADS)
    parser.add_argument("--workload", action="append", metavar="NAME", help=f"one of {names}")
    parser.add_argument("--engine", action="append", metavar="PATTERN", help="such as 'pmshelve*'")
    parser.add_argument("--quick", action="store_true", help="a smoke test of under a minute")
    parser.add_argument("--count", type=int, help="keys (100,000; quick 2,000)")
    parser.add_argument("--repeats", type=int, help="how often (5; quick 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="where files are made"
    )
    parser.add_argument("--silent", action="store_true", help="no progress on standard error")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.workload or ()) - set(WORKLOADS))
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}; there are {names}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; print the tables; return 1 if an engine failed."""
    options = _parse(arguments)
    settings = Settings(
        workloads=options.workload or list(WORKLOADS),
        engines=options.engine or ["*"],
        count=options.count or (2_000 if options.quick else 100_000),
        repeats=options.repeats or (1 if options.quick else 5),
        quick=options.quick,
        directory=options.directory,
    )
    outcome = run(settings, None if options.silent else sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n")
    print(summary(outcome))
    return 1 if outcome["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
