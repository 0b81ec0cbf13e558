"""Whether what was read back is what was written.

Two values are the same if they are written the same; that tells apart what `==` does not (``1`` and
``True``, a list and an array), and needs no equality of their classes.  Nothing is loaded for it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pmshelve.mmapdict.picklers.codec import encode
from pmshelve.mmapdict.picklers.premade import Premade

__all__ = ["digest", "is_same_bytes", "is_same_form"]

_CHUNK = 1 << 20
_EXACT = (bytes, str, int, bool, type(None))


def is_same_bytes(first: Any, second: Any) -> bool:
    """Whether two buffers have the same bytes."""
    if type(first) is bytes and type(second) is bytes:
        return first == second
    with memoryview(first) as one, memoryview(second) as two:
        a, b = one.cast("B"), two.cast("B")
        return len(a) == len(b) and all(
            bytes(a[at : at + _CHUNK]) == bytes(b[at : at + _CHUNK])
            for at in range(0, len(a), _CHUNK)
        )


def is_same_form(form: Any, found: Any) -> bool:
    """Whether a value that was to be kept is the one that was read, objects being `Premade` in both."""
    if type(form) in _EXACT:
        return type(found) is type(form) and bool(form == found)
    if isinstance(form, Premade) or isinstance(found, Premade):
        return type(form) is type(found) and digest(form) == digest(found)
    return digest(form) == digest(found)


def digest(form: Any) -> bytes:
    """Return a hash of the opcodes that a form is written with."""
    body, _ = encode(form)
    sums = hashlib.blake2b(digest_size=16)
    for piece in [body] if isinstance(body, bytes) else body:
        if isinstance(piece, bytes):
            sums.update(piece)
            continue
        sums.update(piece.opcode + piece.size.to_bytes(8, "little"))
        for chunk in piece.chunks() if piece.chunks is not None else ():
            sums.update(chunk)
    return sums.digest()
