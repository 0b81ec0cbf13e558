"""Closed pools whose views wait for the collector used up a process's address space."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT

PROGRAM = """
import gc, os, sys
sys.path.insert(0, sys.argv[1])
gc.disable()
from pmshelve import pmemobj

class Cycle:
    pass

for number in range(300):
    name = os.path.join(sys.argv[2], f"{number}.pool")
    pool = pmemobj.create(name, durability="lazy")
    pool.root = pool.new(pmemobj.PersistentArray, [1.0] * 1000)
    garbage = Cycle()
    garbage.itself, garbage.view = garbage, pool.root.view()
    pool.close()
    os.unlink(name)
print("all")
"""


def test_what_waits_to_be_collected_does_not_keep_a_pool_from_opening(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(ROOT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("all\n", 0), done.stderr
