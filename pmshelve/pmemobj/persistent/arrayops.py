"""What ndarray's operators do, for a class that has a `view`.

Results are NumPy's: plain arrays and scalars.  In-place operators change the array in the pool, in one
operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

__all__ = ["ArrayOperators", "plain"]


def plain(value: Any) -> Any:
    """Return a PersistentArray's elements as a read-only array, and anything else as it is."""
    return value.view() if isinstance(value, ArrayOperators) else value


_Method = Callable[..., Any]


def _forward(operation: Callable[[Any, Any], Any]) -> _Method:
    def method(self: Any, other: Any, /) -> Any:
        return operation(self.view(), plain(other))

    return method


def _reflected(operation: Callable[[Any, Any], Any]) -> _Method:
    def method(self: Any, other: Any, /) -> Any:
        return operation(plain(other), self.view())

    return method


def _in_place(operation: Callable[[Any, Any], Any]) -> _Method:
    def method(self: Any, other: Any, /) -> Any:
        with self._p_op:
            self._p_snapshot_all()
            data = self._p_array()
            if operation(data, plain(other)) is not data:
                raise TypeError(f"{type(other).__name__} does not change an array in place")
        return self

    return method


def _unary(operation: Callable[[Any], Any]) -> _Method:
    def method(self: Any, /) -> Any:
        return operation(self.view())

    return method


class ArrayOperators:
    """The operators."""

    __slots__ = ()

    view: Any

    __hash__ = None  # type: ignore[assignment]

    __lt__ = _forward(operator.lt)
    __le__ = _forward(operator.le)
    __eq__ = _forward(operator.eq)
    __ne__ = _forward(operator.ne)
    __gt__ = _forward(operator.gt)
    __ge__ = _forward(operator.ge)

    __add__ = _forward(operator.add)
    __sub__ = _forward(operator.sub)
    __mul__ = _forward(operator.mul)
    __matmul__ = _forward(operator.matmul)
    __truediv__ = _forward(operator.truediv)
    __floordiv__ = _forward(operator.floordiv)
    __mod__ = _forward(operator.mod)
    __divmod__ = _forward(divmod)
    __pow__ = _forward(operator.pow)
    __lshift__ = _forward(operator.lshift)
    __rshift__ = _forward(operator.rshift)
    __and__ = _forward(operator.and_)
    __or__ = _forward(operator.or_)
    __xor__ = _forward(operator.xor)

    __radd__ = _reflected(operator.add)
    __rsub__ = _reflected(operator.sub)
    __rmul__ = _reflected(operator.mul)
    __rmatmul__ = _reflected(operator.matmul)
    __rtruediv__ = _reflected(operator.truediv)
    __rfloordiv__ = _reflected(operator.floordiv)
    __rmod__ = _reflected(operator.mod)
    __rdivmod__ = _reflected(divmod)
    __rpow__ = _reflected(operator.pow)
    __rlshift__ = _reflected(operator.lshift)
    __rrshift__ = _reflected(operator.rshift)
    __rand__ = _reflected(operator.and_)
    __ror__ = _reflected(operator.or_)
    __rxor__ = _reflected(operator.xor)

    __iadd__ = _in_place(operator.iadd)
    __isub__ = _in_place(operator.isub)
    __imul__ = _in_place(operator.imul)
    __imatmul__ = _in_place(operator.imatmul)
    __itruediv__ = _in_place(operator.itruediv)
    __ifloordiv__ = _in_place(operator.ifloordiv)
    __imod__ = _in_place(operator.imod)
    __ipow__ = _in_place(operator.ipow)
    __ilshift__ = _in_place(operator.ilshift)
    __irshift__ = _in_place(operator.irshift)
    __iand__ = _in_place(operator.iand)
    __ior__ = _in_place(operator.ior)
    __ixor__ = _in_place(operator.ixor)

    __neg__ = _unary(operator.neg)
    __pos__ = _unary(operator.pos)
    __abs__ = _unary(operator.abs)
    __invert__ = _unary(operator.invert)

    __bool__ = _unary(bool)
    __int__ = _unary(int)
    __float__ = _unary(float)
    __complex__ = _unary(complex)
    __index__ = _unary(operator.index)
    __len__ = _unary(len)
    __iter__ = _unary(iter)

    def __contains__(self: Any, value: Any, /) -> bool:
        return plain(value) in self.view()
