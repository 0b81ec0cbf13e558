"""NumPy dtypes as literals, exactly, and back.

    dtype                   literal
    scalar, S, U, V, M8     its `str`, such as '<f8', '|S5', '<M8[25s]'
    structured              dict of names, formats, offsets, titles (if any), itemsize, aligned
    field of a shape        tuple of the two above and the shape

Byte order, units, offsets, gaps, overlaps, titles and alignment are kept; metadata is not.  A dtype
that neither says exactly (of Python objects, of variable-width strings, defined by users,
`numpy.record`, an aligned structure around one that is not) has no literal.

This module imports NumPy; it is loaded when the program has, or when an array is read.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy

from pmshelve.errors import CorruptionError

__all__ = ["dtype_spec", "load_dtype"]

_DEPTH_MAX: Final = 32
"""Levels of nested fields."""

_BUILTIN_COUNT: Final = 24
"""NumPy's own scalar types have the numbers below this, in every version."""

_NAME: Final = re.compile(r"[<>|][biufcmMSUV][0-9]{1,10}(\[[0-9]{0,10}[A-Za-zμ]{1,2}\])?")
_KEYS: Final = frozenset(("names", "formats", "offsets", "titles", "itemsize", "aligned"))


def dtype_spec(dtype: numpy.dtype[Any], depth: int = 0) -> Any:
    """Return the literal that `numpy.dtype` makes into exactly `dtype`, or None."""
    if dtype.hasobject or depth > _DEPTH_MAX:
        return None
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        spec = dtype_spec(base, depth + 1)
        return None if spec is None else (spec, shape)
    if dtype.names is None:
        exact = 0 <= dtype.num < _BUILTIN_COUNT and (dtype.kind != "V" or dtype.type is numpy.void)
        return dtype.str if exact else None
    return _structured_spec(dtype, depth) if dtype.type is numpy.void else None


def _structured_spec(dtype: Any, depth: int) -> dict[str, Any] | None:
    fields = [dtype.fields[name] for name in dtype.names]
    formats = [dtype_spec(field[0], depth + 1) for field in fields]
    titles = [field[2] if len(field) > 2 else None for field in fields]
    if None in formats or any(not isinstance(title, str | None) for title in titles):
        return None
    if dtype.isalignedstruct and not all(_is_aligned(field[0]) for field in fields):
        return None
    spec: dict[str, Any] = {
        "names": list(dtype.names),
        "formats": formats,
        "offsets": [field[1] for field in fields],
    }
    if any(title is not None for title in titles):
        spec["titles"] = titles
    spec["itemsize"] = dtype.itemsize
    spec["aligned"] = dtype.isalignedstruct
    return spec


def _is_aligned(dtype: Any) -> bool:
    """Whether a field may be in an aligned structure, which NumPy makes its structures be too."""
    base = dtype.base
    return base.names is None or bool(base.isalignedstruct)


def load_dtype(spec: Any) -> numpy.dtype[Any]:
    """Return the dtype of a literal that came from a file.

    Raises
    ------
    CorruptionError
        `dtype_spec` makes no such literal.
    """
    if not _is_spec(spec, 0):
        raise CorruptionError("a dtype is not written as it should be")
    try:
        dtype: numpy.dtype[Any] = numpy.dtype(spec)
    except (TypeError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise CorruptionError(f"a dtype is not one: {error}") from error
    if dtype.hasobject or dtype.subdtype is not None:
        raise CorruptionError("a dtype is not one of plain data")
    return dtype


def _is_spec(spec: Any, depth: int) -> bool:
    if type(spec) is str:
        return _NAME.fullmatch(spec) is not None
    if depth > _DEPTH_MAX:
        return False
    if type(spec) is tuple:
        return len(spec) == 2 and _is_shape(spec[1]) and _is_spec(spec[0], depth + 1)
    return type(spec) is dict and spec.keys() <= _KEYS and _is_structure(spec, depth)


def _is_structure(spec: dict[str, Any], depth: int) -> bool:
    formats = spec.get("formats")
    if type(formats) is not list or not all(_is_spec(item, depth + 1) for item in formats):
        return False
    count = len(formats)
    return (
        _is_list(spec.get("names"), count, str)
        and _is_list(spec.get("offsets"), count, int)
        and _is_list(spec.get("titles", [None] * count), count, str, type(None))
        and type(spec.get("itemsize")) is int
        and type(spec.get("aligned")) is bool
    )


def _is_list(value: Any, count: int, *types: type) -> bool:
    return type(value) is list and len(value) == count and all(type(i) in types for i in value)


def _is_shape(value: Any) -> bool:
    return type(value) is tuple and all(type(item) is int and item >= 0 for item in value)
