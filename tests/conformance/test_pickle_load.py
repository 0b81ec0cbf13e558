"""Every committed state of every file, through `pickle.load` in a Python without pmshelve."""

from __future__ import annotations

import pickle
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.mmapdict import EmptyNDArray, mmapdict
from tests.support.processes import run_isolated
from tests.support.values import (
    AWKWARD_KEYS,
    all_values,
    arrays,
    assert_same,
    masked_arrays,
    objects,
    scalars,
)

_LOAD = """
import pickle, sys
answers = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        content = pickle.load(file)
        rest = file.read()
    if path.endswith("reserved"):
        rest = rest.strip(bytes(1))
    assert not rest, "bytes behind the pickle's end"
    assert type(content) is dict
    answers.append(pickle.dumps(content, 5))
assert not any(name.startswith("pmshelve") for name in sys.modules)
sys.stdout.buffer.write(pickle.dumps(answers))
"""


def load_elsewhere(paths: list[Path], *, numpy: bool = True) -> list[dict[str, Any]]:
    """Return what another Python, without pmshelve (and NumPy), loads from each file."""
    block = ("pmshelve",) if numpy else ("pmshelve", "numpy")
    return [pickle.loads(data) for data in pickle.loads(run_isolated(_LOAD, *paths, block=block))]


def some_values() -> dict[str, Any]:
    """Return all values whose own pickle, by which they come back here, loses nothing."""
    values = all_values()
    del values["hard"]  # NumPy forgets hard masks
    return values


class Recorder:
    """Keeps a copy of the file, and what it must hold, after each commit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.states: list[tuple[Path, dict[str, Any]]] = []

    def record(self, source: Path, expected: dict[str, Any], *, reserved: bool = False) -> None:
        """Copy the file; an exclusive store, while it is open, may have zeros behind the end."""
        copy = self.directory / f"state{len(self.states)}{'-reserved' * reserved}"
        copy.write_bytes(source.read_bytes())
        self.states.append((copy, dict(expected)))

    def verify(self, *, numpy: bool = True) -> None:
        loaded = load_elsewhere([path for path, _ in self.states], numpy=numpy)
        for content, (path, expected) in zip(loaded, self.states, strict=True):
            assert list(content) == list(expected), path.name
            for key, value in expected.items():
                assert_same(content[key], value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    (tmp_path / "states").mkdir()
    return Recorder(tmp_path / "states")


def test_every_value_loads(path: Path, recorder: Recorder) -> None:
    content: dict[str, Any] = {}
    with mmapdict(path) as store:
        recorder.record(path, content)
        for key, value in {**some_values(), **dict.fromkeys(AWKWARD_KEYS, 1)}.items():
            store[key] = content[key] = value
        recorder.record(path, content)
        store.vacuum()
        recorder.record(path, content)
    recorder.record(path, content)
    recorder.verify()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"autovacuum": True}, {"exclusive": True}], ids=repr)
def test_every_commit_of_a_random_history_loads(
    path: Path, recorder: Recorder, seed: int, options: dict[str, Any]
) -> None:
    chance = random.Random(seed)
    values = [*some_values().values()]
    keys = ["a", "b", "c", "d", *AWKWARD_KEYS[:6]]
    content: dict[str, Any] = {}

    def put(store: mmapdict) -> None:
        key, value = chance.choice(keys), chance.choice(values)
        store[key] = value
        content.pop(key, None)
        content[key] = value

    def drop(store: mmapdict) -> None:
        if content:
            key = chance.choice(list(content))
            del store[key], content[key]

    def batch(store: mmapdict) -> None:
        with store.batch():
            for _ in range(chance.randrange(5)):
                chance.choice([put, put, drop])(store)

    def clear(store: mmapdict) -> None:
        store.clear()
        content.clear()

    actions: list[Callable[[mmapdict], Any]] = [put] * 6 + [drop] * 3 + [batch] * 3
    actions += [mmapdict.vacuum, mmapdict.sync, clear]
    with mmapdict(path, **options) as store:
        for _ in range(60):
            chance.choice(actions)(store)
            recorder.record(path, content, reserved="exclusive" in options)
    recorder.record(path, content)
    recorder.verify()


def test_without_numpy_if_no_array_lives(path: Path, recorder: Recorder) -> None:
    """Dead arrays, masked arrays and objects with buffers need no import."""
    content: dict[str, Any] = {}
    with mmapdict(path) as store:
        for name, value in {**arrays(), **masked_arrays(), "o": {"x": np.arange(20_000)}}.items():
            store[name] = value
        with store.batch():
            store["in a batch"] = np.arange(5)
            store["u1"] = np.arange(4)
        for name in list(store):
            if len(store) % 2:
                del store[name]
            else:
                store[name] = content[name] = "replaced"
        recorder.record(path, content)
        for name, value in {**scalars(), **objects()}.items():
            store["new " + name] = content["new " + name] = value
        recorder.record(path, content)
        with store.batch():
            store["x"] = np.arange(5)
            del store["x"]
        recorder.record(path, content)
        store.vacuum()
        recorder.record(path, content)
    recorder.verify(numpy=False)


def test_dead_value_needs_no_import_and_runs_nothing(path: Path, recorder: Recorder) -> None:
    with mmapdict(path) as store:
        store["a"] = GoneClass()
        store["b"] = GoneClass()
        store["c"] = [GoneClass(), bytearray(100_000)]
        store["a"] = 1
        del store["b"], store["c"]
        with store.batch():
            store["d"] = GoneClass()
            store["d"] = 2
        recorder.record(path, {"a": 1, "d": 2})
    recorder.verify(numpy=False)


class GoneClass:
    """A class that another Python cannot import."""


def test_arrays_are_writable_and_independent(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = np.arange(5)
        store["f"] = np.asfortranarray(np.ones((3, 4)))
        store["m"] = np.ma.MaskedArray([1, 2], [True, False])
        store["o"] = {"x": np.arange(50_000), "b": bytearray(100_000)}
        store["e"] = EmptyNDArray((3,), "i4")
        store["h"] = np.ma.MaskedArray([1, 2], [True, False], hard_mask=True)
    before = path.read_bytes()
    out = run_isolated(
        """
import pickle, sys
import numpy as np
with open(sys.argv[1], "rb") as file:
    content = pickle.load(file)
content["a"][0] = 7
content["f"][0, 0] = 7
content["m"][1] = 7
content["m"][0] = 7
content["o"]["x"][0] = 7
content["o"]["b"][0] = 7
content["e"][0] = 7
assert content["f"].flags.f_contiguous
assert type(content["a"]) is np.ndarray, type(content["a"])
assert content["h"].hardmask
content["h"][0] = 7
assert content["h"][0] is np.ma.masked
assert type(content["m"]) is np.ma.MaskedArray
print("written")
""",
        path,
    )
    assert out.split() == [b"written"]
    assert path.read_bytes() == before


def test_objects_of_other_packages_load(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": np.arange(20_000.0), "t": ["a", "b"] * 10_000})
    with mmapdict(path) as store:
        store["frame"] = frame
    [content] = load_elsewhere([path])
    pandas.testing.assert_frame_equal(content["frame"], frame)


def test_file_object_stores_load(tmp_path: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
        store = mmapdict(file)
        content = {"a": np.arange(1000), "b": {"c": [1]}, "k" * 300: 1}
        for key, value in content.items():
            store["dead"] = value
            store[key] = value
        del store["dead"]
        [first] = load_elsewhere([Path(file.name)])
        store.vacuum()
        [second] = load_elsewhere([Path(file.name)])
    for loaded in (first, second):
        assert list(loaded) == list(content)
        for key, value in content.items():
            assert_same(loaded[key], value)


def test_load_while_a_batch_is_open_gives_the_state_before(path: Path) -> None:
    with mmapdict(path) as store:
        store["a"] = 1
        with store.batch():
            store["a"] = 2
            store["big"] = np.zeros(500_000)
            with open(path, "rb") as file:
                assert pickle.load(file) == {"a": 1}


def test_several_pickles_may_follow_one_another_in_a_stream(path: Path) -> None:
    """The file ends where its pickle ends."""
    with mmapdict(path) as store:
        store["a"] = [1]
    with open(path.with_name("stream"), "w+b") as stream:
        stream.write(path.read_bytes())
        pickle.dump("next", stream)
        stream.seek(0)
        assert pickle.load(stream) == {"a": [1]}
        assert pickle.load(stream) == "next"


def test_pure_python_unpickler_loads_it_too(path: Path) -> None:
    content = {**all_values()}
    with mmapdict(path) as store:
        for key, value in content.items():
            store[key] = value
            store["dead"] = value
        del store["dead"]
    with open(path, "rb") as file:
        loaded = pickle._load(file)  # type: ignore[attr-defined]
    assert list(loaded) == list(content)
    for key, value in content.items():
        assert_same(loaded[key], value)
