"""What an mmapdict file is, told without opening the store: no lock, nothing written, nothing run.

The superblock tells most of it.  The entries are looked at from the newest checkpoint on, as opening
does, and all of them where the superblock does not know how many there are.  Whoever writes
meanwhile is not kept waiting: what was read is read again if the file has changed by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pmshelve.errors import CorruptionError, NotAStoreError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.extents import FileCutError, Walk, chain_of, shifted
from pmshelve.mmapdict.footer import find_image
from pmshelve.mmapdict.frame import FIRST_ENTRY, MARK_EXCLUSIVE, TERMINATOR_SIZE, Read, State
from pmshelve.mmapdict.openfile import CLEAN
from pmshelve.mmapdict.opening import current_boot, is_store
from pmshelve.storage.progress import Progress

__all__ = ["Description", "describe"]

_TRIES = 3
_LOOKS = 25
_PAUSE = 0.0002


@dataclass
class Description:
    """What is known of a file; sizes are in bytes, None stands for what is not known.

    Attributes
    ----------
    format
        Version of the container.
    writer
        'pmshelve', or 'mmappickle' for a file without a superblock.
    face
        'native' or 'bytes'; None if neither was used yet.
    commit_number, identity, generation
        See docs/format-mmapdict.md.
    live_count, live_size, dead_size, overhead_size
        As `mmapdict.stats()` tells them.  None for the first three where somebody writes without a
        pause, or the file is damaged.
    torn_size
        Bytes that belong to no entry and follow the last one: what a change that was cut short, or
        is under way, has left, and what an exclusive store has reserved.  Of a vacuum in place that was
        killed while it copied: all but the new content.
    checkpoints
        Of the index, newest first: offset and size of the data, entries known, range covered.
    checkpoint_entries
        Entries that they know.
    unindexed_size
        Bytes of entries behind the newest one, which opening goes through.
    settled
        Whether no change was under way, or had been cut short.
    exclusive
        Whether the file says that one process keeps all others out.
    open_since
        'closed': nothing since the last sync was left to the system; 'this boot': somebody has
        written since, and the system has it; 'an earlier boot': power may have failed meanwhile;
        None where the file does not tell.
    synced_size
        Bytes known to have been on the disk at the last sync.
    problem, damaged
        What is wrong, or ""; whether `fsck` is needed, else the next writer sees to it.
    """

    format: int = 1
    writer: str = "pmshelve"
    face: str | None = None
    commit_number: int = 0
    identity: str | None = None
    generation: int | None = None
    live_count: int | None = None
    live_size: int | None = None
    dead_size: int | None = None
    overhead_size: int | None = None
    torn_size: int = 0
    checkpoints: list[dict[str, int]] = field(default_factory=list)
    checkpoint_entries: int = 0
    unindexed_size: int = 0
    settled: bool = True
    exclusive: bool = False
    open_since: str | None = None
    synced_size: int | None = None
    problem: str = ""
    damaged: bool = False


def describe(
    read: Read, size_of: Callable[[], int], *, progress: Progress | None = None
) -> Description:
    """Return what a file is.

    Parameters
    ----------
    read
        Returns the file's bytes between two offsets, fewer at its end.
    size_of
        Returns the file's size; that of its last call is what the figures add up to.
    progress
        Called with the bytes gone through, of the file's.

    Raises
    ------
    NotAStoreError
        It does not begin as an mmapdict file.
    FileCutError
        It got shorter each time that it was gone through.

    Notes
    -----
    Costs what opening the store does; 1 µs an entry in addition where a writer is at work, or was
    killed, or the file is mmappickle's.
    """
    for left in reversed(range(_TRIES)):
        state = _settled_state(read)
        size = size_of()
        try:
            found = _describe(read, size, state, progress)
        except FileCutError:
            if left:
                continue
            raise
        if not left or (read(frame.STATE_START, frame.STATE_STOP) == state and size_of() == size):
            break
    return found


def _settled_state(read: Read) -> bytes:
    """Return header and superblock, between two changes where that can be had.

    The superblock's counts hold then.  What is counted while somebody writes may miss an entry: it
    was replaced before it was come to, and the new one lies behind what is gone through.
    """
    for _ in range(_LOOKS):
        data = read(frame.STATE_START, frame.STATE_STOP)
        state = frame.decode_state(data)
        if state is None or state.settled or state.marks & MARK_EXCLUSIVE:
            break
        time.sleep(_PAUSE)
    return data


def _describe(read: Read, size: int, state: bytes, progress: Progress | None) -> Description:
    image = find_image(read, size)
    if image is None:
        return _describe_content(read, size, state, progress)
    read = shifted(read, *image)
    state = read(frame.STATE_START, frame.STATE_STOP)
    found = _describe_content(read, image[1], state, progress)
    found.torn_size += size - image[1]
    found.problem = found.problem or "a vacuum in place is not complete"
    return found


def _describe_content(
    read: Read, size: int, state: bytes, progress: Progress | None
) -> Description:
    head = read(0, frame.HEADER_SIZE)
    if not is_store(head):
        raise NotAStoreError("not an mmapdict file")
    found = Description(commit_number=int.from_bytes(head[18:22], "little", signed=True))
    block = frame.decode_state(state)
    if block is None:
        found.writer, found.face, found.settled = "mmappickle", "native", True
    else:
        _tell_superblock(found, block, read)
    start = _tell_checkpoints(found, read, size) if block is not None else 0
    counted = block is not None and block.settled and _are_known(block, size)
    walk = Walk(read, size, start if counted else 0, progress=progress)
    _tell_entries(found, walk)
    if counted and walk.tail is None and start:  # what was counted is not all there
        _tell_entries(found, Walk(read, size, progress=progress))
    elif not counted and walk.tail is not None and not _ends_at(read, walk.tail):
        found.live_count = found.live_size = found.dead_size = None  # see `_settled_state`
    elif counted and walk.tail is not None and block is not None and not found.damaged:
        found.live_count, found.dead_size = block.live_count, block.dead_size
        found.live_size = size - found.torn_size - (found.overhead_size or 0) - block.dead_size
    return found


def _ends_at(read: Read, tail: int) -> bool:
    return read(tail, tail + TERMINATOR_SIZE) == frame.TERMINATOR


def _are_known(block: State, size: int) -> bool:
    return block.live_count <= size // 20 and block.dead_size <= size


def _tell_superblock(found: Description, block: State, read: Read) -> None:
    found.face = block.face_name if block.face else None
    found.identity, found.generation = block.identity.hex(), block.generation
    found.settled = block.settled
    found.exclusive = bool(block.marks & MARK_EXCLUSIVE)
    if block.boot == CLEAN:
        found.open_since = "closed"
    else:
        found.open_since = "this boot" if block.boot == current_boot() else "an earlier boot"
    start = frame.SYNC_OFFSET + 16
    found.synced_size = int.from_bytes(read(start, start + 8), "little")


def _tell_checkpoints(found: Description, read: Read, size: int) -> int:
    """Tell what checkpoints there are; return where the entries that they do not know begin."""
    try:
        chain = chain_of(read, size)
    except CorruptionError as error:
        found.problem = f"the index cannot be used: {error.problem}"
        return 0
    found.checkpoint_entries = sum(table.count for table in chain)
    found.checkpoints = [
        {
            "offset": table.offset,
            "size": table.size,
            "entries": table.count,
            "start": table.start,
            "end": table.end,
        }
        for table in chain
    ]
    return chain[0].end if chain else 0


def _tell_entries(found: Description, walk: Walk) -> None:
    """Tell what the entries are, from where the walk begins."""
    sizes = dict.fromkeys(("header", "live", "dead", "index", "end", "behind", "damage"), 0)
    live_count = found.unindexed_size = 0
    indexed = found.checkpoints[0]["end"] if found.checkpoints else FIRST_ENTRY
    for extent in walk:
        sizes[extent.kind] += extent.size
        if extent.kind == "live":
            live_count += extent.number
        if extent.kind in {"live", "dead"}:
            found.unindexed_size += max(
                0, extent.offset + extent.size - max(indexed, extent.offset)
            )
    found.torn_size = sizes["behind"]
    if sizes["header"]:
        found.overhead_size = sizes["header"] + sizes["end"]
    else:  # it began behind them
        found.overhead_size = FIRST_ENTRY + (0 if found.identity is None else 230) + TERMINATOR_SIZE
    found.live_count, found.live_size = live_count, sizes["live"]
    found.dead_size = sizes["dead"] + sizes["index"]
    if walk.problem and (walk.damaged or walk.tail is None):
        found.problem = f"{walk.problem} (at offset {walk.problem_offset})"
        found.damaged = walk.damaged
    if found.damaged:
        found.live_count = found.live_size = found.dead_size = None
