"""What every test gets: a profile that says how long to try, and a search for what it left behind."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# A shell that starts the suite in the background has it, and all processes it starts, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long to try ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """How much of a campaign to run; the same tests run short and long.

    Attributes
    ----------
    factor
        What a test multiplies its own number of rounds by.
    """

    name: str
    factor: int


_PROFILES = {"default": Profile("default", 1), "torture": Profile("torture", 20)}
_PROFILE = _PROFILES[os.environ.get("PMSHELVE_PROFILE", "default")]

hypothesis.settings.register_profile(
    "default",
    max_examples=60,
    stateful_step_count=30,
    deadline=None,  # no timing in tests
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,  # likewise
        # Our fixtures are directories and profiles; examples make their own files in them.
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
    print_blob=True,
)
hypothesis.settings.register_profile(
    "torture",
    hypothesis.settings.get_profile("default"),
    max_examples=2000,
    stateful_step_count=100,
)
hypothesis.settings.load_profile(_PROFILE.name)


@pytest.fixture(scope="session")
def profile() -> Profile:
    """How much to try: `PMSHELVE_PROFILE`, "default" or "torture"."""
    return _PROFILE


def pytest_report_header() -> str:
    return f"pmshelve profile: {_PROFILE.name}"


# What a test left behind ----------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_OUTCOME] = report.outcome
    return report


_OUTCOME = pytest.StashKey[str]()


@pytest.fixture(autouse=True)
def _nothing_left_behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Fail a passing test that leaves files of its own open or mapped, or processes running."""
    home = str(tmp_path_factory.getbasetemp().resolve())
    before = _held(home)
    yield
    if request.node.stash.get(_OUTCOME, "") != "passed":
        return  # the traceback keeps the test's variables alive
    if request.node.get_closest_marker("leaks"):
        return
    left = _held(home) - before
    if left:
        gc.collect()
        left &= _held(home)
    assert not left, f"still open or mapped after the test: {sorted(left)}"
    assert not multiprocessing.active_children(), "processes still running after the test"


def _held(home: str) -> set[str]:
    """Return what this process holds of the files below `home`: open descriptors and maps."""
    return {f"fd {fd}: {name}" for fd, name in _descriptors() if name.startswith(home)} | _maps(
        home
    )


def _descriptors() -> Iterator[tuple[int, str]]:
    directory = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(directory):
        fd = int(name)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                yield fd, _name_of(fd)
        except OSError:
            pass  # the listing's own descriptor, closed by now


def _name_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        import fcntl

        get_path = getattr(fcntl, "F_GETPATH", 50)  # macOS
        return os.fsdecode(fcntl.fcntl(fd, get_path, bytes(1024)).rstrip(b"\0"))


def _maps(home: str) -> set[str]:
    try:
        text = Path("/proc/self/maps").read_text(errors="surrogateescape")
    except OSError:
        return set()  # no such view of the process on this system
    return {f"map: {line[line.index('/') :]}" for line in text.splitlines() if home in line}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many crash states and faults were tried."""
    totals: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name in ("states", "faults"):
                    totals[name] = totals.get(name, 0) + int(value)
    for name, total in sorted(totals.items()):
        terminalreporter.write_line(f"{name} tried: {total}")
