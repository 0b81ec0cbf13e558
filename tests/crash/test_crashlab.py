"""The crash laboratory itself: it lets a right store pass, and finds what is wrong with others."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve.storage import file as disk
from tests.support.crashlab import Scenario, attack, record
from tests.support.steps import batch, delete, open_, put


class WholeFile:
    """A dict that writes all of itself at each change; `faults` names what it leaves out."""

    faults: frozenset[str] = frozenset()

    def __init__(self, path: str) -> None:
        self.path = path
        self.items_: dict[str, Any] = {}
        self.inside = False
        if os.path.exists(path) and os.path.getsize(path):
            with open(path, "rb") as stream:
                self.items_ = pickle.load(stream)
        else:
            self._save()

    def _save(self) -> None:
        if self.inside:
            return
        data = pickle.dumps(self.items_)
        if "overwrites" in self.faults:
            self._write(self.path, data)
            return
        self._write(self.path + ".new", data)
        disk.replace(self.path + ".new", self.path)
        if "sync names" not in self.faults:
            disk.sync_directory(self.path)

    def _write(self, path: str, data: bytes) -> None:
        fd = disk.system.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if "truncates late" not in self.faults:
            disk.truncate(fd, 0)
        disk.write_at(fd, data, 0)
        if "truncates late" in self.faults:
            disk.truncate(fd, len(data))
        if "sync data" not in self.faults:
            disk.datasync(fd)
        disk.system.close(fd)

    def __setitem__(self, key: str, value: Any) -> None:
        self.items_.pop(key, None)
        self.items_[key] = value
        self._save()

    def __delitem__(self, key: str) -> None:
        del self.items_[key]
        self._save()

    def batch(self) -> WholeFile:
        return self

    def __enter__(self) -> None:
        self.inside = "batch" not in self.faults

    def __exit__(self, *_: object) -> None:
        self.inside = False
        self._save()

    def __getitem__(self, key: str) -> Any:
        return self.items_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)

    def items(self) -> Any:
        return self.items_.items()

    def check(self) -> list[str]:
        return []

    def close(self) -> None:
        pass


STEPS = (
    open_(),
    put("a", 1, durable=True),
    put("b", b"b" * 3000, durable=True),
    batch({"c": 1, "d": 2}, ("a",), durable=True),
    put("b", "short", durable=True),
    delete("c", durable=True),
)


def run(tmp_path: Path, *faults: str) -> int:
    class Store(WholeFile):
        pass

    Store.faults = frozenset(faults)
    (tmp_path / "disk").mkdir()
    (tmp_path / "state").mkdir()
    scenario = Scenario("whole file", STEPS, Store, Store, Store)
    recording = record(scenario, str(tmp_path / "disk"))
    return attack(recording, str(tmp_path / "state"), states_max=600, deep_every=10)


def test_a_right_store_passes(tmp_path: Path):
    assert run(tmp_path) > 50


@pytest.mark.parametrize(
    "faults", [("sync data",), ("sync names",), ("overwrites",), ("batch",)], ids=str
)
def test_what_is_left_out_is_found(tmp_path: Path, faults: tuple[str, ...]):
    with pytest.raises((AssertionError, EOFError, pickle.UnpicklingError, ValueError)):
        run(tmp_path, *faults)
