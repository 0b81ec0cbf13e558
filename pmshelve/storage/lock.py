"""One lock for the threads of this process and for other processes.

`FileLock` is a reentrant in-process lock around an advisory `flock` on the file itself, the lock
mmappickle takes too.  Lock order: the in-process lock first, then the file's.  A waiter gives up
after `timeout` seconds.  The file's lock dies with its process; it belongs to the open file
description, so a forked child shares it and must never unlock (see `renew`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time

from pmshelve.errors import LockTimeoutError, StorageError
from pmshelve.storage.file import system

__all__ = ["EXCLUSIVE", "SHARED", "FileLock", "holder_of"]

_BACKOFF_MAX = 0.05
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB
SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
UNLOCK = fcntl.LOCK_UN


class FileLock:
    """Lock of one open file.

    Parameters
    ----------
    fd
        The file's descriptor.
    path
        For messages.
    timeout
        Seconds to wait for this process's threads, and then again for other processes; None for
        ever.

    Attributes
    ----------
    grab, let_go
        `acquire` and `release` of the lock for threads.
    fd, depth
        The descriptor; how many calls hold the file's lock.  For callers that write `acquire` and
        `release` out where each call counts.
    """

    __slots__ = ("_pinned", "depth", "fd", "grab", "let_go", "path", "timeout")

    def __init__(self, fd: int, path: object, timeout: float | None) -> None:
        self.fd = fd
        self.depth = 0
        self._pinned = False
        self.renew()
        self.path = path
        self.timeout = timeout

    def acquire(self, operation: int = EXCLUSIVE) -> None:
        """Take the lock; nested calls of one thread only count.

        Raises
        ------
        LockTimeoutError
            Somebody held it for longer than `timeout`.
        StorageError
            The file system has no locks.
        """
        if not self.grab(False):
            self._wait_for_threads()
        if self.depth:
            self.depth += 1
        else:
            self.take(operation)

    def take(self, operation: int = EXCLUSIVE) -> None:
        """Take the file's lock, which no call holds, in the threads' lock, or give that back."""
        try:
            system.flock(self.fd, operation)
        except OSError as error:
            self._insist(error, operation)
        except BaseException:
            self.let_go()
            raise
        self.depth = 1

    def _insist(self, error: OSError, operation: int) -> None:
        """Go on after the file's lock was not had at once, or give the threads' lock back."""
        try:
            if isinstance(error, BlockingIOError):
                self._wait_for_processes(operation)
            elif operation != SHARED or not _is_unsupported(error):
                # Reading goes on where there are no locks: nobody can write there either.
                raise self._refusal(error) from None
        except BaseException:
            self.let_go()
            raise

    def release(self) -> None:
        """Undo one `acquire`."""
        depth = self.depth = self.depth - 1
        if not depth:
            try:
                system.flock(self.fd, UNLOCK)
            except OSError as error:
                if not _is_unsupported(error):
                    raise
        self.let_go()

    def try_shared(self) -> bool:
        """Take the lock shared if that needs no waiting for another process."""
        if not self.grab(False):
            self._wait_for_threads()
        if not self.depth:
            try:
                system.flock(self.fd, SHARED)
            except OSError:
                self.let_go()
                return False
        self.depth += 1
        return True

    def enter(self) -> None:
        """Keep this process's other threads out; other processes go on."""
        if not self.grab(False):
            self._wait_for_threads()

    def try_enter(self) -> bool:
        """Do as `enter` if no other thread is in."""
        return self.grab(False)

    def leave(self) -> None:
        """Undo one `enter`."""
        self.let_go()

    def move(self, fd: int, operation: int = EXCLUSIVE) -> None:
        """Go over, with the lock held, to another descriptor, locking that and unlocking this.

        Raises
        ------
        LockTimeoutError
            The other one could not be locked; this one still is.
        """
        previous = self.fd
        self.fd = fd
        try:
            try:
                system.flock(fd, operation)
            except BlockingIOError:
                self._wait_for_processes(operation)
        except BaseException:
            self.fd = previous
            raise
        system.flock(previous, UNLOCK)

    def pin(self) -> None:
        """Keep the file's lock, held now, until `unpin`."""
        if not self._pinned:
            self._pinned = True
            self.depth += 1

    def unpin(self) -> None:
        """Give back the file's lock, if it was pinned, once no call holds it."""
        self.enter()
        if self._pinned:
            self._pinned = False
            self.release()
        else:
            self.leave()

    @property
    def held(self) -> bool:
        """Whether this process holds the file's lock."""
        return self.depth > 0

    def rebind(self, fd: int) -> None:
        """Use another descriptor from now on; nothing is held."""
        self.fd = fd

    def renew(self) -> None:
        """Forget all that a fork copied: the threads are gone, the file's lock is the parent's."""
        rlock = threading.RLock()
        self.grab, self.let_go = rlock.acquire, rlock.release
        self.depth = 0
        self._pinned = False

    def _refusal(self, error: BaseException) -> BaseException:
        if isinstance(error, OSError) and _is_unsupported(error):
            return StorageError(
                "the file cannot be locked, so it cannot be shared safely",
                self.path,
                hint="open it read-only, or move it to a file system with flock",
                cause=error,
            )
        return error

    def _wait_for_threads(self) -> None:
        timeout = -1 if self.timeout is None else self.timeout
        if not self.grab(timeout=timeout):
            raise LockTimeoutError(
                f"another thread held the lock for {self.timeout} s",
                self.path,
                hint="raise timeout=, or end its batch sooner",
            )

    def _wait_for_processes(self, operation: int) -> None:
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        pause = 0.00005
        while True:
            time.sleep(pause)
            try:
                system.flock(self.fd, operation)
                return
            except BlockingIOError:
                pass
            if deadline is not None and time.monotonic() >= deadline:
                raise LockTimeoutError(
                    f"locked for {self.timeout} s by {holder_of(self.fd) or 'another opener'}",
                    self.path,
                    hint="raise timeout=, or close the store there",
                )
            pause = min(pause * 1.5, _BACKOFF_MAX)


def _is_unsupported(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _UNSUPPORTED


def holder_of(fd: int) -> str:
    """Return who holds the lock of the file, such as "process 123 (python3)"; "" if not told.

    Source: proc_locks(5).
    """
    try:
        info = os.fstat(fd)
        device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
        with open("/proc/locks") as locks:
            holders = [
                fields[4]
                for fields in map(str.split, locks)
                if len(fields) > 5 and fields[1] == "FLOCK" and fields[5] == device
            ]
        names = []
        for pid in dict.fromkeys(holders):
            with open(f"/proc/{pid}/comm") as comm:
                names.append(f"process {pid} ({comm.read().strip()})")
        return ", ".join(names)
    except (OSError, ValueError):
        return ""
