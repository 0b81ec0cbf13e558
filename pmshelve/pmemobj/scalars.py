"""Immutable values that are objects in the heap: what is too long for an oid.

A block of type `POBJECT_TYPE_NUM`; its size says how long the value is (V2):

    code   type      content behind the object header (8 bytes)
       1   str       UTF-8 ("surrogatepass": lone surrogates have three bytes each)
       2   bytes     the bytes
       3   int       two's complement, little-endian, as short as it can be
       4   complex   real and imaginary part, IEEE 754, 16 bytes
       5   others    CRC-32 of what follows (4 bytes, little-endian); pickle, protocol 4

Types are exact.  Those of code 5 are nominated: by default the immutable ones of the standard library
that people keep, and members of any Enum that can be imported again; `Scalars.nominate` adds to them.
Their pickles name public classes only, so that every Python version can read what another wrote.
"""

from __future__ import annotations

import enum
import importlib
import io
import pickle
import struct
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from pmshelve.errors import (
    CorruptionError,
    PickleRefusedError,
    UnknownTypeError,
    UnsupportedTypeError,
)
from pmshelve.pmemobj.layout import POBJECT_TYPE_NUM, TYPE_CODE_SHIFT

if TYPE_CHECKING:
    from pmshelve.pmemobj.heap import Heap

__all__ = ["CONTAINER_CODE_MIN", "STANDARD", "Scalars", "is_standard", "pickled"]

CONTAINER_CODE_MIN = 16
"""Type codes below are scalars', which hold no references."""

CODE_STR = 1
CODE_BYTES = 2
CODE_INT = 3
CODE_COMPLEX = 4
CODE_PICKLE = 5

_PROTOCOL = 4  # the oldest Python we run on writes it by default

STANDARD = {
    "date": "datetime",
    "datetime": "datetime",
    "time": "datetime",
    "timedelta": "datetime",
    "timezone": "datetime",
    "ZoneInfo": "zoneinfo",
    "Decimal": "decimal",
    "Fraction": "fractions",
    "UUID": "uuid",
    "PosixPath": "pathlib",
    "PurePosixPath": "pathlib",
    "PureWindowsPath": "pathlib",
    "WindowsPath": "pathlib",
    "IPv4Address": "ipaddress",
    "IPv4Interface": "ipaddress",
    "IPv4Network": "ipaddress",
    "IPv6Address": "ipaddress",
    "IPv6Interface": "ipaddress",
    "IPv6Network": "ipaddress",
    "Pattern": "re",
    "range": "builtins",
}
"""Classes stored by pickle without being nominated: name -> the module that has it."""

_INSTEAD = {
    "builtins.list": "use PersistentList: pool.new(PersistentList, ...)",
    "builtins.dict": "use PersistentDict: pool.new(PersistentDict, ...)",
    "builtins.set": "use PersistentSet: pool.new(PersistentSet, ...), or a frozenset",
    "builtins.bytearray": "use bytes, or PersistentArray: pool.new(PersistentArray, ...)",
    "numpy.ndarray": "use PersistentArray: pool.new(PersistentArray, ...)",
}


def is_standard(cls: type) -> bool:
    """Whether `cls` is one of `STANDARD`, none of whose modules need be imported."""
    module = STANDARD.get(cls.__qualname__)
    return module is not None and getattr(sys.modules.get(module), cls.__name__, None) is cls


class Scalars:
    """Scalars of one pool.

    Parameters
    ----------
    heap
        Where they lie.

    Attributes
    ----------
    allow_pickle
        Whether loading a value may run the unpickler.
    storers
        Class -> what stores its instances, of the classes met so far.
    """

    def __init__(self, heap: Heap) -> None:
        self.allow_pickle: bool = True
        self._heap = heap
        self._nominated: set[type] = set()
        self.storers: dict[type, Callable[[Any], int]] = {
            str: self._store_str,
            bytes: self._store_bytes,
            int: self._store_int,
            complex: self._store_complex,
        }
        self._loaders: dict[int, Callable[[int, int], Any]] = {
            CODE_STR: self._load_str,
            CODE_BYTES: self._load_bytes,
            CODE_INT: self._load_int,
            CODE_COMPLEX: self._load_complex,
            CODE_PICKLE: self._load_pickle,
        }

    def nominate(self, *types: type) -> None:
        """Let instances of exactly these classes be stored by pickle."""
        for typ in types:
            if not isinstance(typ, type):
                raise TypeError(f"a class is nominated, not {typ!r}")
        for typ in types:
            self._nominated.add(typ)
            self.storers.setdefault(typ, self._store_pickle)

    def is_nominated(self, typ: type) -> bool:
        """Whether instances of exactly `typ` are stored by pickle."""
        return typ in self._nominated or is_standard(typ) or isinstance(typ, enum.EnumMeta)

    # Storing ------------------------------------------------------------------------------------

    def store(self, value: Any) -> int | None:
        """Store a scalar; return the offset of the new object, which has no references.

        Returns None where the class of `value` is none of those here.

        Raises
        ------
        UnsupportedTypeError
            The class could not be found again, or the value cannot be pickled.
        """
        cls = type(value)
        storer = self.storers.get(cls)
        if storer is None:
            if not self.is_nominated(cls):
                return None
            if isinstance(cls, enum.EnumMeta):
                _demand_importable(cls)
            storer = self.storers[cls] = self._store_pickle
        return storer(value)

    def put(self, code: int, content: bytes) -> int:
        """Store bytes as a scalar of a type code, with no references; return the offset."""
        heap = self._heap
        size = len(content)
        offset = heap.alloc(8 + size, POBJECT_TYPE_NUM)
        memory = heap.memory
        memory.words[offset >> 3] = code << TYPE_CODE_SHIFT
        memory.map[offset + 8 : offset + 8 + size] = content
        return offset

    def _store_str(self, value: str) -> int:
        return self.put(CODE_STR, value.encode("utf-8", "surrogatepass"))

    def _store_bytes(self, value: bytes) -> int:
        return self.put(CODE_BYTES, value)

    def _store_int(self, value: int) -> int:
        # Not by way of text, whose length Python limits.
        return self.put(CODE_INT, value.to_bytes(_int_size(value), "little", signed=True))

    def _store_complex(self, value: complex) -> int:
        return self.put(CODE_COMPLEX, struct.pack("<dd", value.real, value.imag))

    def _store_pickle(self, value: Any) -> int:
        content = pickled(value)
        return self.put(CODE_PICKLE, crc32(content).to_bytes(4, "little") + content)

    # Loading ------------------------------------------------------------------------------------

    def load(self, offset: int, code: int) -> Any:
        """Return the value of the object at `offset`, whose type code is `code`.

        Raises
        ------
        CorruptionError
            There is no such value.
        UnknownTypeError
            Its class cannot be imported.
        PickleRefusedError
            It is a pickle, and `allow_pickle` is off.
        """
        loader = self._loaders.get(code)
        if loader is None:
            raise _damaged(f"no value has type code {code}", offset)
        size = self._heap.size_of(offset) - 8
        if size < 0:
            raise _damaged("the block of a value is too short", offset)
        return loader(offset + 8, size)

    def _load_str(self, offset: int, size: int) -> str:
        try:
            return self._heap.memory.map[offset : offset + size].decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise _damaged("the bytes of a str are no UTF-8", offset) from None

    def _load_bytes(self, offset: int, size: int) -> bytes:
        return self._heap.memory.map[offset : offset + size]

    def _load_int(self, offset: int, size: int) -> int:
        value = int.from_bytes(self._heap.memory.map[offset : offset + size], "little", signed=True)
        if size != _int_size(value):
            raise _damaged("the bytes of an int are more than it needs", offset)
        return value

    def _load_complex(self, offset: int, size: int) -> complex:
        if size != 16:
            raise _damaged("a complex number has 16 bytes", offset)
        doubles = self._heap.memory.doubles
        return complex(doubles[offset >> 3], doubles[(offset >> 3) + 1])

    def _load_pickle(self, offset: int, size: int) -> Any:
        content = self._heap.memory.map[offset + 4 : offset + size]
        check = int.from_bytes(self._heap.memory.map[offset : offset + min(size, 4)], "little")
        if size < 4 or check != crc32(content):  # before anything of it runs
            raise _damaged("the pickle of a value is damaged", offset)
        if not self.allow_pickle:
            raise PickleRefusedError(
                "reading the value would run the unpickler",
                hint="open the pool with allow_pickle=True if you trust whoever wrote it",
            )
        try:
            return pickle.loads(content)
        except (ImportError, AttributeError) as error:
            raise UnknownTypeError(
                f"the class of a stored value cannot be found: {error}",
                hint="make it importable under that name again",
            ) from error

    # Refusing -----------------------------------------------------------------------------------

    def unsupported(self, value: Any) -> UnsupportedTypeError:
        """Return the error of a value that cannot be stored: its message says what can."""
        cls = type(value)
        name = f"{cls.__module__}.{cls.__qualname__}"
        hint = _INSTEAD.get(name, "")
        if not hint:
            hint = (
                f"if it is immutable, nominate it: pool.persist_via_pickle({cls.__qualname__}); "
                "else derive it from PersistentObject"
            )
        return UnsupportedTypeError(f"Don't know how to persist {name}", hint=hint)


def _int_size(value: int) -> int:
    return (value if value >= 0 else ~value).bit_length() // 8 + 1


def _damaged(problem: str, offset: int) -> CorruptionError:
    return CorruptionError(problem, offset=offset, invariant="V2")


def _demand_importable(cls: type) -> None:
    """Make sure that a pickle can find a class by its name again."""
    found: Any = sys.modules.get(cls.__module__)
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not cls:
        raise UnsupportedTypeError(
            f"Don't know how to persist {cls.__module__}.{cls.__qualname__}: "
            "the class cannot be found by its name",
            hint="define the class at the top of a module",
        )


# Pickles --------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    """Writes public names only, whatever module keeps the class in the Python that runs."""

    def reducer_override(self, value: Any) -> Any:
        cls = type(value)
        if cls is type and STANDARD.get(value.__qualname__) == "pathlib" and is_standard(value):
            return getattr, (importlib.import_module("pathlib"), value.__qualname__)
        if cls is types.ModuleType and value.__name__ == "pathlib":
            return importlib.import_module, ("pathlib",)
        if not is_standard(cls):
            return NotImplemented
        if cls.__qualname__ == "Pattern":
            return importlib.import_module("re").compile, (value.pattern, value.flags)
        if cls.__qualname__ == "ZoneInfo" and value.key is not None:
            return cls, (value.key,)
        return NotImplemented


def pickled(value: Any) -> bytes:
    """Return a value as a pickle.

    Raises
    ------
    UnsupportedTypeError
        It cannot be pickled.
    """
    file = io.BytesIO()
    try:
        _Pickler(file, _PROTOCOL).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError) as error:
        cls = type(value)
        raise UnsupportedTypeError(
            f"Don't know how to persist this {cls.__module__}.{cls.__qualname__}: "
            f"it cannot be pickled: {error}",
            hint="nothing was stored",
        ) from error
    return file.getvalue()
