"""Every example of README.md and docs/ runs, each page in an empty directory and a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.pages import find_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNNABLE = [page for page in PAGES if any(each.is_run for each in find_blocks(page.read_text()))]


def run(page: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """Run a page's blocks with `place` as the working directory."""
    return subprocess.run(
        [sys.executable, pages.__file__, page],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda path: path.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stdout


def test_the_guides_have_examples() -> None:
    names = {page.name for page in RUNNABLE}
    guides = "README.md mmapdict.md pmemobj.md pmemobj-classes.md shelve.md dbm.md choosing.md"
    assert set(guides.split()) <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_is_not_run_says_why(page: Path) -> None:
    for block in find_blocks(page.read_text()):
        if "no-run" in block.said:
            assert len(block.said["no-run"].split()) > 2, f"{page.name}:{block.line}"
        assert block.language != "py", f"{page.name}:{block.line}: call it python, so that it runs"


# The runner itself ----------------------------------------------------------------------------


def run_text(text: str, place: Path) -> subprocess.CompletedProcess[str]:
    place.joinpath("page.md").write_text(text)
    return run(place / "page.md", place)


def test_blocks_are_found_with_their_lines_and_comments() -> None:
    text = """text
<!-- needs: one, two.three -->

```python
a = 1
```

```sh
ls
```
<!-- no-run: because it is not -->
text in between
~~~python title="x"
b = 2

~~~
````markdown
```python
inner
```
````
"""
    found = find_blocks(text)
    assert [(each.language, each.line, each.code) for each in found] == [
        ("python", 5, "a = 1\n"),
        ("sh", 9, "ls\n"),
        ("python", 14, "b = 2\n\n"),
        ("markdown", 18, "```python\ninner\n```\n"),
    ]
    assert [each.said for each in found] == [{"needs": "one, two.three"}, {}, {}, {}]
    assert [each.is_run for each in found] == [True, False, True, False]


def test_blocks_share_a_session_in_order(tmp_path: Path) -> None:
    done = run_text(
        """
```python
import os, pickle
assert os.listdir() == ["page.md"]
class Thing:
    pass
assert isinstance(pickle.loads(pickle.dumps(Thing())), Thing)
```
```python
>>> isinstance(Thing(), Thing)
True
>>> after = 3
>>> [0] * 100
[0, 0, ..., 0]
```
```python
assert after == 3
open("run", "w").close()
```
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```python\nx = 1\nassert x == 2, 'no'\n```", r"AssertionError: no"),
        ("```python\nx = 1\nassert x == 2, 'no'\n```", r'page.md", line 6.*\n    assert x == 2'),
        ("```python\nx = = 1\n```", r"line 5.*\n(.*\n)*SyntaxError"),
        ("```python\nraise SystemExit(0)\n```", r"SystemExit: 0"),
        ("```python\n>>> 1 + 1\n3\n```", r"line 5.*\n(.*\n)*Expected:\n    3\nGot:\n    2"),
        ("```python\n>>> 1 / 0\n0.0\n```", r"ZeroDivisionError"),
        ("```console\n$ python -c 'print(1)'\n2\n```", r"expected:\n2\n\ngot:\n1"),
        ("```console\n$ python -c 'raise SystemExit(3)'\n```", r"exit code 3"),
        ("```console\nnothing\n```", r"begins with a command"),
        ("<!-- exit: 3 -->\n```console\n$ true\n```", r"exit code 0"),
    ],
)
def test_a_failing_block_fails_and_ends_the_page(block: str, said: str, tmp_path: Path) -> None:
    text = f"""
```python
```
{block}
```python
open("run", "w").close()
```
"""
    done = run_text(text, tmp_path)
    assert done.returncode == 1
    assert re.search(r"^page.md:[56]: failed\n", done.stdout)
    assert re.search(said, done.stdout), done.stdout
    assert not (tmp_path / "run").exists()


def test_commands_run_here_and_what_they_print_is_compared(tmp_path: Path) -> None:
    done = run_text(
        """
<!-- exit: 2 -->
```console
$ python -c "print('a  b'); print(list(range(100)))"
a b
[0, 1, ..., 99]
$ python -c \\
    'open("made", "w").close()'
$ ls made; exit 2
made
```
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_a_block_is_skipped_where_something_is_missing(tmp_path: Path) -> None:
    done = run_text(
        """
<!-- needs: json, no_such_module_here -->
```python
raise RuntimeError
```
<!-- no-run: it would never end -->
```python
raise RuntimeError
```
<!-- needs: json -->

```python
import json
```
""",
        tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout == "page.md:4: skipped, for want of no_such_module_here\n"
