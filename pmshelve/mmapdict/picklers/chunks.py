"""`Chunks`: the bytes of several buffers, one behind the other, as one value; nothing is joined.

They are written from where they are, as the one large buffer of a pickle that is nothing but that
buffer:

    functools.partial(pickle.loads, buffers=[BYTEARRAY8 data])(raw),  raw = PROTO 5 NEXT_BUFFER STOP

which `pickle.load` makes a bytearray of.  A store hands out a memoryview of its map; the unpickler is
not run for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NoReturn

from pmshelve.mmapdict.opcodes import NEXT_BUFFER, STOP, TUPLE1, emit_bytes
from pmshelve.mmapdict.picklers.base import Blob, Encoded, Source
from pmshelve.mmapdict.picklers.generic import BUFFERS_END, BUFFERS_HEAD, RAW_PROTO
from pmshelve.mmapdict.picklers.premade import Premade

__all__ = ["CHUNKS_END", "CHUNKS_RAW", "Chunks", "decode_chunks", "encode_chunks"]

CHUNKS_RAW: Final = RAW_PROTO + NEXT_BUFFER + STOP
"""The whole pickle of such a value."""

CHUNKS_END: Final = BUFFERS_END + emit_bytes(CHUNKS_RAW) + TUPLE1
"""The opcodes behind the data, less REDUCE; the last piece of each such body is this very object."""


class Chunks:
    """Stands for the bytes of some buffers.

    Parameters
    ----------
    parts
        Flat buffers of bytes.
    size
        How many bytes they are together.
    """

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[Any], size: int) -> None:
        self.parts = tuple(parts)
        self.size = size

    def __reduce__(self) -> NoReturn:
        raise TypeError("Chunks are stored only as a value of their own")


def encode_chunks(value: Chunks) -> Encoded:
    """Encode some buffers, which are not looked at before they are written."""
    parts = value.parts
    return [BUFFERS_HEAD, Blob(value.size, lambda: parts), CHUNKS_END], True


def decode_chunks(source: Source, start: int, stop: int) -> Any:
    """Return a flat view of the bytes in [start, stop), in whatever memory the mode asks for."""
    buffer, position = source.window(start, stop)
    view = memoryview(buffer)[position : position + stop - start]
    if source.keep_pickles:
        return Premade(CHUNKS_RAW, (view,))
    return view.toreadonly() if source.mmap_mode == "r" else view
