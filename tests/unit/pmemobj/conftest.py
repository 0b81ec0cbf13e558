"""Pools that must be sound when a test is through with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from tests.support.pools import assert_sound, without_syncs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.pool"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Any]]:
    """Make a function that opens the pool, made if need be; what it returns is checked and closed."""
    pools: list[Any] = []

    def open_pool(flag: str = "c", **options: Any) -> Any:
        options.setdefault("durability", "lazy")
        pool = pmemobj.PersistentObjectPool(path, flag, **options)
        pools.append(pool)
        return pool

    yield open_pool
    for pool in pools:
        if not pool.closed:
            assert_sound(pool)
            pool.close()


@pytest.fixture
def pool(make: Callable[..., Any]) -> Any:
    """An open pool whose root is an empty PersistentDict."""
    pool = make()
    pool.root = pool.new(pmemobj.PersistentDict)
    return pool


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here cuts the power: the syncs of a whole pool's tests would only take time."""
    if "test_pool" in request.node.nodeid:
        without_syncs(monkeypatch)
