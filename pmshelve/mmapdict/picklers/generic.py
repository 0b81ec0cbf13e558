"""Anything that pickles: a protocol 5 pickle as bytes, its large buffers beside it.

    without large buffers   pickle.loads(raw)
    with them               functools.partial(pickle.loads, buffers=[...])(raw)

*raw* is made by the standard library's pickler, except that NumPy's arrays and scalars are written
by public names (module `reduction`).  Buffers of `BUFFER_SIZE_MIN` bytes and more are handed over
where they are, and come back as views of the file; smaller ones stay in raw, and so do `bytes` and
`bytearray` objects of any size, because the pickler offers only `pickle.PickleBuffer`s to be taken
out.  Large pieces of raw are not joined: they go to the file as the pickler made them.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

from pmshelve.errors import CorruptionError, PickleRefusedError, UnsupportedTypeError
from pmshelve.mmapdict.opcodes import (
    APPENDS,
    COVERED_SIZE_MAX,
    EMPTY_DICT,
    EMPTY_LIST,
    MARK,
    NEWOBJ_EX,
    SETITEM,
    TUPLE1,
    Global,
    emit,
    emit_bytes,
    emit_str,
)
from pmshelve.mmapdict.picklers.base import Blob, Encoded, Places, Source
from pmshelve.mmapdict.picklers.plain import encode_raw
from pmshelve.mmapdict.picklers.premade import Premade

__all__ = [
    "ARRAY_RAW_HEAD",
    "BUFFERS_END",
    "BUFFERS_HEAD",
    "BUFFER_SIZE_MIN",
    "MASKED_RAW_HEAD",
    "PARTIAL_HEAD",
    "PICKLE_HEAD",
    "RAW_AT",
    "RAW_PROTO",
    "BuffersDecoder",
    "buffer_callback",
    "decode_pickle",
    "encode_buffers",
    "encode_generic",
    "encode_premade",
    "forget_writers",
    "loads",
]

BUFFER_SIZE_MIN: Final = 1024
"""Bytes from which on a buffer inside an object is kept outside its pickle."""

PICKLE_HEAD: Final = emit(Global("pickle", "loads"))
RAW_AT: Final = len(PICKLE_HEAD)
"""Where in a value without large buffers the opcode stands that pushes its raw pickle: SHORT_BINBYTES
or BINBYTES where it is a small value, followed by TUPLE1 alone."""
PARTIAL_HEAD: Final = emit(Global("functools", "partial"))
BUFFERS_HEAD: Final = (
    PARTIAL_HEAD + PICKLE_HEAD + TUPLE1 + EMPTY_DICT + emit_str("buffers") + EMPTY_LIST + MARK
)
RAW_PROTO: Final = b"\x80\x05"
ARRAY_RAW_HEAD: Final = RAW_PROTO + emit(Global("numpy", "ndarray"))
MASKED_RAW_HEAD: Final = RAW_PROTO + emit(Global("numpy.ma", "MaskedArray"))
"""How the raw pickles of top-level arrays begin; the pickler begins with a FRAME."""

BUFFERS_END: Final = APPENDS + SETITEM + NEWOBJ_EX

_UNPICKLABLE: Final = (pickle.PicklingError, TypeError, AttributeError, RecursionError)
_SHORT_HEADS: Final = tuple(PICKLE_HEAD + b"C" + bytes((size,)) for size in range(256))


# Encode -----------------------------------------------------------------------------------------


def buffer_callback(
    blobs: list[Blob], known: dict[int, Blob]
) -> Callable[[pickle.PickleBuffer], bool]:
    """Return a pickler's callback that takes large buffers out, to `blobs`.

    Parameters
    ----------
    known
        Buffers that only stand for a blob, by their `id`.
    """

    def is_in_band(buffer: pickle.PickleBuffer) -> bool:
        blob = known.pop(id(buffer), None)
        if blob is None:
            view = buffer.raw()
            if view.nbytes < BUFFER_SIZE_MIN:
                return True
            blob = Blob(view.nbytes, lambda: (view,))
        blobs.append(blob)
        return False

    return is_in_band


# A pickler's methods `dump` and `clear_memo`, and the lists in which it puts what it makes.
_Writer = tuple[Callable[[Any], None], Callable[[], None], list[bytes], list[Blob]]


class _Sink:
    """The file a pickler writes to: a list of what was written."""

    def __init__(self, parts: list[bytes]) -> None:
        self.write = parts.append


def _make_writer() -> _Writer:
    parts: list[bytes] = []
    blobs: list[Blob] = []
    known: dict[int, Blob] = {}
    callback = buffer_callback(blobs, known)
    sink: Any = _Sink(parts)
    pickler: pickle.Pickler
    if "numpy" in sys.modules:
        from pmshelve.mmapdict.picklers.reduction import PublicPickler

        pickler = PublicPickler(sink, callback, known)
    else:
        pickler = pickle.Pickler(sink, 5, buffer_callback=callback)
    return pickler.dump, pickler.clear_memo, parts, blobs


# Writers that nobody is using. Taking one out is atomic, so another thread, or an object that uses
# the store from its own __reduce__, makes itself a new one.
_spare_writers: list[_Writer] = []


def forget_writers() -> None:
    """Drop the writers made before NumPy was loaded, which do not know its types."""
    _spare_writers.clear()


def encode_generic(value: Any) -> Encoded:
    """Encode any object that pickles.

    Raises
    ------
    UnsupportedTypeError
        It does not; chained from what the pickler said.
    """
    try:
        writer = _spare_writers.pop()
    except IndexError:
        writer = _make_writer()
    dump, clear_memo, parts, blobs = writer
    try:
        dump(value)
        clear_memo()
    except _UNPICKLABLE as error:
        raise UnsupportedTypeError(
            f"an object of type {type(value).__qualname__} cannot be stored: {error}"
        ) from error
    raw = parts.pop()
    size = len(raw)
    if size > COVERED_SIZE_MAX or parts:
        # This writer is not used again: after a large value, clearing its memo table would be slow.
        pieces = encode_raw([*parts, raw])
        return encode_buffers(blobs, pieces) if blobs else [PICKLE_HEAD, *pieces, TUPLE1], True
    if blobs:
        body = encode_buffers(blobs, [emit_bytes(raw)])
        blobs.clear()
        _spare_writers.append(writer)
        return body, True
    _spare_writers.append(writer)
    if size < 256:
        return _SHORT_HEADS[size] + raw + TUPLE1, True
    return PICKLE_HEAD + emit_bytes(raw) + TUPLE1, True


def encode_buffers(blobs: list[Blob], raw: list[bytes | Blob]) -> list[bytes | Blob]:
    """Return the opcodes that call `pickle.loads` with `raw` and these buffers (less REDUCE)."""
    if len(raw) == 1 and type(raw[0]) is bytes:
        return [BUFFERS_HEAD, *blobs, BUFFERS_END + raw[0] + TUPLE1]
    return [BUFFERS_HEAD, *blobs, BUFFERS_END, *raw, TUPLE1]


def encode_premade(value: Premade) -> Encoded:
    """Encode an object whose pickle is there already."""
    if value.buffers:
        blobs = [_blob(buffer) for buffer in value.buffers]
        return encode_buffers(blobs, encode_raw([value.raw])), True
    if len(value.raw) > COVERED_SIZE_MAX:
        return [PICKLE_HEAD, *encode_raw([value.raw]), TUPLE1], True
    return PICKLE_HEAD + emit_bytes(bytes(value.raw)) + TUPLE1, True


def _blob(buffer: Any) -> Blob:
    return Blob(len(buffer), lambda: (buffer,))


# Decode -----------------------------------------------------------------------------------------


def check_allowed(source: Source) -> None:
    """Raise PickleRefusedError where the unpickler must not run."""
    if not source.allow_pickle:
        raise PickleRefusedError(
            "reading the value would run the unpickler",
            source.path,
            hint="open the file with allow_pickle=True if you trust whoever wrote it",
        )


def loads(source: Source, data: Any, offset: int, buffers: Any = None) -> Any:
    """Run the unpickler, if it may be run.

    Raises
    ------
    PickleRefusedError
        The source does not allow it.
    CorruptionError
        The data is no pickle.
    """
    if source.keep_pickles:
        return Premade(data, buffers or ())
    check_allowed(source)
    try:
        return pickle.loads(data, buffers=buffers)
    except (pickle.UnpicklingError, EOFError) as error:
        # An object may raise EOFError while it is loaded; the unpickler's own has this text.
        if type(error) is EOFError and str(error) != "Ran out of input":
            raise
        raise CorruptionError(
            f"the value cannot be unpickled: {error}", source.path, offset=offset
        ) from error


def decode_pickle(source: Source, start: int, stop: int) -> Any:
    """Return the object of a value without large buffers."""
    if (
        stop - start <= COVERED_SIZE_MAX
        or source.mmap_mode not in ("r", "r+")
        or source.keep_pickles  # which outlive this call
    ):
        return loads(source, source.read(start, stop), start)
    buffer, position = source.window(start, stop)
    with memoryview(buffer) as view, view[position : position + stop - start] as raw:
        return loads(source, raw, start)


class BuffersDecoder:
    """Decodes values with large buffers; made once per value.

    Parameters
    ----------
    raw
        Offsets of the pickle.
    buffers
        Offset and size of each buffer.
    """

    __slots__ = ("_buffers", "_raw")

    def __init__(self, raw: tuple[int, int], buffers: Places) -> None:
        self._raw = raw
        self._buffers = buffers

    def __call__(self, source: Source, start: int, stop: int) -> Any:
        """Return the object, its buffers being views of [start, stop) of the file."""
        if not source.keep_pickles:
            check_allowed(source)
        buffer, position = source.window(start, stop)
        view = memoryview(buffer)
        if source.mmap_mode == "r":
            view = view.toreadonly()
        shift = position - start
        views = [view[offset + shift : offset + shift + size] for offset, size in self._buffers]
        return loads(source, source.read(*self._raw), self._raw[0], views)
