"""NumPy's objects inside other objects, pickled by public names only.

NumPy's own reductions name private functions, which come and go with its versions.  Here

    array            numpy.ndarray(shape, dtype, buffer, 0, None, order)
    scalar           its type called with a Python number, or numpy.take(array of one, 0)
    masked array     numpy.ma.MaskedArray(data, mask, None, False, True, 0, fill, True, hard)
    subclass         numpy.ndarray.view(array, subclass), if it pickles as arrays do
    object array     numpy.ndarray((0,), "b"), then ndarray.__setstate__ with the list of items
    string dtype     numpy.dtypes.StringDType(...)

All of these are documented names.  Classes that say themselves how they pickle, or for which the
program has said it (`copyreg`), are left alone.  An array is written as it is, whether or not it is
contiguous or writable: the pickler sees an empty stand-in for its buffer.  A `memmap` is written as
a plain array.

This module imports NumPy; it is loaded when the program has.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
import pickle
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy

from pmshelve.mmapdict.picklers.array import chunks_of, order_of
from pmshelve.mmapdict.picklers.base import Blob
from pmshelve.mmapdict.picklers.dtypes import dtype_spec
from pmshelve.mmapdict.picklers.generic import BUFFER_SIZE_MIN

__all__ = ["PublicPickler"]

_Reduced = tuple[Any, ...]


class _Call:
    """A call to be made when unpickling, as an argument of another one."""

    __slots__ = ("reduced",)

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> _Reduced:
        return self.reduced


class PublicPickler(pickle.Pickler):
    """A protocol 5 pickler that writes no private NumPy name.

    Parameters
    ----------
    file
        Has the method `write`.
    callback, known
        As in `generic.buffer_callback`; buffers of arrays are announced in `known`.
    """

    def __init__(
        self,
        file: Any,
        callback: Callable[[pickle.PickleBuffer], bool],
        known: dict[int, Blob],
    ) -> None:
        super().__init__(file, 5, buffer_callback=callback)
        self.known = known

    def reducer_override(self, obj: Any) -> Any:
        """Reduce NumPy's objects; leave the others to `pickle`."""
        kind = type(obj)
        if kind in _ARRAYS:
            return self._reduce_array(obj)
        reduce = _REDUCERS.get(kind)
        if reduce is not None:
            return reduce(obj)
        if issubclass(kind, numpy.ndarray) and kind not in copyreg.dispatch_table:
            return _reduce_subclass(obj, kind)
        return NotImplemented

    def _reduce_array(self, array: Any) -> _Reduced:
        dtype = array.dtype
        if dtype.hasobject:
            # NumPy's own state (version, shape, dtype, order, list) for an array of our making.
            return numpy.ndarray, ((0,), "b"), numpy.ndarray.__reduce__(_plain(array))[2]
        order = order_of(array)
        buffer: Any
        if array.nbytes < BUFFER_SIZE_MIN:
            buffer = bytearray(array.tobytes(order))
        else:
            buffer = pickle.PickleBuffer(bytearray())
            self.known[id(buffer)] = Blob(array.nbytes, functools.partial(chunks_of, array))
        spec = dtype_spec(dtype)
        return numpy.ndarray, (
            *(array.shape, dtype if spec is None else spec),
            *(buffer, 0, None, order),
        )


def _plain(array: Any) -> Any:
    return array if type(array) is numpy.ndarray else numpy.ndarray.view(array, numpy.ndarray)


def _reduce_subclass(array: Any, kind: Any) -> Any:
    if "numpy.ma" in sys.modules and issubclass(kind, numpy.ma.MaskedArray):
        return _reduce_masked(array, kind)
    if (kind.__reduce__, kind.__reduce_ex__) != _DEFAULT_REDUCE:
        return NotImplemented
    return numpy.ndarray.view, (_plain(array), kind)


def _reduce_masked(array: Any, kind: Any) -> Any:
    from pmshelve.mmapdict.picklers.masked import fill_of, is_ordinary

    if array is numpy.ma.masked:
        return getattr, (_Call(importlib.import_module, "numpy.ma"), "masked")
    if kind is not numpy.ma.MaskedArray or not is_ordinary(array):
        return NotImplemented
    mask, fill = numpy.ma.getmask(array), fill_of(array)
    return kind, (_plain(array), mask, None, False, True, 0, fill, True, array.hardmask)


_ARRAYS: Final = frozenset((numpy.ndarray, numpy.memmap))
_DEFAULT_REDUCE: Final = (numpy.ndarray.__reduce__, numpy.ndarray.__reduce_ex__)


# Scalars and dtypes -----------------------------------------------------------------------------


def _reduce_number(scalar: Any) -> _Reduced:
    return type(scalar), (scalar.item(),)


def _reduce_text(scalar: Any) -> _Reduced:
    # Neither as an array nor by str(), which lose zeros at the end.
    return type(scalar), (str.__str__(scalar),)


def _reduce_bytes(scalar: Any) -> _Reduced:
    return type(scalar), (bytes(scalar),)


def _reduce_scalar(scalar: Any) -> _Reduced:
    return numpy.take, (numpy.array([scalar], scalar.dtype), 0)


def _reduce_string_dtype(dtype: Any) -> _Reduced:
    options = {
        name: getattr(dtype, name) for name in ("coerce", "na_object") if hasattr(dtype, name)
    }
    return copyreg.__newobj_ex__, (type(dtype), (), options)  # type: ignore[attr-defined]


# NumPy 1 has none.
_STRING_DTYPE: Final = getattr(getattr(numpy, "dtypes", None), "StringDType", type(None))

_EXACT_AS_PYTHON: Final = "bBhHiIlLqQefdFD"
"""Type codes of the numbers that a Python number holds exactly."""


def _make_reducers() -> dict[type, Callable[[Any], _Reduced]]:
    reducers: dict[type, Callable[[Any], _Reduced]] = {
        numpy.str_: _reduce_text,
        numpy.bytes_: _reduce_bytes,
        numpy.record: _reduce_scalar,
    }
    for kind in (numpy.datetime64, numpy.timedelta64, numpy.void):
        reducers[kind] = _reduce_scalar
    for code in "?gG":
        reducers[numpy.dtype(code).type] = _reduce_scalar
    for code in _EXACT_AS_PYTHON:
        reducers[numpy.dtype(code).type] = _reduce_number
    return reducers | {_STRING_DTYPE: _reduce_string_dtype}


_REDUCERS: Final = _make_reducers()
