"""Pickles, looked at without running them: are they any, are they plain, as one piece; and made."""

from __future__ import annotations

import io
import pickle
import pickletools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from pmshelve.convert.source import Unreadable
from pmshelve.errors import PickleRefusedError, UnsupportedTypeError
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.chunks import CHUNKS_RAW
from pmshelve.mmapdict.picklers.generic import buffer_callback
from pmshelve.mmapdict.picklers.premade import Premade

__all__ = [
    "Refusing",
    "buffer_of",
    "in_one_piece",
    "is_whole",
    "pickled",
    "plain",
    "premake",
    "unpicklable",
]

PLAIN = (type(None), bool, int, float, str, bytes)
"""Types that every store keeps as they are."""

_PROTO, _STOP, _FRAME = 0x80, 0x2E, b"\x95"
_NEXT_BUFFER, _READONLY_BUFFER, _BINBYTES8, _BYTEARRAY8 = "NEXT_BUFFER", "READONLY_BUFFER", b"\x8e", b"\x96"  # fmt: skip
_PLAIN_FIRST = frozenset(
    bytes((opcode,)) for opcode in b"NILFSUTVXJKMGBC\x88\x89\x8a\x8b\x8c\x8d\x8e"
)
"""Opcodes that the pickle of a plain value begins with."""
_PLAIN_SIZE_MAX = 1 << 26


class Refusing(pickle.Unpickler):
    """An unpickler that imports and calls nothing: it makes what Python has literals for."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Raise PickleRefusedError."""
        raise PickleRefusedError(f"the pickle needs {module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        """Raise PickleRefusedError."""
        raise PickleRefusedError("the pickle refers to something outside of it")


def pickled(data: Any) -> Any:
    """Return the `Premade` of bytes that should be a pickle, or `Unreadable` where they are none."""
    raw = data if isinstance(data, bytes) else bytes(data)
    return Premade(raw) if is_whole(raw) else Unreadable("the value is no pickle")


def is_whole(raw: bytes) -> bool:
    """Whether bytes look like one pickle from its beginning to its end.

    Protocol 2 and later say so in the first bytes and the last; older ones are walked through.
    """
    if len(raw) < 2 or raw[-1] != _STOP:
        return False
    if raw[0] == _PROTO:
        return raw[1] <= pickle.HIGHEST_PROTOCOL
    try:
        *_, (_, _, position) = pickletools.genops(raw)
    except Exception:  # noqa: BLE001 - ValueError, and whatever the arguments' readers raise
        return False
    return position == len(raw) - 1


def plain(value: Any) -> Any:
    """Return the value that a `Premade` stands for, if it is of a type in `PLAIN`; else as it is.

    That needs no trust: nothing is imported, and one opcode makes the value.
    """
    if not isinstance(value, Premade) or value.buffers:
        return value
    raw = bytes(value.raw)
    first = 2 if raw[:1] == b"\x80" else 0
    if raw[first : first + 1] == _FRAME:
        first += 9
    if len(raw) > _PLAIN_SIZE_MAX or raw[first : first + 1] not in _PLAIN_FIRST:
        return value
    try:
        found = Refusing(io.BytesIO(raw)).load()
    except Exception:  # noqa: BLE001 - it is moved as it is, and says so when it is loaded
        return value
    return found if type(found) in PLAIN else value


def premake(value: Any) -> Premade:
    """Pickle an object, as an mmapdict would: its large buffers beside the pickle.

    Raises
    ------
    UnsupportedTypeError
        It does not pickle, for whatever reason of its own.
    """
    stream = io.BytesIO()
    blobs: list[Blob] = []
    known: dict[int, Blob] = {}
    callback = buffer_callback(blobs, known)
    with unpicklable(value):
        if "numpy" in sys.modules:
            from pmshelve.mmapdict.picklers.reduction import PublicPickler

            PublicPickler(stream, callback, known).dump(value)
        else:
            pickle.Pickler(stream, 5, buffer_callback=callback).dump(value)
        return Premade(stream.getvalue(), [_content(blob) for blob in blobs])


def _content(blob: Blob) -> Any:
    pieces = [] if blob.chunks is None else list(blob.chunks())
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def unpicklable(value: Any) -> Iterator[None]:
    """Turn what pickling an object raises, which may be anything, into UnsupportedTypeError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        kind = type(value).__qualname__
        raise UnsupportedTypeError(
            f"an object of type {kind} cannot be stored: {str(error) or type(error).__name__}"
        ) from error


def buffer_of(value: Any) -> Any:
    """Return the bytes of a `Premade` that is nothing but one buffer, anything else as it is."""
    if isinstance(value, Premade) and len(value.buffers) == 1 and value.raw == CHUNKS_RAW:
        return value.buffers[0]
    return value


def in_one_piece(value: Premade) -> bytes:
    """Return the pickle with its buffers in it, where a store has no place beside it.

    Raises
    ------
    ValueError
        It is no pickle.

    Notes
    -----
    NEXT_BUFFER becomes BYTEARRAY8, or BINBYTES8 where READONLY_BUFFER follows; frames are left out,
    because they would have other sizes.  Memo indices stay right: no buffer is ever memoized.
    """
    raw = bytes(value.raw)
    if not value.buffers:
        return raw
    parts: list[Any] = []
    buffers = iter(value.buffers)
    ops = [(op.name, position) for op, _, position in pickletools.genops(raw)]
    ends = [position for _, position in ops[1:]] + [len(raw)]
    following = [name for name, _ in ops[1:]] + [""]
    for (name, position), end, after in zip(ops, ends, following, strict=True):
        if name == _NEXT_BUFFER:
            data = next(buffers, None)
            if data is None:
                raise ValueError("the pickle wants more buffers than there are")
            opcode = _BINBYTES8 if after == _READONLY_BUFFER else _BYTEARRAY8
            parts += [opcode, len(data).to_bytes(8, "little"), data]
        elif name not in {_READONLY_BUFFER, "FRAME"}:
            parts.append(raw[position:end])
    return b"".join(parts)
