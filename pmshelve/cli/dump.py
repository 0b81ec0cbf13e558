"""``dump FILE OUT``: the content of a pool, in a form that outlives the pool's own format."""

from __future__ import annotations

import argparse
import io
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from pmshelve.cli.detect import open_pool
from pmshelve.storage import file as storage

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("dump", help="write what a pool holds, for load")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("out", metavar="OUT", help="the file to write; - for standard output")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    with open_pool(arguments.file) as pool:
        if arguments.out == "-":
            pool.dump(sys.stdout.buffer)
            return 0
        with _replacing(arguments.out) as stream:
            count = pool.dump(stream)
    print(f"{count} objects")
    return 0


class _Raw(io.RawIOBase):
    """A file that is written from beginning to end, through the file layer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        storage.write_at(self._fd, view, self._offset)
        self._offset += view.nbytes
        return view.nbytes


@contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    """Open a new file that takes the name `path` once it is whole; on an error there is none."""
    scratch = f"{path}.{secrets.token_hex(8)}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    fd = storage.system.open(scratch, flags, 0o666)
    try:
        try:
            stream: Any = io.BufferedWriter(_Raw(fd), 1 << 20)
            yield stream
            stream.flush()
            storage.datasync(fd)
        finally:
            storage.system.close(fd)
        storage.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            storage.unlink(scratch)
        raise
    storage.sync_directory(path)
