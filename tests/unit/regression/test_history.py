"""Reports of many commits: their order, their figures, what is left out."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tracer.errors import UsageError
from tracer.regression.history import read_entry, read_history
from tracer.reports import Run, save


def report(path: Path, off: float, **made: str) -> Path:
    """The report of two small models of which one weight is off by some."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    candidate = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    candidate.load_state_dict(reference.state_dict())
    with torch.no_grad():
        candidate[2].weight[1, 1] += off
    comparison = tracer.compare(reference, candidate, torch.ones(2, 6), confirm=False)
    code = 0 if comparison.verdict.agrees else 1
    save(comparison, path, run=Run("a", "b", exit_code=code, command="trace_model compare a"))
    text = json.loads(path.read_text())
    text["environment"] = {
        name: value for name, value in text["environment"].items() if "commit" not in name
    } | made
    path.write_text(json.dumps(text))
    return path


def test_what_a_report_says(tmp_path: Path) -> None:
    path = report(
        tmp_path / "a.json", 0.5, commit="ab12" * 10, commit_date="2026-01-02T03:04:05+00:00"
    )
    entry = read_entry(path)
    assert (entry.exit_code, entry.command, entry.outcome) == (
        1,
        "trace_model compare a",
        "diverges",
    )
    assert (entry.commit, entry.title, entry.passes) == ("ab12" * 10, "a against b", None)
    assert entry.figures is not None
    rows = [
        r
        for r in json.loads(path.read_text())["rows"]
        if (r["module"], r["value"]) == ("", "output")
    ]
    assert entry.figures.peir == rows[0]["peir"] > 0
    assert entry.figures.sqnr == rows[0]["sqnr"]
    assert read_entry(path, "0").figures.peir == 0.0
    assert read_entry(path, "*").figures.peir == entry.figures.peir
    assert read_entry(path, "none").figures is None


def test_the_order_is_that_of_commits_where_all_have_one(tmp_path: Path) -> None:
    for name, commit, written in (("a", "03", "01"), ("b", "01", "02"), ("c", "02", "03")):
        day = "2026-01-{}T00:00:00+00:00"
        made = {"commit_date": day.format(commit), "date": day.format(written)}
        report(tmp_path / f"{name}.json", 0.1, commit=name, **made)
    assert [e.commit for e in read_history(tmp_path).entries] == ["b", "c", "a"]
    text = json.loads((tmp_path / "c.json").read_text())
    del text["environment"]["commit_date"]
    (tmp_path / "c.json").write_text(json.dumps(text))
    assert [e.commit for e in read_history(tmp_path).entries] == ["a", "b", "c"]


def test_older_reports_have_the_date_of_the_file(tmp_path: Path) -> None:
    path = report(tmp_path / "a.json", 0.1)
    text = json.loads(path.read_text())
    del text["environment"]["date"], text["run"]["exit_code"], text["identity"]
    path.write_text(json.dumps(text))
    os.utime(path, (86_400, 86_400))
    entry = read_entry(path)
    assert (entry.date.isoformat(), entry.exit_code) == ("1970-01-02T00:00:00+00:00", None)


def test_what_is_left_out_and_in_folders_inside(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    report(tmp_path / "inside" / "a.json", 0.0)
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "y.json").write_text('{"schema": 2, "run": 3}')
    found = read_history(tmp_path)
    assert [entry.path.name for entry in found.entries] == ["a.json"]
    assert [path.name for path, _ in found.left_out] == ["x.json", "y.json"]
    assert list(found.by_title) == ["a against b"]


def test_of_another_comparison(tmp_path: Path) -> None:
    for name in "ab":
        report(tmp_path / f"{name}.json", 0.0, date=f"2026-01-0{ord(name) - 96}T00:00:00+00:00")
    found = read_history(tmp_path)
    assert list(found.others(found.entries)) == []
    text = json.loads((tmp_path / "b.json").read_text())
    text["identity"]["reference"]["dtype"] = "bfloat16"
    (tmp_path / "b.json").write_text(json.dumps(text))
    found = read_history(tmp_path)
    ((entry, (mismatch,)),) = found.others(found.entries)
    assert (entry.path.name, mismatch.what) == ("b.json", "dtype")


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        read_history(tmp_path / "none")
    with pytest.raises(UsageError, match=r"found no report in .*, and no .json file: write them"):
        read_history(tmp_path)
    report(tmp_path / "a.json", 0.0)
    with pytest.raises(UsageError, match=r"no report in .* has an output of a module '00'"):
        read_history(tmp_path, "00")
