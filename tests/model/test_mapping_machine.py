"""mmapdict against dict: every operation, from several handles and processes, in any order.

After each step the store under test, a read-only handle opened at the very beginning, stock
`pickle.load` of the file and an independent reader of the format must all agree with a plain dict
(in which setting a key moves it to the end, as it does in the file), and `check()` must be silent.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pmshelve.mmapdict import index as index_module
from pmshelve.mmapdict import mmapdict
from tests.support.layout import read_layout
from tests.support.processes import Worker
from tests.support.stores import stock_load
from tests.support.values import assert_same, same, stored_values

_KEYS = ["a", "b", "c", "key", "", "é" * 200, "\ud800", "\0pmshelve/1", "k" * 300]

_PRELUDE = """
import numpy
from pmshelve.mmapdict import index, mmapdict
def plain(value):
    # The pickle of a memmap, by which it goes to the other process, loses its byte order.
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return numpy.array(value) if isinstance(value, numpy.memmap) else value
"""

_worker: Worker | None = None


@pytest.fixture(scope="module", autouse=True)
def _second_process() -> Iterator[None]:
    """Run one other process for all examples: it opens and closes the file as it is told."""
    global _worker
    _worker = Worker(_PRELUDE)
    yield
    _worker.close()
    _worker = None


class Remote:
    """A handle in the second process, used as one of this process is."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        assert _worker is not None
        self.worker = _worker
        self.worker.run("store = mmapdict(path, **options)", path=path, options=options)

    def __setitem__(self, key: str, value: Any) -> None:
        self.worker.run("store[key] = value", key=key, value=value)

    def __delitem__(self, key: str) -> None:
        self.worker.run("del store[key]", key=key)

    def __getitem__(self, key: str) -> Any:
        return self.worker.eval("plain(store[key])", key=key)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            return self.worker.eval(f"plain(store.{name}(*arguments))", arguments=arguments)

        return call

    def apply(self, steps: list[tuple[Any, ...]], *, fail: bool) -> None:
        self.worker.run(_APPLY, steps=steps, fail=fail)

    def close(self) -> None:
        self.worker.run("store.close(); del store")


_APPLY = """
try:
    with store.batch():
        for key, *value in steps:
            if value:
                store[key] = value[0]
            else:
                store.pop(key, None)
        if fail:
            raise InterruptedError
except InterruptedError:
    pass
"""


def apply_local(store: mmapdict, steps: list[tuple[Any, ...]], *, fail: bool) -> None:
    """Do the steps as one batch; with `fail`, let it end in an exception."""
    try:
        with store.batch():
            for key, *value in steps:
                if value:
                    store[key] = value[0]
                else:
                    store.pop(key, None)
            if fail:
                raise InterruptedError
    except InterruptedError:
        pass


class MappingMachine(RuleBasedStateMachine):
    """A path, three handles that write (one of them in another process), and one that reads."""

    options: ClassVar[dict[str, Any]] = {}
    handles: ClassVar[tuple[str, ...]] = ("main", "second", "remote")
    holds_views: ClassVar[bool] = True

    keys = st.sampled_from(_KEYS)
    values = stored_values()
    steps = st.lists(st.tuples(keys, stored_values()) | st.tuples(keys), min_size=0, max_size=6)
    handle = st.sampled_from(["main", "main", "second", "remote"])

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="pmshelve-model-"))
        self.path = self.directory / "store.mmdpickle"
        self.model: dict[str, Any] = {}
        self.stores: dict[str, Any] = {}
        self.observer: Any = None
        self.held: list[tuple[Any, np.ndarray]] = []
        self.open_handles()

    def open_handles(self) -> None:
        self.stores["main"] = mmapdict(self.path, **self.options)
        self.observer = mmapdict(self.path, readonly=True)

    def store(self, name: str) -> Any:
        """Return a handle, opened when it is first used."""
        if name not in self.handles:
            name = "main"
        if name not in self.stores:
            opener: Any = Remote if name == "remote" else lambda path, kw: mmapdict(path, **kw)
            self.stores[name] = opener(self.path, self.options)
        return self.stores[name]

    def teardown(self) -> None:
        self.held = []
        for store in [*getattr(self, "stores", {}).values(), getattr(self, "observer", None)]:
            if store is not None:
                store.close()
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    def fit(self, value: Any) -> Any:
        """Return a value that this kind of store takes, in place of `value`."""
        return value

    def put(self, key: str, value: Any) -> None:
        self.model.pop(key, None)
        self.model[key] = value

    # Changes ----------------------------------------------------------------------------------

    @rule(name=handle, key=keys, value=values)
    def set(self, name: str, key: str, value: Any) -> None:
        value = self.fit(value)
        self.store(name)[key] = value
        self.put(key, value)

    @rule(name=handle, key=keys)
    def delete(self, name: str, key: str) -> None:
        store = self.store(name)
        if key in self.model:
            del store[key]
            del self.model[key]
        else:
            with pytest.raises(KeyError):
                del store[key]

    @rule(name=handle, key=keys, default=st.none() | st.integers())
    def pop(self, name: str, key: str, default: Any) -> None:
        got = self.store(name).pop(key, default)
        assert_same(got, self.model.pop(key, default))

    @rule(name=handle)
    def popitem(self, name: str) -> None:
        store = self.store(name)
        if self.model:
            key, value = store.popitem()
            assert_same(value, self.model.pop(key))
        else:
            with pytest.raises(KeyError):
                store.popitem()

    @rule(name=handle, key=keys, value=values)
    def setdefault(self, name: str, key: str, value: Any) -> None:
        value = self.fit(value)
        assert_same(self.store(name).setdefault(key, value), self.model.setdefault(key, value))

    @rule(name=handle, pairs=st.lists(st.tuples(keys, values), max_size=5))
    def update(self, name: str, pairs: list[tuple[str, Any]]) -> None:
        pairs = [(key, self.fit(value)) for key, value in pairs]
        self.store(name).update(pairs)
        for key, value in pairs:
            self.put(key, value)

    @rule(name=handle)
    def clear(self, name: str) -> None:
        self.store(name).clear()
        self.model.clear()

    @rule(name=handle, steps=steps, fail=st.booleans())
    def batch(self, name: str, steps: list[tuple[Any, ...]], fail: bool) -> None:
        store = self.store(name)
        steps = [(key, *map(self.fit, value)) for key, *value in steps]
        if isinstance(store, Remote):
            store.apply(steps, fail=fail)
        else:
            apply_local(store, steps, fail=fail)
        if not fail:
            for key, *value in steps:
                self.model.pop(key, None)
                if value:
                    self.model[key] = value[0]

    @rule(key=keys)
    def set_what_cannot_be_stored(self, key: str) -> None:
        before = self.raw()
        with pytest.raises(TypeError):
            self.store("main")[key] = [np.arange(2000), (i for i in ())]
        assert self.raw() == before

    def raw(self) -> bytes:
        return self.path.read_bytes()

    @rule(key=keys, number=st.integers(0, 100))
    def change_in_place(self, key: str, number: int) -> None:
        value = self.model.get(key)
        if isinstance(value, np.ndarray) and value.size and self.store("main").writable:
            view = self.store("main")[key]
            view[0] = number
            changed = value.copy()
            changed[0] = number
            self.model[key] = changed
            self.held = []  # they may be views of the same bytes

    @precondition(lambda self: self.holds_views)
    @rule(key=keys)
    def hold_a_view(self, key: str) -> None:
        value = self.model.get(key)
        if isinstance(value, np.ndarray):
            self.held = [*self.held[-5:], (self.store("main")[key], value.copy())]

    # What changes no content --------------------------------------------------------------------

    @rule(name=handle)
    def vacuum(self, name: str) -> None:
        self.store(name).vacuum()

    @rule(name=handle)
    def fsck(self, name: str) -> None:
        assert self.store(name).fsck() is True

    @rule(name=handle)
    def sync(self, name: str) -> None:
        self.store(name).sync()

    @rule(name=handle)
    def reopen(self, name: str) -> None:
        if name in self.stores and name in self.handles:
            self.stores.pop(name).close()
            self.store(name)

    @rule()
    def open_anew_to_read(self) -> None:
        self.observer.close()
        self.observer = mmapdict(self.path, readonly=True)

    @rule(number=st.integers(0, 2**30))
    def set_commit_number(self, number: int) -> None:
        self.store("main").commit_number = number

    @rule(key=keys)
    def look(self, key: str) -> None:
        for store in (self.store("main"), self.observer):
            if store is None:
                continue
            assert (key in store) == (key in self.model)
            assert_same(store.get(key, "missing"), self.model.get(key, "missing"))

    # What must hold -----------------------------------------------------------------------------

    @invariant()
    def everybody_agrees(self) -> None:
        if not hasattr(self, "stores"):
            return
        main = self.stores["main"]
        assert list(main.check()) == []
        for store in (main, self.observer):
            if store is not None:
                assert list(store) == list(self.model)
                assert len(store) == len(self.model)
                for key, value in store.items():
                    assert_same(value, self.model[key])
        data = self.raw()
        assert read_layout(data).live_keys() == list(self.model)
        loaded = self.load()
        assert list(loaded) == list(self.model)
        assert all(same(loaded[key], value) for key, value in self.model.items())
        for view, expected in self.held:
            assert_same(np.asarray(view), expected)

    def load(self) -> dict[str, Any]:
        return stock_load(self.path)


class CheckpointMachine(MappingMachine):
    """The same with index checkpoints after every few entries, merged as they come."""

    def open_handles(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(index_module, "CHECKPOINT_COUNT", 8)
        self.patch.setattr(index_module, "CHECKPOINT_CLOSE_MIN", 2)
        super().open_handles()

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "patch"):
            self.patch.undo()


class ExclusiveMachine(MappingMachine):
    """One handle that keeps the lock, so that holes are punched; nobody else has the file open."""

    options: ClassVar[dict[str, Any]] = {"exclusive": True}
    handles: ClassVar[tuple[str, ...]] = ("main",)

    def open_handles(self) -> None:
        self.stores["main"] = mmapdict(self.path, **self.options)

    @rule()
    def open_anew_to_read(self) -> None:
        """Nobody else may."""


class AutovacuumMachine(MappingMachine):
    """Handles that vacuum by themselves."""

    options: ClassVar[dict[str, Any]] = {"autovacuum": True}


class SyncedMachine(MappingMachine):
    """Handles that sync each commit, and give private views."""

    options: ClassVar[dict[str, Any]] = {"sync": True, "mmap_mode": "c"}

    @rule(key=MappingMachine.keys, number=st.integers(0, 100))
    def change_in_place(self, key: str, number: int) -> None:
        """Change what was got: the store does not change."""
        value = self.model.get(key)
        if isinstance(value, np.ndarray) and value.size:
            self.stores["main"][key][0] = number


class FileObjectMachine(MappingMachine):
    """A nameless file handed in: vacuumed in place, its position never moved."""

    handles: ClassVar[tuple[str, ...]] = ("main",)
    holds_views: ClassVar[bool] = False  # a vacuum in place moves what they look at

    def open_handles(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115
        self.file.write(b"")
        self.file.seek(7)
        self.stores["main"] = mmapdict(self.file)

    def store(self, name: str) -> Any:
        if "main" not in self.stores:
            self.stores["main"] = mmapdict(self.file)
        return self.stores["main"]

    @rule(name=MappingMachine.handle)
    def reopen(self, name: str) -> None:
        self.stores.pop("main").close()
        self.store("main")

    @rule()
    def open_anew_to_read(self) -> None:
        """It has no name to be opened by."""

    def raw(self) -> bytes:
        assert self.file.tell() == 7
        self.file.seek(0)
        data = self.file.read()
        self.file.seek(7)
        return data

    def load(self) -> dict[str, Any]:
        loaded = stock_load(self.file)
        self.file.seek(7)
        return loaded

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "file"):
            self.file.close()


class BytesFaceMachine(MappingMachine):
    """The face of a dbm: values are bytes."""

    options: ClassVar[dict[str, Any]] = {"face": "bytes"}

    def fit(self, value: Any) -> Any:
        return repr(value).encode()


TestMapping = MappingMachine.TestCase
TestCheckpoints = CheckpointMachine.TestCase
TestExclusive = ExclusiveMachine.TestCase
TestAutovacuum = AutovacuumMachine.TestCase
TestSynced = SyncedMachine.TestCase
TestFileObject = FileObjectMachine.TestCase
TestBytesFace = BytesFaceMachine.TestCase

if hypothesis.settings().max_examples <= 60:
    _SHORT = hypothesis.settings(max_examples=20, stateful_step_count=25)
    for _case in (TestMapping, TestCheckpoints, TestExclusive, TestAutovacuum, TestSynced,
                  TestFileObject, TestBytesFace):  # fmt: skip
        _case.settings = _SHORT
