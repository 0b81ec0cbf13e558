"""MmapDict against zict's own checks, under each of zict's mappings, and against a dict."""

from __future__ import annotations

import asyncio
import functools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

zict = pytest.importorskip("zict")
from zict.tests import utils_test  # noqa: E402

from pmshelve.mmapdict import runs  # noqa: E402
from pmshelve.zict_compat import MmapDict, mmap  # noqa: E402

LARGE = bytes(range(256)) * 1024
OPTIONS: dict[str, dict[str, Any]] = {
    "exclusive": {},
    "shared": {"exclusive": False},
    "scratch": {"scratch": True},
}


@pytest.fixture(params=OPTIONS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MmapDict]:
    with MmapDict(tmp_path / "store", **OPTIONS[request.param]) as store:
        yield store
        assert store.closed or store.check() == []


def test_mapping(store: MmapDict):
    utils_test.check_mapping(store)


def test_bad_key_types(store: MmapDict):
    utils_test.check_bad_key_types(store)
    assert len(store) == 0


def test_bad_value_types(store: MmapDict):
    utils_test.check_bad_value_types(store)
    assert len(store) == 0


def test_closing(store: MmapDict):
    utils_test.check_closing(store)
    utils_test.check_closing(store)


def test_different_keys_from_two_threads(store: MmapDict):
    utils_test.check_different_keys_threadsafe(store)
    utils_test.check_mapping(store)


def test_one_key_from_four_threads(store: MmapDict):
    utils_test.check_same_key_threadsafe(store)
    utils_test.check_mapping(store)


# As a part of zict's other mappings -----------------------------------------------------------


@pytest.fixture(params=OPTIONS)
def slow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MmapDict]:
    path, options = tmp_path / "slow", OPTIONS[request.param]
    with MmapDict(path, **options) as sound, MmapDict(path, **options) as store:
        yield store  # which zict's mappings close
        assert sound.check() == []


def test_buffer(slow: MmapDict):
    spilled: list[Any] = []
    buffer: Any = zict.Buffer(
        {}, slow, n=2, weight=lambda key, value: 1,
        fast_to_slow_callbacks=lambda key, value: spilled.append(key),
    )  # fmt: skip
    for name in ("a", "b", ("c", 0)):
        buffer[name] = LARGE + repr(name).encode()
    assert list(slow) == spilled == ["a"]
    assert buffer["a"] == LARGE + b"'a'"
    assert set(buffer) == {"a", "b", ("c", 0)}
    assert len(slow) == 1
    del buffer["b"]
    assert set(buffer) == {"a", ("c", 0)}
    buffer.evict_until_below_target(0)
    assert (len(slow), len(buffer.fast)) == (2, 0)
    buffer.close()
    assert slow.closed


def test_func(slow: MmapDict):
    values: Any = zict.Func(pickle.dumps, pickle.loads, slow)
    values[1, "x"] = {"any": ["thing"]}
    assert values[1.0, "x"] == {"any": ["thing"]}
    values.update({"y": [LARGE], "z": None})
    assert dict(values.items()) == {(1, "x"): {"any": ["thing"]}, "y": [LARGE], "z": None}


def test_func_with_dask_serialiser(slow: MmapDict):
    protocol = pytest.importorskip("distributed.protocol")
    numpy = pytest.importorskip("numpy")
    dump = functools.partial(protocol.serialize_bytelist, on_error="raise")
    values: Any = zict.Func(dump, protocol.deserialize_bytes, slow)
    for size in (1, 1000, 100_000):
        array = numpy.arange(size)
        values["array", size] = array
        found = values["array", size]
        assert (found == array).all()
        assert found.flags.writeable
        found[:] = 0
        assert (values["array", size] == array).all()


def test_cache(slow: MmapDict):
    cache: Any = zict.Cache(slow, {})
    cache["a"] = b"1"
    assert cache["a"] == slow["a"] == b"1"
    cache["b"] = LARGE
    cache.cache.clear()
    assert cache["b"] == slow["b"] == LARGE
    del cache["a"]
    assert "a" not in slow


def test_lru(slow: MmapDict):
    evicted: list[Any] = []
    values: Any = zict.LRU(2, slow, on_evict=lambda key, value: evicted.append((key, len(value))))
    for name in ("a", "b", "c"):
        values[name] = LARGE
    assert list(slow) == ["b", "c"]
    assert evicted == [("a", len(LARGE))]
    assert all(value == LARGE for value in values.values())


def test_sieve(slow: MmapDict):
    fast: dict[Any, Any] = {}
    values: Any = zict.Sieve({True: slow, False: fast}, lambda key, value: len(value) > 100)
    values["a"], values["b"] = LARGE, b"small"
    assert (list(slow), list(fast)) == (["a"], ["b"])
    values["a"] = b"small now"
    assert list(slow) == []
    assert values["a"] == b"small now"


def test_async_buffer(slow: MmapDict):
    async def run() -> None:
        with zict.AsyncBuffer({}, slow, n=1, weight=lambda key, value: 1) as buffer:
            for name in ("a", "b", "c"):
                buffer[name] = LARGE + name.encode()
                while buffer.futures:
                    await asyncio.wait(buffer.futures)
            assert len(slow) == 2
            found = await buffer.async_get(["a", "b"])
            assert {key: bytes(value) for key, value in found.items()} == {
                "a": LARGE + b"a",
                "b": LARGE + b"b",
            }

    asyncio.run(run())


# Against a dict -------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["a", "b", "", 1, 1.0, True, 0, 2.5, None, b"a", ("a", 1), ("a", 1.0), (None,)]
)
SIZES = st.sampled_from(
    [0, 1, 300, 4000, 5000, mmap.SMALL_MAX, mmap.SMALL_MAX + 1, 70_000, 200_000]
)


class AgainstDict(RuleBasedStateMachine):
    """Any history of calls leaves what it leaves in a dict; buffers stay as their holders have them."""

    directory: Path
    count = 0

    @initialize(options=st.sampled_from(list(OPTIONS.values())))
    def start(self, options: dict[str, Any]) -> None:
        type(self).count += 1
        self.path = self.directory / f"store-{self.count}"
        self.options = options
        self.store = MmapDict(self.path, **options)
        self.model: dict[Any, bytes] = {}
        self.held: list[tuple[Any, bytes]] = []

    @rule(key=KEYS, size=SIZES, fill=st.integers(1, 255), parts=st.integers(0, 3))
    def set(self, key: Any, size: int, fill: int, parts: int) -> None:
        data = bytes([fill]) * size
        cut = size // 3
        self.store[key] = [data[:cut], bytearray(data[cut:])][:parts] if parts == 2 else data
        self.model.pop(key, None)  # so that it comes last
        self.model[key] = data

    @rule(key=KEYS)
    def get(self, key: Any) -> None:
        found = self.store.get(key)
        assert found == self.model.get(key)
        assert (key in self.store) is (key in self.model)

    @rule(key=KEYS)
    def hold(self, key: Any) -> None:
        if key in self.model:
            found = self.store[key]
            if len(found):
                found[0] = 0
            self.held.append((found, b"\0" + self.model[key][1:] if len(found) else b""))

    @rule()
    def let_go(self) -> None:
        del self.held[: len(self.held) // 2 + 1]

    @rule(key=KEYS)
    def delete(self, key: Any) -> None:
        if key in self.model:
            del self.store[key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.store[key]

    @rule(key=KEYS)
    def pop(self, key: Any) -> None:
        assert self.store.pop(key, None) == self.model.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.model.clear()

    @rule()
    def sync(self) -> None:
        self.store.sync()

    @precondition(lambda self: "scratch" not in self.options)
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = MmapDict(self.path, **self.options)

    @rule()
    def share(self) -> None:
        other = pickle.loads(pickle.dumps(self.store))
        assert dict(other.items()) == self.model
        other.close()

    @invariant()
    def same(self) -> None:
        if hasattr(self, "store"):
            assert list(self.store) == list(self.model)
            assert len(self.store) == len(self.model)
            assert all(found == expected for found, expected in self.held)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert dict(self.store.items()) == self.model
            assert self.store.check() == []
            assert all(found == expected for found, expected in self.held)
            self.held.clear()
            self.store.close()


def test_any_history_is_that_of_a_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from hypothesis.stateful import run_state_machine_as_test

    for name, value in (("WARM_SIZE", 1 << 15), ("WASTE_MIN", 1 << 16), ("RESTART_SIZE", 1 << 18)):
        monkeypatch.setattr(mmap, name, value)
    monkeypatch.setattr(runs, "GAIN_MIN", 300)
    AgainstDict.directory = tmp_path
    run_state_machine_as_test(AgainstDict)
