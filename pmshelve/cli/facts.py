"""What is known of a file without opening it as a store: what `info` prints, as one dict.

Nothing is locked, so nobody is waited for and nobody is kept waiting; nothing is written, loaded or
imported.  The keys are told in docs/cli.md, and stay.
"""

from __future__ import annotations

import os
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from pmshelve.cli.detect import refuse_directory
from pmshelve.errors import NotAStoreError
from pmshelve.storage import file as storage
from pmshelve.storage.extent import disk_size
from pmshelve.storage.holders import holders, openers
from pmshelve.storage.progress import Progress

if TYPE_CHECKING:
    from pmshelve.mmapdict.describe import Description

__all__ = ["content_of", "facts", "kind_of", "opened", "who"]

_DUMP_MAGIC = b"PMSHDUMP"
_PICKLE_STARTS = (b"(", b"}", b"]", b")")
_HEAD_SIZE = 1 << 16
_TRIES = 5


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a file to look at it, and close it."""
    refuse_directory(path)
    fd = storage.system.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    try:
        if not storage.is_regular(fd):
            raise NotAStoreError("not a regular file", path)
        yield fd
    finally:
        storage.system.close(fd)


def kind_of(fd: int) -> str:
    """Return what an open file is, by the bytes it begins and ends with.

    Returns
    -------
    str
        ``'mmapdict'``, ``'pmemobj'``, ``'dump'`` (of a pool), ``'pickle'`` (any other), or ``''``.
    """
    from pmshelve.mmapdict.opening import is_store
    from pmshelve.pmemobj.superblock import COPY_OFFSETS, MAGIC

    head = storage.read_at(fd, 32, 0)
    if is_store(head):
        return "mmapdict"
    if any(storage.read_at(fd, len(MAGIC), offset) == MAGIC for offset in COPY_OFFSETS):
        return "pmemobj"
    if head.startswith(_DUMP_MAGIC):
        return "dump"
    size = storage.size_of(fd)
    if size < 3 or storage.read_at(fd, 1, size - 1) != b".":
        return ""
    if head[:1] == b"\x80":
        return "pickle" if 2 <= head[1] <= 5 else ""
    return "pickle" if _begins_with_opcodes(storage.read_at(fd, _HEAD_SIZE, 0)) else ""


def _begins_with_opcodes(head: bytes) -> bool:
    """Whether bytes begin as a pickle of protocol 0 or 1 does; some text does, but not for long."""
    if not head.startswith(_PICKLE_STARTS):
        return False
    try:
        for _ in islice(pickletools.genops(head), 16):
            pass
    except (ValueError, OverflowError):
        return False
    return True


def facts(path: str, *, quick: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Return what is known of a file.

    Parameters
    ----------
    path
        The file's name.
    quick
        Do not count a pool's objects.
    progress
        Called with the bytes gone through, of the file's.

    Raises
    ------
    NotAStoreError
        It is nothing that this package knows.
    OSError
        It cannot be read.
    """
    for left in reversed(range(_TRIES)):
        with opened(path) as fd:
            found = _facts(fd, path, quick=quick, progress=progress)
            # A vacuum, or a new conversion, gives the name to another file: this one is no more.
            if not left or storage.is_named(fd, path) is not False:
                break
    return found


def _facts(fd: int, path: str, *, quick: bool, progress: Progress | None) -> dict[str, Any]:
    kind = kind_of(fd)
    if not kind:
        raise NotAStoreError("not a pmshelve file", path)
    found: dict[str, Any] = {
        "path": os.path.abspath(path),
        "kind": kind,
        "format": None,
        "face": None,
        "state": None,
        "problem": None,
        "size": storage.size_of(fd),
        "disk_size": disk_size(fd),
    }
    if kind == "mmapdict":
        _add_mmapdict(found, fd, path, progress)
        return found
    _add_holders(found, fd)
    if kind == "pickle":
        head = storage.read_at(fd, 2, 0)
        found["format"] = head[1] if head[:1] == b"\x80" else 0
    elif kind == "dump":
        found["format"] = int.from_bytes(storage.read_at(fd, 4, 8), "little")
    else:
        _add_pool(found, path, quick=quick, progress=progress)
    return found


def _add_holders(found: dict[str, Any], fd: int) -> None:
    held, opening = holders(fd), openers(fd)
    found["holders"] = None if held is None else [each._asdict() for each in held]
    found["openers"] = None if opening is None else [each._asdict() for each in opening]


def content_of(path: str) -> bytes | None:
    """Return what names the content of an mmapdict file as a whole; None for any other file.

    A vacuum changes it; putting and deleting does not.
    """
    from pmshelve.mmapdict.frame import GENERATION_OFFSET, decode_state

    with opened(path) as fd:
        if kind_of(fd) != "mmapdict":
            return None
        state = storage.read_at(fd, 98, 18)
        return state[30 : GENERATION_OFFSET - 18 + 4] if decode_state(state) else b""


def who(found: dict[str, Any]) -> str:
    """Return who holds the file's lock exclusively, or "" if nobody is known to."""
    return ", ".join(
        f"process {holder['pid']} ({holder['command'] or '?'})"
        for holder in found["holders"] or ()
        if holder["mode"] == "exclusive"
    )


def _add_mmapdict(found: dict[str, Any], fd: int, path: str, progress: Progress | None) -> None:
    from pmshelve.mmapdict.describe import describe

    def read(start: int, stop: int) -> bytes:
        return storage.read_at(fd, stop - start, start)

    def size_of() -> int:
        found["size"] = storage.size_of(fd)
        return int(found["size"])

    told, before = describe(read, size_of, progress=progress), None
    for left in reversed(range(_TRIES)):
        if storage.is_named(fd, path) is False:
            break  # the caller looks at the other one
        _add_holders(found, fd)
        if told == before or _is_at_rest(told) or (who(found) and not told.damaged):
            break
        if left:
            # Nobody holds the lock by now: whoever was at work may have done it meanwhile.
            told, before = describe(read, size_of, progress=progress), told
    found.setdefault("holders", None)
    found.setdefault("openers", None)
    state = _state_of(told, found, is_still=told == before)
    # Whoever is at work leaves half a change behind the end meanwhile.
    problem = (told.problem or None) if state != "in use" else None
    found.update(asdict(told), state=state, problem=problem, disk_size=disk_size(fd))
    del found["damaged"]


def _is_at_rest(told: Description) -> bool:
    return (
        told.settled
        and not told.problem
        and not told.torn_size
        and told.open_since != "an earlier boot"
    )


def _state_of(told: Description, found: dict[str, Any], *, is_still: bool) -> str:
    if _is_at_rest(told):
        return "in use" if who(found) else "clean"
    if told.damaged and is_still:
        return "damaged"
    if who(found) or not is_still:
        return "in use"
    return "in use" if told.exclusive and found["holders"] is None else "needs recovery"


def _add_pool(found: dict[str, Any], path: str, *, quick: bool, progress: Progress | None) -> None:
    from pmshelve.dbm_compat.pools import face_of
    from pmshelve.pmemobj.describe import describe

    told = asdict(describe(path, blocks=not quick, progress=progress))
    problem = told.pop("problem")
    root = told["root_class"] or ""
    face = "zict" if root.startswith("pmshelve.zict_compat.") else face_of(root)
    found.update(told, problem=problem or None, face=face or None)
    if problem:
        found["state"] = "damaged"
    elif who(found):
        found["state"] = "in use"
    else:
        found["state"] = "clean" if told["clean"] else "needs recovery"
