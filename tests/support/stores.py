"""What must hold of a store and its file whenever nobody is changing it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tests.support.layout import read_layout
from tests.support.values import assert_same

DATA = Path(__file__).parent.parent / "data"


class _StockUnpickler(pickle.Unpickler):
    """Refuses what a Python without pmshelve could not import."""

    def find_class(self, module: str, name: str) -> Any:
        assert not module.startswith("pmshelve"), f"the file needs {module}.{name}"
        return super().find_class(module, name)


def stock_load(file: str | Path | BinaryIO) -> dict[str, Any]:
    """Return the content of a file as `pickle.load` sees it."""
    if isinstance(file, str | Path):
        with open(file, "rb") as stream:
            return stock_load(stream)
    file.seek(0)
    loaded = _StockUnpickler(file).load()
    assert type(loaded) is dict
    return loaded


def assert_content(store: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Fail unless `store` has exactly the items of `expected`, in that order."""
    assert list(store) == list(expected)
    assert len(store) == len(expected)
    for key, value in expected.items():
        assert key in store
        assert_same(store[key], value)


def assert_sound(store: Any, expected: Mapping[str, Any]) -> None:
    """Fail unless a store, its file and stock pickle agree on `expected`, in that order."""
    assert list(store.check()) == []
    assert_content(store, expected)
    assert_file(store.path, expected)


def assert_file(path: str | Path, expected: Mapping[str, Any]) -> None:
    """Fail unless the file keeps its format and holds exactly `expected`, in that order."""
    assert read_layout(Path(path).read_bytes()).live_keys() == list(expected)
    assert_content(stock_load(path), expected)


def fixture(name: str, directory: Path) -> Path:
    """Return a private copy of a file of tests/data."""
    copy = directory / name
    copy.write_bytes((DATA / name).read_bytes())
    return copy


def descriptors() -> set[str]:
    """Return what the descriptors of this process stand for (Linux, macOS: names only)."""
    found = set()
    for name in os.listdir("/dev/fd"):
        try:
            found.add(f"{name}:{os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue
    return found
