"""``map FILE``: a picture of what lies where, in the terminal or as SVG."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from shutil import get_terminal_size
from typing import Any

from pmshelve.cli.chart import Grid
from pmshelve.cli.chartsvg import CELLS, svg
from pmshelve.cli.charttext import can_encode, class_rows, legend_rows, lines, painted
from pmshelve.cli.facts import kind_of, opened
from pmshelve.cli.keys import printable
from pmshelve.cli.output import replacing
from pmshelve.cli.progress import bar, telling
from pmshelve.cli.table import console, print_rows
from pmshelve.cli.units import binary, exact
from pmshelve.errors import NotAStoreError, PmshelveError
from pmshelve.storage import file as storage
from pmshelve.storage.extent import Extent, holes, split_holes
from pmshelve.storage.progress import Progress

__all__ = ["add"]

_TRIES = 6
_HEIGHT_MAX = 24
_HEIGHT_MIN = 4
_CELLS_MAX = 5000


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "map", help="draw what lies where: live, dead, index, free; also while it is in use"
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--svg", metavar="OUT", help="write a picture; - for standard output")
    parser.add_argument("--json", action="store_true", help="print the bytes of each kind as JSON")
    parser.add_argument("--ascii", action="store_true", help="draw with ASCII only, no colours")
    parser.add_argument("--width", type=_positive, help="characters of a row; else the terminal's")
    parser.add_argument(
        "--height", type=_positive, help="rows; else what the terminal has room for"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    parser.set_defaults(command=_run)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _CELLS_MAX:
        raise argparse.ArgumentTypeError(f"not a number from 1 to {_CELLS_MAX}: {text!r}")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    terminal = get_terminal_size()
    width = arguments.width or max(terminal.columns, 16)
    height = arguments.height or min(max(terminal.lines - 16, _HEIGHT_MIN), _HEIGHT_MAX)
    wants_svg = arguments.svg is not None
    cells = CELLS if wants_svg else width * height
    with (
        telling(lambda: "the file was only read"),
        bar("map", quiet=arguments.quiet) as report,
    ):
        drawn = _Drawing(arguments.file, cells, report)
    if wants_svg:
        with telling(lambda: "the file was only read, and the picture is not known to be written"):
            _write_svg(drawn, arguments.svg)
    if arguments.json:
        print(json.dumps(drawn.totals()))
    elif not wants_svg:
        _show(drawn, width, ascii_only=arguments.ascii)
    if not drawn.problem:
        return 0
    print(f"pmshelve: {arguments.file}: {drawn.problem}", file=sys.stderr)
    return 1


class _Drawing:
    """A file, gone through once.

    Attributes
    ----------
    grid
        What lies where.
    slabs
        Size classes of a pool.
    problem
        What is wrong with it, or "".
    """

    def __init__(self, path: str, cells: int, progress: Progress) -> None:
        self.path = path
        self.slabs: list[dict[str, int]] = []
        self.problem = ""
        self.grid: Grid
        for _ in range(_TRIES):
            with opened(path) as fd:
                self.kind = kind_of(fd)
                if self.kind not in {"mmapdict", "pmemobj"}:
                    raise NotAStoreError("not a pmshelve file", path)
                go = self._mmapdict if self.kind == "mmapdict" else self._pool
                self.grid = Grid(storage.size_of(fd), cells)
                # A vacuum gives the name to another file.
                if go(fd, progress) and storage.is_named(fd, path) is not False:
                    return
        raise PmshelveError("somebody writes too much to draw it", path, hint="try again")

    def _mmapdict(self, fd: int, progress: Progress) -> bool:
        from pmshelve.mmapdict.extents import FileCutError, Walk
        from pmshelve.mmapdict.frame import GENERATION_OFFSET, STATE_START, STATE_STOP

        def read(start: int, stop: int) -> bytes:
            return storage.read_at(fd, stop - start, start)

        state = read(STATE_START, STATE_STOP)
        walk = Walk(read, self.grid.size, progress=progress)
        try:
            for extent in split_holes(walk, holes(fd, self.grid.size)):
                self.grid.add(extent)
        except FileCutError:
            return False
        self.problem = ""
        if walk.damaged:
            self.problem = f"{walk.problem} (at offset {walk.problem_offset})"
        now = read(STATE_START, STATE_STOP)
        content = slice(48 - STATE_START, GENERATION_OFFSET + 4 - STATE_START)
        # What is added meanwhile only lies behind what was drawn.
        return now == state or (not walk.damaged and now[content] == state[content])

    def _pool(self, fd: int, progress: Progress) -> bool:
        from pmshelve.pmemobj.describe import add_slab
        from pmshelve.pmemobj.extents import Walk
        from pmshelve.pmemobj.peek import Peek

        slabs: dict[int, dict[str, int]] = {}

        def counted() -> Iterator[Extent]:
            for extent in walk:
                if extent.kind == "slab":
                    add_slab(slabs, extent)
                yield extent

        with Peek(self.path) as peek:
            walk = Walk(peek, progress=progress)
            for extent in split_holes(counted(), holes(fd, self.grid.size)):
                self.grid.add(extent)
            self.slabs = [slabs[number] for number in sorted(slabs)]
            self.problem = ""
            if walk.problem:
                self.problem = f"{walk.problem} (at offset {walk.problem_offset})"
            return peek.is_settled()

    def totals(self) -> dict[str, Any]:
        """Return what the legend says, for programs."""
        return {
            "path": os.path.abspath(self.path),
            "kind": self.kind,
            "size": self.grid.size,
            "totals": {
                kind: {"size": total.size, "number": total.number}
                for kind, total in self.grid.totals.items()
            },
            "slabs": self.slabs,
        }

    @property
    def title(self) -> str:
        """The headline."""
        return f"{printable(os.path.basename(self.path))}: {self.kind}, {exact(self.grid.size)}"


def _write_svg(drawn: _Drawing, out: str) -> None:
    picture = svg(drawn.grid, drawn.title, slabs=drawn.slabs).encode("utf-8", "replace")
    if out == "-":
        sys.stdout.buffer.write(picture)
        return
    with replacing(out, of=drawn.path) as stream:
        stream.write(picture)


def _show(drawn: _Drawing, width: int, *, ascii_only: bool) -> None:
    grid = drawn.grid
    ascii_only = ascii_only or not can_encode(getattr(sys.stdout, "encoding", None))
    screen = None if ascii_only else console()
    if screen is not None and (not screen.color_system or screen.no_color):
        screen = None  # without colours it is the sign that tells one kind from the other
    print(drawn.title)
    if screen is None:
        for line in lines(grid, width, ascii_only=ascii_only):
            print(line)
    else:
        _paint(screen, grid, width)
    cell = "1 cell" if len(grid) == 1 else f"{len(grid):,} cells"
    print(f"{cell} of {binary(grid.cell_size)}")
    _print_legend(screen, grid, ascii_only=ascii_only)
    heads = ("block size", "slabs", "size", "blocks", "used", "fill")
    print_rows("size classes", heads, class_rows(drawn.slabs), 0)


def _paint(screen: Any, grid: Grid, width: int) -> None:
    from rich.text import Text

    for row in painted(grid, width):
        text = Text(no_wrap=True, end="\n")
        for span in row:
            text.append(
                span.text, f"{span.colour} on {span.ground}" if span.ground else span.colour
            )
        screen.print(text, soft_wrap=True)


def _print_legend(screen: Any, grid: Grid, *, ascii_only: bool) -> None:
    from pmshelve.cli.chart import KINDS

    rows = list(legend_rows(grid, ascii_only=ascii_only))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for kind, (sign, label, size, part, count) in zip(grid.totals, rows, strict=True):
        rest = (
            f"{label:{widths[1]}}  {size:>{widths[2]}}  {part:>{widths[3]}}  {count:>{widths[4]}}"
        )
        if screen is None:
            print(f"{sign} {rest}".rstrip())
        else:
            colour = KINDS[kind].colour
            block = "█" if kind != "hole" else sign
            screen.print(f"[{colour}]{block}[/] {rest}".rstrip(), soft_wrap=True)
