"""``info FILE``: what a file is, and the state that it is in."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from pmshelve.cli.charttext import class_rows
from pmshelve.cli.facts import facts, who
from pmshelve.cli.keys import printable
from pmshelve.cli.progress import bar, telling
from pmshelve.cli.table import print_pairs, print_rows
from pmshelve.cli.units import exact, share

__all__ = ["add"]

_KINDS = {
    "mmapdict": "mmapdict file (a pickle)",
    "pmemobj": "pool of pmemobj",
    "dump": "dump of a pool",
    "pickle": "ordinary pickle",
}
_FACES = {"native": "native (mmapdict, shelf, zict)", "bytes": "bytes (dbm)", None: "none yet"}
_POOL_FACES = {"native": "shelf", "bytes": "dbm", "zict": "zict", None: "none (pmshelve.pmemobj)"}
_HINTS = {
    "dump": "`python -m pmshelve load` makes a pool of it",
    "pickle": "opening it with mmapdict() for writing makes a store of it, if it holds a dict",
}
_OPEN_SINCE = {
    "closed": "all of it was synced when it was closed",
    "this boot": "the first {synced} were synced; the system has the rest",
    "an earlier boot": "the first {synced} were synced; the next writer goes through all of it,"
    " since the machine was started anew",
    None: "not told",
}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "info", help="say what a file is and the state it is in, also while it is in use"
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="do not count a pool's objects")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    with telling(lambda: "the file was only read"), bar("info", quiet=arguments.quiet) as report:
        found = facts(arguments.file, quick=arguments.quick, progress=report)
    if arguments.json:
        print(json.dumps(found))
    else:
        _show(found)
    if found["state"] != "damaged":
        return 0
    print(f"pmshelve: {arguments.file}: {found['problem']}", file=sys.stderr)
    return 1


def _show(found: dict[str, Any]) -> None:
    told = _mmapdict if found["kind"] == "mmapdict" else _pool
    pairs = [*_common(found), *(told(found) if found["state"] is not None else ())]
    print_pairs([*pairs, *_holding(found)])
    if found["kind"] != "pmemobj":
        return
    heads = ("block size", "slabs", "size", "blocks", "used", "fill")
    print_rows("size classes", heads, class_rows(found["slabs"]), 0)
    objects = sorted(found["objects"].items(), key=lambda item: -item[1])
    print_rows(
        "objects", ("class", "number"), [(printable(name), f"{n:,}") for name, n in objects], 1
    )
    print_rows("type table", ("class",), [(printable(name),) for name in found["classes"]], 1)


def _common(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kind = found["kind"]
    yield "file", printable(found["path"])
    yield "kind", _KINDS[kind]
    yield "format", f"{'protocol ' if kind == 'pickle' else 'version '}{found['format']}"
    if found["state"] is not None:
        yield "state", found["state"]
    if found["problem"]:
        yield "problem", found["problem"]
    if kind in _HINTS:
        yield "to use it", _HINTS[kind]
    yield "size", exact(found["size"])
    missing = found["size"] - found["disk_size"]
    holes = f"; at least {exact(missing)} are holes" if missing >= 4096 else ""
    yield "on disk", exact(found["disk_size"]) + holes


def _mmapdict(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "written by", found["writer"]
    yield "face", _FACES[found["face"]]
    if found["live_count"] is not None:
        size = found["size"]
        yield "entries", f"{found['live_count']:,}"
        yield "live", f"{exact(found['live_size'])}, {share(found['live_size'], size)}"
        yield "dead", f"{exact(found['dead_size'])}, {share(found['dead_size'], size)}"
    if found["torn_size"]:
        yield "behind the end", exact(found["torn_size"])
    checkpoints = found["checkpoints"]
    known = (
        f"{len(checkpoints)}, {found['checkpoint_entries']:,} entries" if checkpoints else "none"
    )
    yield "checkpoints", f"{known}; {exact(found['unindexed_size'])} of entries behind them"
    yield "commits", f"{found['commit_number']:,}"
    if found["identity"]:
        yield "identity", f"{found['identity']}, generation {found['generation']}"
    synced = exact(found["synced_size"] or 0)
    yield "durability", _OPEN_SINCE[found["open_since"]].format(synced=synced)
    if not found["settled"]:
        yield "change", "exclusive, not told" if found["exclusive"] else "under way or cut short"


def _pool(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if found["uuid"] is None:
        return
    yield "face", _POOL_FACES[found["face"]]
    yield "root", printable(found["root_class"] or found["root"] or "none")
    if found["changing"]:
        yield "heap", "is being changed: look again later"
    else:
        heap = found["heap_size"]
        if found["used"] is not None:
            yield "used", f"{exact(found['used'])}, {share(found['used'], heap)} of the heap"
            yield "free", f"{exact(found['free'])}, {share(found['free'], heap)} of the heap"
        if found["block_count"] is not None:
            yield "blocks", f"{found['block_count']:,}"
        yield "pages", ", ".join(f"{number:,} {kind}" for kind, number in found["pages"].items())
    torn = ", and one that was cut short" if found["journal_torn"] else ""
    used = f"{exact(found['journal_used'])} used of {exact(found['journal_size'])}"
    yield "journal", f"{found['journal_records']:,} records{torn}; {used}"
    yield "durability", found["durability"]
    limit = exact(found["max_size"]) if found["max_size"] else "none"
    yield "created with", f"{exact(found['pool_size'])}; limit {limit}"
    yield "identity", found["uuid"]


def _holding(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    holding = found["holders"]
    if holding is None:
        yield "lock", "not told by this system"
    elif who(found):
        yield "lock", f"in use by {printable(who(found))}"
    elif holding:
        names = (f"process {each['pid']} ({each['command'] or '?'})" for each in holding)
        yield "lock", printable("shared by " + ", ".join(names))
    else:
        yield "lock", "free"
    if found["openers"]:
        names = (f"process {each['pid']} ({each['command'] or '?'})" for each in found["openers"])
        yield "open in", printable(", ".join(names))
