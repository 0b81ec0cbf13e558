"""joblib.Memory over one file: a store backend that keeps the results of a cache in an mmapdict.

    joblib_compat.register()
    memory = joblib.Memory(Path("results.mmdpickle"), backend="mmapdict", mmap_mode="r")

The keys are the paths that joblib's own backend gives its files, below its directory:

    FUNCTION/func_code.py           the function's source, as joblib compares it
    FUNCTION/ARGUMENTS/output.pkl   the result, as mmapdict keeps values: arrays, also those within
                                    other objects, are mapped
    FUNCTION/ARGUMENTS/metadata.json
    FUNCTION/ARGUMENTS/used         when it was last used, in seconds since 1970, to the minute

joblib hands a `numpy.memmap` to other processes as a file name and an offset, which a vacuum makes
wrong.  So a mapped array comes back as a plain `numpy.ndarray` over the map, which joblib copies.

joblib 1.4 and later (`pip install pmshelve[joblib]`).
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import pickle
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pmshelve.mmapdict import mmapdict

try:
    import joblib
    from joblib import numpy_pickle
    from joblib._store_backends import (
        CacheItemInfo,
        CacheWarning,
        StoreBackendBase,
        StoreBackendMixin,
    )
    from joblib.disk import mkdirp
    from joblib.logger import format_time
except ImportError as error:  # pragma: no cover - where the suite runs it is there
    raise ImportError(
        f"pmshelve.joblib_compat needs joblib 1.4 or later ({error}); pip install pmshelve[joblib]"
    ) from error

__all__ = ["MmapDictBackend", "register"]

SUFFIX = ".mmdpickle"
USE_RESOLUTION = 60.0
"""Seconds by which the recorded time of a result's last use may be late."""
DEAD_SHARE_MAX = 0.25
"""Share of the file that may be dead after `Memory.reduce_size`; beyond, it is vacuumed."""

_OUTPUT, _METADATA, _CODE, _USED = "output.pkl", "metadata.json", "func_code.py", "used"
_is_arguments = re.compile("[0-9a-f]{32}").fullmatch


def register(name: str = "mmapdict") -> None:
    """Make the backend known to joblib, as ``backend=name``."""
    joblib.register_store_backend(name, MmapDictBackend)


@dataclass(frozen=True)
class Compressed:
    """A result of a `joblib.Memory` with `compress`."""

    data: bytes


class MmapDictBackend(StoreBackendBase, StoreBackendMixin):  # type: ignore[misc]  # may be missing
    """Where a `joblib.Memory` keeps results: one mmapdict file.

    joblib makes and configures it.  ``Memory(Path(name))`` takes the file `name`, ``Memory("name")``
    the file ``name/joblib``, ``.mmdpickle`` added where it is missing.  ``backend_options`` are those
    of `mmapdict` (`timeout`, `sync`, `allow_pickle`); `mmap_mode` and `compress` are `Memory`'s own.

    Notes
    -----
    Safe from threads and from any number of processes; copies pickled to other processes open the
    file there.  A result is there whole or not at all, also after a crash.  Space of results that
    were cleared or replaced is given back when it exceeds what is in use; `Memory.reduce_size` and
    `Memory.clear` give it back at once.  Arrays that were handed out stay valid.
    """

    def configure(
        self,
        location: str,
        verbose: int = 1,
        backend_options: dict[str, Any] | None = None,
    ) -> None:
        """Open, or make, the file: called by joblib."""
        options = dict(backend_options or {})
        self.compress: Any = options.pop("compress", False)
        mode = options.pop("mmap_mode", None)
        self.mmap_mode = "r+" if mode == "w+" else mode  # as joblib's own loads with it
        self.location = location
        self.path: str = os.path.abspath(
            location if location.endswith(SUFFIX) else location + SUFFIX
        )
        self.verbose = verbose
        self._options = options
        self._set_unopened()
        mkdirp(os.path.dirname(self.path))
        self._opened()

    def _set_unopened(self) -> None:
        self._file: mmapdict | None = None
        self._opening = threading.Lock()
        self._uses: dict[str, tuple[float, float]] = {}  # recorded, latest

    def _opened(self) -> mmapdict:
        with self._opening:
            if self._file is None:
                options: dict[str, Any] = {"autovacuum": True, "mmap_mode": self.mmap_mode}
                options.update(self._options)
                self._file = mmapdict(self.path, face="native", convert=False, **options)
            return self._file

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._opening:
            file, self._file = self._file, None
        if file is not None:
            file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {key: self.__dict__[key] for key in self.__dict__ if key not in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_unopened()

    # Results --------------------------------------------------------------------------------------

    def load_item(
        self,
        call_id: Sequence[str],
        verbose: int = 1,
        timestamp: float | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Any:
        """Return a result; KeyError if there is none."""
        item = os.path.join(*call_id)
        if verbose > 1:
            print(self._announcement(item, verbose, timestamp, metadata))  # noqa: T201 (what verbose asks for)
        file = self._opened()
        try:
            value = file[f"{item}/{_OUTPUT}"]
        except KeyError:
            if f"{item}/{_OUTPUT}" in file:
                raise  # it came out of the value's own code
            raise KeyError(f"{self.path}: no result {item!r}; it may have been cleared") from None
        self._note_use(file, item)
        if isinstance(value, Compressed):
            return numpy_pickle.load(io.BytesIO(value.data))
        return _without_name(value)

    def _announcement(
        self,
        item: str,
        verbose: int,
        timestamp: float | None,
        metadata: dict[str, Any] | None,
    ) -> str:
        since = "" if timestamp is None else f"{format_time(time.time() - timestamp): <16}"
        arguments = (metadata or {}).get("input_args", {})
        call = os.path.basename(os.path.dirname(item))
        if arguments:
            call += f"({', '.join(f'{name}={value}' for name, value in arguments.items())})"
        where = f" from {self.path}: {item}" if verbose >= 10 else ""
        return f"[Memory]{since}: Loading {call}{where}..."

    def dump_item(self, call_id: Sequence[str], item: Any, verbose: int = 1) -> None:
        """Keep a result.  One that cannot be kept is a warning: the call itself has succeeded."""
        name = os.path.join(*call_id)
        if verbose > 10:
            print(f"Persisting in {self.path}: {name}")  # noqa: T201 (what verbose asks for)
        try:
            if self.compress:
                packed = io.BytesIO()
                numpy_pickle.dump(item, packed, compress=self.compress)
                item = Compressed(packed.getvalue())
            now = time.time()
            file = self._opened()
            with file.batch():
                file[f"{name}/{_OUTPUT}"] = item
                file[f"{name}/{_USED}"] = now
            self._uses[name] = now, now
        except Exception as error:  # noqa: BLE001 (whatever the result's own code raises)
            warnings.warn(f"the result was not cached: {error}", CacheWarning, stacklevel=2)

    # When it was used -----------------------------------------------------------------------------

    def _note_use(self, file: mmapdict, item: str) -> None:
        """Remember that a result was used; say so in the file where that is news."""
        now = time.time()
        known = self._uses.get(item)
        recorded = file.get(f"{item}/{_USED}", 0.0) if known is None else known[0]
        if now - recorded >= USE_RESOLUTION and file.writable:
            with contextlib.suppress(OSError):  # the result is there all the same
                file[f"{item}/{_USED}"] = recorded = now
        self._uses[item] = recorded, now

    def _record_uses(self, file: mmapdict) -> None:
        """Write the times that are known here only.  In a batch."""
        for item, (recorded, latest) in list(self._uses.items()):
            if latest > recorded and f"{item}/{_OUTPUT}" in file:
                file[f"{item}/{_USED}"] = latest
        self._uses.clear()

    def get_items(self) -> list[CacheItemInfo]:
        """Return name, size and time of last use of all results."""
        file = self._opened()
        items = []
        for key in file:
            item, _, name = key.rpartition("/")
            if name != _OUTPUT or not _is_arguments(os.path.basename(item)):
                continue
            size = 0
            for part in _parts(item):
                with contextlib.suppress(KeyError):
                    size += file.entry_size(part)
            used = datetime.datetime.fromtimestamp(file.get(f"{item}/{_USED}", 0.0))  # noqa: DTZ006 (joblib compares it with `now()`)
            items.append(CacheItemInfo(os.path.join(self.location, item), size, used))
        return items

    def enforce_store_limits(self, *limits: Any, **named: Any) -> None:
        """Delete the results that were not used for longest, until the rest is within the limits."""
        file = self._opened()
        with file.batch():
            self._record_uses(file)
        with file.batch():
            super().enforce_store_limits(*limits, **named)
        stats = file.stats()
        if stats.dead_size > DEAD_SHARE_MAX * stats.size:
            file.vacuum()

    # What joblib writes as files ------------------------------------------------------------------

    def _key(self, location: str) -> str:
        return os.path.relpath(location, self.location) if location != self.location else ""

    @contextlib.contextmanager
    def _open_item(self, f: str, mode: str) -> Iterator[io.BytesIO]:
        file, key = self._opened(), self._key(f)
        if mode == "rb":
            try:
                data = file[key]
            except KeyError:
                raise FileNotFoundError(f"{self.path}: no {key!r}") from None
            yield io.BytesIO(data)
        else:
            content = io.BytesIO()
            yield content
            file[key] = content.getvalue()

    def _concurrency_safe_write(
        self, to_write: Any, filename: str, write_func: Callable[[Any, str], None]
    ) -> None:
        write_func(to_write, filename)  # at once, or not at all

    def _move_item(self, src: str, dst: str) -> None:
        file = self._opened()
        with file.batch():
            file[self._key(dst)] = file.pop(self._key(src))

    def _item_exists(self, location: str) -> bool:
        key = self._key(location)
        is_file = os.path.basename(key) in (_OUTPUT, _METADATA, _CODE)
        return not is_file or key in self._opened()  # a directory is wherever it is needed

    def create_location(self, location: str) -> None:
        """Do nothing: there are no directories."""

    def clear_location(self, location: str) -> None:
        """Delete what is below a path, all or nothing."""
        file, key = self._opened(), self._key(location)
        if not key:
            file.clear()
            file.vacuum()
            return
        with file.batch():
            if _is_arguments(os.path.basename(key)):
                doomed = [part for part in _parts(key) if part in file]
            else:
                doomed = [name for name in file if name.startswith(f"{key}/")]
            for name in doomed:
                del file[name]


_OWN = ("_file", "_opening", "_uses")
"""Attributes that copies in other processes have their own of."""


def _parts(item: str) -> list[str]:
    return [f"{item}/{name}" for name in (_OUTPUT, _METADATA, _USED)]


def _without_name(value: Any) -> Any:
    """Return a `numpy.memmap` as an array that does not say of which file it is a part."""
    import numpy

    if not isinstance(value, numpy.memmap) or not value.size:
        return value
    is_fortran = value.flags.fnc
    flat: Any = (value.T if is_fortran else value).reshape(-1).view(numpy.uint8)
    # NumPy looks through a memoryview, and joblib would find `value`, and the name, behind it.
    buffer: Any = pickle.PickleBuffer(flat)
    return numpy.ndarray(value.shape, value.dtype, buffer, order="F" if is_fortran else "C")
