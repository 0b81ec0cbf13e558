"""Steps of a history: every kind of change the API offers, with what it does to the content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.support.history import Content, Step, Value, with_items, without_keys

__all__ = [
    "Holder",
    "batch",
    "bulk_update",
    "check",
    "clear",
    "close",
    "delete",
    "empty",
    "fsck",
    "open_",
    "pop_last",
    "put",
    "renumber",
    "reopen",
    "sync",
    "vacuum",
]


class Holder:
    """Holds the store of a scenario, which steps may close and open again."""

    def __init__(self, path: str, opener: Callable[[str], Any]) -> None:
        self.path = path
        self.opener = opener
        self.store: Any = None

    def open(self) -> None:
        """Open the store."""
        self.store = self.opener(self.path)

    def close(self) -> None:
        """Close the store."""
        store, self.store = self.store, None
        if store is not None:
            store.close()


def put(key: str, value: Any, *, spoils: bool = False, durable: bool = False) -> Step:
    """Set a key."""
    noted = Value(value, spoils)

    def run(holder: Holder) -> None:
        holder.store[key] = value

    return Step(
        f"put {key[:20]!r}", run, lambda content: with_items(content, [(key, noted)]), durable
    )


def empty(key: str, shape: tuple[int, ...], *, reserve: bool = False) -> Step:
    """Set a key to an array that is allocated in the file."""
    import numpy as np

    noted = Value(np.zeros(shape), spoils=True)

    def run(holder: Holder) -> None:
        from pmshelve.mmapdict import EmptyNDArray

        holder.store[key] = EmptyNDArray(shape, reserve=reserve)

    return Step(f"empty {key!r}", run, lambda content: with_items(content, [(key, noted)]))


def delete(key: str, *, durable: bool = False) -> Step:
    """Delete a key."""

    def run(holder: Holder) -> None:
        del holder.store[key]

    return Step(f"delete {key!r}", run, lambda content: without_keys(content, [key]), durable)


def pop_last(key: str) -> Step:
    """Pop the key set last, which is `key`."""

    def run(holder: Holder) -> None:
        assert holder.store.popitem()[0] == key

    return Step("popitem", run, lambda content: without_keys(content, [key]))


def batch(
    items: Mapping[str, Any],
    gone: tuple[str, ...] = (),
    *,
    spoils: bool = False,
    durable: bool = False,
) -> Step:
    """Set and delete several keys as one change; the deletions follow the first set."""
    noted = {key: Value(value, spoils) for key, value in items.items()}

    def run(holder: Holder) -> None:
        with holder.store.batch():
            for position, (key, value) in enumerate(items.items()):
                holder.store[key] = value
                if position == 0:
                    for other in gone:
                        del holder.store[other]
            if not items:
                for other in gone:
                    del holder.store[other]

    def effect(content: Content) -> Content:
        first, *rest = noted.items() if noted else [None]
        if first is not None:
            content = with_items(content, [first])
        return with_items(without_keys(content, gone), rest)

    return Step(f"batch of {len(items)}, {len(gone)} deleted", run, effect, durable, False)


def bulk_update(items: Mapping[str, Any], *, durable: bool = False) -> Step:
    """Set several keys by `update`."""
    noted = {key: Value(value) for key, value in items.items()}

    def run(holder: Holder) -> None:
        holder.store.update(items)

    return Step(
        f"update of {len(items)}",
        run,
        lambda content: with_items(content, noted.items()),
        durable,
        False,
    )


def clear() -> Step:
    """Delete everything."""
    return Step("clear", lambda holder: holder.store.clear(), lambda content: (), loads_raw=False)


def vacuum() -> Step:
    """Vacuum."""
    return Step("vacuum", lambda holder: holder.store.vacuum(), loads_raw=False)


def fsck() -> Step:
    """Let `fsck` find nothing to do."""

    def run(holder: Holder) -> None:
        assert holder.store.fsck() is True

    return Step("fsck", run)


def check() -> Step:
    """Let `check` find nothing."""

    def run(holder: Holder) -> None:
        assert list(holder.store.check()) == []

    return Step("check", run)


def renumber(number: int) -> Step:
    """Set the commit number."""

    def run(holder: Holder) -> None:
        holder.store.commit_number = number

    return Step(f"commit number {number}", run)


def sync() -> Step:
    """Wait for the disk."""
    return Step("sync", lambda holder: holder.store.sync(), durable=True)


def close() -> Step:
    """Close the store."""
    return Step("close", lambda holder: holder.close())


def reopen() -> Step:
    """Close the store and open it again."""

    def run(holder: Holder) -> None:
        holder.close()
        holder.open()

    return Step("reopen", run)


def open_() -> Step:
    """Open the store."""
    return Step("open", lambda holder: holder.open())
