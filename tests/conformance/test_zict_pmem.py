"""PmemDict passes zict's own checks, and serves wherever zict takes a slow mapping."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

zict = pytest.importorskip("zict")
from zict.tests import utils_test  # noqa: E402

from pmshelve.zict_compat import PmemDict  # noqa: E402

LARGE = bytes(range(256)) * 1024


@pytest.fixture(params=["none", "lazy", "full"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PmemDict]:
    with PmemDict(tmp_path / "store", durability=request.param) as store:
        yield store
        assert store.closed or store.check() == []


def test_mapping(store: PmemDict) -> None:
    utils_test.check_mapping(store)


def test_bad_key_types(store: PmemDict) -> None:
    utils_test.check_bad_key_types(store)
    assert len(store) == 0


def test_bad_value_types(store: PmemDict) -> None:
    utils_test.check_bad_value_types(store)
    assert len(store) == 0


def test_closing(store: PmemDict) -> None:
    utils_test.check_closing(store)
    utils_test.check_closing(store)


def test_different_keys_from_two_threads(store: PmemDict) -> None:
    utils_test.check_different_keys_threadsafe(store)
    utils_test.check_mapping(store)


def test_one_key_from_four_threads(store: PmemDict) -> None:
    utils_test.check_same_key_threadsafe(store)
    utils_test.check_mapping(store)


# As a part of zict's other mappings --------------------------------------------------------------


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[PmemDict]:
    path = tmp_path / "slow"
    with PmemDict(path) as sound, PmemDict(path) as store:
        yield store  # which zict's mappings close
        assert sound.check() == []


def test_buffer_moves_values_there_and_back(slow: PmemDict) -> None:
    buffer: Any = zict.Buffer({}, slow, n=2, weight=lambda key, value: 1)
    for name in ("a", "b", "c"):
        buffer[name] = LARGE + name.encode()
    assert list(slow) == ["a"]
    assert bytes(buffer["a"]) == LARGE + b"a"
    assert sorted(buffer) == ["a", "b", "c"]
    assert len(slow) == 1
    del buffer["b"]
    assert sorted(buffer) == ["a", "c"]


def test_func_with_pickled_values(slow: PmemDict) -> None:
    values: Any = zict.Func(pickle.dumps, pickle.loads, slow)
    values[1, "x"] = {"any": ["thing"]}
    assert values[1.0, "x"] == {"any": ["thing"]}
    assert pickle.loads(slow[1, "x"]) == {"any": ["thing"]}


def test_cache(slow: PmemDict) -> None:
    cache: Any = zict.Cache(slow, {})
    cache["a"] = b"1"
    assert cache["a"] == b"1"
    assert slow["a"] == b"1"
    del cache["a"]
    assert "a" not in slow


def test_lru(slow: PmemDict) -> None:
    values: Any = zict.LRU(2, slow)
    for name in ("a", "b", "c"):
        values[name] = LARGE
    assert list(slow) == ["b", "c"]
    assert all(bytes(value) == LARGE for value in values.values())


def test_sieve(slow: PmemDict) -> None:
    fast: dict[Any, Any] = {}
    values: Any = zict.Sieve({True: slow, False: fast}, lambda key, value: len(value) > 100)
    values["a"], values["b"] = LARGE, b"small"
    assert (list(slow), list(fast)) == (["a"], ["b"])
    values["a"] = b"small now"
    assert list(slow) == []
    assert values["a"] == b"small now"


def test_async_buffer(slow: PmemDict) -> None:
    async def run() -> None:
        with zict.AsyncBuffer({}, slow, n=1, weight=lambda key, value: 1) as buffer:
            for name in ("a", "b", "c"):
                buffer[name] = LARGE + name.encode()
                while buffer.futures:
                    await asyncio.wait(buffer.futures)
            assert len(slow) == 2
            found = await buffer.async_get(["a", "b", "c"])
            assert {name: bytes(value)[-1:] for name, value in found.items()} == {
                "a": b"a",
                "b": b"b",
                "c": b"c",
            }

    asyncio.run(run())
