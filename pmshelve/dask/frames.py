"""A task's result as dask packs it, uncompressed, with each large buffer at a multiple of 64 bytes.

Dask packs a value as a prelude (the number of frames, then the size of each, as 64-bit words), a
header, and the frames the value was serialised into.  Where they begin depends on the length of the
header, so an array that is used where it lies is misaligned more often than not, and NumPy computes
on such arrays several times slower.  Empty or short frames between the others move them into
place: dask's own `deserialize_bytes` reads the result, since the header says which frames belong to
the value.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
from distributed.protocol.compression import decompress
from distributed.protocol.serialize import merge_and_deserialize, serialize_and_split
from distributed.protocol.utils import unpack_frames
from distributed.utils import nbytes

__all__ = ["dump", "load"]

ALIGNMENT = 64
ALIGNED_SIZE_MIN = 1024
"""Frames below this size are not worth a frame of padding."""

_PADDING = bytes(ALIGNMENT)


def dump(value: object) -> list[bytes | bytearray | memoryview]:
    """Serialise as `distributed.protocol.serialize.serialize_bytelist` does, without a copy.

    Raises
    ------
    Exception
        Whatever serialising the value raised.
    """
    header, frames = serialize_and_split(value, on_error="raise")
    sizes = [nbytes(frame) for frame in frames]
    padded = _padded(header, sizes)
    count = len(frames) + len(padded)
    if count:
        header["compression"] = (None,) * count
    header["count"] = count
    packed = msgpack.packb(header, use_bin_type=True)
    result: list[Any] = [b"", packed]
    lengths = [len(packed)]
    offset = 8 * (count + 2) + len(packed)
    for index, (frame, size) in enumerate(zip(frames, sizes, strict=True)):
        if index in padded:
            padding = -offset % ALIGNMENT
            result.append(_PADDING[:padding])
            lengths.append(padding)
            offset += padding
        result.append(frame)
        lengths.append(size)
        offset += size
    result[0] = struct.pack(f"<{count + 2}Q", count + 1, *lengths)
    return result


def _padded(header: dict[str, Any], sizes: Sequence[int]) -> set[int]:
    """Return which frames to pad, and let the header say where the frames are then."""
    offsets = header.get("split-offsets")
    if offsets is None:
        return set()
    padded: set[int] = set()
    moved = []
    for offset in offsets:
        # Of a buffer that was split only the first part: what follows has to adjoin it.
        if offset < len(sizes) and sizes[offset] >= ALIGNED_SIZE_MIN:
            padded.add(offset)
        moved.append(offset + len(padded))
    header["split-offsets"] = tuple(moved)
    return padded


def load(packed: bytes | bytearray | memoryview) -> Any:
    """Return the value of what `dump`, or dask's own serialising, made; its buffers are views."""
    frames = unpack_frames(packed)
    header = msgpack.unpackb(frames[0], raw=False, use_list=False)
    del frames[0]
    if any(header["compression"]):
        frames = decompress(header, frames)
    return merge_and_deserialize(header, frames)
