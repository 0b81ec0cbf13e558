"""A map as lines of text: cells, legend, size classes.

Without colours a cell shows the kind that most of it is.  With colours it shows the two kinds that
most of it is, as the lower and the upper part of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pmshelve.cli.chart import KINDS, Grid
from pmshelve.cli.units import binary, exact, share

__all__ = ["Span", "can_encode", "class_rows", "legend_rows", "lines", "painted"]

_EIGHTHS = " ▁▂▃▄▅▆▇█"


class Span(NamedTuple):
    """Some characters in one colour on another; "" is the terminal's own."""

    text: str
    colour: str
    ground: str


def can_encode(encoding: str | None) -> bool:
    """Whether an encoding has the characters that maps are drawn with."""
    text = _EIGHTHS + "".join(kind.glyph for kind in KINDS.values())
    try:
        text.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def lines(grid: Grid, width: int, *, ascii_only: bool = False) -> Iterator[str]:
    """Yield the rows of a map without colours.

    Parameters
    ----------
    grid
        What to draw.
    width
        Cells of a row.
    ascii_only
        Use no character that ASCII does not have.
    """
    for start in range(0, len(grid), width):
        row = []
        for index in range(start, min(start + width, len(grid))):
            kind = KINDS[_ranked(grid.cell(index))[0]]
            row.append(kind.ascii if ascii_only else kind.glyph)
        yield "".join(row)


def painted(grid: Grid, width: int) -> Iterator[list[Span]]:
    """Yield the rows of a map in colours."""
    for start in range(0, len(grid), width):
        row: list[Span] = []
        for index in range(start, min(start + width, len(grid))):
            span = _paint(grid.cell(index))
            if row and row[-1][1:] == span[1:] and row[-1].text[-1] == span.text:
                row[-1] = row[-1]._replace(text=row[-1].text + span.text)
            else:
                row.append(span)
        yield row


def _ranked(cell: dict[str, float]) -> list[str]:
    """Return the kinds of a cell, the largest first."""
    return sorted(cell, key=lambda kind: -cell[kind]) or ["hole"]


def _paint(cell: dict[str, float]) -> Span:
    ranked = _ranked(cell)[:2]
    if ranked == ["hole"]:
        return Span(KINDS["hole"].glyph, KINDS["hole"].colour, "")
    # In the order of the legend, so that neighbours look alike.
    below, *above = [kind for kind in KINDS if kind in ranked]
    if not above:
        return Span(_EIGHTHS[8], KINDS[below].colour, "")
    level = round(8 * cell[below] / (cell[below] + cell[above[0]]))
    level = min(max(level, 1), 7)
    return Span(_EIGHTHS[level], KINDS[below].colour, KINDS[above[0]].colour)


def legend_rows(
    grid: Grid, *, ascii_only: bool = False
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (sign, name, size, share, number) of each kind that there is."""
    for name, total in grid.totals.items():
        kind = KINDS[name]
        number = f"{total.number:,}" if total.number else ""
        sign = kind.ascii if ascii_only else kind.glyph
        yield sign, kind.label, exact(total.size), share(total.size, grid.size), number


def class_rows(slabs: Iterable[dict[str, int]]) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield (block size, slabs, size, blocks, used, fill) of each size class of a pool."""
    for slab in slabs:
        yield (
            f"{slab['block_size']:,}",
            f"{slab['slabs']:,}",
            binary(slab["size"]),
            f"{slab['blocks']:,}",
            f"{slab['used']:,}",
            share(slab["used"], slab["blocks"]),
        )
