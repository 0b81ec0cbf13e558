"""Golden pools: what was written once can be read for ever; and is still what is written."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.pmemobj import PersistentObjectPool, journal, superblock
from pmshelve.pmemobj.memory import Memory
from tests.support import goldenpool
from tests.support.pools import assert_nothing_leaked, assert_sound, plain
from tests.support.processes import ROOT

KINDS = goldenpool.KINDS


def assert_content(pool: Any) -> None:
    expected = goldenpool.content()
    found = dict(pool.root)
    assert found.pop("cycle")[0] is pool.root
    assert list(found) == list(expected)
    for key, value in expected.items():
        if key == "person":
            person = found[key]
            assert type(person) is goldenpool.Person
            assert {name: plain(getattr(person, name)) for name in value} == value
        else:
            assert plain(found[key]) == value
            assert repr(plain(found[key])) == repr(value) or isinstance(value, set | frozenset)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_pools_can_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pool"
    path.write_bytes(goldenpool.load(kind))
    with PersistentObjectPool(path, "r") as pool:
        assert_content(pool)
        assert pool.check() == []
    assert path.read_bytes() == goldenpool.load(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_golden_pools_can_be_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pool"
    path.write_bytes(goldenpool.load(kind))
    with pmemobj.open(path) as pool:
        assert_content(pool)
        pool.root["numbers"].append(5)
        pool.root["many"]["key 300"] = "new"
        assert_sound(pool)
    with pmemobj.open(path) as pool:
        assert pool.root["numbers"][-1] == 5
        del pool.root["numbers"][-1], pool.root["many"]["key 300"]
        assert_content(pool)
        assert_nothing_leaked(pool)


@pytest.mark.parametrize("kind", KINDS)
def test_today_the_same_bytes_are_written(kind: str) -> None:
    """If this fails, the format has changed: see tests/support/goldenpool.py."""
    made, golden = goldenpool.make(kind), goldenpool.load(kind)
    assert len(made) == len(golden)
    different = [
        offset for offset in range(0, len(made), 8) if made[offset:][:8] != golden[offset:][:8]
    ]
    assert not different, f"first at offset {different[0]}, {len(different)} words in all"


@pytest.mark.parametrize("seed", ["0", "1", "12345"])
def test_the_bytes_do_not_depend_on_the_hash_seed(seed: str) -> None:
    code = (
        "import sys, zlib\n"
        "from tests.support import goldenpool\n"
        "print(*(zlib.crc32(goldenpool.make(kind)) for kind in goldenpool.KINDS))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == [str(zlib.crc32(goldenpool.load(kind))) for kind in KINDS]


# Exact bytes, from the tables of docs/format-pmemobj.md ---------------------------------------------


def test_a_superblock_byte_for_byte() -> None:
    block = superblock.Superblock(
        flags=3, sequence=9, uuid=bytes(range(16)), pool_id=0x1122334455667_7FF, file_size=8 << 20,
        journal_offset=8192, journal_size=65536, start=0x0123456789ABCDEF, heap_offset=8192 + 65536,
        pool_size=8 << 20, max_size=1 << 30,
    )  # fmt: skip
    body = b"PMSHPOOL" + struct.pack("<IIQ", 1, 3, 9) + bytes(range(16))
    body += struct.pack(
        "<8Q",
        0x1122334455667_7FF,
        8 << 20,
        8192,
        65536,
        0x0123456789ABCDEF,
        73728,
        8 << 20,
        1 << 30,
    )
    body = body.ljust(508, b"\0")
    assert superblock.encode(block) == body + struct.pack("<I", zlib.crc32(body))


def test_a_journal_record_byte_for_byte() -> None:
    start = 0x1_0000_00FF
    items = [
        (journal.RANGE, 4096, 16, b"sixteen bytes, so"[:16]),
        (journal.MOVE, 8192, 4096, struct.pack("<Q", 12288)),
    ]
    buffers, tail = journal.encode(items, journal.first_tail(start))
    record = b"".join(buffers)
    body = struct.pack("<IQ", 2, start)
    body += struct.pack("<2Q", 4096, 8192)
    body += struct.pack("<2Q", 16, 4096 | 1 << 56)
    body += b"sixteen bytes, so"[:16] + struct.pack("<Q", 12288)
    crc = zlib.crc32(body, start & 0xFFFFFFFF)
    assert record == struct.pack("<I", crc) + body
    assert tail == (len(record), start + 1, crc)
    following, _ = journal.encode(items[:1], tail)
    body = struct.pack("<IQQQ", 1, start + 1, 4096, 16) + b"sixteen bytes, so"[:16]
    assert b"".join(following) == struct.pack("<I", zlib.crc32(body, crc)) + body


def test_the_record_of_an_ordinary_commit_is_of_the_same_form() -> None:
    import mmap

    with mmap.mmap(-1, 1 << 16) as anonymous:
        memory = Memory(anonymous, 1 << 16)
        memory.begin()
        memory.snapshot(4096, 8)
        memory.words[512] = 0xAB
        memory.snapshot(8192, 16)
        memory.words[1024] = 0xCD
        changes = memory.end()
        tail = journal.first_tail(77)
        record, after = journal.encode_ranges(memory, changes.saved, tail)
        items = [
            (journal.RANGE, offset, len(old), bytes(anonymous[offset : offset + len(old)]))
            for offset, old in changes.saved.items()
        ]
        buffers, same = journal.encode(items, tail)
        assert (record, after) == (b"".join(buffers), same)
        assert memory.release() is not None
