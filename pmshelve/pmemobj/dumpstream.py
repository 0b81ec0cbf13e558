"""The stream that `dump` writes and `load` reads: bytes in, records out.  (docs/format-pmemobj.md)

    offset  size  field
         0     8  magic    b"PMSHDUMP"
         8     4  version  1
        12     4  crc      CRC-32 of the 12 bytes before
        16        chunks   size of the payload (4), crc (4), payload
                  end      a chunk without payload

A chunk's crc is the CRC-32 of its payload that begins with the crc of the chunk before (the header's,
for the first), so none can be missing or in another place.  The payloads together are one sequence of
records, which may go over from one chunk into the next:

    code  record    fields                                        defines
      C   class     its name                                      the next class
      S   scalar    value                                         the next object
      M   mutable   class                                         the next object, empty
      T   tuple     class, count, values                          the next object
      F   frozenset class, count, values                          the next object
      A   array     class, dtype, order, shape, size, data        the next object
      X   fill      object, count, values: appended to what is there; of a dict, keys and values by turns
      R   root      value; the last record

A count, size, class or object is 8 bytes; classes and objects are numbered from 0 in the order of their
definition.  A value is its code, and

    N T F none, true, false             i  int of 64 bits (8)         d  float (8)
    c     complex (16)                  I  int: size, bytes           p  pickle: size, bytes
    s b   str, bytes: size (1), bytes   S B  the same: size, bytes    r  object: its number

Little-endian; text is UTF-8 ("surrogatepass"), a class's name "module:qualname".  Classes 0 to 6 are
defined from the start: PersistentList, Dict, Tuple, Set, FrozenSet, Array and Object.
"""

from __future__ import annotations

import struct
from typing import IO, Any, NoReturn
from zlib import crc32

from pmshelve.errors import CorruptionError, NotAStoreError, VersionError

__all__ = ["BUILTIN_NAMES", "MAGIC", "Source", "Target"]

MAGIC = b"PMSHDUMP"
VERSION = 1

BUILTIN_NAMES = (
    "PersistentList",
    "PersistentDict",
    "PersistentTuple",
    "PersistentSet",
    "PersistentFrozenSet",
    "PersistentArray",
    "PersistentObject",
)

_CHUNK_SIZE = 1 << 16
_CHUNK_MAX = 1 << 20
_HEAD = struct.Struct("<8sI")
_CHUNK = struct.Struct("<II")
_U64 = struct.Struct("<Q")
_pack = _U64.pack


class Target:
    """Writes records to a file.

    Parameters
    ----------
    file
        Has `write`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        head = _HEAD.pack(MAGIC, VERSION)
        self._crc = crc32(head)
        file.write(head + self._crc.to_bytes(4, "little"))
        self._parts: list[bytes] = []
        self._size = 0
        self._written = 0

    @property
    def position(self) -> int:
        """Bytes of records so far."""
        return self._written + self._size

    def put(self, *parts: bytes) -> None:
        """Write bytes of a record."""
        self._parts += parts
        self._size += sum(map(len, parts))
        if self._size >= _CHUNK_SIZE:
            self._flush()

    def numbers(self, *numbers: int) -> None:
        """Write counts, sizes, or numbers of classes and objects."""
        self.put(*map(_pack, numbers))

    def text(self, text: str) -> None:
        """Write a size and the text."""
        raw = text.encode("utf-8", "surrogatepass")
        self.put(_pack(len(raw)), raw)

    def _flush(self) -> None:
        whole = memoryview(b"".join(self._parts))
        for first in range(0, len(whole), _CHUNK_MAX):
            payload = whole[first : first + _CHUNK_MAX]
            self._crc = crc32(payload, self._crc)
            self._file.write(_CHUNK.pack(len(payload), self._crc))
            self._file.write(payload)
        self._parts.clear()
        self._written += self._size
        self._size = 0

    def end(self) -> None:
        """Write the end of the stream."""
        self._flush()
        self._file.write(_CHUNK.pack(0, self._crc))


def encode_value(value: Any) -> bytes | None:
    """Return the bytes of a value of the exact types that need no definition; None for others."""
    encode = _ENCODERS.get(type(value))
    return None if encode is None else encode(value)


def encode_pickle(content: bytes) -> bytes:
    """Return the bytes of a value that is stored as a pickle."""
    return b"p" + _pack(len(content)) + content


def encode_reference(number: int) -> bytes:
    """Return the bytes of a value that is an object of this stream."""
    return b"r" + _pack(number)


def _encode_int(value: int) -> bytes:
    if -(1 << 63) <= value < 1 << 63:
        return b"i" + value.to_bytes(8, "little", signed=True)
    size = value.bit_length() // 8 + 1
    return b"I" + _pack(size) + value.to_bytes(size, "little", signed=True)


def _encode_str(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    size = len(raw)
    return (b"s%c" % size if size < 256 else b"S" + _pack(size)) + raw


def _encode_bytes(value: bytes) -> bytes:
    size = len(value)
    return (b"b%c" % size if size < 256 else b"B" + _pack(size)) + value


_ENCODERS: dict[type, Any] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"T" if value else b"F",
    int: _encode_int,
    float: lambda value: b"d" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: _encode_str,
    bytes: _encode_bytes,
}


class Pickled:
    """A value of a stream that is a pickle, not loaded."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content


class Reference:
    """A value of a stream that is an object defined before."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Source:
    """Reads records from a file.

    Parameters
    ----------
    file
        Has `read`.

    Raises
    ------
    NotAStoreError, VersionError
        The file holds no such stream, or one of another version.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._path = getattr(file, "name", None)
        head = self._read(_HEAD.size + 4)
        self._crc = crc32(head[: _HEAD.size])
        if head[: len(MAGIC)] != MAGIC:
            raise NotAStoreError("not a dump of a pool", self._path)
        version = int.from_bytes(head[8:12], "little")
        if head[_HEAD.size :] != self._crc.to_bytes(4, "little"):
            self.fail("the header is damaged")
        if version != VERSION:
            raise VersionError(
                f"dump format {version} is not known", self._path, hint="use a newer pmshelve"
            )
        self._chunk = b""
        self._at = 0
        self.taken = len(head)
        """Bytes of the file that were read."""

    def fail(self, problem: str) -> NoReturn:
        """Raise what says that the stream is damaged."""
        raise CorruptionError(f"the dump is damaged: {problem}", self._path, invariant="X1")

    def _read(self, size: int) -> bytes:
        data = self._file.read(size)
        while len(data) < size:
            more = self._file.read(size - len(data))
            if not more:
                break
            data += more
        return data

    def take(self, size: int) -> bytes:
        """Return the next bytes of the records."""
        at = self._at
        end = at + size
        if end <= len(self._chunk):
            self._at = end
            return self._chunk[at:end]
        parts = [self._chunk[at:]]
        missing = size - len(parts[0])
        while missing:
            self._next_chunk()
            part = self._chunk[:missing]
            parts.append(part)
            missing -= len(part)
            self._at = len(part)
        return b"".join(parts)

    def _next_chunk(self) -> None:
        head = self._read(_CHUNK.size)
        if len(head) < _CHUNK.size:
            self.fail("it ends too early")
        size, crc = _CHUNK.unpack(head)
        if not 0 < size <= _CHUNK_MAX:
            self.fail("it ends in the middle of a record" if not size else "a chunk is too long")
        self._chunk = self._read(size)
        self._at = 0
        self._crc = crc32(self._chunk, self._crc)
        self.taken += len(head) + len(self._chunk)
        if len(self._chunk) < size or self._crc != crc:
            self.fail("a chunk's checksum does not agree")

    def end(self) -> None:
        """Make sure that the stream ends here."""
        if self._at != len(self._chunk) or self._read(_CHUNK.size) != _CHUNK.pack(0, self._crc):
            self.fail("it does not end where it should")

    def number(self) -> int:
        """Return a count, size, or number of a class or object."""
        value: int = _U64.unpack(self.take(8))[0]
        return value

    def sized(self) -> bytes:
        """Return bytes whose size stands before them."""
        return self.take(self.number())

    def text(self) -> str:
        """Return text whose size stands before it."""
        return self._decode(self.sized())

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            self.fail("a text is no UTF-8")

    def value(self) -> Any:  # noqa: C901 - one line a code
        """Return a value: a plain one, or a `Reference` or `Pickled`."""
        # In order of frequency.
        code = self.take(1)
        if code == b"s":
            return self._decode(self.take(self.take(1)[0]))
        if code == b"i":
            return int.from_bytes(self.take(8), "little", signed=True)
        if code == b"r":
            return Reference(self.number())
        if code == b"S":
            return self.text()
        if code == b"b":
            return self.take(self.take(1)[0])
        if code == b"d":
            return struct.unpack("<d", self.take(8))[0]
        if code == b"N":
            return None
        if code in (b"T", b"F"):
            return code == b"T"
        if code == b"B":
            return self.sized()
        if code == b"I":
            return int.from_bytes(self.sized(), "little", signed=True)
        if code == b"c":
            return complex(*struct.unpack("<dd", self.take(16)))
        if code == b"p":
            return Pickled(self.sized())
        return self.fail(f"no value has code {code!r}")
