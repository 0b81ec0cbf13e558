"""``convert SRC DST``: what another store holds, as a new file of ours."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from pmshelve.cli.keys import printable
from pmshelve.cli.progress import bar, telling
from pmshelve.errors import PmshelveError
from pmshelve.storage import file as storage

if TYPE_CHECKING:
    from pmshelve.convert import Report

__all__ = ["add"]

_SHOWN_MAX = 20
_BAD, _FAILED = 1, 2


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "convert",
        help="make a store of a dbm, a shelf, sqlitedict, diskcache, zict.File, mmappickle or pickle",
        description="Copy what another store holds to a new file, compare each entry, and only then"
        " give the file its name.  The source is not changed.",
    )
    parser.add_argument("source", metavar="SRC", help="a file, a directory, or a dbm's name")
    parser.add_argument("destination", metavar="DST", help="the file to make")
    parser.add_argument(
        "--from", dest="kind", metavar="KIND", help="what SRC is, if that cannot be told"
    )
    parser.add_argument(
        "--to", choices=("mmapdict", "pmemobj"), default="mmapdict", help="what DST shall be"
    )
    parser.add_argument(
        "--face",
        choices=("native", "bytes", "zict"),
        help="what DST is for: pmshelve.open and mmapdict, dbm, or zict; default: as SRC",
    )
    parser.add_argument("--shelf", action="store_true", help="the dbm's values are pickles")
    parser.add_argument("--table", metavar="NAME", help="which table of an sqlitedict file")
    parser.add_argument(
        "--unpickle",
        action="store_true",
        help="load pickled values, so that arrays come back mapped; this can run code that is in SRC",
    )
    there = "replace DST if it is there"
    parser.add_argument("--overwrite", action="store_true", help=there)
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out what cannot be converted"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from pmshelve.convert import BadEntriesError

    try:
        report = _convert(arguments)
    except BadEntriesError as error:
        report = error.report
    except (ValueError, ImportError) as error:
        if isinstance(error, PmshelveError):
            raise
        print(f"pmshelve: {error}", file=sys.stderr)  # an argument, or a package that is missing
        return _FAILED
    if arguments.json:
        print(json.dumps(report.as_dict()))
    else:
        _print(report, arguments)
    return _BAD if report.bad_count and not arguments.skip_bad else 0


def _convert(arguments: argparse.Namespace) -> Report:
    from pmshelve.convert import convert

    destination = arguments.destination
    before = _identity(destination)

    def say() -> str:
        is_done = _identity(destination) != before
        return f"{destination} is " + ("complete" if is_done else "as it was, nothing was written")

    with (
        telling(say),
        bar("convert", quiet=arguments.quiet or arguments.json) as progress,
    ):
        return convert(
            arguments.source,
            destination,
            to=arguments.to,
            face=arguments.face,
            kind=arguments.kind,
            shelf=arguments.shelf,
            table=arguments.table,
            unpickle=arguments.unpickle,
            overwrite=arguments.overwrite,
            skip_bad=arguments.skip_bad,
            dry_run=arguments.dry_run,
            progress=progress,
        )


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells one file from another that takes its name."""
    try:
        found = storage.system.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _print(report: Report, arguments: argparse.Namespace) -> None:
    print(f"{report.source}: {report.kind}, {report.entries} entries, {report.bytes} bytes")
    for what, count in report.left_out.items():
        print(f"not moved: {count} {what}")
    if report.pickles and not arguments.unpickle:
        print(f"moved as pickles, not loaded: {report.pickles}")
    for note in report.notes:
        print(note)
    for bad in report.bad[:_SHOWN_MAX]:
        print(f"cannot be converted: {printable(bad.key)}: {printable(bad.problem)}")
    if report.bad_count > _SHOWN_MAX:
        print(f"cannot be converted: {report.bad_count - _SHOWN_MAX} more")
    if report.unverified:
        print(f"read back as written, but pickled differently each time: {report.unverified}")
    where = f"{report.destination}: {report.to}, {report.face}"
    if report.written:
        print(f"{where}, {report.size} bytes, {report.verified} entries verified")
    else:
        print(f"{where}: not written")
