"""Show on stderr how far long work is, and say what is true after Ctrl-C.

On a terminal there is a bar with rich, and without it a line that is written over, at most twice a
second.  Nothing goes to a stderr that is no terminal: logs stay short.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from pmshelve.storage.progress import Progress

__all__ = ["Interrupted", "bar", "is_terminal", "telling"]

_PAUSE = 0.5


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, and what is now true of the file, for `main` to print."""


@contextmanager
def telling(say: Callable[[], str]) -> Iterator[None]:
    """Let Ctrl-C in the block end the command with a line that says what is true of the file.

    Parameters
    ----------
    say
        Returns that line; called after the block has been left.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(say()) from None


@contextmanager
def bar(title: str, *, quiet: bool = False) -> Iterator[Progress]:
    """Give a progress callback, and show what it is told until the block ends, if anybody looks.

    Parameters
    ----------
    title
        What is done, in a word or two.
    quiet
        Show nothing at all.

    Notes
    -----
    A total of 0 stands for one that is not known.  The terminal is as it was when the block ends,
    however it ends.
    """
    stream = sys.stderr
    if quiet or not is_terminal(stream):
        yield _ignore
        return
    try:
        import rich.progress
    except ImportError:
        line = _Line(title, stream)
        try:
            yield line
        finally:
            line.clear()
        return
    from rich.console import Console

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    console = Console(file=stream)
    with rich.progress.Progress(*columns, console=console, transient=True) as display:
        task = display.add_task(title, total=None)

        def report(done: int, total: int) -> None:
            display.update(task, completed=done, total=total or None)

        yield report


def is_terminal(stream: Any) -> bool:
    """Whether what is written to a stream is seen by somebody, on a terminal that can draw."""
    try:
        return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False


def _ignore(done: int, total: int) -> None:
    """Show nothing."""


class _Line:
    """One line of a terminal, written over."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self._title = title
        self._stream = stream
        self._due = 0.0
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is, if that is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + _PAUSE
        text = f"{self._title}  {100 * done // total:3d}%" if total else f"{self._title}  ..."
        self._stream.write(f"\r{text:{self._width}}")
        self._stream.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Leave the line empty."""
        if self._width:
            self._stream.write(f"\r{'':{self._width}}\r")
            self._stream.flush()
