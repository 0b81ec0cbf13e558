"""What a type checker has to refuse of mappings of buffers, and of conversions."""

from __future__ import annotations

from pmshelve.convert import convert
from pmshelve.zict_compat import MmapDict

store = MmapDict("file")
store[["a"]] = b"value"  # E: index | reportArgumentType
store["a"] = 3  # E: assignment | reportArgumentType
text: str = store["a"]  # E: assignment | reportAssignmentType
MmapDict("file", time_out=3)  # E: call-arg | reportCallIssue
MmapDict()  # E: call-arg | reportCallIssue
convert("old")  # E: call-arg | reportCallIssue
convert("old", "new", to="sqlite")  # E: arg-type | reportArgumentType
convert("old", "new", progress=3)  # E: arg-type | reportArgumentType
