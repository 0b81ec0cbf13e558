"""What the processes of `processes.py` run: `python -m benchmarks.child ROLE ENGINE DIRECTORY ...`.

Each role prints one line of JSON.  `write` and `read` print "ready" first and wait for a line on
standard input, so that both start at once; a counter in a small shared file tells the reader how
many keys are there.
"""

from __future__ import annotations

import json
import mmap
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import arrays, peers  # noqa: F401 - they register engines
from benchmarks.engines import ENGINES, Engine, Item
from benchmarks.machine import memory_used

CHUNK_COUNT = 32
KEY_COUNT = 1_000_000
VALUE_COUNT = 4_096
VALUE_REPEAT = 6


def numbered_key(engine: Engine, number: int) -> Any:
    """Return the key of a number, 16 characters."""
    return f"{number:016x}" if engine.text_keys else b"%016x" % number


def numbered_value(number: int) -> bytes:
    """Return 100 bytes in which a torn value shows: one number again and again."""
    return (b"%016x" % (number % VALUE_COUNT)) * VALUE_REPEAT + b"last"


def open_and_get(engine: Engine, directory: Path, number: int) -> dict[str, float]:
    """Open a big store and get one value; the time, and the memory that took."""
    engine.prepare()
    key = numbered_key(engine, number)
    before = memory_used()
    start = time.perf_counter()
    handle = engine.open_reader(directory)
    value = engine.fetch(handle, key)
    seconds = time.perf_counter() - start
    after = memory_used()
    if value != numbered_value(number):
        raise RuntimeError(f"{engine.name} returned {value!r}")
    result = {"seconds": seconds}
    for kind, size in after.items():
        result[f"memory_{kind}"] = size - before[kind]
    engine.close(handle)
    return result


class _Numbered:
    """Keys and values made beforehand, so that making them is not part of the figures."""

    def __init__(self, engine: Engine) -> None:
        pool = [numbered_value(number) for number in range(VALUE_COUNT)]
        self.keys = [numbered_key(engine, number) for number in range(KEY_COUNT)]
        self.values = [pool[number % VALUE_COUNT] for number in range(KEY_COUNT)]

    def items(self, place: slice) -> list[Item]:
        return list(zip(self.keys[place], self.values[place], strict=True))


def write(engine: Engine, directory: Path, counter: Any, seconds: float) -> dict[str, float]:
    """Put keys until the time is up: new ones, and from the first again when all are there."""
    numbered = _Numbered(engine)
    handle = engine.open(directory)
    position = _known(counter)
    done = 0
    _wait_for_start()
    start, cpu = time.perf_counter(), time.process_time()
    end = start + seconds
    while time.perf_counter() < end:
        engine.fill(handle, numbered.items(slice(position, position + CHUNK_COUNT)))
        done += CHUNK_COUNT
        position += CHUNK_COUNT
        if _known(counter) < position:
            counter[:8] = position.to_bytes(8, "little")
        if position + CHUNK_COUNT > KEY_COUNT:
            position = 0
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    engine.close(handle)
    return {"rate": done / wall, "cpu_rate": done / cpu}


def read(engine: Engine, directory: Path, counter: Any, seconds: float) -> dict[str, float]:
    """Get keys all over the store, the newest among them; count values that are not right."""
    numbered = _Numbered(engine)
    handle = engine.open_reader(directory)
    source = random.Random(4)
    done = wrong = 0
    _wait_for_start()
    start, cpu = time.perf_counter(), time.process_time()
    end = start + seconds
    while time.perf_counter() < end:
        known = _known(counter)
        stride = max(1, known // CHUNK_COUNT)
        items = numbered.items(slice(known - 1 - source.randrange(stride), None, -stride))
        wrong += engine.count_wrong(handle, items)
        done += len(items)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    engine.close(handle)
    return {"rate": done / wall, "cpu_rate": done / cpu, "wrong": wrong}


def _known(counter: Any) -> int:
    return int.from_bytes(counter[:8], "little")


def _wait_for_start() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def main(arguments: list[str]) -> None:
    """Run one role and print what it measured."""
    role, name, place, *rest = arguments
    engine, directory = ENGINES[name], Path(place)
    engine.prepare()
    if role == "open":
        result = open_and_get(engine, directory, int(rest[0]))
    else:
        run = {"write": write, "read": read}[role]
        with open(directory / "counter", "r+b") as file, mmap.mmap(file.fileno(), 0) as counter:
            result = run(engine, directory, counter, float(rest[0]))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
