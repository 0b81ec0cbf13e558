"""The file layer: limits of one call, short writes and the slower ways end here."""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve.errors import NoSpaceError, StorageError
from pmshelve.storage import file
from pmshelve.storage.file import system

DATA = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Sizes of all reads and writes that reach the system."""
    seen: list[tuple[str, Any]] = []

    def pread(fd: int, size: int, offset: int) -> bytes:
        seen.append(("pread", size))
        return os.pread(fd, size, offset)

    def pwrite(fd: int, data: Any, offset: int) -> int:
        seen.append(("pwrite", len(data)))
        return os.pwrite(fd, data, offset)

    def pwritev(fd: int, buffers: list[Any], offset: int) -> int:
        seen.append(("pwritev", [len(buffer) for buffer in buffers]))
        return os.pwritev(fd, buffers, offset)

    for primitive in (pread, pwrite, pwritev):
        monkeypatch.setattr(system, primitive.__name__, primitive)
    return seen


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 24, 0)


# Reading and writing --------------------------------------------------------------------------


def test_a_small_write_and_read_are_one_call_each(fd: int, calls: list[tuple[str, Any]]):
    file.write_at(fd, b"hello", 3)
    assert file.read_at(fd, 5, 3) == b"hello"
    assert calls == [("pwrite", 5), ("pread", 5)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_like_object_is_written(fd: int, kind: Any):
    file.write_at(fd, kind(DATA), 0)
    assert file.writev_at(fd, [kind(b"ab"), kind(b""), kind(b"c")], len(DATA)) == 3
    assert content(fd) == DATA + b"abc"


def test_reads_end_at_the_files_end(fd: int):
    os.pwrite(fd, b"12345", 0)
    assert file.read_at(fd, 100, 2) == b"345"
    assert file.read_at(fd, 100, 5) == b""
    assert file.read_at(fd, 0, 0) == b""
    assert file.size_of(fd) == 5


def test_reads_are_cut_at_the_limit_of_one_call(
    fd: int, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    os.pwrite(fd, DATA, 0)
    monkeypatch.setattr(file, "CALL_SIZE_MAX", 1000)
    assert file.read_at(fd, 2500, 10) == DATA[10:2510]
    assert calls == [("pread", 1000), ("pread", 1000), ("pread", 500)]
    assert file.read_at(fd, len(DATA) + 100, 0) == DATA


def test_short_reads_are_completed(fd: int, monkeypatch: pytest.MonkeyPatch):
    os.pwrite(fd, DATA, 0)
    monkeypatch.setattr(system, "pread", lambda fd, size, at: os.pread(fd, min(size, 7), at))
    assert file.read_at(fd, 100, 5) == DATA[5:105]


def test_writes_are_cut_at_the_limit_of_one_call(
    fd: int, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(file, "CALL_SIZE_MAX", 1000)
    file.write_at(fd, DATA[:2500], 4)
    assert calls == [("pwritev", [1000]), ("pwritev", [1000]), ("pwritev", [500])]
    assert content(fd) == bytes(4) + DATA[:2500]


def test_gathered_writes_are_cut_where_one_call_is_full(
    fd: int, calls: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(file, "CALL_SIZE_MAX", 1000)
    parts = [DATA[:600], DATA[600:1500], b"", DATA[1500:1501]]
    assert file.writev_at(fd, parts, 0) == 1501
    assert calls == [("pwritev", [600, 400]), ("pwritev", [500, 1])]
    assert content(fd) == DATA[:1501]


def test_more_buffers_than_one_call_takes(fd: int, calls: list[tuple[str, Any]]):
    parts = [DATA[i : i + 1] for i in range(2500)]
    assert file.writev_at(fd, parts, 9) == 2500
    assert content(fd)[9:] == DATA[:2500]
    limit = file._IOV_MAX
    assert [len(sizes) for _, sizes in calls] == [limit] * (2500 // limit) + [2500 % limit]


@pytest.mark.parametrize("step", [1, 3, 599, 600, 601])
def test_short_writes_are_completed(fd: int, monkeypatch: pytest.MonkeyPatch, step: int):
    def pwritev(fd: int, buffers: list[Any], offset: int) -> int:
        return os.pwrite(fd, b"".join(buffers)[:step], offset)

    monkeypatch.setattr(system, "pwritev", pwritev)
    monkeypatch.setattr(system, "pwrite", lambda fd, data, at: os.pwrite(fd, data[:step], at))
    assert file.writev_at(fd, [DATA[:600], DATA[600:601], DATA[601:1900]], 0) == 1900
    assert content(fd) == DATA[:1900]
    file.write_at(fd, DATA[:1000], 5)
    assert content(fd) == DATA[:5] + DATA[:1000] + DATA[1005:1900]


def test_a_write_that_makes_no_progress_is_an_error(fd: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system, "pwrite", lambda *_: 0)
    monkeypatch.setattr(system, "pwritev", lambda *_: 0)
    with pytest.raises(OSError, match="wrote nothing") as caught:
        file.write_at(fd, b"x", 0)
    assert caught.value.errno == errno.EIO


def test_wider_items_count_in_bytes(fd: int, monkeypatch: pytest.MonkeyPatch):
    items = memoryview(bytes(range(80))).cast("I")
    assert file.writev_at(fd, [b"x", items], 0) == 81
    assert content(fd) == b"x" + bytes(range(80))
    monkeypatch.setattr(file, "CALL_SIZE_MAX", 30)
    assert file.writev_at(fd, [items, b"y"], 1) == 81
    assert content(fd) == b"x" + bytes(range(80)) + b"y"


def test_nothing_to_write_is_no_call(fd: int, calls: list[tuple[str, Any]]):
    assert file.writev_at(fd, [], 5) == 0
    assert file.writev_at(fd, [b"", bytearray()], 5) == 0
    assert calls == []
    assert content(fd) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files past 4 GiB to be cheap")
def test_offsets_past_4_gib(fd: int):
    file.write_at(fd, b"far", (1 << 32) + 5)
    assert file.read_at(fd, 10, (1 << 32) + 3) == b"\0\0far"
    assert file.size_of(fd) == (1 << 32) + 8


def test_signals_do_not_disturb_large_transfers(fd: int):
    """A handler that returns is invisible: calls it interrupts are completed (PEP 475)."""
    ticks = []
    before = signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    block = os.urandom(1 << 20)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for i in range(24):
            file.writev_at(fd, [block] * 4, i << 22)
            assert file.read_at(fd, 1 << 22, i << 22) == block * 4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert ticks


# Space ----------------------------------------------------------------------------------------


def test_truncate_cuts_and_extends_with_zeros(fd: int):
    os.pwrite(fd, b"12345", 0)
    file.truncate(fd, 3)
    assert content(fd) == b"123"
    file.truncate(fd, 6)
    assert content(fd) == b"123\0\0\0"


@pytest.mark.parametrize("native", [True, False])
def test_allocate_extends_and_reserves(fd: int, monkeypatch: pytest.MonkeyPatch, native: bool):
    if not native:
        monkeypatch.setattr(system, "posix_fallocate", None)
    elif system.posix_fallocate is None:
        pytest.skip("this system has no posix_fallocate")
    file.allocate(fd, 5000, 3 << 20)
    assert os.fstat(fd).st_size == 5000 + (3 << 20)
    assert os.fstat(fd).st_blocks * 512 >= 3 << 20
    assert not any(content(fd))


def test_allocate_of_nothing_does_nothing(fd: int):
    file.allocate(fd, 100, 0)
    file.allocate(fd, 100, -5)
    assert os.fstat(fd).st_size == 0


@pytest.fixture
def other(tmp_path: Path) -> Iterator[int]:
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT, 0o600)
    yield other
    os.close(other)


def refuse(number: int) -> Any:
    def copy_file_range(*_: int) -> int:
        raise OSError(number, os.strerror(number))

    return copy_file_range


@pytest.mark.parametrize(
    "way", [None, refuse(errno.EXDEV), refuse(errno.ENOSYS), refuse(errno.EINVAL), lambda *_: 0]
)
def test_copies_go_the_slow_way_where_the_kernel_will_not(
    fd: int, other: int, monkeypatch: pytest.MonkeyPatch, way: Any
):
    monkeypatch.setattr(system, "copy_file_range", way)
    monkeypatch.setattr(file, "CALL_SIZE_MAX", 999)
    os.pwrite(fd, DATA, 0)
    file.copy_range(fd, other, 5000, 17, 3)
    assert content(other) == bytes(3) + DATA[17:5017]


def test_copies_inside_the_kernel(fd: int, other: int, monkeypatch: pytest.MonkeyPatch):
    if system.copy_file_range is None:
        pytest.skip("this system has no copy_file_range")
    monkeypatch.setattr(system, "pwrite", None)
    monkeypatch.setattr(system, "pwritev", None)
    monkeypatch.setattr(file, "CALL_SIZE_MAX", 999)
    os.pwrite(fd, DATA, 0)
    try:
        file.copy_range(fd, other, len(DATA), 0, 3)
    except TypeError:
        pytest.skip("this file system cannot copy inside the kernel")
    assert content(other) == bytes(3) + DATA


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_copies_do_not_hide_a_full_or_broken_disk(
    fd: int, other: int, monkeypatch: pytest.MonkeyPatch, number: int
):
    os.pwrite(fd, DATA, 0)
    monkeypatch.setattr(system, "copy_file_range", refuse(number))
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        file.copy_range(fd, other, 5000, 0, 0)
    assert caught.value.errno == number


@pytest.mark.parametrize("way", [None, "native"])
def test_copying_past_the_end_is_an_error_and_no_endless_loop(
    fd: int, other: int, monkeypatch: pytest.MonkeyPatch, way: str | None
):
    if way is None:
        monkeypatch.setattr(system, "copy_file_range", None)
    os.pwrite(fd, b"12345", 0)
    with pytest.raises(OSError, match="ended while it was copied"):
        file.copy_range(fd, other, 6, 0, 0)


# Maps -----------------------------------------------------------------------------------------


def test_stores_reach_the_file_or_stay_private(fd: int):
    os.pwrite(fd, bytes(8192), 0)
    shared = file.map_file(fd, 8192, writable=True)
    private = file.map_file(fd, 8192, writable=True, private=True)
    shared[10:13] = b"abc"
    private[4096:4099] = b"xyz"
    assert content(fd)[10:13] == b"abc"
    assert not any(content(fd)[4096:])
    shared.close()
    private.close()


def test_a_map_for_reading_refuses_stores(path: Path):
    path.write_bytes(b"12345" + bytes(5000))
    fd = os.open(path, os.O_RDONLY)
    reading = file.map_file(fd, 5005, writable=False)
    private = file.map_file(fd, 5005 - mmap.PAGESIZE, writable=False, private=True, offset=4096)
    os.close(fd)
    with pytest.raises(TypeError):
        reading[0] = 1
    private[0] = 1
    assert reading[:6] == b"12345\0"
    assert path.read_bytes()[4096] == 0
    reading.close()
    private.close()


def test_discard_gives_back_blocks(tmp_path: Path):
    size = 64 * mmap.PAGESIZE
    (tmp_path / "big").write_bytes(b"x" * size)
    fd = os.open(tmp_path / "big", os.O_RDWR)
    os.fsync(fd)
    before = os.fstat(fd).st_blocks
    shared = file.map_file(fd, size, writable=True)
    if file.discard(shared, mmap.PAGESIZE, 62 * mmap.PAGESIZE):
        assert shared[mmap.PAGESIZE - 1 : mmap.PAGESIZE + 1] == b"x\0"
        assert shared[63 * mmap.PAGESIZE - 1 : 63 * mmap.PAGESIZE + 1] == b"\0x"
        assert os.fstat(fd).st_blocks < before
    shared.close()
    os.close(fd)


def test_discard_says_so_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch):
    class Stubborn:
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

    assert file.discard(Stubborn(), 0, 4096) is False
    monkeypatch.delattr(mmap, "MADV_REMOVE", raising=False)
    assert file.discard(Stubborn(), 0, 4096) is False


# Names, syncs, errors -------------------------------------------------------------------------


def test_the_directory_of_a_name_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch):
    synced = []
    monkeypatch.setattr(
        system, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    if sys.platform != "linux":
        pytest.skip("looks into /proc")
    before = os.listdir("/proc/self/fd")
    file.sync_directory(str(path))
    assert synced == [str(path.parent)]
    monkeypatch.chdir(path.parent)
    file.sync_directory("file")
    assert synced == [str(path.parent)] * 2
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_replace_and_unlink(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    file.replace(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"a"
    file.unlink(str(tmp_path / "b"))
    assert os.listdir(tmp_path) == []


def test_data_is_synced(fd: int, monkeypatch: pytest.MonkeyPatch):
    synced = []
    monkeypatch.setattr(system, "fdatasync", synced.append)
    file.datasync(fd)
    assert synced == [fd]


def test_boot_id_is_16_bytes_and_stays():
    assert len(file.boot_id()) == 16
    assert file.boot_id() == file.boot_id()


def test_boot_id_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch):
    def unreadable(*_: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", unreadable)
    assert file.boot_id() == bytes(16)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_has_its_own_error(number: int):
    cause = OSError(number, os.strerror(number))
    error = file.storage_error(cause, "cannot append", "/some/file")
    assert type(error) is NoSpaceError
    assert (error.errno, error.filename, error.__cause__) == (number, "/some/file", cause)
    assert "cannot append: no space left" in str(error)
    assert error.hint
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.errno, str(again)) == (NoSpaceError, number, str(error))


def test_other_errors_keep_the_systems_word():
    error = file.storage_error(OSError(errno.EIO, "Input/output error"), "cannot append", b"/f")
    assert type(error) is StorageError
    assert (error.errno, error.strerror, error.filename) == (errno.EIO, os.strerror(5), b"/f")
    assert str(error) == "/f: cannot append: Input/output error"
