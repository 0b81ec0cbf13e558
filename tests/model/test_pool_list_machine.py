"""PersistentList against list: every operation, in transactions and out of them, killed and reopened."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from pmshelve.pmemobj import PersistentList
from tests.support.poolmachine import PoolMachine
from tests.support.pools import plain

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.sampled_from(
        [(), (1, ("two", b"three")), "a string that takes a block of its own", 1 << 70]
    ),
)
_LISTS = st.one_of(
    st.lists(_SCALARS, max_size=6),
    st.lists(st.integers(-(1 << 65), 1 << 65), max_size=40),
    st.lists(st.integers(0, 9), min_size=9, max_size=60),
    st.lists(st.floats(allow_nan=False), min_size=9, max_size=60),
    st.integers(0, 400).map(lambda n: list(range(n))),
)
_INDEXES = st.integers(-8, 8) | st.integers(-70, 70)
_BOUNDS = st.none() | _INDEXES
_SLICES = st.builds(slice, _BOUNDS, _BOUNDS, st.sampled_from([None, None, 1, 2, 3, -1, -2, -7, 0]))


class ListMachine(PoolMachine):
    @initialize(values=_LISTS)
    def make(self, values: list[Any]) -> None:
        self.start(self.pool.new(PersistentList, values), list(values))

    def compare(self) -> None:
        found = plain(self.thing)
        assert found == self.model
        assert _types(found) == _types(self.model)
        assert self.thing == self.model
        assert self.model == self.thing
        assert len(self.thing) == len(self.model)

    def assert_equal(self, found: Any, expected: Any) -> None:
        assert _types(found) == _types(expected)
        assert found == expected

    def nest(self, whole: Any, values: list[Any]) -> Any:
        """Return a list to be put into `whole`: a persistent one into a persistent one."""
        return values[:] if isinstance(whole, list) else self.pool.new(PersistentList, values)

    @rule(value=_SCALARS)
    def append(self, value: Any) -> None:
        self.both(lambda x: x.append(value))

    @rule(index=_INDEXES, value=_SCALARS)
    def insert(self, index: int, value: Any) -> None:
        self.both(lambda x: x.insert(index, value))

    @rule(index=_INDEXES, values=_LISTS)
    def insert_a_list(self, index: int, values: list[Any]) -> None:
        self.both(lambda x: x.insert(index, self.nest(x, values)))

    @rule(index=_INDEXES, value=_SCALARS)
    def change_a_nested_list(self, index: int, value: Any) -> None:
        def change(whole: Any) -> None:
            inner = whole[index]
            if isinstance(inner, list | PersistentList):
                inner.append(value)

        self.both(change)

    @rule(index=_INDEXES)
    def share(self, index: int) -> None:
        """Put the same object into the list a second time; the model's stays one object too."""
        self.both(lambda x: x.append(x[index]))

    @rule(values=_LISTS)
    def extend(self, values: list[Any]) -> None:
        self.both(lambda x: x.extend(values))
        self.both(lambda x: x.__iadd__(iter(values)) and None)

    @rule()
    def extend_by_itself(self) -> None:
        if len(self.model) < 200:
            self.both(lambda x: x.extend(x))

    @rule(count=st.integers(-1, 3))
    def multiply(self, count: int) -> None:
        self.both(lambda x: x * count)
        if len(self.model) < 200:
            self.both(lambda x: x.__imul__(count) and None)

    @rule(index=_INDEXES)
    def get(self, index: int) -> None:
        self.both(lambda x: x[index])

    @rule(where=_SLICES)
    def get_slice(self, where: slice) -> None:
        self.both(lambda x: x[where])

    @rule(index=_INDEXES, value=_SCALARS)
    def set(self, index: int, value: Any) -> None:
        self.both(lambda x: x.__setitem__(index, value))

    @rule(where=_SLICES, values=_LISTS)
    def set_slice(self, where: slice, values: list[Any]) -> None:
        self.both(lambda x: x.__setitem__(where, values))

    @rule(where=_SLICES, value=_SCALARS)
    def set_slice_of_the_same_size(self, where: slice, value: Any) -> None:
        self.both(lambda x: x.__setitem__(where, [value] * len(x[where])))

    @rule(where=_SLICES)
    def set_slice_to_itself(self, where: slice) -> None:
        if len(self.model) < 200:
            self.both(lambda x: x.__setitem__(where, x))

    @rule(index=_INDEXES)
    def delete(self, index: int) -> None:
        self.both(lambda x: x.__delitem__(index))

    @rule(where=_SLICES)
    def delete_slice(self, where: slice) -> None:
        self.both(lambda x: x.__delitem__(where))

    @rule(index=_INDEXES)
    def pop(self, index: int) -> None:
        self.both(lambda x: x.pop(index))
        self.both(lambda x: x.pop())

    @rule(value=_SCALARS, start=_INDEXES, stop=_INDEXES)
    def find(self, value: Any, start: int, stop: int) -> None:
        self.both(lambda x: (x.index(value, start, stop), x.count(value)))
        self.both(lambda x: (value in x, x.count(value)))

    @rule(value=_SCALARS)
    def remove(self, value: Any) -> None:
        self.both(lambda x: x.remove(value))

    @rule()
    def reverse(self) -> None:
        self.both(lambda x: x.reverse())

    @rule(reverse=st.booleans())
    def sort(self, reverse: bool) -> None:
        self.both(lambda x: x.sort(key=lambda item: str(plain(item)), reverse=reverse))

    @rule()
    def sort_what_may_have_no_order(self) -> None:
        self.both(lambda x: x.sort())

    @rule()
    def clear(self) -> None:
        self.both(lambda x: x.clear())

    @rule(values=_LISTS)
    def initialise(self, values: list[Any]) -> None:
        self.both(lambda x: x.__init__(values))

    @rule(index=_INDEXES, values=_LISTS)
    def fail_in_the_middle(self, index: int, values: list[Any]) -> None:
        """Steps that a list would take, but not one that is persisted."""
        before = plain(self.thing)
        for attempt in (
            lambda: self.thing.append([1]),
            lambda: self.thing.extend([*values, {}]),
            lambda: self.thing.__setitem__(slice(index, None), [*values, set()]),
            lambda: self.thing.insert(index, object()),
            lambda: self.thing.sort(key=lambda item: 1 // 0),
        ):
            try:
                attempt()
            except (TypeError, ZeroDivisionError):
                pass
            else:
                assert not before, "only sorting nothing may succeed"
        assert plain(self.thing) == before

    @rule()
    def iterate(self) -> None:
        self.both(lambda x: [list(x), list(reversed(x))])

    @rule()
    def copy(self) -> None:
        self.both(lambda x: x.copy())

    @rule(values=_LISTS)
    def compare_with(self, values: list[Any]) -> None:
        self.both(lambda x: [x == values, x != values])
        self.both(lambda x: x < values)
        self.both(lambda x: x >= values)


def _types(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, list | tuple):
        return type(value), [_types(each) for each in value]
    return type(value)


TestListMachine = ListMachine.TestCase
