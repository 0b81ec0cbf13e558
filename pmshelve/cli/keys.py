"""``keys FILE``: the keys, in the file's order."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pmshelve.cli.detect import open_file

__all__ = ["add", "printable"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "keys", help="print the keys, one a line, with control characters escaped"
    )
    parser.add_argument("file", metavar="FILE")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON array")
    form.add_argument(
        "-0",
        "--null",
        action="store_true",
        help="print the keys as they are, a zero byte after each",
    )
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    with open_file(arguments.file) as store:
        if arguments.json:
            print(json.dumps(list(store)))
            return 0
        for key in store:
            if arguments.null:
                sys.stdout.buffer.write(_as_bytes(key) + b"\0")
            else:
                print(printable(key))
    return 0


def printable(text: str) -> str:
    """Return `text` with everything escaped that would not show, or would drive the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _as_bytes(key: str) -> bytes:
    try:
        return key.encode("utf-8", "surrogateescape")  # a dbm's key
    except UnicodeEncodeError:
        return key.encode("utf-8", "surrogatepass")
