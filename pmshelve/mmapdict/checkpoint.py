"""Checkpoint: the index as a hash table in the file, probed in place.  (docs/format-mmapdict.md, 4)

The data of a checkpoint is a page 0 and pages of buckets, 4096 bytes each:

    offset  size  field of page 0
         0     8  magic    PMSINDEX
         8     4  buckets  a multiple of 32
        12     4  zero
        16     8  count    slots used
        24     8  start    offset of the first entry covered
        32     8  end      offset behind the last entry covered
        40     8  older    offset of the data of the next older checkpoint, 0 none
        48     8  size     of that data
        56  4036  zero
      4092     4  CRC-32 of the 4092 bytes before

    offset  size  field of a bucket, 32 of which make a page
         0    40  10 hashes
        40    80  10 entry offsets
       120     8  zero; in the last bucket of a page 4 zero bytes, and the CRC-32 of the 4092 before

A hash is odd, so that one byte of a bucket's last slot tells whether the bucket is full.  Its first
bucket is ``hash * buckets >> 32``, which grows with the hash: a table is its slots sorted by hash
(and falling offset), each put at the first place that is free and not before its first bucket.
What runs over the table's end goes to the places still free at its start.

Nothing here touches a file: a table is read from anything that slices by absolute offset.  What a
table says is a hint: whoever follows an offset found here looks at the entry's key.
"""

from __future__ import annotations

import itertools
import struct
import sys
from collections.abc import Iterator
from typing import Any, Final

from pmshelve.errors import CorruptionError
from pmshelve.storage.binary import PAGE_SIZE, U32, crc32

__all__ = ["Checkpoint", "hash_key", "open_chain"]

MAGIC: Final = b"PMSINDEX"
HEADER: Final = struct.Struct("<8sI4xQQQQQ")
BUCKET_SIZE: Final = 128
BUCKET_SLOTS: Final = 10
HASHES_SIZE: Final = 4 * BUCKET_SLOTS
OFFSETS_SIZE: Final = 8 * BUCKET_SLOTS
PAGE_BUCKETS: Final = PAGE_SIZE // BUCKET_SIZE
PAGE_SLOTS: Final = PAGE_BUCKETS * BUCKET_SLOTS
CRC_AT: Final = PAGE_SIZE - 4
assert HEADER.size == 56 and BUCKET_SIZE - HASHES_SIZE - OFFSETS_SIZE == 8  # the tables above

NUMPY_COUNT_MIN: Final = 200_000
"""Slots from which importing NumPy takes less time than it saves."""

_PAGE_SHIFT = PAGE_BUCKETS.bit_length() - 1
_LAST_HASH = HASHES_SIZE - 4
_HASHES = struct.Struct(f"<{BUCKET_SLOTS}I")
_OFFSETS = struct.Struct(f"<{BUCKET_SLOTS}Q")
_pack_hash = U32.pack
_unpack_offset = struct.Struct("<Q").unpack_from


def hash_key(stored: bytes) -> int:
    """Return the hash (odd, 32 bits) of a key's stored form: UTF-8 with surrogatepass."""
    # CRC-32 spreads keys over 32 bits, the multiplication spreads those to the high ones, which
    # choose the bucket.
    return crc32(stored) * 2654435769 & 0xFFFFFFFF | 1


def numpy_for(count: int) -> Any:
    """Return NumPy if the program uses it or `count` slots are worth the import, else None."""
    if count < NUMPY_COUNT_MIN and "numpy" not in sys.modules:
        return None
    try:
        import numpy  # waits where another thread is still importing it
    except ImportError:
        return None
    return numpy


class Checkpoint:
    """The table of one checkpoint, in place.

    Parameters
    ----------
    view
        The file: an `mmap`, or bytes.  Assign another to `view` when the file is mapped anew.
    offset, size
        Where in it the data of the checkpoint is.

    Attributes
    ----------
    count
        Slots used; each is an entry that was there when the checkpoint was written.
    start, end
        The range of the file that is covered.
    older_offset, older_size
        Where the data of the next older checkpoint is; 0 none.
    buckets, buckets_at
        The table's size, and the offset of the first bucket.
    checked
        Of each page, 1 once it was found sound.

    Raises
    ------
    CorruptionError
        There is no sound page 0 (here), or another page is broken (in any method, when it comes
        across it).

    Notes
    -----
    Costs a page to open, and a page for each first probe of a page.  Threads may probe at once.
    """

    __slots__ = (
        "buckets",
        "buckets_at",
        "checked",
        "count",
        "end",
        "offset",
        "older_offset",
        "older_size",
        "size",
        "start",
        "view",
    )

    def __init__(self, view: Any, offset: int, size: int) -> None:
        page = view[offset : offset + PAGE_SIZE] if offset > 0 else b""
        if len(page) != PAGE_SIZE or page[:8] != MAGIC or not _is_sealed(page):
            raise _corrupt("no index checkpoint where one should be", offset)
        _, buckets, count, start, end, older_offset, older_size = HEADER.unpack_from(page)
        pages = buckets // PAGE_BUCKETS
        if not pages or buckets % PAGE_BUCKETS or size != PAGE_SIZE * (1 + pages):
            raise _corrupt("an index checkpoint is of the wrong size", offset)
        if count > pages * PAGE_SLOTS or not start <= end <= offset <= len(view) - size:
            raise _corrupt("an index checkpoint contradicts itself", offset)
        self.view = view
        self.offset = offset
        self.size = size
        self.buckets = buckets
        self.count = count
        self.start = start
        self.end = end
        self.older_offset = older_offset
        self.older_size = older_size
        self.buckets_at = offset + PAGE_SIZE
        self.checked = bytearray(pages)

    def first(self, hash_: int) -> int:
        """Return the offset of the newest entry whose key may have this hash; 0 if there is none.

        Where that entry is another key's, or dead, `find` tells the others.
        """
        bucket = hash_ * self.buckets >> 32
        if not self.checked[bucket >> _PAGE_SHIFT]:
            self._check(bucket >> _PAGE_SHIFT)
        view = self.view
        at = self.buckets_at + bucket * BUCKET_SIZE
        found = view.find(_pack_hash(hash_), at, at + HASHES_SIZE)
        if found < 0:
            if not view[at + _LAST_HASH]:
                return 0
        elif not (found - at) & 3:
            offset: int = _unpack_offset(view, found + found - at + HASHES_SIZE)[0]
            return offset
        return next(self._probe(hash_), 0)

    def find(self, hash_: int) -> tuple[int, ...]:
        """Return the offsets of all entries whose key may have this hash, newest first."""
        bucket = hash_ * self.buckets >> 32
        if not self.checked[bucket >> _PAGE_SHIFT]:
            self._check(bucket >> _PAGE_SHIFT)
        view = self.view
        at = self.buckets_at + bucket * BUCKET_SIZE
        if not view[at + _LAST_HASH]:  # the path ends here
            found = view.find(_pack_hash(hash_), at, at + HASHES_SIZE)
            if found < 0:
                return ()
            # Slots of one hash follow each other: one byte of the next slot rules out most.
            if not (found - at) & 3 and view[found + 4] != hash_ & 255:
                offsets: tuple[int] = _unpack_offset(view, found + found - at + HASHES_SIZE)
                return offsets
        return tuple(self._probe(hash_))

    def _probe(self, hash_: int) -> Iterator[int]:
        """Yield the offsets of one hash along its path, up to a bucket with a free slot."""
        wanted = _pack_hash(hash_)
        first = hash_ * self.buckets >> 32
        for bucket in itertools.chain(range(first, self.buckets), range(first)):
            hashes, at = self._hashes_of(bucket)
            found = hashes.find(wanted)
            while found >= 0:
                if not found & 3:
                    yield _unpack_offset(self.view, at + HASHES_SIZE + 2 * found)[0]
                found = hashes.find(wanted, found + 1)
            if not hashes[_LAST_HASH]:
                return

    def _hashes_of(self, bucket: int) -> tuple[bytes, int]:
        """Return the bytes of a bucket's hashes, and the bucket's offset."""
        if not self.checked[bucket >> _PAGE_SHIFT]:
            self._check(bucket >> _PAGE_SHIFT)
        at = self.buckets_at + bucket * BUCKET_SIZE
        return self.view[at : at + HASHES_SIZE], at

    def _check(self, page: int) -> None:
        """See that a page of buckets is sound."""
        at = self.buckets_at + page * PAGE_SIZE
        if not _is_sealed(self.view[at : at + PAGE_SIZE]):
            raise _corrupt("a page of an index checkpoint is broken", at)
        self.checked[page] = 1

    def pairs(self) -> tuple[Any, Any]:
        """Return the hashes and the offsets of all slots used, in parallel, in no useful order.

        Arrays if `numpy_for` so many has NumPy, else lists.
        """
        for page, checked in enumerate(self.checked):
            if not checked:
                self._check(page)
        numpy = numpy_for(self.count)
        if numpy is not None:
            return self._pairs_numpy(numpy)
        hashes: list[int] = []
        offsets: list[int] = []
        for bucket_hashes, bucket_offsets in self.slots():
            used = BUCKET_SLOTS - bucket_hashes.count(0)
            hashes += bucket_hashes[:used]
            offsets += bucket_offsets[:used]
        return hashes, offsets

    def _pairs_numpy(self, np: Any) -> tuple[Any, Any]:
        data = bytearray(self.view[self.buckets_at : self.offset + self.size])
        table = np.frombuffer(data, np.uint8).reshape(-1, BUCKET_SIZE)
        hashes = table[:, :HASHES_SIZE].copy().view("<u4").ravel()
        offsets = table[:, HASHES_SIZE : HASHES_SIZE + OFFSETS_SIZE].copy().view("<u8").ravel()
        used = hashes != 0
        return hashes[used], offsets[used]

    def slots(self) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Yield the hashes and the offsets of each bucket."""
        for bucket in range(self.buckets):
            _, at = self._hashes_of(bucket)
            data = self.view[at : at + BUCKET_SIZE]
            yield _HASHES.unpack_from(data), _OFFSETS.unpack_from(data, HASHES_SIZE)

    def verify(self) -> Iterator[tuple[int, str]]:
        """Yield the offset and nature of everything in the table that is not as it should be.

        Reads all of it, in constant memory, and stops at the first page that is broken.
        """
        layout = _Layout(self)
        slot = 0
        try:
            for hashes, offsets in self.slots():
                at = self.buckets_at + slot // BUCKET_SLOTS * BUCKET_SIZE
                for pair in zip(hashes, offsets, strict=True):
                    for problem in layout.next(slot, *pair):
                        yield at, problem
                    slot += 1
        except CorruptionError as error:
            yield error.offset or 0, error.problem
            return
        for problem in layout.end():
            yield self.offset, problem


class _Layout:
    """What `Checkpoint.verify` remembers from slot to slot."""

    def __init__(self, table: Checkpoint) -> None:
        self.table = table
        self.used = 0
        self.next_slot = 0
        self.gap = False
        self.last = (-1, 0)
        self.wrapped_first: tuple[int, int] | None = None
        self.wrapped_last = (-1, 0)

    def next(self, slot: int, hash_: int, offset: int) -> Iterator[str]:
        """Take the next slot; yield what is wrong with it."""
        if not hash_:
            self.gap = True
            if offset:
                yield "a free slot has an offset"
            return
        self.used += 1
        if not hash_ & 1:
            yield "a hash is even"
        if not self.table.start <= offset < self.table.end:
            yield f"a slot points at {offset}, out of the range covered"
        home = (hash_ * self.table.buckets >> 32) * BUCKET_SLOTS
        if home > slot:
            yield from self._wrapped((hash_, -offset))
            return
        expected = max(home, self.next_slot)
        if slot != expected or (hash_, -offset) <= self.last:
            yield f"the slot of entry {offset} is out of place"
        self.next_slot = slot + 1
        self.last = max(self.last, (hash_, -offset))

    def _wrapped(self, pair: tuple[int, int]) -> Iterator[str]:
        """Take a slot that ran over the table's end to its start."""
        if self.gap or pair <= self.wrapped_last:
            yield f"the slot of entry {-pair[1]} is out of place"
        self.wrapped_first = self.wrapped_first or pair
        self.wrapped_last = max(self.wrapped_last, pair)

    def end(self) -> Iterator[str]:
        """Yield what is wrong with the table as a whole."""
        if self.used != self.table.count:
            yield f"{self.used} slots are used, and page 0 says {self.table.count}"
        if self.wrapped_first is None:
            return
        if self.next_slot != self.table.buckets * BUCKET_SLOTS or self.wrapped_first <= self.last:
            yield "slots at the table's start belong to its end"


def _is_sealed(page: bytes) -> bool:
    """Whether a page is whole and its CRC-32 right."""
    return len(page) == PAGE_SIZE and _pack_hash(crc32(page[:CRC_AT])) == page[CRC_AT:]


def _corrupt(problem: str, offset: int) -> CorruptionError:
    return CorruptionError(problem, offset=offset, invariant="L7")


def open_chain(view: Any, offset: int, size: int) -> list[Checkpoint]:
    """Return the chain of checkpoints that begins with the one given, newest first.

    Parameters
    ----------
    view
        The file, as for `Checkpoint`.
    offset, size
        Where the newest one's data is; offset 0 for none.

    Raises
    ------
    CorruptionError
        One has no sound page 0, or the ranges of two do not join.
    """
    chain: list[Checkpoint] = []
    while offset:
        table = Checkpoint(view, offset, size)
        # Ranges that join, of tables that each lie behind what they cover, cannot go round in a
        # circle unless they are empty.
        if chain and (table.end != chain[-1].start or offset >= chain[-1].offset):
            raise _corrupt("an index checkpoint does not join the next newer one", offset)
        chain.append(table)
        offset, size = table.older_offset, table.older_size
    return chain
