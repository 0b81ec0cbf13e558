"""Tables on stdout: in colours where rich is installed and somebody looks, else aligned text."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from pmshelve.cli.progress import is_terminal

__all__ = ["console", "print_pairs", "print_rows"]

_WIDTH_MIN = 40  # below it rich leaves the values of a table out
_MARKS = {"clean": "green", "in use": "cyan", "needs recovery": "yellow", "damaged": "bold red"}


def console() -> Any:
    """Return rich's console for stdout, or None where plain text is called for, or better."""
    if not is_terminal(sys.stdout):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    screen = Console(file=sys.stdout, highlight=False)
    return screen if screen.width >= _WIDTH_MIN else None


def print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a pair a line."""
    screen = console()
    if screen is None:
        width = max(len(name) for name, _ in pairs)
        for name, value in pairs:
            print(f"{name:{width}}  {value}".rstrip())
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text(value, style=_MARKS.get(value, "")))
    screen.print(table)


def print_rows(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> None:
    """Print a table with a title and columns.

    Parameters
    ----------
    left
        Columns, from the left, that hold text; those behind hold numbers.
    """
    everything = list(rows)
    if not everything:
        return
    screen = console()
    if screen is not None:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number < left else "right")
        for row in everything:
            table.add_row(*map(Text, row))
        print()
        screen.print(table)
        return
    print(f"\n{title}")
    table_rows = [tuple(heads), *map(tuple, everything)] if any(heads) else everything
    widths = [max(map(len, column)) for column in zip(*table_rows, strict=True)]
    for row in table_rows:
        cells = [
            f"{cell:{width}}" if number < left else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  " + "  ".join(cells).rstrip())
