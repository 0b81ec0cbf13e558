"""Every call of every operation fails, in every way; what is demanded: `tests.support.faultlab`."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.crash.scenarios import (
    FIRST,
    HOLDER,
    LARGE_ARRAY,
    LONG_KEY,
    LONG_TEXT,
    MANY,
    SMALL_ARRAY,
    as_content,
    copied,
    exclusive,
    file_object,
    first_file,
    generic_content,
    many_file,
    plain,
    synced,
)
from tests.support.faultlab import Case, shots
from tests.support.steps import (
    batch,
    bulk_update,
    clear,
    close,
    delete,
    empty,
    open_,
    put,
    renumber,
    sync,
    vacuum,
)

if TYPE_CHECKING:
    from tests.support.history import Step

SHOTS_MAX = 60


def case(name: str, step: Step, opens: Callable[[str], Any] = plain, **more: Any) -> Case:
    more = {"prepare": first_file, "content": FIRST, "reopener": plain} | more
    return Case(name, step, opens, **more)


CASES = [
    case("put new", put("new", "value")),
    case("replace", put("b", {"x": 1})),
    case("put synced", put("b", "value", durable=True), synced),
    case("put exclusive", put("b", "value"), exclusive),
    case("put array", put("array", SMALL_ARRAY)),
    case("put large", put("array", LARGE_ARRAY)),
    case("put large synced", put("array", LARGE_ARRAY), synced),
    case("put large exclusive", put("array", LARGE_ARRAY), exclusive),
    case("put buffers", put("holder", HOLDER)),
    case("put long text", put("text", LONG_TEXT)),
    case("put long key", put(LONG_KEY, 1)),
    case("empty array", empty("new", (9_000,))),
    case("empty array reserved", empty("new", (9_000,), reserve=True)),
    case("delete", delete("b")),
    case("delete synced", delete("b"), synced),
    case("batch", batch({"a": 1, "new": SMALL_ARRAY, "text": "t" * 700}, ("b",))),
    case("batch synced", batch({"a": 1, "new": LARGE_ARRAY}, ("b",)), synced),
    case("batch exclusive", batch({"a": 1, "new": LARGE_ARRAY}, ("b",)), exclusive),
    case("update", bulk_update({f"u{i}": i for i in range(30)})),
    case("clear", clear()),
    case("clear many", clear(), prepare=many_file, content=MANY),
    case("vacuum", vacuum()),
    case("vacuum in place", vacuum(), file_object, may_fail=True),
    case("vacuum exclusive", vacuum(), exclusive),
    case("sync", sync()),
    case("commit number", renumber(99)),
    case("close exclusive", close(), exclusive),
    case("open", open_(), warm=False),
    case("open exclusive", open_(), exclusive, warm=False),
    case("create", open_(), prepare=None, content=(), warm=False),
    case(
        "convert",
        open_(),
        warm=False,
        prepare=copied("plain-dict-protocol4.pickle"),
        content=as_content({"a": 1, "b": np.arange(3)}),
    ),
    case(
        "mmappickle's file",
        put("int", 43),
        prepare=copied("generic.mmdpickle"),
        content=generic_content(),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_call_fails(
    case: Case, tmp_path: Path, profile: Any, record_property: Callable[[str, object], None]
):
    directory = str(tmp_path / "disk")
    calls = case.calls_of(directory)
    outcomes: collections.Counter[str] = collections.Counter()
    chosen = list(shots(calls))
    step = max(1, len(chosen) // (SHOTS_MAX * profile.factor))
    for shot in chosen[::step]:
        try:
            outcomes[case.strike(directory, shot)] += 1
        except BaseException as error:
            error.add_note(f"case {case}, {shot}; the step's calls: {calls}")
            raise
    record_property("faults", outcomes.total())
    assert outcomes.total() > 0
