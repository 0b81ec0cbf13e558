"""A whole file in memory, at an address that stays: private, with room to grow.

Stores into the map never reach the file: nobody can see half of a change, and a full disk cannot
raise SIGBUS.  What the file holds beyond the end it had when it was mapped appears in the map once
the file has grown, so address space is reserved for that: the file is extended to the whole
reservation, mapped, and cut back (a map may be longer than its file, but Python does not make one).
Only what lies within the file may be touched.

A kill between extending and cutting back leaves a long file without blocks; whoever opens it for
writing next cuts it back too.
"""

from __future__ import annotations

import functools
import gc
import mmap
import sys
from collections.abc import Iterable
from typing import Any

from pmshelve.storage import file as disk

__all__ = [
    "CAN_DETACH",
    "RESERVE_MAX",
    "address_of",
    "detach",
    "drop_inner_pages",
    "drop_pages",
    "map_region",
    "scratch",
]

RESERVE_MAX = 1 << 40
"""Bytes of address space taken at most; a process has 128 times that."""

_GAP_MAX = 64 * 4096
CAN_DETACH = sys.platform == "linux"
"""Whether `detach` can do anything."""
_MAYMOVE, _FIXED = 1, 2
_FAILED = (1 << 64) - 1


def map_region(fd: int, size: int, reserve: int, end: int) -> Any:
    """Return a private map of the file's first `size` bytes, and of room to grow behind them.

    Parameters
    ----------
    fd
        Open for writing if anything is to be reserved.
    reserve
        Bytes of address space wanted in all.  Where the system refuses, it is less: half, a quarter
        ..., at least `size`.
    end
        What the file's size is, and will be.

    Raises
    ------
    OSError
        Not even the file itself could be mapped.
    """
    is_first = True
    while reserve > size:
        try:
            return _map_longer(fd, end, reserve)
        except (OSError, OverflowError, ValueError):
            # No such long files, no memory, a limit of the process, a system of 32 bits: it is
            # all the same.  But a hundred maps as long as this may wait to be collected.
            if is_first:
                is_first = False
                gc.collect()
                continue
            reserve = reserve // 2 // mmap.PAGESIZE * mmap.PAGESIZE
    return disk.map_private(fd, size)


def _map_longer(fd: int, end: int, reserve: int) -> Any:
    if reserve <= end:
        return disk.map_private(fd, reserve)
    try:
        disk.truncate(fd, reserve)
        return disk.map_private(fd, reserve)
    finally:
        disk.truncate(fd, end)


def drop_pages(private: Any, runs: Iterable[tuple[int, int]]) -> None:
    """Give back the memory of a private map's pages that hold nothing but what the file holds.

    Parameters
    ----------
    runs
        (offset, size) of ranges, in order.  Not only they but also what lies between two near ones,
        and around them in the same pages, must be as in the file.
    """
    first = last = 0
    for offset, size in runs:
        if offset - last > _GAP_MAX:
            _drop(private, first, last)
            first = offset
        last = max(last, offset + size)
    _drop(private, first, last)


def drop_inner_pages(private: Any, runs: Iterable[tuple[int, int]]) -> None:
    """As `drop_pages`, but of pages that lie within a run as a whole."""
    for offset, size in runs:
        stop = offset + size
        first = offset + -offset % mmap.PAGESIZE
        if first < stop - stop % mmap.PAGESIZE:
            disk.forget(private, first, stop - stop % mmap.PAGESIZE - first)


def _drop(private: Any, first: int, last: int) -> None:
    first -= first % mmap.PAGESIZE
    last = min(last + -last % mmap.PAGESIZE, len(private))
    if last > first:
        disk.forget(private, first, last - first)


def detach(private: Any) -> bool:
    """Let a private map hold memory of no file, of the same bytes at the same address.

    Nothing that becomes of the file then reaches it: cutting a file takes even those pages from its
    private maps that had been stored into.  What another thread stores into the map meanwhile may be
    lost.

    Returns False where the system has no such call, or no memory.
    """
    calls = _remapping()
    if calls is None:
        return False
    size = len(private) + -len(private) % mmap.PAGESIZE
    address = address_of(private)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    map_, remap, unmap, copy = calls
    made = map_(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
    if made in (None, _FAILED):
        return False
    copy(made, address, len(private))
    if remap(made, size, size, _MAYMOVE | _FIXED, address) != address:
        unmap(made, size)
        return False
    return True


@functools.cache
def _remapping() -> tuple[Any, Any, Any, Any] | None:
    """Return mmap, mremap, munmap and memmove; None where there is no mremap."""
    if not CAN_DETACH:
        return None
    import ctypes

    library = ctypes.CDLL(None)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = library.mremap.restype = pointer
    library.mmap.argtypes = [pointer, size, number, number, number, ctypes.c_long]
    library.mremap.argtypes = [pointer, size, size, number, pointer]
    library.munmap.argtypes = [pointer, size]
    return library.mmap, library.mremap, library.munmap, ctypes.memmove


def address_of(private: Any) -> int:
    """Return the map's first address in this process."""
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(private))


def scratch(size: int) -> memoryview:
    """Return zeros in memory of no file, which take none until they are stored into."""
    return memoryview(mmap.mmap(-1, max(size, 1)))
