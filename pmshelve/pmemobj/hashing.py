"""The stable hash: what a stored dict or set looks its keys up by.  (docs/format-pmemobj.md)

Python's own hash differs from process to process.  This one is part of the file format, so it depends
on the value alone, and equal keys have equal hashes whatever their types: 1, 1.0, True, 1+0j,
Fraction(1) and Decimal(1) are one key.  All arithmetic is modulo 2**64, M is 0x9E3779B97F4A7C15:

    value                      hash
    number                     (n * M) | 1, n being the number's hash as Python documents it for 64-bit
                               builds ("Hashing of numeric types", modulus 2**61 - 1); a NaN has n = 0
    str                        ((size << 32) + crc32(UTF-8)) * M | 1           size in bytes
    bytes                      ((size << 32) + (crc32 ^ 0x5BD1E995)) * M | 1
    None                       0xFCA86420FCA86421
    tuple                      acc = (0x345678 + count) * M; for each item's h: acc = (acc ^ h) * M,
                               acc ^= acc >> 29; then acc | 1
    frozenset                  (sum of (h ^ h >> 32) * M ^ (count + 1) * 0xD6E8FEB86659FD93) * M | 1

The hash is odd, hence never 0, which marks a key that has none (D3): a class that is not in this list may
define equality as it likes, and its instances are found through Python's hash, in memory.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any
from zlib import crc32

__all__ = [
    "UnstableHashError",
    "documented_hash",
    "hash_set",
    "hash_tuple",
    "is_sequence",
    "is_set",
    "numeric_hash",
    "spread",
    "stable_hash",
]

MULTIPLIER = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_BYTES = 0x5BD1E995
_NONE = 0xFCA86420FCA86421
_TUPLE = 0x345678
_SET = 0xD6E8FEB86659FD93

_MODULUS = (1 << 61) - 1
_INF = 314159
_IMAG = 1000003

CODE_TUPLE = 18
"""`_p_code` of the class that is a tuple to this hash."""
CODE_FROZENSET = 20
"""`_p_code` of the class that is a frozenset to this hash."""


class UnstableHashError(TypeError):
    """The value is hashable perhaps, but its class has no place in the format."""


def stable_hash(value: Any) -> int:  # noqa: C901 - one line a type, in order of frequency
    """Return the hash of a key, 1..2**64-1.

    Raises
    ------
    UnstableHashError
        Not exactly of one of the types above, or a collection that holds such a thing.
    """
    cls = type(value)
    if cls is str:
        try:
            raw = value.encode()  # half the time of naming an error handler
        except UnicodeEncodeError:
            raw = value.encode("utf-8", "surrogatepass")
        return ((len(raw) << 32) + crc32(raw)) * MULTIPLIER & _WORD | 1
    if cls is int or cls is bool:
        return numeric_hash(value) * MULTIPLIER & _WORD | 1
    if cls is bytes:
        return ((len(value) << 32) + (crc32(value) ^ _BYTES)) * MULTIPLIER & _WORD | 1
    if value is None:
        return _NONE
    if cls is float or cls is complex:
        # A NaN is the one number whose hash in Python is its address.
        return (numeric_hash(value) if value == value else 0) * MULTIPLIER & _WORD | 1  # noqa: PLR0124
    if cls is tuple or cls is frozenset:
        return _hash_nested(value)
    if cls.__dict__.get("_p_code") in (CODE_TUPLE, CODE_FROZENSET):
        return _hash_nested(value)
    if _is(cls, "decimal", "Decimal"):
        if value.is_nan():
            hash(value)  # a signalling one cannot be a key
            return 1
        return numeric_hash(value) * MULTIPLIER & _WORD | 1
    if _is(cls, "fractions", "Fraction"):
        return numeric_hash(value) * MULTIPLIER & _WORD | 1
    raise UnstableHashError(f"{cls.__qualname__} has no stable hash")


def spread(number: int) -> int:
    """Return the stable hash of whatever has the numeric hash `number`."""
    return number * MULTIPLIER & _WORD | 1


def _is(cls: type, module: str, name: str) -> bool:
    """Whether a class is the one of a module that may not be imported."""
    return cls.__name__ == name and getattr(sys.modules.get(module), name, None) is cls


# Collections ----------------------------------------------------------------------------------


def hash_tuple(hashes: Iterable[int], count: int) -> int:
    """Return the hash of a tuple from those of its items."""
    acc = (_TUPLE + count) * MULTIPLIER & _WORD
    for item in hashes:
        acc = (acc ^ item) * MULTIPLIER & _WORD
        acc ^= acc >> 29
    return acc | 1


def hash_set(hashes: Iterable[int], count: int) -> int:
    """Return the hash of a set from those of its elements."""
    total = sum([(item ^ item >> 32) * MULTIPLIER for item in hashes])
    return ((total ^ (count + 1) * _SET) & _WORD) * MULTIPLIER & _WORD | 1


def is_sequence(cls: type) -> bool:
    """Whether exactly `cls` hashes as a tuple."""
    return cls is tuple or cls.__dict__.get("_p_code") == CODE_TUPLE


def is_set(cls: type) -> bool:
    """Whether exactly `cls` hashes as a frozenset."""
    return cls is frozenset or cls.__dict__.get("_p_code") == CODE_FROZENSET


def _hash_nested(value: Any) -> int:
    """Hash a tuple or frozenset without recursion: depth does not matter."""
    hashes: list[int] = []
    # (collection, items to come, hashes of those done) from the outermost inwards
    stack = [(value, iter(tuple(value)), hashes)]
    while True:
        whole, items, hashes = stack[-1]
        for item in items:
            cls = type(item)
            if is_sequence(cls) or is_set(cls):
                stack.append((item, iter(tuple(item)), []))
                break
            hashes.append(stable_hash(item))
        else:
            stack.pop()
            combine = hash_tuple if is_sequence(type(whole)) else hash_set
            result = combine(hashes, len(hashes))
            if not stack:
                return result
            stack[-1][2].append(result)


# Numbers --------------------------------------------------------------------------------------


def documented_hash(value: Any) -> int:
    """Return the numeric hash of 64-bit builds, computed as the language reference describes it."""
    cls = type(value)
    if cls is complex:
        total = documented_hash(value.real) + _IMAG * documented_hash(value.imag)
        total = (total + (1 << 63)) % (1 << 64) - (1 << 63)
        return -2 if total == -1 else total
    if cls is int or cls is bool:
        return _reduced(int(value), 1)
    if cls is float and not math.isfinite(value):
        return _INF if value > 0 else -_INF
    if _is(cls, "decimal", "Decimal"):
        return _hash_decimal(value)
    return _reduced(*value.as_integer_ratio())


def _hash_decimal(value: Any) -> int:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return -_INF if sign else _INF
    number = 0
    for digit in digits:
        number = (number * 10 + digit) % _MODULUS
    base = 10 if exponent >= 0 else pow(10, _MODULUS - 2, _MODULUS)
    number = number * pow(base, abs(exponent), _MODULUS) % _MODULUS
    number = -number if sign else number
    return -2 if number == -1 else number


def _reduced(numerator: int, denominator: int) -> int:
    if denominator % _MODULUS:
        number = abs(numerator) * pow(denominator, _MODULUS - 2, _MODULUS) % _MODULUS
    else:
        number = _INF
    number = -number if numerator < 0 else number
    return -2 if number == -1 else number


numeric_hash = hash if sys.hash_info.modulus == _MODULUS else documented_hash
"""The hash of a number that is no NaN; signed."""
