"""Whether pickle opcodes are the body of one value, found out without running them.

The opcodes' names, arguments and effects on the stack are those of the standard library's
`pickletools`; only depths are kept, so nothing is built, imported or called, and the data of large
opcodes is not even read.  This is all the evidence there is for entries of mmappickle, which carry
no checksum.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from pmshelve.mmapdict.opcodes import Read

__all__ = ["find_fault"]

_WINDOW_SIZE: Final = 1 << 14
_MARKS_MAX: Final = 100_000
"""MARKs open at once; `pickle` itself recurses at far less."""

# A value's body has no frames or end of its own, and nothing that a plain `pickle.load` lacks.
_FOREIGN: Final = frozenset(
    ("PROTO", "STOP", "FRAME", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER")
)
_SIZE_FIELDS: Final = {-2: 1, -3: 4, -4: 4, -5: 8}  # pickletools' names for "taken from argument"


class _Op(NamedTuple):
    """What one opcode takes from the file and does to the stack."""

    name: str
    argument: int
    """Bytes of the argument, or of the size field before it."""
    sized: bool
    signed: bool
    lines: int
    pops: int
    pushes: int
    to_mark: bool


@functools.cache
def _table() -> dict[int, _Op]:
    import pickletools  # takes 10 ms to load, and is wanted by fsck and check alone

    table = {}
    for op in pickletools.opcodes:
        if op.name in _FOREIGN:
            continue
        size = op.arg.n if op.arg is not None else 0
        before = list(op.stack_before)
        to_mark = pickletools.markobject in before
        table[ord(op.code)] = _Op(
            op.name,
            argument=_SIZE_FIELDS.get(size, max(size, 0)),
            sized=size in _SIZE_FIELDS,
            signed=size == -3,
            lines=0 if size != -1 else 2 if op.name in ("GLOBAL", "INST") else 1,
            pops=before.index(pickletools.markobject) if to_mark else len(before),
            pushes=len(op.stack_after),
            to_mark=to_mark,
        )
    return table


def find_fault(read: Read, start: int, stop: int) -> str | None:
    """Return why the bytes between two offsets do not leave one object, or None if they do.

    Costs 1 µs an opcode, whatever the sizes of their data.
    """
    return _Body(read, start, stop).run()


class _Body:
    def __init__(self, read: Read, start: int, stop: int) -> None:
        self._read = read
        self._position = start
        self._stop = stop
        self._base = start
        self._window = b""
        self._depth = 0
        self._marks: list[int] = []
        self._memo = (1, 0)  # lowest and highest index put so far: none
        # Indices count all that was ever memoized in the file, and unpickling makes room for each.
        # An entry of mmappickle says behind its value how far they go.
        trailer = read(stop, stop + 6)
        told = len(trailer) == 6 and trailer[:1] == b"J" and trailer[5:] == b"0"
        self._memo_max = int.from_bytes(trailer[1:5], "little") if told else max(stop, 1 << 20)

    def run(self) -> str | None:
        table = _table()
        while self._position < self._stop:
            window, at = self._look(9)
            op = table.get(window[at])
            if op is None:
                return f"opcode 0x{window[at]:02x} has no place in a value"
            fault = self._argument(op, window, at + 1) or self._effect(op)
            if fault is not None:
                return f"{op.name} {fault}"
        if self._marks or self._depth != 1:
            return "the opcodes do not leave one object"
        return None

    def _look(self, size: int) -> tuple[bytes, int]:
        """Return a window with `size` bytes from the position on, or all there are; and where."""
        at = self._position - self._base
        if at + size > len(self._window):
            stop = min(self._stop, self._position + max(size, _WINDOW_SIZE))
            self._window = self._read(self._position, stop)
            if not self._window:
                self._window = b"."  # the file shrank: STOP is refused
            self._base, at = self._position, 0
        return self._window, at

    def _argument(self, op: _Op, window: bytes, at: int) -> str | None:
        """Step over an opcode and its argument."""
        self._position += 1
        if op.lines:
            return self._skip_lines(op.lines) or self._memoize(op, 0)
        size = op.argument
        number = int.from_bytes(window[at : at + size], "little") if size else 0
        self._position += size
        if op.sized:
            if op.signed and number >= 1 << 31:
                return "has a negative size"
            self._position += number
        if self._position > self._stop:
            return "reaches past the value's end"
        return self._memoize(op, number)

    def _skip_lines(self, count: int) -> str | None:
        while count:
            if self._position >= self._stop:
                return "has no end of line"
            window, at = self._look(1)
            end = window.find(b"\n", at) + 1
            self._position += (end or len(window)) - at
            count -= end > 0
        return None

    def _memoize(self, op: _Op, number: int) -> str | None:
        """Keep the range of indices put, and see that one got lies within."""
        low, high = self._memo
        if op.name == "LONG_BINPUT" and number > self._memo_max:
            return "puts where nothing belongs"
        if op.name in ("BINPUT", "LONG_BINPUT"):
            self._memo = (number, number) if low > high else (min(low, number), max(high, number))
        elif op.name in ("PUT", "MEMOIZE"):
            self._memo = (0, 1 << 64)  # not worth knowing: mmappickle writes neither
        elif op.name in ("BINGET", "LONG_BINGET") and not low <= number <= high:
            return "gets what was never put"
        return None

    def _effect(self, op: _Op) -> str | None:
        """Change the depth as the opcode does."""
        marks = self._marks
        if op.name == "MARK":
            marks.append(self._depth)
            return "is nested too deep" if len(marks) > _MARKS_MAX else None
        if op.name == "POP" and marks and marks[-1] == self._depth:
            marks.pop()
            return None
        if op.to_mark:
            if not marks:
                return "finds no mark"
            self._depth = marks.pop()
        self._depth -= op.pops
        if self._depth < (marks[-1] if marks else 0):
            return "finds the stack empty"
        self._depth += op.pushes
        return None
