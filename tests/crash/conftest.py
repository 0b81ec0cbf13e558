"""How much to try, and how much was tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def count_states(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """Note the number of states that were examined; the run's summary adds them up."""

    def note(count: int) -> None:
        assert count > 0
        record_property("states", count)

    return note
