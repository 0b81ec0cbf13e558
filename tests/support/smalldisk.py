"""A file system of a given size, where the tests may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(home: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes at a new directory; skip the test where that is refused."""
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(home)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no right to mount a file system")
    try:
        yield home
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)
