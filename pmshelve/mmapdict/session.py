"""A store between calls and within them: what it knows of its file, and how it keeps that true.

`Session` is the lower half of `mmapdict`: opening, following other writers, locking, finding a
value, closing.  The dict methods are in `mapping`.

Reads look at the file's state (one slice of the shared map), at the index, and at the entry's flag;
they take no lock and make no system call while nobody else writes.  A value is decoded first and
believed afterwards, if the state and its flag are still what they were.  Whatever is out of the
ordinary goes the slow way: `_refresh`, which takes in what others wrote, under a lock if it must.

Lock order: the in-process lock, then the file's (both in `Log.lock`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from threading import get_ident
from typing import Any, BinaryIO

from pmshelve.errors import (
    CorruptionError,
    FormatError,
    ObjectError,
    PmshelveError,
    StorageError,
    WrongDoorError,
)
from pmshelve.mmapdict import frame, index, vacuum
from pmshelve.mmapdict.batch import Batch
from pmshelve.mmapdict.frame import (
    DEAD,
    FACE_OFFSET,
    FACES,
    LIVE,
    MARK_EXCLUSIVE,
    MARK_REPLACED,
    MARKS_OFFSET,
    UNSYNCED_OFFSET,
    lay_out,
)
from pmshelve.mmapdict.index import Index, NeedsLock, Old, Place
from pmshelve.mmapdict.logfile import Log
from pmshelve.mmapdict.openfile import CLEAN, UNSOUND, open_descriptor
from pmshelve.mmapdict.opening import current_boot, open_log, prepare
from pmshelve.mmapdict.picklers.base import Foreign
from pmshelve.mmapdict.picklers.builtin import Codec
from pmshelve.mmapdict.picklers.chunks import CHUNKS_END, decode_chunks
from pmshelve.mmapdict.scan import Irregular, place_of_bytes, read_entry
from pmshelve.mmapdict.soundness import explain
from pmshelve.mmapdict.views import PUNCH_SIZE_MIN, Views
from pmshelve.storage import file as disk
from pmshelve.storage.lock import EXCLUSIVE, SHARED

__all__ = ["ABSENT", "DEFAULT", "DOUBTFUL", "Session", "drop_read_buffer"]

logger = logging.getLogger("pmshelve.mmapdict")

AUTOVACUUM_MIN = 1 << 20
"""Dead bytes below which an automatic vacuum is not worth it."""
_LOCK_FREE_TRIES = 4
_REMAP_SIZE = 1 << 16
"""Bytes that others append before a file is mapped anew, if it is neither small nor large."""

DEFAULT: Any = object()
"""Stands for an argument that was not given."""
ABSENT: Any = object()
"""Stands for the value of a key that there is not."""
DOUBTFUL: Any = object()
"""Stands for the place of a key whose flag is dead, while a writer may be at work."""


class Session:
    """An open store, without the dict methods.  Not for use on its own."""

    def __init__(
        self,
        file: Any,
        readonly: bool | None,
        picklers: Iterable[type] | None,
        *,
        timeout: float | None,
        sync: bool,
        mmap_mode: str | None,
        exclusive: bool,
        allow_pickle: bool,
        face: str | None,
        autovacuum: bool,
        mode: int,
        convert: bool,
    ) -> None:
        if face not in (None, "native", "bytes"):
            raise ValueError(f"face must be None, 'native' or 'bytes', not {face!r}")
        if mmap_mode is not DEFAULT and mmap_mode not in ("r+", "r", "c", None):
            raise ValueError(f"mmap_mode must be 'r+', 'r', 'c' or None, not {mmap_mode!r}")
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be None or seconds from 0 on, not {timeout!r}")
        self._batch: Batch | None = None
        self._log = Log.__new__(Log)
        self._log.closed = True  # for __del__, should opening fail
        log = open_log(file, readonly, timeout=timeout, sync=sync, mode=mode)
        self._log = log
        if mmap_mode is DEFAULT:
            mmap_mode = "r+" if log.writable else "r"
        elif mmap_mode == "r+" and not log.writable:
            mmap_mode = "r"
        self._index = Index()
        self._entries = self._index.entries
        self._views = Views(log, mmap_mode, allow_pickle=allow_pickle)
        self._autovacuum = autovacuum
        self._codec = Codec(self, picklers)
        self._picklers = self._codec.picklers
        self._encode = self._codec.encode
        self._plain = self._index.plain = self._codec.plain
        self._options: dict[str, Any] = {"convert": convert, "mode": mode, "face": face}
        try:
            self._open(face, exclusive=exclusive and log.writable)
        except BaseException:
            log.close()
            raise

    def _open(self, face: str | None, *, exclusive: bool) -> None:
        log = self._log
        if log.file is not None and log.writable:
            flush(log.file)
        log.lock.acquire(EXCLUSIVE if log.writable else SHARED)
        try:
            convert = self._options["convert"] and log.writable and self._views.allow_pickle
            while self._is_replaced(sure=True):
                self._follow()
            vacuum.finish_move(log)
            content = prepare(log, face=FACES.index(face or "native"), convert=convert)
            if content is not None:
                vacuum.convert(self, content)
            self._load()
            self._settle_face(face)
            if exclusive:
                self._seize()
        finally:
            log.lock.release()

    def _load(self) -> None:
        """Read the file anew; the lock is held (exclusively, if the store is writable)."""
        log = self._log
        try:
            while self._is_replaced():
                self._follow()
            vacuum.finish_move(log)
            log.damage = None
            self._index.load(log, locked=log.writable)
        except CorruptionError as error:
            # The store opens all the same, so that fsck() can be called on it.
            log.damage = error
            log.state = log.sound = log.busy = UNSOUND

    def _settle_face(self, face: str | None) -> None:
        log = self._log
        block = log.superblock
        if face is None or block is None or (block.face and block.face_name == face):
            return
        if log.live_count == 0 and log.writable:
            log.set_byte(FACE_OFFSET, FACES.index(face))
        elif block.face and log.live_count != 0:
            native = block.face_name == "native"
            door = "pmshelve.open() or mmapdict()" if native else "dbm or shelve.open()"
            raise WrongDoorError(
                f"the file holds {block.face_name} values", log.name, hint=f"use {door}"
            )

    def _seize(self) -> None:
        """Keep the lock, and say so in the file."""
        log = self._log
        if log.superblock is None:
            vacuum.vacuum(self, force=True)
        log.check_usable()
        log.lock.pin()
        if log.superblock is not None and not log.superblock.is_marked:
            self._mark_boot()
        log.set_byte(MARKS_OFFSET, MARK_EXCLUSIVE)
        log.exclusive = True
        log.exclusive_from = log.tail

    def _release(self) -> None:
        log = self._log
        log.exclusive = False
        log.trim()
        if not log.failed and log.damage is None:
            log.begin()
            log.settle()
            log.set_byte(MARKS_OFFSET, 0)

    # Knowing the state ---------------------------------------------------------------------------

    def _mark_boot(self) -> None:
        """Say that the file is being written, on the disk before anything else is.

        A process that dies in between leaves the mark unsynced, and the next one comes here again.
        """
        log = self._log
        log.set_byte(UNSYNCED_OFFSET, 1)
        log.set_boot(current_boot())
        log.datasync()
        log.set_byte(UNSYNCED_OFFSET, 0)

    def _is_replaced(self, *, sure: bool = False) -> bool:
        """Whether another file has taken this one's name.

        A superblock has a mark for that; without one (or to be `sure`) the path is looked at.
        """
        log = self._log
        if not (log.map or sure):
            return False
        block = log.look() if log.map else None
        if block is not None and not sure:
            if not block.marks & MARK_REPLACED:
                return False
            if log.writable:
                return True  # or it is a mark that `_follow` takes away
        return log.path is not None and disk.is_named(log.fd, log.path) is False

    def _follow(self) -> None:
        """Go over to the file that took this one's name; the lock goes along."""
        log = self._log
        assert log.path is not None
        fd = open_descriptor(log.path, readonly=not log.writable, mode=0o666, create=False)
        try:
            if os.path.sameopenfile(fd, log.fd):
                disk.system.close(fd)
                # The mark is left from a vacuum that died before it renamed.
                if log.writable and log.look() is not None:
                    log.set_byte(MARKS_OFFSET, 0)
                    log.poke(frame.KEY_OPCODE_OFFSET, b"\x8c")
                return
            log.lock.move(fd, EXCLUSIVE if log.writable else SHARED)
        except BaseException:
            disk.system.close(fd)
            raise
        log.attach(fd)
        log.remap()

    def _reopen(self) -> None:
        """Open the file again by its name: in a forked child."""
        log = self._log
        assert log.path is not None
        fd = open_descriptor(log.path, readonly=not log.writable, mode=0o666, create=False)
        log.attach(fd)
        log.lock.rebind(fd)
        self._batch = None
        self._views.forget()
        log.lock.acquire(EXCLUSIVE if log.writable else SHARED)
        try:
            log.remap()
            self._load()
        finally:
            log.lock.release()

    def _refresh(self) -> None:
        """Make the state known: without a lock if that goes."""
        log = self._log
        if log.exclusive or (log.map and (log.map[18:116] == log.state or log.is_waiting())):
            return
        log.lock.enter()
        try:
            log.check_usable()
            if log.fd < 0:
                self._reopen()
            if self._batch is not None or log.map[18:116] == log.state:
                return
            try:
                self._index.refresh(log, locked=False)
                size = len(log.map)
                if log.tail - size > max(min(size >> 3, _REMAP_SIZE), size >> 6):
                    log.remap()  # what others appended; in between it is read without the map
            except NeedsLock:
                if log.forked:
                    log.check_writable()
                log.lock.acquire(EXCLUSIVE if log.writable else SHARED)
                try:
                    self._catch_up()
                finally:
                    log.lock.release()
        finally:
            log.lock.leave()

    def _catch_up(self) -> None:
        """Make the state known; the lock is held (exclusively, if the store is writable)."""
        log = self._log
        log.check_usable()
        if log.file is not None and log.writable:
            flush(log.file)
        if log.fd < 0:
            self._reopen()
        while self._is_replaced():
            self._follow()
            self._load()
            log.check_usable()
            if log.superblock is None:
                break
        known = log.sound if log.writable else log.state
        if log.map[18:116] == known:
            return
        try:
            self._index.refresh(log, locked=True, exclusive=log.writable)
        except CorruptionError as error:
            log.damage = error
            raise
        if log.writable:
            if log.live_count is None or log.dead_size is None:
                self._recount()
            if log.superblock is not None and not log.superblock.is_marked:
                self._mark_boot()
            log.sound = log.state

    def _recount(self) -> None:
        log = self._log
        self._index.sweep(log)
        log.live_count, log.dead_size = self._index.count(log)

    def _prepare_write(self) -> None:
        """Do what a write needs besides the lock and the state."""
        log = self._log
        log.check_writable()
        if log.fd < 0:
            self._refresh()

    def _begin_write(self) -> None:
        """Take the lock and know the state."""
        log = self._log
        if not log.ready:
            self._prepare_write()
        log.lock.acquire()
        try:
            batch = self._batch
            if batch is None and not (log.exclusive or log.map[18:116] == log.sound):
                self._catch_up()
        except BaseException:
            log.lock.release()
            raise

    def _end_write(self) -> None:
        log = self._log
        log.lock.release()
        if log.file is not None:
            drop_read_buffer(log.file)

    # Reading -------------------------------------------------------------------------------------

    def _get(self, key: str) -> Any:  # noqa: C901, PLR0912 (one loop, five outcomes)
        """Return the value of `key`, knowing nothing; ABSENT where there is none."""
        log = self._log
        try:
            for _ in range(_LOCK_FREE_TRIES):
                self._refresh()
                m = log.map
                try:
                    place = self._find(key)
                except Exception:
                    if log.map is m and m and not log.exclusive:
                        raise
                    # Another thread may have replaced the file while it was read, or given up the
                    # entry's blocks.  If not, the last look tells.
                    continue
                if place is DOUBTFUL:
                    if m[18:116] == log.state:
                        break
                    continue  # somebody is at work, and has replaced or deleted it just now
                if place is None:
                    if self._holds(m):
                        return ABSENT
                    continue
                try:
                    value = self._decode(place)
                except Exception as error:
                    if self._holds(m, place[0]):
                        self._blame(place, error)
                        raise
                    continue
                if self._holds(m, place[0]):
                    return value
            # A dead flag, or a busy writer: look again while nobody writes.
            with self._held():
                place = self._find(key, sure=True)
                return ABSENT if place is None else self._decode(place)
        except (ObjectError, FormatError) as error:
            if error.key is None:
                error.key = key
            if error.path is None:
                error.path = log.name
            raise

    def _blame(self, place: Place, error: Exception) -> None:
        """Raise CorruptionError where a value does not load because its bytes are damaged."""
        explained = explain(self._log.read, place[4], place[0] + 2, error)
        if explained is not error:
            raise explained from error

    def _decode(self, place: Place) -> Any:
        _flag, start, stop, decoder, _offset, _reduces = place
        if decoder is None:
            return self._log.read(start, stop)
        return decoder(self._views, start, stop)

    def _holds(self, m: Any, flag: int = 0) -> bool:
        """Whether what was read from the map `m` just now is true.

        It is as of the last refresh if the content was not replaced as a whole since; and, for a
        value, if the flag at `flag` still says that it lives.
        """
        log = self._log
        if self._in_batch():
            return True
        if log.exclusive and log.map is m and m:
            # Nobody else was there, but another thread may have given its blocks back.
            try:
                return (not flag or log.byte(flag) == LIVE) and log.map is m
            except (OSError, IndexError):  # or replaced the file
                return False
        if log.map is not m or not m:
            return False
        if log.superblock is None:
            return bool(m[18:116] == log.state)
        if m[48:80] != log.state[30:62]:
            return False
        return not flag or (m[flag] if flag < len(m) else log.byte(flag)) == LIVE

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Keep writers out, the state known."""
        log = self._log
        log.check_usable()
        if log.fd < 0:
            self._refresh()
        if log.forked:
            yield
            return
        log.lock.acquire(EXCLUSIVE if log.writable else SHARED)
        try:
            if not (log.exclusive or self._batch is not None):
                self._catch_up()
            yield
        finally:
            log.lock.release()

    def _find(self, key: str, *, sure: bool = False) -> Any:  # noqa: C901 (hot)
        """Return the `Place` of the live value of `key`, None, or DOUBTFUL for a dead flag.

        Parameters
        ----------
        sure
            Writers are kept out, so that a dead flag is an answer: None.
        """
        if key.__class__ is not str and not _is_key(key):
            return None
        log = self._log
        batch = self._batch
        if batch is not None and batch.owner == get_ident() and key in batch.changes:
            staged = batch.changes[key]
            return self._resolve(staged, key) if staged.__class__ is int else staged
        entries = self._entries
        entry = entries.get(key, DEFAULT)
        known = entry is not DEFAULT
        if not known:
            entry = None if self._index.complete else self._index.find(log, key)
        if entry is None:
            return None
        place: Place = entry if entry.__class__ is tuple else self._resolve(entry, key)
        flag = place[0]
        m = log.map
        state = m[flag] if log.cold <= flag < min(len(m), log.tail) else log.byte(flag)
        # REPLACED and yet the newest: its successor was lost, and this store may not mend it. What
        # a checkpoint knows proves nothing of the kind: it leaves out what was dead by then.
        if state != LIVE and (state == DEAD or not known or log.writable):
            if not sure:
                return DOUBTFUL
            if log.lock.held:
                entries.pop(key, None)
                if not self._index.complete:
                    entries[key] = None
            return None
        if not known:
            entries.setdefault(key, place)  # a writer's newer one stays
        elif entry is not place:
            self._remember(key, entry, place)
        return place

    def _remember(self, key: str, entry: int, place: Place) -> None:
        """Keep a place that was found, unless the key has moved on meanwhile."""
        lock = self._log.lock
        if lock.try_enter():
            try:
                if self._entries.get(key) == entry:
                    self._entries[key] = place
            finally:
                lock.leave()

    def _resolve(self, offset: int, key: str) -> Place:
        """Return the place of the entry at `offset`, its value's opcodes looked at."""
        log = self._log
        stage = log.staging
        if offset < log.tail:
            limit = log.tail
            place = place_of_bytes(log.map, offset, limit) if log.cold <= offset else None
            if place is not None and self._codec.plain:
                return place
        else:
            limit = log.tail if stage is None else stage.position
        try:
            entry = read_entry(log.read, offset, limit)
        except Irregular as error:
            raise CorruptionError(
                error.problem, log.name, key, "run fsck()", offset=offset, invariant="L2"
            ) from None
        value, own = entry.value, entry.own
        stop = entry.end - (frame.TRAILER_SIZE if own else 8)
        start, end, decoder = self._codec.resolve(self._views, value, stop, own=own)
        reduces = (
            own and decoder is not None and frame.reduces_at(log.read(value, min(value + 32, stop)))
        )
        return entry.end - 2, start, end, decoder, offset, reduces

    def _in_batch(self) -> bool:
        """Whether this thread is inside a batch of this store."""
        return self._batch is not None and self._batch.owner == get_ident()

    def _keys(self) -> list[str]:
        """Return the keys, in file order."""
        log, known = self._log, self._index
        self._refresh()
        if self._in_batch() and self._batch is not None:
            known.sweep(log)
            changes = self._batch.changes
            kept = [key for key in known.keys(log) if key not in changes]
            return kept + [key for key, entry in changes.items() if entry is not None]
        if known.unswept and known.complete and known.gone(log):
            # A dead flag may be half of a change: only with writers kept out it is an answer.
            with self._held():
                known.sweep(log)
        return known.keys(log)

    def _distrust(self) -> None:
        """Forget what is known: an exception came from where none of ours could."""
        log = self._log
        log.state = log.sound = log.busy = UNSOUND
        if log.exclusive:
            log.exclusive = False
            self._load()
            self._seize()

    # Writing -------------------------------------------------------------------------------------

    def _old(self, entry: Place | int) -> Old | None:
        """Return what retiring `entry` needs; None where others deleted it already."""
        log = self._log
        if isinstance(entry, tuple):
            flag = entry[0]
            old = (flag, entry[5], flag + 2 - entry[4])
        else:
            old = self._index.extent(log, entry)
            flag = old[0]
        if log.exclusive:
            return old  # nobody else was there
        m = log.map
        alive = m[flag] if log.cold <= flag < len(m) else log.byte(flag)
        return old if alive == LIVE else None

    def _append_large(
        self, stored: bytes, prefix: bytes, encoded: Any, old: Old | None
    ) -> Place | int:
        """Append an entry with large data; return its place, or its offset where that is unknown."""
        log = self._log
        tail = log.tail
        if isinstance(encoded, Foreign):
            pickler, value = encoded
            if prefix:
                raise ValueError(
                    "a pickler of your own cannot store a key of over 255 bytes or with surrogates"
                )
            memo = self._index.memo(log)
            log.append_foreign(stored, lambda offset: pickler.write(value, offset, memo), old)
            return tail
        body, reduces = encoded
        pieces = [prefix, *body] if prefix else body
        layout = lay_out(stored, pieces, reduces, tail)
        log.append_layout(layout, old)
        if body[-1] is not CHUNKS_END or not self._plain:
            return tail
        start, blob = layout.blobs[0]
        return log.tail - 2, start, start + blob.size, decode_chunks, tail, True

    def _give_back(self, old: Old | None, *, replaced: bool = False) -> None:
        """Give the disk blocks of a dead entry back, if nobody older sees it.

        Those of a large one by itself; a small one's with those of its neighbours.

        Parameters
        ----------
        replaced
            The last entry of the file is its successor.
        """
        views = self._views
        if views.ended:
            views.settle()
        if old is None:
            return
        flag, _reduces, size = old
        log, runs = self._log, views.runs
        offset = flag + 2 - size
        if runs is not None:
            runs.pass_on(flag, log.tail - 2 if replaced else 0)
        if size < PUNCH_SIZE_MIN:
            if runs is not None and offset >= log.loose_from:
                runs.add(offset, flag + 2, size)
            return
        if offset < log.exclusive_from:
            return
        if offset < log.synced_end and not log.synced:
            # What is on the disk must be dead there before it loses its bytes.
            log.datasync()
        entry = read_entry(log.read, offset, log.tail)
        stop = entry.end - frame.TRAILER_SIZE
        views.doom(offset, entry.end, list(frame.walk(log.read, entry.value, stop)))
        views.join_parted()

    def _write_checkpoint(self, limit: int | None) -> None:
        try:
            self._index.write_checkpoint(self._log, limit=limit)
        except StorageError as error:
            # What it is for is speed alone: the change that brought us here is done.
            self._index.fresh = 0
            logger.warning("%s: no index checkpoint written: %s", self._log.name, str(error))

    def _vacuum_if_due(self) -> None:
        log = self._log
        dead = log.dead_size
        if dead is None or dead <= AUTOVACUUM_MIN or dead <= log.tail >> 1 or self._batch:
            return
        self._begin_write()
        try:
            vacuum.vacuum(self)
        finally:
            self._end_write()

    def _merge(self, batch: Batch) -> None:
        """Take in a batch that was published."""
        entries, complete = self._entries, self._index.complete
        entries.update(batch.changes)
        if complete:
            for key, place in batch.changes.items():
                if place is None:
                    entries.pop(key, None)
        self._index.disordered = True
        if self._log.exclusive:
            log = self._log
            if log.shadows or any(old[0] < log.loose_from for old in batch.olds):
                # Which of the batch's entries is whose successor is not known here.
                log.loose_from = log.tail
                log.shadows.clear()
            for old in batch.olds:
                self._give_back(old)
        known = self._index
        known.fresh += len(batch.changes)
        self._batch = None
        if known.fresh >= known.limit:
            self._write_checkpoint(index.MERGE_MAX)
        if self._autovacuum:
            self._vacuum_if_due()

    # Closing -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file; a second call does nothing.  Views of values stay valid."""
        log = self._log
        if log.closed:
            return
        if self._in_batch() and self._batch is not None:
            self._batch.abandon()
        try:
            if log.writable and not log.failed and not log.forked and log.fd >= 0:
                self._finish()
        finally:
            self._index.forget()
            self._views.forget()
            log.close()

    def _finish(self) -> None:
        """Leave the file quick to open: write what is known about it."""
        log = self._log
        due = self._index.fresh >= index.CHECKPOINT_CLOSE_MIN and log.damage is None
        if not due and not log.exclusive:
            return
        try:
            log.lock.acquire()
        except StorageError:
            return
        try:
            if not log.exclusive:
                self._catch_up()
            log.trim()
            if due and log.superblock is not None:
                self._index.write_checkpoint(log)
                log.datasync()
                log.set_synced_end()
            if log.exclusive:
                self._release()
            if due and log.superblock is not None:
                log.set_boot(CLEAN)
        except (PmshelveError, OSError) as error:
            logger.warning("%s: no index checkpoint written: %s", log.name, str(error))
        finally:
            log.lock.release()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    @property
    def _file(self) -> BinaryIO:
        """A binary file object of the store's file, as picklers of mmappickle use it."""
        if self._log.file is not None:
            return self._log.file
        kind = "r+b" if self._log.writable else "rb"
        return open(self._log.fd, kind, buffering=0, closefd=False)  # type: ignore[return-value]


def _is_key(key: object) -> bool:
    """Whether a key can be in a store; TypeError, as a dict has it, where it is not hashable."""
    hash(key)
    return isinstance(key, str)


def flush(file: BinaryIO) -> None:
    """Hand what a file object has buffered to the system."""
    method = getattr(file, "flush", None)
    if method is not None:
        method()


def drop_read_buffer(file: BinaryIO) -> None:
    """Make a file object read anew what it has buffered; its position stays."""
    with contextlib.suppress(OSError, ValueError):
        position = file.tell()
        file.seek(0, os.SEEK_END)  # the one whence for which buffers are always dropped
        file.seek(position)
