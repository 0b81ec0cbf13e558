"""The examples of a documentation page, found and run; as a program, it runs one page in this directory.

A page is one session: its blocks run in order and share their names, as if typed one after the other.

    ```python      is run; one that begins with ``>>>`` is a doctest
    ```console     lines that begin with ``$`` are commands; what they print must be what follows, if anything
    others         are not looked at

A comment before a block, with nothing but blank lines between, says more:

    <!-- needs: sqlitedict, diskcache -->   skip it where one of these modules cannot be imported
    <!-- no-run: why not -->                never run it
    <!-- exit: 2 -->                        the last command ends with this code

Commands end with code 0, except where an error of our command line's is expected (``pmshelve: ...``).

In what is expected ``...`` stands for anything, and runs of white space are alike, as in doctests.
"""

from __future__ import annotations

import doctest
import importlib.util
import linecache
import os
import re
import shlex
import subprocess
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Block", "find_blocks", "run_page"]

_FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w-]*)[^\n]*$")
_COMMENT = re.compile(r"^<!--\s*(?P<name>needs|no-run|exit):\s*(?P<value>.*?)\s*-->$")
_COMMAND = re.compile(
    r"((?:[^\n]*\\\n)*[^\n]*\n?)(.*)", re.DOTALL
)  # to be continued after a backslash
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_RUN = ("python", "console")
_PYTHON = shlex.quote(sys.executable)
_PROGRAMS = {"python": _PYTHON, "pmshelve": f"{_PYTHON} -m pmshelve"}


@dataclass
class Block:
    """One fenced block.

    Attributes
    ----------
    line
        Of its first line of code, counted from 1.
    said
        What the comments before it say, by name.
    """

    language: str
    line: int
    code: str
    said: dict[str, str] = field(default_factory=dict)

    @property
    def is_run(self) -> bool:
        """Whether it is one to run, where all that it needs is there."""
        return self.language in _RUN and "no-run" not in self.said

    @property
    def missing(self) -> list[str]:
        """The modules that it needs and that are not there."""
        names = re.findall(r"[\w.]+", self.said.get("needs", ""))
        return [name for name in names if importlib.util.find_spec(name) is None]


def find_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    blocks: list[Block] = []
    said: dict[str, str] = {}
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if comment := _COMMENT.match(line):
            said[comment["name"]] = comment["value"]
        elif fence := _FENCE.match(line):
            code = []
            for _, inner in lines:
                if inner.rstrip() == fence["fence"]:
                    break
                code.append(inner + "\n")
            blocks.append(Block(fence["language"], number + 1, "".join(code), said))
            said = {}
        elif line.strip():
            said = {}
    return blocks


def run_page(path: Path) -> int:
    """Run the blocks of a page, up to the first that fails; tell about it and return the exit code."""
    session = ModuleType("__main__")  # whose classes can be pickled, and stored by name
    sys.modules["__main__"] = session
    linecache.checkcache(str(path))
    for block in find_blocks(path.read_text()):
        where = f"{path.name}:{block.line}"
        if not block.is_run:
            continue
        if missing := block.missing:
            print(f"{where}: skipped, for want of {', '.join(missing)}", flush=True)
            continue
        try:
            _run(block, path, session.__dict__)
        except BaseException as error:  # told, whatever it is
            print(f"{where}: failed\n{_told(error, path)}", flush=True)
            return 1
    return 0


def _run(block: Block, path: Path, space: dict[str, Any]) -> None:
    if block.language == "console":
        _run_commands(block)
    elif block.code.lstrip().startswith(">>>"):
        _run_doctest(block, path, space)
    else:  # the lines before make a traceback tell the page's line, and its text
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
        exec(code, space)


def _run_doctest(block: Block, path: Path, space: dict[str, Any]) -> None:
    parser = doctest.DocTestParser()
    test = parser.get_doctest(block.code, space, path.name, str(path), block.line - 1)
    test.globs = space  # the session's own, not the copy that doctests get
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=_FLAGS)
    runner.run(test, out=report.append, clear_globs=False)
    if report:
        raise AssertionError("".join(report))


def _run_commands(block: Block) -> None:
    commands = re.split(r"^\$ ", block.code, flags=re.MULTILINE)
    assert not commands[0].strip(), "a console block begins with a command: $ ..."
    checker = doctest.OutputChecker()
    for number, text in enumerate(commands[1:], 1):
        command, expected = _COMMAND.fullmatch(text).groups()  # type: ignore[union-attr]
        for name, meant in _PROGRAMS.items():
            if command.startswith(f"{name} "):
                command = meant + command[len(name) :]
        done = subprocess.run(
            command,
            shell=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        )
        told = f"$ {text.splitlines()[0]}"
        wanted = int(block.said.get("exit", 0)) if number == len(commands) - 1 else 0
        if wanted or not expected.startswith("pmshelve: "):
            assert done.returncode == wanted, f"{told}\nexit code {done.returncode}:\n{done.stdout}"
        else:
            assert done.returncode, f"{told}\nexit code 0:\n{done.stdout}"
        if expected.strip() and not checker.check_output(expected, done.stdout, _FLAGS):
            raise AssertionError(f"{told}\nexpected:\n{expected}\ngot:\n{done.stdout}")


def _told(error: BaseException, path: Path) -> str:
    """Return the traceback, from the page's own lines on."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != str(path):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


if __name__ == "__main__":
    sys.exit(run_page(Path(sys.argv[1])))
