"""zarr's own checks of a store, and its state machines, over `MmapDictStore`."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

pytest.importorskip("zarr", minversion="3.1")

from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import Buffer, cpu
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

from pmshelve.mmapdict import mmapdict
from pmshelve.zarr_compat import MmapDictStore
from tests.conftest import Profile


def in_a_loop(test: Callable[..., Any]) -> Callable[..., Any]:
    """Return a coroutine function as one that runs it."""

    @functools.wraps(test)
    def run(*arguments: Any, **names: Any) -> None:
        asyncio.run(test(*arguments, **names))

    return run


class TestMmapDictStore(StoreTests[MmapDictStore, cpu.Buffer]):
    store_cls = MmapDictStore
    buffer_cls = cpu.Buffer

    # What goes around the store uses the file itself, opened for the moment.

    async def set(self, store: MmapDictStore, key: str, value: Buffer) -> None:
        with mmapdict(store.path) as file:
            file[key] = value.to_bytes()

    async def get(self, store: MmapDictStore, key: str) -> Buffer:
        with mmapdict(store.path, readonly=True) as file:
            return self.buffer_cls.from_bytes(file[key])

    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        path = tmp_path / "store.mmdpickle"
        mmapdict(path).close()  # what is opened read-only must exist
        return {"path": path}

    @pytest.fixture
    def store(self, open_kwargs: dict[str, Any]) -> Iterator[MmapDictStore]:
        store = asyncio.run(self.store_cls.open(**open_kwargs))
        yield store
        store.close()

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> Iterator[MmapDictStore]:
        store = self.store_cls(**store_kwargs)
        yield store
        store.close()

    def test_store_repr(self, store: MmapDictStore) -> None:
        assert repr(store) == f"MmapDictStore('mmapdict://{store.path}')"

    def test_store_supports_writes(self, store: MmapDictStore) -> None:
        assert store.supports_writes
        assert store.supports_deletes

    def test_store_supports_listing(self, store: MmapDictStore) -> None:
        assert store.supports_listing


for _name, _test in inspect.getmembers(StoreTests, inspect.iscoroutinefunction):
    if _name.startswith("test_"):
        setattr(TestMmapDictStore, _name, in_a_loop(_test))


@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
@pytest.mark.parametrize("machine", [ZarrStoreStateMachine, ZarrHierarchyStateMachine])
def test_zarrs_state_machines(machine: Any, tmp_path: Path, profile: Profile) -> None:
    made = []

    def make() -> Any:
        made.append(MmapDictStore(tmp_path / f"{len(made)}.mmdpickle"))
        return machine(made[-1])

    settings = hypothesis.settings(max_examples=6 * profile.factor, stateful_step_count=20)
    try:
        run_state_machine_as_test(make, settings=settings)
    finally:
        for store in made:
            store.close()
    assert len(made) >= 6
    for store in made:
        with mmapdict(store.path, readonly=True) as file:
            assert file.check() == []
