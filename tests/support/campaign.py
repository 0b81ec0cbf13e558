"""One process of a campaign: writes, reads and vacuums a shared file, and keeps a log of it.

Three kinds of keys, each with a promise that any reader can check at any time:

    own:<name>:<n>     set, replaced and deleted by process `name` only: its log says what is there
    steady:<name>:<n>  set before the start, then only ever replaced, with rising numbers: never
                       missing, never older than a reader has seen before
    counter            raised by everybody, read and set in one batch: ends at the number of raises
"""

from __future__ import annotations

import random
import time
import zlib
from typing import Any

import numpy as np

from pmshelve.mmapdict import mmapdict

OWN_COUNT = 12
STEADY_COUNT = 4
COUNTER = "counter"


def prepare(store: Any, names: list[str]) -> None:
    """Set what must be there from the start."""
    with store.batch():
        store[COUNTER] = 0
        for name in names:
            for number in range(STEADY_COUNT):
                store[f"steady:{name}:{number}"] = make(name, 0)


def make(name: str, number: int, size: int | None = None) -> Any:
    """Return a value that tells by itself whether it is whole: text, bytes, array or object."""
    size = number * 37 % 3000 if size is None else size
    body = (f"{name}:{number}:".encode() * (size // 8 + 1))[: size + 16]
    crc = zlib.crc32(body)
    kind = number % 4
    if kind == 0:
        return (name, number, crc, body)
    if kind == 1:
        return [name, number, crc, np.frombuffer(body, "u1").copy()]
    if kind == 2:
        return {"name": name, "number": number, "crc": crc, "body": bytearray(body)}
    return f"{name}|{number}|{crc}|".encode() + body


def parse(value: Any) -> tuple[str, int]:
    """Return who made a value and its number; fail unless it is whole."""
    if isinstance(value, bytes):
        name, number, crc, body = value.split(b"|", 3)
        found: tuple[Any, ...] = (name.decode(), int(number), int(crc), body)
    elif isinstance(value, dict):
        found = tuple(value.values())
    else:
        found = tuple(value)
    name, number, crc, body = found
    assert zlib.crc32(bytes(body)) == crc, f"a torn value of {name}, number {number}"
    return name, number


class Process:
    """What one process does, and its log: what its own keys hold, and how often it counted."""

    def __init__(self, store: Any, name: str, names: list[str], seed: int) -> None:
        self.store = store
        self.name = name
        self.names = names
        self.chance = random.Random(seed)
        self.log: dict[str, int] = {}
        self.number = 0
        self.raised = 0
        self.latest: dict[str, int] = {}
        self.operations = 0

    def step(self) -> None:
        """Do one thing at random."""
        kinds = [self.put] * 6 + [self.look] * 6 + [self.steady] * 4 + [self.delete] * 2
        kinds += [self.batch] * 2 + [self.count] + [self.walk]
        self.chance.choice(kinds)()
        if self.chance.randrange(400) == 0:
            self.store.vacuum()
        self.operations += 1

    def _own(self) -> str:
        return f"own:{self.name}:{self.chance.randrange(OWN_COUNT)}"

    def _next(self) -> int:
        self.number += 1
        return self.number

    def put(self) -> None:
        key, number = self._own(), self._next()
        self.store[key] = make(self.name, number)
        self.log[key] = number

    def delete(self) -> None:
        key = self._own()
        if key in self.log:
            del self.store[key]
            del self.log[key]
        else:
            assert key not in self.store
            assert self.store.get(key) is None

    def batch(self) -> None:
        changes: dict[str, int | None] = {}
        with self.store.batch():
            for _ in range(self.chance.randrange(1, 6)):
                key = self._own()
                held = changes.get(key, self.log.get(key))
                if held is not None and self.chance.randrange(3) == 0:
                    del self.store[key]
                    changes[key] = None
                else:
                    changes[key] = self._next()
                    self.store[key] = make(self.name, self.number)
                assert (key in self.store) == (changes[key] is not None)
        for key, number in changes.items():
            self.log.pop(key, None)
            if number is not None:
                self.log[key] = number

    def look(self) -> None:
        key = self._own()
        value = self.store.get(key)
        assert (value is not None) == (key in self.log), f"{key}: {value is not None}"
        if value is not None:
            assert parse(value) == (self.name, self.log[key])

    def steady(self) -> None:
        name = self.chance.choice(self.names)
        key = f"steady:{name}:{self.chance.randrange(STEADY_COUNT)}"
        if name == self.name and self.chance.randrange(2):
            self.latest[key] = self._next()
            self.store[key] = make(name, self.number)
            return
        owner, number = parse(self.store[key])
        assert owner == name
        assert number >= self.latest.get(key, 0), f"{key} went back to {number}"
        self.latest[key] = number

    def count(self) -> None:
        with self.store.batch():
            self.store[COUNTER] = self.store[COUNTER] + 1
        self.raised += 1

    def walk(self) -> None:
        keys = list(self.store)
        assert len(keys) == len(set(keys))
        mine = {key for key in keys if key.startswith(f"own:{self.name}:")}
        assert mine == set(self.log), f"walked {sorted(mine)}, logged {sorted(self.log)}"
        steady = {f"steady:{name}:{i}" for name in self.names for i in range(STEADY_COUNT)}
        assert not steady - set(keys), f"not walked: {steady - set(keys)}"
        assert COUNTER in keys, f"no counter in {keys}"


def run(
    path: str, name: str, names: list[str], seconds: float, seed: int, options: dict[str, Any]
) -> tuple[dict[str, int], int, int]:
    """Take part for some seconds; return the log, the raises of the counter, the operations."""
    deadline = time.monotonic() + seconds
    with mmapdict(path, **options) as store:
        process = Process(store, name, names, seed)
        while time.monotonic() < deadline or process.operations < 100:
            for _ in range(20):
                process.step()
            if process.chance.randrange(40) == 0:
                store.close()
                store = process.store = mmapdict(path, **options)
        store.close()
    return process.log, process.raised, process.operations
