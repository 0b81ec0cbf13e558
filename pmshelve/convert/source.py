"""What a source is: a thing that yields keys and values, the same ones each time it is iterated.

value         stands for
Premade       an object, by its pickle: moved as it is, or loaded where that is asked for
Unreadable    an entry that the source has and cannot give
buffer        bytes, perhaps still in a file that is mapped
other         the value itself
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from pmshelve.storage import file as storage

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Fingerprint", "Item", "Source", "Unreadable", "fingerprint"]

Fingerprint = tuple[tuple[int, int, int, int], ...]


class Unreadable(NamedTuple):
    """What is wrong with an entry, in one sentence."""

    problem: str


class Item(NamedTuple):
    """One entry.  Where the key cannot be read, it is what is to be shown for it."""

    key: Any
    value: Any


class Source:
    """Base of all sources.

    Parameters
    ----------
    path
        The name it was opened by.

    Attributes
    ----------
    kind
        One of `recognize.KINDS`.
    face
        The door its content is used through at best: 'native', 'bytes' or 'zict'.
    is_pickles
        Whether all values are pickles, so that a dbm's file can hold them as they are.
    has_bytes_keys
        Whether all keys are bytes, as a dbm has them.
    left_out
        What is in the source and not moved, on purpose, and how often: by what it is called.
    notes
        What the user had better know, in sentences.
    """

    kind = ""
    face = "native"
    is_pickles = False
    has_bytes_keys = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.left_out: dict[str, int] = {}
        self.notes: list[str] = []
        self._first: Fingerprint = ()

    def __len__(self) -> int:
        """Return how many entries there are, left out ones included, or about."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Item]:
        raise NotImplementedError

    def files(self) -> list[str]:
        """Return the names of what the source is read from: files, or a directory."""
        return [self.path]

    def watch(self) -> None:
        """Take what comes from now on for a change: to be called before anything is read."""
        self._first = fingerprint(self.files())

    def is_changed(self) -> bool:
        """Whether the source was changed since `watch`."""
        return fingerprint(self.files()) != self._first

    def close(self) -> None:
        """Let go of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def fingerprint(paths: list[str]) -> Fingerprint:
    """Return what a change of these files would change."""
    marks = []
    for path in paths:
        with suppress(FileNotFoundError):
            found = storage.system.stat(os.fspath(path))
            marks.append((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(marks)
