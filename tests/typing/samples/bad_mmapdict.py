"""What a type checker has to refuse of a store."""

from __future__ import annotations

from pmshelve.mmapdict import mmapdict

counts: mmapdict[int] = mmapdict("counts")
counts["a"] = "text"  # E: assignment | reportArgumentType
counts[1] = 1  # E: index | reportArgumentType
counts[b"a"] = 1  # E: index | reportArgumentType
print(counts[0])  # E: index | reportArgumentType
counts["a"].upper()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType
texts: mmapdict[str] = counts  # E: assignment | reportAssignmentType
number: int = counts.get("a")  # E: assignment | reportAssignmentType
counts.setdefault("a")  # E: call-arg | reportCallIssue
counts.setdefault("a", "text")  # E: arg-type | reportArgumentType
counts.update({"a": "text"})  # E: dict-item | reportArgumentType reportCallIssue
counts.update(a="text")  # E: call-overload | reportArgumentType
counts.update([("a", 1, 2)])  # E: list-item | reportArgumentType reportCallIssue
for key in counts:
    key.real()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType
mmapdict()  # E: call-arg | reportCallIssue
mmapdict(3)  # E: arg-type | reportArgumentType
mmapdict("counts", mmap_mode="w")  # E: arg-type | reportArgumentType
mmapdict("counts", face="text")  # E: arg-type | reportArgumentType
mmapdict("counts", time_out=3)  # E: call-arg | reportCallIssue
mmapdict("counts", False, None, 60.0)  # E: call-arg | reportCallIssue
counts.closed = True  # E: misc | reportAttributeAccessIssue
with counts.batch() as batch:
    batch["a"] = None  # E: assignment | reportArgumentType
counts.vacuums()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType
