"""PersistentDict against dict: every operation, in transactions and out of them, killed and reopened."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from pmshelve.pmemobj import PersistentDict
from tests.support.poolmachine import PoolMachine
from tests.support.pools import plain


class Number(enum.IntEnum):
    """Equal to ints, and stored as what it is."""

    ONE = 1
    SEVEN = 7


LONG = "a key that takes a block of its own"

_KEYS = st.one_of(
    st.integers(-3, 12),
    st.integers(0, 400),
    st.text(max_size=3),
    st.sampled_from(
        [
            *(None, True, 1.0, -0.0, 0.5, 7.0, 1 + 0j, 2j, 1 << 70, float(1 << 70), b"", b"a", "a"),
            *((), (1,), (1.0,), (True, (1,)), frozenset(), frozenset({1, (2,)}), LONG),
            *(decimal.Decimal(1), decimal.Decimal("0.5"), fractions.Fraction(1, 2)),
            *(Number.ONE, Number.SEVEN, datetime.date(2020, 1, 1), (datetime.date(2020, 1, 1), 1)),
            *(range(3), datetime.timedelta(1), frozenset({datetime.timedelta(1)})),
        ]
    ),
)
_VALUES = st.one_of(
    st.none(),
    st.integers(-5, 5),
    st.text(max_size=20),
    st.sampled_from([1 << 70, (), (1, ("two",)), "a string that takes a block of its own"]),
)
_DICTS = st.dictionaries(_KEYS, _VALUES, max_size=8) | st.integers(0, 300).map(
    lambda count: {number: str(number) for number in range(count)}
)


class DictMachine(PoolMachine):
    @initialize(content=_DICTS)
    def make(self, content: dict[Any, Any]) -> None:
        self.start(self.pool.new(PersistentDict, content), dict(content))

    def compare(self) -> None:
        found = list(plain(self.thing).items())
        expected = list(self.model.items())
        assert found == expected
        assert _types(found) == _types(expected)
        assert len(self.thing) == len(self.model)

    def assert_equal(self, found: Any, expected: Any) -> None:
        assert found == expected
        assert _types(_plain(found)) == _types(expected)

    @rule(key=_KEYS, value=_VALUES)
    def set(self, key: Any, value: Any) -> None:
        self.both(lambda x: x.__setitem__(key, value))

    @rule(key=_KEYS)
    def get(self, key: Any) -> None:
        self.both(lambda x: x[key])
        self.both(lambda x: [x.get(key), x.get(key, 5), key in x])

    @rule(key=_KEYS)
    def delete(self, key: Any) -> None:
        self.both(lambda x: x.__delitem__(key))

    @rule(key=_KEYS, value=_VALUES)
    def pop(self, key: Any, value: Any) -> None:
        self.both(lambda x: x.pop(key))
        self.both(lambda x: x.pop(key, value))

    @rule(count=st.integers(1, 3))
    def popitem(self, count: int) -> None:
        for _ in range(count):
            self.both(lambda x: x.popitem())

    @rule(key=_KEYS, value=_VALUES)
    def setdefault(self, key: Any, value: Any) -> None:
        self.both(lambda x: x.setdefault(key, value))

    @rule(content=_DICTS)
    def update(self, content: dict[Any, Any]) -> None:
        self.both(lambda x: x.update(content))

    @rule(content=_DICTS, value=_VALUES)
    def update_with_pairs_and_keywords(self, content: dict[Any, Any], value: Any) -> None:
        self.both(lambda x: x.update(iter(list(content.items())), key=value))

    @rule(content=_DICTS)
    def unite(self, content: dict[Any, Any]) -> None:
        self.both(lambda x: x.__ior__(content) and None)
        self.both(lambda x: [x | content, content | x])

    @rule()
    def empty_from_the_front(self) -> None:
        self.both(lambda x: [x.pop(key) for key in list(x)[: len(x) * 3 // 4]])

    @rule()
    def clear(self) -> None:
        self.both(lambda x: x.clear())

    @rule(content=_DICTS)
    def initialise(self, content: dict[Any, Any]) -> None:
        self.thing.__init__(content)
        self.model = dict(content)

    @rule()
    def look(self) -> None:
        self.both(lambda x: [list(x), list(reversed(x)), list(x.values()), list(x.items())])
        self.both(lambda x: [x == self.model, self.model == x, x != {1: 2}])

    @rule(key=_KEYS, value=_VALUES)
    def change_while_iterating(self, key: Any, value: Any) -> None:
        def change(whole: Any) -> list[Any]:
            seen = []
            for each in whole:
                seen.append(each)
                if len(seen) == 2:
                    whole[key] = value
            return seen

        before = self.copy_model()
        try:
            expected = change(self.model)
        except RuntimeError:
            expected = None
        try:
            found = change(self.thing)
        except RuntimeError:
            found = None
        assert plain(found) == expected
        assert len(before) <= len(self.model)

    @rule(key=_KEYS)
    def nest(self, key: Any) -> None:
        def put(whole: Any) -> None:
            persistent = isinstance(whole, PersistentDict)
            whole[key] = self.pool.new(PersistentDict, {"in": 1}) if persistent else {"in": 1}

        self.both(put)

    @rule(key=_KEYS, content=_DICTS)
    def fail_in_the_middle(self, key: Any, content: dict[Any, Any]) -> None:
        """Steps that a dict would take, but not one that is persisted."""
        before = list(plain(self.thing).items())
        for attempt in (
            lambda: self.thing.__setitem__(key, [1]),
            lambda: self.thing.__setitem__(object(), 1),
            lambda: self.thing.update([*content.items(), (key, {})]),
            lambda: self.thing.update(content, wrong=set()),
            lambda: self.thing.__setitem__([], 1),
            lambda: self.thing.__init__({**content, key: object()}),
        ):
            try:
                attempt()
            except TypeError:
                pass
            else:
                raise AssertionError("it was taken")
        assert list(plain(self.thing).items()) == before


def _plain(value: Any) -> Any:
    """Return the plain value of a result, which may be a plain collection of persistent ones."""
    if type(value) in (list, tuple):
        return type(value)(_plain(each) for each in value)
    return plain(value)


def _types(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value), [_types(each) for each in value]
    return type(value)


TestDictMachine = DictMachine.TestCase
