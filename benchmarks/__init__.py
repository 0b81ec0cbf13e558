"""Benchmarks of pmshelve against its peers, all measured in the same run.

    framework.py  what a workload is made of
    workloads.py  what is measured, by name
    arrays.py     workloads over NumPy arrays, and who takes part in them
    processes.py  workloads that need fresh or several processes
    child.py      what those processes run
    pools.py      workloads over small values that change in place
    pool_*.py     who takes part in those, and what their processes run
    engines.py    who is measured: our own doors, and what every engine has to offer
    peers*.py     the others, and bare system calls as baselines
    machine.py    memory warm-up, the description of machine and versions
    run.py        `python -m benchmarks.run`: interleaved repeats, JSON
    targets.py    the figures the store is built to reach
    report.py     the tables of docs/performance.md out of that JSON
    compare.py    `python -m benchmarks.compare A B`: two revisions, paired

Results are ratios to the peers of the same run: times of different machines, or of the same one on
another day, say little.  Peers that are not installed are left out, and the report says so.
"""

from __future__ import annotations
