"""mmappickle wrote private NumPy names; NumPy took them away, and its files no longer load."""

from __future__ import annotations

import importlib
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from pmshelve.mmapdict import EmptyNDArray, mmapdict
from tests.support.values import arrays, masked_arrays

_MODULES = {"pickle", "functools", "numpy", "numpy.ma"}


def _globals(data: bytes) -> set[tuple[str, str]]:
    """Return every global that a pickle, and the pickles kept as bytes in it, refer to."""
    found: set[tuple[str, str]] = set()
    memo: list[object] = []
    pushed: list[object] = []
    for opcode, arg, _ in pickletools.genops(data):
        if opcode.name == "GLOBAL":
            module, name = arg.split(" ")
            found.add((module, name))
        elif opcode.name == "STACK_GLOBAL":
            found.add((str(pushed[-2]), str(pushed[-1])))
        elif opcode.name == "MEMOIZE":
            memo.append(pushed[-1])
            continue
        elif opcode.name == "BINGET":
            pushed.append(memo[arg])
            continue
        elif isinstance(arg, bytes) and arg[:2] == b"\x80\x05" and arg[-1:] == b".":
            found |= _globals(arg)
        pushed.append(arg)
    return found


def _assert_public(path: Path) -> None:
    found = _globals(path.read_bytes())
    assert found
    for module, name in found:
        assert module in _MODULES, f"{module}.{name}"
        assert not name.startswith("_")
        assert hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", [*arrays(), *masked_arrays()])
def test_arrays_need_public_names_only(tmp_path: Path, name: str) -> None:
    path = tmp_path / "store"
    value = {**arrays(), **masked_arrays()}[name]
    with mmapdict(path) as store:
        store["alone"] = value
        store["inside"] = [value, {"x": value}]
    _assert_public(path)


def test_stub_and_scalars_inside(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        store["stub"] = EmptyNDArray((3,), [("a", "f4")])
        store["nested"] = {"a": np.arange(3), "b": (np.zeros((2, 2), order="F"),)}
    _assert_public(path)


def test_no_name_of_ours_reaches_a_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with mmapdict(path) as store:
        for number, value in enumerate({**arrays(), **masked_arrays()}.values()):
            store[str(number)] = [value]
    assert not any(module.startswith("pmshelve") for module, _ in _globals(path.read_bytes()))
    assert pickle.loads(path.read_bytes())
