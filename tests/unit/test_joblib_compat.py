"""`joblib.Memory` over one file, through `joblib_compat`: the parts of Memory, each against the file."""

from __future__ import annotations

import datetime
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("joblib")

import joblib
from joblib.externals.loky import get_reusable_executor

from pmshelve import joblib_compat
from pmshelve.errors import WrongDoorError
from pmshelve.joblib_compat import MmapDictBackend
from pmshelve.mmapdict import mmapdict
from tests.support.processes import ROOT, Worker, run_isolated

joblib_compat.register()

CALLS: list[Any] = []


def double(x: Any) -> Any:
    CALLS.append(x)
    return x * 2


def same(x: Any) -> Any:
    CALLS.append(x)
    return x


def full(x: float, size: int = 50_000) -> Any:
    CALLS.append(x)
    return np.full(size, x)


def several(x: int) -> dict[str, Any]:
    CALLS.append(x)
    return {"matrix": np.arange(10_000.0).reshape(100, 100, order="F"), "name": "n", "x": x}


def failing(x: int) -> int:
    CALLS.append(x)
    raise ZeroDivisionError


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()
    joblib.memory._FUNCTION_HASHES.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.mmdpickle"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., joblib.Memory]]:
    made = []

    def make(location: Any = path, **options: Any) -> joblib.Memory:
        made.append(joblib.Memory(location, backend="mmapdict", **{"verbose": 0, **options}))
        return made[-1]

    yield make
    for memory in made:
        memory.store_backend.close()


@pytest.fixture
def workers() -> Iterator[int]:
    """How many processes to use; joblib would keep them for the next time."""
    yield 2
    get_reusable_executor().shutdown(wait=True)


def age(memory: joblib.Memory, days: float) -> None:
    """Make all results look as if they were last used some days ago."""
    memory.store_backend._uses.clear()
    with mmapdict(memory.store_backend.path) as file:
        for key in file:
            if key.endswith("/used"):
                file[key] -= days * 86400


# Results ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, "text", b"bytes", 1.5, [1, (2, "x")], np.arange(5), None])
@pytest.mark.parametrize("compress", [False, 3])
def test_a_result_is_computed_once(make: Any, value: Any, compress: Any) -> None:
    for _ in range(2):
        cached = make(compress=compress).cache(same)
        for _ in range(2):
            assert type(cached(value)) is type(value)
            assert repr(cached(value)) == repr(value)
    assert len(CALLS) == 1


def test_compressed_results_are_smaller(make: Any) -> None:
    memory = make(compress=3)
    memory.cache(full)(1.0)
    (item,) = memory.store_backend.get_items()
    assert item.size < 5000


@pytest.mark.parametrize("mode", ["r", "r+", "w+", "c"])
def test_arrays_are_mapped(make: Any, mode: str, path: Path) -> None:
    cached = make(mmap_mode=mode).cache(full)
    first, second = cached(1.5), cached(1.5)
    assert CALLS == [1.5]
    for array in first, second:
        assert type(array) is np.ndarray  # a memmap's name and offset would not survive a vacuum
        assert not array.flags.owndata
        assert array.flags.writeable is (mode != "r")
        assert (array == 1.5).all()
    if mode != "r":
        first[0] = 7
        # What is written through r+ is in the file; through c it is nobody else's.
        expected = 1.5 if mode == "c" else 7
        assert second[0] == make(mmap_mode="r").cache(full)(1.5)[0] == expected


def test_arrays_within_results_are_mapped_too(make: Any) -> None:
    cached = make(mmap_mode="r").cache(several)
    for _ in range(2):
        result = cached(1)
        assert not result["matrix"].flags.owndata
        assert not result["matrix"].flags.writeable
        assert (result["matrix"] == np.arange(10_000.0).reshape(100, 100, order="F")).all()
    assert CALLS == [1]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
        np.array(3.0),
        np.empty((0, 3)),
        np.array(["2020-01-01", "2021-01-01"], "M8[s]"),
        np.array([(1, 2.0)], "i4,f8"),
        np.arange(10)[::2],
        np.ma.masked_array(np.arange(3), [0, 1, 0]),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_of_all_forms_come_back(make: Any, array: Any) -> None:
    cached = make(mmap_mode="r").cache(lambda: array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", joblib.memory.JobLibCollisionWarning)
        for _ in range(2):
            result = cached()
            assert result.dtype == array.dtype
            assert result.shape == array.shape
            assert result.flags.fnc == array.flags.fnc
            assert np.array_equal(result, array)


def test_without_a_mode_arrays_are_in_memory(make: Any) -> None:
    cached = make().cache(full)
    cached(1.0)
    array = cached(1.0)
    array[:] = 2  # and nobody else's
    assert (cached(1.0) == 1).all()


def test_exceptions_are_not_cached(make: Any) -> None:
    cached = make().cache(failing)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cached(1)
    assert CALLS == [1, 1]


def test_what_cannot_be_pickled_is_a_warning_and_is_not_cached(make: Any) -> None:
    cached = make().cache(double)
    lock = type("Unpicklable", (), {"__mul__": lambda self, n: threading.Lock()})
    joblib_hash = pytest.MonkeyPatch()
    joblib_hash.setattr(type(cached), "_get_args_id", lambda *_args, **_names: "a" * 32)
    try:
        for _ in range(2):
            with pytest.warns(match="the result was not cached"):
                cached(lock())
    finally:
        joblib_hash.undo()
    assert len(CALLS) == 2


def test_everything_is_in_one_file(make: Any, tmp_path: Path) -> None:
    memory = make()
    memory.cache(full)(1.0)
    memory.cache(double)("x")
    memory.store_backend.close()
    assert [path.name for path in tmp_path.iterdir()] == ["cache.mmdpickle"]
    with mmapdict(tmp_path / "cache.mmdpickle", readonly=True) as file:
        assert file.check() == []
        kinds = sorted(key.rpartition("/")[2] for key in file)
    assert kinds == sorted(["func_code.py", "metadata.json", "output.pkl", "used"] * 2)


def test_a_name_without_the_suffix_gets_it(make: Any, tmp_path: Path) -> None:
    make(str(tmp_path / "cache")).cache(double)(1)
    assert (tmp_path / "cache" / "joblib.mmdpickle").is_file()
    make(tmp_path / "plain").cache(double)(1)
    assert (tmp_path / "plain.mmdpickle").is_file()


def test_options_go_to_the_store(make: Any) -> None:
    memory = make(backend_options={"timeout": 3.0, "sync": True})
    assert memory.store_backend._opened().timeout == 3.0
    with pytest.raises(TypeError, match="nonsense"):
        make(backend_options={"nonsense": 1})


def test_files_of_other_kinds_are_refused(make: Any, tmp_path: Path) -> None:
    from pmshelve.dbm_compat import mmapdict as dbm_door

    with dbm_door.open(tmp_path / "dbm.mmdpickle", "c") as database:
        database["k"] = b"v"
    with pytest.raises(WrongDoorError):
        make(tmp_path / "dbm.mmdpickle")


# Validity -----------------------------------------------------------------------------------------


def test_changed_code_invalidates_that_function_alone(make: Any, tmp_path: Path) -> None:
    source = tmp_path / "changing.py"
    memory = make()
    memory.cache(double)(1)
    with Worker(f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]") as worker:
        run = (
            "from pathlib import Path; import importlib, joblib, linecache, changing\n"
            "from pmshelve import joblib_compat; joblib_compat.register()\n"
            "linecache.clearcache(); importlib.reload(changing)\n"
            "memory = joblib.Memory(Path(path), backend='mmapdict', verbose=0)\n"
            "value = memory.cache(changing.f)(1); memory.store_backend.close()"
        )
        for body, expected in (("x + 1", 2), ("x + 1", 2), ("x + 1000", 1001)):
            source.write_text(f"def f(x):\n    return {body}\n")
            worker.run(
                f"import sys; sys.dont_write_bytecode = True\n{run}",
                path=str(tmp_path / "cache.mmdpickle"),
            )
            assert worker.eval("value") == expected
    memory.cache(double)(1)
    assert CALLS == [1]
    with mmapdict(memory.store_backend.path, readonly=True) as file:
        assert sum(key.endswith("/output.pkl") for key in file) == 2


def test_a_validation_callback_sees_the_metadata(make: Any) -> None:
    seen = []
    cached = make().cache(double, cache_validation_callback=lambda data: bool(seen.append(data)))
    cached(1), cached(1)
    assert CALLS == [1, 1]
    assert seen[0]["input_args"] == {"x": "1"}
    assert seen[0]["duration"] >= 0


def test_clearing_one_function_leaves_the_others(make: Any) -> None:
    memory = make()
    one, other = memory.cache(double), memory.cache(full)
    one(1), other(1.0)
    one.clear()
    assert not one.check_call_in_cache(1)
    assert other.check_call_in_cache(1.0)
    one(1)
    assert CALLS == [1, 1.0, 1]


def test_clearing_all_gives_the_space_back(make: Any, path: Path) -> None:
    memory = make(mmap_mode="r")
    cached = memory.cache(full)
    kept = [cached(float(n)) for n in range(5)]
    assert path.stat().st_size > 5 * 400_000
    memory.clear(warn=False)
    assert path.stat().st_size < 1000
    assert [array[0] for array in kept] == [0, 1, 2, 3, 4]  # they outlive it
    assert (cached(1.0) == 1).all()


# reduce_size --------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first(make: Any, path: Path) -> None:
    memory = make()
    cached = memory.cache(full)
    for n in range(4):
        cached(float(n))
    cached(0.0)  # used again, now
    memory.reduce_size(items_limit=2)
    assert [cached.check_call_in_cache(float(n)) for n in range(4)] == [True, False, False, True]
    assert path.stat().st_size < 3 * 400_000  # vacuumed


def test_bytes_are_limited(make: Any) -> None:
    memory = make()
    cached = memory.cache(full)
    for n in range(4):
        cached(float(n))
    sizes = [item.size for item in memory.store_backend.get_items()]
    assert all(400_000 < size < 402_000 for size in sizes)
    memory.reduce_size(bytes_limit="1M")
    assert [cached.check_call_in_cache(float(n)) for n in range(4)] == [False, False, True, True]
    memory.reduce_size(bytes_limit=10**9)
    assert len(memory.store_backend.get_items()) == 2


def test_age_is_limited(make: Any) -> None:
    memory = make()
    cached = memory.cache(double)
    cached(1), cached(2)
    age(memory, days=10)
    cached(2)  # used today: said in the file at once, for it is news
    with mmapdict(memory.store_backend.path, readonly=True) as file:
        ages = sorted(file[key] for key in file if key.endswith("/used"))
    assert ages[1] - ages[0] > 9 * 86400
    memory.reduce_size(age_limit=datetime.timedelta(days=5))
    assert [cached.check_call_in_cache(n) for n in (1, 2)] == [False, True]
    with pytest.raises(ValueError, match="positive"):
        memory.reduce_size(age_limit=datetime.timedelta(days=-1))
    assert cached.check_call_in_cache(2)


def test_frequent_use_is_not_written_each_time(make: Any) -> None:
    memory = make()
    cached = memory.cache(double)
    cached(1)
    commit = memory.store_backend._opened().commit_number
    for _ in range(10):
        cached(1)
    assert memory.store_backend._opened().commit_number == commit


# References and processes -------------------------------------------------------------------------


def test_a_reference_travels_to_another_process(make: Any) -> None:
    reference = make(mmap_mode="r").cache(full).call_and_shelve(2.5)
    with Worker() as worker:
        assert worker.eval("reference.get().sum()", reference=reference) == 125_000
        assert not worker.eval("reference.get().flags.owndata", reference=reference)
        worker.run("reference.clear()", reference=reference)
    with pytest.raises(KeyError, match="may have been cleared"):
        reference.get()
    assert pickle.loads(pickle.dumps(reference)).duration is not None


def test_workers_fill_one_cache(make: Any, workers: int) -> None:
    memory = make()
    cached = memory.cache(full)
    work = [joblib.delayed(cached)(float(n % 6)) for n in range(24)]
    results = joblib.Parallel(n_jobs=workers)(work)
    assert [array[0] for array in results] == [n % 6 for n in range(24)]
    assert len(memory.store_backend.get_items()) == 6
    assert [cached(float(n))[0] for n in range(6)] == [0, 1, 2, 3, 4, 5]
    assert CALLS == []  # all of it was computed there
    assert memory.store_backend._opened().check() == []


def test_mapped_results_reach_workers_right_even_after_a_vacuum(make: Any, workers: int) -> None:
    memory = make(mmap_mode="r")
    cached = memory.cache(full)
    cached(1.0)
    array = cached(2.0)
    cached.call_and_shelve(1.0).clear()
    memory.store_backend._opened().vacuum()  # what `array` shows lies elsewhere now
    parallel = joblib.Parallel(n_jobs=workers, max_nbytes=1000)
    assert parallel([joblib.delayed(np.sum)(array)]) == [100_000]


def test_threads_share_a_cache(make: Any) -> None:
    cached = make().cache(double)
    results = joblib.Parallel(n_jobs=4, backend="threading")(
        joblib.delayed(cached)(n % 10) for n in range(200)
    )
    assert results == [n % 10 * 2 for n in range(200)]
    assert set(CALLS) == set(range(10))


# What it says -------------------------------------------------------------------------------------


def test_it_says_what_it_does_if_asked(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make(verbose=0).cache(double)(3)
    assert capsys.readouterr().out == ""
    make(verbose=2).cache(double)(3)
    assert "Loading double..." in capsys.readouterr().out
    make(verbose=12).cache(double)(4)
    memory = make(verbose=12)
    memory.cache(double)(4)
    said = capsys.readouterr().out
    assert f"Persisting in {memory.store_backend.path}: " in said
    assert f"Loading double from {memory.store_backend.path}: " in said
    reference = make(verbose=3).cache(double).call_and_shelve(5)
    reference.get()
    assert "Loading double(x=5)..." in capsys.readouterr().out


def test_the_backend_says_where_it_is(make: Any, path: Path) -> None:
    assert str(path) in repr(make().store_backend)
    assert isinstance(make().store_backend, MmapDictBackend)


def test_public_names_are_pinned() -> None:
    assert set(joblib_compat.__all__) == {"MmapDictBackend", "register"}


def test_what_is_missing_without_joblib_is_said() -> None:
    code = """
import sys; sys.path.insert(0, sys.argv[1])
try:
    import pmshelve.joblib_compat
except ImportError as error:
    print(error)
"""
    said = run_isolated(code, ROOT, block=("joblib",))
    assert b"pip install pmshelve[joblib]" in said
