"""The demo's input: the Python installation's own library, module by module."""

from __future__ import annotations

import ast
import io
import sysconfig
import tokenize
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_LEFT_OUT = {"__pycache__", "idlelib", "site-packages", "test", "tests", "turtledemo"}


class Module(NamedTuple):
    """What the demo keeps of one module.

    Attributes
    ----------
    tokens
        One row a token: type, and line and column of its start and end; int32.
    histogram
        How often each byte value occurs in the source; int64, 256 of them.
    """

    name: str
    source: str
    facts: dict[str, Any]
    tokens: np.ndarray
    histogram: np.ndarray

    def items(self) -> dict[str, Any]:
        """Return the module's keys and values, as they are stored."""
        return {
            f"{self.name}/source": self.source,
            f"{self.name}/facts": self.facts,
            f"{self.name}/tokens": self.tokens,
            f"{self.name}/histogram": self.histogram,
        }


def library() -> Path:
    """Return the directory of the standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def paths(root: Path) -> list[Path]:
    """Return the modules below `root`, sorted."""
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not _LEFT_OUT.intersection(path.relative_to(root).parts)
    ]


def survey(path: Path, root: Path) -> Module | None:
    """Return what the demo keeps of one module; None if it does not parse.

    Some libraries ship files that are meant not to.
    """
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    try:
        return _survey(name, path.read_bytes())
    except (SyntaxError, UnicodeError, tokenize.TokenError):
        return None


def _survey(name: str, raw: bytes) -> Module:
    source = raw.decode()
    tokens = np.fromiter(
        (
            (token.type, *token.start, *token.end)
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
        ),
        dtype=np.dtype((np.int32, 5)),
    )
    return Module(
        name,
        source,
        _facts(ast.parse(source), source, len(tokens)),
        tokens,
        np.bincount(np.frombuffer(raw, np.uint8), minlength=256),
    )


def _facts(tree: ast.Module, source: str, token_count: int) -> dict[str, Any]:
    nodes = list(ast.walk(tree))
    imported = {
        name.name for node in nodes if isinstance(node, ast.Import) for name in node.names
    } | {node.module for node in nodes if isinstance(node, ast.ImportFrom) if node.module}
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        "about": (ast.get_docstring(tree) or "").partition("\n")[0],
        "size": len(source.encode()),
        "lines": source.count("\n"),
        "tokens": token_count,
        "classes": [node.name for node in nodes if isinstance(node, ast.ClassDef)],
        "functions": sum(isinstance(node, functions) for node in nodes),
        "imports": sorted(imported),
    }
