"""The benchmarks of zict's mappings run.  Nothing here is about time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import run

pytest.importorskip("zict")


@pytest.mark.parametrize("workload", ["zict-bytes", "zict-large", "zict-dask"])
def test_the_workloads_of_zict_mappings_run(
    tmp_path: Path, workload: str, capsys: pytest.CaptureFixture[str]
):
    if workload == "zict-dask":
        pytest.importorskip("distributed")
    output = tmp_path / "result.json"
    options = ["--quick", "--silent", f"--directory={tmp_path}", f"--json={output}", "--count=200"]
    engines = ["--engine=pmshelve-zict", "--engine=pmshelve-zict-shared", "--engine=zict-file"]
    assert run.main([*options, *engines, f"--workload={workload}"]) == 0
    result = json.loads(output.read_text())
    found = {entry["engine"] for entry in result["results"]}
    assert found == {"pmshelve-zict", "pmshelve-zict-shared", "zict-file"}
    metrics = {entry["metric"] for entry in result["results"]}
    assert {"set", "get", "delete", "set again"} <= metrics
    assert "**pmshelve-zict**" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
