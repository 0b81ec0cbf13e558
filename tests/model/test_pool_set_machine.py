"""PersistentSet against set: every operation, in transactions and out of them, killed and reopened."""

from __future__ import annotations

import datetime
import fractions
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from pmshelve.pmemobj import PersistentSet
from tests.support.poolmachine import PoolMachine
from tests.support.pools import plain

_ELEMENTS = st.one_of(
    st.integers(-3, 30),
    st.text(max_size=3),
    st.sampled_from(
        [
            *(None, 1.0, 0.5, 1 + 0j, 1 << 70, b"a", (), (1, (2.0,)), frozenset(), frozenset({1})),
            *(frozenset({frozenset({1}), (frozenset(),)}), "an element with a block of its own"),
            *(fractions.Fraction(1, 2), datetime.date(2020, 1, 1), range(2)),
        ]
    ),
)
_SETS = st.frozensets(_ELEMENTS, max_size=8) | st.integers(0, 300).map(
    lambda count: frozenset(range(count))
)


class SetMachine(PoolMachine):
    @initialize(content=_SETS)
    def make(self, content: frozenset[Any]) -> None:
        self.start(self.pool.new(PersistentSet, content), set(content))

    def compare(self) -> None:
        found = plain(self.thing)
        assert found == self.model
        # Which of two equal elements (1 and 1.0) an intersection keeps, no set promises.
        assert set(found) == set(self.model)
        assert len(self.thing) == len(self.model)

    def assert_equal(self, found: Any, expected: Any) -> None:
        assert plain(found) == expected
        assert type(found) is type(expected)

    @rule(element=_ELEMENTS)
    def add(self, element: Any) -> None:
        self.both(lambda x: x.add(element))

    @rule(element=_ELEMENTS)
    def remove(self, element: Any) -> None:
        self.both(lambda x: x.remove(element))

    @rule(element=_ELEMENTS)
    def discard(self, element: Any) -> None:
        self.both(lambda x: (x.discard(element), x.add(element), x.discard(element)))

    @rule(content=_SETS)
    def find(self, content: frozenset[Any]) -> None:
        self.both(lambda x: [each in x for each in content])
        self.both(lambda x: [set(content) in x, content in x])

    @rule()
    def pop(self) -> None:
        if self.model:
            self.model.remove(plain(self.thing.pop()))
        else:
            self.both(lambda x: x.pop())

    @rule()
    def clear(self) -> None:
        self.both(lambda x: x.clear())

    @rule(content=_SETS, other=_SETS)
    def update(self, content: frozenset[Any], other: frozenset[Any]) -> None:
        self.both(lambda x: x.update(content, list(other)))

    @rule(content=_SETS, name=st.sampled_from(["ior", "iand", "isub", "ixor"]))
    def change_in_place(self, content: frozenset[Any], name: str) -> None:
        # which of two equal elements stays is nobody's promise
        content = frozenset(each for each in content if type(each) in (int, str, tuple))
        operation = f"__{name}__"
        self.both(lambda x: getattr(x, operation)(content) and None)

    @rule(name=st.sampled_from(["ior", "iand", "isub", "ixor"]))
    def change_by_itself(self, name: str) -> None:
        self.both(lambda x: getattr(x, f"__{name}__")(x) and None)

    @rule(content=_SETS, other=_SETS)
    def change_by_method(self, content: frozenset[Any], other: frozenset[Any]) -> None:
        self.both(lambda x: x.difference_update(content, list(other)))
        self.both(lambda x: x.intersection_update(frozenset(x) | content))

    @rule(content=_SETS)
    def derive(self, content: frozenset[Any]) -> None:
        self.both(lambda x: x | content)
        self.both(lambda x: content | x)
        self.both(lambda x: content - x)
        self.both(lambda x: x - set(content))
        self.both(lambda x: x ^ content)
        self.both(lambda x: x.union(content, [1]))
        self.both(lambda x: len(x & content))
        self.both(lambda x: x | list(content))

    @rule(content=_SETS)
    def compare_with(self, content: frozenset[Any]) -> None:
        for other in (content, self.model | content, self.model - content):
            self.both(lambda x: (x == other, x <= other, x < other, x >= other, x > other))
            self.both(lambda x: (x.isdisjoint(other), x.issubset(other), x.issuperset(list(other))))
            self.both(lambda x: (other == x, other <= x, other > x))

    @rule(content=_SETS)
    def initialise(self, content: frozenset[Any]) -> None:
        self.both(lambda x: x.__init__(content))

    @rule(content=_SETS)
    def fail_in_the_middle(self, content: frozenset[Any]) -> None:
        """Steps that a set would take, but not one that is persisted."""
        before = plain(self.thing)
        for attempt in (
            lambda: self.thing.add(object()),
            lambda: self.thing.add([]),
            lambda: self.thing.update(content, [object()]),
            lambda: self.thing.symmetric_difference_update([*content, object()]),
            lambda: self.thing.__init__([*content, {}]),
        ):
            try:
                attempt()
            except TypeError:
                pass
            else:
                raise AssertionError("it was taken")
        assert plain(self.thing) == before


TestSetMachine = SetMachine.TestCase
