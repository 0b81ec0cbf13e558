"""A value whose own loading fails is there all the same: nothing may take it for missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmshelve.mmapdict import mmapdict


def _fail(kind: str) -> Any:
    raise {"KeyError": KeyError, "ValueError": ValueError, "EOFError": EOFError}[kind](kind)


class Failing:
    """Loads with an error."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return _fail, (self.kind,)


@pytest.mark.parametrize("kind", ["KeyError", "ValueError", "EOFError"])
def test_value_that_fails_to_load_is_not_missing(tmp_path: Path, kind: str) -> None:
    with mmapdict(tmp_path / "store") as store:
        store["a"] = Failing(kind)
        store["b"] = 1
        number = store.commit_number
        expected = {"KeyError": KeyError, "ValueError": ValueError, "EOFError": EOFError}[kind]
        with pytest.raises(expected):
            store["a"]
        for call in (
            lambda: store.get("a", "default"),
            lambda: store.pop("a", "default"),
            lambda: store.setdefault("a", "default"),
            lambda: dict(store.items()),
            lambda: list(store.values()),
        ):
            with pytest.raises(Exception, match=kind):
                call()
        assert store.commit_number == number
        assert "a" in store
        assert list(store) == ["a", "b"]
        assert len(store) == 2
        del store["a"]
        assert dict(store) == {"b": 1}
