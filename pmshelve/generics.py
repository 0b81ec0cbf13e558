"""Type variables of the classes that are generic in what they hold.

To a type checker each has the default Any, so that ``mmapdict`` alone means ``mmapdict[Any]``: what a program
does not say is not checked.  At run time there are no defaults before CPython 3.13, and nobody asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["K", "T", "T_co", "V"]

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    T_co = TypeVar("T_co", default=Any, covariant=True)
    K = TypeVar("K", default=Any)
    V = TypeVar("V", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)
    K = TypeVar("K")
    V = TypeVar("V")
