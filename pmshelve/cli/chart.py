"""A file as a row of cells, each with the bytes of every kind in it: what a map is drawn from.

However large the file, and however many extents it has, there are as many cells as were asked for.
Kinds are of two families, those of an mmapdict file and those of a pool; what each looks like is
said here once, for `charttext` and `chartsvg`.
"""

from __future__ import annotations

from typing import NamedTuple

from pmshelve.storage.extent import Extent

__all__ = ["KINDS", "Grid", "Kind", "Total"]


class Kind(NamedTuple):
    """How a kind is called and drawn.

    Attributes
    ----------
    label
        In legends.
    glyph, ascii
        One character for it, where there are no colours; the second in any encoding.
    colour
        As rich names it.
    light, dark
        As SVG has it, on a light and on a dark ground.
    """

    label: str
    glyph: str
    ascii: str
    colour: str
    light: str
    dark: str


KINDS = {
    "header": Kind("header, superblock, end", "◆", "H", "magenta", "#8a3ffc", "#a56eff"),
    "live": Kind("live entries", "█", "#", "green", "#198038", "#42be65"),
    "index": Kind("index checkpoints", "▓", "+", "blue", "#0f62fe", "#78a9ff"),
    "dead": Kind("dead entries", "░", "-", "yellow", "#e8a33d", "#b28600"),
    "superblock": Kind("superblock", "◆", "S", "magenta", "#8a3ffc", "#a56eff"),
    "journal": Kind("journal: records", "▞", "J", "cyan", "#007d79", "#08bdba"),
    "journal room": Kind("journal: empty", "─", "j", "bright_cyan", "#9ef0f0", "#004144"),
    "table": Kind("page table", "▓", "+", "blue", "#0f62fe", "#78a9ff"),
    "slab": Kind("small blocks, used", "█", "#", "green", "#198038", "#42be65"),
    "room": Kind("small blocks, free", "▒", "o", "bright_green", "#a7f0ba", "#044317"),
    "run": Kind("large blocks", "■", "R", "bright_blue", "#33679a", "#82cfff"),
    "free": Kind("free pages", "░", "-", "yellow", "#e8a33d", "#b28600"),
    "behind": Kind("behind the end", "»", ">", "white", "#8d8d8d", "#8d8d8d"),
    "damage": Kind("damage", "✖", "!", "red", "#da1e28", "#fa4d56"),
    "hole": Kind("holes: no disk blocks", "·", ".", "bright_black", "#e0e0e0", "#393939"),
}
"""In the order of legends."""


class Total(NamedTuple):
    """Bytes of a kind in all of the file, and how many they are (0: not counted)."""

    size: int
    number: int


class Grid:
    """Counts bytes by kind, in cells of equal size.

    Parameters
    ----------
    size
        The file's size.
    cells
        How many cells there shall be; fewer where the file is that short.

    Attributes
    ----------
    size
        As given.
    cell_size
        Bytes of a cell.
    totals
        Of each kind that there is, in the order of `KINDS`.

    Examples
    --------
    >>> grid = Grid(100, 4)
    >>> grid.add(Extent(0, 40, "live", 40, 3))
    >>> grid.add(Extent(40, 60, "dead", 60))
    >>> grid.cell(1)
    {'live': 15.0, 'dead': 10.0}
    >>> grid.totals
    {'live': Total(size=40, number=3), 'dead': Total(size=60, number=1)}
    """

    def __init__(self, size: int, cells: int) -> None:
        self.size = size
        self.cell_size = max(1, -(-size // max(cells, 1)))
        self._count = -(-size // self.cell_size)
        self._cells: dict[str, list[float]] = {}
        self._totals: dict[str, list[int]] = {}

    def __len__(self) -> int:
        """Return the number of cells."""
        return self._count

    def add(self, extent: Extent) -> None:
        """Count an extent."""
        offset, size, kind, used, number, _ = extent
        size = max(0, min(size, self.size - offset))
        if kind == "slab":
            self._spread("slab", offset, size, min(used, size), number)
            self._spread("room", offset, size, size - min(used, size), 0)
        else:
            self._spread("header" if kind == "end" else kind, offset, size, size, number)

    def _spread(self, kind: str, offset: int, size: int, amount: int, number: int) -> None:
        """Count `amount` bytes of a kind, spread evenly over a range."""
        total = self._totals.setdefault(kind, [0, 0])
        total[0] += amount
        total[1] += number
        if not amount:
            return
        cells = self._cells.get(kind)
        if cells is None:
            cells = self._cells[kind] = [0.0] * self._count
        width, stop = self.cell_size, offset + size
        share = amount / size
        first, last = offset // width, (stop - 1) // width
        if first == last:
            cells[first] += amount
            return
        cells[first] += share * ((first + 1) * width - offset)
        for cell in range(first + 1, last):
            cells[cell] += share * width
        cells[last] += share * (stop - last * width)

    def cell(self, index: int) -> dict[str, float]:
        """Return the bytes of each kind in a cell, in the order of `KINDS`."""
        cells = self._cells
        return {
            kind: cells[kind][index] for kind in KINDS if kind in cells and cells[kind][index] > 0
        }

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the offsets of a cell's beginning and end."""
        return index * self.cell_size, min((index + 1) * self.cell_size, self.size)

    @property
    def totals(self) -> dict[str, Total]:
        """Bytes, and number, of each kind that there is."""
        totals = self._totals
        return {kind: Total(*totals[kind]) for kind in KINDS if totals.get(kind, [0])[0]}
