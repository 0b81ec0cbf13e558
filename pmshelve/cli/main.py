"""Find the command, run it, and tell what went wrong in one line.

Exit codes: 0, all is well; 1, the file is damaged, or there is no such key; 2, wrong usage, or the
command could not do its work; 130, interrupted, with a line that says what is true of the file;
141, the reader of the output left.
`run` ends with the exit code of the script it runs.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from pmshelve import __version__
from pmshelve.cli import (
    check,
    convert,
    dump,
    gc,
    get,
    info,
    keys,
    load,
    map,
    run,
    vacuum,
)
from pmshelve.cli.progress import Interrupted
from pmshelve.errors import CorruptionError, PmshelveError
from pmshelve.storage import file as storage

__all__ = ["main"]

_DAMAGED, _FAILED, _INTERRUPTED, _READER_LEFT = 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    arguments
        What follows the program's name; None takes it from `sys.argv`.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["run"]:
        # Not below: what the script raises is its own, and so are the options behind its name.
        return run.main(arguments[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):  # a key or text may hold what it cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.command(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return _READER_LEFT
    except Interrupted as told:
        print(f"pmshelve: interrupted: {told}", file=sys.stderr)
        return _INTERRUPTED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (PmshelveError, OSError) as problem:
        print(f"pmshelve: {_one_line(problem)}", file=sys.stderr)
        return _DAMAGED if isinstance(problem, CorruptionError) else _FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pmshelve", description="Look at and after mmapdict files and pools."
    )
    parser.add_argument("--version", action="version", version=f"pmshelve {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (info, map, keys, get, check, vacuum, gc, convert, dump, load, run):
        module.add(commands)
    return parser


def _one_line(problem: PmshelveError | OSError) -> str:
    if not isinstance(problem, PmshelveError) and problem.filename is not None:
        return f"{os.fsdecode(problem.filename)}: {problem.strerror}"
    return " ".join(str(problem).split()) or type(problem).__name__


def _forget_output() -> None:
    """Let the interpreter's last flush of stdout go to nowhere, instead of failing again."""
    null = storage.system.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    storage.system.close(null)
