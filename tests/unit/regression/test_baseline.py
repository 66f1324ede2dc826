"""A baseline: read from a report or made of a comparison, with the same figures; bad files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import tracer
from tracer.errors import StorageError, UsageError
from tracer.regression.baseline import Baseline, Figures, open_baseline
from tracer.tensors.fingerprints import Fingerprint


def pair(seed: int = 0) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Two small models, the second with one weight changed, and an input."""
    torch.manual_seed(seed)
    reference = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    candidate = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    candidate.load_state_dict(reference.state_dict())
    with torch.no_grad():
        candidate[0].weight[2, 3] += 0.25
    return reference, candidate, torch.randn(4, 6)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    reference, candidate, inputs = pair()
    path = tmp_path / "main.json"
    tracer.compare(reference, candidate, inputs).save(path)
    return path


class TestOf:
    def test_the_figures_are_those_of_the_outputs(self):
        reference, candidate, inputs = pair()
        baseline = Baseline.of(tracer.compare(reference, candidate, inputs), "here")
        with torch.no_grad():
            r, c = reference(inputs).double(), candidate(inputs).double()
        figures = baseline.figures["2", 0, "output", (4, 3)]
        assert figures.relative_l2 == pytest.approx(float((r - c).norm() / r.norm()), rel=1e-5)
        assert figures.peir == pytest.approx(float((r - c).abs().max() / (r.max() - r.min())))
        assert not figures.agrees
        assert not figures.estimated
        assert figures.limit == 1e-5
        assert figures.bounds == (figures.relative_l2, figures.relative_l2)
        assert {key[0] for key in baseline.figures} == {"", "0", "1", "2"}
        assert (baseline.modules, baseline.calls) == (("", "0", "1", "2"), 4)
        assert (baseline.source, baseline.agrees) == ("here", False)

    def test_of_a_trace_the_figures_are_estimates(self, tmp_path):
        reference, candidate, inputs = pair()
        path = tmp_path / "then.trace"
        tracer.record(candidate, inputs, path, values="fingerprints")
        exact = Baseline.of(tracer.compare(reference, candidate, inputs))
        trace = tracer.open_trace(path)
        told = Baseline.of(tracer.compare(reference, trace, inputs, confirm=False))
        assert told.figures.keys() == exact.figures.keys()
        assert (told.modules, told.calls) == (exact.modules, exact.calls)
        for key, figures in told.figures.items():
            assert figures.estimated
            low, high = figures.bounds
            assert low <= exact.figures[key].relative_l2 <= high

    def test_the_bounds_are_those_of_the_fingerprints(self):
        torch.manual_seed(1)
        r = torch.randn(500)
        estimate = Fingerprint.of(r).estimate(Fingerprint.of(r + 0.01 * torch.randn(500)))
        figures = Figures(estimate.relative_l2, 0.1, 0, 1e-5, agrees=False, estimated=True)
        low, high = figures.bounds
        assert low <= estimate.low
        assert high == pytest.approx(estimate.high)

    @pytest.mark.parametrize("fields", [{"ended": True}, {"recordings": ("ended early",)}])
    def test_a_run_that_was_ended_is_none(self, make_row, make_comparison, fields, tmp_path):
        comparison = make_comparison([make_row("a")])
        ended = replace(comparison, coverage=replace(comparison.coverage, **fields))
        with pytest.raises(UsageError, match="here is of a run that did not come to its end"):
            Baseline.of(ended, "here")
        ended.save(tmp_path / "ended.json")
        with pytest.raises(UsageError, match="of a run that did not come to its end"):
            Baseline.read(tmp_path / "ended.json")


class TestRead:
    def test_a_report_holds_what_the_comparison_does(self, tmp_path):
        reference, candidate, inputs = pair()
        comparison = tracer.compare(reference, candidate, inputs)
        comparison.save(tmp_path / "main.json")
        read, made = Baseline.read(tmp_path / "main.json"), Baseline.of(comparison)
        assert read == replace(made, source=str(tmp_path / "main.json"))

    def test_what_is_not_finite(self, make_row, make_comparison, tmp_path):
        rows = [
            make_row("shape", None), make_row("equal", 0.0), make_row("nan", math.nan),
            make_row("mask", 0.5, value="kwargs.mask"),
        ]  # fmt: skip
        make_comparison(rows).save(tmp_path / "main.json")
        figures = {
            key[0]: value for key, value in Baseline.read(tmp_path / "main.json").figures.items()
        }
        assert set(figures) == {"shape", "equal", "nan"}
        assert (figures["shape"].relative_l2, figures["shape"].peir) == (math.inf, math.inf)
        assert (figures["equal"].relative_l2, figures["equal"].peir) == (0.0, 0.0)
        assert figures["nan"].unmatched == 1
        assert (figures["nan"].relative_l2, figures["nan"].peir) == (math.inf, math.inf)
        assert figures["equal"].unmatched == 0

    def test_integers_that_differ_are_no_unmatched_floats(self):
        reference, candidate = nn.Identity(), nn.Identity()
        candidate.forward = lambda x: x + 1  # type: ignore[method-assign]
        comparison = tracer.compare(reference, candidate, torch.arange(4), confirm=False)
        assert [f.unmatched for f in Baseline.of(comparison).figures.values()] == [0]

    @pytest.mark.parametrize(
        ("note", "estimated"), [("", False), ("a; b", False), ("estimated from fingerprints", True)]
    )
    def test_the_remarks_of_the_first_schema_were_text(self, saved, note, estimated):
        report = json.loads(saved.read_text()) | {"schema": 1}
        for row in report["rows"]:
            row["note"] = note
            del row["remarks"]
        saved.write_text(json.dumps(report))
        assert {f.estimated for f in Baseline.read(saved).figures.values()} == {estimated}

    @pytest.mark.parametrize(
        ("sqnr", "relative_l2"),
        [("inf", 0.0), (20.0, 0.1), (-20, 10.0), (-7000.0, math.inf), ("-inf", math.inf)],
    )
    def test_ratios_of_any_size(self, saved, sqnr, relative_l2):
        report = json.loads(saved.read_text())
        report["rows"][-1]["sqnr"] = sqnr
        saved.write_text(json.dumps(report))
        figures = list(Baseline.read(saved).figures.values())[-1]
        assert figures.relative_l2 == pytest.approx(relative_l2)

    def test_cut_off(self, saved):
        text = saved.read_text()
        saved.write_text(text[: len(text) // 2])
        with pytest.raises(UsageError, match=r"main.json is no JSON, or it is cut off .*--report"):
            Baseline.read(saved)

    @pytest.mark.parametrize(("content", "message"), [
        (b"", "is no JSON, or it is cut off"),
        (b"\xff\xfe", "is no JSON, or it is cut off"),
        (b"[]", "is no report of trace_model: it names no schema"),
        (b'{"schema": "1"}', "it names no schema"),
        (b'{"schema": 1}', r"or a damaged one \(KeyError: 'coverage'\)"),
        (b'{"schema": 99}', "is of schema 99, and this version reads up to 3: install"),
    ])  # fmt: skip
    def test_other_files(self, tmp_path, content: bytes, message: str):
        path = tmp_path / "other.json"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            Baseline.read(path)

    @pytest.mark.parametrize(("place", "value"), [
        (("rows", -1, "sqnr"), "much"), (("rows", -1, "peir"), None), (("rows",), 3),
        (("coverage",), []), (("coverage", "paired_modules"), None),
    ])  # fmt: skip
    def test_damaged(self, saved, place, value):
        report = json.loads(saved.read_text())
        inner = report
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        saved.write_text(json.dumps(report))
        with pytest.raises(UsageError, match="is no report of trace_model, or a damaged one"):
            Baseline.read(saved)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(UsageError, match=r"none.json cannot be read: No such file"):
            Baseline.read(tmp_path / "none.json")


class TestOpen:
    @pytest.mark.covers
    def test_reports_and_traces(self, saved, tmp_path):
        _, candidate, inputs = pair()
        tracer.record(candidate, inputs, tmp_path / "then.trace", values="fingerprints")
        assert isinstance(open_baseline(saved), Baseline)
        assert isinstance(open_baseline(tmp_path / "then.trace"), tracer.Recorded)
        tracer.record(candidate, inputs, tmp_path / "ended.trace")
        events = tmp_path / "ended.trace" / "events.jsonl"
        *kept, _ = events.read_bytes().splitlines(keepends=True)
        events.write_bytes(b"".join(kept))
        with pytest.raises(UsageError, match=r"ended.trace is of a run that did not come to its"):
            open_baseline(tmp_path / "ended.trace")

    def test_no_trace_and_a_home_folder(self, tmp_path, saved, monkeypatch):
        with pytest.raises(StorageError, match="there is no trace"):
            open_baseline(tmp_path / "none.trace")
        monkeypatch.setenv("HOME", str(saved.parent))
        assert Baseline.read(Path("~") / saved.name).figures
