"""A process to be killed: runs transactions on a pool by a script that a seed gives, and says so.

open     the pool is open
N        transaction N has returned
"""

from __future__ import annotations

import os
import random
import sys
from typing import Any

from pmshelve import pmemobj
from tests.support.pools import plain

Model = dict[Any, Any]


def steps(seed: int, number: int) -> list[tuple[str, int, int]]:
    """Return what transaction `number` does: names of steps, each with two numbers."""
    rng = random.Random(seed * 1_000_003 + number)
    names = [
        "set",
        "append",
        "pop",
        "delete",
        "extend",
        "nest",
        "share",
        "large",
        "reverse",
        "clear",
    ]
    weights = [30, 25, 8, 10, 6, 10, 5, 2, 3, 1]
    count = rng.choice((1, 1, 2, 5, 20))
    return [
        (name, rng.randrange(1000), rng.randrange(1 << 20))
        for name in rng.choices(names, weights, k=count)
    ]


def text(number: int) -> str:
    return f"{number} " + "v" * (number % 300)


def change(root: Any, name: str, a: int, b: int, make: Any) -> None:
    """Do one step, to a pool's root or to the model's."""
    key = a % 20
    if name == "set":
        root[key] = text(b)
    elif name == "delete":
        root.pop(key, None)
    elif name == "nest":
        root[f"n{key}"] = make("dict", {"deep": make("list", [b, text(b)])})
    elif name == "share":
        if f"n{key}" in root:
            root[f"s{key}"] = root[f"n{key}"]
    elif name == "large":
        root["large"] = bytes([b % 256]) * (b % 700_000)
    elif name == "clear":
        root.clear()
    else:
        if "list" not in root:
            root["list"] = make("list", [])
        items = root["list"]
        if name == "append":
            items.append(text(b))
        elif name == "pop" and len(items):
            items.pop(b % len(items))
        elif name == "extend":
            items[a % 5 : a % 5] = list(range(b % 3000))
        elif name == "reverse":
            items.reverse()
            del items[5000:]


def apply(model: Model, seed: int, number: int) -> Model:
    """Do transaction `number` to the model; return it."""
    for name, a, b in steps(seed, number):
        change(model, name, a, b, lambda kind, content: content)
    return model


def model_of(pool: Any) -> Model:
    """Return the pool's content as the model has it."""
    content: Model = {} if pool.root is None else plain(pool.root)
    return content


def main(path: str, seed: int, first: int, durability: str) -> None:
    """Run transactions from `first` on until somebody puts an end to it."""
    pool = pmemobj.open(path, durability=durability)

    def make(kind: str, content: Any) -> Any:
        types = {"dict": pmemobj.PersistentDict, "list": pmemobj.PersistentList}
        return pool.new(types[kind], content)

    os.write(1, b"open\n")
    number = first
    while True:
        with pool.transaction():
            if pool.root is None:
                pool.root = make("dict", {})
            for name, a, b in steps(seed, number):
                change(pool.root, name, a, b, make)
        os.write(1, b"%d\n" % number)
        number += 1
        if number % 50 == 0:
            pool.gc()
        elif number % 70 == 0:
            pool.close()
            pool = pmemobj.open(path, durability=durability)
        elif number % 30 == 0:
            pool.sync()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
