"""Sizes and counts of a store."""

from __future__ import annotations

from dataclasses import dataclass

from pmshelve.mmapdict.index import Index
from pmshelve.mmapdict.logfile import Log

__all__ = ["Stats", "collect"]


@dataclass(frozen=True)
class Stats:
    """What `mmapdict.stats()` returns; sizes are in bytes.

    Attributes
    ----------
    path
        Absolute path of the file, or None.
    size
        Of the file.
    live_count, live_size
        Entries, and the bytes they take with key, padding and trailer.
    dead_size
        Bytes that a vacuum would give back, index checkpoints included.
    overhead_size
        Header, superblock and terminator.
    commit_number, generation
        See docs/format-mmapdict.md.
    face
        'native' or 'bytes'.
    checkpoint_entries
        Entries that the index checkpoints in the file know.
    index_entries
        Keys held in memory.
    mapped_size
        Of the shared map.
    exclusive
        Whether the store keeps all others out.
    """

    path: str | None
    size: int
    live_count: int
    live_size: int
    dead_size: int
    overhead_size: int
    commit_number: int
    generation: int
    face: str
    checkpoint_entries: int
    index_entries: int
    mapped_size: int
    exclusive: bool


def collect(log: Log, index: Index) -> Stats:
    """Return the figures of an open log whose counts are known."""
    block = log.superblock
    size = log.end
    dead = log.dead_size or 0
    overhead = 24 + 11 + (230 if block is not None else 0)
    return Stats(
        path=log.path,
        size=size,
        live_count=log.live_count or 0,
        live_size=size - overhead - dead,
        dead_size=dead,
        overhead_size=overhead,
        commit_number=log.commit,
        generation=block.generation if block else 0,
        face=block.face_name if block else "native",
        checkpoint_entries=index.checkpoint_count,
        index_entries=len(index.entries),
        mapped_size=len(log.map),
        exclusive=log.exclusive,
    )
