"""The JSON report: its schema, strictness, and writing it to a file."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

import tracer
from tracer.errors import UsageError
from tracer.isolation.causes import Cause, Rounding
from tracer.isolation.result import (
    IsolatedCall,
    IsolatedGroup,
    IsolatedModule,
    IsolatedPoint,
    Isolation,
    Recovery,
)
from tracer.measurement.rows import FormDifference
from tracer.reports import Run, check_path, save
from tracer.reports.json import SCHEMA, document, render


def strict(text: str) -> dict:
    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


class TestSchema:
    def test_the_keys_are_pinned(self, make_row, make_comparison):
        report = strict(render(make_comparison([make_row("a", 0.5)])))
        assert SCHEMA == report["schema"] == 3
        assert list(report) == [
            *("schema", "verdict", "coverage", "rows", "form_differences"),
            *("ranking", "isolation", "zoomed", "inside", "gate", "identity", "run"),
            "environment",
        ]
        assert list(report["verdict"]) == [
            *("agrees", "symptom", "origin", "confirmed", "details", "mistakes", "origins"),
            *("why_not_tried", "beside", "explanation", "outcome"),
        ]
        assert list(report["verdict"]["symptom"]) == [
            *("module", "call", "value", "peir", "candidate_module")
        ]
        assert list(report["verdict"]["origin"]) == [
            *("module", "argument", "kind", "reference_line", "candidate_line"),
            "candidate_module",
        ]
        assert set(report["coverage"]) >= {
            *("paired_modules", "reference_only", "candidate_only", "reasons"),
            *("compared_calls", "compared_elements", "unmatched_calls", "held_bytes_peak"),
        }
        assert set(report["environment"]) - {"commit", "commit_date"} == {
            *("trace_model", "python", "torch", "transformers", "platform", "date")
        }

    def test_rows_and_numbers(self, make_row, make_comparison):
        comparison = make_comparison([make_row("a", 0.25), make_row("b")])
        rows = strict(render(comparison))["rows"]
        frame = comparison.to_frame()
        assert set(rows[0]) == {*frame.columns, "remarks"}
        for column in ("module", "call", "value", "peir", "mean", "max", "agrees"):
            assert [row[column] for row in rows] == frame[column].tolist()
        assert (rows[0]["shape"], rows[0]["dtype"]) == ([1, 3], "float32")
        row = make_row("a", None, limit=math.nan)
        report = strict(render(make_comparison([row, make_row("b", 0.0)])))
        assert (report["rows"][0]["peir"], report["rows"][0]["limit"]) == ("inf", "nan")
        assert report["rows"][0]["mean"] is None
        assert report["rows"][1]["sqnr"] == "inf"

    def test_the_rest_of_a_comparison(self, make_row, make_comparison):
        form = FormDifference(3, "model", 0, "kwargs.attention_mask", "None", "float32 [1]")
        report = strict(render(make_comparison([make_row("a")], form_differences=(form,))))
        assert report["verdict"]["agrees"] is True
        assert report["verdict"]["symptom"] is None
        assert report["run"] is None
        assert report["ranking"] is None
        assert report["isolation"] is None
        assert report["form_differences"][0]["reference"] == "None"
        assert report["environment"]["torch"] == torch.__version__
        assert report["environment"]["trace_model"] == tracer.__version__

    def test_how_to_run_it_again_and_a_ranking(self, make_row, make_comparison):
        run = Run("tiny-llama", "sdpa", ("inputs: 3 tokens",), "trace_model compare tiny-llama")
        report = strict(render(make_comparison([make_row("a")]), run))
        assert report["run"]["command"] == "trace_model compare tiny-llama"
        assert report["run"]["notes"] == ["inputs: 3 tokens"]
        run = Run("a", "b", quantized=True, differences_expected=True)
        comparison = make_comparison([make_row("embed", 0.5, input_peir=0.0)])
        assert strict(render(comparison, run))["ranking"] == [
            {
                "module": "embed", "call": 0, "value": "output", "input_peir": 0.0, "peir": 0.5,
                "growth": "inf",
            },
        ]  # fmt: skip

    def test_isolation_takes_the_place_of_the_ranking(self, make_row, make_comparison):
        call = IsolatedCall("embed", 0, "output", False, 0, None, 0.5, 0.25, math.inf, 1.0)
        cause = Cause("weight", "uint4 weight", math.inf, 0.5, "the module's weight")
        found = Isolation(
            "leaves",
            (call,),
            (IsolatedModule("embed", call, 1, 1.0, (cause,)),),
            (Recovery(("embed",), 0.5, 0.25, 0.4, 0.2),),
            (("norm", 0),),
            (IsolatedGroup("layers.*.embed", 2, 1.0, "embed", 0.75, math.inf),),
            (
                IsolatedPoint(
                    *("layers.*.embed.weight", "uint4 weight", "its weight", 2, 0.5),
                    Rounding(8, 0.5, 0.25, 0.0, 0.0),
                ),
            ),
        )
        run = Run("a", "b", quantized=True, differences_expected=True)
        report = strict(render(make_comparison([make_row("embed", 0.5)], isolation=found), run))
        assert report["ranking"] is None
        isolation = report["isolation"]
        assert list(isolation) == [
            *("level", "calls", "modules", "recoveries", "unforced", "groups", "points"),
            "explanation",
        ]
        assert isolation["calls"] == [
            {
                "module": "embed", "call": 0, "value": "output", "own_lines": False, "depth": 0,
                "input_peir": None, "peir": 0.5, "introduced_peir": 0.25, "introduced": "inf",
                "share": 1.0, "receiver": "", "passed_as": "",
            },
        ]  # fmt: skip
        (module,) = isolation["modules"]
        assert module["worst"] == isolation["calls"][0]
        assert module["causes"] == [
            {
                "point": "weight", "kind": "uint4 weight", "before": "inf", "after": 0.5,
                "meaning": "the module's weight", "rounding": None,
            }
        ]  # fmt: skip
        assert isolation["groups"] == [
            {
                "pattern": "layers.*.embed", "modules": 2, "share": 1.0, "worst": "embed",
                "worst_share": 0.75, "introduced": "inf",
            }
        ]  # fmt: skip
        assert isolation["points"] == [
            {
                "pattern": "layers.*.embed.weight", "kind": "uint4 weight", "meaning": "its weight",
                "modules": 2, "share": 0.5,
                "rounding": {
                    "values": 8, "zero": 0.5, "underflow": 0.25, "saturated": 0.0, "nonfinite": 0.0,
                },
                "measured": None,
            }
        ]  # fmt: skip
        assert isolation["recoveries"][0]["after_l2"] == 0.2
        assert isolation["unforced"] == [["norm", 0]]
        assert isolation["explanation"] == found.explanation


SCHEMA_FILE = Path(tracer.__file__).parent / "reports" / "report.schema.json"


def closed(schema: object) -> object:
    """The schema without room for keys that it does not describe."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return inner | {"additionalProperties": False} if "properties" in schema else inner


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1) * 2


class Thrice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1) * 3


class TestJsonSchema:
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))

    def check(self, comparison: tracer.Comparison, run: Run | None = None) -> dict:
        report = strict(render(comparison, run))
        validator = jsonschema.Draft202012Validator
        validator(closed(self.schema)).validate(report)
        return report

    def test_it_is_a_schema(self):
        jsonschema.Draft202012Validator.check_schema(self.schema)
        assert self.schema["properties"]["schema"] == {"const": SCHEMA}

    @pytest.mark.covers
    def test_all_parts_of_a_comparison(self):
        torch.manual_seed(0)
        reference = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.ReLU())
        candidate = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.ReLU())
        comparison = tracer.compare(
            reference, candidate, torch.randn(3, 4), isolate="leaves", what_if=1, noise_floor=True
        )
        worst = comparison.isolation.modules[0]
        caused = replace(worst, causes=(Cause("weight", "uint4 weight", 0.5, math.inf),))
        isolation = replace(comparison.isolation, modules=(caused,), unforced=(("1.0", 0),))
        report = self.check(replace(comparison, isolation=isolation))
        assert report["verdict"]["origins"]
        assert report["isolation"]["recoveries"]
        assert report["isolation"]["modules"][0]["causes"][0]["after"] == "inf"
        assert report["rows"][-1]["multiple"] is not None

    def test_a_culprit(self):
        comparison = tracer.compare(Twice(), Thrice(), torch.arange(6.0).reshape(2, 3))
        zoomed = self.check(comparison)["zoomed"]
        assert zoomed["culprit"]["name"] == "mul"
        assert zoomed["culprit"]["text"] == "return (x + 1) * 3"
        assert zoomed["expected"]["outputs"] == [[2, 3]]
        assert zoomed["explanation"] in comparison.verdict.explanation

    def test_what_could_not_be_compared(self, make_row, make_comparison):
        form = FormDifference(3, "model", 0, "kwargs.attention_mask", "None", "float32 [1]")
        rows = [make_row("a", None, limit=math.nan, dtype=None), make_row("b", 0.5)]
        comparison = make_comparison(rows, form_differences=(form,))
        coverage = replace(
            comparison.coverage,
            reference_only=("c",),
            reasons={"c": "gone"},
            unmatched_calls=(("candidate", "b", 1),),
        )
        run = Run("x", "y", ("n",), "trace_model", quantized=True)
        report = self.check(replace(comparison, coverage=coverage), run)
        assert report["coverage"]["unmatched_calls"]

    def test_a_ranking(self, make_row, make_comparison):
        run = Run("a", "b", quantized=True, differences_expected=True)
        comparison = make_comparison([make_row("embed", 0.5, input_peir=0.0)])
        assert self.check(comparison, run)["ranking"]

    @pytest.mark.parametrize(("place", "value"), [
        (("rows", 0, "peir"), "much"), (("rows", 0, "call"), -1), (("rows", 0, "shape"), None),
        (("verdict", "origin", "kind"), "magic"),
        (("coverage", "unmatched_calls"), [["candidate", "b", 1]]),
        (("schema",), 1),
    ])  # fmt: skip
    def test_it_refuses_what_is_wrong(self, make_row, make_comparison, place, value):
        report = document(make_comparison([make_row("a", 0.5)]))
        inner = report
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(report, self.schema)


class TestSave:
    def test_by_suffix(self, tmp_path: Path, make_row, make_comparison):
        comparison = make_comparison([make_row("a")])
        comparison.save(tmp_path / "one.JSON")
        save(comparison, str(tmp_path / "two.json"))
        assert strict((tmp_path / "one.JSON").read_text()) == strict(
            (tmp_path / "two.json").read_text()
        )
        assert sorted(file.name for file in tmp_path.iterdir()) == ["one.JSON", "two.json"]

    def test_a_failure_leaves_what_was_there(
        self, tmp_path: Path, make_row, make_comparison, monkeypatch
    ):
        path = tmp_path / "report.json"
        path.write_text("before")

        def full(*args: object, **kwargs: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(UsageError, match="cannot be written: No space left on device"):
            save(make_comparison([make_row("a")]), path)
        monkeypatch.undo()
        assert (path.read_text(), list(tmp_path.iterdir())) == ("before", [path])

    def test_a_link_stays_a_link(self, tmp_path: Path, make_row, make_comparison):
        target = tmp_path / "target.json"
        target.write_text("before")
        link = tmp_path / "link.json"
        link.symlink_to(target)
        save(make_comparison([make_row("a")]), link)
        assert link.is_symlink()
        assert strict(target.read_text())["schema"] == SCHEMA

    @pytest.mark.parametrize(("name", "message"), [
        ("report.pdf", r"suffix '\.pdf': expected \.html, \.json, .* or \.parquet"),
        ("report", r"suffix '': expected \.html"),
        (
            "missing/report.json",
            "directory .*missing for the report .* does not exist; create it first",
        ),
        ("folder.json", "is a directory"),
    ])  # fmt: skip
    def test_paths_that_cannot_be(self, tmp_path: Path, name: str, message: str):
        (tmp_path / "folder.json").mkdir()
        with pytest.raises(UsageError, match=message):
            check_path(tmp_path / name)

    def test_a_folder_on_which_nothing_can_be_written(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        with pytest.raises(UsageError, match=r"directory .* of the report .* is not writable"):
            check_path(tmp_path / "report.html")

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
    def test_a_folder_that_is_closed(self, tmp_path: Path):
        tmp_path.chmod(0o500)
        try:
            with pytest.raises(UsageError, match="not writable"):
                check_path(tmp_path / "report.json")
        finally:
            tmp_path.chmod(0o700)
