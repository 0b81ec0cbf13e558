"""One encoded value as a file, and a source to read it back from: the codec without a store."""

from __future__ import annotations

import mmap
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pmshelve.mmapdict.picklers.codec import encode, resolve

OFFSET = 37
"""Where the value begins in the file; not aligned to anything."""


def no_op(size: int) -> bytes:
    """Return padding, as the format's section 2 has it."""
    if size < 4:
        return {0: b"", 2: b"N0", 3: b"K\x000"}[size]
    return b"C" + bytes([size - 3]) + bytes(size - 3) + b"0"


def place(encoded: Any, offset: int = OFFSET, padding: int = 0) -> bytes:
    """Return a value's opcodes as they stand in a file from `offset` on, REDUCE included."""
    body, reduces = encoded
    out = bytearray()
    for piece in [body] if isinstance(body, bytes) else body:
        if isinstance(piece, bytes):
            out += piece
            continue
        gap = -(offset + len(out) + 9) % 64 if piece.aligned else 0
        out += no_op(65 if gap == 1 else gap) + piece.opcode + piece.size.to_bytes(8, "little")
        start = len(out)
        for chunk in [bytes(piece.size)] if piece.chunks is None else piece.chunks():
            assert memoryview(chunk).contiguous
            out += chunk
        assert len(out) - start == piece.size
    return bytes(out + no_op(padding)) + (b"R" if reduces else b"")


def load_body(opcodes: bytes) -> Any:
    """Return what stock pickle makes of a value."""
    return pickle.loads(b"\x80\x04" + opcodes + b".")


class FakeSource:
    """A file with one value in it, among other bytes."""

    def __init__(
        self, path: Path, opcodes: bytes, mmap_mode: str | None = "r+", allow_pickle: bool = True
    ) -> None:
        path.write_bytes(b"\xff" * OFFSET + opcodes + b"\xff" * 5000)
        self.path = str(path)
        self.mmap_mode = mmap_mode
        self.allow_pickle = allow_pickle
        self.keep_pickles = False
        self.stop = OFFSET + len(opcodes)
        self.reads: list[tuple[int, int]] = []
        self.map = self._map(mmap.ACCESS_WRITE)

    def _map(self, access: int) -> mmap.mmap:
        with open(self.path, "r+b") as file:
            return mmap.mmap(file.fileno(), 0, access=access)

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start <= stop
        self.reads.append((start, stop))
        return self.map[start:stop]

    def window(self, start: int, stop: int) -> tuple[Any, int]:
        assert OFFSET <= start <= stop <= self.stop
        if self.mmap_mode is None:
            return bytearray(self.map[start:stop]), 0
        if self.mmap_mode == "c":
            return self._map(mmap.ACCESS_COPY), start
        return self.map, start

    def get(self, **options: Any) -> Any:
        """Return the value."""
        start, stop, decoder = resolve(self, OFFSET, self.stop, **options)
        return self.read(start, stop) if decoder is None else decoder(self, start, stop)

    def content(self) -> bytes:
        """Return the file's bytes from the value's first on."""
        return Path(self.path).read_bytes()[OFFSET : self.stop]


def stored(path: Path, value: Any, mmap_mode: str | None = "r+", **options: Any) -> FakeSource:
    """Return a source that holds `value`."""
    return FakeSource(path, place(encode(value), padding=5), mmap_mode, **options)


def both(path: Path, value: Any) -> Iterator[Any]:
    """Yield the value as it comes back from us and from stock pickle."""
    source = stored(path, value)
    yield source.get()
    yield load_body(source.content())


def address(array: Any) -> int:
    """Return where an array's memory is."""
    return int(np.asarray(array).__array_interface__["data"][0])


def lies_in(array: Any, buffer: Any) -> bool:
    """Tell whether all of an array's memory is that of a buffer."""
    whole = np.frombuffer(buffer, np.uint8)
    start = address(array) - address(whole)
    return start >= 0 and start + np.asarray(array).nbytes <= whole.nbytes


def global_names(data: bytes) -> set[str]:
    """Return every global name in opcodes, and in the pickles they hold as bytes."""
    found: set[str] = set()
    memo: list[Any] = []
    strings: list[Any] = []
    last: Any = None
    for opcode, arg, _ in pickletools.genops(data):
        if opcode.name == "MEMOIZE":
            memo.append(last)
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
            last = None
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            strings.append(memo[arg])
        else:
            last = arg
            if isinstance(arg, str):
                strings.append(arg)
            if isinstance(arg, bytes) and arg[:2] == b"\x80\x05" and arg[-1:] == b".":
                found |= global_names(arg)
    return found
