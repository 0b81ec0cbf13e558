"""The collections: lists, tuples, dicts, sets, arrays and objects whose data is in a pool."""

from __future__ import annotations

from pmshelve.pmemobj.persistent.array import PersistentArray
from pmshelve.pmemobj.persistent.dict import PersistentDict
from pmshelve.pmemobj.persistent.list import PersistentList
from pmshelve.pmemobj.persistent.object import PersistentObject
from pmshelve.pmemobj.persistent.set import PersistentFrozenSet, PersistentSet
from pmshelve.pmemobj.persistent.tuple import PersistentTuple

__all__ = [
    "PersistentArray",
    "PersistentDict",
    "PersistentFrozenSet",
    "PersistentList",
    "PersistentObject",
    "PersistentSet",
    "PersistentTuple",
]
