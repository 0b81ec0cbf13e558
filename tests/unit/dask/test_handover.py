"""One mapping takes over from another."""

from __future__ import annotations

import pytest

pytest.importorskip("zict")

from pmshelve.dask.handover import Handover


@pytest.fixture
def drained():
    return []


@pytest.fixture
def both(drained):
    return Handover({"n": 1}, {"a": 2, "b": 3}, drained.append)


def test_both_are_seen_as_one(both):
    assert dict(both) == {"n": 1, "a": 2, "b": 3}
    assert len(both) == 3
    assert "a" in both and "n" in both and "x" not in both
    with pytest.raises(KeyError):
        both["x"]


def test_what_is_set_goes_to_the_new_one(both):
    both["m"] = 4
    both["a"] = 5
    assert both.new == {"n": 1, "m": 4, "a": 5}
    assert both.old == {"b": 3}


def test_a_set_that_fails_changes_nothing(drained):
    class Full(dict):
        def __setitem__(self, key, value):
            raise OSError("full")

    both = Handover(Full(n=1), {"a": 2}, drained.append)
    with pytest.raises(OSError, match="full"):
        both["a"] = 3
    assert dict(both) == {"n": 1, "a": 2}
    assert not drained


def test_the_old_one_is_let_go_with_its_last_key(both, drained):
    old = both.old
    del both["a"]
    assert not drained
    both["b"] = 4
    assert drained == [{}]
    assert drained[0] is old
    assert dict(both) == {"n": 1, "b": 4}
    del both["n"], both["b"]
    assert len(drained) == 1
    with pytest.raises(KeyError):
        del both["b"]


def test_a_third_can_follow(drained):
    first = Handover({}, {"a": 1, "b": 2}, drained.append)
    second = Handover({"z": 3}, first, drained.append)
    first["c"] = 4
    del second["a"], second["b"]
    assert drained == [{}]
    assert dict(second) == {"z": 3, "c": 4}
    del second["c"]
    assert drained[1] is first


def test_closing_closes_both(drained):
    class Closable(dict):
        closed = False

        def close(self):
            self.closed = True

    new, old = Closable(), Closable(a=1)
    Handover(new, old, drained.append).close()
    assert new.closed and old.closed
