"""`Premade`: a pickle that was made elsewhere, stored as it is and handed out as it is.

Moving a value from one store to another needs no object: its pickle, and the buffers beside it, go
over as bytes, and nothing is imported or run.  A `Premade` is written as the value that it pickles,
in the form of module `generic`; a store whose `Views.keep_pickles` is set reads that form as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

__all__ = ["Premade"]


class Premade:
    """Stands for the object that a pickle holds.

    Parameters
    ----------
    raw
        The pickle: flat bytes, of any kind of buffer.
    buffers
        What its NEXT_BUFFER opcodes stand for, in order; flat bytes too.

    Notes
    -----
    Nothing is looked at: what is no pickle is stored as well, and fails to load.
    """

    __slots__ = ("buffers", "raw")

    def __init__(self, raw: Any, buffers: Sequence[Any] = ()) -> None:
        self.raw = raw
        self.buffers = buffers

    @property
    def nbytes(self) -> int:
        """Size of the pickle and its buffers, in bytes."""
        return len(self.raw) + sum(map(len, self.buffers))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Premade is stored only as a value of its own")

    def __repr__(self) -> str:
        return f"<Premade of {self.nbytes} bytes>"
