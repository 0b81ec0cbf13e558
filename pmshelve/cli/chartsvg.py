"""A map as SVG: one file that needs no other, with tooltips, on a light or a dark ground.

Each cell is drawn as what it holds, one kind over the other in proportion; neighbours in a row that
look alike are drawn as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from pmshelve.cli.chart import KINDS, Grid
from pmshelve.cli.charttext import class_rows, legend_rows
from pmshelve.cli.units import binary, share

__all__ = ["CELLS", "svg"]

_COLUMNS, _ROWS = 80, 32
CELLS = _COLUMNS * _ROWS
"""Cells of a whole picture."""

_CELL_WIDTH, _CELL_HEIGHT = 10, 14
_MARGIN = 20
_LINE = 20
_ALIKE = 0.02
"""Difference in a kind's share that cannot be seen."""
_WIDTH = _COLUMNS * _CELL_WIDTH + 2 * _MARGIN
_CLASS_COLUMNS = (0, 90, 170, 280, 370, 460)
_BAR = 540


def svg(grid: Grid, title: str, *, slabs: list[dict[str, int]] | None = None) -> str:
    """Return the picture.

    Parameters
    ----------
    grid
        What to draw, in `CELLS` cells.
    title
        Its headline.
    slabs
        Size classes of a pool, as `describe` tells them.
    """
    body: list[str] = []
    y = _MARGIN + 16
    body.append(f'<text class="title" x="{_MARGIN}" y="{y}">{escape(title)}</text>')
    y += _LINE
    note = f"one cell is {binary(grid.cell_size)} of the file, from left to right"
    body.append(f'<text x="{_MARGIN}" y="{y}">{note}</text>')
    y += 12
    body += _cells(grid, y)
    y += -(-len(grid) // _COLUMNS) * _CELL_HEIGHT + _LINE
    body += _legend(grid, y)
    y += len(grid.totals) * _LINE
    if slabs:
        y += _LINE
        body += _classes(slabs, y)
        y += (len(slabs) + 1) * _LINE
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + _MARGIN}" '
        f'viewBox="0 0 {_WIDTH} {y + _MARGIN}" role="img" font-family="sans-serif" font-size="13">'
    )
    paper = f'<rect class="paper" width="{_WIDTH}" height="{y + _MARGIN}"/>'
    parts = [head, f"<title>{escape(title)}</title>", _style(), paper, *body, "</svg>"]
    return "\n".join(parts) + "\n"


def _css_class(kind: str) -> str:
    return "k-" + kind.replace(" ", "-")


def _style() -> str:
    light = "".join(f".{_css_class(name)}{{fill:{kind.light}}}" for name, kind in KINDS.items())
    dark = "".join(f".{_css_class(name)}{{fill:{kind.dark}}}" for name, kind in KINDS.items())
    return (
        "<style>.paper{fill:#fff}text{fill:#161616}.title{font-size:16px;font-weight:bold}"
        f".number{{text-anchor:end}}{light}"
        "@media(prefers-color-scheme:dark){.paper{fill:#161616}text{fill:#f4f4f4}"
        f"{dark}}}</style>"
    )


def _cells(grid: Grid, top: int) -> Iterator[str]:
    for start in range(0, len(grid), _COLUMNS):
        y = top + start // _COLUMNS * _CELL_HEIGHT
        index, stop = start, min(start + _COLUMNS, len(grid))
        while index < stop:
            first, cell = index, grid.cell(index)
            index += 1
            while index < stop and _is_alike(cell, other := grid.cell(index)):
                cell = {kind: size + other[kind] for kind, size in cell.items()}
                index += 1
            x = _MARGIN + (first - start) * _CELL_WIDTH
            yield _cell(grid, first, index, cell, x, y)


def _is_alike(cell: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two cells hold the same kinds, in nearly the same proportions."""
    if cell.keys() != other.keys():
        return False
    whole, other_whole = sum(cell.values()), sum(other.values())
    return all(
        abs(size / whole - other[kind] / other_whole) <= _ALIKE for kind, size in cell.items()
    )


def _cell(grid: Grid, first: int, stop: int, cell: dict[str, float], x: int, y: float) -> str:
    """Return a cell, or several that look alike; `cell` is what they hold."""
    begin, end = grid.bounds(first)[0], grid.bounds(stop - 1)[1]
    width = (stop - first) * _CELL_WIDTH
    tip = [f"{begin:,} to {end:,}"]
    parts = []
    whole = sum(cell.values())
    for kind, size in cell.items():
        height = (_CELL_HEIGHT - 1) * size / whole
        parts.append(
            f'<rect class="{_css_class(kind)}" x="{x}" y="{y:.2f}" width="{width}" '
            f'height="{height:.2f}"/>'
        )
        y += height
        tip.append(f"{KINDS[kind].label}: {share(size, whole)}")
    return f"<g><title>{escape(chr(10).join(tip))}</title>{''.join(parts)}</g>"


def _legend(grid: Grid, top: int) -> Iterator[str]:
    rows = zip(grid.totals, legend_rows(grid), strict=True)
    for line, (kind, (_, label, size, part, count)) in enumerate(rows):
        y = top + line * _LINE
        yield f'<rect class="{_css_class(kind)}" x="{_MARGIN}" y="{y}" width="13" height="13"/>'
        yield f'<text x="{_MARGIN + 22}" y="{y + 11}">{escape(label)}</text>'
        for place, text in ((430, size), (510, part), (620, count)):
            yield f'<text class="number" x="{place}" y="{y + 11}">{escape(text)}</text>'


def _classes(slabs: list[dict[str, int]], top: int) -> Iterator[str]:
    heads = ("block size", "slabs", "bytes", "blocks", "used", "fill")
    for line, row in enumerate([heads, *class_rows(slabs)]):
        y = top + line * _LINE + 11
        for place, text in zip(_CLASS_COLUMNS, row, strict=True):
            x = _MARGIN + place + 70
            yield f'<text class="number" x="{x}" y="{y}">{escape(text)}</text>'
        if line:
            slab = slabs[line - 1]
            width = 200 * slab["used"] / max(slab["blocks"], 1)
            x = _MARGIN + _BAR
            yield f'<rect class="k-room" x="{x}" y="{y - 11}" width="200" height="13"/>'
            yield f'<rect class="k-slab" x="{x}" y="{y - 11}" width="{width:.1f}" height="13"/>'
