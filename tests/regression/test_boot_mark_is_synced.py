"""A boot mark that its writer did not live to sync is synced by the next one, before it writes.

Else a power cut could take the mark and leave entries written after it, and the file would pass for
one that was closed in order.
"""

from __future__ import annotations

from pathlib import Path

from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.frame import STATE_START, STATE_STOP, decode_state
from tests.support.diskstates import Replay
from tests.support.simdisk import SimDisk, Sync, Write

NAME = "store"


def _make_clean(directory: Path) -> int:
    """Make a store that is marked clean; return its size."""
    path = directory / NAME
    with mmapdict(path) as store:
        store.update({f"key {number}": number for number in range(600)})
    data = path.read_bytes()
    state = decode_state(data[STATE_START:STATE_STOP])
    assert state is not None
    assert not any(state.boot)
    return len(data)


def test_the_next_writer_syncs_a_mark_left_unsynced(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    size = _make_clean(first)
    disk = SimDisk(first)
    with disk.installed(), mmapdict(first / NAME) as store:
        store["first"] = 1
        count = len(disk.ops)
    marked = next(at for at, op in enumerate(disk.ops) if isinstance(op, Sync))
    assert 0 < marked < count
    replay = Replay(disk)
    unsynced = 0
    for cut in range(count):
        killed = tmp_path / f"killed {cut}"
        killed.mkdir()
        replay.kill_state().write_to(str(killed))
        second = SimDisk(killed)
        with second.installed(), mmapdict(killed / NAME) as store:
            store["second"] = 2
            ops = list(second.ops)
        entry = next(
            at for at, op in enumerate(ops) if isinstance(op, Write) and op.offset >= size - 11
        )
        is_synced = any(isinstance(op, Sync) for op in ops[:entry])
        assert is_synced or cut > marked, f"killed after {cut} operations"
        unsynced += cut <= marked
        replay.step(disk.ops[cut])
    assert unsynced > 2  # the mark is more than one store
