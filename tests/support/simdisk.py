"""A disk that remembers: every call of `pmshelve.storage.file.system`, in order, and faults on demand.

`SimDisk` takes the place of the primitives in the `system` table.  Real files in one directory are
used, so that the code under test sees what it would see; every operation that can change what a
disk holds is also appended to `ops`.  `tests.support.diskstates` turns that list into the files a
kill or a power cut could leave.

What is recorded, with the inode it happened to:

    Write    bytes at an offset, by pwrite, pwritev, copy_file_range or a store into a shared map
    Resize   ftruncate, O_TRUNC, posix_fallocate past the end
    Punch    MADV_REMOVE: the range reads as zeros
    Sync     fdatasync, fsync of a file: a barrier for that inode (a failed one is recorded too)
    Name     create, link, rename, unlink
    SyncNames  fsync of a directory: a barrier for its names

Inodes are numbered from 1 in order of appearance, so a log is the same in every run.  `msync` (`flush` of
a map) is deliberately not taken for a barrier.

Faults: `fault` is asked before every call and may answer with an `OSError`, a `KeyboardInterrupt`,
or a shorter count.  A file larger than `capacity` bytes is refused as a full disk refuses it.

`verify` compares what the log says with what the real files hold: a write that went round the
file layer is found there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pmshelve.storage import file as file_layer

__all__ = [
    "PRIMITIVES",
    "Fault",
    "Mark",
    "Name",
    "Punch",
    "Resize",
    "SimDisk",
    "Sync",
    "SyncNames",
    "Write",
    "rebooted",
]

PRIMITIVES = frozenset(
    {
        "open",
        "close",
        "pread",
        "preadv",
        "pwrite",
        "pwritev",
        "copy_file_range",
        "mmap",
        "ftruncate",
    }
    | {"posix_fallocate", "fdatasync", "fsync", "fstat", "stat", "rename", "link", "unlink"}
    | {"flock", "boot_id", "mkdir", "rmdir"}
)
"""What `SimDisk` knows of.  A test compares it with `System`: a new primitive must be added here."""


@dataclass(frozen=True)
class Write:
    """`data` reached the page cache at `offset`; `how` is the call."""

    inode: int
    offset: int
    data: bytes = field(repr=False)
    how: str = "pwrite"

    def __str__(self) -> str:
        return f"{self.how}(#{self.inode}, {len(self.data)} bytes at {self.offset})"


@dataclass(frozen=True)
class Resize:
    """The file's size became `size`."""

    inode: int
    size: int

    def __str__(self) -> str:
        return f"resize(#{self.inode}, to {self.size})"


@dataclass(frozen=True)
class Punch:
    """A range lost its blocks and reads as zeros."""

    inode: int
    offset: int
    size: int

    def __str__(self) -> str:
        return f"punch(#{self.inode}, {self.size} bytes at {self.offset})"


@dataclass(frozen=True)
class Sync:
    """A sync of the inode returned; `done` tells whether without an error."""

    inode: int
    done: bool = True

    def __str__(self) -> str:
        return f"{'sync' if self.done else 'failed sync'}(#{self.inode})"


@dataclass(frozen=True)
class Name:
    """`path` became a name of `inode`, or no name at all; `source` lost it at the same instant."""

    path: str
    inode: int | None
    source: str | None = None

    def __str__(self) -> str:
        source = f" from {os.path.basename(self.source)}" if self.source else ""
        return f"name({os.path.basename(self.path)} -> #{self.inode}{source})"


@dataclass(frozen=True)
class SyncNames:
    """The names in `directory` are on the disk."""

    directory: str

    def __str__(self) -> str:
        return "syncdir()"


@dataclass(frozen=True)
class Mark:
    """Not an operation: where the test stood (`label`), for instance "put 3 returned"."""

    label: str
    payload: Any = None

    def __str__(self) -> str:
        return f"-- {self.label}"


Op = Write | Resize | Punch | Sync | Name | SyncNames | Mark


@dataclass(frozen=True)
class Fault:
    """What happens instead of a call.

    Parameters
    ----------
    error
        Raised (an `OSError` is the usual one); None for a short count.
    count
        Bytes that reach the file first, for calls that write.  Without `error` the call returns it.
    after
        Raise once the call has been done in full rather than before it: a signal handler that
        raises does so.
    """

    error: BaseException | None = None
    count: int = 0
    after: bool = False


FaultPlan = Callable[[str, int], Fault | None]
"""Called with the primitive's name and how often it was called before."""


class _RecordingMap(mmap.mmap):
    """A shared writable map whose stores are recorded."""

    disk: SimDisk
    inode: int
    start: int

    def __setitem__(self, index: Any, value: Any) -> None:
        fault = self.disk.gate("store")
        super().__setitem__(index, value)
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            assert step == 1, "stores with a step are not recorded"
            data = bytes(value)
            assert stop - start == len(data)
        else:
            start = range(len(self))[index]
            data = bytes([value])
        if data:
            self.disk.note(Write(self.inode, self.start + start, data, "map"))
        self.disk.finish(fault)

    def madvise(self, option: int, start: int = 0, length: int | None = None) -> None:
        size = len(self) - start if length is None else length
        if option == getattr(mmap, "MADV_REMOVE", -1):
            fault = self.disk.gate("madvise")
            super().madvise(option, start, size)
            self.disk.note(Punch(self.inode, self.start + start, size))
            self.disk.finish(fault)
        else:
            super().madvise(option, start, size)

    def _refuse(self, *_: object) -> Any:
        raise AssertionError("the file layer does not record this way of writing to a map")

    write = write_byte = move = resize = _refuse


class SimDisk:
    """Records what happens to the files of one directory through `pmshelve.storage.file.system`.

    Parameters
    ----------
    directory
        Files that are there already are taken as safely on the disk.
    boot
        What `boot_id` returns.

    Attributes
    ----------
    ops
        Everything that happened, oldest first.
    calls
        How often each primitive was called, by name.
    trace
        Names of the primitives in the order of the calls.
    fault, capacity
        See the module's text; None: nothing fails.
    """

    def __init__(
        self, directory: str | os.PathLike[str], boot: bytes = b"boot-0----------"
    ) -> None:
        assert len(boot) == 16
        self.directory = os.path.realpath(directory)
        self.boot = boot
        self.ops: list[Op] = []
        self.calls: dict[str, int] = {}
        self.trace: list[str] = []
        self.fault: FaultPlan | None = None
        self.capacity: int | None = None
        self.files: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self._inodes: dict[tuple[int, int], int] = {}
        self._count = 1
        self._descriptors: dict[int, str] = {}
        for entry in sorted(os.scandir(self.directory), key=lambda entry: entry.name):
            if entry.is_file(follow_symlinks=False):
                self.adopt(entry.path)

    # Set-up -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def installed(self) -> Iterator[SimDisk]:
        """Be the disk of the package for the length of a `with` block."""
        table = file_layer.system
        replaced = {name: getattr(table, name) for name in PRIMITIVES}
        try:
            for name in PRIMITIVES:
                setattr(table, name, getattr(self, f"_{name}"))
            yield self
        finally:
            for name, primitive in replaced.items():
                setattr(table, name, primitive)

    def adopt(self, path: str) -> None:
        """Take a file made by other means as it is, as if it had always been on the disk."""
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            inode = self._inodes.get((status.st_dev, status.st_ino))
            if inode is None:
                inode = self._number(status)
                self.files[inode] = stream.read()
        self.names[os.path.realpath(path)] = inode

    def mark(self, label: str, payload: Any = None) -> int:
        """Note where the test stands; return the position in `ops`."""
        self.ops.append(Mark(label, payload))
        return len(self.ops)

    @property
    def open_descriptors(self) -> list[str]:
        """Paths of the files that were opened through the file layer and not closed."""
        return sorted(self._descriptors.values())

    def verify(self) -> None:
        """Compare the log with the real files.

        Raises
        ------
        AssertionError
            Something wrote without passing through the file layer.
        """
        from tests.support.diskstates import Replay

        replay = Replay(self)
        for op in self.ops:
            replay.step(op)
        expected = replay.kill_state().files
        actual = {}
        for entry in os.scandir(self.directory):
            if entry.is_file(follow_symlinks=False):
                with open(entry.path, "rb") as stream:
                    actual[entry.name] = stream.read()
        assert sorted(actual) == sorted(expected), "names changed behind the file layer"
        for name, data in actual.items():
            assert len(data) == len(expected[name]), f"{name}: size changed behind the file layer"
            if data != expected[name]:
                where = next(
                    i for i, (a, b) in enumerate(zip(data, expected[name], strict=True)) if a != b
                )
                raise AssertionError(f"{name}: byte {where} changed behind the file layer")

    # Inodes -----------------------------------------------------------------------------------

    def _number(self, status: os.stat_result) -> int:
        inode = self._count
        self._count += 1
        self._inodes[status.st_dev, status.st_ino] = inode
        return inode

    def _inode(self, fd: int) -> int:
        """Return the inode's number; 0 for a file of some other directory, such as a scratch file.

        (Files of this directory that were not opened through the file layer are found by `verify`.)
        """
        status = os.fstat(fd)
        return self._inodes.get((status.st_dev, status.st_ino), 0)

    def note(self, op: Write | Resize | Punch | Sync) -> None:
        """Append to the log what happened to a file of the directory."""
        if op.inode:
            self.ops.append(op)

    # Faults -----------------------------------------------------------------------------------

    def gate(self, name: str) -> Fault | None:
        """Count a call; raise what the plan says, or return what remains to be done of a fault."""
        index = self.calls.get(name, 0)
        self.calls[name] = index + 1
        self.trace.append(name)
        fault = self.fault(name, index) if self.fault is not None else None
        if fault is not None and fault.error is not None and not fault.after and not fault.count:
            raise fault.error
        return fault

    @staticmethod
    def finish(fault: Fault | None) -> None:
        """Raise what a fault still has to raise once its call has had its effect."""
        if fault is not None and fault.error is not None:
            raise fault.error

    def _room(self, fd: int, offset: int, size: int) -> int:
        """Return how many of `size` bytes at `offset` fit on the disk."""
        if self.capacity is None or os.fstat(fd).st_size >= offset + size:
            return size
        room = min(size, max(self.capacity, os.fstat(fd).st_size) - offset)
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return room

    # Primitives that write --------------------------------------------------------------------

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        return self._write("pwrite", fd, [data], offset)

    def _pwritev(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        return self._write("pwritev", fd, buffers, offset)

    def _write(self, how: str, fd: int, buffers: Sequence[Any], offset: int) -> int:
        fault = self.gate(how)
        data = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in buffers if len(buffer))
        if fault is not None and not fault.after:
            data = data[: fault.count]
        data = data[: self._room(fd, offset, len(data))]
        if data:
            written = os.pwrite(fd, data, offset)
            assert written == len(data)
            self.note(Write(self._inode(fd), offset, data, how))
        self.finish(fault)
        return len(data)

    def _copy_file_range(
        self, source: int, target: int, count: int, source_offset: int, target_offset: int
    ) -> int:
        fault = self.gate("copy_file_range")
        if fault is not None and not fault.after:
            count = min(count, fault.count)
        data = os.pread(source, count, source_offset)
        data = data[: self._room(target, target_offset, len(data))]
        if data:
            os.pwrite(target, data, target_offset)
            self.note(Write(self._inode(target), target_offset, data, "copy_file_range"))
        self.finish(fault)
        return len(data)

    def _ftruncate(self, fd: int, size: int) -> None:
        fault = self.gate("ftruncate")
        os.ftruncate(fd, size)
        self.note(Resize(self._inode(fd), size))
        self.finish(fault)

    def _posix_fallocate(self, fd: int, offset: int, size: int) -> None:
        fault = self.gate("posix_fallocate")
        before = os.fstat(fd).st_size
        # As on Linux: a full disk leaves the size alone.
        if self._room(fd, offset, size) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if offset + size > before:
            os.ftruncate(fd, offset + size)
            self.note(Resize(self._inode(fd), offset + size))
        self.finish(fault)

    def _fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd)

    def _fsync(self, fd: int) -> None:
        self._sync("fsync", fd)

    def _sync(self, name: str, fd: int) -> None:
        directory = self._descriptors.get(fd) if stat.S_ISDIR(os.fstat(fd).st_mode) else None
        try:
            fault = self.gate(name)
        except OSError:
            if directory is None:
                self.note(Sync(self._inode(fd), done=False))
            raise
        if directory is None:
            self.note(Sync(self._inode(fd)))
        elif directory == self.directory:
            self.ops.append(SyncNames(directory))
        self.finish(fault)

    # Primitives that name ---------------------------------------------------------------------

    def _open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        try:
            fault = self.gate("open")
        except OSError as error:
            error.filename = path
            raise
        new = bool(flags & os.O_CREAT) and not os.path.exists(path)
        fd = os.open(path, flags, mode)
        status = os.fstat(fd)
        real = os.path.realpath(os.fsdecode(path))
        self._descriptors[fd] = real
        if os.path.dirname(real) == self.directory and stat.S_ISREG(status.st_mode):
            if new:
                inode = self._number(status)
                self.files[inode] = b""
                self.ops.append(Name(real, inode))
            elif (status.st_dev, status.st_ino) not in self._inodes:
                self.adopt(real)
            if flags & os.O_TRUNC and status.st_size and not new:
                self.note(Resize(self._inode(fd), 0))
        self.finish(fault)
        return fd

    def _close(self, fd: int) -> None:
        # Linux closes the descriptor even when it reports an error.
        self._descriptors.pop(fd, None)
        os.close(fd)
        self.finish(self.gate("close"))

    def _rename(self, source: Any, target: Any) -> None:
        fault = self.gate("rename")
        os.rename(source, target)
        old, new = (os.path.realpath(os.fsdecode(path)) for path in (source, target))
        self.ops.append(Name(new, self._named(new), source=old))
        self.finish(fault)

    def _link(self, source: Any, target: Any) -> None:
        fault = self.gate("link")
        os.link(source, target)
        new = os.path.realpath(os.fsdecode(target))
        self.ops.append(Name(new, self._named(new)))
        self.finish(fault)

    def _unlink(self, path: Any) -> None:
        fault = self.gate("unlink")
        real = os.path.realpath(os.fsdecode(path))
        os.unlink(path)
        self.ops.append(Name(real, None))
        self.finish(fault)

    def _named(self, path: str) -> int:
        status = os.stat(path)
        return self._inodes[status.st_dev, status.st_ino]

    # Primitives that change nothing -----------------------------------------------------------

    def _pread(self, fd: int, size: int, offset: int) -> bytes:
        fault = self.gate("pread")
        if fault is not None and fault.error is None:
            size = min(size, fault.count)
        data = os.pread(fd, size, offset)
        self.finish(fault)
        return data

    def _preadv(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        fault = self.gate("preadv")
        if fault is not None and fault.error is None:
            buffers = [memoryview(buffers[0])[: fault.count]]
        count = os.preadv(fd, buffers, offset)
        self.finish(fault)
        return count

    def _fstat(self, fd: int) -> os.stat_result:
        self.finish(self.gate("fstat"))
        return os.fstat(fd)

    def _stat(self, path: Any, *args: Any, **options: Any) -> os.stat_result:
        self.finish(self.gate("stat"))
        return os.stat(path, *args, **options)

    def _flock(self, fd: int, operation: int) -> None:
        fault = self.gate("unlock" if operation & fcntl.LOCK_UN else "flock")
        fcntl.flock(fd, operation)
        self.finish(fault)

    def _mmap(self, fd: int, size: int, **options: Any) -> mmap.mmap:
        fault = self.gate("mmap")
        if options.get("access") == mmap.ACCESS_WRITE:
            recording = _RecordingMap(fd, size, **options)
            recording.disk = self
            recording.inode = self._inode(fd)
            recording.start = options.get("offset", 0)
            shared: mmap.mmap = recording
        else:
            shared = mmap.mmap(fd, size, **options)
        self.finish(fault)
        return shared

    def _boot_id(self) -> bytes:
        return self.boot

    # Directories are made for scratch files only, which no crash is asked about.

    def _mkdir(self, path: Any, mode: int = 0o777) -> None:
        os.mkdir(path, mode)

    def _rmdir(self, path: Any) -> None:
        os.rmdir(path)


@contextlib.contextmanager
def rebooted(boot: bytes) -> Iterator[None]:
    """Let the package see another boot, and skip the waits for a disk that is not there anyway."""
    table = file_layer.system
    replaced = {name: getattr(table, name) for name in ("boot_id", "fdatasync", "fsync")}
    try:
        table.boot_id = lambda: boot
        table.fdatasync = table.fsync = lambda fd: None
        yield
    finally:
        for name, primitive in replaced.items():
            setattr(table, name, primitive)
