"""What ndarray's operators do, for a class that has a `view`.

Results are NumPy's: plain arrays and scalars.  In-place operators change the array in the pool, in one
operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self

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

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    __lt__: _Method = _forward(operator.lt)
    __le__: _Method = _forward(operator.le)
    __eq__: _Method = _forward(operator.eq)
    __ne__: _Method = _forward(operator.ne)
    __gt__: _Method = _forward(operator.gt)
    __ge__: _Method = _forward(operator.ge)

    __add__: _Method = _forward(operator.add)
    __sub__: _Method = _forward(operator.sub)
    __mul__: _Method = _forward(operator.mul)
    __matmul__: _Method = _forward(operator.matmul)
    __truediv__: _Method = _forward(operator.truediv)
    __floordiv__: _Method = _forward(operator.floordiv)
    __mod__: _Method = _forward(operator.mod)
    __divmod__: _Method = _forward(divmod)
    __pow__: _Method = _forward(operator.pow)
    __lshift__: _Method = _forward(operator.lshift)
    __rshift__: _Method = _forward(operator.rshift)
    __and__: _Method = _forward(operator.and_)
    __or__: _Method = _forward(operator.or_)
    __xor__: _Method = _forward(operator.xor)

    __radd__: _Method = _reflected(operator.add)
    __rsub__: _Method = _reflected(operator.sub)
    __rmul__: _Method = _reflected(operator.mul)
    __rmatmul__: _Method = _reflected(operator.matmul)
    __rtruediv__: _Method = _reflected(operator.truediv)
    __rfloordiv__: _Method = _reflected(operator.floordiv)
    __rmod__: _Method = _reflected(operator.mod)
    __rdivmod__: _Method = _reflected(divmod)
    __rpow__: _Method = _reflected(operator.pow)
    __rlshift__: _Method = _reflected(operator.lshift)
    __rrshift__: _Method = _reflected(operator.rshift)
    __rand__: _Method = _reflected(operator.and_)
    __ror__: _Method = _reflected(operator.or_)
    __rxor__: _Method = _reflected(operator.xor)

    __iadd__: Callable[..., Self] = _in_place(operator.iadd)
    __isub__: Callable[..., Self] = _in_place(operator.isub)
    __imul__: Callable[..., Self] = _in_place(operator.imul)
    __imatmul__: Callable[..., Self] = _in_place(operator.imatmul)
    __itruediv__: Callable[..., Self] = _in_place(operator.itruediv)
    __ifloordiv__: Callable[..., Self] = _in_place(operator.ifloordiv)
    __imod__: Callable[..., Self] = _in_place(operator.imod)
    __ipow__: Callable[..., Self] = _in_place(operator.ipow)
    __ilshift__: Callable[..., Self] = _in_place(operator.ilshift)
    __irshift__: Callable[..., Self] = _in_place(operator.irshift)
    __iand__: Callable[..., Self] = _in_place(operator.iand)
    __ior__: Callable[..., Self] = _in_place(operator.ior)
    __ixor__: Callable[..., Self] = _in_place(operator.ixor)

    __neg__: _Method = _unary(operator.neg)
    __pos__: _Method = _unary(operator.pos)
    __abs__: _Method = _unary(operator.abs)
    __invert__: _Method = _unary(operator.invert)

    __bool__: Callable[..., bool] = _unary(bool)
    __int__: Callable[..., int] = _unary(int)
    __float__: Callable[..., float] = _unary(float)
    __complex__: Callable[..., complex] = _unary(complex)
    __index__: Callable[..., int] = _unary(operator.index)
    __len__: Callable[..., int] = _unary(len)
    __iter__: Callable[..., Iterator[Any]] = _unary(iter)

    def __contains__(self: Any, value: Any, /) -> bool:
        return plain(value) in self.view()
