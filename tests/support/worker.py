"""The far end of `tests.support.processes.Worker`: runs code it is sent, answers with the outcome.

Started by path, so that it needs nothing importable but the standard library.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import Any, BinaryIO


def _picklable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _answer(mode: str, code: str, names: bytes, space: dict[str, Any]) -> bytes:
    try:
        space.update(pickle.loads(names))
        result = eval(code, space) if mode == "eval" else exec(code, space)
        return pickle.dumps((True, result, ""), 5)
    except BaseException as error:
        return pickle.dumps((False, _picklable(error), traceback.format_exc()), 5)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    space: dict[str, Any] = {}
    while True:
        try:
            mode, code, names = pickle.load(requests)
        except EOFError:
            return
        answers.write(_answer(mode, code, names, space))
        answers.flush()


if __name__ == "__main__":
    out = sys.stdout.buffer
    sys.stdout = sys.stderr  # what the code prints must not mix with the answers
    serve(sys.stdin.buffer, out)
