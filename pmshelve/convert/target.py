"""What a new file can be: two stores, and the doors that it is for.

    to         face     made as                                     keys             values
    mmapdict   native   `mmapdict` and `pmshelve.open` have it      str              any
    mmapdict   bytes    `dbm_compat.mmapdict` has it                bytes, str       bytes
    mmapdict   zict     `zict_compat.MmapDict` has it               what dask uses   bytes
    pmemobj    native   `pmshelve.open(backend="pmemobj")` has it   str              any
    pmemobj    bytes    `dbm_compat.pmemobj` has it                 bytes, str       bytes
    pmemobj    zict     `zict_compat.PmemDict` has it               what dask uses   bytes

A target turns a key into a *name* and a value into a *form*, or says why it cannot: what it keeps, and
what `read` gives again.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import Any, Literal

from pmshelve.convert.compare import is_same_bytes, is_same_form
from pmshelve.convert.pickles import (
    PLAIN,
    buffer_of,
    in_one_piece,
    plain,
    premake,
    unpicklable,
)
from pmshelve.dbm_compat import pools
from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.picklers.codec import encode
from pmshelve.mmapdict.picklers.premade import Premade
from pmshelve.zict_compat.keys import encode_key

__all__ = ["FACES", "STORES", "Target", "make_target"]

STORES = ("mmapdict", "pmemobj")
FACES = ("native", "bytes", "zict")


class Target:
    """Base of all targets: an mmapdict or a pool at a path, written first and read again afterwards.

    Parameters
    ----------
    mode
        Permissions of the file, subject to the umask.
    takes_pickles
        Whether a door for bytes takes the source's pickles for bytes.

    Attributes
    ----------
    is_text
        Whether keys are text, and come back as that where they were bytes.
    """

    is_text = False

    def __init__(self, mode: int, *, takes_pickles: bool) -> None:
        self._mode = mode
        self._takes_pickles = takes_pickles
        self.store: Any = None

    # What it keeps --------------------------------------------------------------------------------

    def name(self, key: Any) -> Any:
        """Return what the store calls a key.

        Raises
        ------
        TypeError, ValueError
            It cannot have one like this.
        """
        raise NotImplementedError

    def form(self, value: Any) -> Any:
        """Return what the store keeps of a value, or raise as `name` does."""
        raise NotImplementedError

    def check(self, form: Any) -> None:
        """Raise what `write` would raise of a form, without a store."""

    def is_same(self, form: Any, found: Any) -> bool:
        """Whether what was read is what was to be kept."""
        return is_same_form(form, found)

    # The store ------------------------------------------------------------------------------------

    def create(self, path: str) -> None:
        """Make the store."""
        raise NotImplementedError

    def open(self, path: str) -> None:
        """Open the store again, to read it."""
        raise NotImplementedError

    def holds(self, name: Any) -> bool:
        """Whether a value was written under this name."""
        return name in self.store

    def write(self, name: Any, form: Any) -> None:
        """Keep a value."""
        self.store[name] = form

    def read(self, name: Any) -> Any:
        """Return what is kept."""
        return self.store[name]

    def close(self) -> None:
        """Close the store; all of it is on the disk then, but for what closing itself wrote."""
        store, self.store = self.store, None
        if store is not None:
            store.close()

    def finish(self) -> None:
        """Close the store after writing."""
        self.store.sync()
        self.close()

    def abandon(self) -> None:
        """Close the store, whatever state it is in: it is going to be removed."""
        with suppress(Exception):
            self.close()


# Names and forms --------------------------------------------------------------------------------


def _text(key: Any) -> str:
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        try:
            return key.decode()
        except UnicodeDecodeError:
            raise TypeError("the key is not UTF-8, and keys are text here") from None
    raise TypeError(f"keys are str here, not {type(key).__name__}")


def _bytes_key(key: Any) -> bytes:
    if isinstance(key, str):
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise TypeError("the key has surrogates, and cannot be UTF-8") from None
    if isinstance(key, bytes):
        return key
    raise TypeError(f"keys are bytes or str here, not {type(key).__name__}")


def _is_buffer(value: Any) -> bool:
    try:
        with memoryview(value) as view:
            return view.c_contiguous and not hasattr(value, "dtype")
    except TypeError:
        return False


def _is_array(value: Any) -> bool:
    """Whether an mmapdict keeps a value as an array of plain numbers or text."""
    kind = type(value)
    if kind.__name__ not in {"ndarray", "memmap", "MaskedArray"}:
        return False
    return kind.__module__.split(".")[0] == "numpy" and not value.dtype.hasobject


class _Native(Target):
    """Any values, under text."""

    is_text = True

    def name(self, key: Any) -> Any:
        return _text(key)


class _Bytes(Target):
    """Bytes, and nothing else."""

    def form(self, value: Any) -> Any:
        value = buffer_of(value if self._takes_pickles else plain(value))
        if isinstance(value, Premade) and self._takes_pickles and not value.buffers:
            return value.raw
        if _is_buffer(value):
            return self._buffer(value)
        what = "an object" if isinstance(value, Premade) else f"of type {type(value).__name__}"
        raise TypeError(f"values are bytes here, and this one is {what}")

    def _buffer(self, value: Any) -> Any:
        return value if isinstance(value, bytes) else bytes(value)


# mmapdict ---------------------------------------------------------------------------------------


class _Mmapdict(Target):
    face: Literal["native", "bytes"] = "native"

    def create(self, path: str) -> None:
        self.store = mmapdict(path, face=self.face, exclusive=True, mode=self._mode)

    def open(self, path: str) -> None:
        self.store = mmapdict(path, readonly=True, mmap_mode="r", face=self.face)
        self.store._views.keep_pickles = True  # noqa: SLF001 - a part of the package


class MmapdictNative(_Native, _Mmapdict):
    """What `pmshelve.mmapdict.mmapdict` and `pmshelve.open` use."""

    def form(self, value: Any) -> Any:
        value = plain(value)
        if type(value).__name__ in {"mmap", "memoryview"}:
            return bytes(value)  # no value of its own, as a bytearray is, which comes back as one
        if type(value) in PLAIN or isinstance(value, Premade) or _is_array(value):
            return value
        return premake(value)

    def check(self, form: Any) -> None:
        encode(form)


class MmapdictBytes(_Bytes, _Mmapdict):
    """What `pmshelve.dbm_compat.mmapdict` uses."""

    face = "bytes"

    def name(self, key: Any) -> Any:
        return _bytes_key(key).decode("utf-8", "surrogateescape")


# pmemobj ----------------------------------------------------------------------------------------

_BATCH_COUNT, _BATCH_SIZE = 1000, 1 << 22
_NATIVE = (type(None), bool, int, float, complex, str)


class _Pool(Target):
    face = "native"

    def create(self, path: str) -> None:
        self.store = pools.open_store(path, "n", self._mode, face=self.face)
        self._waiting: dict[Any, Any] = {}
        self._size = 0

    def open(self, path: str) -> None:
        self.store = pools.open_store(path, "r", self._mode, face=self.face, allow_pickle=False)

    def holds(self, name: Any) -> bool:
        return name in self._waiting or name in self.store

    def write(self, name: Any, form: Any) -> None:
        kept = form.raw if isinstance(form, Premade) else form
        self._waiting[name] = kept
        self._size += len(kept) if isinstance(kept, bytes | str) else 8
        if len(self._waiting) >= _BATCH_COUNT or self._size >= _BATCH_SIZE:
            self._write_out()

    def _write_out(self) -> None:
        """Write what waits as one transaction, for which it has to be in memory."""
        with self.store.batch():
            for name, kept in self._waiting.items():
                self.store.root[name] = kept
        self._waiting = {}
        self._size = 0

    def read(self, name: Any) -> Any:
        return self.store.root[name]

    def finish(self) -> None:
        self._write_out()
        super().finish()


class PoolNative(_Native, _Pool):
    """What ``pmshelve.open(..., backend="pmemobj")`` uses: plain values, and pickles of the rest."""

    def form(self, value: Any) -> Any:
        value = plain(value)
        if isinstance(value, Premade):
            return Premade(in_one_piece(value))
        if type(value) in _NATIVE:
            return value
        if type(value).__name__ in {"mmap", "memoryview"}:
            value = bytes(value)
        elif type(value).__name__ == "memmap":
            value = value.__array__().copy(order="K")
        with unpicklable(value):
            return Premade(pickle.dumps(value))

    def read(self, name: Any) -> Any:
        value = super().read(name)
        return Premade(value) if type(value) is bytes else value


class PoolBytes(_Bytes, _Pool):
    """What `pmshelve.dbm_compat.pmemobj` uses."""

    face = "bytes"

    def name(self, key: Any) -> Any:
        return _bytes_key(key)


# zict -------------------------------------------------------------------------------------------


class _Zict(Target):
    """Bytes, under keys of every kind that dask uses."""

    door = ""

    def name(self, key: Any) -> Any:
        encode_key(key)  # says what cannot be one
        return key

    def form(self, value: Any) -> Any:
        value = buffer_of(plain(value))
        if _is_buffer(value):
            return value
        what = "an object" if isinstance(value, Premade) else f"of type {type(value).__name__}"
        raise TypeError(f"values are bytes here, and this one is {what}")

    def is_same(self, form: Any, found: Any) -> bool:
        return is_same_bytes(form, found)

    def create(self, path: str) -> None:
        self.store = self._class()(path, mode=self._mode)

    def open(self, path: str) -> None:
        self.store = self._class()(path)

    def _class(self) -> Any:
        import pmshelve.zict_compat

        return getattr(pmshelve.zict_compat, self.door)


class MmapdictZict(_Zict):
    """What `pmshelve.zict_compat.MmapDict` uses."""

    door = "MmapDict"


class PoolZict(_Zict):
    """What `pmshelve.zict_compat.PmemDict` uses."""

    door = "PmemDict"


_CLASSES: dict[tuple[str, str], type[Target]] = {
    ("mmapdict", "native"): MmapdictNative,
    ("mmapdict", "bytes"): MmapdictBytes,
    ("mmapdict", "zict"): MmapdictZict,
    ("pmemobj", "native"): PoolNative,
    ("pmemobj", "bytes"): PoolBytes,
    ("pmemobj", "zict"): PoolZict,
}


def make_target(to: str, face: str, mode: int, *, takes_pickles: bool) -> Target:
    """Return a target; arguments as for `convert`.

    Raises
    ------
    ValueError
        There is no such store, or no such face.
    """
    if to not in STORES:
        raise ValueError(f"no store {to!r} to convert to; there is {', '.join(STORES)}")
    if face not in FACES:
        raise ValueError(f"no face {face!r}; there is {', '.join(FACES)}")
    return _CLASSES[to, face](mode, takes_pickles=takes_pickles)
