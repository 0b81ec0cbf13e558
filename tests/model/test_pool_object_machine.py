"""PersistentObject against an ordinary object of the same shape, in transactions, killed and reopened."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from pmshelve.pmemobj import PersistentList, PersistentObject
from tests.support.poolmachine import PoolMachine
from tests.support.pools import plain

_NAMES = st.sampled_from(
    ["a", "b", "_private", "default", "method", "computed", "fixed", "é", "x" * 40]
)
_VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=20),
    st.sampled_from([(), (1, ("two",)), "a string that takes a block of its own", 1 << 70]),
)


class _Shape:
    """The class both have in common."""

    default = "default"

    def method(self) -> Any:
        return "method"

    @property
    def computed(self) -> Any:
        return getattr(self, "behind", "nothing")

    @computed.setter
    def computed(self, value: Any) -> None:
        self.behind = value

    @computed.deleter
    def computed(self) -> None:
        del self.behind

    @property
    def fixed(self) -> Any:
        return 1

    def __getattr__(self, name: str) -> Any:
        if name == "é":
            return "from getattr"
        raise AttributeError(name)


class Model(_Shape):
    """An ordinary object."""


class Thing(_Shape, PersistentObject):
    """A persistent one."""


class ObjectMachine(PoolMachine):
    @initialize()
    def make(self) -> None:
        self.start(self.pool.new(Thing), Model())

    def compare(self) -> None:
        expected = vars(self.model)
        assert self.thing._p_known() == expected.keys()
        for name, value in expected.items():
            found = plain(getattr(self.thing, name))
            if name in ("default", "method") or not hasattr(type(self.thing), name):
                assert found == value
                assert type(found) is type(value)
        assert [name for name in dir(self.thing) if name in expected] == sorted(expected)
        assert self.thing is self.pool.root
        assert self.thing.fixed == 1

    def assert_equal(self, found: Any, expected: Any) -> None:
        if callable(expected) and not isinstance(expected, type):
            found, expected = found(), expected()
        assert plain(found) == expected

    @rule(name=_NAMES, value=_VALUES)
    def set(self, name: str, value: Any) -> None:
        self.both(lambda x: setattr(x, name, value))

    @rule(name=_NAMES, values=st.lists(_VALUES, max_size=3))
    def set_to_a_list(self, name: str, values: list[Any]) -> None:
        def change(x: Any) -> None:
            setattr(
                x, name, self.pool.new(PersistentList, values) if x is self.thing else values[:]
            )

        self.both(change)

    @rule(name=_NAMES, value=_VALUES)
    def change_a_list(self, name: str, value: Any) -> None:
        def change(x: Any) -> None:
            inner = getattr(x, name)
            if isinstance(inner, list | PersistentList):
                inner.append(value)

        self.both(change)

    @rule(name=_NAMES)
    def get(self, name: str) -> None:
        self.both(lambda x: getattr(x, name))
        self.both(lambda x: hasattr(x, name))

    @rule(name=_NAMES)
    def delete(self, name: str) -> None:
        self.both(lambda x: delattr(x, name))

    @rule(name=_NAMES)
    def fail(self, name: str) -> None:
        before = set(self.thing._p_known())
        for value in ([1], {2}, object()):
            try:
                setattr(self.thing, name, value)
            except (TypeError, AttributeError):
                continue
            raise AssertionError("a plain collection was stored")
        assert self.thing._p_known() == before

    @rule(value=st.integers())
    def set_volatile(self, value: int) -> None:
        self.thing._v_number = value
        assert self.thing._v_number == value
        assert vars(self.thing)["_v_number"] == value


TestObjectMachine = ObjectMachine.TestCase
