"""A whole pool against plain Python objects: one nested graph, every collection, transactions, crashes.

The model is a graph of ordinary lists, dicts, sets and so on.  After each step both are walked from the
root (and from what Python holds besides) side by side: the same values of the same types, the same
objects shared in the same places, `check()` silent, every reference count exact.  A transaction that is
aborted, and a crash, put back the copy of the model made when it began; whatever was made in it refuses.
"""

from __future__ import annotations

import copy
import decimal
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pmshelve import pmemobj
from pmshelve.pmemobj import (
    PersistentArray,
    PersistentDict,
    PersistentList,
    PersistentObject,
    PersistentSet,
    PersistentTuple,
)
from tests.support.pools import assert_nothing_leaked, assert_sound, crash_copy, without_syncs

np = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_syncs(monkeypatch)


# The model --------------------------------------------------------------------------------------


class Node:
    """What stands in the model for a persistent object; equal by identity."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class MList(Node):
    ours = PersistentList

    def __init__(self) -> None:
        self.v: list[Any] = []


class MDict(Node):
    ours = PersistentDict

    def __init__(self) -> None:
        self.v: dict[Any, Any] = {}


class MSet(Node):
    ours = PersistentSet

    def __init__(self) -> None:
        self.v: set[Any] = set()


class MTuple(Node):
    ours = PersistentTuple

    def __init__(self) -> None:
        self.v: tuple[Any, ...] = ()


class MObject(Node):
    ours = PersistentObject

    def __init__(self) -> None:
        self.v: dict[str, Any] = {}


class MArray(Node):
    ours = PersistentArray

    def __init__(self) -> None:
        self.v = np.arange(20)


KINDS = [MList, MDict, MSet, MTuple, MObject, MArray]


class State:
    """The whole model: what is stored, and what Python holds besides."""

    def __init__(self) -> None:
        self.root = MDict()
        self.held: list[Node] = []


def same(ours: Any, model: Any) -> bool:
    """Whether a stored value that is no node is what the model has."""
    if isinstance(model, tuple):
        return len(ours) == len(model) and all(map(same, ours, model))
    if isinstance(model, frozenset):
        return bool(ours == model)
    if type(ours) is not type(model):
        return False
    if isinstance(model, float):
        return struct.pack("<d", ours) == struct.pack("<d", model)
    return bool(ours == model)


# Values -----------------------------------------------------------------------------------------

_TEXTS = ["", "a", "key", "é" * 8, "\ud800", "x" * 14, "y" * 15, "long " * 50]
_BYTES = [b"", b"\0", b"z" * 200, b"big" * 3000]

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0.0, -0.0, 1.5, float("inf")]),
    st.integers(0, len(_TEXTS) - 1).map(lambda number: _TEXTS[number]),
    st.integers(0, len(_BYTES) - 1).map(lambda number: _BYTES[number]),
    st.sampled_from([decimal.Decimal("1.5"), 3 + 4j]),
)
_leaves = st.one_of(
    _scalars,
    st.lists(_scalars, max_size=3).map(tuple),
    st.frozensets(_scalars, max_size=3),
)
_keys = st.one_of(st.sampled_from(["a", "b", "c", "key", "k" * 40]), st.integers(-3, 12), _leaves)
_numbers = st.integers(0, 1 << 30)
_indices = st.integers(-6, 6)
_slices = st.builds(
    slice, st.none() | _indices, st.none() | _indices, st.sampled_from([None, 1, 2, -1, 3])
)


class Broken(Exception):
    """Raised by the test in the middle of something."""


def breaking(values: list[Any]) -> Iterator[Any]:
    yield from values
    raise Broken


class PoolMachine(RuleBasedStateMachine):
    durability = "lazy"

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.count = 0
        self.state = State()
        self.saved: State | None = None  # as it was when the transaction began
        self.saved_ours: list[Any] = []
        self.levels = 0
        self.held: list[Any] = []  # ours, as state.held
        self.made: list[Any] = []  # made in this transaction, and kept alive
        self.pool = pmemobj.create(self._path(), durability=self.durability)
        self.pool.root = self.pool.new(PersistentDict)

    def teardown(self) -> None:
        try:
            if self.levels:
                self._abort()
            self._walk()
            self.held.clear()
            self.made.clear()
            self.state.held.clear()
            assert_nothing_leaked(self.pool)
            assert_sound(self.pool)
            self.pool.close()
        finally:
            self.held.clear()
            self.made.clear()
            del self.pool
            shutil.rmtree(self.home)

    def _path(self) -> Path:
        return self.home / f"pool{self.count}"

    # Both sides -----------------------------------------------------------------------------------

    def _walk(self) -> list[tuple[Node, Any]]:
        """Compare everything; return the nodes with the objects that stand for them."""
        found: dict[Node, Any] = {}
        back: dict[int, Node] = {}
        waiting: list[tuple[Any, Any]] = [(self.state.root, self.pool.root)]
        waiting += zip(self.state.held, self.held, strict=True)
        while waiting:
            model, ours = waiting.pop()
            if not isinstance(model, Node):
                assert same(ours, model), (ours, model)
                continue
            if model in found:
                assert found[model] is ours
                continue
            assert type(ours) is model.ours, (ours, model.ours)
            assert id(ours) not in back, "two of the model's are one here"
            found[model], back[id(ours)] = ours, model
            waiting.extend(self._inside(model, ours))
        return list(found.items())

    def _inside(self, model: Node, ours: Any) -> Iterator[tuple[Any, Any]]:
        if isinstance(model, MObject):
            for name, value in model.v.items():
                yield value, getattr(ours, name)
            for name in ("a", "b", "c"):
                assert hasattr(ours, name) == (name in model.v)
            return
        assert len(ours) == len(model.v)
        if isinstance(model, MDict):
            for (key, value), (our_key, our_value) in zip(
                model.v.items(), ours.items(), strict=True
            ):
                assert same(our_key, key), (our_key, key)
                yield value, our_value
        elif isinstance(model, MSet):
            assert {frozenset(x) if isinstance(x, frozenset) else x for x in ours} == model.v
            assert all(value in ours for value in model.v)
        elif isinstance(model, MArray):
            assert (np.asarray(ours) == model.v).all()
        else:
            yield from zip(model.v, ours, strict=True)  # type: ignore[attr-defined]

    def _pick(self, kind: type, number: int) -> tuple[Any, Any]:
        """Return a node of a kind with its object; make one under the root if there is none."""
        nodes = [pair for pair in self._walk() if isinstance(pair[0], kind)]
        if nodes:
            return nodes[number % len(nodes)]
        model, ours = self._make(kind, [])
        self.state.root.v[kind.__name__] = model
        self.pool.root[kind.__name__] = ours
        return model, ours

    def _make(self, kind: Any, leaves: list[Any]) -> tuple[Any, Any]:
        """Make a new node, in both."""
        model = kind()
        if kind is MList:
            model.v = list(leaves)
        elif kind is MDict:
            model.v = dict(zip(leaves, leaves, strict=True))
        elif kind is MSet:
            model.v = set(leaves)
        elif kind is MTuple:
            nodes = self._walk()[:1] if len(leaves) % 2 else []
            model.v = (*leaves, *(node for node, _ in nodes))
            ours = self.pool.new(PersistentTuple, (*leaves, *(thing for _, thing in nodes)))
            self.made.append(ours)
            return model, ours
        elif kind is MArray:
            ours = self.pool.new(PersistentArray, model.v)
            self.made.append(ours)
            return model, ours
        elif kind is MObject:
            ours = self.pool.new(PersistentObject)
            self.made.append(ours)
            return model, ours
        # In the order in which the model has them: of equal members the first stays.
        ours = self.pool.new(kind.ours, model.v)
        self.made.append(ours)
        return model, ours

    def _value(self, choice: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return a value for both sides: a leaf, a new node, or one that is there."""
        what, leaf, number, leaves = choice
        if what == "leaf":
            return leaf, leaf
        if what == "new":
            return self._make(KINDS[number % len(KINDS)], leaves)
        nodes = self._walk()
        return nodes[number % len(nodes)]

    def _both(self, model: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any]:
        """Do the same on both sides: the same result or the same exception."""
        try:
            expected, error = model(), None
        except Exception as caught:
            expected, error = None, caught
        if error is not None:
            with pytest.raises(type(error)):
                ours()
            return None, None
        return expected, ours()

    values = st.tuples(
        st.sampled_from(["leaf", "leaf", "new", "there"]),
        _leaves,
        _numbers,
        st.lists(_leaves, max_size=4),
    )

    # Rules: dict ------------------------------------------------------------------------------------

    @rule(number=_numbers, key=_keys, value=values)
    def dict_set(self, number: int, key: Any, value: Any) -> None:
        model, ours = self._pick(MDict, number)
        mine, yours = self._value(value)
        model.v[key] = mine
        ours[key] = yours

    @rule(number=_numbers, key=_keys)
    def dict_delete(self, number: int, key: Any) -> None:
        model, ours = self._pick(MDict, number)
        self._both(lambda: model.v.__delitem__(key), lambda: ours.__delitem__(key))

    @rule(number=_numbers, key=_keys, hold=st.booleans())
    def dict_pop(self, number: int, key: Any, hold: bool) -> None:
        model, ours = self._pick(MDict, number)
        mine, yours = self._both(lambda: model.v.pop(key), lambda: ours.pop(key))
        self._compare(mine, yours, hold=hold)

    @rule(number=_numbers)
    def dict_popitem(self, number: int) -> None:
        model, ours = self._pick(MDict, number)
        mine, yours = self._both(model.v.popitem, ours.popitem)
        if mine is not None:
            assert same(yours[0], mine[0])
            self._compare(mine[1], yours[1], hold=False)

    @rule(number=_numbers, key=_keys, value=values)
    def dict_setdefault(self, number: int, key: Any, value: Any) -> None:
        model, ours = self._pick(MDict, number)
        mine, yours = self._value(value)
        self._compare(model.v.setdefault(key, mine), ours.setdefault(key, yours), hold=False)

    @rule(number=_numbers, pairs=st.lists(st.tuples(_keys, _leaves), max_size=30), way=_numbers)
    def dict_update(self, number: int, pairs: list[tuple[Any, Any]], way: int) -> None:
        model, ours = self._pick(MDict, number)
        model.v.update(pairs)
        if way % 3 == 0:
            ours.update(dict(pairs))
        elif way % 3 == 1:
            ours |= pairs
        else:
            ours.update(pairs)

    @rule(number=_numbers, key=_keys)
    def dict_get(self, number: int, key: Any) -> None:
        model, ours = self._pick(MDict, number)
        assert (key in ours) == (key in model.v)
        mine, yours = self._both(lambda: model.v[key], lambda: ours[key])
        self._compare(mine, yours, hold=False)

    @rule(number=_numbers)
    def clear(self, number: int) -> None:
        model, ours = self._pick((MDict, MList, MSet)[number % 3], number // 3)
        if model is not self.state.root or number % 5 == 0:
            model.v.clear()
            ours.clear()

    # Rules: list ------------------------------------------------------------------------------------

    @rule(number=_numbers, value=values, place=_indices)
    def list_insert(self, number: int, value: Any, place: int) -> None:
        model, ours = self._pick(MList, number)
        mine, yours = self._value(value)
        if place == 6:
            model.v.append(mine)
            ours.append(yours)
        else:
            model.v.insert(place, mine)
            ours.insert(place, yours)

    @rule(number=_numbers, value=values, place=_indices)
    def list_set(self, number: int, value: Any, place: int) -> None:
        model, ours = self._pick(MList, number)
        mine, yours = self._value(value)
        self._both(lambda: model.v.__setitem__(place, mine), lambda: ours.__setitem__(place, yours))

    @rule(number=_numbers, place=_indices, hold=st.booleans())
    def list_pop(self, number: int, place: int, hold: bool) -> None:
        model, ours = self._pick(MList, number)
        mine, yours = self._both(lambda: model.v.pop(place), lambda: ours.pop(place))
        self._compare(mine, yours, hold=hold)

    @rule(number=_numbers, where=_slices, leaves=st.lists(_leaves, max_size=6))
    def list_set_slice(self, number: int, where: slice, leaves: list[Any]) -> None:
        model, ours = self._pick(MList, number)
        self._both(
            lambda: model.v.__setitem__(where, leaves), lambda: ours.__setitem__(where, leaves)
        )

    @rule(number=_numbers, where=_slices)
    def list_delete_slice(self, number: int, where: slice) -> None:
        model, ours = self._pick(MList, number)
        del model.v[where]
        del ours[where]

    @rule(number=_numbers, leaves=st.lists(_leaves, max_size=6), way=_numbers)
    def list_extend(self, number: int, leaves: list[Any], way: int) -> None:
        model, ours = self._pick(MList, number)
        if way % 4 == 0 and len(model.v) < 50:
            model.v.extend(model.v)
            ours.extend(ours)
        elif way % 4 == 1:
            model.v.extend(range(way % 600))
            ours.extend(range(way % 600))
        else:
            model.v.extend(leaves)
            ours += iter(leaves) if way % 2 else leaves

    @rule(number=_numbers, how=_numbers)
    def list_reorder(self, number: int, how: int) -> None:
        model, ours = self._pick(MList, number)
        if how % 3 == 0:
            model.v.reverse()
            ours.reverse()
            return
        backwards = how % 3 == 1

        def key(value: Any) -> str:
            simple = isinstance(value, int | str | bytes | float)
            return repr(value) if simple else ""

        model.v.sort(key=key, reverse=backwards)
        ours.sort(key=key, reverse=backwards)

    @rule(number=_numbers, leaf=_leaves, factor=st.integers(-1, 3))
    def list_other(self, number: int, leaf: Any, factor: int) -> None:
        model, ours = self._pick(MList, number)
        if not any(isinstance(value, MArray) for value in model.v):  # compared with by element
            assert (leaf in ours) == (leaf in model.v)
            self._both(lambda: model.v.remove(leaf), lambda: ours.remove(leaf))
        if len(model.v) < 30:
            model.v *= factor
            ours *= factor

    # Rules: the others ------------------------------------------------------------------------------

    @rule(number=_numbers, leaves=st.lists(_leaves, max_size=8), how=st.sampled_from(
        ["add", "discard", "remove", "update", "difference_update", "intersection_update",
         "symmetric_difference_update", "pop"]
    ))  # fmt: skip
    def set_change(self, number: int, leaves: list[Any], how: str) -> None:
        model, ours = self._pick(MSet, number)
        if how == "pop":
            if not model.v:
                with pytest.raises(KeyError):
                    ours.pop()
                return
            gone = ours.pop()
            assert gone in model.v
            model.v.remove(gone)
        elif how in ("add", "discard", "remove"):
            leaf = leaves[0] if leaves else 1
            self._both(lambda: getattr(model.v, how)(leaf), lambda: getattr(ours, how)(leaf))
        else:
            getattr(model.v, how)(leaves)
            getattr(ours, how)(leaves)

    @rule(number=_numbers, name=st.sampled_from("abc"), value=values, delete=st.booleans())
    def attribute(self, number: int, name: str, value: Any, delete: bool) -> None:
        model, ours = self._pick(MObject, number)
        if delete:
            if name in model.v:
                del model.v[name]
                delattr(ours, name)
            else:
                with pytest.raises(AttributeError):
                    delattr(ours, name)
        else:
            mine, yours = self._value(value)
            model.v[name] = mine
            setattr(ours, name, yours)

    @rule(number=_numbers, where=_slices, value=st.integers(-100, 100))
    def array_set(self, number: int, where: slice, value: int) -> None:
        model, ours = self._pick(MArray, number)
        model.v[where] = value
        ours[where] = value

    def _compare(self, mine: Any, yours: Any, *, hold: bool) -> None:
        if not isinstance(mine, Node):
            assert same(yours, mine), (yours, mine)
        elif hold and len(self.held) < 5:
            self.state.held.append(mine)
            self.held.append(yours)
        else:
            assert type(yours) is mine.ours

    @rule(number=_numbers)
    def hold(self, number: int) -> None:
        """Keep the Python object of something."""
        if len(self.held) < 5:
            nodes = self._walk()
            model, ours = nodes[number % len(nodes)]
            self.state.held.append(model)
            self.held.append(ours)

    @precondition(lambda self: self.held)
    @rule(number=_numbers)
    def let_go(self, number: int) -> None:
        place = number % len(self.held)
        del self.state.held[place], self.held[place]

    # Rules: what fails ------------------------------------------------------------------------------

    @rule(number=_numbers, leaves=st.lists(_leaves, max_size=4), bad=st.sampled_from(
        [[], {}, set(), bytearray(), object()]
    ))  # fmt: skip
    def refused(self, number: int, leaves: list[Any], bad: Any) -> None:
        """Operations that cannot be done in full are not done at all."""
        with pytest.raises(TypeError):
            self._pick(MDict, number)[1]["bad"] = bad
        with pytest.raises(TypeError):
            self._pick(MList, number)[1].extend([*leaves, bad])
        with pytest.raises(TypeError):
            self._pick(MList, number)[1][1:3] = [*leaves, bad]
        with pytest.raises(TypeError):
            self.pool.new(PersistentTuple, [*leaves, bad])
        with pytest.raises(TypeError):
            self._pick(MObject, number)[1].a = bad
        with pytest.raises(TypeError):
            self.pool.mm.persist(("x" * 100, bad))
        with pytest.raises(Broken):
            self.pool.new(PersistentList, breaking(leaves))
        with pytest.raises(Broken):
            self._pick(MList, number)[1][0:0] = breaking(leaves)

    # Rules: transactions ----------------------------------------------------------------------------

    @precondition(lambda self: self.levels < 3)
    @rule()
    def begin(self) -> None:
        if not self.levels:
            self.saved, self.saved_ours = copy.deepcopy(self.state), list(self.held)
            self.made.clear()
        self.pool.transaction().begin()
        self.levels += 1
        assert self.pool.transaction().depth == self.levels

    @precondition(lambda self: self.levels)
    @rule()
    def commit(self) -> None:
        self.pool.transaction().commit()
        self.levels -= 1
        if not self.levels:
            self._ended()

    @precondition(lambda self: self.levels)
    @rule()
    def abort(self) -> None:
        self._abort()

    def _abort(self) -> None:
        with pytest.raises(OSError, match="abort"):
            self.pool.transaction().abort()
        assert self.pool.transaction().depth == 0
        self._take_back()

    def _take_back(self) -> None:
        assert self.saved is not None
        for thing in self.made:
            with pytest.raises(RuntimeError, match="aborted"):
                self.pool.root["again"] = thing
        self.state, self.held = self.saved, self.saved_ours
        self._ended()

    def _ended(self) -> None:
        self.levels, self.saved, self.saved_ours = 0, None, []
        self.made.clear()

    @precondition(lambda self: not self.levels)
    @rule(
        number=_numbers, key=_keys, value=values, how=st.sampled_from(["abort", "raise", "return"])
    )
    def with_block(self, number: int, key: Any, value: Any, how: str) -> None:
        self.begin()
        self.commit()  # nothing
        self.saved, self.saved_ours = copy.deepcopy(self.state), list(self.held)
        self.made.clear()
        try:
            with self.pool.transaction() as transaction:
                self.dict_set(number, key, value)
                with self.pool.transaction():
                    self.list_insert(number, value, 0)
                    if how == "raise":
                        raise Broken
                    if how == "abort":
                        transaction.abort()
        except (Broken, OSError):
            assert how != "return"
            self._take_back()
        else:
            assert how == "return"
            self._ended()

    # Rules: the pool's life -------------------------------------------------------------------------

    @precondition(lambda self: not self.levels)
    @rule()
    def collect(self) -> None:
        self.made.clear()
        assert_nothing_leaked(self.pool)

    @precondition(lambda self: not self.levels)
    @rule()
    def sync(self) -> None:
        self.pool.sync()

    @precondition(lambda self: not self.levels)
    @rule(how=st.sampled_from(["closed", "dropped", "reading"]))
    def reopen(self, how: str) -> None:
        self.state.held.clear()
        self.held.clear()
        self.made.clear()
        if how == "dropped":
            del self.pool
        else:
            self.pool.close()
        if how == "reading":
            self.pool = pmemobj.PersistentObjectPool(self._path(), "r")
            self._walk()
            assert self.pool.check() == []
            self.pool.close()
        self.pool = pmemobj.open(self._path(), durability=self.durability)
        assert_nothing_leaked(self.pool)

    @rule()
    def crash(self) -> None:
        """Go on with the file as a SIGKILL would leave it now."""
        self.count += 1
        crash_copy(self.pool, self._path())
        before = self.saved if self.levels else self.state
        if self.levels:
            self._abort()
        assert before is not None
        self.state = before
        self.state.held.clear()
        self.held.clear()
        self.made.clear()
        old = self.pool.filename
        self.pool.close()
        Path(old).unlink()
        self.pool = pmemobj.open(self._path(), durability=self.durability)
        assert_nothing_leaked(self.pool)

    @precondition(lambda self: not self.levels)
    @rule()
    def new_root(self) -> None:
        """Put the root below a new one."""
        root = MDict()
        root.v["old"] = self.state.root
        self.state.root = root
        self.pool.root = self.pool.new(PersistentDict, {"old": self.pool.root})

    @invariant()
    def all_is_well(self) -> None:
        if not self.levels:
            self.made.clear()
        self._walk()
        assert_sound(self.pool)

    @initialize(leaves=st.lists(_leaves, min_size=1, max_size=5))
    def begin_with_something(self, leaves: list[Any]) -> None:
        for kind in KINDS:
            model, ours = self._make(kind, leaves)
            self.state.root.v[kind.__name__] = model
            self.pool.root[kind.__name__] = ours


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = hypothesis.settings(
    max_examples=hypothesis.settings().max_examples * 2 // 3
)


class DurableMachine(PoolMachine):
    """The same with a sync at every commit."""

    durability = "full"


TestDurableMachine = DurableMachine.TestCase
TestDurableMachine.settings = hypothesis.settings(
    max_examples=hypothesis.settings().max_examples // 8
)
