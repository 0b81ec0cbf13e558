"""A whole pickle to the body of one, with its memo moved: pure, bytes to bytes."""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Iterator

__all__ = ["renumber_memo"]

_DROPPED = frozenset(("PROTO", "FRAME", "STOP"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))


def renumber_memo(data: bytes, start: int) -> tuple[bytes, int]:
    """Return the opcodes of a pickle, its memo numbered from `start` on.

    What is memoized but never used is left out, and so are PROTO, FRAME and STOP.

    Returns
    -------
    The opcodes, and the first memo index that is free behind them.
    """
    used = {argument for name, argument, _ in _operations(data) if name in _GETS}
    moved: dict[int, int] = {}
    parts = []
    put_count = 0
    for name, argument, opcodes in _operations(data):
        if name == "MEMOIZE" or name in _PUTS:
            index = put_count if name == "MEMOIZE" else argument
            put_count += 1
            if index in used:
                moved[index] = start + len(moved)
                parts.append(_indexed(pickle.BINPUT, pickle.LONG_BINPUT, moved[index]))
        elif name in _GETS:
            parts.append(_indexed(pickle.BINGET, pickle.LONG_BINGET, moved[argument]))
        elif name not in _DROPPED:
            parts.append(opcodes)
    return b"".join(parts), start + len(moved)


def _operations(data: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Yield each opcode's name, its argument and its bytes."""
    operations = list(pickletools.genops(data))
    ends = [position for _, _, position in operations[1:]] + [len(data)]
    for (opcode, argument, position), end in zip(operations, ends, strict=True):
        yield opcode.name, argument, data[position or 0 : end]  # type: ignore[misc]


def _indexed(short: bytes, long: bytes, index: int) -> bytes:
    return short + bytes((index,)) if index < 256 else long + struct.pack("<I", index)
