"""Two mappings as one while the first takes over from the second.

What is set goes to the new one; the old one is read from until nothing is left in it.  So a store
can be exchanged at any moment, at no cost, without moving what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from itertools import chain
from threading import Lock
from typing import Any

from zict.common import close

__all__ = ["Handover"]

Store = MutableMapping[Any, Any]


class Handover(MutableMapping[Any, Any]):
    """A mapping that writes to `new` and still holds what is in `old`.

    Parameters
    ----------
    new, old
        The mappings; they have no key in common, and keep none.
    drained
        Called once with `old` when its last key is gone.

    Notes
    -----
    As thread-safe as the two mappings are.  No `ZictBase`: those close what is below them when they
    are garbage, and here the new mapping is what stays.
    """

    def __init__(self, new: Store, old: Store, drained: Callable[[Store], object]) -> None:
        self.new = new
        self.old = old
        self._drained = drained
        self._lock = Lock()

    def __getitem__(self, key: Any) -> Any:
        old = self.old  # before the question, since it may be drained meanwhile
        return self.new[key] if key in self.new else old[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self.new[key] = value
        if key in self.old:
            self._discard_old(key)

    def __delitem__(self, key: Any) -> None:
        if key in self.new:
            del self.new[key]
        else:
            self._discard_old(key)

    def _discard_old(self, key: Any) -> None:
        with self._lock:
            old = self.old
            del old[key]
            if old:
                return
            self.old = {}
        self._drained(old)

    def __contains__(self, key: object) -> bool:
        return key in self.new or key in self.old

    def __iter__(self) -> Iterator[Any]:
        return chain(self.new, self.old)

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def close(self) -> None:
        """Close both."""
        close(self.new, self.old)
