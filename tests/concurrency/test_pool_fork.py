"""A forked child may not use its parent's pool, and does it no harm by trying, or by ending."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pmshelve import pmemobj
from pmshelve.errors import ForkedError, LockTimeoutError
from pmshelve.pmemobj import PersistentDict, PersistentList
from tests.support.forks import finish, in_child, start
from tests.support.pools import assert_nothing_leaked, assert_sound


@pytest.fixture(params=["full", "lazy"])
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with pmemobj.create(tmp_path / "pool", durability=request.param) as pool:
        pool.root = pool.new(PersistentDict, {"list": pool.new(PersistentList, [1, 2, 3])})
        yield pool
        assert_nothing_leaked(pool)
        assert_sound(pool)


def refusals(pool: Any) -> list[str]:
    """Try all that writes; return what is raised."""
    found = []
    root = pool.root
    for attempt in (
        lambda: root.__setitem__("child", 1),
        lambda: root["list"].append(4),
        lambda: setattr(pool, "root", None),
        lambda: pool.new(PersistentList),
        lambda: pool.mm.persist("a text of more than fourteen bytes"),
        lambda: pool.transaction().begin(),
        lambda: pool.gc(),
        lambda: pool.sync(),
    ):
        try:
            attempt()
        except Exception as error:
            found.append(type(error).__name__)
        else:
            found.append("nothing")
    return found


def test_a_child_is_told_that_it_may_not_write(pool: Any) -> None:
    assert set(in_child(lambda: refusals(pool))) == {ForkedError.__name__}
    assert pool.root == {"list": [1, 2, 3]}
    pool.root["parent"] = 1
    assert_sound(pool)


def test_the_refusal_says_why(pool: Any) -> None:
    def child() -> str:
        with pytest.raises(ForkedError) as caught:
            pool.root["x"] = 1
        return str(caught.value)

    message = in_child(child)
    assert str(pool.filename) in message
    assert "process" in message


@pytest.mark.parametrize("way", ["close", "drop", "with", "exit"])
def test_the_childs_end_leaves_the_parents_pool_alone(pool: Any, way: str) -> None:
    def child() -> None:
        nonlocal pool
        if way == "close":
            pool.close()
            pool.close()
        elif way == "with":
            with pool:
                pass
        elif way == "drop":
            del pool
            gc.collect()

    content = Path(pool.filename).read_bytes()
    in_child(child)
    assert Path(pool.filename).read_bytes() == content
    with pytest.raises(LockTimeoutError):  # still locked
        pmemobj.open(pool.filename)
    pool.root["after"] = [0] and pool.new(PersistentList, [0])
    assert pool.root["after"] == [0]


def test_a_fork_within_a_transaction(pool: Any) -> None:
    with pool.transaction():
        pool.root["list"].append(4)

        def child() -> str:
            with contextlib.suppress(ForkedError):
                pool.root["child"] = 1
            try:
                pool.transaction().commit()
            except Exception as error:
                return type(error).__name__
            return "committed"

        content = Path(pool.filename).read_bytes()
        answer = in_child(child)
        assert answer != "committed"
        assert Path(pool.filename).read_bytes() == content
        pool.root["parent"] = 2
    assert pool.root == {"list": [1, 2, 3, 4], "parent": 2}


def test_a_child_may_open_other_pools_and_this_one_when_it_is_free(
    pool: Any, tmp_path: Path
) -> None:
    def child() -> list[int]:
        with pmemobj.create(tmp_path / "other") as other:
            other.root = other.new(PersistentList, [7])
        with pytest.raises(LockTimeoutError):
            pmemobj.open(pool.filename)
        with pmemobj.open(tmp_path / "other") as other:
            return list(other.root)

    assert in_child(child) == [7]


def test_the_lock_is_free_once_the_parent_has_closed(tmp_path: Path) -> None:
    """A child that lives on holds no lock."""
    path = tmp_path / "pool"
    parent = pmemobj.create(path)
    parent.root = 5
    go, went = os.pipe()

    def child() -> int:
        os.read(go, 1)
        with pmemobj.open(path) as own:
            value = own.root
            own.root = 6
            return int(value)

    waiting = start(child)
    parent.close()
    with pmemobj.open(path) as again:
        assert again.root == 5
    os.write(went, b"x")
    assert finish(waiting) == 5
    os.close(go)
    os.close(went)
    with pmemobj.open(path) as again:
        assert again.root == 6


def test_a_child_of_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    with pmemobj.create(path) as pool:
        pool.root = pool.new(PersistentList, range(100))
    with pmemobj.PersistentObjectPool(path, "r") as reader:
        outcome = in_child(lambda: _sum(reader))
        assert outcome in (4950, "ForkedError")
        assert sum(reader.root) == 4950
        with pytest.raises(LockTimeoutError):
            pmemobj.open(path)
    pmemobj.open(path).close()


def _sum(reader: Any) -> Any:
    try:
        return sum(reader.root)
    except ForkedError as error:
        return type(error).__name__


def test_many_forks_while_the_parent_writes(pool: Any, profile: Any) -> None:
    children = []
    for number in range(20 * profile.factor):
        pool.root[number] = str(number) * 20
        children.append(start(lambda: refusals(pool)))
        if len(children) > 4:
            assert set(finish(children.pop(0))) == {ForkedError.__name__}
    for child in children:
        assert set(finish(child)) == {ForkedError.__name__}
    assert len(pool.root) == 20 * profile.factor + 1
