"""A zarr store in one file: an mmapdict whose keys are zarr's and whose values are bytes.

    value               kept as                       read as
    up to 64 KiB        bytes, under the entry's CRC  a copy
    larger              an array of bytes             a read-only view of the mapped file: no copy

So a chunk or a shard that is asked for in parts is read in parts, and one that is not compressed goes
from the page cache to the caller's array in one copy.  Any number of processes may use one file.

Gets and listings are answered at once, in zarr's event loop: they look into mapped memory.  What may
wait for another process's lock, or writes much, runs in a thread.  A directory of keys is deleted, and
a set of keys written, as one batch: all of it or none.

zarr 3.1.3 and later (`pip install pmshelve[zarr]`), which needs CPython 3.11.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from pmshelve.errors import UnsupportedTypeError
from pmshelve.mmapdict import mmapdict

try:
    import numpy
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
    from zarr.core.buffer import Buffer, default_buffer_prototype
except ImportError as error:  # pragma: no cover - where the suite runs it is there
    raise ImportError(
        f"pmshelve.zarr_compat needs zarr 3.1.3 or later ({error}); pip install pmshelve[zarr]"
    ) from error

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype

__all__ = ["MmapDictStore"]

SMALL_SIZE_MAX = 1 << 16
"""Bytes of a value up to which it is kept as bytes: what the CRC of an entry covers."""


class MmapDictStore(Store):  # type: ignore[misc]  # zarr may be missing where this is checked
    """A zarr store in one mmapdict file.

    Parameters
    ----------
    path
        The file's name.  It is created when it is first used, unless the store is read-only.
    read_only
        Refuse all changes; the file must exist.
    autovacuum
        Give the space of replaced and deleted chunks back when it exceeds what is in use (and 1 MiB).
    timeout
        Seconds to wait for another process's lock; None for ever.
    sync
        Return from each change only when it is on the disk.

    Raises
    ------
    FileNotFoundError
        When the store is opened or first used: `read_only`, and there is no such file.
    NotAStoreError, VersionError, WrongDoorError
        Likewise: the file is something else.
    LockTimeoutError, NoSpaceError, StorageError
        From any change: nothing of it was done.

    Notes
    -----
    Safe from threads and, file and pickled copies, from any number of processes.  After a crash each
    value is the old or the new one.  Nothing is unpickled, so files of strangers can be read.  Views
    handed out stay valid after `close` and beside later changes.

    Keys are listed from memory; the list is made anew after a change of the file, which costs
    O(number of keys).  `list_dir` costs O(number of names in that directory) otherwise.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        autovacuum: bool = True,
        timeout: float | None = 60.0,
        sync: bool = False,
    ) -> None:
        super().__init__(read_only=read_only)
        self.path: str = os.path.abspath(os.fspath(path))
        self._options = {"autovacuum": autovacuum, "timeout": timeout, "sync": sync}
        self._set_unopened()

    def _set_unopened(self) -> None:
        self._is_open = False
        self._file: mmapdict | None = None
        self._opening = threading.Lock()
        self._listing: tuple[int, list[str]] = (-1, [])

    # Being a store ------------------------------------------------------------------------------

    async def _open(self) -> None:
        if self._is_open:
            raise ValueError("store is already open")
        self._opened()

    def _opened(self) -> mmapdict:
        """Return the file, opened first if need be: zarr uses stores that it did not open."""
        file = self._file
        if file is None:
            with self._opening:
                file = self._file
                if file is None:
                    file = self._file = mmapdict(
                        self.path,
                        self._read_only,
                        mmap_mode="r",
                        allow_pickle=False,
                        face="native",
                        convert=False,
                        **self._options,  # type: ignore[arg-type]
                    )
                self._is_open = True
        return file

    def close(self) -> None:
        """Close the file.  Using the store again opens it again; views stay valid."""
        super().close()
        with self._opening:
            file, self._file = self._file, None
            self._listing = (-1, [])  # the next use may find another file, with the same number
        if file is not None:
            file.close()

    def with_read_only(self, read_only: bool = False) -> MmapDictStore:
        """Return another store on the same file, not opened yet."""
        return type(self)(self.path, read_only=read_only, **self._options)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, type(self))
            and self.path == other.path
            and self.read_only == other.read_only
        )

    def __hash__(self) -> int:
        return hash((self.path, self.read_only))

    def __str__(self) -> str:
        return f"mmapdict://{self.path}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self}')"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_read_only": self._read_only, "_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_unopened()

    # Reading ------------------------------------------------------------------------------------

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the value of `key`, or the part of it that is asked for; None if there is none."""
        try:
            value = self._opened()[key]
        except KeyError:
            return None
        view = self._view(key, value)
        start, stop = _span(len(view), byte_range)
        if stop - start < len(view):
            view = view[start:stop]
        return (prototype or default_buffer_prototype()).buffer.from_bytes(view)

    def _view(self, key: str, value: Any) -> Any:
        """Return what the file has for a key as a buffer of bytes."""
        if value.__class__ is bytes:
            return value
        if isinstance(value, numpy.ndarray) and value.dtype == numpy.uint8 and value.ndim == 1:
            return value.data if value.size else b""
        raise UnsupportedTypeError(
            f"a value of type {type(value).__name__}, which zarr did not write",
            self.path,
            key,
            "open the file with pmshelve.mmapdict.mmapdict",
        )

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the value of `key`, or the part of it that is asked for; None if there is none."""
        return self.get_sync(key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return parts of values, None for missing keys, in the order that they are asked for."""
        return [
            self.get_sync(key, prototype=prototype, byte_range=part) for key, part in key_ranges
        ]

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return key in self._opened()

    async def getsize(self, key: str) -> int:
        """Return the size of a value in bytes, without reading it; FileNotFoundError if missing."""
        return self._size(key)

    def _size(self, key: str) -> int:
        try:
            return len(self._view(key, self._opened()[key]))
        except KeyError:
            raise FileNotFoundError(key) from None

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the size in bytes of all values below `prefix`, without reading them."""
        total = 0
        for key in self._keys(_below(prefix)):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile, by others
                total += self._size(key)
        return total

    # Listing ------------------------------------------------------------------------------------

    def _sorted(self) -> list[str]:
        """Return all keys in order.  The list is kept until the file changes; do not change it."""
        file = self._opened()
        commit = file.commit_number  # before the keys: what is newer than it says is made anew
        listing = self._listing
        if listing[0] != commit:
            listing = self._listing = (commit, sorted(file))
        return listing[1]

    def _keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with `prefix`."""
        keys = self._sorted()
        if not prefix:
            return keys
        first = last = bisect_left(keys, prefix)
        while last < len(keys) and keys[last].startswith(prefix):
            last += 1
        return keys[first:last]

    async def list(self) -> AsyncIterator[str]:
        """Iterate over all keys."""
        for key in self._sorted():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the keys that begin with `prefix`."""
        for key in self._keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Iterate over the names in the directory `prefix`: of keys, and of directories."""
        keys = self._sorted()
        prefix = _below(prefix.rstrip("/"))
        names = set()
        at = bisect_left(keys, prefix)
        while at < len(keys) and keys[at].startswith(prefix):
            name, is_directory, _ = keys[at][len(prefix) :].partition("/")
            names.add(name)
            # "0" is the character after "/": go on behind all that is in this directory.
            at = bisect_left(keys, f"{prefix}{name}0", at) if is_directory else at + 1
        for name in names:
            yield name

    async def is_empty(self, prefix: str) -> bool:
        """Whether there is no key below the directory `prefix`."""
        prefix = _below(prefix)
        keys = self._sorted()
        at = bisect_left(keys, prefix)
        return not (at < len(keys) and keys[at].startswith(prefix))

    # Writing ------------------------------------------------------------------------------------

    def set_sync(self, key: str, value: Buffer) -> None:
        """Set `key` to `value`, atomically."""
        self._check_writable()
        self._opened()[key] = _data(value)

    async def set(self, key: str, value: Buffer) -> None:
        """Set `key` to `value`, atomically."""
        self._check_writable()
        await asyncio.to_thread(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Set `key` to `value` unless it is there; of several writers at once, one does."""
        self._check_writable()
        data = _data(value)
        await asyncio.to_thread(self._opened().setdefault, key, data)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        """Set many keys, all or none."""
        self._check_writable()
        pairs = [(key, _data(value)) for key, value in values]
        await asyncio.to_thread(self._opened().update, pairs)

    def delete_sync(self, key: str) -> None:
        """Delete `key` if it is there."""
        self._check_writable()
        with contextlib.suppress(KeyError):
            del self._opened()[key]

    async def delete(self, key: str) -> None:
        """Delete `key` if it is there."""
        self._check_writable()
        await asyncio.to_thread(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all keys below the directory `prefix`, all or none."""
        self._check_writable()
        await asyncio.to_thread(self._delete_below, _below(prefix))

    def _delete_below(self, prefix: str) -> None:
        file = self._opened()
        if not prefix:
            file.clear()
            return
        with file.batch():
            for key in [key for key in file if key.startswith(prefix)]:
                del file[key]

    async def clear(self) -> None:
        """Delete all keys, all or none."""
        await self.delete_dir("")


def _below(prefix: str) -> str:
    """Return what the keys in a directory begin with."""
    return prefix if not prefix or prefix.endswith("/") else prefix + "/"


def _data(value: Buffer) -> Any:
    """Return what is kept for a value.  Large ones are written from where they are."""
    if not isinstance(value, Buffer):
        raise TypeError(f"a value must be a zarr Buffer, not {type(value).__name__}")
    if len(value) <= SMALL_SIZE_MAX:
        return value.to_bytes()
    return numpy.asarray(value.as_numpy_array())


def _span(size: int, byte_range: ByteRequest | None) -> tuple[int, int]:
    """Return where a part of a value of `size` bytes begins and ends."""
    if byte_range is None:
        return 0, size
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, size
    if isinstance(byte_range, SuffixByteRequest):
        return max(0, size - byte_range.suffix), size
    raise ValueError(f"Unexpected byte_range, got {byte_range!r}")
