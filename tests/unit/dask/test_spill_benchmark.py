"""The comparison with dask's own spilling runs.  Nothing here is about time."""

from __future__ import annotations

import pytest

pytest.importorskip("distributed")

from benchmarks import spill

ENGINES = ["dask", "pmshelve-dask", "pmshelve-dask-pool"]


@pytest.mark.parametrize("workload", ["spill-bytes", "spill-arrays", "spill-large"])
def test_each_buffer_is_measured_and_compared(tmp_path, capsys, workload):
    common = ["--quick", "--silent", "--count=30", f"--directory={tmp_path}"]
    assert spill.main([*common, f"--workload={workload}"]) == 0
    text = capsys.readouterr().out
    for engine in ENGINES[1:]:
        assert f"{workload}, get, {engine}: " in text
    assert "times as fast" in text
    assert not list(tmp_path.iterdir())


def test_a_ratio_is_that_of_the_same_repeat():
    def entry(engine, samples):
        return {
            "workload": "w",
            "metric": "m",
            "engine": engine,
            "unit": "us",
            "repeats": [0, 1, 2],
            "samples": samples,
        }

    outcome = {"results": [entry("dask", [10.0, 20.0, 60.0]), entry("ours", [5.0, 5.0, 10.0])]}
    assert list(spill.speedups(outcome)) == ["w, m, ours: 4.00 times as fast (2.00 to 6.00)"]
