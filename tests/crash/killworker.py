"""A process to be killed: writes to a store by a script that a seed gives, and says what is done.

Run as a program it is a nursery: it imports everything once, then forks one writer or reader for
each line of JSON it reads.  All of them answer on one pipe, a line at a time:

    p PID      a process began
    a N        operation N has returned
    r N        a reader has made N rounds, N a power of two
    e TEXT     something was not as it should be
    x STATUS   the process has ended, and all its lines have been sent
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import traceback
from typing import Any

import numpy as np

from pmshelve.mmapdict import mmapdict

KEYS = [f"key {number}" for number in range(12)]
Model = dict[str, Any]


def value_of(key: str, number: int, kind: int) -> Any:
    """Return the value that operation `number` gives `key`; it tells both by itself."""
    if kind < 5:
        return f"{key}|{number}|" + "v" * (number * 37 % 400)
    if kind < 7:
        return {"key": key, "number": number, "nested": [number] * 5}
    if kind < 9:
        return np.full(number * 131 % 3000 + 1, number)
    return {"key": key, "number": number, "array": np.full(5000 + number % 9000, number)}


def is_whole(key: str, value: Any) -> bool:
    """Tell whether a value is as `value_of` made it, of some operation."""
    if isinstance(value, str):
        found, number, rest = value.split("|")
        return found == key and rest == "v" * (int(number) * 37 % 400)
    if isinstance(value, dict):
        array = value.get("array")
        numbers_agree = array is None or bool((array == value["number"]).all())
        return value["key"] == key and numbers_agree
    return bool((value == value[0]).all()) and len(value) == int(value[0]) * 131 % 3000 + 1


def operation(seed: int, number: int) -> tuple[str, list[tuple[str, Any]], list[str]]:
    """Return what operation `number` does: its name, what it sets and what it deletes."""
    rng = random.Random(seed * 1_000_003 + number)
    name = rng.choices(
        ["put", "delete", "batch", "vacuum", "clear", "sync", "reopen"], [60, 15, 12, 4, 1, 4, 4]
    )[0]
    count = {"put": 1, "batch": rng.randrange(1, 6)}.get(name, 0)
    sets = [(key, value_of(key, number, rng.randrange(11))) for key in rng.sample(KEYS, count)]
    count = {"delete": 1, "batch": rng.randrange(0, 3)}.get(name, 0)
    return name, sets, rng.sample(KEYS, count)


def apply(model: Model, seed: int, number: int) -> Model:
    """Return the model's content after operation `number`."""
    name, sets, gone = operation(seed, number)
    model = {} if name == "clear" else dict(model)
    for key in gone:
        model.pop(key, None)
    for key, value in sets:
        model.pop(key, None)
        model[key] = value
    return model


def open_store(path: str, how: str) -> Any:
    """Open the store in one of the ways that differ in how they write."""
    if how == "file object":
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        return mmapdict(open(path, "r+b"))
    options = {
        "plain": {},
        "synced": {"sync": True},
        "exclusive": {"exclusive": True},
        "autovacuum": {"autovacuum": True},
    }[how]
    return mmapdict(path, **options)


def _say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def write(path: str, how: str, seed: int, first: int) -> None:
    """Do operation `first` and all that follow, until somebody puts an end to it."""
    store = open_store(path, how)
    number = first
    while True:
        name, sets, gone = operation(seed, number)
        if name in ("put", "delete", "batch"):
            _change(store, name, sets, gone)
        elif name == "reopen":
            store.close()
            store = open_store(path, how)
        else:
            getattr(store, name)()
        _say(f"a {number}")
        number += 1


def _change(store: Any, name: str, sets: list[tuple[str, Any]], gone: list[str]) -> None:
    with store.batch() if name == "batch" else contextlib.nullcontext():
        for key in gone:
            store.pop(key, None)
        for key, value in sets:
            store[key] = value


def read(path: str) -> None:
    """Read all there is over and over; every value must be whole."""
    store = mmapdict(path, readonly=True)
    rounds = 0
    while True:
        for key in KEYS:
            value = store.get(key)
            if value is not None and not is_whole(key, value):
                raise AssertionError(f"{key}: {value!r}")
        for key, value in store.items():
            if not is_whole(key, value):
                raise AssertionError(f"{key}: {value!r}")
        rounds += 1
        if rounds & (rounds - 1) == 0:
            _say(f"r {rounds}")


def main() -> None:
    """Fork a process for each command, and one that waits for its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        command = json.loads(line)
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pid = os.fork()
        if pid:
            _say(f"x {os.waitpid(pid, 0)[1]}")
            os._exit(0)
        _say(f"p {os.getpid()}")
        try:
            (read if command.pop("reads", False) else write)(**command)
        except BaseException:
            _say("e " + json.dumps(traceback.format_exc()))
        finally:
            os._exit(1)


if __name__ == "__main__":
    main()
