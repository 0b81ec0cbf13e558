"""Where things lie in a pool file: constants and word formats.  (docs/format-pmemobj.md)

A pool is seen as one array of 64-bit little-endian words; `offset` is bytes from the file's start,
and as the file is mapped from its start, also bytes from the mapping's.

    offset              size             field
         0              4096             superblock, copy 0 (its first 512 bytes; the rest is zero)
      4096              4096             superblock, copy 1
      8192              journal size     journal
    heap offset         pages of 4096    heap; page 0 is the heap root

Pure arithmetic: nothing here touches a file.
"""

from __future__ import annotations

import struct

__all__ = [
    "BIN_COUNT",
    "BLOCK_HEADER",
    "BLOCK_SIZE_MAX",
    "CLASS_COUNT_MAX",
    "HEAP_MAGIC",
    "JOURNAL_OFFSET",
    "KIND_POOL",
    "MIN_POOL_SIZE",
    "OBJECT_HEADER",
    "OID_NULL",
    "OID_SIZE",
    "PAGE",
    "POBJECT_TYPE_NUM",
    "REFCOUNT_MASK",
    "ROOT_BINS",
    "ROOT_CLASSES",
    "ROOT_OID",
    "ROOT_PAGE_COUNT",
    "ROOT_TABLE",
    "ROOT_TABLE_CAPACITY",
    "ROOT_TYPES",
    "RUN_DATA",
    "SLAB_DATA",
    "TYPE_CODE_SHIFT",
    "TYPE_NUM_MAX",
    "TYPE_NUM_SHIFT",
]

PAGE = 4096
"""Unit of the heap, bytes."""

MIN_POOL_SIZE = 8 << 20
"""The smallest `pool_size`, bytes: libpmemobj's PMEMOBJ_MIN_POOL."""

JOURNAL_OFFSET = 2 * PAGE

# Oids -----------------------------------------------------------------------------------------

OID_SIZE = 16
"""An oid in memory: two words, kind and payload."""

OID_NULL = (0, 0)
"""The oid of nothing at all; None has one of its own."""

KIND_POOL = 0xFF
"""Low byte of the kind word of oids that point into a pool; the other 56 bits are the pool's own."""

# Blocks ---------------------------------------------------------------------------------------

BLOCK_HEADER = 8
"""Bytes before a block's data: size of the data (low 40 bits) and type number (high 24 bits)."""

TYPE_NUM_SHIFT = 40
TYPE_NUM_MAX = (1 << 24) - 1
BLOCK_SIZE_MAX = (1 << TYPE_NUM_SHIFT) - 1

POBJECT_TYPE_NUM = 30
"""Type number of blocks that begin with an object header."""

SLAB_DATA = 40
"""Offset in a slab of its first block's header; data is then 16-aligned."""

RUN_DATA = 64
"""Offset in a page run of its block's data (the header stands at 56)."""

# Objects --------------------------------------------------------------------------------------

OBJECT_HEADER = 8
"""Bytes of an object's header: reference count (low 40 bits) and type code (high 24 bits)."""

TYPE_CODE_SHIFT = 40
REFCOUNT_MASK = (1 << TYPE_CODE_SHIFT) - 1

# The heap root: page 0 of the heap, word numbers ----------------------------------------------

HEAP_MAGIC = int.from_bytes(b"PMSHHEAP", "little")
ROOT_PAGE_COUNT = 1
ROOT_TABLE = 2
ROOT_TABLE_CAPACITY = 3
ROOT_OID = 4  # and 5
ROOT_TYPES = 6
ROOT_BINS = 16
BIN_COUNT = 48
ROOT_CLASSES = 64
CLASS_COUNT_MAX = 64

assert struct.calcsize("<Q") * (ROOT_CLASSES + CLASS_COUNT_MAX) <= PAGE
