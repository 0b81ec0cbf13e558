"""Numbers as a reader wants them."""

from __future__ import annotations

__all__ = ["binary", "exact", "share"]

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def binary(size: float) -> str:
    """Return a size in the largest unit that it has one of.

    >>> binary(1023), binary(1536), binary(5 << 30)
    ('1023 bytes', '1.5 KiB', '5.0 GiB')
    """
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size /= 1024
        unit += 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{size:.0f} {_UNITS[0]}"


def exact(size: int) -> str:
    """Return a size in bytes, and in a unit that can be grasped.

    >>> exact(1), exact(123456)
    ('1 bytes', '123,456 bytes (120.6 KiB)')
    """
    return f"{size:,} bytes" + (f" ({binary(size)})" if size >= 1024 else "")


def share(part: float, whole: float) -> str:
    """Return a share in percent, never 0 or 100 unless it is all or nothing.

    >>> share(0, 9), share(1, 100000), share(1, 3), share(99999, 100000), share(3, 3)
    ('0%', '<0.1%', '33.3%', '>99.9%', '100%')
    """
    percent = 100 * part / whole if whole else 0.0
    if percent in {0.0, 100.0}:
        return f"{percent:.0f}%"
    if percent < 0.1:
        return "<0.1%"
    return ">99.9%" if percent > 99.9 else f"{percent:.1f}%"
