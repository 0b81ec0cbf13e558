"""``gc FILE``: free what nothing in a pool leads to."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pmshelve.cli.detect import open_pool
from pmshelve.cli.keys import printable
from pmshelve.cli.progress import bar, telling
from pmshelve.cli.table import print_rows

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("gc", help="free what nothing in a pool leads to")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    truth = "the pool holds what it held; garbage that was freed by then stays freed"
    with (
        telling(lambda: truth),
        bar("gc", quiet=arguments.quiet) as report,
        open_pool(arguments.file, writable=True, progress=report) as pool,
    ):
        live, counts = pool.collect(progress=report)
    freed = sum(number for name, number in counts.items() if name.endswith("-gced"))
    if arguments.json:
        print(json.dumps({"freed": freed, "live": live, "counts": counts}))
        return 0
    print(f"{freed} freed")
    objects = sorted(live.items(), key=lambda item: -item[1])
    print_rows("live", ("class", "number"), [(printable(name), f"{n:,}") for name, n in objects], 1)
    return 0
