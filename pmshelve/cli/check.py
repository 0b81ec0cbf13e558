"""``check FILE``: every invariant of the format that the file breaks."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pmshelve.cli.detect import open_file
from pmshelve.cli.progress import bar, telling

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("check", help="look for damage; nothing is changed")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON array of problems")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    with (
        telling(lambda: "the file was only read"),
        open_file(arguments.file) as store,
        bar("check", quiet=arguments.quiet) as report,
    ):
        problems = [str(problem) for problem in store.check(progress=report)]
    if arguments.json:
        print(json.dumps(problems))
    elif problems:
        print("\n".join(problems))
    else:
        print("sound")
    return 1 if problems else 0
