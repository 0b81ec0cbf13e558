"""PersistentObject: attributes where Python would look for them, and in the pool."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from pmshelve.errors import ClosedError, ObjectError, UnsupportedTypeError
from pmshelve.pmemobj import (
    Persistent,
    PersistentDict,
    PersistentList,
    PersistentObject,
    PersistentSet,
)
from pmshelve.pmemobj.layout import TYPE_CODE_SHIFT
from tests.support.pools import assert_nothing_leaked, assert_sound, objects

Make = Callable[..., Any]


class Account(PersistentObject):
    """One of everything a class can have."""

    calls: ClassVar[list[str]] = []
    currency = "EUR"
    __slots__ = ("slot",)

    def __init__(self, owner: str, balance: int = 0) -> None:
        self.calls.append("init")
        self.owner = owner
        self.balance = balance

    def _v__init__(self) -> None:
        self.calls.append("volatile init")
        self._v_cache = {"empty": True}

    def deposit(self, amount: int) -> None:
        self.balance += amount

    @property
    def cents(self) -> int:
        return self.balance * 100

    @cents.setter
    def cents(self, value: int) -> None:
        self.balance = value // 100

    @property
    def fixed(self) -> int:
        return 1

    @classmethod
    def kind(cls) -> str:
        return cls.__name__

    @staticmethod
    def add(one: int, other: int) -> int:
        return one + other


class Savings(Account):
    """A subclass with `__getattr__`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("get_"):
            return lambda: getattr(self, name[4:])
        raise AttributeError(f"no {name} here")


class Named:
    label = "none"

    def shout(self) -> str:
        return self.label.upper()


class Thing(PersistentObject, Named):
    """One that is mixed with a plain class."""


class Equal(PersistentObject):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture
def account(pool: Any) -> Any:
    Account.calls.clear()
    pool.root["account"] = pool.new(Account, "Ada", balance=5)
    return pool.root["account"]


def test_attributes_are_kept(pool: Any, make: Make, account: Any) -> None:
    account.deposit(10)
    account.children = pool.new(PersistentList, [account])
    account.__private = "mangled"
    pool.close()
    account = make().root["account"]
    assert type(account) is Account
    assert (account.owner, account.balance) == ("Ada", 15)
    assert account.children[0] is account
    assert account.__private == "mangled"


def test_the_initialisers(pool: Any, make: Make, account: Any) -> None:
    assert Account.calls == ["volatile init", "init"]
    pool.close()
    pool = make()
    assert pool.root["account"]._v_cache == {"empty": True}
    assert Account.calls == ["volatile init", "init", "volatile init"]


def test_without_an_initialiser_arguments_are_refused(pool: Any) -> None:
    assert pool.new(Thing) is not None
    with pytest.raises(TypeError):
        pool.new(Thing, 1)
    with pytest.raises(TypeError):
        pool.new(Account)


def test_the_class_s_own_attributes(account: Any) -> None:
    assert account.cents == 500
    account.cents = 900
    assert account.balance == 9
    assert account.kind() == "Account"
    assert account.add(1, 2) == 3
    assert account.fixed == 1
    with pytest.raises(AttributeError, match="fixed"):
        account.fixed = 2
    with pytest.raises(AttributeError):
        del account.cents
    account.slot = [1]
    assert account.slot == [1]
    del account.slot
    assert not hasattr(account, "slot")


def test_an_attribute_hides_the_class_s(pool: Any, make: Make, account: Any) -> None:
    assert account.currency == "EUR"
    account.currency = "CHF"
    account.deposit = "hidden"
    assert account.currency == "CHF"
    assert Account.currency == "EUR"
    pool.close()
    pool = make()
    account = pool.root["account"]
    assert account.currency == "CHF"
    assert account.deposit == "hidden"
    del account.currency, account.deposit
    assert account.currency == "EUR"
    account.deposit(1)
    with pytest.raises(AttributeError):
        del account.currency


def test_a_class_changed_later(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = pool.new(Thing)
    thing.later = 1
    monkeypatch.setattr(Thing, "other", "default", raising=False)
    assert thing.other == "default"
    monkeypatch.setattr(Thing, "later", property(lambda self: "computed"), raising=False)
    assert thing.later == "computed"


def test_missing_attributes(account: Any) -> None:
    for attempt in (
        lambda: account.nothing,
        lambda: delattr(account, "nothing"),
        lambda: account._v_no,
    ):
        with pytest.raises(AttributeError, match=r"nothing|_v_no"):
            attempt()
    assert getattr(account, "nothing", 5) == 5
    del account.owner
    with pytest.raises(AttributeError, match="'Account' object has no attribute 'owner'"):
        account.owner  # noqa: B018
    with pytest.raises(AttributeError):
        del account.owner


def test_getattr_of_the_class_is_asked_last(pool: Any) -> None:
    savings = pool.new(Savings, "Bob", 3)
    assert savings.get_balance() == 3
    with pytest.raises(AttributeError, match="no interest here"):
        savings.interest  # noqa: B018


def test_volatile_and_reserved_names(pool: Any, make: Make, account: Any) -> None:
    account._v_file = open  # cannot be persisted, and need not be
    account.__note__ = "volatile too"
    assert vars(account) == {
        "_v_cache": {"empty": True},
        "_v_file": open,
        "__note__": "volatile too",
    }
    del account._v_cache
    for attempt in (lambda: setattr(account, "_p_x", 1), lambda: delattr(account, "_p_mm")):
        with pytest.raises(AttributeError, match="reserved"):
            attempt()
    pool.close()
    account = make().root["account"]
    assert not hasattr(account, "_v_file")
    assert not hasattr(account, "__note__")


def test_dir_and_repr(pool: Any, account: Any) -> None:
    assert {"owner", "balance", "deposit", "cents", "_v_cache", "slot"} <= set(dir(account))
    assert repr(account) == "Account(owner='Ada', balance=5)"
    account.me = account
    assert repr(account) == "Account(owner='Ada', balance=5, me=Account(...))"
    assert repr(pool.new(Thing)) == "Thing()"
    assert dir(pool.new(Thing))


def test_mixing(pool: Any) -> None:
    thing = pool.new(Thing)
    assert thing.shout() == "NONE"
    thing.label = "some"
    assert thing.shout() == "SOME"
    with pytest.raises(TypeError):
        type("Both", (Thing, PersistentList), {})
    with pytest.raises(TypeError):
        type("Both", (PersistentDict, PersistentObject), {})
    methods = dict.fromkeys(("_p_new", "_p_resurrect", "_p_traverse", "_p_substructures"), len)
    for base in (type("Own", (Persistent,), dict(methods)), type("Duck", (), dict(methods))):
        with pytest.raises(TypeError, match="may not be mixed with any other Persistent type"):
            type("Both", (Thing, base), {})
    assert issubclass(type("Two", (Savings, Thing), {}), Thing)


def test_identity(pool: Any, account: Any) -> None:
    other = pool.new(Account, "Ada", 5)
    assert account != other
    assert account == pool.root["account"]
    assert len({account, other, pool.root["account"]}) == 2
    before = hash(account)
    del account
    pool.mm.identity.recent.clear()
    gc.collect()
    assert hash(pool.root["account"]) == before
    assert pool.new(Equal) == pool.new(Equal)


def test_only_in_a_pool(account: Any) -> None:
    with pytest.raises(ObjectError, match=r"pool\.new\(Account"):
        Account("Eve")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot pickle a Account"):
            attempt(account)


def test_a_class_defined_in_a_function_is_refused(pool: Any) -> None:
    class Local(PersistentObject):
        pass

    with pytest.raises(TypeError, match="defined in a function"):
        pool.new(Local)


def test_what_cannot_be_stored(pool: Any, account: Any) -> None:
    with pytest.raises(UnsupportedTypeError, match=r"builtins\.list"):
        account.balance = [1]
    assert account.balance == 5
    thing = pool.root["thing"] = pool.new(Thing)
    with pytest.raises(UnsupportedTypeError):
        thing.first = {}
    assert not hasattr(thing, "first")
    thing.first = 1
    assert thing.first == 1
    assert_sound(pool)


def test_an_abort_takes_attributes_back(pool: Any, account: Any) -> None:
    thing = pool.root["thing"] = pool.new(Thing)
    with pytest.raises(OSError, match="aborted"), pool.transaction():
        account.balance = 99
        account.currency = "CHF"
        account.new = "a string that takes a block of its own"
        del account.owner
        thing.label = "some"
        pool.transaction().abort()
    assert (account.owner, account.balance, account.currency) == ("Ada", 5, "EUR")
    assert not hasattr(account, "new")
    assert thing.shout() == "NONE"
    thing.label = "other"
    assert thing.shout() == "OTHER"
    assert_nothing_leaked(pool)


def test_freed_with_its_attributes(pool: Any) -> None:
    before = objects(pool)
    pool.root["a"] = pool.new(Account, "a name that takes a block of its own")
    pool.root["a"].items = pool.new(PersistentSet, [1, 2])
    del pool.root["a"]
    pool.mm.identity.recent.clear()
    gc.collect()
    pool.root["b"] = 1
    assert objects(pool) == before


def test_a_cycle_is_collected(pool: Any) -> None:
    before = objects(pool)
    one, other = pool.new(Thing), pool.new(Thing)
    one.other, other.other = other, one
    pool.root["one"] = one
    del pool.root["one"], one, other
    gc.collect()
    pool.gc()
    assert objects(pool) == before


def test_after_the_end_everything_is_refused(pool: Any, account: Any) -> None:
    pool.close()
    for attempt in (lambda: account.balance, lambda: account.deposit, lambda: setattr(account, "x", 1),
                    lambda: delattr(account, "owner"), lambda: dir(account)):  # fmt: skip
        with pytest.raises(ClosedError):
            attempt()
    assert account == account  # noqa: PLR0124


def test_the_words_are_those_of_the_format(pool: Any, account: Any) -> None:
    thing = pool.root["thing"] = pool.new(Thing)
    words = pool.mm.words
    assert words[thing._p_index + 1] == 0
    table = words[account._p_index + 1]
    assert words[table >> 3] == 17 << TYPE_CODE_SHIFT | 1
    plain = pool.root["plain"] = pool.new(PersistentObject)
    assert words[plain._p_index] == 22 << TYPE_CODE_SHIFT | 1
    for wrong in (8, plain._p_offset):
        with pytest.raises(OSError, match="aborted"), pool.transaction():
            pool.mm.snapshot_range(plain._p_oid, 16)
            words[plain._p_index + 1] = wrong
            found = [each[2] for each in PersistentObject._p_problems(pool.mm, plain._p_offset)]
            assert found == ["O1"]
            pool.transaction().abort()
