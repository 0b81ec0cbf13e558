"""An object that pickles differently each time, and equals nothing but itself."""

from __future__ import annotations

from typing import Any


class Changing:
    count = 0

    def __reduce__(self) -> Any:
        Changing.count += 1
        return _make, (Changing.count,)


def _make(_: int) -> Changing:
    return Changing()
