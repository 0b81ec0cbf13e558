"""Every exception the package raises on purpose.

Three groups, by whose fault it is:

* the caller's: `StateError`, `ObjectError` (and plain `KeyError`, `TypeError`, `ValueError` exactly
  where `dict` raises them);
* the file's: `FormatError`;
* the system's: `StorageError`, which keeps the `errno`, `strerror` and `filename` of the `OSError`
  it came from.

All derive from `PmshelveError` and from the built-in class that programs already catch. All survive
pickling, so they cross process boundaries unchanged.
"""

from __future__ import annotations

import errno as _errno
import io
import os
from typing import Any, ClassVar

__all__ = [
    "ClosedError",
    "CorruptionError",
    "ForkedError",
    "FormatError",
    "LockTimeoutError",
    "NoSpaceError",
    "NotAStoreError",
    "ObjectError",
    "PickleRefusedError",
    "PmshelveError",
    "ReadOnlyError",
    "StateError",
    "StorageError",
    "StoreFailedError",
    "TransactionError",
    "UnknownTypeError",
    "UnsupportedTypeError",
    "VersionError",
    "WrongDoorError",
]


class PmshelveError(Exception):
    """Base of every exception of the package.

    Attributes
    ----------
    problem
        What was wrong, in one sentence.
    path
        The file concerned, or None.
    key
        The key concerned, or None.
    hint
        What to do next, or "".
    """

    def __init__(
        self, problem: str, path: object = None, key: object = None, hint: str = ""
    ) -> None:
        super().__init__(problem, path, key, hint)
        self.problem: str = problem
        self.path: object = path
        self.key: object = key
        self.hint: str = hint

    def __str__(self) -> str:
        text = self.problem
        if self.key is not None:
            text += f" (key {self.key!r})"
        if self.path is not None:
            text = f"{_display(self.path)}: {text}"
        if self.hint:
            text += f"; {self.hint}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem, self.path, self.key, self.hint), self.__dict__


def _display(path: object) -> str:
    try:
        return os.fsdecode(path)  # type: ignore[arg-type]
    except TypeError:
        return str(path)


# The caller's ---------------------------------------------------------------------------------


class StateError(PmshelveError, ValueError):
    """The store is not in a state that allows the call."""


class ClosedError(StateError):
    """The store was closed."""


class ReadOnlyError(StateError, io.UnsupportedOperation):
    """The store is open for reading only."""


class ForkedError(StateError):
    """The store belongs to the parent process and cannot be reopened in this one."""


class WrongDoorError(StateError):
    """The file was written through another interface, whose values this one would garble."""


class TransactionError(PmshelveError, RuntimeError):
    """The call needs a transaction, or one that was not aborted, or its own thread's."""


class ObjectError(PmshelveError, TypeError):
    """The object cannot be stored, or may not be loaded."""


class UnsupportedTypeError(ObjectError):
    """The value cannot be stored; nothing was written."""


class UnknownTypeError(ObjectError):
    """The stored object's class cannot be found; the object is left as it was."""


class PickleRefusedError(ObjectError):
    """Loading the value would run the unpickler, which `allow_pickle=False` forbids."""


# The file's -----------------------------------------------------------------------------------


class FormatError(PmshelveError, ValueError):
    """The file's content is not what it should be; the file is left as it was."""


class NotAStoreError(FormatError):
    """The file is not a store of this kind."""


class VersionError(FormatError):
    """The file is of a format version that this package does not know."""


class CorruptionError(FormatError):
    """The file is damaged.

    Attributes
    ----------
    offset
        Where, in bytes from the file's start, or None.
    invariant
        The number of the broken invariant in the format document (such as "L3"), or "".
    """

    def __init__(
        self,
        problem: str,
        path: object = None,
        key: object = None,
        hint: str = "",
        *,
        offset: int | None = None,
        invariant: str = "",
    ) -> None:
        super().__init__(problem, path, key, hint)
        self.offset: int | None = offset
        self.invariant: str = invariant

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at offset {self.offset}"
        which = f" [{self.invariant}]" if self.invariant else ""
        return super().__str__() + where + which


# The system's ---------------------------------------------------------------------------------


class StorageError(PmshelveError, OSError):
    """The operating system refused or failed a call.

    Attributes
    ----------
    errno, strerror, filename
        As in the `OSError` that caused it.
    """

    errno: int
    strerror: str
    filename: str | bytes | None

    _default_errno: ClassVar[int] = _errno.EIO

    def __init__(
        self,
        problem: str,
        path: object = None,
        key: object = None,
        hint: str = "",
        *,
        cause: OSError | None = None,
    ) -> None:
        super().__init__(problem, path, key, hint)
        self.errno = cause.errno if cause is not None and cause.errno else self._default_errno
        self.strerror = os.strerror(self.errno)
        self.filename = path if isinstance(path, str | bytes) else None
        if cause is not None:
            self.__cause__: BaseException | None = cause

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = super().__reduce__()
        state = {**state, "errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return make, arguments, state


class LockTimeoutError(StorageError, TimeoutError):
    """Another process held the lock for longer than `timeout` seconds."""

    _default_errno = _errno.ETIMEDOUT


class NoSpaceError(StorageError):
    """The disk, or the quota, is full; the store is as it was before the call."""

    _default_errno = _errno.ENOSPC


class StoreFailedError(StorageError):
    """An earlier write or sync failed in a way that leaves the disk's state unknown: reopen."""
