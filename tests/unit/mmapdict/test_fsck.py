"""fsck: every entry whose value is whole is kept, and the file is sound afterwards."""

from __future__ import annotations

import logging
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import ClosedError, CorruptionError, ReadOnlyError, StateError
from pmshelve.mmapdict import frame, mmapdict
from pmshelve.mmapdict.check import check_bytes
from pmshelve.mmapdict.frame import DEAD, LIVE, REPLACED, TERMINATOR
from pmshelve.mmapdict.fsck import encode_gap
from pmshelve.mmapdict.recover import Gap, Recovery
from tests.support.image import Image, sample
from tests.support.stores import DATA, assert_sound, stock_load


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL + 1, "pmshelve.mmapdict"):
        yield


def repair(path: Path, data: bytes | bytearray) -> dict[str, Any]:
    """Write a file, mend it, see that it is sound and serves; return its content."""
    path.write_bytes(data)
    with mmapdict(path) as store:
        store.fsck()
        assert store.check() == []
        assert store.fsck()
        content = {key: store[key] for key in store}
        store["written after it"] = 1
        assert store.check() == []
        del store["written after it"]
    with mmapdict(path, readonly=True) as store:
        assert store.check() == []
        assert list(store) == list(content)
    assert list(stock_load(path)) == list(content)
    return content


def entries(data: bytes) -> list[Any]:
    return list(Recovery(lambda start, stop: data[start:stop], len(data)))


# Sound files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", sorted(DATA.glob("*.mmdpickle")), ids=lambda path: path.stem)
def test_a_sound_file_is_left_as_it_is(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes())
    with mmapdict(path) as store:
        assert store.fsck()
        before = path.read_bytes()
        assert store.fsck()
        assert path.read_bytes() == before


def test_an_empty_store_is_sound(path: Path) -> None:
    with mmapdict(path) as store:
        assert store.fsck()
        assert dict(store) == {}


# Damage -----------------------------------------------------------------------------------------


def test_a_damaged_value_is_lost_and_no_other(path: Path) -> None:
    image = sample()
    whole = repair(path, image.finish())
    for key in ("int", "text", "object", "k" * 300, "first", "foreign"):
        data = bytearray(image.finish())
        _, stop = image.places[key]
        value = stop - 17 if key != "foreign" else stop - 9
        data[value] ^= 0x55
        expected = {name: value for name, value in whole.items() if name != key}
        assert repair(path, data).keys() == expected.keys(), key


def test_the_older_value_comes_back_where_the_newer_is_lost(path: Path) -> None:
    image = Image()
    image.add("k", b"K\x01", REPLACED)
    image.add("k", b"K\x02")
    image.add("other")
    _, stop = image.places["k"]
    image.data[stop - 15] ^= 1
    assert repair(path, image.finish()) == {"k": 1, "other": 1}


def test_a_range_that_was_overwritten(path: Path) -> None:
    image = Image()
    for index in range(100):
        image.add(f"key {index}", b"C\x32" + bytes(range(50)))
    whole = image.finish()
    for start, size in ((300, 512), (254, 4096), (1000, 77), (5000, len(whole) - 5000)):
        data = bytearray(whole)
        data[start : start + size] = b"\xa5" * size
        content = repair(path, data)
        spared = {
            key for key, (low, high) in image.places.items() if high <= start or low >= start + size
        }
        assert spared <= set(content)
        assert set(content) <= set(image.places)
        assert set(content.values()) <= {bytes(range(50))}


def test_a_file_that_was_cut(path: Path) -> None:
    image = sample()
    whole = image.finish()
    live = [
        (entry.end, entry.key)
        for entry in entries(whole)
        if entry.key is not None and entry.flag != DEAD
    ]
    for size in [*range(254, len(whole), 97), *range(len(whole) - 12, len(whole))]:
        expected = {key for end, key in live if end <= size}
        if "second" not in expected:
            expected.discard("first")  # a batch that was cut never was
        assert repair(path, whole[:size]).keys() == expected, size


def test_a_batch_that_lost_a_member_keeps_the_others(path: Path) -> None:
    image = sample()
    start, stop = image.places["first"]
    image.data[start:stop] = bytes(stop - start)
    content = repair(path, image.finish())
    assert "second" in content
    assert "first" not in content


def test_an_array_damaged_beside_others(path: Path) -> None:
    with mmapdict(path) as store:
        for index in range(5):
            store[f"a{index}"] = np.arange(2000) + index
    data = bytearray(path.read_bytes())
    where = next(entry for entry in entries(bytes(data)) if entry.key == "a2")
    data[where.offset : where.offset + 200] = bytes(200)
    content = repair(path, data)
    assert set(content) == {"a0", "a1", "a3", "a4"}
    assert all(value[0] == int(key[1]) for key, value in content.items())


def test_flags_counts_and_checkpoints_are_put_right(path: Path) -> None:
    image = sample()
    whole = repair(path, image.finish())
    image = sample()
    image.add("int", b"K\x07")
    data = bytearray(image.finish())
    struct.pack_into("<iQQ", data, 80, 0, 1, 1)
    pointer = frame.POINTER.unpack_from(data, frame.INDEX_OFFSET)
    data[pointer[0] + 4200] ^= 1
    content = repair(path, data)
    assert content["int"] == 7
    assert content.keys() == whole.keys()


def test_a_double_that_is_live(path: Path) -> None:
    image = Image()
    image.add("k", b"K\x01", LIVE)
    image.add("k", b"K\x02", LIVE)
    assert repair(path, image.finish()) == {"k": 2}


@pytest.mark.parametrize(
    "body", [b"N", b"K\x01", b"J\1\2\3\4", b"C\x05abcde", b"C\x0eabcdefghijklmn"]
)
@pytest.mark.parametrize("key", ["", "a", "abcdefgh", "k" * 20])
def test_the_smallest_gaps(path: Path, key: str, body: bytes) -> None:
    image = Image()
    image.add("before")
    image.add("\x01")
    image.add_foreign(key, body)
    image.add("after")
    start, stop = image.places[key]
    data = bytearray(image.finish())
    data[start:stop] = b"\xff" * (stop - start)
    assert repair(path, data) == {"before": 1, "\x01": 1, "after": 1}


def test_a_gap_too_small_for_an_entry_takes_what_only_looked_like_one(path: Path) -> None:
    inner = Image(superblock=False)
    inner.add("inner")
    image = Image()
    image.add("outer", b"B\x22\0\0\0" + bytes(2) + inner.data[24:].ljust(32, b"\0"))
    image.add("after")
    start, _ = image.places["outer"]
    data = bytearray(image.finish())
    # Nothing but rubbish up to shortly before what looks like an entry.
    at = data.index(inner.data[24:40])
    del data[start : at - 10]
    repaired = repair(path, data)
    assert repaired["after"] == 1


def test_rubbish_behind_the_terminator_is_cut(path: Path) -> None:
    image = sample()
    path.write_bytes(image.finish())
    with mmapdict(path) as store:
        with open(path, "ab") as file:
            file.write(b"rubbish" * 100)
        assert not store.fsck()
        assert store.fsck()
    assert path.stat().st_size == len(image.finish())


def test_rubbish_there_before_opening(path: Path) -> None:
    image = sample()
    assert repair(path, image.finish() + bytes(1000)).keys() == repair(path, image.finish()).keys()


# The store around it ----------------------------------------------------------------------------


def test_a_damaged_store_opens_tells_and_mends(path: Path) -> None:
    image = Image()
    for key in ("int", "text", "other"):
        image.add(key)
    start, _ = image.places["text"]
    data = bytearray(image.finish())
    data[start] ^= 1
    path.write_bytes(data)
    with mmapdict(path) as store:
        with pytest.raises(CorruptionError):
            store["int"]
        with pytest.raises(CorruptionError):
            store["int"] = 1
        assert path.read_bytes() == data
        assert [problem.key for problem in store.check()] == ["text"]
        assert not store.fsck()
        assert store["text"] == 1
        assert_sound(store, dict.fromkeys(("int", "text", "other"), 1))


def test_another_process_follows(path: Path) -> None:
    image = sample()
    path.write_bytes(image.finish())
    with mmapdict(path) as store, mmapdict(path) as other:
        assert other["text"] == "abc"
        _, stop = image.places["text"]
        with open(path, "r+b") as file:
            file.seek(stop - 16)
            file.write(b"X")
        assert not store.fsck()
        assert "text" not in other
        assert other["int"] == store["int"] == 1
        assert other.check() == []


def test_an_exclusive_store_mends_and_stays_exclusive(path: Path) -> None:
    path.write_bytes(sample().finish())
    image = sample()
    _, stop = image.places["text"]
    with mmapdict(path, exclusive=True) as store:
        assert store.fsck()
        with open(path, "r+b") as file:
            file.seek(stop - 16)
            file.write(b"X")
        assert not store.fsck()
        assert store.fsck()
        assert "text" not in store
        assert store.stats().exclusive
    with mmapdict(path) as store:
        assert store.check() == []


def test_what_was_found_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = sample()
    start, _ = image.places["text"]
    data = bytearray(image.finish())
    data[start] ^= 1
    path.write_bytes(data)
    with mmapdict(path) as store, caplog.at_level(logging.WARNING, "pmshelve.mmapdict"):
        store.fsck()
    assert f"(key 'text') at offset {start}" in caplog.text
    assert f"mended the entry at {start}" in caplog.text


def test_it_is_refused_where_it_cannot_work(path: Path) -> None:
    path.write_bytes(sample().finish())
    with mmapdict(path, readonly=True) as store, pytest.raises(ReadOnlyError):
        store.fsck()
    with mmapdict(path) as store, store.batch(), pytest.raises(StateError):
        store.fsck()
    with pytest.raises(ClosedError):
        store.fsck()


def test_a_read_only_damaged_store_can_be_checked(path: Path) -> None:
    image = sample()
    start, _ = image.places["text"]
    data = bytearray(image.finish())
    data[start] ^= 1
    path.write_bytes(data)
    os.chmod(path, 0o444)
    with mmapdict(path, readonly=True) as store:
        assert [problem.offset for problem in store.check()] == [start]
        with pytest.raises(ReadOnlyError):
            store.fsck()
    assert path.read_bytes() == data


def test_a_crash_on_the_way_is_made_up_for(path: Path) -> None:
    """Every prefix of the writes that fsck makes leaves a file that fsck mends to the same."""
    image = sample()
    for key in ("text", "object", "first"):
        _, stop = image.places[key]
        image.data[stop - 17] ^= 0x55
    start, _ = image.places["old"]
    image.data[start] ^= 1
    image.data[80] ^= 1
    damaged = image.finish() + b"rubbish"
    expected = repair(path, damaged)
    writes = _writes_of_fsck(path, damaged)
    assert len(writes) > 5
    for count in range(len(writes)):
        data = bytearray(damaged)
        for offset, piece in writes[:count]:
            data[offset : offset + len(piece)] = piece
        assert repair(path, data).keys() == expected.keys()


def _writes_of_fsck(path: Path, data: bytes) -> list[tuple[int, bytes]]:
    path.write_bytes(data)
    writes: list[tuple[int, bytes]] = []
    from pmshelve.storage import file as disk

    def pwrite(fd: int, piece: bytes, offset: int) -> int:
        writes.append((offset, bytes(piece)))
        return original(fd, piece, offset)

    original = disk.system.pwrite
    with mmapdict(path) as store:
        disk.system.pwrite = pwrite
        try:
            store.fsck()
        finally:
            disk.system.pwrite = original
    return writes


# Gaps as entries --------------------------------------------------------------------------------


@given(st.integers(20, 400), st.sampled_from([frame.FILL_KEY, frame.RESERVED, b"k", b""]))
def test_a_gap_of_any_size_becomes_one_dead_entry(size: int, key: bytes) -> None:
    if size < 20 + len(key):
        return
    head, trailer = encode_gap(key, size)
    data = Image(superblock=False).data + head
    data += b"\xff" * (size - len(head) - len(trailer)) + trailer + TERMINATOR
    found = entries(bytes(data))
    assert not any(isinstance(entry, Gap) for entry in found)
    assert [(entry.end - entry.offset, entry.flag, entry.own) for entry in found] == [
        (size, DEAD, False)
    ]
    assert pickle.loads(data) == {}
    assert list(check_bytes(lambda start, stop: bytes(data[start:stop]), len(data))) == []
