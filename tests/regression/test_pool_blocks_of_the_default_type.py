"""A block of the default type number that a program filled as it liked, and nothing holds, is garbage.

It has no object header that means anything; a collection that looked for its class refused, and with it
the next open after a kill.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pmshelve import pmemobj
from pmshelve.pmemobj import PersistentList


def test_collected_as_a_block(tmp_path: Path) -> None:
    path, copy = tmp_path / "pool", tmp_path / "killed"
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentList, [1])
        manager = pool.mm
        with pool.transaction():
            oid = manager.alloc(64)
            manager.snapshot_range(oid, 64)
            manager.view(oid)[:] = b"\xff" * 64
        shutil.copy(path, copy)
        assert manager.heap.is_block(oid[1])
        pool.gc()
        assert not manager.heap.is_block(oid[1])
        assert not pool.check()
    with pmemobj.open(copy) as pool:
        assert pool.root == [1]
        assert not pool.mm.heap.is_block(oid[1])
        assert not pool.check()
