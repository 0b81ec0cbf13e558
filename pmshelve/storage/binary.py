"""Arithmetic on offsets and bytes."""

from __future__ import annotations

import struct
from zlib import crc32

__all__ = ["PAGE_SIZE", "SECTOR_SIZE", "U32", "U64", "align_up", "crc32"]

PAGE_SIZE = 4096
"""Unit of mapping; what `mmap` wants offsets to be multiples of, wherever pages are 4 KiB."""

SECTOR_SIZE = 512
"""What a disk writes whole or not at all."""

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment
