"""What MkDocs asks of us while it builds the site (`make docs`): its hooks, named in mkdocs.yml.

The pages are the files of docs/, and README.md and CHANGELOG.md, which become `index.md` and `changelog.md`.
Their links are those of the repository, so that they work where it is read; here they are led to the page
that a file became.  A link to a file that is no page keeps its text alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

PAGES = {"index.md": ROOT / "README.md", "changelog.md": ROOT / "CHANGELOG.md"}
"""Pages whose files are not in docs/."""

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for name, path in PAGES.items():
        files.append(File.generated(config, name, content=path.read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to the pages of the site."""
    uri = page.file.src_uri
    return relink(markdown, uri, PAGES.get(uri, DOCS / uri))


def relink(markdown: str, uri: str, source: Path) -> str:
    """Return a page's text with its links as they must be in the site.

    Parameters
    ----------
    uri
        The page's place below docs/, whether or not a file is there.
    source
        The file it was read from.
    """
    code = [match.span() for match in _CODE.finditer(markdown)]
    known = {path: name for name, path in PAGES.items()}

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        inside = any(start <= match.start() < stop for start, stop in code)
        if inside or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = (source.parent / target).resolve()
        if path in known:
            place = known[path]
        elif path.is_relative_to(DOCS):
            place = path.relative_to(DOCS).as_posix()
        elif path.exists():
            return text
        else:
            return match[0]  # MkDocs says that it is broken
        up = "../" * uri.count("/")
        return f"[{text}]({up}{place}{anchor})"

    return _LINK.sub(link, markdown)
