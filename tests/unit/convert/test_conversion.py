"""All or nothing: what is reported, refused, interrupted, replaced, and what it leaves."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pmshelve
from pmshelve.convert import BadEntriesError, convert
from pmshelve.convert import conversion as module
from pmshelve.dbm_compat import mmapdict as our_dbm
from pmshelve.errors import NoSpaceError, StateError, StorageError
from pmshelve.mmapdict import mmapdict
from pmshelve.storage import file as storage
from tests.support.moving import OBJECTS, assert_shelf, make_dbm
from tests.support.withoutequality import Changing


def leftovers(here: Path) -> list[str]:
    return [path.name for path in here.iterdir() if path.name.endswith(".converting")]


# Reports ----------------------------------------------------------------------------------------


def test_a_report_says_what_was_done(converted: Any, old: str) -> None:
    report = converted(old, "new", shelf=True)
    assert (report.source, report.destination) == ("old", "new")
    assert (report.to, report.face, report.kind) == ("mmapdict", "native", "dbm.dumb")
    assert report.entries == report.verified == len(OBJECTS)
    assert report.size == os.stat("new").st_size
    assert report.written
    assert report.pickles == 3  # the list, the date, the ordered dict
    assert not report.bad_count
    assert json.loads(json.dumps(report.as_dict()))["entries"] == len(OBJECTS)


def test_a_dry_run_says_the_same_and_writes_nothing(converted: Any, old: str) -> None:
    dry = converted(old, "new", shelf=True, dry_run=True)
    assert not os.path.exists("new")
    done = converted(old, "new", shelf=True)
    assert (dry.entries, dry.bytes, dry.pickles) == (done.entries, done.bytes, done.pickles)
    assert not dry.written
    assert dry.verified == dry.size == 0


@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
def test_bad_entries_are_all_reported(converted: Any, here: Path, to: str) -> None:
    content = {f"good {i}": i for i in range(50)} | dict.fromkeys(range(150), 1)
    content["function"] = content["lambda"] = 0
    (here / "old").write_bytes(pickle.dumps(content))
    for dry in (False, True):
        options = {"dry_run": True} if dry else {}
        if dry:
            report = converted("old", "new", to=to, **options)
        else:
            with pytest.raises(BadEntriesError, match="150 of 202 entries") as caught:
                converted("old", "new", to=to)
            report = caught.value.report
        assert (report.entries, report.bad_count, len(report.bad)) == (52, 150, 100)
        assert report.bad[7].key == "7"
    report = converted("old", "new", to=to, skip_bad=True)
    assert (report.entries, report.verified, report.bad_count) == (52, 52, 150)


def test_values_that_do_not_pickle_are_bad(
    here: Path, monkeypatch: pytest.MonkeyPatch, converted: Any
) -> None:
    """As an object is that unpickles and does not pickle again."""
    (here / "old").write_bytes(b"(dX\x01\x00\x00\x00aciotest\nmake\n)Rs.")
    monkeypatch.setitem(__import__("sys").modules, "iotest", _Maker)
    for to in ("mmapdict", "pmemobj"):
        report = converted("old", "dry", unpickle=True, dry_run=True, to=to)
        assert (report.entries, report.bad_count) == (0, 1)
        report = converted("old", "new", unpickle=True, skip_bad=True, to=to, overwrite=True)
        assert (report.entries, report.bad_count) == (0, 1)
        assert "cannot be stored" in report.bad[0].problem


class _Maker:
    @staticmethod
    def make() -> Any:
        return lambda: None


def test_two_keys_that_become_one(converted: Any, here: Path) -> None:
    (here / "old").write_bytes(pickle.dumps({"1": "a", b"1": "b", "2": "c"}))
    for options in ({}, {"key": lambda key: "same"}):
        count = 1 if not options else 2
        report = converted("old", "new", dry_run=True, **options)
        assert (report.bad_count, report.entries) == (count, 3 - count)
        report = converted("old", f"new{count}", skip_bad=True, **options)
        assert (report.bad_count, report.entries) == (count, 3 - count)
        assert "the same key" in report.bad[0].problem
    assert_shelf("new1", {"1": "a", "2": "c"})
    assert_shelf("new2", {"same": "a"})


def test_what_cannot_be_compared_is_counted_apart(here: Path) -> None:
    (here / "old").write_bytes(pickle.dumps({"a": Changing(), "b": 1}))
    report = convert("old", "new", unpickle=True)
    assert (report.entries, report.verified, report.unverified) == (2, 1, 1)


# Refusals ---------------------------------------------------------------------------------------


def test_arguments_are_checked_before_anything_is_done(converted: Any, old: str) -> None:
    with pytest.raises(ValueError, match="no store 'lmdb' to convert to"):
        converted(old, "new", to="lmdb")
    with pytest.raises(ValueError, match="no face 'both'"):
        converted(old, "new", face="both")


def test_a_file_that_is_there_is_not_replaced_unless_asked(converted: Any, old: str) -> None:
    with mmapdict("new") as store:
        store["mine"] = 1
    for dry_run in (False, True):
        with pytest.raises(FileExistsError, match="--overwrite"):
            converted(old, "new", shelf=True, dry_run=dry_run)
    assert_shelf("new", {"mine": 1})
    converted(old, "new", shelf=True, overwrite=True)
    assert_shelf("new", OBJECTS)


def test_what_is_no_file_is_never_replaced(converted: Any, old: str, here: Path) -> None:
    (here / "directory").mkdir()
    os.mkfifo("pipe")
    for overwrite in (False, True):
        with pytest.raises(IsADirectoryError):
            convert(old, "directory", overwrite=overwrite)
        with pytest.raises(OSError, match="not a regular file"):
            convert(old, "pipe", overwrite=overwrite)
    with pytest.raises(FileNotFoundError):
        convert(old, "missing/new")


def test_source_and_destination_are_not_one(converted: Any, old: str, here: Path) -> None:
    with mmapdict("store") as store:
        store["a"] = 1
    os.symlink("store", "link")
    os.link("store", "second")
    for src, dst in (("store", "store"), ("link", "store"), ("store", "link"), ("second", "store")):
        with pytest.raises(StateError, match="one file"):
            convert(src, dst, overwrite=True)
    for part in ("old.dat", "old.dir"):
        with pytest.raises(StateError, match="one file"):
            convert("old", part, overwrite=True)
    (here / "z").mkdir()
    (here / "z" / "key#0").write_bytes(b"1")
    with pytest.raises(StateError, match="in the source's directory"):
        convert("z", "z/new", face="bytes")
    assert [path.name for path in (here / "z").iterdir()] == ["key#0"]
    (here / "z").rename(".new.converting")
    with pytest.raises(StateError, match="where the new file would be made"):
        convert(".new.converting", "new")
    (here / ".new.converting").rename("z")
    assert [path.name for path in (here / "z").iterdir()] == ["key#0"]


@pytest.mark.parametrize("when", ["copying", "comparing"])
def test_a_source_that_changes_meanwhile_is_told(here: Path, old: str, when: str) -> None:
    with mmapdict("live") as live:
        live.update({f"key {i}": i for i in range(3000)})

        def change(done: int, total: int) -> None:
            if (done >= total // 2) is (when == "comparing"):
                live["key 2999"] = done

        with pytest.raises(StateError, match="changed while it was converted"):
            convert("live", "new", progress=change)
    assert not os.path.exists("new")
    assert not leftovers(here)


# Interruptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["mmapdict", "pmemobj"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 1.0])
def test_an_interrupted_conversion_leaves_nothing(here: Path, to: str, part: float) -> None:
    make_dbm("dbm.dumb", "old", {b"%d" % i: b"x" * 100 for i in range(4000)})

    def interrupt(done: int, total: int) -> None:
        assert total == 8000
        if done >= part * total:
            raise KeyboardInterrupt

    before = sorted(os.listdir())
    with pytest.raises(KeyboardInterrupt):
        convert("old", "new", to=to, progress=interrupt)
    assert sorted(os.listdir()) == before
    convert("old", "new", to=to)


def test_progress_goes_up_to_the_end(here: Path, old: str) -> None:
    calls: list[tuple[int, int]] = []
    convert(old, "new", progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2 * len(OBJECTS), 2 * len(OBJECTS))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    calls.clear()
    convert(old, "other", dry_run=True, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (len(OBJECTS), len(OBJECTS))


def test_a_full_disk_leaves_nothing(here: Path, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.system.pwritev

    def refuse(fd: int, *arguments: Any) -> int:
        if os.fstat(fd).st_size > 3000:
            raise OSError(28, "No space left on device")
        return write(fd, *arguments)

    make_dbm("dbm.dumb", "large", {b"%d" % i: b"x" * 100_000 for i in range(5)})
    before = sorted(os.listdir())
    with monkeypatch.context() as patch:
        patch.setattr(storage.system, "pwritev", refuse)
        with pytest.raises(NoSpaceError):
            convert("large", "new")
    assert sorted(os.listdir()) == before


def test_what_was_written_wrong_is_found_out(
    here: Path, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison reads the new file itself."""

    def spoil(change: Callable[[mmapdict], object]) -> Callable[[Any, str], None]:
        compare = module._Work.compare

        def spoiled(work: Any, path: str) -> None:
            with mmapdict(path) as store:
                change(store)
            compare(work, path)

        return spoiled

    changes: list[Callable[[mmapdict], object]] = [
        lambda store: store.update(text="another"),
        lambda store: store.update(list=[1]),
        lambda store: store.pop("none"),
        lambda store: store.update(more=1),
    ]
    for change in changes:
        with monkeypatch.context() as patch:
            patch.setattr(module._Work, "compare", spoil(change))
            with pytest.raises(StorageError, match=r"did not come back|does not hold"):
                convert(old, "new", shelf=True)
        assert not os.path.exists("new")
        assert not leftovers(here)


# Size -------------------------------------------------------------------------------------------


def test_large_values_pass_through(converted: Any, here: Path) -> None:
    (here / "z").mkdir()
    for number in range(3):
        (here / "z" / f"key{number}#{number}").write_bytes(bytes([number]) * 20_000_000)
    report = converted("z", "new", face="bytes")
    assert report.bytes == 60_000_012
    with our_dbm.open("new") as database:
        assert database[b"key2"] == b"\2" * 20_000_000


def test_a_pool_takes_what_is_more_than_one_transaction(converted: Any) -> None:
    content = {b"%d" % i: b"x" * (i % 7000) for i in range(3000)}
    make_dbm("dbm.dumb", "old", content)
    converted("old", "new", to="pmemobj")
    with pmshelve.dbm_compat.pmemobj.open("new") as database:
        assert dict(database.items()) == content
