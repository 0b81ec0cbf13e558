"""`map`, and what draws it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pmshelve import pmemobj
from pmshelve.cli import main
from pmshelve.cli.chart import KINDS, Grid
from pmshelve.cli.chartsvg import CELLS, svg
from pmshelve.cli.charttext import can_encode, lines, painted
from pmshelve.mmapdict import EmptyNDArray, mmapdict
from pmshelve.mmapdict import extents as store_extents
from pmshelve.pmemobj import PersistentDict
from pmshelve.pmemobj import extents as pool_extents
from pmshelve.storage.extent import HOLE, Extent, split_holes

SVG = "{http://www.w3.org/2000/svg}"


def test_every_kind_can_be_drawn() -> None:
    for kind in (*store_extents.KINDS, *pool_extents.KINDS, HOLE):
        grid = Grid(100, 10)
        grid.add(Extent(0, 100, kind, 40))
        assert sum(total.size for total in grid.totals.values()) == 100
        assert len("".join(lines(grid, 10))) == 10
    signs = [kind.ascii for kind in KINDS.values()]
    assert all(len(sign) == 1 and sign.isascii() for sign in signs)


@pytest.mark.parametrize("cells", [1, 2, 7, 100, 10_000])
def test_cells_add_up(cells: int) -> None:
    rng = np.random.default_rng(cells)
    grid = Grid(12_345, cells)
    position = 0
    sizes: dict[str, int] = {}
    while position < 12_345:
        size = min(int(rng.integers(1, 900)), 12_345 - position)
        kind = str(rng.choice(["live", "dead", "index"]))
        grid.add(Extent(position, size, kind, size))
        sizes[kind] = sizes.get(kind, 0) + size
        position += size
    assert len(grid) <= cells
    assert {kind: total.size for kind, total in grid.totals.items()} == sizes
    found: dict[str, float] = {}
    for index in range(len(grid)):
        begin, end = grid.bounds(index)
        cell = grid.cell(index)
        assert sum(cell.values()) == pytest.approx(end - begin)
        for kind, size in cell.items():
            found[kind] = found.get(kind, 0) + size
    assert found == pytest.approx(sizes)


def test_slabs_are_filled_in_part() -> None:
    grid = Grid(100, 1)
    grid.add(Extent(0, 100, "slab", 25, 1, 3))
    assert grid.totals == {"slab": (25, 1), "room": (75, 0)}
    assert grid.cell(0) == {"slab": 25, "room": 75}


def test_what_a_hole_cuts_keeps_its_number_and_what_it_holds() -> None:
    journal = [Extent(0, 100, "journal", 100, 4), Extent(100, 900, "journal room", 0, 0)]
    pieces = [*split_holes(journal, [(104, 1000)])]
    assert pieces == [journal[0], Extent(100, 4, "journal room", 0, 0), (104, 896, HOLE, 0, 0, -1)]
    slab = Extent(0, 1000, "slab", 300, 1, 3)
    assert [*split_holes([slab], [(0, 400)])] == [
        (0, 400, HOLE, 0, 0, -1),
        (400, 600, "slab", 300, 1, 3),
    ]
    pieces = [*split_holes([slab, Extent(1000, 10, "free", 0)], [(100, 400), (500, 600)])]
    assert [(piece.kind, piece.size, piece.used, piece.number) for piece in pieces] == [
        ("slab", 100, 50, 1),
        (HOLE, 300, 0, 0),
        ("slab", 100, 50, 0),
        (HOLE, 100, 0, 0),
        ("slab", 400, 200, 0),
        ("free", 10, 0, 1),
    ]


def test_colours_show_two_kinds_of_a_cell() -> None:
    grid = Grid(80, 8)
    grid.add(Extent(0, 35, "live", 35))
    grid.add(Extent(35, 35, "dead", 35))
    grid.add(Extent(70, 10, HOLE, 0, 0))
    (row,) = painted(grid, 8)
    assert [(span.text, span.colour, span.ground) for span in row] == [
        ("███", "green", ""),
        ("▄", "green", "yellow"),
        ("███", "yellow", ""),
        ("·", "bright_black", ""),
    ]
    assert list(lines(grid, 4, ascii_only=True)) == ["####", "---."]


def test_encodings() -> None:
    assert can_encode("utf-8")
    assert not can_encode("latin-1")
    assert not can_encode(None)
    assert not can_encode("no such")


def test_a_picture_is_xml_with_tooltips_and_a_legend() -> None:
    grid = Grid(1 << 30, CELLS)
    grid.add(Extent(0, 1 << 29, "live", 1 << 29, 12_345))
    for number in range(3000):
        at = (1 << 29) + number * 150_000
        grid.add(Extent(at, 100_000, "slab", 40_000, 1, 0))
        grid.add(Extent(at + 100_000, 50_000, "free", 0))
    slabs = [{"block_size": 32, "slabs": 3, "size": 12288, "blocks": 378, "used": 100}]
    picture = svg(grid, "a <title> & more", slabs=slabs)
    root = ElementTree.fromstring(picture)
    assert root.tag == SVG + "svg"
    texts = [text.text for text in root.iter(SVG + "text")]
    assert "a <title> & more" in texts
    assert {"live entries", "12,345", "32", "26.5%"} <= set(texts)
    tips = [group.find(SVG + "title").text for group in root.iter(SVG + "g")]  # type: ignore[union-attr]
    assert any("live entries: 100%" in tip for tip in tips if tip)
    assert any("small blocks, used: " in tip for tip in tips if tip)
    assert "prefers-color-scheme:dark" in picture
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")  # nothing is fetched
    drawn = [float(rect.get("width", "0")) for rect in root.iter(SVG + "rect")]
    assert len(drawn) < 4 * CELLS


# The command ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store.update((f"key {number}", "x" * 50) for number in range(2000))
        for number in range(500, 1500):
            del store[f"key {number}"]
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentDict)
        pool.root.update((f"key {n}", "x" * (n % 2000)) for n in range(3000))
        pool.root["large"] = bytes(100_000)
    return path


def test_the_picture_of_a_store(store: Path, capsys: Any) -> None:
    assert main(["map", str(store), "--width", "60", "--height", "5", "--ascii"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("store: mmapdict, ")
    rows = out[1:6]
    assert {len(row) for row in rows[:4]} == {60}
    drawn = "".join(rows)
    assert drawn.strip("#-+H") == ""
    at = drawn.index("-"), drawn.rindex("-")
    assert drawn[at[0] : at[1]].count("-") > 60
    assert "# live entries" in "\n".join(out[6:])
    assert "1,000" in "\n".join(out[6:])
    assert main(["map", str(store), "--width", "60", "--height", "5"]) == 0
    assert "█" in capsys.readouterr().out


def test_the_numbers_of_a_store(store: Path, capsys: Any) -> None:
    assert main(["map", str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with mmapdict(store, readonly=True) as opened:
        stats = opened.stats()
    totals = told["totals"]
    assert totals["live"] == {"size": stats.live_size, "number": stats.live_count}
    assert sum(total["size"] for total in totals.values()) == told["size"] == stats.size


def test_holes_are_told_apart(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "store"
    with mmapdict(path, exclusive=True) as store:
        store["kept"] = 1
        store["gone"] = bytes(8 << 20)
        del store["gone"]
        store["kept too"] = 1
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system gives nothing back")
    assert main(["map", str(path), "--json"]) == 0
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert totals["hole"]["size"] > 7 << 20
    assert totals["dead"]["size"] < 1 << 20
    assert totals["dead"]["number"] == 1


def test_the_picture_of_a_pool(pool: Path, capsys: Any) -> None:
    assert main(["map", str(pool), "--ascii", "--height", "9"]) == 0
    out = capsys.readouterr().out
    for label in (
        "superblock",
        "journal: empty",
        "page table",
        "small blocks, used",
        "large blocks",
    ):
        assert label in out
    assert "size classes" in out
    assert "block size  slabs" in out


def test_a_pool_in_use_is_drawn(pool: Path, capsys: Any) -> None:
    with pmemobj.open(pool) as opened:
        opened.root["more"] = "y" * 1000
        assert main(["map", str(pool), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        stats = opened.stats()
    assert told["totals"]["journal"]["number"] == 1
    assert told["totals"]["run"]["size"] == 4096 * stats.pages["run"]
    assert sum(slab["size"] for slab in told["slabs"]) == 4096 * stats.pages["slab"]


def test_the_picture_is_written_whole_or_not_at_all(
    store: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.svg"
    assert main(["map", str(store), "--svg", str(picture)]) == 0
    assert capsys.readouterr() == ("", "")
    ElementTree.parse(picture)
    before = picture.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pmshelve.storage.file.write_at", fail)
    assert main(["map", str(store), "--svg", str(picture)]) == 2
    assert picture.read_bytes() == before
    assert {*os.listdir(tmp_path)} == {"store", "picture.svg"}
    monkeypatch.undo()
    assert main(["map", str(store), "--svg", str(tmp_path)]) == 2
    assert "directory" in capsys.readouterr().err


def test_the_picture_on_standard_output(
    pool: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["map", str(pool), "--svg", "-"]) == 0
    ElementTree.fromstring(capfdbinary.readouterr().out)


def test_damage_is_drawn_and_told(store: Path, capsys: Any) -> None:
    data = bytearray(store.read_bytes())
    at = data.index(b"key 100")
    data[at - 20 : at] = b"\xee" * 20
    store.write_bytes(data)
    assert main(["map", str(store), "--ascii"]) == 1
    out, err = capsys.readouterr()
    assert "! damage" in out
    assert err.startswith(f"pmshelve: {store}: ")


@pytest.mark.parametrize("option", [["--width", "0"], ["--height", "x"], ["--width", "1000000000"]])
def test_wrong_sizes(store: Path, option: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["map", str(store), *option])
    assert caught.value.code == 2


def test_a_file_of_many_gigabytes(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["a"] = 1
        store["huge"] = EmptyNDArray((20 << 30,), np.uint8)
        store["b"] = 2
    assert main(["map", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["size"] > 20 << 30
    assert told["totals"]["live"]["number"] == 3


def test_what_is_made_never_replaces_what_it_is_made_of(
    store: Path, pool: Path, capsys: Any
) -> None:
    for command in (
        ["map", str(store), "--svg", str(store)],
        ["map", str(store), "--svg", str(store.with_name("link"))],
        ["dump", str(pool), str(pool)],
    ):
        source = Path(command[1])
        before = source.read_bytes()
        if not (link := store.with_name("link")).exists():
            link.symlink_to(store)
        assert main(command) == 2
        assert "not replaced" in capsys.readouterr().err
        assert source.read_bytes() == before


def test_devices_and_links_are_written_to_and_stay(
    store: Path, tmp_path: Path, capsys: Any
) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    assert main(["map", str(store), "--svg", str(link)]) == 0
    assert link.is_symlink()
    ElementTree.parse(target)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        # A pipe holds 64 KiB at least, and nobody else reads.
        assert main(["map", str(store), "--svg", str(pipe)]) == 0
        ElementTree.fromstring(os.read(reader, 1 << 20))
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    assert {*os.listdir(tmp_path)} == {"store", "link", "target", "pipe"}


def test_a_store_that_is_replaced_while_it_is_drawn(
    store: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = store_extents.Walk.__iter__
    vacuumed: list[int] = []

    def vacuum_first(self: Any) -> Any:
        if not vacuumed:
            vacuumed.append(1)
            with mmapdict(store) as opened:
                opened.vacuum()
        return walk(self)

    monkeypatch.setattr(store_extents.Walk, "__iter__", vacuum_first)
    assert main(["map", str(store), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["size"] == store.stat().st_size
    assert told["totals"]["live"]["number"] == 1000
    assert "damage" not in told["totals"]


def on_terminal(arguments: list[str], **environment: str) -> str:
    """Run a command on a terminal of its own; return what it wrote there."""
    leader, follower = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env = {**inherited, "TERM": "xterm-256color", "COLUMNS": "70", **environment}
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "pmshelve", *arguments],
            stdin=follower, stdout=follower, stderr=follower, env=env,
        )  # fmt: skip
        os.close(follower)
        follower = -1
        written = b""
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not data:
                break
            written += data
        assert process.wait() == 0
        return written.decode()
    finally:
        os.close(leader)
        if follower >= 0:
            os.close(follower)


@pytest.mark.parametrize("command", ["map", "info"])
def test_on_a_terminal(pool: Path, command: str) -> None:
    pytest.importorskip("rich")
    coloured = on_terminal([command, str(pool)])
    assert "\x1b[" in coloured
    if command == "map":
        assert "\x1b[32m" in coloured  # live is green
        plain = on_terminal([command, str(pool), "-q"], NO_COLOR="1")
        assert "█ small blocks, used" in plain
        assert "◆ superblock" in plain  # else nothing says what the signs are
        assert "\x1b[32m" not in plain
        old = on_terminal([command, str(pool), "-q"], PYTHONIOENCODING="latin-1")
        assert "# small blocks, used" in old
        assert "\\u" not in old
    else:
        assert "size classes" in coloured
        assert "8,388,608 bytes" in on_terminal([command, str(pool), "-q"], COLUMNS="16")
