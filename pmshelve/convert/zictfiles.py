"""A directory of zict.File: one file a key, named by the quoted key, ``#`` and a number.

Files of zict before version 3 have no number.  Values are bytes; large ones are mapped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

from pmshelve.convert import files
from pmshelve.convert.source import Item, Source, Unreadable

__all__ = ["ZictFileSource", "is_zict_directory"]

_NAME = re.compile(r"((?:[A-Za-z0-9_.~-]|%[0-9A-F]{2})*)(?:#(\d+))?")


def is_zict_directory(directory: str) -> bool:
    """Whether there is anything in it, and nothing but files that are named as zict names them."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_file(follow_symlinks=False)) for entry in entries]
    return (
        bool(found)
        and all(is_file and _parse(name) is not None for name, is_file in found)
        and any("#" in name for name, _ in found)
    )


def _parse(name: str) -> tuple[str, int] | None:
    """Return key and number of a file's name; None if zict names no file so."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    key = unquote(match[1])
    return (key, int(match[2] or 0)) if quote(key, safe="") == match[1] else None


class ZictFileSource(Source):
    """All files of the directory, in the order of their numbers."""

    kind = "zict"
    face = "zict"

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.watch()
        self._names = self._list()

    def _list(self) -> list[tuple[str, int]]:
        """Return the names, and their places in what `__iter__` yields."""
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries]
        parsed = [(name, _parse(name)) for name in names]
        return sorted(
            ((name, found[1] if found else -1) for name, found in parsed),
            key=lambda pair: (pair[1], pair[0]),
        )

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[Item]:
        seen: dict[str, str] = {}
        for name, _ in self._names:
            found = _parse(name)
            if found is None:
                yield Item(name, Unreadable("not named as zict.File names its files"))
            elif found[0] in seen:
                first = seen[found[0]]
                yield Item(found[0], Unreadable(f"two files of one key: {first} and {name}"))
            else:
                seen[found[0]] = name
                yield Item(found[0], self._value(name))

    def _value(self, name: str) -> Any:
        try:
            return files.content(os.path.join(self.path, name))
        except OSError as error:
            return Unreadable(f"its file cannot be read: {error}")
