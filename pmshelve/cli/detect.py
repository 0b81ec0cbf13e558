"""What kind of file is it, and opening it so that nothing in it is changed or run."""

from __future__ import annotations

import os

from pmshelve.dbm_compat.mmapdict import recognizes
from pmshelve.errors import NotAStoreError
from pmshelve.mmapdict import mmapdict

__all__ = ["detect", "open_file"]


def detect(path: str) -> str:
    """Return the kind of store in the file, by the bytes it begins with: ``'mmapdict'``.

    Raises
    ------
    NotAStoreError
        It is another kind of file, an ordinary pickle among them.
    OSError
        It cannot be read.
    """
    if os.path.isdir(path):
        raise NotAStoreError("a directory, not a store", path)
    if recognizes(path):
        return "mmapdict"
    raise NotAStoreError("not a pmshelve file", path)


def open_file(path: str, *, writable: bool = False, allow_pickle: bool = False) -> mmapdict:
    """Open the store in the file; one that does not exist is not created, a pickle not converted.

    Parameters
    ----------
    path
        The file's name.
    writable
        Open for writing; else nothing is written at all.
    allow_pickle
        Let reading a value run the unpickler.
    """
    detect(path)
    return mmapdict(path, readonly=not writable, convert=False, allow_pickle=allow_pickle)
