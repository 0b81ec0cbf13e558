"""EmptyNDArray: an array that is allocated in the file without being in memory."""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["EmptyNDArray"]


class EmptyNDArray:
    """Stands for an array of zeros which the store is to allocate.

    Store one, then get the same key: what comes back is the array, mapped and ready to be filled.

    Parameters
    ----------
    shape
        Of the array: an int or ints.
    dtype
        Anything `numpy.dtype` takes, except Python objects.
    reserve
        Reserve the disk blocks at once, so that a full disk is an error now and not when the array
        is filled. Without it the array takes no disk space until it is written to.

    Raises
    ------
    ValueError
        A dimension is negative, or the array is larger than a file can be.
    TypeError
        The shape is not made of ints, or the dtype holds Python objects.

    Examples
    --------
    >>> stub = EmptyNDArray((1000, 1000), "float32")
    >>> stub.shape, stub.nbytes
    ((1000, 1000), 4000000)
    """

    __slots__ = ("_dtype", "_reserve", "_shape")

    def __init__(
        self,
        shape: SupportsIndex | Iterable[SupportsIndex],
        dtype: Any = float,
        reserve: bool = False,
    ) -> None:
        import numpy

        sizes = shape if hasattr(shape, "__iter__") else (shape,)
        self._shape = tuple(operator.index(size) for size in sizes)
        self._dtype = numpy.dtype(dtype)
        self._reserve = bool(reserve)
        if any(size < 0 for size in self._shape):
            raise ValueError("negative dimensions are not allowed")
        if self._dtype.hasobject:
            raise TypeError(f"an array of dtype {self._dtype} cannot be allocated in a file")
        if self._dtype.subdtype is not None:
            base, inner = self._dtype.subdtype
            self._dtype, self._shape = base, self._shape + inner
        if self.nbytes > sys.maxsize:
            raise ValueError("the array is larger than a file can be")

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self._shape

    @property
    def dtype(self) -> Any:
        """The array's dtype."""
        return self._dtype

    @property
    def reserve(self) -> bool:
        """Whether disk blocks are to be reserved."""
        return self._reserve

    @property
    def nbytes(self) -> int:
        """The array's size in bytes."""
        return math.prod(self._shape) * int(self._dtype.itemsize)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an EmptyNDArray is stored only as a value of its own")

    def __repr__(self) -> str:
        return f"EmptyNDArray({self._shape}, {self._dtype.str!r}, reserve={self._reserve})"
