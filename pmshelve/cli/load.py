"""``load OUT NEWFILE``: a new pool from what ``dump`` wrote."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from pmshelve.cli.detect import refuse_directory
from pmshelve.errors import FormatError
from pmshelve.storage import file as storage

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("load", help="make a new pool from what dump wrote")
    parser.add_argument("source", metavar="OUT", help="what dump wrote; - for standard input")
    parser.add_argument("file", metavar="NEWFILE", help="the pool; there must be no such file")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from pmshelve.pmemobj.pool import PersistentObjectPool

    with _reading(arguments.source) as stream:
        pool = PersistentObjectPool(arguments.file, "x", durability="lazy")
        try:
            with pool:
                count = pool.load(stream)
        except BaseException as problem:
            if isinstance(problem, FormatError) and problem.path is None:
                problem.path = arguments.source
            with suppress(OSError):
                storage.unlink(arguments.file)
            raise
    print(f"{count} objects")
    return 0


class _Raw(io.RawIOBase):
    """A file that is read from beginning to end, through the file layer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = storage.read_at(self._fd, len(buffer), self._offset)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


@contextmanager
def _reading(path: str) -> Iterator[IO[bytes]]:
    if path == "-":
        yield sys.stdin.buffer
        return
    refuse_directory(path)
    fd = storage.system.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        stream: Any = io.BufferedReader(_Raw(fd), 1 << 20)
        yield stream
    finally:
        storage.system.close(fd)
