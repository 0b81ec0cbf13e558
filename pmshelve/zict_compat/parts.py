"""Values as zict takes them, a buffer or a list of buffers, as flat views of bytes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from pmshelve.errors import UnsupportedTypeError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Value", "join_small", "parts_of"]

Value: TypeAlias = Union["Buffer", Sequence["Buffer"]]
"""What can be a value."""


def parts_of(value: Any) -> tuple[list[memoryview], int]:
    """Return views of a value's bytes, none of them empty, and their size in all.

    Parameters
    ----------
    value
        Anything with the buffer interface, or a list or tuple of such.  What is not contiguous is
        copied, its elements in C order; nothing else is.

    Raises
    ------
    TypeError
        It is nothing of the kind.
    """
    if value.__class__ is bytes:
        return ([memoryview(value)] if value else []), len(value)
    parts = []
    size = 0
    for part in value if isinstance(value, list | tuple) else (value,):
        view = _flat(part)
        if len(view):
            parts.append(view)
            size += len(view)
    return parts, size


_CASTABLE = frozenset("BbcHhIiLlQqNnfd?P")
"""Formats that a memoryview can be cast from."""


def _recast(view: memoryview) -> memoryview:
    """Return the bytes of a view of another format.

    Not through `pickle.PickleBuffer(view)`: garbage in a cycle with one of those crashes CPython
    before 3.13, and what a failed write leaves is in a cycle with its traceback soon.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or not view.nbytes:
        return memoryview(view.tobytes())
    return memoryview(numpy.frombuffer(view, "u1"))


def _flat(part: Any) -> memoryview:
    try:
        view = memoryview(part)
        if view.ndim == 1 and view.format == "B" and view.contiguous:
            return view
        if "O" in view.format:
            raise TypeError("it holds Python objects")
        if not view.c_contiguous:
            return memoryview(view.tobytes())
        return view.cast("B") if view.format in _CASTABLE and view.nbytes else _recast(view)
    except (TypeError, ValueError, BufferError, NotImplementedError) as error:
        kind = type(part)
        raise UnsupportedTypeError(
            "a value must be a buffer (bytes, bytearray, memoryview, an array) or a list of "
            f"buffers, not {kind.__module__}.{kind.__qualname__}: {error}"
        ) from error


def join_small(value: Any, size_max: int) -> bytes | None:
    """Return the bytes of a list of buffers; None where these are not of the usual kinds, or many."""
    size = 0
    for part in value:
        kind = part.__class__
        if kind is bytes:
            size += len(part)
        elif kind is memoryview and part.itemsize == 1 and part.c_contiguous:
            size += part.nbytes
        else:
            return None
    return b"".join(value) if size <= size_max else None
