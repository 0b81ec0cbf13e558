"""Other processes: one that obeys (`Worker`), one that knows less than we do (`run_isolated`)."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = """
import sys
class _Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError("blocked for this test: " + name)
sys.meta_path.insert(0, _Blocked())
"""


class RemoteError(Exception):
    """Where in the other process an exception came from."""


class Worker:
    """A second process that does what a test tells it, one step at a time.

    Parameters
    ----------
    prelude
        Code to run first.
    """

    def __init__(self, prelude: str = "") -> None:
        environment = dict(
            os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        )
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        if prelude:
            self.run(prelude)

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self, code: str, mode: str = "exec", **names: Any) -> None:
        """Send `code` with `names` as its variables; do not wait for it."""
        assert self.process.stdin is not None
        pickle.dump((mode, code, pickle.dumps(names, 5)), self.process.stdin, 5)
        self.process.stdin.flush()

    def finish(self, timeout: float = 60.0) -> Any:
        """Return the result of the code that was started, or raise what it raised."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        if not ready:
            self.kill()
            raise AssertionError(f"the worker did not answer within {timeout} s")
        succeeded, result, trace = pickle.load(self.process.stdout)
        if not succeeded:
            raise result from RemoteError(trace)
        return result

    def run(self, code: str, **names: Any) -> None:
        """Execute statements there."""
        self.start(code, **names)
        self.finish()

    def eval(self, expression: str, **names: Any) -> Any:
        """Return the value of an expression there."""
        self.start(expression, "eval", **names)
        return self.finish()

    def kill(self) -> None:
        """End the process with SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._close_pipes()

    def close(self) -> None:
        """Let the process end, and wait for it."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._close_pipes()

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


def run_isolated(
    code: str,
    *arguments: object,
    block: tuple[str, ...] = ("pmshelve",),
    flags: tuple[str, ...] = ("-I",),
    timeout: float = 120.0,
) -> bytes:
    """Run `code` in a Python that cannot import the packages in `block`; return what it wrote."""
    script = _BLOCK.format(names=block) + code
    done = subprocess.run(
        [sys.executable, *flags, "-c", script, *map(str, arguments)],
        capture_output=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        raise AssertionError(done.stderr.decode(errors="replace"))
    return done.stdout


def unmeasured() -> dict[str, str]:
    """Return an environment for processes that get signals: a tracer's own lock may be held then."""
    return {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
