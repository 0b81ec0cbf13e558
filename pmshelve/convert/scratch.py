"""Where a new file is made until it is whole, and how it gets its name.

    .NAME.converting/        made beside NAME, locked as long as somebody works in it
    .NAME.converting/store   the new file

It takes its name in one step: by a second link, which fails where there is such a file by now, or by
a rename over the file that it is to replace.  A conversion that is killed leaves the directory, which
nobody locks then; the next one to the same name empties it and begins again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from pmshelve.dbm_compat import mmapdict as mmapdict_door
from pmshelve.errors import FormatError, LockTimeoutError
from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.frame import next_commit
from pmshelve.mmapdict.vacuum import give_way
from pmshelve.storage import file as storage
from pmshelve.storage.lock import FileLock

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Scratch", "check_target"]

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_NAME_MAX = 240
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def check_target(path: str, *, overwrite: bool) -> None:
    """Raise an OSError where no file of this name can, or may, be made."""
    try:
        found = storage.system.stat(path)
    except FileNotFoundError:
        storage.system.stat(os.path.dirname(path))  # says which directory is missing
        return
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a directory, not to be replaced", path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file, so not to be replaced", path)
    if not overwrite:
        raise FileExistsError(
            errno.EEXIST, "there is such a file; --overwrite (overwrite=True) replaces it", path
        )


def _short(name: str) -> str:
    """Return a name, or a digest of one that leaves no room for anything to be added to it."""
    data = os.fsencode(name)
    return name if len(data) <= _NAME_MAX else hashlib.blake2b(data, digest_size=16).hexdigest()


class Scratch:
    """The directory, and the lock on it, until the ``with`` block ends; then both are gone.

    Parameters
    ----------
    target
        The name that the new file shall have: an absolute path.

    Attributes
    ----------
    path
        Where to make the file.

    Raises
    ------
    LockTimeoutError
        Another conversion to the same name is at work.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        head, name = os.path.split(target)
        self._directory = os.path.join(head, f".{_short(name)}.converting")
        self.path = os.path.join(self._directory, "store")
        self._fd = -1

    def __enter__(self) -> Self:
        with storage.reporting("the new file cannot be made", self._directory):
            while self._fd < 0:
                self._lock_directory()
            self._clear()
        return self

    def _lock_directory(self) -> None:
        """Make the directory if it is missing, and lock it; another may have removed it meanwhile."""
        with suppress(FileExistsError):
            storage.make_directory(self._directory, 0o700)
        try:
            fd = storage.system.open(self._directory, _FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            FileLock(fd, self._target, 0.0).acquire()
            if storage.is_named(fd, self._directory):
                self._fd = fd
        except LockTimeoutError as error:
            raise LockTimeoutError(
                "another conversion to this name is at work", self._target
            ) from error
        finally:
            if self._fd < 0:
                storage.system.close(fd)

    def _clear(self) -> None:
        for name in os.listdir(self._directory):
            storage.unlink(os.path.join(self._directory, name))

    def __exit__(self, *exception: object) -> None:
        fd, self._fd = self._fd, -1
        try:
            with suppress(OSError):  # what is left is removed by the next
                self._clear()
                storage.remove_directory(self._directory)
        finally:
            storage.system.close(fd)

    # The name -----------------------------------------------------------------------------------

    def take_name(self, *, overwrite: bool, timeout: float | None) -> None:
        """Give the new file, which is closed, its name; return when all of it is on the disk.

        Raises
        ------
        FileExistsError
            There is such a file by now, and not to be replaced.
        LockTimeoutError
            Somebody else uses the file that is to be replaced.
        """
        self._sync()
        if overwrite and storage.exists(self._target):
            self._replace(timeout)
        else:
            self._link()
        storage.sync_directory(self._target)

    def _sync(self) -> None:
        fd = storage.system.open(self.path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        try:
            if storage.exists(self._target):
                storage.copy_owner(fd, storage.system.stat(self._target))
            with storage.reporting("the new file could not be synced", self.path):
                storage.datasync(fd)
        finally:
            storage.system.close(fd)

    def _link(self) -> None:
        try:
            storage.link(self.path, self._target)
        except FileExistsError:
            check_target(self._target, overwrite=False)
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            check_target(self._target, overwrite=False)
            storage.replace(self.path, self._target)
        else:
            storage.unlink(self.path)

    def _replace(self, timeout: float | None) -> None:
        """Rename over the file that is there, once nobody is in the middle of using it."""
        if mmapdict_door.recognizes(self._target):
            try:
                with mmapdict(self._target, convert=False, timeout=timeout) as old:
                    self._succeed(old)
                return
            except FormatError:
                pass  # damaged: nobody can use it
        fd = storage.system.open(self._target, _FLAGS)
        try:
            lock = FileLock(fd, self._target, timeout)
            lock.acquire()
            with storage.reporting("the file could not be replaced", self._target):
                storage.replace(self.path, self._target)
            lock.release()
        finally:
            storage.system.close(fd)

    def _succeed(self, old: mmapdict) -> None:
        """Take the name of a store, under a commit number that none of its users has seen."""
        old._begin_write()  # noqa: SLF001 - a part of the package
        try:
            if mmapdict_door.recognizes(self.path):
                with mmapdict(self.path, convert=False) as new:
                    # The next one is the old file's own, once it is marked as replaced.
                    new.commit_number = next_commit(next_commit(old.commit_number))
                self._sync()
            give_way(old, self.path)
        finally:
            old._end_write()  # noqa: SLF001
