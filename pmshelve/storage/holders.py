"""Who holds the lock of a file, and who has it open: what the system tells, without asking for it.

Nothing is locked to find that out, so nobody is kept waiting by it.  Linux tells in /proc: the locks
of everybody, and the descriptors of the processes that this user may look at.  Elsewhere the answer
is None: not known.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Holder", "Process", "command_of", "holders", "openers"]

_COMMAND_MAX = 80


class Process(NamedTuple):
    """A process, and what it runs as far as that can be seen."""

    pid: int
    command: str


class Holder(NamedTuple):
    """Who holds a lock; `mode` is 'exclusive' or 'shared'."""

    pid: int
    command: str
    mode: str


def holders(fd: int) -> list[Holder] | None:
    """Return who holds a flock on the open file, this process included; None if that is not told.

    Source: proc_locks(5), proc_pid_fdinfo(5).
    """
    try:
        found = dict(_locks(fd))
    except OSError:
        return None
    for pid, number in _descriptors(fd):
        # Where a file system lies over another one, /proc/locks has the other one's numbers.
        with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{number}") as info:
            for line in info:
                fields = line.split()
                if fields[:1] == ["lock:"] and "FLOCK" in fields:
                    found.setdefault(pid, _mode(fields[4]))
    return [Holder(pid, command_of(pid), mode) for pid, mode in sorted(found.items())]


def _locks(fd: int) -> Iterator[tuple[int, str]]:
    """Yield (pid, mode) of each flock of a file that /proc/locks has."""
    info = os.fstat(fd)
    name = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with open("/proc/locks") as locks:
        for fields in map(str.split, locks):
            # "1: FLOCK ADVISORY WRITE pid device:inode 0 EOF"; who waits has "->" in front.
            if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == name:
                yield int(fields[4]), _mode(fields[3])


def _mode(word: str) -> str:
    return "exclusive" if word == "WRITE" else "shared"


def openers(fd: int) -> list[Process] | None:
    """Return the other processes that have the file open, of those that this user may look at.

    None where the system does not tell.  One that closed the store and keeps a view of it has only
    a map of the file, and is not found.
    """
    if not os.path.isdir("/proc/self/fd"):
        return None
    pids = {pid for pid, _ in _descriptors(fd)} - {os.getpid()}
    return [Process(pid, command_of(pid)) for pid in sorted(pids)]


def _descriptors(fd: int) -> Iterator[tuple[int, str]]:
    """Yield (pid, descriptor) of everybody who has a file open."""
    info = os.fstat(fd)
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return
    for process in processes:
        try:
            numbers = os.listdir(f"/proc/{process}/fd")
        except OSError:
            continue  # another user's, or gone
        for number in numbers:
            with contextlib.suppress(OSError):
                other = os.stat(f"/proc/{process}/fd/{number}")
                if (other.st_ino, other.st_dev) == (info.st_ino, info.st_dev):
                    yield int(process), number


def command_of(pid: int) -> str:
    """Return the command line of a process, cut to a length that a line has room for; "" if gone."""
    for name in ("cmdline", "comm"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
            words = file.read(4096).replace(b"\0", b" ").split()
            text = b" ".join(words).decode("utf-8", "replace")
            if text:
                text = "".join(char if char.isprintable() else "?" for char in text)
                return text if len(text) <= _COMMAND_MAX else text[: _COMMAND_MAX - 3] + "..."
    return ""
