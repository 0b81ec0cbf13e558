"""The footer of a vacuum in place: says where in the file its new content is, until that is copied.

It is the last thing in the file.  As long as it is there the image counts, and nothing in front of it.
"""

from __future__ import annotations

import struct

from pmshelve.mmapdict.frame import Read
from pmshelve.storage.binary import U32, crc32

__all__ = ["FOOTER_SIZE", "encode_footer", "find_image"]

_FOOTER = struct.Struct("<8sQQ")
_MAGIC = b"PMSIMAGE"
FOOTER_SIZE = _FOOTER.size + 8


def encode_footer(base: int, size: int) -> bytes:
    """Return the footer of an image of `size` bytes at `base`."""
    data = _FOOTER.pack(_MAGIC, base, size)
    return data + U32.pack(crc32(data)) + bytes(4)


def find_image(read: Read, end: int) -> tuple[int, int] | None:
    """Return offset and size of the image that a file of `end` bytes tells of; None: of none."""
    footer = read(max(0, end - FOOTER_SIZE), end)
    if len(footer) != FOOTER_SIZE or not footer.startswith(_MAGIC):
        return None
    _, base, size = _FOOTER.unpack(footer[:24])
    if footer[24:28] != U32.pack(crc32(footer[:24])) or base + size + FOOTER_SIZE != end:
        return None
    return None if size > base else (base, size)
