"""The format, byte for byte: golden files of this version, and every layout rule of the document.

`python -m tests.format.test_golden` writes the golden files anew; that is a change of the format,
and wants a new file version.
"""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from pmshelve.mmapdict import index as index_module
from pmshelve.mmapdict import mmapdict, opening
from pmshelve.storage import file as file_layer
from tests.support.layout import DEAD, LIVE, REPLACED, Superblock, read_layout
from tests.support.stores import DATA, assert_content, assert_file, assert_sound, fixture
from tests.support.values import AWKWARD_KEYS, all_values, assert_same

IDENTITY = bytes(range(16))
BOOT = bytes(range(100, 116))


# Golden files -----------------------------------------------------------------------------------


def _write_small(store: mmapdict) -> dict[str, Any]:
    """Write every kind of entry once: what a reader of the format must know."""
    store["none"] = None
    store["int"] = 70_000
    store["negative"] = -1
    store["long"] = 2**80
    store["float"] = 1.5
    store["text"] = "héllo"
    store["bytes"] = b"\x00\xff"
    store["long bytes"] = b"b" * 70_000
    store["array"] = np.arange(5, dtype="<i4")
    store["big-endian"] = np.arange(6, dtype=">f8").reshape(2, 3)
    store["k" * 256] = True
    store["\ud800"] = False
    store["\0pmshelve/1"] = 5
    store["replaced"] = 1
    store["replaced"] = 2
    store["deleted"] = np.zeros(3, "u1")
    del store["deleted"]
    with store.batch():
        store["in a batch"] = b"x"
        store["int"] = 1
        del store["none"]
    return {
        "negative": -1, "long": 2**80, "float": 1.5, "text": "héllo", "bytes": b"\x00\xff",
        "long bytes": b"b" * 70_000, "array": np.arange(5, dtype="<i4"),
        "big-endian": np.arange(6, dtype=">f8").reshape(2, 3), "k" * 256: True, "\ud800": False,
        "\0pmshelve/1": 5, "replaced": 2, "in a batch": b"x", "int": 1,
    }  # fmt: skip


def _write_indexed(store: mmapdict) -> dict[str, Any]:
    """Write so many entries that closing adds an index checkpoint."""
    content = {f"key {number}": number for number in range(600)}
    for key, value in content.items():
        store[key] = value
    return content


GOLDEN = {"golden-1-small": _write_small, "golden-1-indexed": _write_indexed}


def _make(name: str, path: Path) -> dict[str, Any]:
    with (
        mock.patch.object(opening.uuid, "uuid4", return_value=mock.Mock(bytes=IDENTITY)),
        mock.patch.object(file_layer.system, "boot_id", return_value=BOOT),
        mmapdict(path) as store,
    ):
        return GOLDEN[name](store)


@pytest.mark.parametrize("name", GOLDEN)
def test_same_input_gives_the_golden_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store"
    content = _make(name, path)
    assert path.read_bytes() == (DATA / f"{name}.mmdpickle").read_bytes()
    assert_file(path, content)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_file_is_read_and_written_on(tmp_path: Path, name: str) -> None:
    content = _make(name, tmp_path / "made")
    path = fixture(f"{name}.mmdpickle", tmp_path)
    with mmapdict(path, readonly=True) as store:
        assert_content(store, content)
        assert len(store) == len(content)
    with mmapdict(path) as store:
        assert_sound(store, content)
        store["new"] = content["new"] = [1]
        first = next(iter(content))
        del store[first], content[first]
        assert_sound(store, content)
        store.vacuum()
        assert_sound(store, content)


def test_fresh_file_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with (
        mock.patch.object(opening.uuid, "uuid4", return_value=mock.Mock(bytes=IDENTITY)),
        mock.patch.object(file_layer.system, "boot_id", return_value=BOOT),
    ):
        mmapdict(path).close()
    superblock = b"PMSHELVE" + IDENTITY + bytes(4) + b"\0\x01\0\0" + bytes(20) + BOOT + bytes(8)
    superblock += bytes(24) + struct.pack("<I", zlib.crc32(bytes(24)))
    superblock = superblock.ljust(192, b"\0")
    expected = (
        b"\x80\x04\x95\x0d\0\0\0\0\0\0\0J\x01\0\0\x000J\0\0\0\x000(\x95"
        + struct.pack("<Q", 221) + b"\x8c\x0b\0pmshelve/1C\xc0" + superblock
        + b"J\0\0\0\x000J\0\0\0\x00000"
        + b"\x95\x02\0\0\0\0\0\0\0d."
    )  # fmt: skip
    made = path.read_bytes()
    assert made[:100] == expected[:100]
    assert made[100:124] in (expected[100:124], made[100:124])  # whether it counts as synced
    assert made[124:] == expected[124:]


# Opcodes of values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "opcodes"),
    [
        (None, b"N"),
        (True, b"\x88"),
        (False, b"\x89"),
        (0, b"K\0"),
        (255, b"K\xff"),
        (256, b"M\0\x01"),
        (65536, b"J\0\0\x01\0"),
        (-1, b"J\xff\xff\xff\xff"),
        (2**31, b"\x8a\x05\0\0\0\x80\0"),
        (1.5, b"G\x3f\xf8\0\0\0\0\0\0"),
        ("é", b"\x8c\x02\xc3\xa9"),
        ("t" * 256, b"X\0\x01\0\0" + b"t" * 256),
        (b"\xff", b"C\x01\xff"),
        (b"b" * 256, b"B\0\x01\0\0" + b"b" * 256),
    ],
    ids=lambda value: repr(value)[:12],
)
def test_plain_value_is_its_opcodes_alone(tmp_path: Path, value: Any, opcodes: bytes) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["key"] = value
    [entry] = [entry for entry in read_layout(path.read_bytes()).entries if not entry.reserved]
    data = path.read_bytes()[entry.start + 14 : entry.end - 14]
    assert data.startswith(opcodes)
    assert not data[len(opcodes) :].strip(b"N0CK\0\x01\x02\x03\x04\x05\x06\x07\x08\t\n\x0b\x0c\x0d")
    assert entry.memo == 0


@pytest.mark.parametrize(
    ("value", "opcode"),
    [
        ("t" * 65536, "BINUNICODE"),
        ("t" * 65537, "BINUNICODE8"),
        (b"b" * 65536, "BINBYTES"),
        (b"b" * 65537, "BINBYTES8"),
    ],
    ids=["text 64 KiB", "text more", "bytes 64 KiB", "bytes more"],
)
def test_size_decides_the_opcode(tmp_path: Path, value: Any, opcode: str) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["key"] = value
    assert read_layout(path.read_bytes()).entries[-1].opcodes[0].name == opcode


def test_array_is_a_partial_with_its_buffer_aligned(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = np.arange(1000)
    entry = read_layout(path.read_bytes()).entries[-1]
    names = [opcode.name for opcode in entry.opcodes]
    assert [name for name in names if name == "BYTEARRAY8"] == ["BYTEARRAY8"]
    assert names[:3] == ["SHORT_BINUNICODE", "SHORT_BINUNICODE", "STACK_GLOBAL"]
    assert [opcode.arg for opcode in entry.opcodes[:2]] == ["functools", "partial"]
    assert names[-1] == "REDUCE"
    assert "NEWOBJ_EX" in names


def test_generic_value_is_pickle_loads_of_bytes(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = [1, 2]
    opcodes = read_layout(path.read_bytes()).entries[-1].opcodes
    assert [opcode.arg for opcode in opcodes[:2]] == ["pickle", "loads"]
    assert opcodes[2].name == "STACK_GLOBAL"
    assert opcodes[3].arg.startswith(b"\x80\x05")
    assert opcodes[4].name == "TUPLE1"
    assert opcodes[-1].name == "REDUCE"


# Entries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(0, 1100, 7))
def test_no_entry_ends_where_a_sector_would_split_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = b"x" * size
        store["b"] = np.zeros(size, "u1")
        store["c"] = [b"x" * size]
        with store.batch():
            store["d"] = "x" * size
            del store["a"]
    layout = read_layout(path.read_bytes())  # asserts L8 for each
    assert layout.live_keys() == ["b", "c", "d"]


def test_flags_tell_replaced_from_deleted(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = [1]
        store["a"] = [2]
        store["b"] = [3]
        del store["b"]
    first, second, third = read_layout(path.read_bytes()).entries[1:]
    assert (first.flag, second.flag, third.flag) == (REPLACED, LIVE, DEAD)
    assert [entry.opcodes[-1].name for entry in (first, second, third)] == ["POP", "REDUCE", "POP"]


def test_batch_begins_with_its_header(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = 1
        with store.batch():
            store["b"] = np.arange(10)
            del store["a"]
            store["c"] = 3
    entries = read_layout(path.read_bytes()).entries
    header = next(entry for entry in entries if entry.stored_key == b"\0pmshelve/batch")
    size, count = struct.unpack("<QQ", header.opcodes[0].arg)
    members = [entry for entry in entries if entry.start >= header.end]
    assert size == members[-1].end - header.start
    assert count == len(members) == 3
    assert [(entry.key, entry.flag) for entry in members] == [("b", LIVE), ("a", DEAD), ("c", LIVE)]
    assert members[1].opcodes[0].name == "NONE"


def test_marker_key_carries_the_real_one(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["\ud800"] = 1
    entry = read_layout(path.read_bytes()).entries[-1]
    assert entry.stored_key == b"\0pmshelve:key"
    assert entry.key == "\ud800"
    data = path.read_bytes()
    at = entry.start + 11 + len(entry.stored_key)
    assert data[at : at + 9] == b"0X\x03\0\0\0\xed\xa0\x80"


# Superblock and counts --------------------------------------------------------------------------


def test_settled_counts_are_those_of_the_entries(tmp_path: Path) -> None:
    path = tmp_path / "store"
    chance = random.Random(1)
    values = list(all_values().values())
    with mmapdict(path) as store:
        for _ in range(150):
            key = chance.choice(["a", "b", "c", *AWKWARD_KEYS])
            if key in store and chance.random() < 0.3:
                del store[key]
            elif chance.random() < 0.2:
                store.update({key: 1, "d": 2})
            else:
                store[key] = chance.choice(values)
            data = path.read_bytes()
            layout, block = read_layout(data), Superblock.decode(data)
            assert block.magic == b"PMSHELVE"
            assert block.stamp == layout.commit_number
            assert block.marks == 0
            assert block.face == 1
            assert block.live_count == len(layout.live_keys())
            # Everything that is not live is dead, but the superblock itself.
            newest = {entry.key: entry for entry in layout.entries if not entry.reserved}
            live = sum(entry.end - entry.start for entry in newest.values() if entry.live)
            assert block.dead_size == layout.terminator - 254 - live
            # L4: at a settled commit only the newest entry of a key may live.
            assert all(
                newest[entry.key] is entry
                for entry in layout.entries
                if not entry.reserved and entry.live
            )


def test_exclusive_store_is_marked_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path, exclusive=True) as store:
        store["a"] = 1
        assert Superblock.decode(path.read_bytes()).marks == 2
    block = Superblock.decode(path.read_bytes())
    assert block.marks == 0
    assert block.live_count == 1
    assert block.stamp == read_layout(path.read_bytes()).commit_number


def test_replaced_inode_is_marked_and_its_superblock_broken(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update(a=1, b=2)
        del store["a"]
        with open(path, "rb") as old:
            identity = Superblock.decode(old.read()).identity
            store.vacuum()
            old.seek(0)
            data = old.read()
            assert data[76] & 1
            assert data[33:35] != b"\x8c\x0b"
        new = Superblock.decode(path.read_bytes())
        assert new.marks == 0
        assert new.generation != 0 or new.identity != identity


def test_identity_differs_from_file_to_file(tmp_path: Path) -> None:
    identities = set()
    for number in range(5):
        mmapdict(tmp_path / str(number)).close()
        identities.add((tmp_path / str(number)).read_bytes()[56:72])
    assert len(identities) == 5


# Checkpoint (section 4) -------------------------------------------------------------------------


def _hash(key: str) -> int:
    return (zlib.crc32(key.encode("utf-8", "surrogatepass")) * 2654435769 % 2**32) | 1


def _probe(data: bytes, offset: int, key: str) -> list[int]:
    """Return the entry offsets that the checkpoint at `offset` has for a key."""
    buckets = struct.unpack_from("<I", data, offset + 8)[0]
    wanted, found = _hash(key), []
    bucket = wanted * buckets >> 32
    for _ in range(buckets):
        at = offset + 4096 + bucket // 32 * 4096 + bucket % 32 * 128
        hashes = struct.unpack_from("<10I", data, at)
        offsets = struct.unpack_from("<10Q", data, at + 40)
        found += [place for value, place in zip(hashes, offsets, strict=True) if value == wanted]
        if not hashes[-1]:
            break
        bucket = (bucket + 1) % buckets
    return found


@pytest.mark.parametrize("rounds", [1, 4])
def test_checkpoints_find_every_live_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.setattr(index_module, "CHECKPOINT_CLOSE_MIN", 1)
    path = tmp_path / "store"
    for round_ in range(rounds):
        with mmapdict(path) as store:
            for number in range(400):
                store[f"key {round_ * 100 + number}"] = round_
            store["\ud800"] = round_
            store["k" * 300] = round_
            del store[f"key {round_ * 100}"]
    data = path.read_bytes()
    layout = read_layout(data)
    offset, size, end = Superblock.decode(data).checkpoint
    assert offset % 64 == 0
    found: dict[str, list[int]] = {}
    stop = end
    while offset:
        assert data[offset : offset + 8] == b"PMSINDEX"
        for page in range(offset, offset + size, 4096):
            crc = struct.unpack_from("<I", data, page + 4092)[0]
            assert crc == zlib.crc32(data[page : page + 4092])
        count, start, end, older_offset, older_size = struct.unpack_from("<5Q", data, offset + 16)
        assert end == stop
        assert count > 0
        for entry in layout.entries:
            if not entry.reserved and start <= entry.start < end and entry.live:
                places = _probe(data, offset, entry.key)
                assert entry.start in places
                assert places == sorted(places, reverse=True)
                found.setdefault(entry.key, []).append(entry.start)
        stop, offset, size = start, older_offset, older_size
    assert found.keys() == set(layout.live_keys())
    with mmapdict(path, readonly=True) as store:
        assert "missing" not in store
        assert store["\ud800"] == store["k" * 300] == rounds - 1
        assert list(store) == layout.live_keys()


def test_broken_checkpoint_costs_nothing_but_time(tmp_path: Path) -> None:
    path = fixture("golden-1-indexed.mmdpickle", tmp_path)
    sound = path.read_bytes()
    offset, size, _end = Superblock.decode(sound).checkpoint
    content = {f"key {number}": number for number in range(600)}
    for at in (offset, offset + 20, offset + 4096, offset + size - 1, offset + size - 2000, 130):
        broken = bytearray(sound)
        broken[at] ^= 0xFF
        path.write_bytes(broken)
        with mmapdict(path, readonly=True) as store:
            assert_content(store, content)
            assert "missing" not in store
        with mmapdict(path) as store:
            store["new"] = 1
            assert store["new"] == 1
            assert_content(store, {**content, "new": 1})


# Alignment --------------------------------------------------------------------------------------


def test_data_of_every_array_is_aligned_before_and_after_a_vacuum(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        for number in range(60):
            store["k" * (number % 37 + 1)] = np.arange(number)
            store[f"dead{number}"] = b"x" * number
        for number in range(60):
            del store[f"dead{number}"]
        for _ in range(2):
            for value in store.values():
                assert value.offset % 64 == 0
            read_layout(path.read_bytes())
            store.vacuum()
        assert_same(np.asarray(store["k"]), np.arange(37))


if __name__ == "__main__":
    for _name in GOLDEN:
        _target = DATA / f"{_name}.mmdpickle"
        _target.unlink(missing_ok=True)
        _make(_name, _target)
