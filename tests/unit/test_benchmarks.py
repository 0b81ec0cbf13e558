"""The benchmarks run, and what they say can be put into a page.  Nothing here is about time."""

from __future__ import annotations

import json
import platform

import pytest

from benchmarks import compare, report, run
from benchmarks.engines import ENGINES
from benchmarks.framework import WORKLOADS
from benchmarks.targets import TARGETS


def measure(tmp_path, *options):
    output = tmp_path / "result.json"
    common = ("--quick", "--silent", f"--directory={tmp_path}", f"--json={output}")
    assert run.main([*common, *options]) == 0
    return json.loads(output.read_text())


@pytest.fixture
def outcome(tmp_path, capsys):
    result = measure(
        tmp_path,
        "--workload=put",
        "--workload=growth",
        "--engine=pmshelve",
        "--engine=dbm.dumb",
        "--count=500",
    )
    assert "**pmshelve**" in capsys.readouterr().out
    return result


def test_a_run_records_every_engine_that_was_asked_for(outcome, tmp_path):
    put = {
        entry["engine"]: entry
        for entry in outcome["results"]
        if (entry["workload"], entry["metric"]) == ("put", "put")
    }
    assert set(put) == {"pmshelve", "dbm.dumb"}
    assert put["pmshelve"]["count"] == 500
    assert len(put["pmshelve"]["samples"]) == 1
    assert put["pmshelve"]["samples"][0] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_run_tells_no_names_and_no_paths(outcome, tmp_path):
    text = json.dumps(outcome["environment"])
    assert str(tmp_path) not in text
    assert platform.node() not in text
    assert set(outcome["environment"]) == set(ENVIRONMENT)


POOLS = [name for name in WORKLOADS if name.startswith("pool-")]


@pytest.mark.parametrize("workload", POOLS)
def test_the_workloads_of_pools_run(tmp_path, capsys, workload):
    engines = [name for name in WORKLOADS[workload].engines if name.startswith(("pm", "sqlite"))]
    options = [f"--engine={name}" for name in engines]
    result = measure(tmp_path, f"--workload={workload}", "--count=200", *options)
    assert {entry["engine"] for entry in result["results"]} == {*engines}
    assert all(min(entry["samples"]) >= 0 for entry in result["results"])
    text = capsys.readouterr().out
    assert "pool targets" in text
    for target in TARGETS:
        if target.workload == workload:
            row = next(line for line in text.splitlines() if line.startswith(f"| {target.text} |"))
            assert "not measured" not in row
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_broken_engine_is_reported_and_hides_no_other(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise OSError("broken")

    monkeypatch.setattr(type(ENGINES["dbm.dumb"]), "open", fail)
    common = ("--quick", "--silent", f"--directory={tmp_path}", "--workload=put", "--count=50")
    assert run.main([*common, "--engine=dbm.dumb", "--engine=os.pwrite"]) == 1
    text = capsys.readouterr().out
    assert "FAILED put, dbm.dumb: OSError: broken" in text
    assert "| os.pwrite |" in text


def test_an_unknown_workload_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["--workload=nothing"])
    assert "no workload nothing" in capsys.readouterr().err


def test_every_target_names_an_engine_that_its_workload_measures():
    for target in TARGETS:
        assert target.engine in WORKLOADS[target.workload].engines, target
        assert set(target.rivals) <= set(WORKLOADS[target.workload].engines), target
        assert set(target.peers) <= set(WORKLOADS[target.workload].engines), target


def test_every_workload_names_known_engines():
    for workload in WORKLOADS.values():
        assert set(workload.engines) <= set(ENGINES), workload


def result(engine, metric, samples, *, unit="us", workload="put", ours=False):
    return {
        "workload": workload,
        "metric": metric,
        "engine": engine,
        "ours": ours,
        "note": "",
        "unit": unit,
        "count": 1,
        "repeats": list(range(len(samples))),
        "samples": samples,
        "cpu": [],
    }


ENVIRONMENT = {
    "date": "2026-01-31",
    "python": "CPython 3.11.7",
    "system": "Linux 6.1",
    "machine": "x86_64",
    "cpu": "a processor",
    "cpu_count": 2,
    "virtual": True,
    "memory_gib": 24,
    "filesystem": "ext4",
    "packages": {"numpy": "2.0"},
    "commit": "abc",
}


def outcome_of(*results):
    return {
        "environment": ENVIRONMENT,
        "settings": {"count": 1_000, "repeats": 3, "quick": False},
        "skipped": {},
        "failed": {},
        "results": list(results),
    }


def verdicts(*results):
    rows = report.target_rows(report.Figures(outcome_of(*results)))
    return {row[0]: row[1:] for row in rows if row[2] != "not measured"}


def test_a_target_is_judged_by_its_median():
    rows = verdicts(
        result("pmshelve", "put", [3.0, 90.0, 3.5], ours=True),
        result("pmshelve-batch", "put", [1.3, 1.4, 1.0], ours=True),
        result("lmdb", "put", [6.0, 6.0, 6.0]),
    )
    assert rows["put, visible to other processes"][1:5] == ["3.5 (3 to 90)", "", "pass", "2.00"]
    assert rows["put, visible to other processes"][5] == "lmdb 6"
    assert rows["put, in a batch"][1:4] == ["1.3 (1 to 1.4)", "", "**short**"]


def test_a_target_without_a_figure_is_judged_by_the_best_peer_in_each_repeat():
    rows = verdicts(
        result("pmshelve-sync", "put", [10.0, 22.0], workload="synced", ours=True),
        result("lmdb-sync", "put", [20.0, 20.0], workload="synced"),
        result("sqlite3-sync", "put", [90.0, 90.0], workload="synced"),
    )
    assert rows["put on the disk"][:4] == ["≤ best peer", "0.8 (0.5 to 1.1)", "", "pass"]


def test_a_rate_has_to_be_at_least_its_target():
    rows = verdicts(
        result("pmshelve", "puts", [149_000.0], workload="processes", unit="1/s", ours=True)
    )
    assert rows["one writer beside one reader: puts"][3] == "**short**"


def test_a_page_gets_its_tables_and_keeps_its_text():
    page = "Before.\n<!-- benchmark: put -->\nold\n<!-- end -->\nAfter.\n"
    text = report.write_page(page, outcome_of(result("lmdb", "put", [6.0])))
    assert text.startswith("Before.\n<!-- benchmark: put -->\n| engine | put, µs |")
    assert text.endswith("| lmdb | 6 |  |\n<!-- end -->\nAfter.\n")
    assert "old" not in text


def test_a_page_that_asks_for_what_was_not_measured_is_refused():
    with pytest.raises(KeyError):
        report.write_page("<!-- benchmark: get -->\n<!-- end -->\n", outcome_of())


def test_a_part_of_a_page_can_be_renewed():
    page = "".join(
        f"<!-- benchmark: {name} -->\nold\n<!-- end -->\n"
        for name in ("environment", "put", "pool environment", "pool-dict")
    )
    pools = outcome_of(result("pynvm", "set", [6.0], workload="pool-dict"))
    text = report.write_page(page, pools, part=True)
    assert text.startswith("<!-- benchmark: environment -->\nold\n")
    assert "<!-- benchmark: put -->\nold\n" in text
    assert "<!-- benchmark: pool environment -->\n2-core x86_64" in text
    assert "| pynvm | 6 |" in text


def test_the_targets_of_pools_have_a_table_of_their_own():
    outcome = outcome_of(
        result("pmshelve-pool", "set", [14.0], workload="pool-dict", ours=True),
        result("pynvm", "set", [84.0], workload="pool-dict"),
    )
    rows = {row[0]: row for row in report.target_rows(report.Figures(outcome), group="pool ")}
    row = rows["set of a dict, each a transaction"]
    assert row[1:7] == ["≤ 15", "14", "", "pass", "2.00", "pynvm 84"]
    assert "put, visible to other processes" not in rows


def test_runs_are_merged_by_workload():
    first = outcome_of(result("lmdb", "put", [1.0]), result("lmdb", "seen", [1.0], workload="get"))
    second = outcome_of(result("lmdb", "put", [2.0]))
    merged = report.merge([first, second])
    assert [(r["workload"], r["samples"]) for r in merged["results"]] == [
        ("get", [1.0]),
        ("put", [2.0]),
    ]


def test_two_revisions_are_compared_turn_by_turn():
    key = ("put", "put", "pmshelve")
    lines = list(compare.rows([({key: 2.0}, {key: 1.0}), ({key: 4.0}, {key: 4.0})]))
    assert len(lines) == 1
    assert lines[0].split() == [
        "put",
        "put",
        "pmshelve",
        "3",
        "2.5",
        "0.750",
        "(0.500",
        "to",
        "1.000)",
    ]
