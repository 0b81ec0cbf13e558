"""The stable hash of what is looked up, but could not be stored with one.

A `numpy.int64`, a member of an IntEnum or an instance of a subclass of str or tuple may equal a key that is
stored by its stable hash.  Where the class hashes as the type that it derives from, so does this.
"""

from __future__ import annotations

from numbers import Number
from typing import Any

from pmshelve.pmemobj.hashing import (
    CODE_FROZENSET,
    CODE_TUPLE,
    UnstableHashError,
    hash_set,
    hash_tuple,
    numeric_hash,
    spread,
    stable_hash,
)
from pmshelve.pmemobj.scalars import is_standard

__all__ = ["lookup_hash"]


def lookup_hash(key: Any) -> int | None:
    """Return the stable hash of the keys that may equal `key`.

    Returns 0 where no key with a stable hash can, None where any might.
    """
    cls: Any = type(key)
    if isinstance(key, str):
        text = str.__str__(key)
        return stable_hash(text) if hash(key) == hash(text) else 0
    if isinstance(key, bytes):
        raw = memoryview(key).tobytes()
        return stable_hash(raw) if hash(key) == hash(raw) else 0
    if isinstance(key, Number):
        return spread(hash(key)) if numeric_hash is hash else None
    if cls.__hash__ is tuple.__hash__:
        return _combined(list(tuple.__iter__(key)), hash_tuple)
    if cls.__hash__ is frozenset.__hash__:
        return _combined(list(frozenset.__iter__(key)), hash_set)
    ours: Any = next((base for base in cls.__mro__ if base.__dict__.get("_p_code")), None)
    if ours is not None and ours._p_code in (CODE_TUPLE, CODE_FROZENSET):
        if cls.__hash__ is not ours.__hash__:
            return None
        return _combined(list(key), hash_tuple if ours._p_code == CODE_TUPLE else hash_set)
    if cls.__eq__ is (ours or object).__eq__ or is_standard(cls):
        return 0
    return None


def _combined(items: list[Any], combine: Any) -> int | None:
    hashes = []
    for item in items:
        try:
            number: int | None = stable_hash(item)
        except UnstableHashError:
            number = lookup_hash(item)
        if number is None or not number:
            return number
        hashes.append(number)
    result: int = combine(hashes, len(hashes))
    return result
