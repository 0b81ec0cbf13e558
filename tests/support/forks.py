"""Forked children that run one task and tell what came of it."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any


def start(task: Callable[[], Any]) -> tuple[int, int]:
    """Fork a child that runs `task`; return its pid and the descriptor of its answer."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writable)
        return pid, readable
    try:
        os.close(readable)
        try:
            answer = pickle.dumps((True, task()))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))
        with os.fdopen(writable, "wb") as pipe:
            pipe.write(answer)
    finally:
        sys.stdout.flush()
        os._exit(0)


def finish(child: tuple[int, int]) -> Any:
    """Return what the child's task returned; fail with its traceback if it raised."""
    pid, readable = child
    with os.fdopen(readable, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    assert data, "the child died without an answer"
    succeeded, result = pickle.loads(data)
    assert succeeded, result
    return result


def in_child(task: Callable[[], Any]) -> Any:
    """Return what `task` returns in a forked child."""
    return finish(start(task))
