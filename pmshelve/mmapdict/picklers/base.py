"""What turns a value into opcodes and back: the parts all picklers share.

A value is *encoded* to `(body, reduces)`: its opcodes in order, without the padding and the REDUCE
at the entry's end, which depend on where the entry goes. The body is `bytes` for most values; it is
a list of `bytes` and `Blob` when the value has data that goes to the file as it is.

A value is *resolved* to `(start, stop, decoder)`: everything about it that can be found out once.
The value is then `decoder(source, start, stop)` as often as it is wanted, or, where the decoder is
None, the bytes from start to stop.
"""

from __future__ import annotations

import mmap
import os
import pickle
import weakref
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple, Protocol

from pmshelve.mmapdict.opcodes import BYTEARRAY8
from pmshelve.mmapdict.picklers.memo import renumber_memo
from pmshelve.storage import file as disk

__all__ = [
    "BasePickler",
    "Blob",
    "Body",
    "Decoder",
    "Encoded",
    "FileSource",
    "Foreign",
    "Places",
    "Resolved",
    "Source",
]


class Blob:
    """Data that goes to the file as it is: behind an opcode and its 8-byte size, outside the crc.

    Attributes
    ----------
    opcode
        BYTEARRAY8, BINBYTES8 or BINUNICODE8.
    size
        Of the data, in bytes.
    aligned
        Whether the data starts at a multiple of 64 in the file.
    chunks
        Returns the data as flat buffers of bytes, in order, `size` bytes together. They refer to
        the value's own memory, or are made one at a time: write each before asking for the next.
        None: the space is allocated and nothing written to it.
    reserve
        Whether disk blocks are to be reserved for it.
    """

    __slots__ = ("aligned", "chunks", "opcode", "reserve", "size")

    def __init__(
        self,
        size: int,
        chunks: Callable[[], Iterable[Any]] | None,
        opcode: bytes = BYTEARRAY8,
        aligned: bool = True,
        reserve: bool = False,
    ) -> None:
        self.size = size
        self.chunks = chunks
        self.opcode = opcode
        self.aligned = aligned
        self.reserve = reserve


class Source(Protocol):
    """Where values are read from: a file, and how its arrays are to come back."""

    @property
    def path(self) -> str | None:
        """Absolute path of the file, or None."""

    @property
    def mmap_mode(self) -> str | None:
        """'r+' and 'r': views of the file; 'c': of a private map of it; None: in memory."""

    @property
    def allow_pickle(self) -> bool:
        """Whether the unpickler may run."""

    @property
    def keep_pickles(self) -> bool:
        """Whether values that need the unpickler are handed out as `Premade`, and it is not run."""

    def read(self, start: int, stop: int) -> bytes:
        """Return the file's bytes from one offset to another."""

    def window(self, start: int, stop: int) -> tuple[Any, int]:
        """Return a buffer that holds these bytes of the file, and the place of the first in it.

        The buffer is an `mmap`, or a `bytearray` where the mode asks for a copy. With mode 'r' it
        may be writable: views of it are then made read-only by whoever asked.
        """


Decoder = Callable[[Source, int, int], Any]
Resolved = tuple[int, int, "Decoder | None"]
Places = list[tuple[int, int]]
"""Offset and size of each buffer."""

Body = bytes | list["bytes | Blob"]
Encoded = tuple[Body, bool]


class Foreign(NamedTuple):
    """A value to be written by a pickler from outside the package."""

    pickler: BasePickler
    value: Any


class FileSource:
    """A binary file object as a `Source`: for picklers that are called on their own.

    The file object's position is kept.
    """

    allow_pickle = True
    keep_pickles = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        name = getattr(file, "name", None)
        self.path = os.path.abspath(os.fsdecode(name)) if isinstance(name, str | bytes) else None
        self.mmap_mode = "r+" if file.writable() else "r"

    def read(self, start: int, stop: int) -> bytes:
        """Return the file's bytes from one offset to another."""
        position = self._file.tell()
        try:
            self._file.seek(start)
            return self._file.read(stop - start)
        finally:
            self._file.seek(position)

    def window(self, start: int, stop: int) -> tuple[Any, int]:
        """Return a new map that holds these bytes, and the place of the first in it."""
        self._file.flush()
        base = start - start % mmap.ALLOCATIONGRANULARITY
        writable = self.mmap_mode == "r+"
        shared = disk.map_file(self._file.fileno(), stop - base, writable=writable, offset=base)
        return shared, start - base


class BasePickler:
    """Base class of picklers: subclass it to store some objects in a form of your own.

    A store creates one of each subclass it finds (or of those it was given) and tries them in the
    order of falling `priority`: to write a value, the first whose `is_picklable` says True; to read
    one, the first whose `is_valid` says True. Override these two, `read` and `write`.

    Parameters
    ----------
    parent_object
        The store; only a weak reference to it is kept.

    Attributes
    ----------
    priority
        Of the built-in ones: 100 for arrays and masked arrays, -100 for everything else.

    Notes
    -----
    What `write` writes must be the body of a pickle (no PROTO, FRAME or STOP) which leaves one
    object on the stack, so that the file stays a pickle.
    """

    priority = 0

    def __init__(self, parent_object: Any) -> None:
        self._parent_object = weakref.ref(parent_object)

    @property
    def _file(self) -> Any:
        parent = self._parent_object()
        if parent is None:
            raise ReferenceError("the store of this pickler is gone")
        return parent._file  # noqa: SLF001  # mmappickle's picklers use it by this name

    def is_valid(self, offset: int, length: int) -> bool:
        """Return whether the `length` bytes at `offset` are a value this pickler reads."""
        return False

    def is_picklable(self, obj: Any) -> bool:
        """Return whether this pickler writes `obj`."""
        return False

    def read(self, offset: int, length: int) -> tuple[Any, int]:
        """Return the object at `offset`, and the number of bytes read."""
        raise NotImplementedError(f"{type(self).__name__} does not read")

    def write(self, obj: Any, offset: int, memo_start_idx: int = 0) -> tuple[int, int]:
        """Write `obj` to `self._file` at `offset`.

        Returns
        -------
        The number of bytes written, and the largest memo index used (0 for none).
        """
        raise NotImplementedError(f"{type(self).__name__} does not write")

    def _pickle_load_fix(self, data: bytes) -> Any:
        """Return the object that the body of a pickle stands for."""
        return pickle.loads(pickle.PROTO + b"\4" + data + pickle.STOP)

    def _pickle_dump_fix(self, obj: Any, memo_start_idx: int = 0) -> tuple[bytes, int]:
        """Return `obj` as the body of a pickle, with memo indices from `memo_start_idx` on.

        Returns
        -------
        The opcodes (no PROTO, FRAME or STOP), and the first memo index that is free behind them.
        """
        return renumber_memo(pickle.dumps(obj, 4), memo_start_idx)
