"""Crash a store at every instant of a scenario, reopen what is left, and judge it.

`record` runs a scenario on a simulated disk.  `attack` then builds, for every cut of its log, what
a kill and what a power cut could leave, and hands each state that is new to `Judge.examine`, which
demands:

* a kill leaves exactly the content before or after the step in flight, in order; a power cut what
  `History.after_power_cut` allows;
* a reader without the right to write sees an allowed content too, and changes no byte;
* after a writable open `check` is silent, and stock `pickle.load` gives what the store gives;
* the store is usable: set, replace, delete, close, open, and all of it is there.

Some states are opened on a simulated disk again, and the repair itself is cut.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pmshelve.errors import NotAStoreError
from tests.support.diskstates import DiskState, Replay
from tests.support.guard import time_limit
from tests.support.history import Content, History, Step, Window, matches
from tests.support.simdisk import SimDisk, Write, rebooted
from tests.support.steps import Holder
from tests.support.stores import stock_load

__all__ = ["Judge", "Recording", "Scenario", "attack", "record"]

NAME = "store"
BOOT_BEFORE = b"boot-before-cut-"
BOOT_AFTER = b"boot-after-cut--"
BOOT_LATER = b"boot-much-later-"

Opener = Callable[[str], Any]


@dataclass(frozen=True)
class Scenario:
    """A file, what it holds, and what is done to it.

    Parameters
    ----------
    steps
        The first one usually opens the store.
    opener
        Opens the store the steps work on.
    prepare
        Makes the file, which is then taken as safely on the disk; None: there is none.
    content
        What it holds.
    reopener
        Opens what a crash left, for writing.
    readonly_opener
        Opens what a crash left, for reading; None: that is not tried.
    stock
        Whether stock `pickle.load` gives what the store gives, once the store was open for writing.
    stock_raw
        Whether it does so at other times too, where `Step.loads_raw` does not say otherwise.
    constants
        Module constants to change, such as limits that a small file would never reach: pairs of
        "module.NAME" and the value.
    """

    name: str
    steps: tuple[Step, ...]
    opener: Opener
    reopener: Opener
    readonly_opener: Opener | None
    prepare: Callable[[str], None] | None = None
    content: Content = ()
    stock: bool = True
    stock_raw: bool = True
    constants: tuple[tuple[str, Any], ...] = ()

    @contextlib.contextmanager
    def changed(self) -> Iterator[None]:
        """Change the constants for the length of a `with` block."""
        before = []
        try:
            for name, value in self.constants:
                module_name, _, attribute = name.rpartition(".")
                module = importlib.import_module(module_name)
                before.append((module, attribute, getattr(module, attribute)))
                setattr(module, attribute, value)
            yield
        finally:
            for module, attribute, value in reversed(before):
                setattr(module, attribute, value)

    def __str__(self) -> str:
        return self.name


@dataclass
class Recording:
    """A scenario that was run: its disk's log and what is known at each point of it."""

    scenario: Scenario
    disk: SimDisk
    history: History
    windows: list[Window] = field(default_factory=list)


def record(scenario: Scenario, directory: str) -> Recording:
    """Run a scenario on a simulated disk in `directory`."""
    with scenario.changed():
        return _record(scenario, directory)


def _record(scenario: Scenario, directory: str) -> Recording:
    path = os.path.join(directory, NAME)
    if scenario.prepare is not None:
        with rebooted(BOOT_BEFORE):
            scenario.prepare(path)
    disk = SimDisk(directory, BOOT_BEFORE)
    history = History(scenario.content, list(scenario.steps))
    holder = Holder(path, scenario.opener)
    with disk.installed():
        for number, step in enumerate(scenario.steps):
            disk.mark("begin", number)
            step.run(holder)
            disk.mark("end", number)
        disk.verify()
        holder.close()
    recording = Recording(scenario, disk, history)
    recording.windows = history.windows(disk.ops)
    return recording


class Judge:
    """Examines states in a directory of its own, and counts them."""

    def __init__(self, recording: Recording, directory: str, rng: random.Random) -> None:
        self.recording = recording
        self.scenario = recording.scenario
        self.directory = directory
        self.path = os.path.join(directory, NAME)
        self.rng = rng
        self.count = 0
        self._seen: set[tuple[bytes, Window, bool]] = set()

    def is_new(self, state: DiskState, window: Window) -> bool:
        """Tell whether this state was not examined under the same demands before."""
        key = (state.digest(), window, state.power)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def examine(self, state: DiskState, window: Window, *, deep: int = 0) -> None:
        """Fail unless what is left is what may be left; `deep` cuts the repair that often."""
        self.count += 1
        history = self.recording.history
        if state.power:
            allowed, spoilt = history.after_power_cut(window), history.may_be_spoilt(window)
            boot = BOOT_AFTER
        else:
            allowed, spoilt = history.after_kill(window), set()
            boot = BOOT_BEFORE
        try:
            with time_limit(30):
                self._examine(state, allowed, spoilt, boot, window)
            if deep:
                self._cut_the_repair(state, allowed, spoilt, boot, deep)
        except BaseException as error:
            self._explain(error, state, window)
            raise

    def _examine(
        self,
        state: DiskState,
        allowed: list[Content],
        spoilt: set[int],
        boot: bytes,
        window: Window,
    ) -> None:
        state.write_to(self.directory)
        ordered = not state.power
        if ordered:
            self._load_raw(state, allowed, window)
        with rebooted(boot):
            try:
                self._read_only(state, allowed, spoilt, ordered)
            except NotAStoreError:
                # Nobody has promised yet that there is a store.
                assert self.scenario.prepare is None and not window.durable
            found = self._content(self.path, allowed, spoilt, ordered)
            self._use(found)

    def _load_raw(self, state: DiskState, allowed: list[Content], window: Window) -> None:
        """Let stock pickle load the file as the kill left it."""
        steps = self.recording.history.steps[window.returned : window.begun]
        if not self.scenario.stock_raw or not all(step.loads_raw for step in steps):
            return
        data = state.files.get(NAME)
        if data:
            loaded = stock_load(io.BytesIO(data))
            assert any(matches(loaded, content, set()) for content in allowed), (
                f"pickle.load gives {_brief(loaded)}"
            )

    def _read_only(
        self, state: DiskState, allowed: list[Content], spoilt: set[int], ordered: bool
    ) -> None:
        opener = self.scenario.readonly_opener
        if opener is None or not state.files.get(NAME):
            return
        store = opener(self.path)
        try:
            found = dict(store.items())
            assert list(store) == list(found), f"keys {list(store)}, items {list(found)}"
            assert len(store) == len(found), f"len {len(store)}, items {_brief(found)}"
            self._judge("read-only", found, allowed, spoilt, ordered)
        finally:
            store.close()
        for name, data in state.files.items():
            with open(os.path.join(self.directory, name), "rb") as stream:
                assert stream.read() == data, "a reader changed the file"

    def _content(
        self, path: str, allowed: list[Content], spoilt: set[int], ordered: bool
    ) -> dict[str, Any]:
        """Open for writing, judge and return the content."""
        store = self.scenario.reopener(path)
        try:
            found = {key: store[key] for key in store}
            assert len(store) == len(found), f"len {len(store)}, items {_brief(found)}"
            assert all(key in store for key in found)
            self._judge("reopened", found, allowed, spoilt, ordered)
            _is_sound(store)
            if self.scenario.stock:
                self._compare_stock(found)
        finally:
            store.close()
        return found

    def _compare_stock(self, found: dict[str, Any]) -> None:
        loaded = stock_load(self.path)
        same = matches(loaded, tuple((key, _Found(value)) for key, value in found.items()), set())
        assert same, f"pickle.load gives {_brief(loaded)}, the store {_brief(found)}"

    def _judge(
        self,
        who: str,
        found: dict[str, Any],
        allowed: list[Content],
        spoilt: set[int],
        ordered: bool,
    ) -> None:
        if not any(matches(found, content, spoilt, ordered=ordered) for content in allowed):
            wanted = "\n  or ".join(_brief(dict(content)) for content in allowed[:8])
            raise AssertionError(
                f"{who} it holds {_brief(found)}\n  but may hold (of {len(allowed)}) {wanted}"
            )

    def _use(self, found: dict[str, Any]) -> None:
        """Change the store in every way, close it, and look whether all of that is there."""
        expected = dict(found)
        store = self.scenario.reopener(self.path)
        try:
            store["new key"] = expected["new key"] = b"new value" * 9
            if found:
                first = next(iter(found))
                store[first] = b"replaced"
                expected.pop(first)
                expected[first] = b"replaced"
            if len(found) > 1:
                second = list(found)[1]
                del store[second], expected[second]
        finally:
            store.close()
        store = self.scenario.reopener(self.path)
        try:
            again = {key: store[key] for key in store}
            content = tuple((key, _Found(value)) for key, value in expected.items())
            assert matches(again, content, set(), ordered=True), (
                f"after further use it holds {_brief(again)}, not {_brief(expected)}"
            )
            _is_sound(store)
        finally:
            store.close()

    # The repair -------------------------------------------------------------------------------

    def _cut_the_repair(
        self, state: DiskState, allowed: list[Content], spoilt: set[int], boot: bytes, budget: int
    ) -> None:
        """Open the state once more on a simulated disk, and crash that at every instant."""
        state.write_to(self.directory)
        disk = SimDisk(self.directory, boot)
        with disk.installed():
            holder = Holder(self.path, self.scenario.reopener)
            holder.open()
            found = {key: holder.store[key] for key in holder.store}
            found = {key: _detached(value) for key, value in found.items()}
            holder.close()
        seen = {state.digest()}
        replay = Replay(disk)
        for op in disk.ops:
            replay.step(op)
            states = [replay.kill_state()]
            states.extend(replay.power_states(self.rng, budget))
            for second in states:
                if second.digest() in seen:
                    continue
                seen.add(second.digest())
                self._after_second_crash(second, found, allowed, spoilt, boot)

    def _after_second_crash(
        self,
        second: DiskState,
        found: dict[str, Any],
        allowed: list[Content],
        spoilt: set[int],
        boot: bytes,
    ) -> None:
        self.count += 1
        second.write_to(self.directory)
        if not second.power:
            # What the repair showed stays.
            allowed = [tuple((key, _Found(value)) for key, value in found.items())]
        try:
            with time_limit(30), rebooted(BOOT_LATER if second.power else boot):
                again = self._content(self.path, allowed, spoilt, ordered=False)
                self._use(again)
        except BaseException as error:
            _note(error, f"second crash, in the repair: {second.label}")
            raise

    def _explain(self, error: BaseException, state: DiskState, window: Window) -> None:
        steps = self.recording.history.steps
        done = ", ".join(step.label for step in steps[: window.returned])
        flying = ", ".join(step.label for step in steps[window.returned : window.begun])
        cut = int(state.label.split(" at ")[1].split(":")[0].split()[0])
        ops = self.recording.disk.ops
        lines = [
            f"scenario {self.scenario.name}: {state.label}",
            f"returned: {done or 'nothing'} (durable: {window.durable}); in flight: {flying}",
            *(
                f"  {number} {op}"
                for number, op in enumerate(ops[max(0, cut - 25) : cut + 2], start=max(0, cut - 25))
            ),
            f"the files are in {self.directory}",
        ]
        state.write_to(self.directory)
        _note(error, "\n".join(lines))


@dataclass(frozen=True, eq=False)
class _Found:
    """Takes the place of a `Value` where the expected one is what was found before."""

    value: Any
    spoils: bool = False


def _is_sound(store: Any) -> None:
    problems = list(store.check())
    assert not problems, f"check: {problems}"


def _detached(value: Any) -> Any:
    """Return a copy that holds no map."""
    if isinstance(value, np.ma.MaskedArray):
        copy = np.ma.MaskedArray(
            np.array(value.data), np.array(np.ma.getmaskarray(value)), fill_value=value.fill_value
        )
        return copy.harden_mask() if value.hardmask else copy
    if isinstance(value, np.ndarray):
        return np.array(value)
    if type(value) is dict:
        return {key: _detached(item) for key, item in value.items()}
    if type(value) is list:
        return [_detached(item) for item in value]
    return value


def _brief(content: dict[str, Any]) -> str:
    text = ", ".join(f"{key[:12]!r}: {_short(value)}" for key, value in content.items())
    return "{" + text + "}"


def _short(value: Any) -> str:
    text = repr(getattr(value, "value", value)).replace("\n", " ")
    return text if len(text) < 40 else f"{text[:30]}...{text[-6:]}"


def _note(error: BaseException, text: str) -> None:
    if hasattr(error, "add_note"):  # Python 3.11
        error.add_note(text)
    else:
        warnings.warn(text, stacklevel=2)


def attack(
    recording: Recording, directory: str, *, states_max: int, seed: int = 1, deep_every: int = 40
) -> int:
    """Examine about `states_max` states of a recording; return how many it were.

    Every cut gets its kill states and a share of the power cuts; every `deep_every`-th state is
    also crashed again while it is repaired.
    """
    with recording.scenario.changed():
        return _attack(recording, directory, states_max, seed, deep_every)


def _attack(
    recording: Recording, directory: str, states_max: int, seed: int, deep_every: int
) -> int:
    rng = random.Random(seed)
    ops = recording.disk.ops
    judge = Judge(recording, directory, rng)
    replay = Replay(recording.disk)
    cuts = 1 + sum(1 for op in ops if isinstance(op, Write))
    budget = max(6, states_max // cuts)
    for position in range(len(ops) + 1):
        window = recording.windows[position]
        states = [replay.kill_state()]
        if position < len(ops):
            states.extend(replay.torn_kill_states(ops[position]))
        states.extend(replay.power_states(rng, budget))
        for state in states:
            if judge.is_new(state, window):
                deep = 4 if judge.count % deep_every == deep_every - 1 else 0
                judge.examine(state, window, deep=deep)
        if position < len(ops):
            replay.step(ops[position])
    return judge.count
