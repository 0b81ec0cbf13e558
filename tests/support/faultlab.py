"""Let every call of one step fail in every way, and judge what is left.

`calls_of` runs a step once and lists the calls it makes to the file layer.  `Case.strike` runs it
again on a fresh copy of the file with one fault, and demands:

* a short count is made up for: nobody notices;
* a call that fails before the commit point raises the package's error (`NoSpaceError` where the
  disk is full), an `OSError` with `errno` and `filename`.  The content is the old one, so are the
  file's length and its terminator, and the same handle does the step when it is asked again;
* a sync that fails after the commit point makes the handle refuse everything but `close` with
  `StoreFailedError`; opening again finds the content before or after;
* an exception out of a signal handler leaves the content before or after, and the handle works;
* no descriptor is left open.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pmshelve.errors import NoSpaceError, PmshelveError, StorageError, StoreFailedError
from tests.support.guard import time_limit
from tests.support.history import Content, Step, matches
from tests.support.simdisk import Fault, SimDisk
from tests.support.steps import Holder
from tests.support.stores import stock_load

__all__ = ["Case", "Shot", "shots"]

FULL = (errno.ENOSPC, errno.EDQUOT)
WRITING = ("pwrite", "pwritev", "copy_file_range")
SYNCING = ("fdatasync", "fsync")
TERMINATOR_SIZE = 11

CHANGING = (*WRITING, *SYNCING, "store", "ftruncate", "posix_fallocate", "rename", "link", "unlink")
"""Where a signal may strike.  (Elsewhere, such as within `close`, Python itself is not safe.)"""

_ERRORS = {
    "open": (errno.EMFILE, errno.EACCES, errno.EIO),
    "pread": (errno.EIO,),
    "preadv": (errno.EIO,),
    "pwrite": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "pwritev": (errno.ENOSPC, errno.EDQUOT, errno.EIO),
    "copy_file_range": (errno.ENOSPC, errno.EIO),
    "ftruncate": (errno.EIO, errno.ENOSPC),
    "rename": (errno.EACCES, errno.EIO, errno.ENOSPC),
    "link": (errno.EPERM, errno.EIO),
    "unlink": (errno.EPERM, errno.EIO),
    "flock": (errno.ENOLCK, errno.EOPNOTSUPP),
    "mmap": (errno.ENOMEM,),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO,),
    "posix_fallocate": (errno.ENOSPC, errno.EIO),
    "madvise": (errno.EOPNOTSUPP,),
}


@dataclass(frozen=True)
class Shot:
    """One fault: what happens at the `index`-th call of `primitive` (counted within the step).

    Parameters
    ----------
    kind
        "error" raises; "torn error" writes one byte first; "short" writes one byte and says so;
        "short, error" raises at the next writing call too; "broken" raises at this and all later
        calls of this primitive; "signal before" and "signal after" raise KeyboardInterrupt.
    """

    primitive: str
    index: int
    kind: str
    number: int = 0

    def __str__(self) -> str:
        number = f" {errno.errorcode[self.number]}" if self.number else ""
        return f"{self.primitive}[{self.index}] {self.kind}{number}"

    @property
    def error(self) -> OSError:
        return OSError(self.number, os.strerror(self.number))

    def plan(self, disk: SimDisk) -> Callable[[str, int], Fault | None]:
        """Return the plan that makes `disk` do it, counting calls from now on."""
        start = dict(disk.calls)
        struck = False

        def fault(name: str, index: int) -> Fault | None:
            nonlocal struck
            index -= start.get(name, 0)
            if self.kind == "short, error" and struck and name in WRITING:
                return Fault(self.error)
            if name != self.primitive or index < self.index:
                return None
            if index > self.index:
                return Fault(self.error) if self.kind == "broken" else None
            struck = True
            if self.kind in ("short", "short, error"):
                return Fault(count=1)
            if self.kind == "torn error":
                return Fault(self.error, count=1)
            if self.kind.startswith("signal"):
                return Fault(KeyboardInterrupt(), after=self.kind == "signal after")
            return Fault(self.error)

        return fault


def shots(calls: list[str]) -> Iterator[Shot]:
    """Yield all shots at a step that makes these calls."""
    seen: dict[str, int] = {}
    for name in calls:
        index = seen.get(name, 0)
        seen[name] = index + 1
        if name in CHANGING:
            yield Shot(name, index, "signal before")
            yield Shot(name, index, "signal after")
        for number in _ERRORS.get(name, ()):
            yield Shot(name, index, "error", number)
        if name in WRITING:
            yield Shot(name, index, "torn error", errno.EIO)
            yield Shot(name, index, "short")
            yield Shot(name, index, "short, error", errno.ENOSPC)
            yield Shot(name, index, "broken", errno.ENOSPC)


@dataclass(frozen=True)
class Case:
    """A step on a file, whose calls are to fail.

    Parameters
    ----------
    prepare
        Makes the file; None: there is none.
    content
        What it holds.
    warm
        Opens the store before the step; else the step is one that opens.
    may_fail
        An error may end the handle's work (which `StoreFailedError` tells): reopening heals it.
    """

    name: str
    step: Step
    opener: Callable[[str], Any]
    reopener: Callable[[str], Any]
    prepare: Callable[[str], None] | None
    content: Content
    warm: bool = True
    may_fail: bool = False
    stock: bool = True

    def __str__(self) -> str:
        return self.name

    def calls_of(self, directory: str) -> list[str]:
        """Return the calls that the step makes."""
        disk, holder = self._begin(directory)
        with disk.installed():
            if self.warm:
                holder.open()
            before = len(disk.trace)
            self.step.run(holder)
            calls = disk.trace[before:]
            holder.close()
        return calls

    def _begin(self, directory: str) -> tuple[SimDisk, Holder]:
        shutil.rmtree(directory, ignore_errors=True)
        os.mkdir(directory)
        path = os.path.join(directory, "store")
        if self.prepare is not None:
            self.prepare(path)
        return SimDisk(directory), Holder(path, self.opener)

    def strike(self, directory: str, shot: Shot) -> str:
        """Run the step with one fault; return "same", "old", "new" or "failed"."""
        disk, holder = self._begin(directory)
        with time_limit(30), disk.installed():
            try:
                return self._strike(disk, holder, shot)
            finally:
                disk.fault = None
                holder.close()
                assert disk.open_descriptors == [], "descriptors leak"

    def _strike(self, disk: SimDisk, holder: Holder, shot: Shot) -> str:
        if self.warm:
            holder.open()
        outcome = self._shoot(disk, holder, shot)
        after = self.step.effect(self.content)
        either = [self.content, after]
        if outcome in ("failed", "signal"):
            if outcome == "failed" or holder.store is None:
                holder.close()
                holder.open()
            self._is(holder, either)
        else:
            if outcome == "old":
                self._is(holder, either[:1])
                self.step.run(holder)
            self._is(holder, [after])
        if holder.store is not None:
            holder.store["afterwards"] = 1
            assert holder.store["afterwards"] == 1
            del holder.store["afterwards"]
        found = self._reopened(holder)
        if outcome in ("old", "new"):
            assert matches(found, after, set(), ordered=True), "lost when opened again"
        return outcome

    def _shoot(self, disk: SimDisk, holder: Holder, shot: Shot) -> str:
        """Run the step with the fault; return how that ended."""
        before = _end_of(holder.path)
        descriptors = disk.open_descriptors
        disk.fault = shot.plan(disk)
        try:
            self.step.run(holder)
        except (PmshelveError, OSError, KeyboardInterrupt) as error:
            disk.fault = None
            after = _end_of(holder.path)
            self._judge_error(error, shot, holder)
            if self._refuses(holder):
                assert shot.primitive in SYNCING or shot.kind == "broken" or self.may_fail, (
                    "refuses all work"
                )
                return "failed"
            if isinstance(error, KeyboardInterrupt):
                return "signal"
            if shot.primitive in WRITING or self.step.effect(self.content) != self.content:
                assert before in (None, after), "the file's length or terminator changed"
            assert len(disk.open_descriptors) == len(descriptors), "descriptors leak"
            return "old"
        finally:
            disk.fault = None
        return "new"

    def _judge_error(self, error: BaseException, shot: Shot, holder: Holder) -> None:
        if shot.kind.startswith("signal"):
            assert isinstance(error, KeyboardInterrupt), f"the signal became {error!r}"
            return
        assert shot.kind != "short", f"a short count became {error!r}"
        assert isinstance(error, OSError), f"not an OSError: {error!r}"
        assert error.errno == shot.number, f"errno {error.errno}: {error!r}"
        if shot.primitive == "open" and not isinstance(error, StorageError):
            assert error.filename is not None  # as the built-in open raises it
            return
        assert isinstance(error, StorageError), f"not the package's error: {error!r}"
        assert error.filename == holder.path, f"filename {error.filename!r}"
        if shot.number in FULL and shot.primitive in (*WRITING, "posix_fallocate"):
            assert isinstance(error, NoSpaceError), f"not NoSpaceError: {error!r}"

    @staticmethod
    def _refuses(holder: Holder) -> bool:
        if holder.store is None:
            return False
        try:
            holder.store.get("is anybody there")
            holder.store["probe"] = 1
            del holder.store["probe"]
        except StoreFailedError:
            return True
        return False

    def _is(self, holder: Holder, contents: list[Content]) -> None:
        if holder.store is None:
            return
        store = holder.store
        found = {key: store[key] for key in store}
        assert len(store) == len(found), f"len {len(store)}, items {found}"
        assert any(matches(found, content, set(), ordered=True) for content in contents), (
            f"it holds {found}, not {contents}"
        )
        problems = list(store.check())
        assert not problems, f"check: {problems}"

    def _reopened(self, holder: Holder) -> dict[str, Any]:
        holder.close()
        store = self.reopener(holder.path)
        try:
            found = {key: store[key] for key in store}
            assert list(store.check()) == []
            if self.stock:
                loaded = stock_load(holder.path)
                assert list(loaded) == list(found)
            return found
        finally:
            store.close()


def _end_of(path: str) -> tuple[int, bytes] | None:
    """Return the file's size and its last bytes; None where there is no file."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TERMINATOR_SIZE))
            return size, stream.read()
    except FileNotFoundError:
        return None
