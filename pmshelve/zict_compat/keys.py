r"""Keys of any kind that dask uses, as text: two keys are one text exactly if a dict takes them as one.

    key                          text
    a str not beginning with \0  the str itself
    any other                    "\0" and then, in ASCII, the literal that Python would write for it

The literal is canonical: an int of more than 63 bits is written in hexadecimal; a float that is
whole is written as the int it equals, as True and False are; other floats as `repr` does, and the
infinities as ``inf`` and ``-inf``.  What lies outside ASCII is escaped, for which characters
`repr` escapes depends on the version of Python.

    'a'  ->  a            1, 1.0, True  ->  \0 1              ('x', 0)  ->  \0('x', 0)
    '1'  ->  1            None          ->  \0None            '\0'      ->  \0'\x00'

(There is no space behind a ``\0``; it is shown for legibility.)
"""

from __future__ import annotations

import re
from operator import index
from typing import Any

from pmshelve.errors import FormatError, UnsupportedTypeError

__all__ = ["Key", "decode_key", "encode_key", "text_of"]

Key = str | bytes | int | float | None | tuple["Key", ...]
"""What can be a key; `bool` is an `int`."""

_DECIMAL_END = 1 << 63
"""Ints from here on are written in hexadecimal: Python limits how long a decimal one may be."""

# Encode -----------------------------------------------------------------------------------------


def encode_key(key: Key) -> str:
    """Return the text that stands for `key`, and for everything that equals it.

    Parameters
    ----------
    key
        A str, bytes, int, float, bool, None, or a tuple of such, nested as you like.  Instances of
        their subclasses, and whatever can serve as an index (NumPy's integers), are taken for the
        plain value where a dict would do so: they are equal to it and have the same hash.

    Raises
    ------
    TypeError
        A key of another kind, or one that is not equal to itself: NaN.  (`UnsupportedTypeError`,
        which is a TypeError.)

    Notes
    -----
    A str is returned as it is.  Of the rest, flat tuples of str and int are the quickest.
    """
    if key.__class__ is str:
        return key if key >= "\x01" or not key else "\0" + ascii(key)
    if key.__class__ is tuple:
        for item in key:
            kind = item.__class__
            if kind is int:
                if not -_DECIMAL_END < item < _DECIMAL_END:  # type: ignore[operator]
                    break
            elif kind is not str:
                break
        else:
            return "\0" + ascii(key)
    write = _WRITERS.get(key.__class__)
    return encode_key(_plain(key)) if write is None else "\0" + write(key)


def text_of(key: Key) -> str:
    """Return the text of a key that is looked for.

    Raises
    ------
    KeyError
        Nothing of its type is ever stored.
    """
    try:
        return encode_key(key)
    except UnsupportedTypeError:
        raise KeyError(key) from None


def _literal(key: Any) -> str:
    """Return the canonical literal of a key."""
    write = _WRITERS.get(key.__class__)
    return _literal(_plain(key)) if write is None else write(key)


def _write_int(key: int) -> str:
    return repr(key) if -_DECIMAL_END < key < _DECIMAL_END else hex(key)


def _write_float(key: float) -> str:
    if key.is_integer():
        return _write_int(int(key))
    if key != key:  # noqa: PLR0124 (what NaN is)
        raise UnsupportedTypeError(
            "NaN cannot be a key: it does not equal itself, so it would never be found again"
        )
    return repr(key)


def _write_tuple(key: tuple[Any, ...]) -> str:
    parts = [_literal(item) for item in key]
    return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"


_WRITERS: dict[type, Any] = {
    str: ascii,
    bytes: ascii,
    int: _write_int,
    bool: lambda key: "1" if key else "0",
    float: _write_float,
    tuple: _write_tuple,
    type(None): repr,
}
_BASES = (str, bytes, int, float, tuple)


def _plain(key: Any) -> Any:
    """Return the value of a plain type that a dict takes for the same key."""
    hash(key)  # TypeError, as a dict has it, where it is not hashable
    plain: Any = None
    for base in _BASES:
        if isinstance(key, base):
            plain = _CONVERSIONS[base](key)
            break
    else:
        if hasattr(type(key), "__index__"):
            plain = index(key)
    if plain is not None and bool(key == plain) and hash(key) == hash(plain):
        return plain
    raise UnsupportedTypeError(
        f"a key must be a str, bytes, int, float, None, or a tuple of them, not {_name_of(key)}"
    )


_CONVERSIONS: dict[type, Any] = {
    str: str.__str__,
    bytes: lambda key: bytes.__getitem__(key, slice(None)),
    int: int.__index__,
    float: float.__float__,
    tuple: lambda key: tuple.__getitem__(key, slice(None)),
}
"""The value itself, whatever the subclass has its own methods say."""


def _name_of(key: Any) -> str:
    kind = type(key)
    return f"{kind.__module__}.{kind.__qualname__}"


# Decode -----------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"""
    (?P<open> \( )
  | (?P<close> ,? \) )
  | (?P<comma> ,[ ] )
  | (?P<text> b? (?: '[^'\\]*(?:\\.[^'\\]*)*' | "[^"\\]*(?:\\.[^"\\]*)*" ) )
  | (?P<other> [^\s(),'"]+ )
    """,
    re.VERBOSE | re.ASCII,
)
_CONSTANTS = {"None": None, "inf": float("inf"), "-inf": float("-inf")}


def decode_key(text: str) -> Key:
    """Return the key that `text` stands for.

    Raises
    ------
    FormatError
        (`ValueError`) No key is written like this.
    """
    if text >= "\x01" or not text:
        return text
    try:
        key = _read(text[1:])
        if encode_key(key) == text:
            return key
    except (ValueError, IndexError, TypeError):
        pass
    raise FormatError("the key was not written by this kind of mapping", key=text)


def _read(text: str) -> Key:
    """Read one literal; what `_literal` does not write is read, or refused, as it may be."""
    stack: list[list[Any]] = [[]]
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(text)
        position = match.end()
        kind, token = match.lastgroup, match[0]
        if kind == "open":
            stack.append([])
        elif kind == "close":
            done = tuple(stack.pop())
            stack[-1].append(done)
        elif kind == "text":
            stack[-1].append(_read_text(token))
        elif kind == "other":
            stack[-1].append(_read_other(token))
    ((key,),) = stack
    return key  # type: ignore[no-any-return]


def _read_text(token: str) -> str | bytes:
    if token[0] == "b":
        return _unescape(token[2:-1]).encode("latin-1")
    return _unescape(token[1:-1])


def _unescape(text: str) -> str:
    return text.encode("ascii").decode("unicode_escape") if "\\" in text else text


def _read_other(token: str) -> int | float | None:
    if token in _CONSTANTS:
        return _CONSTANTS[token]
    if "x" in token:
        return int(token, 16)
    return float(token) if "." in token or "e" in token else int(token)
