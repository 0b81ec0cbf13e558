"""``load OUT NEWFILE``: a new pool from what ``dump`` wrote."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from pmshelve.cli.output import reading
from pmshelve.cli.progress import bar, telling
from pmshelve.errors import FormatError
from pmshelve.storage import file as storage

if TYPE_CHECKING:
    from pmshelve.storage.progress import Progress

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("load", help="make a new pool from what dump wrote")
    parser.add_argument("source", metavar="OUT", help="what dump wrote; - for standard input")
    parser.add_argument("file", metavar="NEWFILE", help="the pool; there must be no such file")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    path = arguments.file

    made: list[int] = []

    def truth() -> str:
        return f"{path} was made, and is whole" if made else f"{path} was not made"

    with (
        telling(truth),
        _source(arguments.source) as stream,
        bar("load", quiet=arguments.quiet) as report,
    ):
        _load(stream, arguments.source, path, report, made)
    print(f"{made[0]} objects")
    return 0


def _load(stream: IO[bytes], source: str, path: str, progress: Progress, made: list[int]) -> None:
    """Make the pool, or none; once it is whole, `made` holds the number of its objects."""
    from pmshelve.pmemobj.pool import PersistentObjectPool

    if storage.exists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    try:
        # In here, since Ctrl-C may come as soon as the file is made.
        with PersistentObjectPool(path, "x", durability="lazy") as pool:
            count = pool.load(stream, progress=progress)
        made.append(count)
    except FileExistsError:
        raise  # somebody made it just now
    except BaseException as problem:
        if made:
            raise
        if isinstance(problem, FormatError) and problem.path is None:
            problem.path = source
        with suppress(OSError):
            storage.unlink(path)
        raise


@contextmanager
def _source(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdin.buffer
        return
    with reading(path) as stream:
        yield stream
