"""The simulated disk itself: it records everything, and builds what a disk may hold, no more."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from pmshelve.storage import file as file_layer
from pmshelve.storage.file import System, system
from tests.support.diskstates import DiskState, Replay
from tests.support.simdisk import PRIMITIVES, Fault, Mark, Punch, SimDisk, Sync, Write, rebooted

A, B, C = b"A" * 512, b"B" * 512, b"C" * 512


@pytest.fixture
def disk(tmp_path: Path):
    (tmp_path / "old").write_bytes(A * 3)
    disk = SimDisk(tmp_path)
    with disk.installed():
        yield disk
    assert disk.open_descriptors == []


@pytest.fixture
def fd(disk: SimDisk, tmp_path: Path):
    fd = system.open(str(tmp_path / "old"), os.O_RDWR)
    yield fd
    system.close(fd)


def power_states(disk: SimDisk, budget: int = 1000) -> list[DiskState]:
    replay = Replay(disk)
    for op in disk.ops:
        replay.step(op)
    return list(replay.power_states(random.Random(1), budget))


def contents(disk: SimDisk, name: str = "old", budget: int = 1000) -> set[bytes | None]:
    return {state.files.get(name) for state in power_states(disk, budget)}


def test_every_primitive_of_the_file_layer_is_known():
    assert set(vars(System())) == PRIMITIVES


def test_the_table_is_as_it_was_afterwards(tmp_path: Path):
    before = dict(vars(system))
    with SimDisk(tmp_path).installed():
        assert system.pwrite is not before["pwrite"]
        assert system.boot_id() == b"boot-0----------"
        with rebooted(b"x" * 16):
            assert system.boot_id() == b"x" * 16
    assert vars(system) == before


def test_every_way_of_writing_is_recorded(disk: SimDisk, fd: int, tmp_path: Path):
    file_layer.write_at(fd, b"one", 10)
    file_layer.writev_at(fd, [b"two", b"", bytearray(b"three")], 600)
    shared = file_layer.map_file(fd, 1536, writable=True)
    shared[700:704] = b"four"
    shared[-1] = 5
    private = file_layer.map_file(fd, 1536, writable=True, private=True)
    private[0] = 1
    file_layer.truncate(fd, 4096)
    file_layer.allocate(fd, 4096, 512)
    file_layer.allocate(fd, 0, 512)
    other = system.open(str(tmp_path / "new"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    file_layer.copy_range(fd, other, 100, 600, 0)
    file_layer.datasync(other)
    file_layer.replace(str(tmp_path / "new"), str(tmp_path / "newer"))
    system.link(str(tmp_path / "newer"), str(tmp_path / "newest"))
    file_layer.unlink(str(tmp_path / "newer"))
    file_layer.sync_directory(str(tmp_path / "newest"))
    system.close(other)
    shared.close()
    private.close()
    assert [str(op) for op in disk.ops] == [
        "pwrite(#1, 3 bytes at 10)",
        "pwritev(#1, 8 bytes at 600)",
        "map(#1, 4 bytes at 700)",
        "map(#1, 1 bytes at 1535)",
        "resize(#1, to 4096)",
        "resize(#1, to 4608)",
        "name(new -> #2)",
        "copy_file_range(#2, 100 bytes at 0)",
        "sync(#2)",
        "name(newer -> #2 from new)",
        "name(newest -> #2)",
        "name(newer -> #None)",
        "syncdir()",
    ]
    assert isinstance(disk.ops[1], Write)
    assert disk.ops[1].data == b"twothree"
    disk.verify()


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="Linux only")
def test_a_punched_hole_is_recorded(tmp_path: Path):
    (tmp_path / "big").write_bytes(b"x" * 3 * mmap.PAGESIZE)
    disk = SimDisk(tmp_path)
    with disk.installed():
        fd = system.open(str(tmp_path / "big"), os.O_RDWR)
        shared = file_layer.map_file(fd, 3 * mmap.PAGESIZE, writable=True)
        if file_layer.discard(shared, mmap.PAGESIZE, mmap.PAGESIZE):
            assert disk.ops == [Punch(1, mmap.PAGESIZE, mmap.PAGESIZE)]
        disk.verify()
        shared.close()
        system.close(fd)


def test_a_write_behind_the_layer_is_found(disk: SimDisk, fd: int):
    system.pwrite(fd, b"seen", 0)
    disk.verify()
    os.pwrite(fd, b"hidden", 7)
    with pytest.raises(AssertionError, match="byte 7 changed behind"):
        disk.verify()
    os.ftruncate(fd, 3)
    with pytest.raises(AssertionError, match="size changed behind"):
        disk.verify()


def test_unsynced_writes_are_dropped_and_torn_by_sector(disk: SimDisk, fd: int):
    system.pwrite(fd, B * 2, 512)
    assert contents(disk) == {A * 3, A + B * 2, A + B + A, A * 2 + B}


def test_a_sync_ends_all_doubt(disk: SimDisk, fd: int):
    system.pwrite(fd, B * 2, 512)
    system.fdatasync(fd)
    disk.mark("synced")
    assert contents(disk) == {A + B * 2}
    system.pwrite(fd, C, 0)
    assert contents(disk) == {A + B * 2, C + B * 2}


def test_one_sector_goes_through_its_versions_in_order(disk: SimDisk, fd: int):
    system.pwrite(fd, b"1", 0)
    system.pwrite(fd, b"2", 1)
    rest = A[2:] + A * 2
    assert contents(disk) == {b"AA" + rest, b"1A" + rest, b"12" + rest}


def test_the_size_is_in_doubt_by_itself(disk: SimDisk, fd: int):
    system.pwrite(fd, B, 1536)
    assert contents(disk) == {A * 3, A * 3 + bytes(512), A * 3 + B}
    system.fdatasync(fd)
    system.ftruncate(fd, 512)
    assert contents(disk) == {A, A * 3 + B} | {
        A + x + y + z for x in (A, bytes(512)) for y in (A, bytes(512)) for z in (B, bytes(512))
    }


def test_a_failed_sync_leaves_its_writes_in_doubt_for_ever(disk: SimDisk, fd: int):
    system.pwrite(fd, B, 0)
    disk.fault = lambda name, _: Fault(OSError(errno.EIO, "")) if name == "fdatasync" else None
    with pytest.raises(OSError, match="5"):
        system.fdatasync(fd)
    disk.fault = None
    assert disk.ops[-1] == Sync(1, done=False)
    system.pwrite(fd, B, 512)
    system.fdatasync(fd)
    assert contents(disk) == {A + B + A, B * 2 + A}
    system.pwrite(fd, C, 0)
    system.fdatasync(fd)
    assert contents(disk) == {C + B + A}


def test_names_change_or_not_until_the_directory_is_synced(disk: SimDisk, fd: int, tmp_path: Path):
    new = system.open(str(tmp_path / "new"), os.O_RDWR | os.O_CREAT, 0o666)
    system.pwrite(new, B, 0)
    system.fdatasync(new)
    system.rename(str(tmp_path / "new"), str(tmp_path / "old"))
    system.close(new)
    found = {tuple(sorted(state.files.items())) for state in power_states(disk)}
    assert found == {
        (("old", A * 3),),
        (("new", B), ("old", A * 3)),
        (("old", B),),
    }
    file_layer.sync_directory(str(tmp_path / "old"))
    assert contents(disk) == {B}


def test_a_kill_loses_nothing_and_tears_only_between_pages(disk: SimDisk, fd: int):
    system.pwrite(fd, B * 20, 512)
    replay = Replay(disk)
    torn = [state.files["old"] for state in replay.torn_kill_states(disk.ops[0])]
    assert torn == [(A + B * 7), (A + B * 15)]
    assert replay.kill_state().files["old"] == A * 3
    replay.step(disk.ops[0])
    assert replay.kill_state().files["old"] == A + B * 20


def test_a_store_of_more_than_a_word_is_torn_by_a_kill(disk: SimDisk, fd: int):
    shared = file_layer.map_file(fd, 1536, writable=True)
    shared[0:11] = b"12345678901"
    shared[20:28] = b"12345678"
    shared.close()
    replay = Replay(disk)
    torn = [state.files["old"][:11] for state in replay.torn_kill_states(disk.ops[0])]
    assert torn == [b"12345678AAA", b"AAA45678901"]
    assert list(replay.torn_kill_states(disk.ops[1])) == []


def test_many_states_are_sampled_with_the_telling_ones_first(disk: SimDisk, fd: int):
    system.pwrite(fd, B * 30, 0)
    states = power_states(disk, budget=200)
    found = [state.files["old"] for state in states]
    assert len(found) == 200
    assert found[:2] == [B * 30, A * 3]
    assert len(set(found)) > 80
    assert found == [state.files["old"] for state in power_states(disk, budget=200)]


def test_states_are_written_out_in_full(disk: SimDisk, fd: int, tmp_path: Path):
    system.pwrite(fd, B, 0)
    target = tmp_path / "state"
    target.mkdir()
    (target / "stale").write_bytes(b"x")
    states = power_states(disk)
    assert len({state.digest() for state in states}) == 2
    states[1].write_to(str(target))
    assert os.listdir(target) == ["old"]
    assert (target / "old").read_bytes() == states[1].files["old"]


def test_faults_strike_before_within_and_after_a_call(disk: SimDisk, fd: int):
    plan: dict[int, Fault] = {
        0: Fault(OSError(errno.ENOSPC, "full")),
        1: Fault(count=2),
        2: Fault(OSError(errno.EIO, "broken"), count=3),
        3: Fault(KeyboardInterrupt(), after=True),
    }
    disk.fault = lambda name, index: plan.get(index) if name == "pwrite" else None
    with pytest.raises(OSError, match="full"):
        system.pwrite(fd, b"1234", 0)
    assert system.pwrite(fd, b"1234", 0) == 2
    with pytest.raises(OSError, match="broken"):
        system.pwrite(fd, b"1234", 4)
    with pytest.raises(KeyboardInterrupt):
        system.pwrite(fd, b"1234", 8)
    assert os.pread(fd, 12, 0) == b"12AA123A1234"
    assert disk.calls["pwrite"] == 4
    disk.verify()


def test_a_full_disk_takes_what_fits_and_still_overwrites(disk: SimDisk, fd: int):
    disk.capacity = 2048
    assert system.pwrite(fd, b"x" * 1000, 1536) == 512
    with pytest.raises(OSError, match="space"):
        system.pwrite(fd, b"x", 2048)
    with pytest.raises(OSError, match="space"):
        system.posix_fallocate(fd, 2000, 1000)
    assert system.pwrite(fd, b"y", 0) == 1
    assert os.fstat(fd).st_size == 2048
    disk.verify()


def test_marks_take_no_part_in_a_replay(disk: SimDisk, fd: int):
    assert disk.mark("before", 7) == 1
    assert disk.ops == [Mark("before", 7)]
    assert contents(disk) == {A * 3}
