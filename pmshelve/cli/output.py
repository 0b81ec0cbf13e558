"""Files that commands write: whole under their name, or not there; and read, from end to end."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from pmshelve.cli.detect import refuse_directory
from pmshelve.storage import file as storage

__all__ = ["reading", "replacing"]

_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_BUFFER_SIZE = 1 << 20


class _Output(io.RawIOBase):
    """A file that is written from beginning to end, through the file layer."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self._fd >= 0:
            storage.write_at(self._fd, view, self._offset)
        self._offset += view.nbytes
        return view.nbytes

    def let_go(self) -> None:
        """Write nothing more: the descriptor's number may be another file's by then."""
        self._fd = -1


@contextmanager
def replacing(path: str, *, of: str) -> Iterator[IO[bytes]]:
    """Open a new file that takes the name `path` once it is whole; on an error there is none.

    Where `path` is a link, the file that it leads to is replaced; a device, or a pipe, is written to.

    Parameters
    ----------
    of
        The file that is read meanwhile, and never replaced.
    """
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
    if os.path.exists(path):
        if os.path.samefile(path, of):
            raise FileExistsError(errno.EEXIST, "the file that is read is not replaced", path)
        if not os.path.isfile(path):
            with storage.open_device(path) as device:
                yield device
            return
    with _replacing(path) as stream:
        yield stream


@contextmanager
def _replacing(path: str) -> Iterator[IO[bytes]]:
    scratch = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        # In here, since Ctrl-C may come as soon as the file is made.
        fd = storage.system.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC, 0o666)
        raw = _Output(fd)
        try:
            stream: Any = io.BufferedWriter(raw, _BUFFER_SIZE)
            yield stream
            stream.flush()
            storage.datasync(fd)
        finally:
            raw.let_go()
            storage.system.close(fd)
        storage.replace(scratch, path)
    except BaseException:
        with suppress(OSError):
            storage.unlink(scratch)
        raise
    storage.sync_directory(path)


class _Input(io.RawIOBase):
    """A file that is read through the file layer; it can be sought in."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return storage.is_regular(self._fd)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: -1}[whence]
        self._offset = offset + (storage.size_of(self._fd) if start < 0 else start)
        return self._offset

    def readinto(self, buffer: Any) -> int:
        data = storage.read_at(self._fd, len(buffer), self._offset)
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)


@contextmanager
def reading(path: str) -> Iterator[IO[bytes]]:
    """Open a file to read it."""
    refuse_directory(path)
    fd = storage.system.open(path, os.O_RDONLY | _CLOEXEC)
    try:
        stream: Any = io.BufferedReader(_Input(fd), _BUFFER_SIZE)
        yield stream
    finally:
        storage.system.close(fd)
