"""What a type checker has to refuse of shelves and dbm modules."""

from __future__ import annotations

import pickle

import pmshelve
from pmshelve import dbm_compat, errors

shelf = pmshelve.open("shelf")
shelf[1] = 2  # E: index | reportArgumentType
shelf.reorganise()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType
pmshelve.open("shelf", "x")  # E: call-overload | reportArgumentType
pmshelve.open("shelf", backend="sqlite")  # E: call-overload | reportArgumentType reportCallIssue
pmshelve.open("shelf", serializer=pickle.dumps)  # E: call-overload | reportArgumentType
pmshelve.open("shelf", backend="pmemobj", mmap_mode="r")  # E: call-overload | reportArgumentType
pmshelve.open("shelf", backend="pmemobj", exclusive=True)  # E: call-overload | reportArgumentType
pmshelve.open("shelf", mmap_mode="w")  # E: call-overload | reportArgumentType
pmshelve.opens("shelf")  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType

database = dbm_compat.mmapdict.open("file", "c")
database["key"] = 3  # E: assignment | reportArgumentType
database[3] = b"value"  # E: index | reportArgumentType
text: str = database["key"]  # E: assignment | reportAssignmentType
database.update({"a": 1})  # E: dict-item | reportArgumentType reportCallIssue
dbm_compat.pmemobj.open("file", "rw")  # E: arg-type | reportArgumentType
dbm_compat.register(1)  # E: arg-type | reportArgumentType

errors.CorruptionError("torn", offset="3")  # E: arg-type | reportArgumentType
errors.StorageErr()  # E: attr-defined | reportAttributeAccessIssue reportUnknownMemberType
