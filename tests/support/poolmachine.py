"""A pool with one object for its root, and what can happen to it beside its own operations.

A machine of a collection derives from `PoolMachine`, names how the object is made, and adds rules that do
one thing to the object and to its model, through `both`.  Transactions nest, are committed or aborted; the
pool is closed and opened, killed and recovered, collected.  After each step both must be the same, and the
pool sound.
"""

from __future__ import annotations

import copy
import gc
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pmshelve import pmemobj
from tests.support.pools import assert_nothing_leaked, assert_sound, crash_copy

__all__ = ["PoolMachine"]

_idle = precondition(lambda self: not self.saved)
_busy = precondition(lambda self: self.saved)


class PoolMachine(RuleBasedStateMachine):
    """The steps that all collections have in common.

    Attributes
    ----------
    pool, thing
        The open pool, and its root.
    model
        What `thing` should equal.
    saved
        For each open transaction, the model when it began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.number = 0
        self.pool = pmemobj.create(self.home / "0.pool", durability="lazy")
        self.thing: Any = None
        self.model: Any = None
        self.saved: list[Any] = []

    def start(self, thing: Any, model: Any) -> None:
        """Make a new object the root."""
        self.pool.root = self.thing = thing
        self.model = model

    # For the machines -------------------------------------------------------------------------

    def compare(self) -> None:
        """Fail unless `thing` is what `model` is."""
        raise NotImplementedError

    def copy_model(self) -> Any:
        """Return a copy of the model that no later step changes."""
        return copy.deepcopy(self.model)

    def both(self, step: Callable[[Any], Any]) -> None:
        """Do a step to both; result or exception must be the same."""
        before = self.copy_model()
        expected = _outcome(step, self.model)
        if isinstance(expected, type):
            self.model = before  # an operation that fails leaves nothing
        found = _outcome(step, self.thing)
        if found is not self.thing or expected is not self.model:
            self.assert_equal(found, expected)

    def assert_equal(self, found: Any, expected: Any) -> None:
        """Fail unless two results are the same."""
        assert found == expected

    # Steps of every pool ------------------------------------------------------------------------

    @precondition(lambda self: len(self.saved) < 3)
    @rule()
    def begin(self) -> None:
        self.pool.transaction().begin()
        self.saved.append(self.copy_model())

    @_busy
    @rule()
    def commit(self) -> None:
        self.pool.transaction().commit()
        self.saved.pop()

    @_busy
    @rule()
    def abort(self) -> None:
        with pytest.raises(OSError, match="aborted"):
            self.pool.transaction().abort()
        self._take_back()

    def _take_back(self) -> None:
        if self.saved:
            self.model = self.saved[0]
            self.saved.clear()

    @_idle
    @rule()
    def collect(self) -> None:
        self.pool.gc()

    @_idle
    @rule()
    def let_go(self) -> None:
        """Make the pool find everything anew."""
        self.thing = None
        self.pool.mm.identity.recent.clear()
        gc.collect(0)
        self.thing = self.pool.root

    @_idle
    @rule()
    def reopen(self) -> None:
        self.pool.close()
        self._open()

    @rule()
    def kill(self) -> None:
        self.number += 1
        crash_copy(self.pool, self.home / f"{self.number}.pool")
        self._close()
        (self.home / f"{self.number - 1}.pool").unlink()
        self._take_back()
        self._open()

    def _open(self) -> None:
        self.pool = pmemobj.open(self.home / f"{self.number}.pool", durability="lazy")
        self.thing = self.pool.root

    def _close(self) -> None:
        if self.saved:
            with pytest.raises(OSError, match="aborted"):
                self.pool.transaction().abort()
        self.pool.close()

    @invariant()
    def sound(self) -> None:
        if self.thing is not None:
            self.compare()
            assert_sound(self.pool)

    def teardown(self) -> None:
        try:
            if self.saved:
                self.abort()
            self.compare()
            assert_nothing_leaked(self.pool)
        finally:
            self.pool.close()
            shutil.rmtree(self.home)


def _outcome(step: Callable[[Any], Any], thing: Any) -> Any:
    """Return what a step returns, or the class of what it raises."""
    try:
        return step(thing)
    except Exception as error:
        return type(error)
