"""`convert`: copy every entry to a new file, read each back and compare it, then give the file its name.

    open the source      read-only
    copy                 each entry, to a file that nobody sees (`scratch`); bad ones are collected
    sync, close, open    the new file
    compare              each entry of the source again, with what the new file has of it
    name                 the new file takes the name, in one step

Whatever ends it before the last step leaves the name, and what may have it, as they were.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from pmshelve.convert.compare import digest
from pmshelve.convert.pickles import PLAIN
from pmshelve.convert.recognize import Options, open_source
from pmshelve.convert.report import Report
from pmshelve.convert.scratch import Scratch, check_target
from pmshelve.convert.source import Source, Unreadable
from pmshelve.convert.target import Target, make_target
from pmshelve.errors import StateError, StorageError, UnsupportedTypeError
from pmshelve.mmapdict.picklers.premade import Premade
from pmshelve.storage import file as storage
from pmshelve.storage.progress import Pace, Progress

__all__ = ["BadEntriesError", "convert"]

_Path = str | bytes | os.PathLike[Any]
_SAME_KEY = "another entry has the same key in the new file"


class BadEntriesError(UnsupportedTypeError):
    """Some entries cannot be converted; nothing was written.

    Attributes
    ----------
    report
        The `Report`, which names them.
    """

    report: Report


def convert(
    src: _Path,
    dst: _Path,
    *,
    to: Literal["mmapdict", "pmemobj"] = "mmapdict",
    face: Literal["native", "bytes", "zict"] | None = None,
    kind: str | None = None,
    shelf: bool = False,
    table: str | None = None,
    unpickle: bool = False,
    overwrite: bool = False,
    skip_bad: bool = False,
    dry_run: bool = False,
    mode: int = 0o666,
    timeout: float | None = 60.0,
    key: Callable[[Any], Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Make a new store of what another one holds.

    Parameters
    ----------
    src
        What to read: a file, a directory, or the name that `dbm.open` is given.
    dst
        The file to make.
    to
        What it shall be: ``'mmapdict'`` or ``'pmemobj'``, a pool.
    face
        The door it is for: ``'native'`` for `pmshelve.open` and `mmapdict`, ``'bytes'`` for
        `pmshelve.dbm_compat`, ``'zict'`` for `pmshelve.zict_compat`; None for the one that is like
        the source's own.
    kind
        What the source is, one of `KINDS`; None finds out.
    shelf
        The values of a dbm are pickles, as `shelve` writes them.
    table
        Of an sqlitedict file: which table.
    unpickle
        Load values that are pickles, which can run any code that is in them, and store the objects:
        arrays in them are then mapped when they are read.  Without it their pickles are moved as
        they are, and nothing is run.
    overwrite
        Replace a file that is there.
    skip_bad
        Leave out what cannot be converted, and report it, instead of raising.
    dry_run
        Look at everything, write nothing.
    mode
        Permissions of the new file, subject to the umask; one that is replaced hands on its own.
    timeout
        Seconds to wait for whoever has the source, or a file to be replaced, locked.
    key
        Called with each key of the source; what it returns is the key in the new file.
    progress
        Called with the entries done so far, of those to copy and then to compare together.

    Returns
    -------
    Report
        What was done: how many entries, bytes, and compared ones, and what was left out.

    Raises
    ------
    BadEntriesError
        Some entries cannot be converted.  Its `report` says which, and why.
    NotAStoreError
        The source is of no known kind, or of several.
    PickleRefusedError
        The source cannot be read without running the unpickler.
    FileNotFoundError, FileExistsError
        `src` is missing; `dst` is there.
    StateError
        Both are the same, or the source was changed meanwhile.
    LockTimeoutError, StorageError, OSError, ValueError

    Notes
    -----
    All or nothing: the new file has its name once it is complete, compared and on the disk, and a
    process that is killed before leaves none (see `scratch` for what it does leave).  The source is
    opened read-only and stays as it is; nobody should write to it meanwhile, nor should this process
    have it open.  Memory does not grow with the number of entries, except for a pickled dict, for the
    index of what is read or written, and for a digest of each object that was loaded; one value has
    to fit.
    """
    source_path, target_path = os.fsdecode(src), os.path.realpath(os.fsdecode(dst))
    check_target(target_path, overwrite=overwrite)
    with open_source(source_path, kind, Options(shelf, table, unpickle, timeout, face)) as source:
        _check_apart(source, target_path)
        known_face = source.face if face is None else face
        target = make_target(to, known_face, mode, takes_pickles=source.is_pickles)
        report = Report(source_path, os.fsdecode(dst), source.kind, to, known_face)
        report.notes = source.notes
        work = _Work(source, target, report, unpickle=unpickle, key=key, progress=progress)
        if dry_run:
            work.look()
        else:
            with Scratch(target_path) as scratch:
                work.copy(scratch.path, skip_bad=skip_bad)
                work.compare(scratch.path)
                scratch.take_name(overwrite=overwrite, timeout=timeout)
            report.written = True
            report.size = storage.system.stat(target_path).st_size
        report.left_out = {what: count for what, count in source.left_out.items() if count}
    return report


def _check_apart(source: Source, target: str) -> None:
    """Raise StateError where writing the new file would change the source."""
    scratch = os.path.dirname(Scratch(target).path)
    for name in source.files():
        path = os.path.realpath(name)
        if (path + os.sep).startswith(scratch + os.sep):
            raise StateError("the source is where the new file would be made", path)
        if target.startswith(path + os.sep):
            raise StateError("the destination is in the source's directory", target)
        if os.path.exists(target) and os.path.samefile(path, target):
            raise StateError("source and destination are one file", target)


class _Entry(NamedTuple):
    """What can be converted."""

    key: Any
    name: Any
    form: Any
    is_made: bool  # the form is a pickle that was made for it: another may differ
    was_bytes: bool  # the key


class _Work:
    """One conversion."""

    def __init__(
        self,
        source: Source,
        target: Target,
        report: Report,
        *,
        unpickle: bool,
        key: Callable[[Any], Any] | None,
        progress: Progress | None,
    ) -> None:
        self._source = source
        self._target = target
        self._report = report
        self._unpickle = unpickle
        self._key = key
        self._count = len(source)
        self._pace = Pace(progress, 2 * self._count)
        self._unwritten: set[int] = set()  # numbers of entries
        self._made: dict[int, bytes] = {}  # digests of forms that were made
        self._retyped = 0

    # What there is --------------------------------------------------------------------------------

    def _entries(self, tell: Callable[[Any, str], object]) -> Iterator[_Entry]:
        """Yield each entry that can be converted, the same ones each time; tell of the others."""
        for original, value in self._source:
            if isinstance(value, Unreadable):
                tell(original, value.problem)
                continue
            try:
                key = original if self._key is None else self._key(original)
                name = self._target.name(key)
                loaded = self._loaded(value)
                form = self._target.form(loaded)
            except _Bad as bad:
                tell(original, str(bad))
            except (TypeError, ValueError) as error:
                tell(original, getattr(error, "problem", None) or str(error))
            else:
                is_made = isinstance(form, Premade) and not isinstance(loaded, Premade)
                yield _Entry(original, name, form, is_made, isinstance(key, bytes))

    def _loaded(self, value: Any) -> Any:
        if not (self._unpickle and isinstance(value, Premade)):
            return value
        try:
            return pickle.loads(value.raw, buffers=value.buffers)
        except Exception as error:
            raise _Bad(f"does not unpickle: {type(error).__name__}: {error}") from error

    def _add(self, entry: _Entry) -> None:
        report = self._report
        report.entries += 1
        report.bytes += _size(entry.key) + _size(entry.form)
        report.pickles += isinstance(entry.form, Premade) and not entry.is_made
        self._retyped += entry.was_bytes

    # The stages -----------------------------------------------------------------------------------

    def look(self) -> None:
        """Find out what could be converted."""
        self._pace.total = self._count
        names: set[Any] = set()
        for done, entry in enumerate(self._entries(self._report.add_bad)):
            self._pace.at(done)
            try:
                self._target.check(entry.form)
            except (TypeError, ValueError) as error:
                self._report.add_bad(entry.key, str(error))
                continue
            if entry.name in names:
                self._report.add_bad(entry.key, _SAME_KEY)
                continue
            names.add(entry.name)
            self._add(entry)
        self._remark()
        self._pace.end()

    def copy(self, path: str, *, skip_bad: bool) -> None:
        """Write all entries to a new store."""
        target, report = self._target, self._report
        target.create(path)
        try:
            for number, entry in enumerate(self._entries(report.add_bad)):
                self._pace.at(number)
                self._write(number, entry)
            if report.bad_count and not skip_bad:
                self._refuse()
            target.finish()
        except BaseException:
            target.abandon()
            raise
        self._remark()

    def _write(self, number: int, entry: _Entry) -> None:
        problem = _SAME_KEY
        if not self._target.holds(entry.name):
            try:
                self._target.write(entry.name, entry.form)
            except UnsupportedTypeError as error:
                problem = error.problem
            else:
                self._add(entry)
                if entry.is_made:
                    self._made[number] = digest(entry.form)
                return
        self._unwritten.add(number)
        self._report.add_bad(entry.key, problem)

    def _remark(self) -> None:
        if self._retyped and self._target.is_text and not self._source.has_bytes_keys:
            self._report.notes.append(
                f"keys that are bytes in the source, and text in the new file: {self._retyped}"
            )

    def _refuse(self) -> None:
        self._check_source()
        report = self._report
        first = report.bad[0]
        error = BadEntriesError(
            f"{report.bad_count} of {report.bad_count + report.entries} entries cannot be"
            f" converted, such as {first.key}: {first.problem}",
            report.source,
            hint="nothing was written; --skip-bad (skip_bad=True) leaves them out",
        )
        error.report = report
        raise error

    def compare(self, path: str) -> None:
        """Read every entry of the new store, and compare it with the source's."""
        self._target.open(path)
        try:
            for number, entry in enumerate(self._entries(_ignore)):
                self._pace.at(self._count + number)
                if number not in self._unwritten:
                    self._compare_one(number, entry)
            self._check_counts()
        finally:
            self._target.close()
        self._pace.end()

    def _compare_one(self, number: int, entry: _Entry) -> None:
        try:
            found = self._target.read(entry.name)
            is_same = self._target.is_same(entry.form, found)
        except KeyError:
            found, is_same = None, False
        if is_same:
            self._report.verified += 1
        elif isinstance(found, Premade) and digest(found) == self._made.get(number):
            self._report.unverified += 1
        else:
            self._check_source()
            raise StorageError(
                "an entry did not come back as it was written", self._report.source, entry.key
            )

    def _check_counts(self) -> None:
        self._check_source()
        report = self._report
        if not report.verified + report.unverified == report.entries == len(self._target.store):
            raise StorageError("the new file does not hold what was written to it", report.source)

    def _check_source(self) -> None:
        if self._source.is_changed():
            raise StateError(
                "the source was changed while it was converted",
                self._report.source,
                hint="nothing was written; try again when nobody writes to it",
            )


class _Bad(Exception):
    """Why an entry cannot be converted."""


def _ignore(key: object, problem: str) -> None:
    """Leave out what was told of before."""


def _size(thing: Any) -> int:
    """Return the bytes of a name or form, as far as it consists of any."""
    if isinstance(thing, str):
        return len(thing.encode("utf-8", "surrogatepass"))
    if isinstance(thing, bytes | bytearray):
        return len(thing)
    size = getattr(thing, "nbytes", None)
    if isinstance(size, int):
        return size
    if isinstance(thing, PLAIN):
        return 8
    try:
        return len(thing) if hasattr(thing, "madvise") else 0
    except (TypeError, ValueError):
        return 0
