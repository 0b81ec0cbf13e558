"""Mend a damaged file in place, keeping every entry whose value is whole.

What `Recovery` finds is turned into a chain again, where it stands: entries that can be mended are,
other gaps become dead entries (their bytes stay, as data), a batch that lost a member becomes
ordinary entries, and a terminator follows the last entry.  Nothing sound is moved or rewritten, so a
crash on the way leaves a file to which all this can be done again.  What depends on the content
(flags, counts, checkpoints) is left to the reload after it, which finds the file unsettled and of
another generation.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pmshelve.errors import StateError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.check import check
from pmshelve.mmapdict.frame import HEAD_SIZE, TERMINATOR, TERMINATOR_SIZE
from pmshelve.mmapdict.recover import Gap, Recovery
from pmshelve.storage import file as disk
from pmshelve.storage.binary import U32, U64

if TYPE_CHECKING:
    from pmshelve.mmapdict.logfile import Log
    from pmshelve.mmapdict.mapping import mmapdict
    from pmshelve.mmapdict.scan import Entry

__all__ = ["fsck"]

logger = logging.getLogger("pmshelve.mmapdict")
