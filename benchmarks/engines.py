"""Who is measured: what an engine offers to the workloads, and pmshelve's own doors.

An engine brings whole loops (`fill`, `read`, ...) rather than single operations, so that each peer
is driven the way its users drive it and no adapter's call is part of the figure.
"""

from __future__ import annotations

import importlib
import shelve
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

__all__ = ["ENGINES", "Engine", "Item", "register"]

Item = tuple[Any, bytes]
"""A key of the engine's type and a value."""

ENGINES: dict[str, Engine] = {}
"""All engines by name, in the order in which tables list them."""


class Engine:
    """One way to keep bytes under keys in a file.

    Attributes
    ----------
    name
        What the command line and the tables call it.
    note
        What a reader of the tables has to know about it.
    ours
        Whether it is a door of this package.
    modules
        What has to be importable.
    text_keys
        Whether keys are str; else they are bytes.
    limits
        By workload: the most operations it is given, for engines that would need minutes.
    repeats_max
        By workload: the most repeats.
    keep_files
        Whether its directory stays until the end of the run: creating files where many were just
        deleted is slow on some file systems, and would be held against it.
    """

    name: ClassVar[str]
    note: ClassVar[str] = ""
    ours: ClassVar[bool] = False
    modules: ClassVar[tuple[str, ...]] = ()
    text_keys: ClassVar[bool] = False
    limits: ClassVar[Mapping[str, int]] = {}
    repeats_max: ClassVar[Mapping[str, int]] = {}
    keep_files: ClassVar[bool] = False

    def missing(self) -> str | None:
        """Return why this engine cannot run here, or None."""
        try:
            self.prepare()
        except (ImportError, OSError, AttributeError) as error:
            # Some messages end in the path of a file, which is nobody's business.
            return f"{type(error).__name__}: {str(error).partition(' (')[0]}"
        return None

    def prepare(self) -> None:
        """Import what `open` needs, so that no timed section does."""
        for module in self.modules:
            importlib.import_module(module)

    def open(self, directory: Path) -> Any:
        """Open the store in `directory`, for reading and writing; make it if it is not there."""
        raise NotImplementedError

    def open_reader(self, directory: Path) -> Any:
        """Open an existing store to read from it beside a writer."""
        return self.open(directory)

    def close(self, handle: Any) -> None:
        """Close what `open` returned."""
        handle.close()

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        """Put each item, the measured way."""
        for key, value in items:
            handle[key] = value

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        """Put all items, the quickest way: never timed."""
        self.fill(handle, items)

    def read(self, handle: Any, keys: Iterable[Any]) -> None:
        """Get the value of each key."""
        for key in keys:
            handle[key]

    def probe(self, handle: Any, keys: Iterable[Any]) -> None:
        """Ask whether each key is there."""
        for key in keys:
            key in handle  # noqa: B015 - the question is all that is wanted

    def remove(self, handle: Any, keys: Iterable[Any]) -> None:
        """Delete each key."""
        for key in keys:
            del handle[key]

    def count_wrong(self, handle: Any, items: Iterable[Item]) -> int:
        """Get each key and count the values that are not as given."""
        wrong = 0
        for key, value in items:
            if handle[key] != value:
                wrong += 1
        return wrong

    def fetch(self, handle: Any, key: Any) -> bytes | None:
        """Return one value, or None if the key is missing."""
        try:
            return bytes(handle[key])
        except KeyError:
            return None

    def compact(self, handle: Any) -> None:
        """Give back the space of replaced and deleted values."""
        handle.reorganize()

    def shelf(self, handle: Any) -> Any:
        """Return the shelf over `handle`; closing it closes the handle too."""
        return shelve.Shelf(handle)


def register(engine: type[Engine]) -> type[Engine]:
    """Add an engine to `ENGINES`."""
    ENGINES[engine.name] = engine()
    return engine


class _Ours(Engine):
    ours = True


class _Mapping(_Ours):
    """`pmshelve.mmapdict.mmapdict` with str keys and bytes values."""

    modules = ("pmshelve.mmapdict", "pmshelve.mmapdict.mapping")
    text_keys = True
    options: ClassVar[Mapping[str, Any]] = {}

    def open(self, directory: Path) -> Any:
        from pmshelve.mmapdict import mmapdict

        return mmapdict(directory / "store.mmapdict", **self.options)

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        handle.update(items)

    def compact(self, handle: Any) -> None:
        handle.vacuum()


@register
class Visible(_Mapping):
    """Each put is committed and visible to every other process when it returns."""

    name = "pmshelve"


@register
class Exclusive(_Mapping):
    """The store's lock is held as long as it is open."""

    name = "pmshelve-exclusive"
    note = "no other process while it is open"
    options: ClassVar[Mapping[str, Any]] = {"exclusive": True}


@register
class Batch(_Mapping):
    """All puts of a timed section in one batch: one lock, one commit."""

    name = "pmshelve-batch"
    note = "one commit for all"

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        with handle.batch():
            super().fill(handle, items)

    def remove(self, handle: Any, keys: Iterable[Any]) -> None:
        with handle.batch():
            super().remove(handle, keys)


@register
class Synced(_Mapping):
    """Each put is on the disk when it returns."""

    name = "pmshelve-sync"
    note = "each commit on the disk"
    options: ClassVar[Mapping[str, Any]] = {"sync": True}


@register
class Dbm(_Ours):
    """`pmshelve.dbm_compat.mmapdict`: bytes to bytes, each put visible."""

    name = "pmshelve-dbm"
    modules = ("pmshelve.dbm_compat.mmapdict",)
    flag: ClassVar[str] = "c"

    def open(self, directory: Path) -> Any:
        from pmshelve.dbm_compat import mmapdict

        return mmapdict.open(directory / "store.dbm", self.flag)

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        handle.update(items)


@register
class DbmPool(_Ours):
    """`pmshelve.dbm_compat.pmemobj`: a pool's dict of bytes to bytes."""

    name = "pmshelve-dbm-pool"
    note = "pmemobj; no other process while it is open"
    modules = ("pmshelve.dbm_compat.pmemobj",)

    def open(self, directory: Path) -> Any:
        from pmshelve.dbm_compat import pmemobj

        return pmemobj.open(directory / "store.pool", "c")

    def load(self, handle: Any, items: Iterable[Item]) -> None:
        handle.update(items)


@register
class DbmExclusive(_Ours):
    """The dbm face over a store that is held exclusively."""

    name = "pmshelve-dbm-exclusive"
    note = "no other process while it is open"
    modules = ("pmshelve.dbm_compat.database", "pmshelve.mmapdict")

    def open(self, directory: Path) -> Any:
        from pmshelve.dbm_compat.database import Database
        from pmshelve.mmapdict import mmapdict

        return Database(mmapdict(directory / "store.dbm", face="bytes", exclusive=True))


@register
class DbmBatch(Dbm):
    """All puts of a timed section through the dbm face in one batch."""

    name = "pmshelve-dbm-batch"
    note = "one commit for all"

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        with handle.batch():
            super().fill(handle, items)

    def remove(self, handle: Any, keys: Iterable[Any]) -> None:
        with handle.batch():
            super().remove(handle, keys)


@register
class DbmSynced(Dbm):
    """The dbm face with the flag "s": each put is on the disk when it returns."""

    name = "pmshelve-dbm-sync"
    note = "dbm flag s"
    flag = "cs"


class _Shelf(_Ours):
    """`pmshelve.open`: a shelf of objects, stored natively."""

    modules = ("pmshelve.shelf",)
    text_keys = True
    options: ClassVar[Mapping[str, Any]] = {}

    def open(self, directory: Path) -> Any:
        import pmshelve

        return pmshelve.open(directory / "shelf.mmapdict", **self.options)

    def shelf(self, handle: Any) -> Any:
        return handle


@register
class Shelf(_Shelf):
    """A shelf whose every change is visible at once."""

    name = "pmshelve-shelf"


@register
class ShelfPool(_Shelf):
    """A shelf over a pool."""

    name = "pmshelve-shelf-pool"
    note = "pmemobj; no other process while it is open"
    options: ClassVar[Mapping[str, Any]] = {"backend": "pmemobj"}


@register
class ShelfExclusive(_Shelf):
    """A shelf that holds the store's lock as long as it is open."""

    name = "pmshelve-shelf-exclusive"
    note = "no other process while it is open"
    options: ClassVar[Mapping[str, Any]] = {"exclusive": True}


@register
class ShelfBatch(_Shelf):
    """A shelf that is filled in one batch."""

    name = "pmshelve-shelf-batch"
    note = "one commit for all"

    def fill(self, handle: Any, items: Iterable[Item]) -> None:
        with handle.batch():
            super().fill(handle, items)


def call(module: str, name: str, *args: Any, **kwargs: Any) -> Any:
    """Call a function of a module that has no type information."""
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function(*args, **kwargs)
