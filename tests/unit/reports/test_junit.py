"""The JUnit report: valid XML of the usual schema, and which modules pass, fail and are skipped."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lxml import etree
from torch import nn

import tracer
from tests.builders.said import said
from tracer.diagnosis.finding import Origin, OriginKind
from tracer.diagnosis.verdict import Ended, Verdict
from tracer.reports import Run, save
from tracer.reports.junit import render

XSD = etree.XMLSchema(etree.parse(Path(__file__).parents[2] / "builders" / "junit.xsd"))


def suite_of(comparison: tracer.Comparison, run: Run | None = None) -> etree._Element:
    root = etree.fromstring(render(comparison, run).encode())
    XSD.assertValid(root)
    (suite,) = root
    cases = suite.findall("testcase")
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(name)) == sum(case.find(tag) is not None for case in cases)
    assert int(suite.get("tests")) == len(cases) == int(root.get("tests"))
    return suite


def outcomes(suite: etree._Element) -> dict[str, str]:
    """What became of each module: "passed", or the name of the element inside."""
    return {
        f"{case.get('classname')}.{case.get('name')}": case[0].tag if len(case) else "passed"
        for case in suite.findall("testcase")
    }


class TestOutcomes:
    def test_what_passes_and_what_fails(self, make_row, make_comparison):
        suite = suite_of(make_comparison([make_row("a"), make_row("a.b"), make_row("")]))
        assert outcomes(suite) == {"(root).a": "passed", "a.b": "passed", "(root).(root)": "passed"}
        assert "The models agree." in suite.find("system-out").text
        rows = [make_row("a"), make_row("a.b", 0.5), make_row("c", 0.25), make_row("c", 0.0)]
        suite = suite_of(make_comparison(rows))
        assert outcomes(suite) == {"(root).a": "passed", "a.b": "failure", "(root).c": "skipped"}
        failure = suite.find(".//failure")
        assert failure.get("message") == "diverges: /b/model.py:5, in `a.b`"
        assert failure.get("type") == "computation"
        assert failure.text.startswith("The error is introduced in the forward of `a.b` itself")
        skipped = suite.find(".//skipped")
        assert skipped.get("message") == "not judged: PEIR 2.50e-01 after the divergence in a.b"

    def test_every_origin_fails_also_without_a_row(self, make_row, make_comparison):
        comparison = make_comparison([make_row("a", 0.5), make_row("b", 0.5)])
        places = tuple(
            Origin(name, "mask", OriginKind.ARGUMENT, None, None) for name in ("", "b", "layers.7")
        )
        verdict = replace(comparison.verdict, origin=places[0], origins=places)
        found = outcomes(suite_of(replace(comparison, verdict=verdict)))
        assert {name for name, outcome in found.items() if outcome == "failure"} == {
            "(root).(root)",
            "(root).b",
            "layers.7",
        }

    def test_what_was_not_seen_is_skipped(self, make_row, make_comparison):
        comparison = make_comparison([make_row("a")])
        coverage = replace(
            comparison.coverage,
            paired_modules=("a", "quiet"),
            reference_only=("gone",),
            candidate_only=("new",),
            reasons={"gone": "the candidate has no such module", "new": "no such module"},
        )
        suite = suite_of(replace(comparison, coverage=coverage))
        assert [case.get("name") for case in suite.iter("testcase")] == [
            "a",
            "quiet",
            "gone",
            "new",
        ]
        assert [skipped.get("message") for skipped in suite.iter("skipped")] == [
            "no value of it was compared",
            "not seen: the candidate has no such module",
            "not seen: no such module",
        ]

    def test_without_a_pass(self, make_row, make_comparison):
        run = Run("a", "b", quantized=True, differences_expected=True)
        suite = suite_of(make_comparison([make_row("a", 0.5)]), run)
        assert outcomes(suite) == {"(root).a": "passed"}
        ended = Verdict(False, None, None, False, Ended(None))
        suite = suite_of(make_comparison([make_row("a")], verdict=ended))
        assert outcomes(suite) == {"(root).a": "passed", "(root).verdict": "error"}
        assert suite.find(".//error").text == ended.explanation
        comparison = make_comparison([make_row("a"), make_row("b", 0.5), make_row("c", 0.5)])
        verdict = replace(comparison.verdict, origin=None)
        found = outcomes(suite_of(replace(comparison, verdict=verdict)))
        assert found == {"(root).a": "passed", "(root).b": "failure", "(root).c": "skipped"}


class TestText:
    @pytest.mark.parametrize(
        "hostile", ["<script>alert(1)</script>", "a&b\"c'", "bell\x07\x00", "\ud800lone", "]]>"]
    )
    def test_hostile_texts(self, make_row, make_comparison, hostile, tmp_path):
        comparison = make_comparison([make_row("a", 0.5)])
        verdict = said(comparison.verdict, hostile)
        run = Run(hostile, hostile, (hostile,), hostile)
        suite = suite_of(replace(comparison, verdict=verdict), run)
        shown = "".join("\ufffd" if c in "\x07\x00\ud800" else c for c in hostile)
        assert suite.find(".//failure").text == shown
        assert suite.get("name") == f"{shown} against {shown}"
        save(comparison, tmp_path / "out.xml", run=run)
        assert len(etree.parse(tmp_path / "out.xml").getroot()) == 1

    def test_properties(self, make_row, make_comparison):
        run = Run("tiny", "sdpa", ("3 tokens",), "trace_model compare tiny")
        suite = suite_of(make_comparison([make_row("a")]), run)
        found = {item.get("name"): item.get("value") for item in suite.iter("property")}
        assert (found["torch"], found["note"]) == (torch.__version__, "3 tokens")
        assert found["command"] == "trace_model compare tiny"
        assert found["coverage"].startswith("1 of 1 modules")

    def test_a_real_comparison(self):
        torch.manual_seed(0)
        reference = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        candidate = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        candidate.load_state_dict(reference.state_dict())
        with torch.no_grad():
            candidate[2].bias[1] += 1.0
        suite = suite_of(tracer.compare(reference, candidate, torch.randn(3, 4)))
        assert outcomes(suite) == {
            "(root).(root)": "skipped", "(root).0": "passed", "(root).1": "passed",
            "(root).2": "failure",
        }  # fmt: skip
        assert "its `bias` differs" in suite.find(".//failure").text
