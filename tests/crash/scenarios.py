"""What is done to stores before they crash: every kind of change, in every way of writing."""

from __future__ import annotations

import datetime
import decimal
import os
import pickle
import random
import shutil
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.crashlab import Scenario
from tests.support.history import Content, Step, Value
from tests.support.steps import (
    Holder,
    batch,
    bulk_update,
    check,
    clear,
    close,
    delete,
    empty,
    fsck,
    open_,
    pop_last,
    put,
    renumber,
    reopen,
    sync,
    vacuum,
)

DATA = Path(__file__).parent.parent / "data"

SMALL_ARRAY = np.arange(300, dtype="u2")
LARGE_ARRAY = np.arange(9_000, dtype="f8")
"""More than 64 KiB."""
MASKED = np.ma.MaskedArray(np.arange(600), np.arange(600) % 3 == 0, fill_value=-1)
HOLDER = {"first": np.arange(2_000), "second": np.arange(3_000.0), "name": "two buffers"}
LONG_BYTES = bytes(range(251)) * 300
LONG_TEXT = "ä€" * 20_000
LONG_KEY = "k" * 300

STORE = "pmshelve.mmapdict."
CHECKPOINTS = (
    (STORE + "index.CHECKPOINT_COUNT", 3),
    (STORE + "index.CHECKPOINT_CLOSE_MIN", 2),
    (STORE + "vacuum.CHECKPOINT_CLOSE_MIN", 2),
)


# Openers --------------------------------------------------------------------------------------


def opener(**options: Any) -> Callable[[str], Any]:
    """Return what opens a path with these options."""

    def open_it(path: str) -> Any:
        from pmshelve.mmapdict import mmapdict

        return mmapdict(path, timeout=5.0, **options)

    return open_it


def file_object(path: str) -> Any:
    """Open the store on a file object, which must be closed with it."""
    from pmshelve.mmapdict import mmapdict

    class Closing(mmapdict):
        def close(self) -> None:
            super().close()
            stream.close()

    stream = open(path, "r+b")  # noqa: SIM115
    try:
        return Closing(stream)
    except BaseException:
        stream.close()
        raise


plain = opener()
readonly = opener(readonly=True)
synced = opener(sync=True)
exclusive = opener(exclusive=True)


def mended(path: str) -> Any:
    """Open the store and mend it if it is damaged."""
    store = plain(path)
    if list(store.check()):
        store.fsck()
    return store


def mend() -> Step:
    """Let `fsck` find the damage."""

    def run(holder: Holder) -> None:
        assert holder.store.fsck() is False

    return Step("fsck", run)


# Files ----------------------------------------------------------------------------------------

_FIRST: dict[str, Any] = {
    "a": "first",
    "b": b"second" * 100,
    "c": {"third": [3, 3.0]},
    "array": np.arange(1_000, dtype="i4"),
    "d": None,
}
FIRST: Content = tuple((key, Value(value)) for key, value in _FIRST.items())


def first_file(path: str) -> None:
    """Make a store with a few values of every kind and some dead entries."""
    with plain(path) as store:
        store["old"] = "deleted" * 30
        store["b"] = "replaced"
        for key, value in _FIRST.items():
            store[key] = value
        del store["old"]
        store.sync()


def linked_file(path: str) -> None:
    """Make the first file with a second name, so that it cannot be replaced."""
    first_file(path)
    os.link(path, path + ".second")


def torn_file(path: str) -> None:
    """Make the first file and tear its last entry."""
    first_file(path)
    os.truncate(path, os.path.getsize(path) - 20)


def damaged_file(path: str) -> None:
    """Make the first file and spoil the entry of one key in its middle."""
    first_file(path)
    with open(path, "r+b") as stream:
        data = stream.read()
        stream.seek(data.index(b"\x8c\x01c") + 40)
        stream.write(b"spoilt")


def empty_file(path: str) -> None:
    """Make an empty store."""
    with plain(path) as store:
        store.sync()


def many_file(path: str) -> None:
    """Make a store of a hundred small values."""
    with plain(path) as store:
        for key, value in _MANY.items():
            store[key] = value
        store.sync()


_MANY = {f"key {number}": number * b"m" for number in range(100)}
MANY: Content = tuple((key, Value(value)) for key, value in _MANY.items())


def copied(name: str) -> Callable[[str], None]:
    """Return what copies a file of mmappickle's."""

    def copy(path: str) -> None:
        shutil.copyfile(DATA / name, path)
        os.chmod(path, 0o644)

    return copy


def generic_content() -> Content:
    """Return what generic.mmdpickle holds (tests/data/README.md)."""
    shared = [1, 2, 3]
    text = "shared"
    return as_content(
        {
            "none": None,
            "true": True,
            "int": 42,
            "negative": -7,
            "big": 2**80,
            "float": 1.5,
            "bytes": b"\x00\xff",
            "text": "héllo 世",
            "nested": {"a": [shared, shared, {"k": text}], "b": (text, text), 3: None},
            "ordered": OrderedDict(z=1, a=2),
            "date": datetime.date(2018, 3, 5),
            "decimal": decimal.Decimal("1.10"),
            "set": frozenset({1, 2}),
            "é-key": "unicode key",
            "k" * 255: "longest key",
        }
    )


def arrays_content() -> Content:
    """Return what arrays.mmdpickle holds."""
    return as_content(
        {
            "u8": np.array([1, 2, 3], "u1"),
            "f8_2d": np.arange(12.0).reshape(3, 4),
            "i4_3d": np.arange(24, dtype="i4").reshape(2, 3, 4),
            "bool": np.array([True, False]),
            "c16": np.array([1 + 2j]),
            "f4_big_endian": np.arange(4, dtype=">f4"),
            "empty": np.zeros((0, 3)),
            "wide": np.zeros((300, 2), "i2"),
            "text_after": "mixed with a generic value",
        }
    )


def history_content() -> Content:
    """Return what history.mmdpickle holds."""
    kept = {f"k{i:02}": {"i": i, "shared": ["shared", "shared"]} for i in range(20) if i % 3 == 2}
    replaced = {f"k{i:02}": f"replaced {i}" for i in range(1, 20, 3)}
    return as_content(kept | replaced | {"array": np.arange(6)})


def as_content(items: dict[str, Any]) -> Content:
    """Return the content of these items."""
    return tuple((key, Value(value)) for key, value in items.items())


# Scenarios ------------------------------------------------------------------------------------


def make(
    name: str,
    *steps: Step,
    prepare: Callable[[str], None] | None = first_file,
    content: Content = FIRST,
    opens: Callable[[str], Any] = plain,
    reopens: Callable[[str], Any] | None = None,
    reads: Callable[[str], Any] | None = readonly,
    **more: Any,
) -> Scenario:
    """Return a scenario whose first step opens the store."""
    if prepare is None:
        content = ()
    steps = (open_(), *steps)
    return Scenario(name, steps, opens, reopens or opens, reads, prepare, content, **more)


def scenarios() -> list[Scenario]:
    """Return all scenarios that are the same in every run."""
    small = (
        put("new", "value"),
        put("a", "replaced"),
        delete("b"),
        put("c", b"x" * 700),
        put("b", 12345),
        pop_last("b"),
        put("e", {"k": [1, 2]}),
    )
    large = (
        put("small", SMALL_ARRAY, spoils=True),
        put("large", LARGE_ARRAY, spoils=True),
        put("array", SMALL_ARRAY * 2, spoils=True),
        put("holder", HOLDER, spoils=True),
        delete("array"),
        put("large", MASKED, spoils=True),
    )
    long = (
        put("bytes", LONG_BYTES, spoils=True),
        put("text", LONG_TEXT, spoils=True),
        put("bytes", b"short"),
    )
    return [
        make("create", put("a", 1), put("b", b"b" * 600), close(), prepare=None),
        make(
            "create synced",
            put("a", 1, durable=True),
            put("b", LARGE_ARRAY, durable=True),
            prepare=None,
            opens=synced,
        ),
        make("create, then sync", put("a", 1), sync(), put("b", 2), prepare=None),
        make("empty, then one", put("a", 1), delete("a"), prepare=empty_file, content=()),
        make("small", *small),
        make("small, synced at times", small[0], small[1], sync(), *small[2:5], sync(), small[6]),
        make("small synced", *(_durable(step) for step in small), opens=synced),
        make("large", *large),
        make("large synced", *(_durable(step) for step in large), opens=synced),
        make("long", *long),
        make("long synced", *(_durable(step) for step in long), opens=synced),
        make(
            "empty arrays",
            empty("sparse", (2_000,)),
            empty("reserved", (300, 3), reserve=True),
            empty("a", (10,)),
            put("after", 1),
        ),
        make(
            "batches",
            batch({"a": 1, "new": "n" * 600, "array": SMALL_ARRAY}, ("b", "c"), spoils=True),
            bulk_update({f"u{number}": number for number in range(20)}),
            batch({}, ("a", "u3")),
            batch({"u4": LARGE_ARRAY, "u5": 5}, ("u6",), spoils=True),
        ),
        make(
            "batches synced",
            batch({"a": 1, "new": "n" * 600, "array": SMALL_ARRAY}, ("b", "c"), durable=True),
            bulk_update({f"u{number}": number for number in range(20)}, durable=True),
            batch({}, ("a", "u3"), durable=True),
            opens=synced,
        ),
        make("clear", clear(), put("a", "after"), clear(), sync()),
        make("clear many", clear(), put("a", "after"), prepare=many_file, content=MANY),
        make("vacuum", vacuum(), put("a", 1), delete("b"), sync(), vacuum()),
        make("vacuum many", delete("key 7"), vacuum(), prepare=many_file, content=MANY),
        make(
            "vacuum in place",
            delete("b"),
            vacuum(),
            put("a", 1),
            delete("array"),
            sync(),
            vacuum(),
            put("z", LARGE_ARRAY, spoils=True),
            opens=file_object,
            reads=None,  # a move that was cut short must be completed first
        ),
        make(
            "vacuum in place, two names",
            delete("b"),
            vacuum(),
            put("a", 1),
            vacuum(),
            put("z", 2),
            prepare=linked_file,
            reads=None,
        ),
        make(
            "vacuum by itself",
            *(put("a", bytes([number]) * 900) for number in range(4)),
            batch({"a": 1, "b": 2}, ("c",)),
            opens=opener(autovacuum=True),
            constants=((STORE + "session.AUTOVACUUM_MIN", 1500),),
        ),
        make(
            "checkpoints",
            put("a", 1),
            put("b", 2),
            put("e", 3),
            delete("c"),
            batch({"f": 1, "g": 2}, ("a",)),
            put("b", 3),
            reopen(),
            put("f", 2),
            delete("d"),
            put("c", 1),
            close(),
            constants=CHECKPOINTS,
        ),
        make(
            "checkpoints synced",
            *(_durable(put(f"k{number % 5}", number)) for number in range(9)),
            reopen(),
            _durable(delete("k1")),
            _durable(put("k2", "x")),
            opens=synced,
            constants=CHECKPOINTS,
        ),
        make(
            "checkpoints of many",
            put("key 5", 1),
            delete("key 6"),
            put("key 5", 2),
            reopen(),
            delete("key 5"),
            vacuum(),
            put("key 6", 3),
            prepare=many_file,
            content=MANY,
            constants=CHECKPOINTS,
        ),
        make(
            "checkpoints, exclusive",
            *(put(f"k{number % 5}", number) for number in range(8)),
            close(),
            opens=exclusive,
            constants=CHECKPOINTS,
        ),
        make(
            "torn tail",
            put("a", 1),
            sync(),
            put("d", 2),
            prepare=torn_file,
            content=FIRST[:-1],
            stock_raw=False,
        ),
        make(
            "fsck of a damaged file",
            mend(),
            put("a", 1),
            sync(),
            prepare=damaged_file,
            content=tuple(item for item in FIRST if item[0] != "c"),
            reopens=mended,
            reads=None,
            stock_raw=False,
        ),
        make("exclusive", *small, *large, opens=exclusive),
        make(
            "exclusive, punching",
            put("h1", LARGE_ARRAY, spoils=True),
            put("h2", LARGE_ARRAY + 1, spoils=True),
            delete("h1"),
            put("h2", LARGE_ARRAY + 2, spoils=True),
            sync(),
            delete("h2"),
            put("h3", LARGE_ARRAY + 3, spoils=True),
            vacuum(),
            close(),
            opens=exclusive,
        ),
        make(
            "exclusive, reserving often",
            *(put(f"k{number % 5}", bytes([number]) * 900) for number in range(7)),
            batch({"a": 1, "k1": b"b" * 5_000}, ("b",)),
            put("k2", b"e" * 900),
            put("array", SMALL_ARRAY, spoils=True),
            sync(),
            put("k3", b"f" * 900),
            close(),
            opens=exclusive,
            constants=((STORE + "openfile.RESERVE_SIZE_MAX", 512),),
        ),
        make("close and open", put("a", 1), reopen(), put("b", 2), sync(), reopen(), delete("a")),
        make("looking", check(), fsck(), renumber(77), put("a", 1), renumber(2**30), put("b", 2)),
        make("keys mmappickle cannot hold", put(LONG_KEY, 1), put("\ud800", 2), delete(LONG_KEY)),
        make(
            "convert protocol 4",
            put("c", 3),
            prepare=copied("plain-dict-protocol4.pickle"),
            content=as_content({"a": 1, "b": np.arange(3)}),
            reads=None,
        ),
        make(
            "convert protocol 2",
            sync(),
            prepare=copied("plain-dict-protocol2.pickle"),
            content=as_content({"a": 1, "b": (1, 2, 3), "c": "test"}),
            reads=None,
        ),
        make(
            "convert large",
            prepare=_pickle_of(_MANY | {"array": LARGE_ARRAY}),
            content=as_content(_MANY | {"array": LARGE_ARRAY}),
            reads=None,
        ),
        make(
            "mmappickle's file",
            put("new", "value"),
            put("int", 43),
            delete("text"),
            put("array", SMALL_ARRAY, spoils=True),
            vacuum(),
            put("int", 44),
            prepare=copied("generic.mmdpickle"),
            content=generic_content(),
        ),
        make(
            "mmappickle's arrays",
            put("u8", SMALL_ARRAY, spoils=True),
            delete("f8_2d"),
            batch({"wide": 1}, ("c16",)),
            sync(),
            vacuum(),
            prepare=copied("arrays.mmdpickle"),
            content=arrays_content(),
            stock=False,
            stock_raw=False,
        ),
        make(
            "mmappickle's history",
            put("k00", "again"),
            delete("k02"),
            fsck(),
            put("k02", "again"),
            prepare=copied("history.mmdpickle"),
            content=history_content(),
            stock=False,
            stock_raw=False,
        ),
        make(
            "mmappickle's empty file",
            put("a", 1),
            delete("a"),
            put("a", 2),
            prepare=copied("empty.mmdpickle"),
            content=(),
        ),
        make(
            "bytes face",
            put("a", b"1"),
            put("a", b"2" * 600),
            delete("a"),
            put("a", b"3"),
            prepare=None,
            opens=opener(face="bytes"),
            reads=opener(face="bytes", readonly=True),
        ),
        make("two handles", *_by_turns(), opens=Pair, reopens=plain),
    ]


def _durable(step: Step) -> Step:
    return Step(step.label, step.run, step.effect, True, step.loads_raw)


def _pickle_of(items: dict[str, Any]) -> Callable[[str], None]:
    def prepare(path: str) -> None:
        with open(path, "wb") as stream:
            pickle.dump(items, stream, 4)

    return prepare


class Pair:
    """Two handles on one file, as two processes have them; steps say which one they mean."""

    def __init__(self, path: str) -> None:
        self.handles = plain(path), plain(path)

    def close(self) -> None:
        """Close both."""
        for handle in self.handles:
            handle.close()


def _by(which: int, step: Step) -> Step:
    def run(holder: Holder) -> None:
        pair = holder.store
        single = Holder(holder.path, holder.opener)
        single.store = pair.handles[which]
        step.run(single)

    return Step(f"handle {which}: {step.label}", run, step.effect, False, step.loads_raw)


def _by_turns() -> list[Step]:
    return [
        _by(0, put("a", "by 0")),
        _by(1, put("a", "by 1")),
        _by(0, delete("b")),
        _by(1, batch({"b": 1, "e": 2}, ("c",))),
        _by(0, put("array", SMALL_ARRAY, spoils=True)),
        _by(1, vacuum()),
        _by(0, put("f", "by 0")),
        _by(1, sync()),
        _by(0, clear()),
        _by(1, put("g", "by 1")),
    ]


# At random ------------------------------------------------------------------------------------


def random_scenario(seed: int) -> Scenario:
    """Return a scenario of random steps in a random way of writing."""
    rng = random.Random(seed)
    keys = ["a", "b", "c", "array", "x", "y" * rng.choice((1, 260))]
    opens = rng.choice([plain, plain, plain, synced, exclusive, opener(autovacuum=True)])
    present = {key for key, _ in FIRST}
    steps = [
        _random_step(rng, number, keys, present, opens is synced)
        for number in range(rng.randrange(4, 10))
    ]
    return make(f"random {seed}", *steps, opens=opens)


def _random_value(rng: random.Random, number: int) -> tuple[Any, bool]:
    kind = rng.randrange(9)
    if kind < 4:
        return f"{number}" * rng.choice((1, 10, 300, 600)), False
    if kind < 6:
        return {"number": number, "list": [number] * rng.randrange(200)}, False
    if kind < 8:
        return np.full(rng.choice((1, 100, 2_000, 9_000)), number), True
    return {"n": number, "array": np.full(rng.choice((2_000, 9_000)), number)}, True


def _random_step(
    rng: random.Random, number: int, keys: list[str], present: set[str], durable: bool
) -> Step:
    kind = rng.randrange(20)
    gone = rng.sample(sorted(present), min(len(present), rng.randrange(1, 3)))
    if kind < 2 and gone:
        present.discard(gone[0])
        return delete(gone[0], durable=durable)
    if kind < 6:
        chosen = rng.sample(keys, rng.randrange(1, 4))
        values = [_random_value(rng, number) for _ in chosen]
        gone = [key for key in gone if key not in chosen]
        present.difference_update(gone)
        present.update(chosen)
        spoils = any(spoils for _, spoils in values)
        items = dict(zip(chosen, (value for value, _ in values), strict=True))
        return batch(items, tuple(gone), spoils=spoils, durable=durable)
    if kind == 6:
        present.clear()
        return clear()
    if kind == 7:
        return vacuum()
    if kind == 8:
        return sync()
    if kind == 9:
        return reopen()
    key = rng.choice(keys)
    present.add(key)
    value, spoils = _random_value(rng, number)
    return put(key, value, spoils=spoils, durable=durable)
