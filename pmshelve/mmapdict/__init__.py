"""A dict in one append-only file that is a valid pickle; arrays come back memory-mapped.

Read upwards: `opcodes` and `frame` turn one entry into bytes and back; `scan` walks the entries of a
file; `logfile` places them and survives crashes; `picklers` turn a value into opcodes and buffers;
`checkpoint` and `index` remember where; `vacuum` rewrites; `mapping` makes it a dict.
"""

from __future__ import annotations

from pmshelve.mmapdict.mapping import mmapdict
from pmshelve.mmapdict.picklers.empty import EmptyNDArray
from pmshelve.mmapdict.stats import Stats

__all__ = ["EmptyNDArray", "Stats", "mmapdict"]
