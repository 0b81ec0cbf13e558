"""Classes of one's own in a pool."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
from known import assert_type

from pmshelve import pmemobj
from pmshelve.pmemobj import (
    MemoryManager,
    Persistent,
    PersistentArray,
    PersistentList,
    PersistentObject,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


class Account(PersistentObject):
    owner: str
    balance: int
    rate: float = 0.5

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.owner = owner
        self.balance = balance

    def add(self, amount: int) -> Account:
        self.balance += amount
        return self

    @property
    def interest(self) -> float:
        return self.balance * self.rate


class Box(PersistentObject, Generic[T]):
    content: T

    def __init__(self, content: T) -> None:
        self.content = content


class Names(PersistentList[str]):
    def longest(self) -> str:
        return max(self, key=len)


class Counter(Persistent):
    """By the protocol, without PersistentObject."""

    def _p_new(self, manager: MemoryManager) -> None:
        self._p_resurrect(manager, manager.zalloc(16))

    def _p_resurrect(self, manager: MemoryManager, oid: tuple[int, int]) -> None:
        self._p_mm = manager
        self._p_oid = oid

    def _p_traverse(self) -> Iterable[tuple[int, int]]:
        return ()

    def _p_substructures(self) -> Iterable[tuple[int, int]]:
        return ()

    def add(self, number: int) -> None:
        manager = self._p_mm
        with manager.operation:
            manager.snapshot_range(self._p_oid, 8, offset=8)
            manager.signed[self._p_oid[1] // 8 + 1] += number

    @property
    def value(self) -> int:
        return self._p_mm.signed[self._p_oid[1] // 8 + 1]


with pmemobj.create("a.pool") as pool:
    account = pool.new(Account, "ada", balance=3)
    assert_type(account, Account)
    assert_type(account.owner, str)
    assert_type(account.add(2).balance, int)
    assert_type(account.interest, float)
    assert_type(account == account.add(1), bool)

    assert_type(pool.new(Box[int], 3).content, int)
    assert_type(pool.new(Box, "text"), Box[str])

    names = pool.new(Names, ["ada", "bob"])
    assert_type(names, Names)
    assert_type(names.longest(), str)
    assert_type(pool.new(Names), Names)

    counter = pool.new(Counter)
    counter.add(3)
    assert_type(counter.value, int)

    samples = pool.new(PersistentArray, np.arange(6.0))
    assert_type(samples, PersistentArray)
    assert_type(samples.shape, tuple[int, ...])
    view: NDArray[np.float64] = samples.view()
    del view
    samples[1:3] = [7, 8]
    samples += 1
    assert_type(samples, PersistentArray)
    samples.fill(2)
    samples.sort()
    samples.resize(8)
    with samples.writable() as window:
        window[:] = 3
    zeros = pool.new(PersistentArray, shape=(3, 4), dtype="i4", order="F")
    assert_type(len(zeros), int)
    assert (np.asarray(samples) == 3).all()
    pool.persist_via_pickle(range)
    pool.root = account
