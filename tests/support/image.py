"""Files made entry by entry, so that a test can break exactly one thing."""

from __future__ import annotations

import struct
from typing import Any

from pmshelve.mmapdict import frame
from pmshelve.mmapdict.checkpoint import hash_key
from pmshelve.mmapdict.checkpoint_writer import build
from pmshelve.mmapdict.frame import LIVE, TERMINATOR
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.generic import PICKLE_HEAD


class Image:
    """The bytes of an mmapdict file under construction.

    Attributes
    ----------
    data
        What there is so far; a test may change it at will.
    places
        Start and stop of each entry added, by name.
    """

    def __init__(self, *, superblock: bool = True) -> None:
        self.superblock = superblock
        self.data = bytearray(
            frame.encode_fresh(bytes(range(16))) if superblock else frame.encode_header(7)
        )
        self.places: dict[str, tuple[int, int]] = {}
        self.live_count = 0
        self.dead_size = 0

    @property
    def end(self) -> int:
        return len(self.data)

    def append(self, name: str, data: bytes, flag: int = LIVE) -> None:
        """Add the bytes of an entry, which `flag` makes live or not."""
        self.places[name] = (self.end, self.end + len(data))
        self.data += data[:-2] + bytes((flag,)) + data[-1:]
        if flag == LIVE:
            self.live_count += 1
        else:
            self.dead_size += len(data)

    def add(self, key: str, body: bytes = b"K\x01", flag: int = LIVE) -> None:
        """Add an entry of pmshelve with these value opcodes."""
        stored, prefix = frame.encode_key(key)
        self.append(key, frame.encode_entry(stored, prefix + body, False, self.end), flag)

    def add_generic(self, key: str, raw: bytes, flag: int = LIVE) -> None:
        """Add an entry whose value is `pickle.loads(raw)`."""
        stored, prefix = frame.encode_key(key)
        body = prefix + PICKLE_HEAD + b"C" + bytes((len(raw),)) + raw + b"\x85"
        data = bytearray(frame.encode_entry(stored, body, True, self.end))
        if flag != LIVE:
            data[-15] = ord("0")
        self.append(key, bytes(data), flag)

    def add_blob(self, key: str, data: bytes, opcode: bytes = b"\x96", flag: int = LIVE) -> None:
        """Add an entry whose value is one blob."""
        stored = key.encode()
        self._lay_out(key, stored, data, opcode, live=flag == LIVE)

    def add_foreign(self, key: str, body: bytes, memo: int = 1, flag: int = LIVE) -> None:
        """Add an entry as mmappickle writes them."""
        stored = key.encode()
        value = b"\x8c" + bytes((len(stored),)) + stored + body
        value += b"J" + struct.pack("<i", memo) + b"0\x880"
        self.append(key, b"\x95" + struct.pack("<Q", len(value)) + value, flag)

    def add_batch(self, count: int, size: int) -> None:
        """Add a batch header that announces `count` entries of `size` bytes together."""
        own = len(frame.encode_batch_entry(self.end, 0, 0))
        data = frame.encode_batch_entry(self.end, own + size, count)
        self.append("\0batch", data, frame.DEAD)

    def add_index(self, *, without: tuple[str, ...] = (), extra: tuple[Any, ...] = ()) -> None:
        """Add a checkpoint of the live entries so far and point the superblock to it."""
        pairs = [
            (hash_key(key.encode("utf-8", "surrogatepass")), start)
            for key, (start, _) in self.places.items()
            if key not in without and not key.startswith("\0")
        ]
        pairs += extra
        end = self.end
        table = build([h for h, _ in pairs], [o for _, o in pairs], start=24, end=end)
        offset = self._lay_out("\0index", frame.INDEX_KEY, bytes(table), b"\x96", live=False)
        pointer = frame.encode_pointer(offset, len(table), end)
        self.data[frame.INDEX_OFFSET : frame.INDEX_OFFSET + 28] = pointer

    def _lay_out(self, name: str, stored: bytes, data: bytes, opcode: bytes, *, live: bool) -> int:
        blob = Blob(len(data), lambda: [data], opcode, aligned=opcode == b"\x96")
        layout = frame.lay_out(stored, [blob], False, self.end, live=live)
        parts = [part if isinstance(part, bytes) else data for part in layout.parts]
        self.append(name, b"".join(parts), LIVE if live else frame.DEAD)
        return layout.blobs[0][0]

    def recrc(self, key: str) -> None:
        """Give an entry that was changed a right crc (small values only)."""
        start, stop = self.places[key]
        crc = frame.crc32(bytes(self.data[start : stop - 14]))
        self.data[stop - 13 : stop - 9] = struct.pack("<I", crc)

    def finish(self, *, settled: bool = True) -> bytes:
        """Return all bytes of the file."""
        if self.superblock:
            stamp = 0 if settled else 1
            self.data[80:100] = struct.pack("<iQQ", stamp, self.live_count, self.dead_size)
        return bytes(self.data) + TERMINATOR


def sample() -> Image:
    """Return a file with entries of every kind."""
    image = Image()
    image.add("int")
    image.add("text", b"\x8c\x03abc")
    image.add("old", flag=frame.REPLACED)
    image.add_generic("object", b"\x80\x05]\x94(K\x01K\x02e.")
    image.add_generic("dead object", b"\x80\x05]\x94.", flag=frame.DEAD)
    image.add("k" * 300, b"K\x05")
    image.add("\ud800", b"K\x06")
    image.add_blob("array", bytes(range(100)))
    image.add_blob("long", b"long" * 20, b"\x8e")
    image.add_foreign("foreign", b"]q\x01(K\x01h\x01e", memo=1)
    image.add("old", b"N")
    image.add_index()
    start = image.end
    image.add_batch(2, 0)
    header_end = image.end
    image.add("first", b"K\x01")
    image.add("second", b"K\x02")
    header = Image()
    header.data = image.data[:start]
    header.add_batch(2, image.end - header_end)
    image.data[start:header_end] = header.data[start:]
    return image
