"""Objects that were loaded and are pickled anew: whatever their classes do, each is kept or reported."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pmshelve
from pmshelve.convert import BadEntriesError, convert
from pmshelve.convert import conversion as module
from pmshelve.convert.compare import digest
from pmshelve.convert.pickles import premake
from pmshelve.errors import StorageError, UnsupportedTypeError
from pmshelve.mmapdict import mmapdict
from pmshelve.mmapdict.picklers.premade import Premade
from pmshelve.zict_compat import MmapDict
from tests.support.moving import ARRAYS, OBJECTS, same
from tests.support.withoutequality import Changing

both_stores = pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])


class Refusing:
    """Unpickles, and does not pickle again, for a reason of its own."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("not again")


class Source:
    """Pickles as what refuses to."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return Refusing, (self.error,)


def write(content: dict[Any, Any]) -> None:
    Path("old").write_bytes(pickle.dumps(content))


@both_stores
@pytest.mark.parametrize(
    "error", [TypeError, ValueError, RuntimeError, NotImplementedError, OSError]
)
def test_what_pickling_raises_is_reported(
    converted: Any, here: Path, to: str, error: type[Exception]
) -> None:
    write({"a": 1, "b": Source(error), "c": [2]})
    with pytest.raises(BadEntriesError, match="cannot be stored: not again"):
        converted("old", "new", unpickle=True, to=to)
    dry = converted("old", "new", unpickle=True, to=to, skip_bad=True, dry_run=True)
    done = converted("old", "new", unpickle=True, to=to, skip_bad=True)
    for report in (dry, done):
        assert [bad.key for bad in report.bad] == ["'b'"]
        assert report.entries == 2
    with pmshelve.open("new", "r", backend=to) as shelf:
        assert dict(shelf) == {"a": 1, "c": [2]}


def test_memory_that_runs_out_is_no_bad_entry(here: Path) -> None:
    write({"a": Source(MemoryError)})
    with pytest.raises(MemoryError):
        convert("old", "new", unpickle=True, skip_bad=True)
    assert os.listdir() == ["old"]


def test_of_two_with_one_key_the_one_that_can_be_stored_is(converted: Any, here: Path) -> None:
    write({"1": Source(ValueError), b"1": "second", "2": [3]})
    report = converted("old", "new", unpickle=True, skip_bad=True)
    assert (report.entries, report.verified, report.bad_count) == (2, 2, 1)
    with mmapdict("new", readonly=True) as store:
        assert dict(store) == {"1": "second", "2": [3]}


@both_stores
def test_what_pickles_differently_each_time_is_checked_as_it_was_written(
    here: Path, to: str
) -> None:
    array = np.arange(5000.0)
    write({"one": Changing(), "list": [Changing(), array], "int": 1})
    report = convert("old", "new", unpickle=True, to=to)  # type: ignore[arg-type]
    assert (report.entries, report.verified, report.unverified) == (3, 1, 2)
    assert report.pickles == 0  # none of them was moved unopened
    with pmshelve.open("new", "r", backend=to) as shelf:
        assert type(shelf["one"]) is Changing
        found, numbers = shelf["list"]
        assert type(found) is Changing
        assert np.array_equal(numbers, array)


def test_what_pickles_differently_and_was_written_wrong_is_found_out(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"list": [Changing()], "int": 1})
    compare = module._Work.compare
    for wrong in ([Changing()], Changing(), [], 1, np.arange(3)):

        def spoiled(work: Any, path: str, wrong: Any = wrong) -> None:
            with mmapdict(path) as store:
                store["list"] = wrong
            compare(work, path)

        monkeypatch.setattr(module._Work, "compare", spoiled)
        with pytest.raises(StorageError, match="did not come back"):
            convert("old", "new", unpickle=True)
        assert os.listdir() == ["old"]


def test_a_made_pickle_is_what_a_store_would_write(here: Path) -> None:
    content = {
        **OBJECTS,
        **ARRAYS,
        "sliced": {"half": np.arange(4000.0)[::2]},
        "text": np.array(["a", None]),
    }
    with mmapdict("direct") as direct, mmapdict("made") as made:
        for key, value in content.items():
            direct[key] = value
            made[key] = premake(value)
            assert same(made[key], value)
            assert digest(premake(value)) == digest(premake(value))
        direct._views.keep_pickles = made._views.keep_pickles = True
        for key in ("inside", "list", "ordered", "sliced"):
            one, two = direct[key], made[key]
            assert type(one) is type(two) is Premade
            assert digest(one) == digest(two)
            assert len(one.buffers) == (key in ("inside", "sliced"))
    with pytest.raises(UnsupportedTypeError, match="type function"):
        premake(lambda: None)


def test_the_order_of_an_array_in_memory_is_kept(converted: Any, here: Path) -> None:
    with mmapdict("old") as store:
        store["f"] = np.asfortranarray(np.arange(600.0).reshape(20, 30))
        store["c"] = np.arange(600.0).reshape(20, 30)
    converted("old", "new", to="pmemobj")
    with pmshelve.open("new", "r", backend="pmemobj") as shelf:
        assert shelf["f"].flags.f_contiguous
        assert shelf["c"].flags.c_contiguous
        assert np.array_equal(shelf["f"], shelf["c"])


# Keys -------------------------------------------------------------------------------------------


def test_keys_that_were_bytes_among_others_are_told(converted: Any, here: Path) -> None:
    write({b"a": 1, "b": 2, b"c": 3})
    for options in ({"dry_run": True}, {}):
        report = converted("old", "new", **options)
        assert report.notes == ["keys that are bytes in the source, and text in the new file: 2"]
    write({b"a": b"1", "b": b"2"})
    assert not converted("old", "bytes", face="bytes").notes
    assert not converted("old", "named", key=lambda key: str(key)).notes
    with MmapDict("buffers") as store:
        store[b"a"] = b"1"
    assert not converted("buffers", "zict", face="zict").notes
    assert not converted("bytes", "text", face="native").notes  # of a dbm all are
