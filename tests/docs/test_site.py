"""The site of `make docs`: all pages are in it, all links lead somewhere, all public names are described."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.public import importable
from tools import site

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# Pages ----------------------------------------------------------------------------------------


def test_the_navigation_has_every_page_once() -> None:
    nav = re.search(r"^nav:\n(.*?)^\S", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE | re.DOTALL)
    assert nav
    named = re.findall(r"- (\S+\.md)$", nav[1], re.MULTILINE)
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) == there | set(site.PAGES)


def test_a_page_that_is_not_in_docs_is_a_file_of_the_repository() -> None:
    assert all(path.is_file() for path in site.PAGES.values())
    assert not any((DOCS / name).exists() for name in site.PAGES)


@pytest.mark.parametrize(
    ("uri", "markdown", "expected"),
    [
        ("index.md", "[a](docs/dbm.md)", "[a](dbm.md)"),
        ("index.md", "[a](docs/dbm.md#in-a-pool), [b](LICENSE)", "[a](dbm.md#in-a-pool), b"),
        ("index.md", "[a](CHANGELOG.md)", "[a](changelog.md)"),
        ("dbm.md", "[a](shelve.md) [b](../README.md)", "[a](shelve.md) [b](index.md)"),
        ("dbm.md", "[a](../pyproject.toml)", "a"),
        ("dbm.md", "[a](https://python.org) [b](#here)", "[a](https://python.org) [b](#here)"),
        ("dbm.md", "[a](missing.md)", "[a](missing.md)"),
        ("dbm.md", "`[a](../README.md)`", "`[a](../README.md)`"),
        ("dbm.md", "```\n[a](../README.md)\n```", "```\n[a](../README.md)\n```"),
        ("reference/errors.md", "[a](../dbm.md)", "[a](../dbm.md)"),
        ("reference/errors.md", "[a](../../README.md)", "[a](../index.md)"),
    ],
)
def test_links_lead_to_pages(uri: str, markdown: str, expected: str) -> None:
    source = site.PAGES.get(uri, DOCS / uri)
    assert site.relink(markdown, uri, source) == expected


# Names ----------------------------------------------------------------------------------------


def test_every_public_name_has_a_docstring() -> None:
    bare = [
        f"{module.__name__}.{name}"
        for module in importable()
        for name, thing in described(module)
        if not inspect.getdoc(thing)
    ]
    assert bare == []


def described(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield a module, its functions and classes, and the methods that our classes have."""
    yield "", module
    for name in module.__all__:
        thing = getattr(module, name)
        if not callable(thing):
            continue
        yield name, thing
        for member, value in inspect.getmembers(thing) if isinstance(thing, type) else ():
            value = getattr(value, "fget", value)
            ours = str(getattr(value, "__module__", "")).startswith("pmshelve")
            if callable(value) and ours and not member.startswith("_"):
                yield f"{name}.{member}", value


def test_the_site_is_whole_describes_every_public_name_and_loads_nothing(tmp_path: Path) -> None:
    for needed in ("mkdocs", "material", "mkdocstrings", "griffe_inherited_docstrings"):
        pytest.importorskip(needed)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout  # --quiet would hide warnings from --strict as well

    *_, packed = (tmp_path / "objects.inv").read_bytes().split(b"\n", 4)
    names = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    for module in importable():
        name = module.__name__
        wanted = {name, *(f"{name}.{each}" for each in module.__all__ if each != "__version__")}
        assert wanted <= names, f"not in docs/reference/: {sorted(wanted - names)}"
    assert (tmp_path / "search" / "search_index.json").stat().st_size > 100_000

    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        tags = re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", page.read_text())
        assert [tag for tag in tags if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)] == []
