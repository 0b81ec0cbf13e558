"""The calls that touch a disk, and nothing else.

All of them go through `system`, a table of primitives that a test may replace: record those and
everything that can reach a disk is recorded.  Short writes, interrupted calls and the operating
system's limits on one call end here.

A shared writable map is part of this layer too: assigning to a slice of a `Map` is a write.
`struct.pack_into` and exported memoryviews are never used on one for the store's own fields, so
that a subclass with its own `__setitem__` sees every store.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from pmshelve.errors import NoSpaceError, PmshelveError, StorageError

__all__ = [
    "CALL_SIZE_MAX",
    "LOCK_EXCLUSIVE",
    "MAPS_HOLD_DESCRIPTORS",
    "Map",
    "System",
    "allocate",
    "boot_id",
    "copy_owner",
    "copy_range",
    "datasync",
    "discard",
    "exists",
    "expect_random_access",
    "forget",
    "is_named",
    "is_regular",
    "link",
    "link_count",
    "make_directory",
    "map_file",
    "map_private",
    "open_device",
    "open_directory",
    "read_at",
    "read_into",
    "refill",
    "release",
    "remove_directory",
    "replace",
    "reporting",
    "size_of",
    "storage_error",
    "sync_directory",
    "sync_names",
    "system",
    "truncate",
    "unlink",
    "write_at",
    "write_zeros",
    "writev_at",
]

CALL_SIZE_MAX = 1 << 30
"""Bytes handed to one read or write; Linux moves at most 2 GiB - 4 KiB, macOS 2 GiB - 1."""

_IOV_MAX = min(1024, os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)

_LINUX = sys.platform == "linux"
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _LINUX else 0)
"""Named by the standard library from 3.13 on; on the processors where Linux has another value, this
one is ignored."""

LOCK_EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB

MAPS_HOLD_DESCRIPTORS = sys.version_info < (3, 13)
"""Whether a map that does not begin with its file has a descriptor of its own, and so the file's lock."""

_UNTRACKED: dict[str, Any] = {} if MAPS_HOLD_DESCRIPTORS else {"trackfd": False}
"""Keeps a map from holding a descriptor of its own, which Python duplicates only to resize it."""

Map = mmap.mmap


class System:
    """The primitives.  A test's simulated disk replaces an instance's attributes."""

    def __init__(self) -> None:
        self.open = os.open
        self.close = os.close
        self.pread = os.pread
        self.preadv = os.preadv
        self.pwrite = os.pwrite
        self.pwritev = os.pwritev
        self.ftruncate = os.ftruncate
        self.fstat = os.fstat
        self.stat = os.stat
        self.rename = os.rename
        self.link = os.link
        self.unlink = os.unlink
        self.mkdir = os.mkdir
        self.rmdir = os.rmdir
        self.flock = fcntl.flock
        self.mmap: Any = Map
        self.fdatasync = getattr(os, "fdatasync", os.fsync)
        self.fsync = os.fsync
        self.posix_fallocate = getattr(os, "posix_fallocate", None)
        self.copy_file_range = getattr(os, "copy_file_range", None)
        self.boot_id = _read_boot_id
        if sys.platform == "darwin":
            self.fdatasync = self.fsync = _full_fsync


def _full_fsync(fd: int) -> None:
    # fsync on macOS stops at the drive's cache (its fsync(2) says so).
    fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined,unused-ignore]


def _read_boot_id() -> bytes:
    """Return 16 bytes that differ from boot to boot; zeros where the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


system = System()


def boot_id() -> bytes:
    """Return 16 bytes that differ from boot to boot; zeros where the system does not tell."""
    return system.boot_id()


def storage_error(error: OSError, problem: str, path: object = None) -> StorageError:
    """Return the exception that tells `error` to a user of the package."""
    if error.errno in _NO_SPACE:
        return NoSpaceError(
            problem + ": no space left", path, hint="free some space and try again", cause=error
        )
    return StorageError(f"{problem}: {error.strerror or error}", path, cause=error)


@contextlib.contextmanager
def reporting(problem: str, path: object = None) -> Iterator[None]:
    """Turn an `OSError` that leaves the ``with`` block into the package's (see `storage_error`)."""
    try:
        yield
    except PmshelveError:  # some of which are OSErrors
        raise
    except OSError as error:
        raise storage_error(error, problem, path) from error


def size_of(fd: int) -> int:
    """Return the file's size in bytes."""
    return system.fstat(fd).st_size


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes from `offset`; fewer only at the file's end."""
    data = system.pread(fd, min(size, CALL_SIZE_MAX), offset)
    if len(data) == size or not data:
        return data
    parts = [data]
    done = len(data)
    while done < size:
        data = system.pread(fd, min(size - done, CALL_SIZE_MAX), offset + done)
        if not data:
            break
        parts.append(data)
        done += len(data)
    return b"".join(parts)


def read_into(fd: int, buffer: bytearray, offset: int) -> None:
    """Fill `buffer` with the file's bytes from `offset` on.

    Raises
    ------
    OSError
        The file ends before.
    """
    size = len(buffer)
    if size <= CALL_SIZE_MAX and system.preadv(fd, (buffer,), offset) == size:
        return
    done = 0
    with memoryview(buffer) as view:
        while done < size:
            part = view[done : done + CALL_SIZE_MAX]
            count = system.preadv(fd, (part,), offset + done)
            if not count:
                raise OSError(errno.EIO, "the file ended while it was read")
            done += count


def write_at(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`.

    Raises
    ------
    OSError
        Some of the bytes may have been written.
    """
    size = len(data)
    if size <= CALL_SIZE_MAX and system.pwrite(fd, data, offset) == size:
        return
    # Writing again what a short write wrote already is harmless, and keeps the loop in one place.
    writev_at(fd, [data], offset)


def writev_at(fd: int, buffers: Sequence[bytes | bytearray | memoryview], offset: int) -> int:
    """Write `buffers` one behind the other from `offset` on; return the bytes written.

    Buffers go to the system as they are: nothing is joined or copied.

    Raises
    ------
    OSError
        Some of the bytes may have been written.
    """
    size = sum(map(len, buffers))
    if (
        len(buffers) <= _IOV_MAX
        and 0 < size <= CALL_SIZE_MAX
        and system.pwritev(fd, buffers, offset) == size
    ):
        return size
    # Writing again what a short write wrote already is harmless.
    start = offset
    for group in _groups(buffers):
        total = sum(len(view) for view in group)
        written = system.pwritev(fd, group, offset)
        offset += written
        while written < total:  # a short write: drop what is done, go on with the rest
            total -= written
            group = _rest(group, written)
            written = system.pwritev(fd, group, offset)
            if written == 0:
                raise OSError(errno.EIO, "the system wrote nothing")
            offset += written
    return offset - start


def _groups(buffers: Sequence[bytes | bytearray | memoryview]) -> list[list[memoryview]]:
    """Cut `buffers` into byte views that one pwritev call takes."""
    groups: list[list[memoryview]] = []
    group: list[memoryview] = []
    room = CALL_SIZE_MAX
    for buffer in buffers:
        view = memoryview(buffer).cast("B") if len(buffer) else memoryview(b"")
        while len(view):
            if not room or len(group) == _IOV_MAX:
                groups.append(group)
                group, room = [], CALL_SIZE_MAX
            group.append(view[:room])
            view, room = view[room:], room - min(room, len(view))
    if group:
        groups.append(group)
    return groups


def _rest(group: list[memoryview], written: int) -> list[memoryview]:
    for position, view in enumerate(group):
        if written < len(view):
            return [view[written:], *group[position + 1 :]]
        written -= len(view)
    return []


def truncate(fd: int, size: int) -> None:
    """Set the file's size; new bytes are zero and take no blocks."""
    system.ftruncate(fd, size)


def allocate(fd: int, offset: int, size: int) -> None:
    """Reserve disk blocks for a range, extending the file where it is shorter.

    Where there is no such call, or the file system refuses it, zeros are written.
    """
    if size <= 0:
        return
    if system.posix_fallocate is not None:
        try:
            system.posix_fallocate(fd, offset, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    write_zeros(fd, offset, size)


def write_zeros(fd: int, offset: int, size: int) -> None:
    """Write zeros into a range."""
    zeros = bytes(min(size, 1 << 20))
    for start in range(offset, offset + size, max(len(zeros), 1)):
        write_at(fd, zeros[: offset + size - start], start)


def refill(fd: int, offset: int, size: int) -> None:
    """Reserve disk blocks where a range within the file has none; what it holds stays.

    Does nothing where the system cannot: there `discard` cannot take them away either.
    """
    if system.posix_fallocate is not None:
        try:
            system.posix_fallocate(fd, offset, size)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise


def datasync(fd: int) -> None:
    """Return when the file's data and size are on the disk."""
    system.fdatasync(fd)


def open_directory(path: str) -> int:
    """Return a descriptor of the directory that holds `path`, for `sync_names`."""
    return system.open(os.path.dirname(path) or ".", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))


def open_device(path: str) -> IO[bytes]:
    """Return a stream that writes to what is no ordinary file: a pipe, a terminal."""
    return open(path, "wb")


def sync_names(directory: int) -> None:
    """Return when the names in an open directory are on the disk."""
    try:
        system.fsync(directory)
    except OSError as error:
        # Some network file systems have no sync of directories: a name made there is there.
        if error.errno not in _UNSUPPORTED:
            raise


def sync_directory(path: str) -> None:
    """Return when the names in the directory that holds `path` are on the disk.

    A directory in which one may create files but not list them cannot be synced, and is not.
    """
    try:
        directory = open_directory(path)
    except PermissionError:
        return
    try:
        sync_names(directory)
    finally:
        system.close(directory)


def copy_owner(fd: int, info: os.stat_result) -> bool:
    """Give a file the owner and the mode in `info`; False where that is not allowed."""
    try:
        new = system.fstat(fd)
        if (new.st_uid, new.st_gid) != (info.st_uid, info.st_gid):
            os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
    except OSError:
        return False
    return True


def is_named(fd: int, path: str) -> bool | None:
    """Whether `path` is a name of the open file; None if it names nothing."""
    try:
        named = system.stat(path)
    except OSError:
        return None
    info = system.fstat(fd)
    return (named.st_ino, named.st_dev) == (info.st_ino, info.st_dev)


def link_count(fd: int) -> int:
    """Return how many names the open file has."""
    return system.fstat(fd).st_nlink


def exists(path: str) -> bool:
    """Whether `path` names anything, be it a link that leads nowhere."""
    try:
        system.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_regular(fd: int) -> bool:
    """Whether the open file is an ordinary one, that can be mapped and truncated."""
    return stat.S_ISREG(system.fstat(fd).st_mode)


def replace(source: str, target: str) -> None:
    """Give the file at `source` the name `target`, atomically."""
    system.rename(source, target)


def link(source: str, target: str) -> None:
    """Give the file at `source` a second name, `target`, which must not exist."""
    system.link(source, target)


def unlink(path: str) -> None:
    """Remove the name `path`."""
    system.unlink(path)


def make_directory(path: str, mode: int = 0o777) -> None:
    """Make an empty directory, which must not exist."""
    system.mkdir(path, mode)


def remove_directory(path: str) -> None:
    """Remove an empty directory."""
    system.rmdir(path)


def copy_range(source: int, target: int, size: int, source_offset: int, target_offset: int) -> None:
    """Copy `size` bytes between two files, inside the kernel where it can."""
    while size:
        count = min(size, CALL_SIZE_MAX)
        copied = 0
        if system.copy_file_range is not None:
            try:
                copied = system.copy_file_range(source, target, count, source_offset, target_offset)
            except OSError as error:
                if error.errno in _NO_SPACE or error.errno == errno.EIO:
                    raise
        if not copied:
            data = read_at(source, min(count, 1 << 20), source_offset)
            if not data:
                raise OSError(errno.EIO, "the file ended while it was copied")
            write_at(target, data, target_offset)
            copied = len(data)
        size -= copied
        source_offset += copied
        target_offset += copied


def map_file(fd: int, size: int, *, writable: bool, offset: int = 0, private: bool = False) -> Any:
    """Return a `Map` of `size` bytes of the file.

    Parameters
    ----------
    writable
        Stores reach the file (needs a descriptor open for writing).
    private
        Stores are allowed and stay in this map (copy on write).
    """
    if private:
        access = mmap.ACCESS_COPY
    else:
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return system.mmap(fd, size, access=access, offset=offset, **_UNTRACKED)


def map_private(fd: int, size: int, offset: int = 0) -> Any:
    """Return a `Map` of the file, from a page on, that can be stored into and keeps that to itself.

    Unlike `map_file` it takes no swap space in advance, however large it is.
    """
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    prot = mmap.PROT_READ | mmap.PROT_WRITE
    if not offset:
        return system.mmap(fd, size, flags=flags, prot=prot)
    return system.mmap(fd, size, flags=flags, prot=prot, offset=offset, **_UNTRACKED)


def forget(private: Any, offset: int, size: int) -> bool:
    """Give up what was stored into whole pages of a private map: they are the file's again.

    Returns False where the system does not promise that, and has done nothing.
    """
    if not _LINUX:
        return False  # elsewhere MADV_DONTNEED is advice that may be taken or not
    try:
        private.madvise(mmap.MADV_DONTNEED, offset, size)
    except OSError:
        return False
    return True


def release(shared: Any, offset: int, size: int) -> None:
    """Take whole pages of a shared map out of this process's memory; they stay in the page cache."""
    if _LINUX:  # elsewhere the advice may be taken for leave to drop what was stored
        with contextlib.suppress(OSError):
            shared.madvise(mmap.MADV_DONTNEED, offset, size)


def expect_random_access(private: Any) -> None:
    """Read no pages ahead of one that is touched: what it costs to touch a hole is mostly that."""
    advice = getattr(mmap, "MADV_RANDOM", None)
    if advice is not None:
        with contextlib.suppress(OSError):
            private.madvise(advice)


def discard(shared: Any, offset: int, size: int) -> bool:
    """Give back the disk blocks of a range of a shared map; its bytes become zero.

    Both ends must be multiples of the page size.  Returns False where the system cannot.
    """
    advice = getattr(mmap, "MADV_REMOVE", None)
    if advice is None:
        return False
    try:
        shared.madvise(advice, offset, size)
    except OSError:
        return False
    return True
