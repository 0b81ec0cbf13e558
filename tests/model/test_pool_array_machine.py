"""PersistentArray against ndarray: every operation, in transactions, killed and reopened."""

from __future__ import annotations

import gc
import operator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from pmshelve.pmemobj import PersistentArray
from tests.support.poolmachine import PoolMachine

np = pytest.importorskip("numpy")

_DTYPES = st.sampled_from(["i4", ">i2", "f8", "f2", "c8", "?", "u1", "S3", "U2", "M8[s]"])
_SHAPES = st.one_of(
    st.tuples(),
    st.tuples(st.integers(0, 30)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
    st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(400, 900), st.integers(1, 3)),
)
_BOUNDS = st.none() | st.integers(-12, 12)
_PARTS = st.one_of(
    st.integers(-5, 5),
    st.builds(slice, _BOUNDS, _BOUNDS, st.sampled_from([None, 1, 2, -1, -3])),
    st.none(),
    st.just(...),
    st.lists(st.integers(-3, 3), max_size=4),
    st.booleans(),
    st.integers(-3, 3).map(np.int64),
)
_INDEXES = _PARTS | st.lists(_PARTS, max_size=3).map(tuple)
_NUMBERS = st.integers(0, 9)


def _array(shape: Any, dtype: Any, order: str, seed: int) -> Any:
    numbers = np.random.default_rng(seed).integers(0, 100, shape)
    return np.array(numbers.astype(dtype), order=order)  # type: ignore[call-overload]


_ARRAYS = st.builds(_array, _SHAPES, _DTYPES, st.sampled_from("CF"), _NUMBERS)


class ArrayMachine(PoolMachine):
    views: Any = ()

    @initialize(values=_ARRAYS)
    def make(self, values: Any) -> None:
        self.start(self.pool.new(PersistentArray, values), values.copy(order="K"))
        self.views = []

    def compare(self) -> None:
        view = self.thing.view()
        self.assert_equal(view, self.model)
        assert not view.flags.writeable
        if view.nbytes:
            assert view.__array_interface__["data"][0] % 64 == 0
            assert np.shares_memory(view, self.thing[...])

    def copy_model(self) -> Any:
        return self.model.copy(order="K")

    def assert_equal(self, found: Any, expected: Any) -> None:
        if isinstance(expected, type):
            assert found is expected
            return
        found, expected = np.asarray(found), np.asarray(expected)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()

    @invariant()
    def views_show_what_is_there(self) -> None:
        for view, index in self.views:
            self.assert_equal(view, self.thing[index])

    @rule(index=_INDEXES)
    def get(self, index: Any) -> None:
        self.both(lambda x: x[index])

    @rule(index=_INDEXES, number=_NUMBERS)
    def set(self, index: Any, number: int) -> None:
        self.both(lambda x: x.__setitem__(index, np.array(number).astype(x.dtype)))

    @rule(index=_INDEXES, other=_INDEXES)
    def set_to_a_part(self, index: Any, other: Any) -> None:
        self.both(lambda x: x.__setitem__(index, x[other]))

    @rule(
        number=_NUMBERS,
        operation=st.sampled_from(["iadd", "isub", "imul", "ifloordiv", "ipow", "ixor"]),
    )
    def change_in_place(self, number: int, operation: str) -> None:
        with np.errstate(all="ignore"):
            self.both(lambda x: getattr(operator, operation)(x, number) is x)

    @rule(number=_NUMBERS)
    def write_results_into_it(self, number: int) -> None:
        self.both(lambda x: np.maximum(x, number, out=x) is x)
        self.both(lambda x: np.add.at(x, 0, number))

    @rule(number=_NUMBERS, index=_INDEXES, fail=st.booleans())
    def write(self, number: int, index: Any, fail: bool) -> None:
        def change(x: Any) -> None:
            if x is self.thing:
                with x.writable() as elements:
                    change(elements)
                return
            x[index] = np.array(number).astype(x.dtype)
            if fail:
                raise ZeroDivisionError

        self.both(change)

    @rule()
    def sort(self) -> None:
        self.both(lambda x: x.sort())

    @rule(number=_NUMBERS)
    def fill(self, number: int) -> None:
        self.both(lambda x: x.fill(np.array(number).astype(x.dtype)))

    @rule(index=st.just(...) | st.integers(0, 3).map(lambda n: slice(n, None, 2)))
    def hold_a_view(self, index: Any) -> None:
        if self.model.ndim:
            self.views.append((self.thing[index], index))

    @rule()
    def drop_the_views(self) -> None:
        self.views.clear()

    @rule(length=st.one_of(st.integers(0, 12), st.integers(300, 3000)))
    def resize(self, length: int) -> None:
        if not self.model.ndim:
            return
        viewed = self.views and any(view.nbytes for view, _ in self.views)
        if length != len(self.model) and not viewed:
            self.views.clear()  # of nothing
            self.thing.resize(length)
            resized = np.zeros_like(self.model, shape=(length, *self.model.shape[1:]))
            kept = min(length, len(self.model))
            resized[:kept] = self.model[:kept]
            self.model = resized
        elif length != len(self.model):
            with pytest.raises(BufferError):
                self.thing.resize(length)

    @rule(values=_ARRAYS)
    def initialise(self, values: Any) -> None:
        self.views.clear()
        gc.collect(0)
        self.thing.__init__(values)
        self.model = values.copy(order="K")

    def _take_back(self) -> None:
        self.views.clear()  # views made in a transaction that is undone mean nothing
        super()._take_back()

    def _open(self) -> None:
        for view, _ in self.views:
            view.sum() if view.dtype.kind in "ifu" else view.tobytes()
        self.views.clear()
        super()._open()

    @rule()
    def fail(self) -> None:
        before = np.array(self.thing)
        for attempt in (
            lambda: self.thing.__init__([object()]),
            lambda: self.thing.__setitem__("no field", 1),
            lambda: self.thing.resize((1, 2, 3, 4, 5, 6)),
            lambda: self.thing.__setitem__(..., np.zeros((7, 7, 7))),
            lambda: self.thing.__array__()[...].__setitem__(..., 1),
        ):
            with pytest.raises((TypeError, ValueError, IndexError, BufferError)):
                attempt()
        self.assert_equal(self.thing, before)


ArrayMachine.TestCase.settings = hypothesis.settings(
    max_examples=max(hypothesis.settings().max_examples // 2, 1)
)
TestArrayMachine = ArrayMachine.TestCase
