"""Find out what a file is, and make a store of it: create, recognise, convert, refuse."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import uuid
from typing import Any

from pmshelve.errors import CorruptionError, NotAStoreError, VersionError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.frame import TERMINATOR
from pmshelve.mmapdict.logfile import Log
from pmshelve.mmapdict.openfile import BOOT_UNKNOWN, open_descriptor
from pmshelve.storage import file as disk

__all__ = ["create_empty", "current_boot", "is_store", "open_log", "prepare"]

_FILE_METHODS = ("fileno", "seek", "read", "write", "writable", "truncate", "tell")


def current_boot() -> bytes:
    """Return the superblock's name for the present boot."""
    boot = disk.boot_id()
    return boot if any(boot) else BOOT_UNKNOWN


def is_store(data: bytes) -> bool:
    """Whether a file that begins with `data` (24 bytes or more) is an mmapdict file."""
    header = frame.encode_header(0)
    return data[:18] == header[:18] and data[22:24] == header[22:24]


def create_empty(face: int) -> bytes:
    """Return all bytes of a new, empty file."""
    return frame.encode_fresh(uuid.uuid4().bytes, face=face, boot=current_boot()) + TERMINATOR


def open_log(
    file: Any,
    readonly: bool | None,
    *,
    timeout: float | None,
    sync: bool,
    mode: int,
) -> Log:
    """Open `file`, a name or a file object, without looking at its content.

    Raises
    ------
    TypeError
        It is neither.
    OSError
        As `open` does.
    """
    if isinstance(file, str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(file))
        try:
            fd = open_descriptor(path, readonly=bool(readonly), mode=mode)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                error.errno, "no such store, and nothing is created read-only", os.fsdecode(file)
            ) from None
        try:
            with disk.reporting("the file could not be looked at", path):
                if not disk.is_regular(fd):
                    raise NotAStoreError("not a regular file, so it cannot be a store", path)
        except BaseException:
            disk.system.close(fd)
            raise
        return Log(fd, path, writable=not readonly, timeout=timeout, sync=sync)
    missing = [name for name in _FILE_METHODS if not hasattr(file, name)]
    if missing:
        raise TypeError(
            f"file must be a name or a binary file object, not {type(file).__name__}"
            f" (it has no {', '.join(missing)})"
        )
    try:
        fd = file.fileno()
    except (OSError, ValueError) as error:
        raise TypeError(
            f"the file object {file!r} has no descriptor to lock and map: {error}"
        ) from error
    if isinstance(file, io.TextIOBase):
        raise TypeError("the file object must be opened in binary mode, such as 'rb+'")
    writable = bool(file.writable()) and not readonly
    return Log(fd, None, writable=writable, timeout=timeout, sync=sync, file=file)


def prepare(log: Log, *, face: int, convert: bool) -> dict[str, Any] | None:
    """Make sure that the file has a header, under the lock.

    Returns
    -------
    The dict of an ordinary pickle that is to be converted, or None.

    Raises
    ------
    NotAStoreError, VersionError
        The file holds something else; it was left as it was.
    StorageError
        The file could not be read, or the store not be created.
    """
    with disk.reporting("the file could not be read", log.name):
        head = log.pread(0, frame.FRESH_SIZE + 1)
        if is_store(head):
            return None
        _check_version(log, head)
        if not frame.is_torn_creation(head):
            return _read_pickle(log, convert=convert)
    if not log.writable:
        problem = "the store's creation was never finished"
        raise NotAStoreError(
            problem if head else "an empty file: no store was created in it yet", log.name
        )
    _initialise(log, face)
    return None


def _check_version(log: Log, head: bytes) -> None:
    if head[:11] == frame.encode_header(0)[:11] and head[11:12] == b"J" and head[16:18] == b"0J":
        version = int.from_bytes(head[12:16], "little")
        if version != 1:
            raise VersionError(
                f"file version {version} is not known", log.name, hint="use a newer pmshelve"
            )


def _initialise(log: Log, face: int) -> None:
    """Make an empty store of the file, on the disk before anything else is.

    The name goes first: whoever finds a header may rely on it, also if this process dies here.
    """
    try:
        with disk.reporting("the store could not be created", log.name):
            if log.path is not None:
                disk.sync_directory(log.path)
            disk.write_at(log.fd, create_empty(face), 0)
            disk.datasync(log.fd)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.truncate(log.fd, 0)
        raise


def _read_pickle(log: Log, *, convert: bool) -> dict[str, Any]:
    """Return the dict that an ordinary pickle holds."""
    if log.pread(0, 1) not in (b"\x80", b"(", b"}"):
        raise NotAStoreError("not an mmapdict file", log.name, hint="the file was left as it is")
    if log.pread(max(0, log.size - len(TERMINATOR)), log.size) == TERMINATOR:
        # No pickler ends a pickle like this: it is a store, and what broke is its header.
        raise CorruptionError(
            "the header is damaged",
            log.name,
            hint="the file was left as it is",
            offset=0,
            invariant="L1",
        )
    if not convert:
        raise NotAStoreError(
            "not an mmapdict file (an ordinary pickle, perhaps)",
            log.name,
            hint="open it writable with mmapdict(file, allow_pickle=True) to convert it",
        )
    try:
        with open(log.fd, "rb", closefd=False) as stream:
            position = os.lseek(log.fd, 0, os.SEEK_CUR)
            try:
                stream.seek(0)
                content = pickle.load(stream)
            finally:
                os.lseek(log.fd, position, os.SEEK_SET)
    except Exception as error:
        raise NotAStoreError(
            f"neither an mmapdict file nor a pickle that loads ({error})", log.name
        ) from error
    if type(content) is not dict:
        raise NotAStoreError(
            f"an ordinary pickle of a {type(content).__name__}, not of a dict", log.name
        )
    for key in content:
        if not isinstance(key, str):
            raise NotAStoreError(f"a pickled dict with the key {key!r}, which is no str", log.name)
    return content
