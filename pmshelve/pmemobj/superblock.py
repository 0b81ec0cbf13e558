"""Superblock: what a pool file is, and where its journal begins.  (docs/format-pmemobj.md, S1-S8)

    offset  size  field
         0     8  magic          b"PMSHPOOL"
         8     4  version        1
        12     4  flags          bit 0 clean: closed in order; bit 1 ordered: see J6; bit 2 unsynced:
                                 see S9; bit 3 holes: free pages may have no blocks
        16     8  sequence       one more than that of the superblock before
        24    16  uuid
        40     8  pool id        kind word of the pool's oids: 56 random bits << 8 | 0xFF
        48     8  file size
        56     8  journal offset
        64     8  journal size
        72     8  start          sequence that the journal's first record has
        80     8  heap offset
        88     8  pool size      as created
        96     8  max size       0: none
       104    16  boot           of an unsynced pool: the boot of the system it counts in; else zeros
       120   388  zeros
       508     4  crc            CRC-32 of the 508 bytes before

Little-endian.  Copy 0 at offset 0, copy 1 at 4096.  Copy 0 is written first, copy 1 once copy 0 is
known to be on the disk; the valid one with the higher sequence counts.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from pmshelve.errors import CorruptionError, FormatError, NotAStoreError, VersionError
from pmshelve.pmemobj.layout import JOURNAL_OFFSET, KIND_POOL, PAGE
from pmshelve.storage.binary import U32, crc32

__all__ = ["COPY_OFFSETS", "SIZE", "Superblock", "encode", "new_start", "random_bytes", "read"]

MAGIC = b"PMSHPOOL"
VERSION = 1
SIZE = 512
COPY_OFFSETS = (0, PAGE)

CLEAN = 1
ORDERED = 2
UNSYNCED = 4
HOLES = 8

_FIELDS = struct.Struct("<8sIIQ16s8Q16s388x")
assert _FIELDS.size == SIZE - 4
_HINT = "the file was left as it is; restore it from a copy"


class Superblock(NamedTuple):
    """The fields; see the module's text."""

    flags: int
    sequence: int
    uuid: bytes
    pool_id: int
    file_size: int
    journal_offset: int
    journal_size: int
    start: int
    heap_offset: int
    pool_size: int
    max_size: int
    boot: bytes = bytes(16)


def random_bytes(size: int) -> bytes:
    """Return bytes that nobody has seen before.  (A test that replays a log makes them known.)"""
    return os.urandom(size)


def new_start() -> int:
    """Return a sequence for the journal to begin with that no record ever had.

    Whatever lies in the journal from before can then not be taken for a record that comes later.
    """
    return int.from_bytes(random_bytes(8), "little") >> 1 or 1


def create(pool_size: int, journal_size: int, max_size: int) -> Superblock:
    """Return the superblock of a new pool."""
    uuid = bytearray(random_bytes(16))
    uuid[6] = uuid[6] & 0x0F | 0x40  # version 4
    uuid[8] = uuid[8] & 0x3F | 0x80
    return Superblock(
        flags=0,
        sequence=0,
        uuid=bytes(uuid),
        pool_id=int.from_bytes(random_bytes(7), "little") << 8 | KIND_POOL,
        file_size=pool_size,
        journal_offset=JOURNAL_OFFSET,
        journal_size=journal_size,
        start=new_start(),
        heap_offset=JOURNAL_OFFSET + journal_size,
        pool_size=pool_size,
        max_size=max_size,
    )


def encode(superblock: Superblock) -> bytes:
    """Return the 512 bytes of one copy."""
    body = _FIELDS.pack(MAGIC, VERSION, *superblock)
    return body + U32.pack(crc32(body))


def _decode(data: bytes) -> Superblock | None:
    """Return what a copy says; None if it is not whole, or of another version."""
    if len(data) < SIZE or U32.unpack_from(data, SIZE - 4)[0] != crc32(data[: SIZE - 4]):
        return None
    magic, version, *fields = _FIELDS.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        return None
    return Superblock(*fields)


def read(head: bytes, file_size: int, path: object) -> Superblock:
    """Return what the superblock of a file says.

    Parameters
    ----------
    head
        The file's first bytes, up to the journal.
    file_size
        Bytes that the file has.

    Raises
    ------
    NotAStoreError
        The file is not a pool.
    VersionError
        It is one of a format that this package does not know.
    CorruptionError
        It is damaged.
    """
    copies = [head[offset : offset + SIZE] for offset in COPY_OFFSETS]
    valid = [block for block in map(_decode, copies) if block is not None]
    if not valid:
        raise _refusal(copies, path)
    superblock = max(valid, key=lambda block: block.sequence)
    problem, invariant = _problem(superblock)
    if problem:
        raise CorruptionError(problem, path, hint=_HINT, offset=0, invariant=invariant)
    if file_size < superblock.file_size:
        raise CorruptionError(
            f"the file was cut off: it has {file_size} bytes of {superblock.file_size}",
            path,
            hint=_HINT,
            offset=file_size,
            invariant="S6",
        )
    return superblock


def _refusal(copies: list[bytes], path: object) -> FormatError:
    """Return what is to be said of a file without a valid superblock of our version."""
    pools = [copy for copy in copies if copy[: len(MAGIC)] == MAGIC]
    if not pools:
        return NotAStoreError("not a pool of pmshelve.pmemobj", path)
    versions = {copy[8:12] for copy in pools}
    version = int.from_bytes(versions.pop(), "little")
    if version != VERSION and not versions:
        # Newer formats keep magic and version in their places, and perhaps nothing else.
        return VersionError(
            f"pool format {version} is not known", path, hint="use a newer pmshelve"
        )
    return CorruptionError(
        "both copies of the superblock are damaged", path, hint=_HINT, offset=0, invariant="S1"
    )


def _problem(block: Superblock) -> tuple[str, str]:
    """Return what is wrong with a superblock whose bytes are sound, and the broken invariant."""
    if block.pool_id & 0xFF != KIND_POOL:
        return "the superblock's pool id is not one", "S2"
    if (
        block.journal_offset != JOURNAL_OFFSET
        or not block.journal_size
        or block.journal_size % PAGE
        or block.heap_offset != JOURNAL_OFFSET + block.journal_size
    ):
        return "the superblock's journal is misplaced", "S3"
    if block.file_size % PAGE or block.file_size <= block.heap_offset:
        return "the superblock's file size cannot be", "S4"
    if block.max_size and block.max_size < block.pool_size:
        return "the superblock's largest size cannot be", "S5"
    return "", ""
