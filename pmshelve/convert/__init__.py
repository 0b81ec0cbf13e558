"""Moving in: the content of other stores as a new file of ours, whole and verified or not at all.

    source (one module a kind)  ->  copying (each entry, then each again to compare)  ->  target

`recognize` finds out by a file's content what kind of source it is.  A source is opened read-only and
never changed; nothing is unpickled unless that is asked for.  `scratch` holds the new file until it
is complete and then gives it its name.
"""

from __future__ import annotations

from pmshelve.convert.conversion import BadEntriesError, convert
from pmshelve.convert.recognize import KINDS
from pmshelve.convert.report import BadEntry, Report

__all__ = ["KINDS", "BadEntriesError", "BadEntry", "Report", "convert"]
