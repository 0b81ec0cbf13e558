"""``dump FILE OUT``: the content of a pool, in a form that outlives the pool's own format."""

from __future__ import annotations

import argparse
import stat
import sys
from typing import Any

from pmshelve.cli.detect import open_pool
from pmshelve.cli.output import replacing
from pmshelve.cli.progress import bar, telling
from pmshelve.storage import file as storage

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("dump", help="write what a pool holds, for load")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("out", metavar="OUT", help="the file to write; - for standard output")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    out = arguments.out
    before = _signature(out)

    def truth() -> str:
        if out == "-":
            return "what was written is not all of it; the pool was only read"
        if _signature(out) == before:
            return f"{out} is as it was; the pool was only read"
        return f"{out} was written, and is whole"

    with (
        telling(truth),
        open_pool(arguments.file) as pool,
        bar("dump", quiet=arguments.quiet) as report,
    ):
        if out == "-":
            pool.dump(sys.stdout.buffer, progress=report)
            return 0
        with replacing(out, of=arguments.file) as stream:
            count = pool.dump(stream, progress=report)
    print(f"{count} objects")
    return 0


def _signature(path: str) -> tuple[int, int, int] | None:
    """Return what differs from file to file; None if there is none, or none that is replaced."""
    try:
        found = storage.system.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
