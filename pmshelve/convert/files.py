"""Files of others, read through the file layer."""

from __future__ import annotations

import os
from typing import Any

from pmshelve.storage import file as storage

__all__ = ["MAP_SIZE_MIN", "content", "read", "size"]

MAP_SIZE_MIN = 1 << 16
"""Bytes from which on a file is mapped rather than read."""

_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)


def read(path: str, count: int, offset: int = 0) -> bytes:
    """Return up to `count` bytes from an offset on."""
    fd = storage.system.open(path, _FLAGS)
    try:
        return storage.read_at(fd, count, offset)
    finally:
        storage.system.close(fd)


def size(path: str) -> int:
    """Return the file's size; 0 if there is none."""
    try:
        return storage.system.stat(path).st_size
    except FileNotFoundError:
        return 0


def content(path: str) -> Any:
    """Return all bytes of a file: as bytes, or as a map of it where they are many."""
    fd = storage.system.open(path, _FLAGS)
    try:
        count = storage.size_of(fd)
        if count < MAP_SIZE_MIN:
            return storage.read_at(fd, count, 0)
        return storage.map_file(fd, count, writable=False)
    finally:
        storage.system.close(fd)
