"""The real mmappickle on our files, ours on its, and both on one file at once."""

from __future__ import annotations

import datetime
import decimal
import importlib.util
import io
import os
import random
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmshelve.errors import CorruptionError
from pmshelve.mmapdict import EmptyNDArray, mmapdict
from tests.support.layout import read_layout
from tests.support.processes import Worker
from tests.support.stores import assert_content, assert_sound, fixture, stock_load
from tests.support.values import (
    LONG_KEY,
    PLAIN_KEYS,
    arrays,
    assert_same,
    masked_arrays,
    objects,
    scalars,
)

needs_mmappickle = pytest.mark.skipif(
    importlib.util.find_spec("mmappickle") is None, reason="mmappickle is not installed"
)

_PRELUDE = """
import warnings
warnings.simplefilter("ignore")
import numpy
if not hasattr(numpy, "float"):
    numpy.float = float  # the name it was written with, gone since NumPy 1.24
import mmappickle
"""


@pytest.fixture
def theirs() -> Iterator[Worker]:
    """A process in which `mmappickle` is imported."""
    with Worker(_PRELUDE) as worker:
        yield worker


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.mmdpickle"


def _open(theirs: Worker, path: Path) -> None:
    theirs.run("their = mmappickle.mmapdict(path)", path=str(path))


def _close(theirs: Worker) -> None:
    theirs.run("their._file.close(); del their")


_CONTENT = "{key: their[key] for key in their.keys()}"


def _copied(theirs: Worker, key: str) -> Any:
    return theirs.eval("their[key]", key=key)


# Its files --------------------------------------------------------------------------------------

_L = [1, 2, 3]
_S = "shared"

FIXTURES: dict[str, dict[str, Any]] = {
    "generic": {
        "none": None,
        "true": True,
        "int": 42,
        "negative": -7,
        "big": 2**80,
        "float": 1.5,
        "bytes": b"\x00\xff",
        "text": "héllo 世",
        "nested": {"a": [_L, _L, {"k": _S}], "b": (_S, _S), 3: None},
        "ordered": OrderedDict(z=1, a=2),
        "date": datetime.date(2018, 3, 5),
        "decimal": decimal.Decimal("1.10"),
        "set": frozenset({1, 2}),
        "é-key": "unicode key",
        "k" * 255: "longest key",
    },
    "arrays": {
        "u8": np.array([1, 2, 3], "u1"),
        "f8_2d": np.arange(12.0).reshape(3, 4),
        "i4_3d": np.arange(24, dtype="i4").reshape(2, 3, 4),
        "bool": np.array([True, False]),
        "c16": np.array([1 + 2j]),
        "f4_big_endian": np.arange(4, dtype=">f4"),
        "empty": np.zeros((0, 3)),
        "wide": np.zeros((300, 2), "i2"),
        "text_after": "mixed with a generic value",
    },
    "masked": {
        "masked": np.ma.MaskedArray([[1, 2, 3], [4, 5, 6]], [[0, 1, 0], [1, 0, 1]]),
        "unmasked": np.ma.zeros((2, 3), "i8"),
        "invalid": np.ma.masked_invalid([1, np.nan, 3]),
    },
    "empty": {},
}


def _history() -> dict[str, Any]:
    content: dict[str, Any] = {
        f"k{i:02}": {"i": i, "shared": ["shared", "shared"]} for i in range(20) if i % 3 == 2
    }
    content.update({f"k{i:02}": f"replaced {i}" for i in range(1, 20, 3)})
    content["array"] = np.arange(6)
    return content


FIXTURES["history"] = _history()


def assert_values(store: Any, expected: dict[str, Any]) -> None:
    """Compare values as mmappickle keeps them: no fill value, no hard mask."""
    assert list(store) == list(expected)
    for key, value in expected.items():
        if isinstance(value, np.ma.MaskedArray):
            got = store[key]
            assert isinstance(got, np.ma.MaskedArray)
            assert_same(np.asarray(got.data), np.asarray(value.data))
            assert np.array_equal(np.ma.getmaskarray(got), np.ma.getmaskarray(value))
        else:
            assert_same(store[key], value)


@pytest.mark.parametrize("readonly", [True, False])
@pytest.mark.parametrize("name", FIXTURES)
def test_its_files_are_read_in_full(tmp_path: Path, name: str, readonly: bool) -> None:
    path = fixture(name + ".mmdpickle", tmp_path)
    before = path.read_bytes()
    with mmapdict(path, readonly=readonly) as store:
        assert_values(store, FIXTURES[name])
        assert len(store) == len(FIXTURES[name])
        assert list(store.check()) == []
        number = store.commit_number
        for value in store.values():
            if isinstance(value, np.ma.MaskedArray):
                assert isinstance(value.data, np.memmap)
            elif isinstance(value, np.ndarray):
                assert isinstance(value, np.memmap)
    assert path.read_bytes() == before
    assert number == read_layout(before).commit_number


@pytest.mark.parametrize("name", FIXTURES)
def test_its_files_are_written_on(tmp_path: Path, name: str) -> None:
    path = fixture(name + ".mmdpickle", tmp_path)
    content = dict(FIXTURES[name])
    with mmapdict(path) as store:
        store["new"] = content["new"] = np.arange(7)
        if len(content) > 1:
            first = next(iter(content))
            del store[first], content[first]
            second = next(iter(content))
            store[second] = "replaced"
            content.pop(second)
            content[second] = "replaced"
        with store.batch():
            store["x"] = content["x"] = 1
            store["y"] = content["y"] = {"z": [2]}
        assert_values(store, content)
        assert store["new"].offset % 64 == 0
        assert list(store.check()) == []
        assert store.fsck() is True
    with mmapdict(path) as store:
        assert_values(store, content)
        store.vacuum()
        assert_values(store, content)
        assert list(store.check()) == []


def test_its_arrays_are_written_to_in_place(tmp_path: Path) -> None:
    path = fixture("arrays.mmdpickle", tmp_path)
    with mmapdict(path) as store:
        store["f8_2d"][1, 2] = 77
    with mmapdict(path, readonly=True) as store:
        assert store["f8_2d"][1, 2] == 77
        assert not store["f8_2d"].flags.writeable


def test_values_share_no_memo_across_its_entries(tmp_path: Path) -> None:
    path = fixture("history.mmdpickle", tmp_path)
    with mmapdict(path) as store:
        for key in ("k02", "k17"):
            first, second = store[key]["shared"]
            assert first is second


# Ours, read by it -------------------------------------------------------------------------------


@needs_mmappickle
def test_it_reads_our_values_in_full(path: Path, theirs: Worker) -> None:
    content = {**scalars(), **objects(), **arrays(), **masked_arrays()}
    content.update(dict.fromkeys(PLAIN_KEYS, "key"))
    with mmapdict(path) as store:
        for key, value in content.items():
            store["dead"] = value
            store[key] = value
        del store["dead"]
        store["empty"] = EmptyNDArray((3, 4), "f4")
        content["empty"] = np.zeros((3, 4), "f4")
    _open(theirs, path)
    assert set(theirs.eval("set(their.keys())")) == set(content)
    assert theirs.eval("their['hard'].hardmask")
    del content["hard"]  # its pickle, by which it comes here, would lose that
    for key, value in content.items():
        assert theirs.eval("key in their", key=key)
        assert_same(_copied(theirs, key), value)
    _close(theirs)


@needs_mmappickle
def test_keys_it_cannot_hold_are_excepted_alone(path: Path, theirs: Worker) -> None:
    content: dict[str, Any] = {"a": 1, "b": np.arange(3), "c": {"d": [1]}}
    odd = [LONG_KEY, "\ud800", "\0pmshelve/1", "\0pmshelve:key"]
    with mmapdict(path) as store:
        for number, key in enumerate(odd):
            store[key] = number
            store["a"] = 1
        store.update(content)
        _open(theirs, path)
        for key, value in content.items():
            assert_same(_copied(theirs, key), value)
        assert theirs.eval("[key in their for key in keys]", keys=odd[:3]) == [False] * 3
        theirs.run("their['theirs'] = [5]; del their['a']; their['b'] = 'new'")
        expected = {**{key: number for number, key in enumerate(odd)}, "c": {"d": [1]},
                    "theirs": [5], "b": "new"}  # fmt: skip
        assert_content(store, expected)
        assert list(store.check()) == []
        _close(theirs)
    with mmapdict(path) as store:
        assert_sound(store, expected)


@needs_mmappickle
def test_it_reads_our_commit_number(path: Path, theirs: Worker) -> None:
    with mmapdict(path) as store:
        store.update(a=1)
        store["b"] = 2
        _open(theirs, path)
        assert theirs.eval("their.commit_number") == store.commit_number
        theirs.run("their['c'] = 3")
        assert store.commit_number == theirs.eval("their.commit_number")
        theirs.run("their.commit_number = 500")
        assert store.commit_number == 500
        store.commit_number = 700
        assert theirs.eval("their.commit_number") == 700
        _close(theirs)


# Both on one file -------------------------------------------------------------------------------


@needs_mmappickle
@pytest.mark.parametrize("start", ["ours", "theirs", "history"])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_take_turns_on_one_file(
    tmp_path: Path, path: Path, theirs: Worker, start: str, seed: int
) -> None:
    chance = random.Random(seed)
    content: dict[str, Any] = {}
    if start == "history":
        path = fixture("history.mmdpickle", tmp_path)
        content = dict(FIXTURES["history"])
    if start == "theirs":
        _open(theirs, path)
    values = [1, "text", b"bytes", [1, [2]], np.arange(5), np.zeros((3, 4)), {"a": np.arange(9)}]
    with mmapdict(path) as store, mmapdict(path, readonly=True) as reader:
        if start != "theirs":
            _open(theirs, path)
        for _ in range(80):
            key = chance.choice("abcdef")
            value = chance.choice(values)
            ours = chance.random() < 0.5
            kind = chance.randrange(5)
            if kind == 0 and key in content:
                del content[key]
                if ours:
                    del store[key]
                else:
                    theirs.run("del their[key]", key=key)
            elif kind == 1 and ours:
                with store.batch():
                    for each in "ace":
                        store[each] = value
                        content.pop(each, None)
                        content[each] = value
            else:
                content.pop(key, None)
                content[key] = value
                if ours:
                    store[key] = value
                else:
                    theirs.run("their[key] = value", key=key, value=value)
            assert_content(reader, content)
            assert_content(store, content)
            assert set(theirs.eval("set(their.keys())")) == set(content)
        for key, value in content.items():
            if start != "history" or key in "abcdef":
                assert_same(_copied(theirs, key), value)
        assert list(store.check()) == []
        _close(theirs)
    with mmapdict(path) as store:
        assert_content(store, content)
        store["z"] = content["z"] = 1
        assert_content(store, content)
        assert list(store.check()) == []


@needs_mmappickle
def test_processes_of_both_kinds_write_at_once(path: Path, profile: Any) -> None:
    rounds = 60 * profile.factor
    with mmapdict(path) as store:
        store["start"] = 1
    write = """
for number in range(rounds):
    store[f"{name}{number % 7}"] = [name, number]
    if number % 10 == 9:
        del store[f"{name}{number % 7}"]
"""
    workers = {"m1": Worker(_PRELUDE), "m2": Worker(_PRELUDE)}
    ours = {"p1": Worker("from pmshelve.mmapdict import mmapdict")}
    try:
        for name, worker in workers.items():
            code = "store = mmappickle.mmapdict(path)" + write
            worker.start(code, path=str(path), name=name, rounds=rounds)
        for name, worker in ours.items():
            code = "store = mmapdict(path)" + write + "store.close()"
            worker.start(code, path=path, name=name, rounds=rounds * 20)
        with mmapdict(path, readonly=True) as reader:
            while any(not _answered(worker) for worker in (workers | ours).values()):
                for key, value in list(reader.items()):
                    assert key == "start" or value[0] == key[:2]
        for worker in (workers | ours).values():
            worker.finish()
    finally:
        for worker in (workers | ours).values():
            worker.kill()
    expected: dict[str, Any] = {"start": 1}
    for name, count in (("m1", rounds), ("m2", rounds), ("p1", rounds * 20)):
        for number in range(count):
            expected[f"{name}{number % 7}"] = [name, number]
            if number % 10 == 9:
                del expected[f"{name}{number % 7}"]
    with mmapdict(path) as store:
        assert list(store.check()) == []
        assert dict(store) == expected
        assert stock_load(path) == expected


def _answered(worker: Worker) -> bool:
    import select

    assert worker.process.stdout is not None
    return bool(select.select([worker.process.stdout], [], [], 0.01)[0])


# Vacuum and fsck of both ------------------------------------------------------------------------


@needs_mmappickle
def test_file_it_vacuumed_opens(path: Path, theirs: Worker) -> None:
    content = {"a": 1, "b": np.arange(5), "c": {"x": np.arange(20_000)}, LONG_KEY: 5}
    with mmapdict(path) as store:
        store["dead"] = bytes(5000)
        store.update(content)
        del store["dead"]
    _open(theirs, path)
    theirs.run("their.vacuum()")
    _close(theirs)
    assert path.read_bytes()[48:56] != b"PMSHELVE"
    with mmapdict(path) as store:
        assert_content(store, content)
        assert list(store.check()) == []
        store["new"] = content["new"] = 1
        del store["a"], content["a"]
        assert_sound(store, content)
        store.vacuum()
        assert_sound(store, content)
        assert store["b"].offset % 64 == 0
    assert path.read_bytes()[48:56] == b"PMSHELVE"


@needs_mmappickle
def test_its_handle_on_a_file_we_replaced_fails_instead_of_losing(
    path: Path, theirs: Worker
) -> None:
    with mmapdict(path) as store:
        store.update(a=1, b=2)
        _open(theirs, path)
        assert theirs.eval(_CONTENT) == {"a": 1, "b": 2}
        del store["a"]
        store.vacuum()
        with pytest.raises(Exception):  # noqa: B017, PT011
            theirs.run("their['lost'] = 1")
        with pytest.raises(Exception):  # noqa: B017, PT011
            theirs.eval("their['b']")
        theirs.run("their._file.close()")
        _open(theirs, path)
        assert theirs.eval(_CONTENT) == {"b": 2}
        theirs.run("their['c'] = 3")
        assert_sound(store, {"b": 2, "c": 3})
        _close(theirs)


@needs_mmappickle
def test_its_handle_goes_on_after_our_vacuum_in_place(tmp_path: Path, theirs: Worker) -> None:
    path = tmp_path / "store"
    with open(path, "wb+") as file:
        store = mmapdict(file)
        store.update(a=bytes(5000), b=2, c=np.arange(3))
        _open(theirs, path)
        assert set(theirs.eval("set(their.keys())")) == {"a", "b", "c"}
        del store["a"]
        store.vacuum()
        assert set(theirs.eval("set(their.keys())")) == {"b", "c"}
        theirs.run("their['d'] = 4")
        assert_content(store, {"b": 2, "c": np.arange(3), "d": 4})
        _close(theirs)


@needs_mmappickle
@pytest.mark.parametrize("made_by", ["ours", "theirs"])
def test_file_it_checked_loses_nothing(path: Path, theirs: Worker, made_by: str) -> None:
    """Its fsck of a sound file leaves nine bytes too many before the terminator."""
    content = {"a": 1, "b": [2], "c": "text"}
    if made_by == "ours":
        with mmapdict(path) as store:
            store.update(content)
        _open(theirs, path)
    else:
        _open(theirs, path)
        theirs.run("for key, value in content.items(): their[key] = value", content=content)
    theirs.run(
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): their.fsck()"
    )
    _close(theirs)
    try:
        with mmapdict(path) as store:
            assert_content(store, content)
    except CorruptionError as error:
        pytest.fail(f"a file that mmappickle's fsck has seen does not open: {error}")
    with mmapdict(path) as store:
        assert store.fsck() in (True, False)
        assert_sound(store, content)


@needs_mmappickle
def test_torn_file_of_its_making_opens(path: Path, theirs: Worker) -> None:
    _open(theirs, path)
    theirs.run("their['a'] = 1; their['b'] = [2]; their['c'] = 'x' * 1000")
    _close(theirs)
    whole = path.read_bytes()
    for size in range(len(whole) - 1, 24, -97):
        path.write_bytes(whole[:size])
        with mmapdict(path) as store:
            kept = list(store)
            assert kept == ["a", "b", "c"][: len(kept)]
            store["new"] = 1
            assert list(store.check()) == []
        assert list(stock_load(path)) == [*kept, "new"]


@needs_mmappickle
def test_file_object_shared_by_both(tmp_path: Path, theirs: Worker) -> None:
    with open(tmp_path / "store", "wb+", buffering=io.DEFAULT_BUFFER_SIZE) as file:
        store = mmapdict(file)
        store["a"] = 1
        _open(theirs, tmp_path / "store")
        theirs.run("their['b'] = 2")
        file.seek(0)
        assert_content(stock_load(file), {"a": 1, "b": 2})
        assert_content(store, {"a": 1, "b": 2})
        assert os.fstat(file.fileno()).st_size > 0
        _close(theirs)
