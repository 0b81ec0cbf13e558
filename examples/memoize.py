"""functools.cache that outlives the program: a decorator of forty lines over any store.

    @memoize(store)
    def slow(x, *, depth=3): ...

The key is the function's name and the literal of its arguments, bound to their names with defaults
filled in: `slow(1)`, `slow(x=1)` and `slow(1, depth=3)` are one call; 1, 1.0 and True are three.
It is the same in every process and every run.  Arguments are plain values (None, bool, numbers, text,
bytes, and tuples, lists and dicts of them); others are a TypeError.  Exceptions are not kept.  A
thread computes a call once, others wait for it; of two processes that compute one call at the same
time, both get the result that was stored first.

Take it into your program and change it there.  For functions of arrays, and to have results dropped
when the function's source changes, see joblib_memory.py.

    python examples/memoize.py [DIRECTORY]
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import tempfile
import threading
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pmshelve.mmapdict import mmapdict

P = ParamSpec("P")
T = TypeVar("T")


def literal(value: Any) -> str:
    """Return the text of a plain value, which says its type, and the same in every process."""
    kind = type(value)
    if kind in (type(None), bool, int, float, complex, str, bytes):
        return repr(value)
    if kind in (tuple, list):
        return f"{kind.__name__}({','.join(map(literal, value))})"
    if kind is dict:
        return f"dict({','.join(sorted(f'{literal(k)}:{literal(v)}' for k, v in value.items()))})"
    raise TypeError(f"an argument of type {kind.__name__} cannot be part of a key: {value!r}")


def memoize(
    store: MutableMapping[str, Any], *, version: int = 0
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator that keeps the results of a function in `store`.

    Parameters
    ----------
    version
        Raise it when the function changes: results of other versions are not used.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        name = f"{function.__module__}.{function.__qualname__}/{version}/"
        computing = threading.Lock()
        locks: dict[str, threading.Lock] = {}

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            key = name + literal(bound.arguments | {})
            try:
                result: T = store[key]
            except KeyError:
                with computing:
                    lock = locks.setdefault(key, threading.Lock())
                with lock:
                    if key not in store:
                        store.setdefault(key, function(*args, **kwargs))
                    result = store[key]
                locks.pop(key, None)  # not after an exception: others wait for this very lock
            return result

        return call

    return decorate


def main(directory: Path) -> None:
    """Show it."""
    calls = []
    with mmapdict(directory / "memo.mmdpickle") as store:

        @memoize(store)
        def power(base: float, exponent: int = 2) -> float | None:
            calls.append(base)
            if base == 0:
                raise ZeroDivisionError
            return None if exponent == 0 else base**exponent

        print(f"one call: {power(3) == power(base=3) == power(3, 2) == 9}, computed {len(calls)}")
        print(f"typed: {type(power(3.0)).__name__}, computed {len(calls)}")
        print(f"None is a result: {power(5, 0) is power(5, 0) is None}, computed {len(calls)}")
        for _ in range(2):
            with contextlib.suppress(ZeroDivisionError):
                power(0)
        print(f"exceptions are not kept: computed {len(calls)}")
        with ThreadPoolExecutor(8) as pool:
            results = set(pool.map(lambda _: power(7), range(64)))
        print(f"64 calls by 8 threads: {results}, computed {len(calls)}")
        try:
            power(directory)  # type: ignore[arg-type]
        except TypeError as error:
            print(f"no key: {str(error).partition(':')[0]}")
    before = len(calls)
    with mmapdict(directory / "memo.mmdpickle") as store:
        again = memoize(store)(power.__wrapped__)  # type: ignore[attr-defined]
        print(f"the next run: {again(7)}, computed {len(calls) - before}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
