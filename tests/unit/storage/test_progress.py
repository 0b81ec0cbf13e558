"""The pace of progress calls."""

from __future__ import annotations

import pytest

from pmshelve.storage import progress
from pmshelve.storage.progress import Pace, paced, part

Calls = list[tuple[int, int]]


def recorder(calls: Calls) -> progress.Progress:
    return lambda done, total: calls.append((done, total))


def test_calls_are_few_and_the_first_and_the_last_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    calls: Calls = []
    pace = Pace(recorder(calls), 1000)
    for done in range(1000):
        now[0] += 0.001
        pace.at(done)
    pace.end()
    pace.end()
    assert calls[0] == (0, 1000)
    assert calls[-1] == (1000, 1000)
    assert 95 <= len(calls) <= 102
    assert calls == sorted(set(calls))


def test_what_is_told_never_goes_back_nor_over_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0)
    calls: Calls = []
    pace = Pace(recorder(calls), 10)
    for done in (3, 1, 40, 5):
        pace.at(done)
    pace.end()
    assert [done for done, _ in calls] == [3, 3, 9, 9, 10]


def test_without_a_callback_nothing_is_wrapped() -> None:
    items = [1, 2]
    assert paced(items, None, 2) is items
    assert part(None, 0.0, 1.0) is None
    Pace(None, 5).at(3)


def test_items_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0)
    calls: Calls = []
    assert list(paced("abc", recorder(calls), 3)) == ["a", "b", "c"]
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_part_of_nothing_is_done() -> None:
    calls: Calls = []
    stage = part(recorder(calls), 0.25, 0.75)
    assert stage is not None
    for done, total in ((0, 4), (2, 4), (4, 4), (0, 0)):
        stage(done, total)
    assert calls == [(250, 1000), (500, 1000), (750, 1000), (750, 1000)]


def test_what_the_callback_raises_gets_through() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pace(stop, 1).at(0)
