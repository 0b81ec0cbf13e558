"""Rewrite a store without its dead entries, and the other ways to replace all of its content.

By replacement, where the file has a path of its own (R, in this order):

    R1  write the live entries to a new file beside, locked; sync it
    R2  bump the old inode's commit number and mark it as replaced
    R3  rename the new file over the old name; sync the directory
    R4  break the old superblock's key opcode; unlock both

A crash before R3 leaves the old file, whose mark the next opener clears; after it, the new one.
Whoever has the old inode open sees the mark, compares it with the path, and goes over.  R4 makes a
mmappickle handle on the old inode fail instead of writing into nothing.

In place, where the file cannot be replaced (P):

    P1  write the image (header to terminator) behind the file's end; sync
    P2  change the old generation, so that whoever has the file open stops, and waits for the lock
    P3  write a footer that says where the image is; sync
    P4  copy the image to offset 0; sync
    P5  cut the footer off; sync; truncate behind the new content

A crash before P3 is complete leaves the old content with rubbish behind it; after that, the next
writable opener finds the footer and does P4 and P5 again.  The image never overlaps its target.
Both syncs around the footer guard against one that outlives its image, which would have rubbish
copied over good content: the image is on the disk before the footer is written, and the footer gone
from it before the image is, be it by the truncation or by entries that are appended over it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pmshelve.errors import CorruptionError, StateError, StorageError, StoreFailedError
from pmshelve.mmapdict import frame
from pmshelve.mmapdict.footer import encode_footer, find_image
from pmshelve.mmapdict.frame import COMMIT, MARK_REPLACED, MARKS_OFFSET
from pmshelve.mmapdict.image import Image, copy_data
from pmshelve.mmapdict.index import CHECKPOINT_CLOSE_MIN
from pmshelve.mmapdict.logfile import Log
from pmshelve.mmapdict.picklers import codec
from pmshelve.mmapdict.picklers.base import Foreign
from pmshelve.storage import file as disk
from pmshelve.storage.binary import SECTOR_SIZE, U32, U64, align_up
from pmshelve.storage.lock import UNLOCK
from pmshelve.storage.progress import Pace, Progress

if TYPE_CHECKING:
    from pmshelve.mmapdict.session import Session

__all__ = ["clear", "convert", "finish_move", "give_way", "vacuum"]

logger = logging.getLogger("pmshelve.mmapdict")

Fill = Callable[[Image], None]
"""Adds the new content to an image; called again for another image if the first has no use."""
Make = Callable[[int, int], Image]
"""Writes an image into a file (a descriptor) from an offset on."""


# What to do -----------------------------------------------------------------------------------


def vacuum(
    store: Session,
    *,
    chunk_size: int = 1 << 20,
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Rewrite `store`, whose lock is held, if there is something to reclaim (or by `force`).

    Parameters
    ----------
    progress
        Called with the bytes of the file gone through, and its size.  An exception that it raises
        leaves the old content, unless it was told of the end: that it is told of when the new
        content is in place.

    Raises
    ------
    CorruptionError
        A live entry is damaged; nothing was changed.
    """
    log = store._log
    if store._in_batch():
        raise StateError("a store cannot be vacuumed inside a batch", log.name)
    if log.path is not None and disk.is_named(log.fd, log.path):
        _remove_leftovers(log.path)
    if force or _is_reclaimable(log, store._index.checkpoint_offsets):
        pace = Pace(progress, log.tail)

        def fill(image: Image) -> None:
            if progress is not None:
                image.tell = pace.at
            image.add_live(log)

        pace.at(0)
        _rewrite(store, fill, chunk_size)
        pace.end()
    elif progress is not None:
        progress(log.tail, log.tail)


def clear(store: Session) -> None:
    """Make `store`, whose lock is held, an empty one."""
    _rewrite(store, lambda _: None)


def convert(store: Session, content: dict[str, Any]) -> None:
    """Make a store of a file that holds an ordinary pickle of `content`; its lock is held."""

    def fill(image: Image) -> None:
        for key, value in content.items():
            encoded = store._codec.encode(value)
            if isinstance(encoded, Foreign):  # its pickler needs the store, which is not there yet
                encoded = codec.encode(value)
            image.add_value(key, *encoded)

    _rewrite(store, fill)


def _is_reclaimable(log: Log, in_use: Iterable[int]) -> bool:
    """Whether there is a dead entry other than the superblock and the checkpoints in use."""
    return log.dead_size is None or log.dead_size > sum(
        _checkpoint_entry_size(log, offset) for offset in in_use
    )


def _checkpoint_entry_size(log: Log, data: int) -> int:
    """Return the size of the entry of a checkpoint whose data is at an offset."""
    head = b"\x8c" + bytes((len(frame.INDEX_KEY),)) + frame.INDEX_KEY
    window = log.read(data - 128, data)  # which has the head and up to 65 bytes of padding
    return int(U64.unpack_from(window, window.rindex(head) - 8)[0]) + 9


def _remove_leftovers(path: str) -> None:
    """Remove the new files of vacuums of the store at `path` that were killed; its lock is held.

    The lock says that no vacuum of this store is at work.  Where it says nothing (the file was
    moved here from another name meanwhile), the new file's own lock does.
    """
    directory, name = os.path.split(path)
    leftover = re.compile(re.escape(f".{name}.") + r"[0-9a-f]{8}\.vacuum")
    with contextlib.suppress(OSError):
        for found in os.listdir(directory):
            if leftover.fullmatch(found):
                _remove_unlocked(os.path.join(directory, found))


def _remove_unlocked(path: str) -> None:
    fd = disk.system.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with contextlib.suppress(BlockingIOError):
            disk.system.flock(fd, disk.LOCK_EXCLUSIVE)
            disk.unlink(path)
    finally:
        disk.system.close(fd)


# Putting it in place --------------------------------------------------------------------------


def _rewrite(store: Session, fill: Fill, chunk_size: int = 1 << 20) -> None:
    """Make an image the file's content, and read it anew; the lock is held exclusively."""
    log = store._log
    block = log.superblock

    def make(fd: int, base: int) -> Image:
        image = Image(fd, base, log.fd, chunk_size)
        fill(image)
        image.finish(
            block.identity if block else uuid.uuid4().bytes,
            commit=frame.next_commit(log.commit),
            generation=(block.generation + 1) & 0xFFFFFFFF if block else 0,
            face=block.face if block else 1,
            indexed=image.count >= CHECKPOINT_CLOSE_MIN,
        )
        return image

    exclusive = log.exclusive
    try:
        with disk.reporting("the store could not be rewritten", log.name):
            if log.path is None or not _replace(log, log.path, make):
                _move_in_place(log, make)
        _read_anew(store)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        log.exclusive = exclusive
        store._distrust()  # which goes over to the new content, if it came to that
        raise


def _read_anew(store: Session) -> None:
    """Take in the new content.

    That it could not be read is for the next call to tell, which tries again: this one has done
    what it was asked for.
    """
    log = store._log
    exclusive, log.exclusive = log.exclusive, False
    # Before there is a map again: who sees that finds no place of the old file in these.
    store._entries.clear()
    store._views.forget()
    try:
        store._load()
    except OSError as error:
        logger.warning("%s: rewritten, but not read yet: %s", log.name, str(error))
    else:
        if exclusive:
            store._seize()


def _replace(log: Log, path: str, make: Make) -> bool:
    """R1 to R4; False where the file cannot be replaced."""
    if os.fstat(log.fd).st_nlink != 1 or not disk.is_named(log.fd, path):
        return False
    try:
        # Opened now: once the name is taken, nothing but the sync may fail.
        directory = disk.open_directory(path)
    except OSError:
        return False
    try:
        return _replace_in(directory, log, path, make)
    finally:
        disk.system.close(directory)


def _replace_in(directory: int, log: Log, path: str, make: Make) -> bool:
    beside = os.path.join(
        os.path.dirname(path), f".{os.path.basename(path)}.{secrets.token_hex(4)}.vacuum"
    )
    try:
        fd = disk.system.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        disk.system.flock(fd, disk.LOCK_EXCLUSIVE)
        if not disk.copy_owner(fd, os.fstat(log.fd)):
            return False
        make(fd, 0)
        disk.datasync(fd)  # R1
        if not _take_name(log, beside, path):
            return False
        _sync_name(log, directory)
        if log.tail > frame.FIRST_ENTRY:
            log.poke(frame.KEY_OPCODE_OFFSET, b"\x8d")  # R4
        _go_over(log, fd)
        return True
    finally:
        if log.fd != fd:
            disk.system.close(fd)
            with contextlib.suppress(OSError):
                disk.unlink(beside)


def _go_over(log: Log, fd: int) -> None:
    """Work with the new file, which is locked, and unlock the old one."""
    log.lock.rebind(fd)
    with contextlib.suppress(OSError):
        disk.system.flock(log.fd, UNLOCK)  # closing does not unlock what views have duplicates of
    log.attach(fd)


def _take_name(log: Log, beside: str, path: str) -> bool:
    """R2 and R3, less its sync; False where the name cannot be taken."""
    block = log.superblock if log.map else None
    if log.map:
        log.map[18:22] = COMMIT.pack(frame.next_commit(log.commit))
    if block is not None:
        log.poke(MARKS_OFFSET, bytes((block.marks | MARK_REPLACED,)))  # R2
    try:
        disk.replace(beside, path)  # R3
    except OSError:
        if block is not None:
            log.poke(MARKS_OFFSET, bytes((block.marks,)))
        if log.map:
            log.map[18:22] = COMMIT.pack(log.commit)
        return False
    return True


def _sync_name(log: Log, directory: int) -> None:
    """Do the sync of R3."""
    try:
        disk.sync_names(directory)
    except OSError as error:
        log.fail()
        raise StoreFailedError(
            "the store was rewritten, but its directory could not be synced",
            log.name,
            hint="close this store and open it again",
            cause=error,
        ) from error


def give_way(store: Session, beside: str) -> None:
    """Let another file, whole and on the disk, take the name of `store`: R2 to R4.

    Whoever has the store open goes over to the other file.  This one is only to be closed.

    Raises
    ------
    StorageError
        The name could not be taken; nothing was changed.
    """
    log = store._log
    assert log.path is not None
    store._begin_write()
    try:
        with disk.reporting("the file could not be replaced", log.name):
            directory = disk.open_directory(log.path)
        try:
            if not _take_name(log, beside, log.path):
                raise StorageError("the file could not be replaced", log.name)
            _sync_name(log, directory)
            if log.tail > frame.FIRST_ENTRY:
                log.poke(frame.KEY_OPCODE_OFFSET, b"\x8d")  # R4
        finally:
            disk.system.close(directory)
    finally:
        store._end_write()


def _move_in_place(log: Log, make: Make) -> None:
    """P1 to P5."""
    log.trim()
    end = footer = log.size
    try:
        base, size = _write_behind(log, end, make)  # P1
        _announce(log)  # P2
        footer = base + size
        disk.write_at(log.fd, encode_footer(base, size), footer)
        log.datasync()  # P3
    except BaseException:
        _undo_move(log, end, footer)
        raise
    _copy_down(log, base, size)


def _write_behind(log: Log, end: int, make: Make) -> tuple[int, int]:
    """Write the image behind the file's end; return where it is, and its size."""
    base = align_up(end, SECTOR_SIZE)
    size = make(log.fd, base).position
    if size > base:  # there must be room for it in front of it
        copy_data(log.fd, log.fd, base, base + align_up(size, SECTOR_SIZE), size)
        base += align_up(size, SECTOR_SIZE)
    log.datasync()
    return base, size


def _announce(log: Log) -> None:
    """Make whoever has the file open look at it anew, once the lock is free."""
    if log.map:
        if log.superblock is not None:
            generation = (log.superblock.generation + 1) & 0xFFFFFFFF
            log.poke(frame.GENERATION_OFFSET, U32.pack(generation))
        log.poke(frame.COMMIT_OFFSET, COMMIT.pack(frame.next_commit(log.commit)))


def _undo_move(log: Log, end: int, footer: int) -> None:
    """Take back what precedes the copy down; `footer` is `end` if none was written."""
    try:
        if footer != end:
            disk.truncate(log.fd, footer)
            disk.datasync(log.fd)
        disk.truncate(log.fd, end)
        if log.map:
            if log.superblock is not None:
                log.poke(frame.GENERATION_OFFSET, U32.pack(log.superblock.generation))
            log.poke(frame.COMMIT_OFFSET, COMMIT.pack(log.commit))
    except OSError:
        log.fail()


def _copy_down(log: Log, base: int, size: int) -> None:
    """P4 and P5, to the end although a signal may come in between."""
    problem = "the vacuum in place was interrupted; reopening completes it"
    try:
        with disk.reporting(problem, log.name):
            try:
                _copy_and_cut(log.fd, base, size)
            except KeyboardInterrupt:
                if disk.size_of(log.fd) > size:  # else it is done
                    _copy_and_cut(log.fd, base, size)
                raise
    except KeyboardInterrupt:
        if disk.size_of(log.fd) > size:  # another one
            log.fail()
        raise
    except BaseException:
        log.fail()
        raise


def _copy_and_cut(fd: int, base: int, size: int) -> None:
    # Holes are copied as zeros here: what they go over is not empty.
    disk.copy_range(fd, fd, size, base, 0)
    disk.datasync(fd)  # P4
    disk.truncate(fd, base + size)  # P5
    disk.datasync(fd)
    disk.truncate(fd, size)


def finish_move(log: Log) -> None:
    """Complete a move in place that was cut short, if there was one; the lock is held."""
    with disk.reporting("the file could not be read", log.name):
        image = find_image(log.pread, log.size)
    if image is None:
        return
    if not log.writable:
        raise CorruptionError(
            "a vacuum in place was cut short", log.name, hint="open it writable once: that ends it"
        )
    _copy_down(log, *image)
