"""The picklers of the package, for programs that list them or derive from them; and the codec.

A store with these three alone encodes and decodes through the tables of module `codec` and never
calls them. Picklers of the user's own take part in the order of their priorities.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from pmshelve.errors import CorruptionError, UnsupportedTypeError
from pmshelve.mmapdict.opcodes import REDUCE, pad
from pmshelve.mmapdict.picklers.base import (
    BasePickler,
    Body,
    Encoded,
    FileSource,
    Foreign,
    Resolved,
    Source,
)
from pmshelve.mmapdict.picklers.codec import encode, resolve
from pmshelve.mmapdict.picklers.empty import EmptyNDArray
from pmshelve.mmapdict.picklers.generic import encode_generic
from pmshelve.mmapdict.picklers.plain import ENCODERS as PLAIN_ENCODERS

__all__ = ["ArrayPickler", "Codec", "GenericPickler", "MaskedArrayPickler", "discover"]


class _BuiltinPickler(BasePickler):
    """The extension protocol over the codec's tables."""

    _decoder_kind: str | None = None

    def encode(self, obj: Any) -> Encoded:
        """Return the opcodes of a value (see `codec.encode`)."""
        return encode(obj)

    def resolve(self, source: Source, start: int, stop: int, own: bool) -> Resolved | None:
        """Find out what value this is (see `codec.resolve`); None if it is not this pickler's."""
        resolved = resolve(source, start, stop, own=own)
        kind = getattr(resolved[2], "kind", None)
        return resolved if kind == self._decoder_kind else None

    def is_valid(self, offset: int, length: int) -> bool:
        source = FileSource(self._file)
        try:
            return self.resolve(source, offset, offset + length, True) is not None
        except ValueError:
            return False

    def read(self, offset: int, length: int) -> tuple[Any, int]:
        source = FileSource(self._file)
        resolved = self.resolve(source, offset, offset + length, True)
        if resolved is None:
            raise CorruptionError(f"{type(self).__name__} does not read this value", offset=offset)
        start, stop, decoder = resolved
        value = source.read(start, stop) if decoder is None else decoder(source, start, stop)
        return value, length

    def write(self, obj: Any, offset: int, memo_start_idx: int = 0) -> tuple[int, int]:
        body, reduces = self.encode(obj)
        file = self._file
        position = file.tell()
        try:
            file.seek(offset)
            end = _write_body(file, body, offset)
            if reduces:
                end += file.write(REDUCE)
        finally:
            file.seek(position)
        return end - offset, memo_start_idx


def _write_body(file: Any, body: Body, offset: int) -> int:
    """Write a body at the file's position, which is `offset`; return the offset behind it."""
    for piece in [body] if isinstance(body, bytes) else body:
        if isinstance(piece, bytes):
            offset += _write(file, piece)
            continue
        gap = -(offset + 9) % 64 if piece.aligned else 0
        header = pad(65 if gap == 1 else gap) + piece.opcode + piece.size.to_bytes(8, "little")
        offset += _write(file, header) + piece.size
        for chunk in piece.chunks() if piece.chunks else ():
            _write(file, chunk)
        file.seek(offset)
    return offset


def _write(file: Any, data: Any) -> int:
    with memoryview(data) as view:
        written = 0
        while written < view.nbytes:  # an unbuffered file may take less than it is given
            written += file.write(view[written:])
        return written


class ArrayPickler(_BuiltinPickler):
    """Arrays of NumPy, and `EmptyNDArray`: written as they are, read as `numpy.memmap`."""

    priority = 100
    _decoder_kind = "array"

    def is_picklable(self, obj: Any) -> bool:
        """Return whether `obj` is an array of plain data (not of a subclass, not of objects)."""
        if type(obj) is EmptyNDArray:
            return True
        numpy = sys.modules.get("numpy")
        if numpy is None or type(obj) not in (numpy.ndarray, numpy.memmap):
            return False
        from pmshelve.mmapdict.picklers.dtypes import dtype_spec

        return dtype_spec(obj.dtype) is not None


class MaskedArrayPickler(_BuiltinPickler):
    """Masked arrays of NumPy: data and mask mapped, fill value and hard mask kept."""

    priority = 100
    _decoder_kind = "masked"

    def is_picklable(self, obj: Any) -> bool:
        """Return whether `obj` is a masked array of plain data."""
        if "numpy.ma" not in sys.modules:
            return False
        from pmshelve.mmapdict.picklers.masked import is_mappable

        return is_mappable(obj)


class GenericPickler(_BuiltinPickler):
    """Everything: plain values by an opcode each, all others by the standard library's pickle."""

    priority = -100

    def is_picklable(self, obj: Any) -> bool:
        """Return True; what does not pickle is found out by trying."""
        return True

    def encode(self, obj: Any) -> Encoded:
        """Return the opcodes of a value; of an array too, as of any other object."""
        return encode(obj) if type(obj) in PLAIN_ENCODERS else encode_generic(obj)

    def resolve(self, source: Source, start: int, stop: int, own: bool) -> Resolved | None:
        """Find out what value this is; an array is then like any other object."""
        return resolve(source, start, stop, own=own, literal=False)


# All together -----------------------------------------------------------------------------------

_BUILTIN: Final = (ArrayPickler, MaskedArrayPickler, GenericPickler)


def discover(parent: Any, picklers: Iterable[type[BasePickler]] | None = None) -> list[BasePickler]:
    """Return picklers for a store, in the order in which they are tried.

    Parameters
    ----------
    parent
        The store.
    picklers
        Their classes; None for the built-in ones and all subclasses of `BasePickler` there are.
    """
    classes = _all_classes() if picklers is None else list(picklers)
    made = [make(parent) for make in classes]
    return sorted(made, key=lambda pickler: -pickler.priority)


def _all_classes() -> list[type[BasePickler]]:
    found: dict[type[BasePickler], None] = dict.fromkeys(_BUILTIN)
    waiting = [BasePickler]
    while waiting:
        subclasses = waiting.pop(0).__subclasses__()
        waiting += subclasses
        found.update(dict.fromkeys(subclasses))
    del found[_BuiltinPickler]
    return list(found)


class Codec:
    """How one store encodes and decodes its values.

    Attributes
    ----------
    encode
        Takes a value; returns `Encoded`, or `Foreign` where a pickler of the user's writes it.
    resolve
        Takes a source, two offsets and `own`; returns `Resolved` (see module `codec`).
    picklers
        In the order in which they are tried.
    plain
        Whether they are just the built-in ones.

    Raises
    ------
    UnsupportedTypeError
        From `encode`: no pickler takes the value, or it cannot be pickled.
    CorruptionError
        From `resolve`: no pickler reads the value.
    """

    __slots__ = ("encode", "picklers", "plain", "resolve")

    def __init__(self, parent: Any, picklers: Iterable[type[BasePickler]] | None = None) -> None:
        self.picklers = discover(parent, picklers)
        self.encode: Callable[[Any], Encoded | Foreign] = encode
        self.resolve: Callable[..., Resolved] = resolve
        self.plain = True
        if tuple(type(pickler) for pickler in self.picklers) != _BUILTIN:
            self.plain = False
            # Not bound methods: the store must not be kept alive by a cycle.
            self.encode = functools.partial(_encode_with, self.picklers)
            self.resolve = functools.partial(_resolve_with, self.picklers)


def _encode_with(picklers: list[BasePickler], value: Any) -> Encoded | Foreign:
    for pickler in picklers:
        if pickler.is_picklable(value):
            if isinstance(pickler, _BuiltinPickler) and type(pickler) in _BUILTIN:
                return pickler.encode(value)
            return Foreign(pickler, value)
    raise UnsupportedTypeError(
        f"no pickler of this store takes an object of type {type(value).__qualname__}"
    )


def _resolve_with(
    picklers: list[BasePickler], source: Source, start: int, stop: int, *, own: bool = True
) -> Resolved:
    for pickler in picklers:
        if isinstance(pickler, _BuiltinPickler) and type(pickler) in _BUILTIN:
            resolved = pickler.resolve(source, start, stop, own)
            if resolved is not None:
                return resolved
        elif pickler.is_valid(start, stop - start):
            return start, stop, functools.partial(_read_with, pickler)
    raise CorruptionError("no pickler of this store reads the value", source.path, offset=start)


def _read_with(pickler: BasePickler, _source: Source, start: int, stop: int) -> Any:
    return pickler.read(start, stop - start)[0]
