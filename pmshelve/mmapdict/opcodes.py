"""Pickle opcodes: emit, and parse without running anything.  (docs/format-mmapdict.md, section 2)

Pure: bytes in, bytes or inert objects out. Three groups of functions:

* `pad`, the no-op padding of the format, and `emit`, which writes Python literals, global names and
  calls as opcodes;
* `parse`, its inverse: a loop over opcodes in which a global name becomes a `Global`, a call a
  `Call` and NEXT_BUFFER a `Buffer`. Nothing is imported or called, and what it builds is never
  larger than a small multiple of its input;
* `find_buffers`, which steps over the large data inside a value without reading it.

Whatever the bytes, these raise `CorruptionError` or return; they neither recurse nor loop without
moving forward.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from pmshelve.errors import CorruptionError

__all__ = [
    "APPENDS",
    "BINBYTES",
    "BINBYTES8",
    "BINFLOAT",
    "BININT",
    "BININT1",
    "BININT2",
    "BINUNICODE",
    "BINUNICODE8",
    "BYTEARRAY8",
    "COVERED_SIZE_MAX",
    "EMPTY_DICT",
    "EMPTY_LIST",
    "EMPTY_TUPLE",
    "LONG1",
    "LONG4",
    "MARK",
    "NEWFALSE",
    "NEWOBJ_EX",
    "NEWTRUE",
    "NEXT_BUFFER",
    "NONE",
    "PAD_SIZE_MAX",
    "POP",
    "PROTO",
    "REDUCE",
    "SETITEM",
    "SETITEMS",
    "SHORT_BINBYTES",
    "SHORT_BINUNICODE",
    "SHORT_BYTES",
    "STACK_GLOBAL",
    "STOP",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
    "Buffer",
    "Call",
    "Global",
    "Read",
    "emit",
    "emit_bytes",
    "emit_int",
    "emit_str",
    "find_buffers",
    "is_padding",
    "pad",
    "parse",
    "skip_padding",
]

# Opcodes, by their names in `pickletools` -----------------------------------------------------

MARK: Final = b"("
STOP: Final = b"."
POP: Final = b"0"
NONE: Final = b"N"
NEWTRUE: Final = b"\x88"
NEWFALSE: Final = b"\x89"
BININT: Final = b"J"
BININT1: Final = b"K"
BININT2: Final = b"M"
LONG1: Final = b"\x8a"
LONG4: Final = b"\x8b"
BINFLOAT: Final = b"G"
SHORT_BINUNICODE: Final = b"\x8c"
BINUNICODE: Final = b"X"
BINUNICODE8: Final = b"\x8d"
SHORT_BINBYTES: Final = b"C"
BINBYTES: Final = b"B"
BINBYTES8: Final = b"\x8e"
BYTEARRAY8: Final = b"\x96"
NEXT_BUFFER: Final = b"\x97"
EMPTY_TUPLE: Final = b")"
TUPLE: Final = b"t"
TUPLE1: Final = b"\x85"
TUPLE2: Final = b"\x86"
TUPLE3: Final = b"\x87"
EMPTY_LIST: Final = b"]"
APPENDS: Final = b"e"
EMPTY_DICT: Final = b"}"
SETITEM: Final = b"s"
SETITEMS: Final = b"u"
STACK_GLOBAL: Final = b"\x93"
REDUCE: Final = b"R"
NEWOBJ_EX: Final = b"\x92"
PROTO: Final = b"\x80"

Read = Callable[[int, int], bytes]
"""Returns the file's bytes from the first offset up to the second."""

COVERED_SIZE_MAX: Final = 65536
"""Bytes of data up to which a value is written in a 1- or 4-byte form, which the crc covers."""

PAD_SIZE_MAX: Final = 258
"""Bytes of padding in one piece."""


class Global(NamedTuple):
    """STACK_GLOBAL: a name that was not looked up."""

    module: str
    name: str


class Call(NamedTuple):
    """REDUCE: a call that was not made."""

    function: Any
    arguments: tuple[Any, ...]


class Buffer(NamedTuple):
    """NEXT_BUFFER: an out-of-band buffer, counted from 0."""

    number: int


# Padding ----------------------------------------------------------------------------------------


def _pad_piece(size: int) -> bytes:
    if size == 0:
        return b""
    if size == 2:
        return NONE + POP
    if size == 3:
        return BININT1 + b"\0" + POP
    return SHORT_BINBYTES + bytes((size - 3,)) + bytes(size - 3) + POP


_PADS: Final = tuple(b"" if size == 1 else _pad_piece(size) for size in range(PAD_SIZE_MAX + 1))


def pad(size: int) -> bytes:
    """Return opcodes of `size` bytes that do nothing.

    Parameters
    ----------
    size
        0, or 2 and more; in one piece up to `PAD_SIZE_MAX`.

    Raises
    ------
    ValueError
        One byte, or fewer than none, cannot be padded.
    """
    if size == 1 or size < 0:
        raise ValueError(f"cannot pad by {size} bytes")
    if size <= PAD_SIZE_MAX:
        return _PADS[size]
    rest = size % PAD_SIZE_MAX
    if rest == 1:  # two bytes short of a whole piece leave three
        return pad(size - 3) + _PADS[3]
    return _PADS[PAD_SIZE_MAX] * (size // PAD_SIZE_MAX) + _PADS[rest]


def is_padding(data: bytes) -> bool:
    """Tell whether `data` is exactly one piece of padding, or nothing."""
    size = len(data)
    return size <= PAD_SIZE_MAX and size != 1 and data == _PADS[size]


def skip_padding(data: bytes, index: int) -> int:
    """Return the index of the first opcode at or after `index` that is not padding.

    Padding which `data` cuts off is not skipped.
    """
    while True:
        opcode = data[index : index + 1]
        if opcode == NONE:
            size = 2
        elif opcode == BININT1:
            size = 3
        elif opcode == SHORT_BINBYTES and index + 1 < len(data):
            size = data[index + 1] + 3
        else:
            return index
        if data[index : index + size] != _PADS[size]:
            return index
        index += size


# Emit -------------------------------------------------------------------------------------------

_U4: Final = struct.Struct("<I")
_I4: Final = struct.Struct("<i")
_F8: Final = struct.Struct(">d")
_TUPLES: Final = (EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3)
SHORT_BYTES: Final = tuple(SHORT_BINBYTES + bytes((size,)) for size in range(256))
_SHORT_TEXT: Final = tuple(SHORT_BINUNICODE + bytes((size,)) for size in range(256))


def emit_bytes(value: bytes) -> bytes:
    """Return the opcode that pushes `value`, for at most 4 GiB."""
    size = len(value)
    if size < 256:
        return SHORT_BYTES[size] + value
    return BINBYTES + _U4.pack(size) + value


def emit_str(value: str) -> bytes:
    """Return the opcode that pushes `value` (UTF-8 with surrogatepass), for at most 4 GiB."""
    data = value.encode("utf-8", "surrogatepass")
    size = len(data)
    if size < 256:
        return _SHORT_TEXT[size] + data
    return BINUNICODE + _U4.pack(size) + data


def emit_int(value: int) -> bytes:
    """Return the shortest opcode that pushes `value`."""
    if 0 <= value < 256:
        return BININT1 + bytes((value,))
    if 0 <= value < 65536:
        return BININT2 + value.to_bytes(2, "little")
    if -(2**31) <= value < 2**31:
        return BININT + _I4.pack(value)
    # One bit more than the magnitude, for the sign; -2**(8n-1) alone would fit in n bytes.
    size = (value.bit_length() if value > 0 else (~value).bit_length()) // 8 + 1
    data = value.to_bytes(size, "little", signed=True)
    if size < 256:
        return LONG1 + bytes((size,)) + data
    return LONG4 + _I4.pack(size) + data


def emit(value: Any) -> bytes:
    """Return opcodes that push `value`, made of literals, `Global`, `Call` and `Buffer`.

    The opcodes are a function of the value alone: nothing is memoized.

    Raises
    ------
    TypeError
        The value holds anything else.
    """
    if type(value) is Global:
        return emit_str(value.module) + emit_str(value.name) + STACK_GLOBAL
    if type(value) is Call:
        return emit(value.function) + emit(value.arguments) + REDUCE
    if type(value) is tuple:
        items = b"".join(map(emit, value))
        if len(value) < len(_TUPLES):
            return items + _TUPLES[len(value)]
        return MARK + items + TUPLE
    if type(value) is list:
        return EMPTY_LIST + MARK + b"".join(map(emit, value)) + APPENDS if value else EMPTY_LIST
    if type(value) is dict:
        items = b"".join(emit(key) + emit(item) for key, item in value.items())
        return EMPTY_DICT + MARK + items + SETITEMS if value else EMPTY_DICT
    return _emit_atom(value)


def _emit_atom(value: Any) -> bytes:
    if value is None:
        return NONE
    if value is True:
        return NEWTRUE
    if value is False:
        return NEWFALSE
    if type(value) is Buffer:
        return NEXT_BUFFER
    if type(value) is int:
        return emit_int(value)
    if type(value) is float:
        return BINFLOAT + _F8.pack(value)
    if type(value) is str:
        return emit_str(value)
    if type(value) is bytes:
        return emit_bytes(value)
    raise TypeError(f"not a literal: {type(value).__name__}")


# Parse ------------------------------------------------------------------------------------------


class _Mark:
    """What MARK leaves on the stack."""


_MARK: Final = _Mark()
_CONSTANTS: Final = {NONE[0]: None, NEWTRUE[0]: True, NEWFALSE[0]: False}
_TUPLE_SIZES: Final = {opcode[0]: size for size, opcode in enumerate(_TUPLES)}
_SIZED: Final = {  # opcode -> bytes of its size field
    SHORT_BINBYTES[0]: 1,
    BINBYTES[0]: 4,
    BINBYTES8[0]: 8,
    BYTEARRAY8[0]: 8,
    SHORT_BINUNICODE[0]: 1,
    BINUNICODE[0]: 4,
    BINUNICODE8[0]: 8,
    LONG1[0]: 1,
    LONG4[0]: 4,
}
_FIXED: Final = {BININT1[0]: 1, BININT2[0]: 2, BININT[0]: 4, BINFLOAT[0]: 8}
_TEXT: Final = frozenset((SHORT_BINUNICODE[0], BINUNICODE[0], BINUNICODE8[0]))
_LONG: Final = frozenset((LONG1[0], LONG4[0]))


class _Parser:
    """One pass over opcodes, with the stack of the virtual machine and none of its effects."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.index = 0
        self.stack: list[Any] = []
        self.buffer_count = 0

    def take(self, size: int) -> bytes:
        piece = self.data[self.index : self.index + size]
        if len(piece) != size:
            raise CorruptionError("opcodes end early")
        self.index += size
        return piece

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise CorruptionError("an opcode finds the stack empty")
        return self.stack.pop()

    def pop_marked(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise CorruptionError("an opcode finds no mark")

    def run(self) -> Any:
        while self.index < len(self.data):
            opcode = self.data[self.index]
            self.index += 1
            if opcode == STOP[0]:
                break
            self.step(opcode)
        if self.index != len(self.data) or len(self.stack) != 1:
            raise CorruptionError("opcodes do not leave one object")
        return self.pop()

    def step(self, opcode: int) -> None:
        if opcode in _SIZED:
            self.stack.append(self.sized(opcode))
        elif opcode in _FIXED:
            self.stack.append(self.fixed(opcode))
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _TUPLE_SIZES:
            items = [self.pop() for _ in range(_TUPLE_SIZES[opcode])]
            self.stack.append(tuple(reversed(items)))
        elif opcode in _STEPS:
            _STEPS[opcode](self)
        else:
            raise CorruptionError(f"opcode 0x{opcode:02x} is not one of a literal")

    def sized(self, opcode: int) -> Any:
        size = int.from_bytes(self.take(_SIZED[opcode]), "little")
        data = self.take(size)
        if opcode in _TEXT:
            try:
                return data.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise CorruptionError("text is not UTF-8") from error
        if opcode in _LONG:
            return int.from_bytes(data, "little", signed=True)
        return bytearray(data) if opcode == BYTEARRAY8[0] else data

    def fixed(self, opcode: int) -> int | float:
        data = self.take(_FIXED[opcode])
        if opcode == BINFLOAT[0]:
            (number,) = _F8.unpack(data)
            return float(number)
        return int.from_bytes(data, "little", signed=opcode == BININT[0])

    def mark(self) -> None:
        self.stack.append(_MARK)

    def tuple_(self) -> None:
        self.stack.append(tuple(self.pop_marked()))

    def list_(self) -> None:
        self.stack.append([])

    def dict_(self) -> None:
        self.stack.append({})

    def discard(self) -> None:
        self.pop()

    def appends(self) -> None:
        items = self.pop_marked()
        target = self.pop()
        if type(target) is not list:
            raise CorruptionError("items are appended to what is not a list")
        target.extend(items)
        self.stack.append(target)

    def setitem(self) -> None:
        item, key = self.pop(), self.pop()
        self.update([key, item])

    def setitems(self) -> None:
        self.update(self.pop_marked())

    def update(self, items: list[Any]) -> None:
        target = self.pop()
        keys = items[::2]
        # Text only: hashing a tuple nested a million deep would overflow the C stack.
        if type(target) is not dict or len(items) % 2 or any(type(key) is not str for key in keys):
            raise CorruptionError("items are set in what is not a dict")
        target.update(zip(keys, items[1::2], strict=True))
        self.stack.append(target)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise CorruptionError("a global name is not text")
        self.stack.append(Global(module, name))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or type(function) not in (Global, Call):
            raise CorruptionError("a call has no function or no tuple of arguments")
        self.stack.append(Call(function, arguments))

    def next_buffer(self) -> None:
        self.stack.append(Buffer(self.buffer_count))
        self.buffer_count += 1

    def proto(self) -> None:
        if self.index != 1 or not 2 <= self.take(1)[0] <= 5:
            raise CorruptionError("a protocol is not known, or not at the start")


_STEPS: Final[dict[int, Callable[[_Parser], None]]] = {
    PROTO[0]: _Parser.proto,
    MARK[0]: _Parser.mark,
    TUPLE[0]: _Parser.tuple_,
    EMPTY_LIST[0]: _Parser.list_,
    APPENDS[0]: _Parser.appends,
    EMPTY_DICT[0]: _Parser.dict_,
    SETITEM[0]: _Parser.setitem,
    SETITEMS[0]: _Parser.setitems,
    STACK_GLOBAL[0]: _Parser.stack_global,
    REDUCE[0]: _Parser.reduce,
    NEXT_BUFFER[0]: _Parser.next_buffer,
    POP[0]: _Parser.discard,
}


def parse(data: bytes) -> Any:
    """Return what the opcodes push, without importing or calling anything.

    Parameters
    ----------
    data
        Opcodes that leave one object, with or without PROTO before and STOP behind them.

    Returns
    -------
    None, bool, int, float, str, bytes, bytearray, tuple, list or dict with str keys, holding also
    `Global`, `Call` and `Buffer`.

    Raises
    ------
    CorruptionError
        The bytes are anything else.
    """
    return _Parser(data).run()


# Large data -------------------------------------------------------------------------------------

_PROBE_SIZE: Final = PAD_SIZE_MAX + 9
_PAD_OPCODES: Final = (NONE, BININT1, SHORT_BINBYTES)


def find_buffers(read: Read, start: int, stop: int) -> tuple[list[tuple[int, int]], int]:
    """Step over BYTEARRAY8 opcodes and the padding before them.

    Parameters
    ----------
    read
        Of the data itself nothing is read.
    start, stop
        Offsets between which the opcodes and their data must lie.

    Returns
    -------
    The offset and size of each one's data, and the offset of the first opcode that is neither.

    Raises
    ------
    CorruptionError
        Data reaches past `stop`.
    """
    found: list[tuple[int, int]] = []
    while True:
        probe = read(start, min(stop, start + _PROBE_SIZE))
        index = skip_padding(probe, 0) if probe[:1] in _PAD_OPCODES else 0
        header = probe[index : index + 9]
        if header[:1] != BYTEARRAY8 or len(header) < 9:
            if index == 0:
                return found, start
            start += index
            continue
        size = int.from_bytes(header[1:], "little")
        start += index + 9
        if size > stop - start:
            raise CorruptionError("a buffer reaches past the end of its value", offset=start)
        found.append((start, size))
        start += size
