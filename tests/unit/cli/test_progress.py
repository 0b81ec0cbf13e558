"""The bar: on a terminal with and without rich, and nothing elsewhere."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr

import pytest

from pmshelve.cli.progress import Interrupted, bar, is_terminal, telling


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_nothing_goes_to_what_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("work") as report:
        for done in range(100):
            report(done, 100)
    assert capsys.readouterr() == ("", "")


def test_with_rich(terminal: Terminal) -> None:
    pytest.importorskip("rich")
    with redirect_stderr(terminal), bar("some work") as report:
        report(0, 0)
        for done in range(101):
            report(done, 100)
    written = terminal.getvalue()
    assert "some work" in written
    assert "100%" in written
    assert written.endswith("\x1b[2K")  # gone


def test_the_terminal_is_put_right_after_an_interrupt(terminal: Terminal) -> None:
    pytest.importorskip("rich")
    with pytest.raises(KeyboardInterrupt):
        with redirect_stderr(terminal), bar("work") as report:
            report(1, 2)
            raise KeyboardInterrupt
    written = terminal.getvalue()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back


def test_without_rich(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    now = [0.0]
    monkeypatch.setattr("pmshelve.cli.progress.time.monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt):
        with redirect_stderr(terminal), bar("work") as report:
            for done in range(10):
                now[0] += 0.3
                report(done, 10)
            now[0] += 1
            report(0, 0)
            raise KeyboardInterrupt
    lines = terminal.getvalue().split("\r")
    assert [line.strip() for line in lines if line.strip()] == [
        "work    0%", "work   20%", "work   40%", "work   60%", "work   80%", "work  ...",
    ]  # fmt: skip
    assert lines[-2].strip() == lines[-1] == ""


@pytest.mark.parametrize("how", ["quiet", "dumb"])
def test_nothing_is_shown_to_who_wants_nothing(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    with redirect_stderr(terminal), bar("work", quiet=how == "quiet") as report:
        report(1, 2)
    assert terminal.getvalue() == ""


def test_streams_that_are_none() -> None:
    closed = io.StringIO()
    closed.close()
    assert not is_terminal(None)
    assert not is_terminal(closed)


def test_what_is_true_is_asked_for_after_the_block() -> None:
    state = ["before"]
    with pytest.raises(Interrupted, match=r"^after$"), telling(lambda: state[0]):
        try:
            raise KeyboardInterrupt
        finally:
            state[0] = "after"
    with pytest.raises(Interrupted, match=r"^inner$"):
        with telling(lambda: "outer"), telling(lambda: "inner"):
            raise KeyboardInterrupt
