"""``vacuum FILE``: give back the space of replaced and deleted values."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pmshelve.cli.detect import open_file
from pmshelve.storage import file as storage

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "vacuum", help="give back the space of replaced and deleted values"
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    with open_file(arguments.file, writable=True) as store:
        before = storage.system.stat(arguments.file).st_size
        store.vacuum()
    after = storage.system.stat(arguments.file).st_size  # a pool's end is cut off when it is closed
    if arguments.json:
        print(json.dumps({"size_before": before, "size_after": after}))
    else:
        print(f"{before} -> {after} bytes")
    return 0
