"""`PersistentArray`: a NumPy array whose elements are in the pool.

Reading is zero-copy: a view is a read-only ndarray over the pool's memory, which it keeps.  Every change goes
through a method, which makes the bytes it touches part of the transaction first.  NumPy is imported when an
array is met, not before.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, overload

from pmshelve.errors import UnsupportedTypeError
from pmshelve.pmemobj.persistent.arrayblock import ArrayBlock
from pmshelve.pmemobj.persistent.arrayops import ArrayOperators, plain
from pmshelve.pmemobj.persistent.items import shown, starting
from pmshelve.pmemobj.typetable import register_static

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["PersistentArray"]


@register_static
class PersistentArray(ArrayOperators, ArrayBlock):
    """A NumPy array in a pool; make it with ``pool.new(PersistentArray, ...)``.

    Parameters
    ----------
    source
        Anything that `numpy.asarray` takes; its order, C or Fortran, is kept.
    dtype
        As of NumPy; any but those with Python objects.
    shape
        Instead of `source`: as many zeros.
    order
        'C' or 'F'; None for the source's.

    Notes
    -----
    Whatever reads (`view`, ``a[...]``, `numpy.asarray`, methods of ndarray such as `sum` or `reshape`) sees the
    memory as it is, without a copy, and cannot write to it.  A view shows later changes.  It stays valid when the
    pool is closed; one made in a transaction that is rolled back shows nothing of meaning afterwards.  While
    there are views, `resize` and a second `__init__` raise BufferError.

    To change elements: ``a[...] = values``, in-place operators, `fill`, `sort`, ``numpy.add(x, y, out=a)``, or
    `writable` for anything else.  Each is a transaction by itself, or part of the running one.  ``a[1:3] += 1``
    has to be written ``a[1:3] = a[1:3] + 1``, since what ``a[1:3]`` returns is read-only.

    Results of operators are plain arrays.  `copy` returns a plain array.
    """

    __slots__ = ()

    @overload
    def __init__(
        self,
        source: ArrayLike,
        dtype: DTypeLike | None = None,
        *,
        order: Literal["C", "F"] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        source: None = None,
        dtype: DTypeLike | None = None,
        *,
        shape: SupportsIndex | Sequence[SupportsIndex],
        order: Literal["C", "F"] | None = None,
    ) -> None: ...
    def __init__(
        self, source: Any = None, dtype: Any = None, *, shape: Any = None, order: Any = None
    ) -> None:
        import numpy as np

        operation = starting(self)
        if (source is None) == (shape is None):
            raise TypeError("PersistentArray takes either a source or shape=")
        if order not in (None, "C", "F"):
            raise ValueError(f"order must be 'C', 'F' or None, not {order!r}")
        if shape is not None:
            one = np.zeros((), dtype)  # a dtype may have a shape, or no size yet
            lengths = (*np.broadcast_shapes(shape), *one.shape)
            with operation:
                self._p_demand_unviewed()
                self._p_replace(lengths, one.dtype, order or "C", zero=True)
            return
        if isinstance(source, np.ma.MaskedArray):
            raise UnsupportedTypeError(
                "Don't know how to persist a masked array", hint="store its data and its mask"
            )
        values = np.asarray(self.view().copy() if source is self else plain(source), dtype)
        if order is None:
            order = "F" if values.flags.f_contiguous and not values.flags.c_contiguous else "C"
        with operation:
            self._p_demand_unviewed()
            np.copyto(self._p_replace(values.shape, values.dtype, order, zero=False), values)

    # Reading ----------------------------------------------------------------------------------

    def view(self) -> NDArray[Any]:
        """Return the elements as a read-only ndarray over the pool's memory."""
        with self._p_lock:
            return self._p_window(readonly=True)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        import numpy as np

        view = self.view()
        if dtype is not None and np.dtype(dtype) != view.dtype:
            if copy is False:
                raise ValueError("another dtype needs a copy")
            return view.astype(dtype)
        return view.copy() if copy else view

    def __getitem__(self, index: Any, /) -> Any:
        import numpy as np

        index = _plain_index(index)
        with self._p_lock:
            found = self._p_array()[index]
            if not isinstance(found, np.ndarray | np.void) or found.base is None:
                return found  # a copy
            return self._p_window(readonly=True)[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the dimensions."""
        with self._p_lock:
            return self._p_array().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy dtype of the elements."""
        with self._p_lock:
            return self._p_array().dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        with self._p_lock:
            return self._p_array().size

    @property
    def nbytes(self) -> int:
        """The size of the elements, bytes."""
        with self._p_lock:
            return self._p_array().nbytes

    @property
    def T(self) -> NDArray[Any]:  # noqa: N802
        """The transposed read-only view."""
        return self.view().T

    def __getattr__(self, name: str) -> Any:
        # Whatever else an ndarray has, of a read-only one.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.view(), name)

    def __repr__(self) -> str:
        return shown(self, self._p_shown, "...")

    def _p_shown(self) -> str:
        import numpy as np

        view = self.view()
        text = np.array2string(view, separator=", ", prefix=f"{type(self).__name__}(")
        return f"{text}, dtype={repr(view.dtype)[6:-1]}"

    # Changing ---------------------------------------------------------------------------------

    def __setitem__(self, index: Any, value: Any, /) -> None:
        index, value = _plain_index(index), plain(value)
        with self._p_op:
            data = self._p_array()
            self._p_snapshot(*_touched(data, index))
            data[index] = value

    @contextmanager
    def writable(self) -> Iterator[NDArray[Any]]:
        """Lend the elements as a writable ndarray, in an operation: an exception undoes the changes.

        Notes
        -----
        All elements are kept for the case of a rollback first.  The array cannot be written to after the block.
        Do not write to arrays derived from it (slices, say) after the block: this process would see what the file
        does not hold.
        """
        with self._p_op:
            self._p_snapshot_all()
            window = self._p_window(readonly=False)
            try:
                yield window
            finally:
                window.flags.writeable = False
                if window.base is not None:
                    window.base.flags.writeable = False

    def fill(self, value: Any, /) -> None:
        """Set all elements to a value."""
        with self._p_op:
            self._p_snapshot_all()
            self._p_array().fill(value)

    def sort(
        self,
        axis: SupportsIndex = -1,
        kind: Literal["quicksort", "mergesort", "heapsort", "stable"] | None = None,
        order: str | Sequence[str] | None = None,
    ) -> None:
        """Sort in place, as `numpy.ndarray.sort` does."""
        with self._p_op:
            self._p_snapshot_all()
            self._p_array().sort(axis=axis, kind=kind, order=order)

    def resize(self, shape: SupportsIndex | Sequence[SupportsIndex], /) -> None:
        """Change the length of the first dimension; new elements are zero.

        Parameters
        ----------
        shape
            The new length, or the whole new shape, of which only the first length may differ.

        Raises
        ------
        BufferError
            Views of the array are in use; nothing was changed.
        """
        with self._p_op:
            data = self._p_array()
            given: Any = shape if hasattr(shape, "__iter__") else (shape, *data.shape[1:])
            lengths = tuple(operator.index(length) for length in given)
            if not data.ndim or lengths[1:] != data.shape[1:] or lengths[0] < 0:
                raise ValueError(f"cannot resize {data.shape} to {lengths}: first dimension only")
            if lengths == data.shape:
                return
            self._p_demand_unviewed()
            if self._p_order() == "C" or data.ndim == 1:
                del data
                self._p_resize(lengths[0])
                return
            kept = data[: lengths[0]].copy(order="K")
            del data
            self._p_replace(lengths, kept.dtype, "F", zero=True)[: len(kept)] = kept

    def __array_ufunc__(
        self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any
    ) -> Any:
        changed = [*out, inputs[0]] if method == "at" else list(out)
        arrays = [each for each in changed if isinstance(each, PersistentArray)]
        result = _changing(arrays, lambda: _apply(ufunc, method, inputs, out, options))
        if not out:
            return result
        if not isinstance(result, tuple):
            return out[0]
        return tuple(
            each if given is None else given for each, given in zip(result, out, strict=True)
        )


def _inner(value: Any) -> Any:
    return value._p_array() if isinstance(value, PersistentArray) else value


def _plain_index(index: Any) -> Any:
    """Return an index that NumPy takes: a PersistentArray may be one."""
    if isinstance(index, tuple):
        return tuple(map(plain, index))
    return plain(index)


def _touched(data: Any, index: Any) -> tuple[int, int]:
    """Return the range of bytes, from the first element's, that ``data[index] = ...`` may change."""
    parts = index if isinstance(index, tuple) else (index,)
    fields = isinstance(index, str)
    if not fields and not all(map(_is_basic, parts)):
        return 0, data.nbytes
    if not fields and not any(part is Ellipsis for part in parts):
        parts = (*parts, Ellipsis)  # an array in any case
    part = data[index if fields else parts]
    if not part.size:
        return 0, 0
    start = part.__array_interface__["data"][0] - data.__array_interface__["data"][0]
    reach = [(length - 1) * stride for length, stride in zip(part.shape, part.strides, strict=True)]
    low = start + sum(step for step in reach if step < 0)
    high = start + sum(step for step in reach if step > 0) + part.itemsize
    return low, high


def _is_basic(part: Any) -> bool:
    """Whether a part of an index selects without a list or mask, so that the result is a view."""
    import numpy as np

    return (
        part is None
        or part is Ellipsis
        or type(part) is int
        or isinstance(part, slice | np.integer)
    )


def _changing(arrays: list[PersistentArray], compute: Callable[[], Any]) -> Any:
    """Return what `compute` returns, which changes these arrays: all of it, or nothing."""
    if not arrays:
        return compute()
    with arrays[0]._p_op:
        arrays[0]._p_snapshot_all()
        return _changing(arrays[1:], compute)


def _apply(ufunc: Any, method: str, inputs: Any, out: Any, options: dict[str, Any]) -> Any:
    if method == "at":
        inputs = (_inner(inputs[0]), *map(plain, inputs[1:]))
    else:
        inputs = tuple(map(plain, inputs))
    if out:
        options["out"] = tuple(map(_inner, out))
    if "where" in options:
        options["where"] = plain(options["where"])
    return getattr(ufunc, method)(*inputs, **options)
