"""Mappings of buffers, and a conversion."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from known import assert_type
from zict import LRU, Buffer

from pmshelve.convert import KINDS, Report, convert
from pmshelve.mmapdict import mmapdict
from pmshelve.zict_compat import MmapDict, PmemDict

with MmapDict("file", timeout=3) as store:
    store["a", 1] = [b"parts", bytearray(b" of one value")]
    assert_type(store["a", 1], bytearray | memoryview)
    assert_type(store.path, str)
    del store["a", 1]
    slow: MutableMapping[Any, Any] = store
    fast = Buffer[Any, Any]({}, slow, n=100)
    fast[1] = b"x"
    cached = LRU[Any, Any](10, slow)
    cached[2] = b"y"
with PmemDict("pool") as pool:
    pool[None] = b"value"
    assert_type(pool[None], bytearray | memoryview)

with mmapdict[int]("old") as old:
    old["a"] = 1
report = convert("old", "new.pool", to="pmemobj")
assert_type(report, Report)
assert_type(report.entries, int)
assert_type(KINDS, dict[str, str])
