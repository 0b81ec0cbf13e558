"""``vacuum FILE``: give back the space of replaced and deleted values."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pmshelve.cli.detect import open_file
from pmshelve.cli.facts import content_of
from pmshelve.cli.progress import bar, telling
from pmshelve.storage import file as storage

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "vacuum", help="give back the space of replaced and deleted values"
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    path = arguments.file
    before_it: list[bytes | None] = []

    def truth() -> str:
        if not before_it or (before_it[0] is not None and content_of(path) == before_it[0]):
            return "the file is as it was"
        if before_it[0] is None:
            return "the pool holds what it held; garbage that was freed by then stays freed"
        return "the vacuum was done before that, and nothing is missing"

    with telling(truth), bar("vacuum", quiet=arguments.quiet) as report:
        before_it.append(content_of(path))
        with open_file(path, writable=True, progress=report) as store:
            before = storage.system.stat(path).st_size
            store.vacuum(progress=report)
        after = storage.system.stat(path).st_size  # a pool's end is cut off when it is closed
    if arguments.json:
        print(json.dumps({"size_before": before, "size_after": after}))
    else:
        print(f"{before} -> {after} bytes")
    return 0
