"""Each flipped bit, each truncation: reading gives good data or a clean error, fsck keeps the rest.

One bit of each byte is flipped in the short run, all eight in the long one.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmshelve.errors import PmshelveError
from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.check import check_bytes
from pmshelve.mmapdict.frame import BATCH_KEY, LIVE
from pmshelve.mmapdict.recover import Recovery
from pmshelve.mmapdict.scan import Entry
from pmshelve.storage import file as disk
from tests.support.stores import DATA
from tests.support.values import same

_MISSING = object()


class Store:
    """A valid file, what it holds, and which bytes are what."""

    def __init__(self, data: bytes, content: dict[str, Any]) -> None:
        self.data = data
        self.content = content
        read = lambda start, stop: data[start:stop]  # noqa: E731
        self.entries = [found for found in Recovery(read, len(data)) if isinstance(found, Entry)]
        assert list(check_bytes(read, len(data))) == []

    @property
    def last_offset(self) -> int:
        """Where the last entry, or the terminator of an empty file, is."""
        return self.entries[-1].offset if self.entries else 24

    def value_at(self, offset: int) -> str | None:
        """Return the key whose live value has a byte there."""
        for entry in self.entries:
            if entry.value <= offset < entry.end - (14 if entry.own else 8):
                return entry.key if entry.flag == LIVE else None
        return None

    def is_unchecked_key(self, offset: int) -> bool:
        """Whether a byte there is of a key that no checksum covers."""
        return any(
            not entry.own and entry.offset + 10 <= offset < entry.value for entry in self.entries
        )

    def whole_before(self, size: int) -> dict[str, Entry]:
        """Return the newest entry of each key among those committed before `size`."""
        newest = {}
        stop = 0
        for entry in self.entries:
            if entry.stored == BATCH_KEY:
                stop = entry.offset + int.from_bytes(self.data[entry.value + 2 :][:8], "little")
            if max(entry.end, stop if entry.offset < stop else 0) > size:
                break  # a batch that was cut never was
            if entry.key is not None:
                newest[entry.key] = entry
        return newest


@functools.cache
def own() -> Store:
    """A file with values of every form, replaced, deleted, in batches, with an index."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store")
        with mmapdict(path) as store:
            store["int"] = 1
            store["gone"] = "text"
            store["bytes"] = bytes(range(64))
            store["object"] = {"x": [1, 2]}
            store["array"] = np.arange(10.0)
            store["k" * 256] = "long key"
            store["\ud800"] = 2.5
            store["int"] = 2**70
            del store["gone"]
            store["object"] = (1, "y")
            with store.batch():
                store["none"] = None
                store["text"] = "héllo"
                store.pop("int")
            store["masked"] = np.ma.MaskedArray([1, 2], [0, 1])
            store["frame"] = {"a": np.arange(600), "b": "c"}
            store["long"] = bytes(70_000)
        with mmapdict(path, readonly=True, mmap_mode=None) as store:
            return Store(path.read_bytes(), dict(store))


@functools.cache
def foreign(name: str) -> Store:
    path = DATA / f"{name}.mmdpickle"
    with mmapdict(path, readonly=True, mmap_mode=None) as store:
        return Store(path.read_bytes(), dict(store))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files are mended here, and no power is cut."""
    monkeypatch.setattr(disk.system, "fdatasync", lambda _fd: None)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL + 1, "pmshelve.mmapdict"):
        yield


def read_all(path: Path, *, checked: bool) -> dict[str, Any] | None:
    """Return all that can be read; None if it cannot be opened.

    Package errors are clean, anything else is not.

    Parameters
    ----------
    checked
        Small values have checksums: the file is ours.
    """
    content = {}
    try:
        with mmapdict(path, readonly=True, mmap_mode=None) as store:
            assert store.stats().live_count == len(store)
            for key in store:
                try:
                    content[key] = store[key]
                except PmshelveError:
                    content[key] = _MISSING
                except (ImportError, AttributeError):
                    if checked:
                        raise
                    content[key] = _MISSING  # a name that was hit is like one that is not there
    except PmshelveError:
        return None
    return content


def mend(path: Path, *, checked: bool) -> dict[str, Any] | None:
    """Return what is there after fsck; None where the file cannot even be opened."""
    try:
        store = mmapdict(path, mmap_mode=None, allow_pickle=False)
    except PmshelveError:
        return None
    with store:
        store.fsck()
        assert store.check() == []
        keys = list(store)
    content = read_all(path, checked=checked)
    assert content is not None
    assert list(content) == keys
    return content


def flips(store: Store, factor: int) -> Iterator[tuple[int, int]]:
    """Yield the offsets and bits to flip: not in the middle of large data, which is all alike."""
    for offset in range(len(store.data)):
        large = any(entry.offset + 300 < offset < entry.end - 60 for entry in store.entries)
        if not large:
            for bit in range(8) if factor > 1 else (offset * 5 % 8,):
                yield offset, bit


def sources() -> list[str]:
    return ["own", "generic", "arrays", "masked", "history", "empty"]


def source(name: str) -> Store:
    return own() if name == "own" else foreign(name)


# Flipped bits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sources())
def test_a_flipped_bit_is_reported_or_harmless(name: str, path: Path, profile: Any) -> None:
    store = source(name)
    for offset, bit in flips(store, profile.factor):
        data = bytearray(store.data)
        data[offset] ^= 1 << bit
        problems = list(
            check_bytes(lambda low, high, data=data: bytes(data[low:high]), len(data))  # type: ignore[misc]
        )
        path.write_bytes(data)
        content = read_all(path, checked=name == "own")
        # Data of arrays, and all of what mmappickle wrote, carries no checksum.
        damaged = store.value_at(offset)
        if not problems and content is not None:
            assert content.keys() == store.content.keys() or name != "own", (offset, bit)
            for key, value in content.items():
                if key != damaged and name == "own":
                    assert same(value, store.content[key]), (offset, bit, key)


@pytest.mark.parametrize("name", sources())
def test_a_flipped_bit_costs_no_value_but_its_own(name: str, path: Path, profile: Any) -> None:
    store = source(name)
    for offset, bit in flips(store, profile.factor):
        if store.is_unchecked_key(offset):
            continue  # the value is found under another key, whose own it may hide
        if name != "own" and offset >= store.last_offset:
            continue  # of mmappickle's last entry nobody can tell damage from a write cut short
        data = bytearray(store.data)
        data[offset] ^= 1 << bit
        path.write_bytes(data)
        content = mend(path, checked=name == "own")
        if content is None:
            assert offset < 24, (offset, bit)  # not recognisable as a store any more
            continue
        damaged = store.value_at(offset)
        for key, value in store.content.items():
            if key != damaged:
                assert same(content.get(key, _MISSING), value), (offset, bit, key)
        if name == "own":
            assert not content.keys() - store.content.keys() - {"int"}, (offset, bit)


# Truncations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sources())
def test_a_cut_file_reads_cleanly_and_keeps_what_is_whole(
    name: str, path: Path, profile: Any
) -> None:
    store = source(name)
    step = 1 if profile.factor > 1 else 7
    sizes = {*range(0, len(store.data), step), *range(len(store.data) - 20, len(store.data))}
    for size in sorted(sizes):
        if 5000 < size < len(store.data) - 3000 and size % 997:
            continue
        path.write_bytes(store.data[:size])
        content = read_all(path, checked=name == "own")
        if content is not None:
            assert content.keys() <= {*store.content, "gone", "int", ""} or name != "own"
        content = mend(path, checked=name == "own")
        if content is None:
            assert size < 24
            continue
        for key, entry in store.whole_before(size).items():
            # Its successor may be what was cut off; then the older one counts again.
            if entry.flag == LIVE:
                assert same(content.get(key, _MISSING), store.content[key]), (size, key)


# Overwritten and appended -----------------------------------------------------------------------


@given(st.integers(0), st.sampled_from([1, 16, 512, 4096]), st.sampled_from(sources()))
def test_an_overwritten_range_costs_only_what_it_touches(seed: int, size: int, name: str) -> None:
    store = source(name)
    rubbish = random.Random(seed).randbytes(size)
    start = 24 + seed % max(1, len(store.data) - 24)
    data = bytearray(store.data)
    data[start : start + size] = rubbish[: max(0, len(data) - start)]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store")
        path.write_bytes(data)
        read_all(path, checked=name == "own")
        content = mend(path, checked=name == "own")
    assert content is not None
    for entry in store.entries:
        touched = entry.offset < start + size and start < entry.end
        if not touched and entry.flag == LIVE and entry.key is not None:
            assert same(content.get(entry.key, _MISSING), store.content[entry.key]), entry


@given(st.binary(max_size=300), st.sampled_from(sources()), st.booleans())
def test_rubbish_behind_the_end_or_in_place_of_it(rubbish: bytes, name: str, cut: bool) -> None:
    store = source(name)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store")
        path.write_bytes((store.data[:-11] if cut else store.data) + rubbish)
        read_all(path, checked=name == "own")
        content = mend(path, checked=name == "own")
    assert content is not None
    assert content.keys() == store.content.keys()
    assert all(same(content[key], value) for key, value in store.content.items())


@given(st.binary(max_size=600))
def test_any_bytes_open_cleanly(data: bytes) -> None:
    store = own()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "store")
        for whole in (data, store.data[:24] + data, store.data[:254] + data):
            path.write_bytes(whole)
            read_all(path, checked=True)
            assert path.read_bytes() == whole
            mend(path, checked=True)
            os.unlink(path)
