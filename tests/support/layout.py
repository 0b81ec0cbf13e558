"""A second, independent reader of docs/format-mmapdict.md, for tests to check files against.

It shares no code with the package: opcodes are walked by `pickletools`, nothing is executed, and
every rule of sections 1 to 3 that can be seen in the bytes is asserted on the way.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zlib
from dataclasses import dataclass
from typing import Any

HEADER_SIZE = 24
TERMINATOR = b"\x95\x02\0\0\0\0\0\0\0d."
SUPERBLOCK_KEY = b"\0pmshelve/1"
MARKER_KEY = b"\0pmshelve:key"
LIVE, DEAD, REPLACED = 0x88, 0x30, 0x86


@dataclass(frozen=True)
class Opcode:
    """One opcode of a value: its name, argument, and where it begins and ends in the file."""

    name: str
    arg: Any
    start: int
    end: int


@dataclass(frozen=True)
class Entry:
    """One entry, as the bytes tell."""

    start: int
    end: int
    stored_key: bytes
    key: str
    flag: int
    memo: int
    crc: int | None
    opcodes: tuple[Opcode, ...]

    @property
    def live(self) -> bool:
        return self.flag == LIVE

    @property
    def ours(self) -> bool:
        return self.crc is not None

    @property
    def reserved(self) -> bool:
        return self.stored_key.startswith(b"\0pmshelve/")


@dataclass(frozen=True)
class Layout:
    """A whole file, as the bytes tell."""

    commit_number: int
    entries: tuple[Entry, ...]
    terminator: int

    def live_keys(self) -> list[str]:
        """Return the keys whose newest entry is live, in file order (L4)."""
        newest = {entry.key: entry for entry in self.entries if not entry.reserved}
        live = sorted((entry.start, key) for key, entry in newest.items() if entry.live)
        return [key for _, key in live]


@dataclass(frozen=True)
class Superblock:
    """The fields of the superblock at offset 48 (section 3)."""

    magic: bytes
    identity: bytes
    generation: int
    marks: int
    face: int
    stamp: int
    live_count: int
    dead_size: int
    boot: bytes
    synced_end: int
    checkpoint: tuple[int, int, int]
    image: tuple[int, int, int]

    @classmethod
    def decode(cls, data: bytes) -> Superblock:
        block = data[48:240]
        for start in (76, 104):  # a pointer has a right CRC, or was never set
            crc = struct.unpack_from("<I", block, start + 24)[0]
            assert crc == zlib.crc32(block[start : start + 24]) or not any(
                block[start : start + 28]
            )
        assert block[30:32] == b"\0\0" and not any(block[132:])
        generation, marks, face = struct.unpack_from("<IBB", block, 24)
        stamp, live_count, dead_size = struct.unpack_from("<IQQ", block, 32)
        (synced_end,) = struct.unpack_from("<Q", block, 68)
        return cls(
            block[:8], block[8:24], generation, marks, face, stamp, live_count, dead_size,
            block[52:68], synced_end, struct.unpack_from("<3Q", block, 76),
            struct.unpack_from("<3Q", block, 104),
        )  # fmt: skip


def read_layout(data: bytes) -> Layout:
    """Return the parts of the file `data`; fail where it breaks L1, L2, L3 or L8."""
    assert data[:11] == b"\x80\x04\x95\x0d\0\0\0\0\0\0\0"
    assert data[11:18] == b"J\x01\0\0\x000J"
    assert data[22:24] == b"0("
    (commit_number,) = struct.unpack_from("<i", data, 18)
    entries = []
    offset = HEADER_SIZE
    while data[offset : offset + 11] != TERMINATOR:
        entry = _read_entry(data, offset)
        # mmappickle's vacuum moves entries by any number of bytes, and drops the superblock.
        if entry.ours and entries and entries[0].stored_key == SUPERBLOCK_KEY:
            _check_placed(entry)
        entries.append(entry)
        offset = entry.end
    return Layout(commit_number, tuple(entries), offset)


def _read_entry(data: bytes, start: int) -> Entry:
    assert data[start] == 0x95, f"no FRAME at {start}"
    (size,) = struct.unpack_from("<Q", data, start + 1)
    end = start + 9 + size
    assert end <= len(data), f"entry at {start} ends at {end}, behind the file's end"
    assert data[start + 9] == 0x8C, f"no SHORT_BINUNICODE at {start + 9}"
    key_end = start + 11 + data[start + 10]
    stored_key = data[start + 11 : key_end]
    assert data[end - 8] == ord("J") and data[end - 3] == ord("0") and data[end - 1] == ord("0")
    (memo,) = struct.unpack_from("<i", data, end - 7)
    flag = data[end - 2]
    assert flag in (LIVE, DEAD, REPLACED), f"flag {flag:#x} at {end - 2}"
    ours = memo == 0 and data[end - 9] == ord("0") and data[end - 14] == ord("J")
    value_end = end - 14 if ours else end - 8
    opcodes = _walk(data, key_end, value_end)
    crc = None
    if ours:
        (crc,) = struct.unpack_from("<I", data, end - 13)
        _check_ours(data, start, end, stored_key, opcodes, crc)
    return Entry(start, end, stored_key, _key(stored_key, opcodes), flag, memo, crc, opcodes)


def _check_placed(entry: Entry) -> None:
    assert 15 <= entry.end % 512 <= 501, f"entry at {entry.start} ends at {entry.end} (L8)"
    for opcode in entry.opcodes:
        if opcode.name == "BYTEARRAY8" and len(opcode.arg):
            assert (opcode.start + 9) % 64 == 0, f"data at {opcode.start + 9} (L8)"


def _check_ours(
    data: bytes, start: int, end: int, stored_key: bytes, opcodes: tuple[Opcode, ...], crc: int
) -> None:
    if stored_key != SUPERBLOCK_KEY:
        assert crc == _crc(data, start, end, opcodes), f"crc of the entry at {start} (L3)"


def _crc(data: bytes, start: int, end: int, opcodes: tuple[Opcode, ...]) -> int:
    """Return the crc of section 2, with a dead entry's last POP taken for the REDUCE it was."""
    covered = bytearray(data[start : end - 14])
    if _last_reduce_gone(data, end, opcodes):
        covered[-1] = ord("R")
    uncovered = {"BYTEARRAY8"}
    if not any(opcode.name == "STACK_GLOBAL" for opcode in opcodes):
        uncovered.add("BINBYTES8")  # plain bytes; else it is the raw pickle of a value
    for opcode in reversed(opcodes):
        if opcode.name in uncovered:
            del covered[opcode.start + 9 - start : opcode.end - start]
    return zlib.crc32(covered)


def _last_reduce_gone(data: bytes, end: int, opcodes: tuple[Opcode, ...]) -> bool:
    """Tell whether the POP at end-15 stands where a REDUCE was: it drops an argument tuple."""
    return (
        data[end - 2] != LIVE
        and len(opcodes) >= 2
        and opcodes[-1].name == "POP"
        and _before_padding(opcodes[:-1]) == "TUPLE1"
    )


def _before_padding(opcodes: tuple[Opcode, ...]) -> str:
    """Return the name of the last opcode that is not padding."""
    position = len(opcodes)
    fillers = ("NONE", "BININT1", "SHORT_BINBYTES")
    while position >= 2 and opcodes[position - 1].name == "POP":
        if opcodes[position - 2].name not in fillers:
            break
        position -= 2
    return opcodes[position - 1].name


def _walk(data: bytes, start: int, end: int) -> tuple[Opcode, ...]:
    """Return the opcodes of a value, none of them executed."""
    # genops wants a STOP at the end; a value has none of its own.
    stream = io.BytesIO(data[start:end] + b".")
    found = list(pickletools.genops(stream))
    assert found[-1][0].name == "STOP" and found[-1][2] == end - start
    positions = [start + (position or 0) for _, _, position in found]
    return tuple(
        Opcode(info.name, arg, positions[index], positions[index + 1])
        for index, (info, arg, _) in enumerate(found[:-1])
    )


def _key(stored_key: bytes, opcodes: tuple[Opcode, ...]) -> str:
    if stored_key != MARKER_KEY:
        return stored_key.decode("utf-8")
    assert opcodes[0].name == "POP" and opcodes[1].name == "BINUNICODE"
    key: str = opcodes[1].arg
    return key
