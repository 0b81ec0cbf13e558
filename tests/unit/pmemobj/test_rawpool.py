"""A pool's file: made, opened, grown, closed, shared, forked, damaged."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve.errors import (
    ClosedError,
    CorruptionError,
    FormatError,
    LockTimeoutError,
    NoSpaceError,
    NotAStoreError,
    ReadOnlyError,
    TransactionError,
    VersionError,
)
from pmshelve.pmemobj import rawpool, superblock
from pmshelve.pmemobj.layout import JOURNAL_OFFSET, PAGE
from pmshelve.storage.binary import U32, crc32
from tests.support.minipool import AREA_SIZE, BLOCK_SIZE, MiniPool
from tests.support.poollab import MAX_SIZE, create_pool, small_limits
from tests.support.simdisk import Fault, SimDisk, Write

LINUX = sys.platform == "linux"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "pool")


@pytest.fixture
def raw(path: str) -> Iterator[rawpool.RawPool]:
    with small_limits():
        pool = create_pool(path, "lazy")
        yield pool
        pool.close()


def set_word(raw: rawpool.RawPool, offset: int, value: int) -> None:
    with raw.transaction:
        MiniPool(raw).set_word(offset, value)


def reopened(path: str) -> bytes:
    pool = rawpool.open(path, readonly=True)
    try:
        return MiniPool(pool).content()
    finally:
        pool.close()


# Making ---------------------------------------------------------------------------------------


def test_a_pool_is_made_under_the_umask_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        raw = create_pool(str(tmp_path / "pool"), mode=0o664)
    finally:
        os.umask(before)
    assert raw.was_clean
    assert (raw.pool_kind & 0xFF, raw.file_size, raw.pool_size) == (0xFF, 65536, 65536)
    raw.close()
    assert os.listdir(tmp_path) == ["pool"]
    assert stat.S_IMODE(os.stat(tmp_path / "pool").st_mode) == 0o640
    assert os.path.getsize(tmp_path / "pool") == 65536


def test_an_existing_file_is_left_alone(path: str) -> None:
    Path(path).write_text("mine")
    with pytest.raises(FileExistsError) as caught:
        create_pool(path)
    assert caught.value.filename == path
    assert Path(path).read_text() == "mine"


def test_somebody_else_makes_the_file_meanwhile(path: str, tmp_path: Path) -> None:
    def meddle(*_: object) -> None:
        Path(path).write_text("theirs")

    with pytest.raises(FileExistsError):
        create_pool(path, format=meddle)
    assert os.listdir(tmp_path) == ["pool"]
    assert Path(path).read_text() == "theirs"


def test_a_format_that_fails_leaves_nothing(path: str, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        create_pool(path, format=fail)
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no room behind its journal"):
        rawpool.create(tmp_path / "pool", 8192, journal_size=8192)
    with pytest.raises(ValueError, match="durability must be"):
        rawpool.create(tmp_path / "pool", 1 << 20, durability="some")
    with pytest.raises(FileNotFoundError):
        rawpool.create(tmp_path / "no" / "pool", 1 << 20)
    assert os.listdir(tmp_path) == []


def test_the_journal_is_half_of_a_small_pool_and_32_mib_of_a_large_one(tmp_path: Path) -> None:
    for size, expected in ((1 << 20, 1 << 19), (100 << 10, 64 << 10)):
        raw = rawpool.create(tmp_path / f"{size}", size)
        assert raw.journal_size == expected
        raw.close()


def test_the_way_without_links(path: str, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(rawpool.disk.system, "link", refuse)
    raw = create_pool(path)
    with pytest.raises(FileExistsError):
        create_pool(path)
    expected = MiniPool(raw).content()
    raw.close()
    assert os.listdir(tmp_path) == ["pool"]
    assert reopened(path) == expected


# Opening --------------------------------------------------------------------------------------


def test_a_clean_pool_is_opened_and_closed_without_a_write(path: str) -> None:
    create_pool(path).close()
    data = Path(path).read_bytes()
    disk = SimDisk(os.path.dirname(path))
    with disk.installed():
        raw = rawpool.open(path)
        assert raw.was_clean
        raw.close()
    assert not [op for op in disk.ops if isinstance(op, Write)]
    assert Path(path).read_bytes() == data
    assert "fdatasync" not in disk.trace


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_a_commit_is_one_write_and_at_most_one_sync(path: str, durability: str) -> None:
    disk = SimDisk(os.path.dirname(path))
    with disk.installed():
        raw = create_pool(path, durability)
        set_word(raw, 0, 1)
        first = len(disk.trace)
        set_word(raw, 8, 1)
        trace = disk.trace[first:]
        raw.close()
    lazy = ["store" if LINUX else "pwrite"]
    assert trace == (["pwrite", "fdatasync"] if durability == "full" else lazy)


def test_the_second_opener_is_told_who_has_it(raw: rawpool.RawPool, path: str) -> None:
    for readonly in (False, True):
        with pytest.raises(LockTimeoutError, match=str(os.getpid()) if LINUX else ""):
            rawpool.open(path, readonly=readonly)


def test_readers_share_a_pool_and_keep_writers_out(path: str) -> None:
    create_pool(path).close()
    first, second = (rawpool.open(path, readonly=True) for _ in range(2))
    with pytest.raises(LockTimeoutError):
        rawpool.open(path)
    with pytest.raises(ReadOnlyError):
        set_word(first, 0, 1)
    with pytest.raises(ReadOnlyError):
        first.checkpoint()
    first.sync()
    first.close()
    second.close()
    rawpool.open(path).close()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_file_in_a_read_only_directory(path: str, tmp_path: Path) -> None:
    create_pool(path).close()
    os.chmod(path, 0o444)
    os.chmod(tmp_path, 0o555)
    try:
        reopened(path)
        with pytest.raises(PermissionError):
            rawpool.open(path)
    finally:
        os.chmod(tmp_path, 0o755)


def test_what_is_no_pool(path: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        rawpool.open(path)
    assert caught.value.filename == path
    for data in (b"", b"x", b"text\n" * 5000, bytes(20000), b"PMSHPOO"):
        Path(path).write_bytes(data)
        for readonly in (False, True):
            with pytest.raises(NotAStoreError):
                rawpool.open(path, readonly=readonly)
        assert Path(path).read_bytes() == data
    with pytest.raises(IsADirectoryError):
        rawpool.open(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotAStoreError, match="not a regular file"):
        rawpool.open(tmp_path / "fifo")


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    """Return a file with a changed superblock, sound in both copies."""
    copies = []
    for start in superblock.COPY_OFFSETS:
        copy = bytearray(data[start : start + superblock.SIZE])
        copy[offset : offset + len(new)] = new
        copy[-4:] = U32.pack(crc32(copy[:-4]))
        copies.append(bytes(copy).ljust(PAGE, b"\0"))
    return copies[0] + copies[1] + data[2 * PAGE :]


@pytest.mark.parametrize(
    ("offset", "new", "kind", "invariant"),
    [
        (8, b"\2\0\0\0", VersionError, ""),
        (40, b"\0", CorruptionError, "S2"),
        (56, b"\1", CorruptionError, "S3"),
        (64, bytes(8), CorruptionError, "S3"),
        (80, b"\0", CorruptionError, "S3"),
        (48, b"\1", CorruptionError, "S4"),
        (48, bytes(8), CorruptionError, "S4"),
        (54, b"\1", CorruptionError, "S6"),
        (96, b"\1\0\0\0\0\0\0\0", CorruptionError, "S5"),
    ],
)
def test_a_superblock_that_cannot_be(
    path: str, offset: int, new: bytes, kind: type[FormatError], invariant: str
) -> None:
    create_pool(path).close()
    good = Path(path).read_bytes()
    if new == b"\0":
        new = bytes([good[offset + (offset == 80)] ^ 0x55])
        offset += offset == 80
    data = patched(good, offset, new)
    Path(path).write_bytes(data)
    for readonly in (False, True):
        with pytest.raises(kind) as caught:
            rawpool.open(path, readonly=readonly)
        assert getattr(caught.value, "invariant", "") == invariant
        assert str(caught.value).startswith(path)
    assert Path(path).read_bytes() == data


def test_damaged_in_both_copies(path: str) -> None:
    create_pool(path).close()
    data = bytearray(Path(path).read_bytes())
    data[20] ^= 1
    data[PAGE + 20] ^= 1
    Path(path).write_bytes(data)
    with pytest.raises(CorruptionError, match="both copies") as caught:
        rawpool.open(path)
    assert caught.value.invariant == "S1"


@pytest.mark.parametrize("size", [100, 5000, JOURNAL_OFFSET, 20000, 65535])
def test_a_file_that_was_cut_off(path: str, size: int) -> None:
    create_pool(path).close()
    os.truncate(path, size)
    with pytest.raises(CorruptionError):
        rawpool.open(path)
    assert os.path.getsize(path) == size


def left_open(path: str, durability: str) -> list[bytes]:
    """Leave a pool as a kill does, after three commits; return the contents."""
    raw = create_pool(path, durability)
    contents = [MiniPool(raw).content()]
    for number in range(3):
        with raw.transaction:
            MiniPool(raw).fill(number * 800, bytes([number + 1]) * 40)
        contents.append(MiniPool(raw).content())
    data = Path(path).read_bytes()
    raw.close()
    Path(path).write_bytes(data)
    return contents


def test_each_flipped_bit_of_a_superblock_changes_nothing(path: str) -> None:
    contents = left_open(path, "full")
    data = Path(path).read_bytes()
    for copy in superblock.COPY_OFFSETS:
        for bit in range(0, superblock.SIZE * 8, 7):
            damaged = bytearray(data)
            damaged[copy + bit // 8] ^= 1 << bit % 8
            Path(path).write_bytes(damaged)
            assert reopened(path) == contents[-1]


@pytest.mark.parametrize("durability", ["full", "lazy"])
def test_each_flipped_bit_of_the_journal_is_reported_or_ends_it(path: str, durability: str) -> None:
    contents = left_open(path, durability)
    data = Path(path).read_bytes()
    outcomes: set[object] = set()
    for bit in range(0, 3 * 72 * 8, 5):
        damaged = bytearray(data)
        damaged[JOURNAL_OFFSET + bit // 8] ^= 1 << bit % 8
        Path(path).write_bytes(damaged)
        try:
            outcomes.add(contents.index(reopened(path)))
        except CorruptionError as error:
            outcomes.add(error.invariant)
        assert Path(path).read_bytes() == damaged
    # Each record was on the disk before the next was written: damage can only hide in the last.
    assert outcomes == ({"J6", 2} if durability == "full" else {0, 1, 2})


def test_a_sound_record_that_points_out_of_the_heap(path: str) -> None:
    raw = create_pool(path)
    set_word(raw, 0, 1)
    raw.memory.begin()
    raw.memory.snapshot(512, 8)
    raw.write()
    data = Path(path).read_bytes()
    raw.close()
    Path(path).write_bytes(data)
    with pytest.raises(CorruptionError) as caught:
        rawpool.open(path)
    assert caught.value.invariant == "J4"


# Growing --------------------------------------------------------------------------------------


def test_a_pool_grows_to_its_largest_size_and_its_address_stays(raw: rawpool.RawPool) -> None:
    address = raw.address
    raw.extend(raw.file_size + 1)
    assert raw.file_size == 65536 + PAGE
    assert os.path.getsize(raw.path) == raw.file_size
    with pytest.raises(NoSpaceError, match=f"max_size is {MAX_SIZE} bytes"):
        raw.extend(MAX_SIZE + 1)
    raw.extend(MAX_SIZE)
    raw.extend(PAGE)
    assert raw.file_size == MAX_SIZE
    assert raw.address == address
    place = raw.heap_offset + 128
    assert ctypes.string_at(address + place, 64) == raw.memory.map[place : place + 64]


def test_reserved_space_is_used_up(path: str, monkeypatch: Any) -> None:
    create_pool(path, max_size=None).close()
    monkeypatch.setattr(rawpool, "RESERVE_MAX", 0)
    raw = rawpool.open(path)
    with pytest.raises(NoSpaceError, match="open it again"):
        raw.extend(4 * 65536 + 1)
    raw.close()


def test_the_reservation_is_halved_until_the_system_agrees(path: str, monkeypatch: Any) -> None:
    create_pool(path, max_size=None).close()
    system = rawpool.disk.system
    real = system.ftruncate
    refused = []

    def truncate(fd: int, size: int) -> None:
        if size > 1 << 22:
            refused.append(size)
            raise OSError(27, "File too large")
        real(fd, size)

    monkeypatch.setattr(system, "ftruncate", truncate)
    raw = rawpool.open(path)
    assert len(raw.memory.map) == 1 << 22
    assert refused[0] == refused[1]  # once more when the garbage was collected
    assert len(set(refused)) == len(refused) - 1 == 18
    raw.close()
    assert os.path.getsize(path) == 65536


def test_what_a_kill_left_of_a_reservation_is_cut_off(path: str) -> None:
    create_pool(path).close()
    expected = reopened(path)
    os.truncate(path, 1 << 36)
    assert reopened(path) == expected
    rawpool.open(path).close()
    assert os.path.getsize(path) == 65536
    assert reopened(path) == expected


def test_what_was_not_committed_is_cut_off(path: str) -> None:
    raw = create_pool(path)
    raw.transaction.begin()
    MiniPool(raw).set_word(0, 1)
    raw.extend(2 * 65536)
    with pytest.raises(OSError, match="aborted"):
        raw.transaction.abort()
    assert os.path.getsize(path) == 2 * 65536
    raw.close(size=65536)
    assert os.path.getsize(path) == 65536


def test_a_closed_pool_is_cut_unless_a_view_lives(path: str) -> None:
    raw = create_pool(path)
    raw.extend(2 * 65536)
    view = raw.memory.bytes[65536 : 65536 + 8]
    raw.close(size=65536)
    assert os.path.getsize(path) == 2 * 65536
    assert len(bytes(view)) == 8
    del view
    rawpool.open(path).close()
    assert os.path.getsize(path) == 65536


# Memory ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="private pages are counted by Linux only")
def test_a_checkpoint_gives_memory_back(path: str) -> None:
    raw = rawpool.create(path, 16 << 20, journal_size=4 << 20, durability="lazy")
    with raw.transaction:
        raw.memory.snapshot(raw.heap_offset, 8 << 20)
        raw.memory.map[raw.heap_offset : raw.heap_offset + (8 << 20)] = b"x" * (8 << 20)
    # Larger than the journal: a checkpoint has followed at once.
    assert raw.checkpoint_count == 2
    assert private_size(path) < 1 << 17
    assert os.path.getsize(path) == 16 << 20
    start, size = raw.heap_offset + (8 << 20), 1 << 20
    with raw.transaction:
        raw.memory.add_fresh(start, size)
        raw.memory.map[start : start + size] = b"y" * size
        raw.memory.snapshot(raw.heap_offset, 8)
    assert raw.journal_used < 100
    assert private_size(path) < 1 << 17
    with pytest.raises(ZeroDivisionError), raw.transaction:
        raw.memory.snapshot(raw.heap_offset, 1 << 20)
        raw.memory.map[raw.heap_offset : raw.heap_offset + (1 << 20)] = bytes(1 << 20)
        raise ZeroDivisionError
    assert private_size(path) >= 1 << 20
    raw.checkpoint()
    assert private_size(path) < 1 << 17
    assert raw.memory.map[start : start + size] == b"y" * size
    raw.close()


def private_size(path: str) -> int:
    text = Path("/proc/self/smaps").read_text()
    part = next(
        p for p in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text) if " rw-p " in p and path in p
    )
    return int(re.search(r"Private_Dirty: *(\d+)", part)[1]) * 1024


def test_fresh_space_that_a_record_may_write_to_is_logged(raw: rawpool.RawPool) -> None:
    """Were it written home, replaying the record before it would spoil it."""
    start = raw.heap_offset + AREA_SIZE + 4096 - AREA_SIZE % 4096
    set_word(raw, 0, 1)
    with raw.transaction:
        raw.memory.snapshot(start, 8)
        raw.memory.words[start >> 3] = 1
    raw.memory.note_freed(start, BLOCK_SIZE)
    before = raw.journal_used
    with raw.transaction:
        raw.memory.snapshot(raw.heap_offset + 64, 8)
        raw.memory.add_fresh(start, 4096)
        raw.memory.map[start : start + 4096] = b"z" * 4096
    assert raw.journal_used >= before + 4096


def test_a_transaction_may_change_only_so_much(raw: rawpool.RawPool) -> None:
    raw.change_size_max = 4000
    before = MiniPool(raw).content()
    with pytest.raises(TransactionError, match="5000 bytes, more than 4000"), raw.transaction:
        MiniPool(raw).fill(0, b"x" * 5000)
    assert MiniPool(raw).content() == before
    set_word(raw, 0, 1)


def test_a_journal_that_cannot_be_emptied_fills_up_and_recovers(path: str) -> None:
    """Moves need space behind the heap for a checkpoint; the disk has none."""
    disk = SimDisk(os.path.dirname(path))
    with disk.installed(), small_limits():
        raw = create_pool(path, "lazy")
        mini = MiniPool(raw)
        disk.capacity = os.path.getsize(path)
        words = [MiniPool(raw).content()]
        with pytest.raises(NoSpaceError):
            for number in range(2000):
                with raw.transaction:
                    mini.move(16, 0, 9000)
                    mini.set_word(0, number)
                words.append(mini.content())
        assert len(words) > 20
        assert mini.content() == words[-1]
        with pytest.raises(NoSpaceError):
            raw.checkpoint()
        assert mini.content() == words[-1]
        disk.capacity = None
        raw.checkpoint()
        set_word(raw, 0, 8)
        expected = mini.content()
        raw.close()
    assert reopened(path) == expected


def test_a_full_journal_is_emptied_as_soon_as_there_is_space(path: str) -> None:
    """Here commits get their extents, and only the checkpoints after them find no space."""
    disk = SimDisk(os.path.dirname(path))
    with disk.installed(), small_limits():
        raw = create_pool(path, "lazy")
        mini = MiniPool(raw)

        def no_space(name: str, _: int) -> Fault | None:
            if name == "posix_fallocate" and raw.memory.changes is None:
                return Fault(OSError(errno.ENOSPC, "full"))
            return None

        def commit() -> None:
            with raw.transaction:
                mini.move(16, 0, 9000)

        disk.fault = no_space
        with pytest.raises(NoSpaceError, match="could not be emptied"):
            for _ in range(2000):
                commit()
                before = mini.content()
        with pytest.raises(NoSpaceError, match="could not be emptied"):
            raw.extend(MAX_SIZE)
        assert mini.content() == before
        disk.fault = None
        with pytest.raises(NoSpaceError, match="try again"):
            commit()
        assert mini.content() == before
        commit()
        raw.extend(MAX_SIZE)
        expected = mini.content()
        raw.close()
    assert reopened(path) == expected


# Ending ---------------------------------------------------------------------------------------


def test_closed_twice_and_used_afterwards(path: str) -> None:
    raw = create_pool(path)
    raw.close()
    raw.close()
    for use in (raw.checkpoint, raw.sync, lambda: set_word(raw, 0, 1)):
        with pytest.raises(ClosedError):
            use()


def test_closed_within_a_transaction(path: str) -> None:
    raw = create_pool(path)
    before = MiniPool(raw).content()
    with pytest.raises(ClosedError), raw.transaction:
        MiniPool(raw).set_word(0, 1)
        with pytest.raises(TransactionError):
            raw.checkpoint()
        raw.close()
    assert reopened(path) == before


def test_a_pool_that_is_dropped_keeps_what_was_committed_and_nothing_else(path: str) -> None:
    raw = create_pool(path, "lazy")
    set_word(raw, 0, 77)
    expected = MiniPool(raw).content()
    del raw
    gc.collect()
    raw = rawpool.open(path)
    assert not raw.was_clean
    assert MiniPool(raw).content() == expected
    raw.close()


def test_an_unclean_close(path: str) -> None:
    raw = create_pool(path)
    set_word(raw, 0, 1)
    raw.close(clean=False)
    raw = rawpool.open(path)
    assert not raw.was_clean
    raw.close()
    raw = rawpool.open(path)
    assert raw.was_clean
    raw.close()


def test_a_changed_largest_size_is_kept(path: str) -> None:
    create_pool(path).close()
    rawpool.open(path, max_size=1 << 20).close()
    raw = rawpool.open(path)
    assert raw.max_size == 1 << 20
    raw.close()


# Forks ----------------------------------------------------------------------------------------


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked child; return its exit status."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_may_not_change_its_parents_pool(raw: rawpool.RawPool, path: str) -> None:
    set_word(raw, 0, 1)

    def work() -> None:
        with pytest.raises(ValueError, match="belongs to the process that opened it"):
            set_word(raw, 0, 2)
        with pytest.raises(LockTimeoutError):
            rawpool.open(path)
        raw.close()

    assert in_child(work) == 0
    with pytest.raises(LockTimeoutError):
        rawpool.open(path)
    set_word(raw, 8, 3)


def test_a_child_born_in_a_transaction_cannot_commit_it(raw: rawpool.RawPool) -> None:
    before = MiniPool(raw).content()
    with raw.transaction:
        MiniPool(raw).set_word(0, 5)

        def work() -> None:
            with pytest.raises(ValueError, match="belongs to the process"):
                raw.transaction.__exit__(None, None, None)
            assert MiniPool(raw).content() == before

        assert in_child(work) == 0
    assert MiniPool(raw).content() != before


def test_a_child_that_lives_on_does_not_keep_the_pool_locked(path: str) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        raw = create_pool(path)
        set_word(raw, 0, 1)
        child = os.fork()
        if not child:
            signal.pause()
        os.write(write, str(child).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    child = int(os.read(read, 20))
    try:
        raw = rawpool.open(path)
        assert not raw.was_clean
        raw.close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(read)
        os.close(write)
