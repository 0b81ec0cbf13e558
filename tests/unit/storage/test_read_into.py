"""Reading into memory of one's own, and letting go of a map's pages."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve.storage import file

DATA = bytes(range(256)) * 64


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "data").write_bytes(DATA)
    fd = os.open(tmp_path / "data", os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 1), (5, 1000), (0, len(DATA))])
def test_all_of_the_buffer_is_filled(fd: int, offset: int, size: int):
    buffer = bytearray(size)
    file.read_into(fd, buffer, offset)
    assert buffer == DATA[offset : offset + size]
    buffer.append(1)  # nobody has a view of it any more


def test_short_reads_are_gone_on_with(fd: int, monkeypatch: pytest.MonkeyPatch):
    def short(fd: int, buffers: Any, offset: int) -> int:
        return os.preadv(fd, [memoryview(buffers[0])[:100]], offset)

    monkeypatch.setattr(file.system, "preadv", short)
    buffer = bytearray(950)
    file.read_into(fd, buffer, 7)
    assert buffer == DATA[7:957]


def test_a_file_that_ends_before_is_an_error(fd: int):
    with pytest.raises(OSError, match="ended"):
        file.read_into(fd, bytearray(10), len(DATA) - 9)


def test_what_was_stored_stays_when_pages_are_released(fd: int):
    shared = file.map_file(fd, len(DATA), writable=True)
    shared[5000:5003] = b"new"
    file.release(shared, 4096, 8192)
    assert shared[4999:5004] == DATA[4999:5000] + b"new" + DATA[5003:5004]
    assert os.pread(fd, 3, 5000) == b"new"
    shared.close()


def test_a_refused_release_is_no_error():
    class Refusing:
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    file.release(Refusing(), 0, mmap.PAGESIZE)
