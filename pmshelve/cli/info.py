"""``info FILE``: what the store says of itself."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from pmshelve.cli.detect import detect, open_file
from pmshelve.mmapdict import mmapdict

__all__ = ["add"]


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("info", help="print size, number of keys and state of a file")
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    facts: dict[str, Any] = {"kind": detect(arguments.file)}
    with open_file(arguments.file) as store:
        facts.update(asdict(store.stats()) if isinstance(store, mmapdict) else store.facts())
    if arguments.json:
        print(json.dumps(facts, default=str))
        return 0
    width = max(map(len, facts))
    for name, fact in facts.items():
        print(f"{name.replace('_', ' '):{width}}  {fact}")
    return 0
