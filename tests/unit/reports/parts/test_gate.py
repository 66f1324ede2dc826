"""The gate in the reports: its section, and a head line that says what it makes of the verdict."""

import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from lxml import etree, html
from rich.console import Console

import tracer
from tracer.measurement.remarks import Remark, RemarkKind
from tracer.regression.baseline import Baseline
from tracer.regression.gating import gate
from tracer.reports import Run, junit, markdown
from tracer.reports.html import render as html_of
from tracer.reports.json import render as json_of
from tracer.reports.parts.gate import figures, name_of, section
from tracer.reports.parts.headline import headline

ESTIMATED = (Remark(RemarkKind.ESTIMATED),)
QUANTISED = Run("a", "b", quantized=True, differences_expected=True)


@pytest.fixture
def judged(make_row, make_comparison):
    """Makes a comparison, judged against a baseline: both are PEIRs by module."""

    def make(now, before=None, *, remarks=(), **options) -> tracer.Comparison:
        comparison = make_comparison([make_row(name, peir) for name, peir in now.items()])
        baseline = None
        if before is not None:
            rows = [make_row(name, peir, remarks=remarks) for name, peir in before.items()]
            baseline = Baseline.of(make_comparison(rows), "main.json")
        return comparison.judged(gate(comparison, baseline, **options))

    return make


def printed(comparison: tracer.Comparison, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    for part in section(comparison.gate, width):
        console.print(part, highlight=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


class TestHeadline:
    def line(self, comparison: tracer.Comparison, *, expected: bool = False) -> tuple[str, str]:
        said = headline(comparison, expected=expected)
        return said.tone, said.line

    def test_as_in_the_baseline_and_worse(self, judged):
        comparison = judged({"a": 0.5}, {"a": 0.5})
        assert self.line(comparison) == (
            "expected",
            "diverges: /b/model.py:5, in `a`, as in main.json",
        )
        comparison = judged({"a": 0.5, "b": 0.9}, {"a": 0.5, "b": 0.1})
        assert self.line(comparison) == (
            "diverges",
            "fails: 1 of 2 outputs is worse than in main.json; diverges: /b/model.py:5, in `a`",
        )

    def test_within_limits(self, judged):
        comparison = judged({"a": 0.0}, {"a": 0.0, "b": 0.0})
        assert self.line(comparison) == (
            "diverges",
            "fails: less was compared than in main.json; agrees",
        )
        comparison = judged({"a": 0.5}, max_peir={"a": 0.6})
        assert self.line(comparison) == (
            "expected",
            "diverges: /b/model.py:5, in `a`, within the limits given",
        )

    def test_let_pass_and_divergence_alone(self, judged):
        assert self.line(judged({"a": 0.5}, fail_on="never"))[1].endswith("in `a`, let pass")
        comparison = judged({"a": 0.5}, {"a": 0.1}, fail_on="coverage")
        assert self.line(comparison) == (
            "expected",
            "diverges: /b/model.py:5, in `a`; let pass: 1 of 1 outputs is worse than in main.json",
        )
        assert self.line(judged({"a": 0.5})) == ("diverges", "diverges: /b/model.py:5, in `a`")
        assert self.line(judged({"a": 0.0})) == ("agrees", "agrees")
        assert self.line(judged({"a": 0.0}, {"a": 0.0})) == ("agrees", "agrees")

    def test_quantised(self, judged):
        expected = {"differences_expected": True}
        line = "diverges at a, PEIR 5.00e-01, as expected of a quantised candidate"
        for before, said in ((None, line), ({"a": 0.5}, f"{line}, and no worse than in main.json")):
            comparison = judged({"a": 0.5}, before, **expected)
            assert self.line(comparison, expected=True) == ("expected", said)
        comparison = judged({"a": 0.5}, {"a": 0.1}, **expected)
        assert self.line(comparison, expected=True) == (
            "diverges",
            f"fails: 1 of 1 outputs is worse than in main.json; {line}",
        )


class TestSection:
    def test_all_as_it_was(self, judged):
        assert printed(judged({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0})) == [
            "",
            "gate: passes (--fail-on regression)",
            "  2 outputs in common with main.json: none has changed",
        ]

    def test_what_has_changed(self, judged):
        before = {"a": 0.1, "b": 0.5, "c": 0.0}
        lines = printed(judged({"a": 0.4, "b": 0.1, "d": 0.0}, before), 100)
        assert lines[1] == "gate: fails (--fail-on regression)"
        assert lines[2].startswith("  1 of 2 outputs is worse than in main.json: `a`, relative L2 ")
        assert lines[3].startswith(
            "  less was compared than in main.json: 1 of 3 modules gone, `c`"
        )
        assert lines[-7:] == [
            "  let pass: the models diverge",
            "  2 outputs in common with main.json: 1 worse, 1 new, 1 gone, 1 better",
            "           L2 then       now PEIR then       now  output",
            "  worse   8.94e-02  3.58e-01  1.00e-01  4.00e-01  a",
            "  new            -         0         -         0  d",
            "  gone           0         -         0         -  c",
            "  better  4.47e-01  8.94e-02  5.00e-01  1.00e-01  b",
        ]

    def test_limits_and_many_changes(self, judged):
        limits = {"*": 0.2, "b": 0.9}
        lines = printed(judged({"a": 0.3, "b": 0.4}, max_peir=limits, fail_on="regression"), 100)
        assert lines[2:] == [
            "  1 of 1 outputs is beyond the limit *=0.2: most `a`, PEIR 0.3",
            "  let pass: the models diverge",
            "  1 output is within the limit b=0.9: PEIR at most 0.4",
        ]
        names = [f"model.layers.{i}.self_attn.q_proj" for i in range(14)]
        now = {name: 0.5 + 0.01 * i for i, name in enumerate(names)}
        lines = printed(judged(now, dict.fromkeys(names, 0.1)), 60)
        assert max(map(len, lines)) <= 60
        assert lines[-1] == "  … 4 more: 4 worse"
        assert lines[-2].endswith("…q_proj")
        assert sum(line.startswith("  worse") for line in lines) == 10

    def test_estimates_and_names(self, judged):
        (change,) = judged({"a": 0.9}, {"a": 0.1}, remarks=ESTIMATED).gate.changes
        assert figures(change) == ("~8.94e-02", "8.05e-01", "~1.00e-01", "9.00e-01")
        (change,) = judged({"a": 0.9}, {"a": 0.1}).gate.changes
        assert name_of(replace(change, module="", call=2, value="output.1")) == (
            "the root#2 (output.1)"
        )


class TestReports:
    @pytest.fixture
    def failing(self, judged) -> tracer.Comparison:
        before = {"a": 0.1, "<b>": 0.1, "c": 0.0}
        return judged({"a": 0.1, "<b>": 0.9}, before, max_peir={"a": 0.05})

    def test_json(self, failing, judged):
        schema_file = Path(tracer.__file__).parent / "reports" / "report.schema.json"
        schema = json.loads(schema_file.read_text(encoding="utf-8"))
        report = json.loads(json_of(failing))
        jsonschema.validate(report, schema)
        for name in ("reason", "figures", "change", "limit"):
            assert set(schema["$defs"][name]["properties"]) == set(
                schema["$defs"][name]["required"]
            )
        found = report["gate"]
        assert set(found) == set(schema["properties"]["gate"]["anyOf"][0]["properties"])
        assert not found["passes"]
        assert [reason["level"] for reason in found["reasons"]] == [
            *("regression", "regression", "coverage")
        ]
        assert [change["kind"] for change in found["changes"]] == ["worse", "gone"]
        assert set(found["changes"][0]) == set(schema["$defs"]["change"]["properties"])
        assert set(found["changes"][0]["now"]) == set(schema["$defs"]["figures"]["properties"])
        assert found["limits"][0]["exceeded"] == 1
        assert json.loads(json_of(replace(failing, gate=None)))["gate"] is None
        jsonschema.validate(json.loads(json_of(judged({"a": None}, {"a": 0.1}))), schema)

    def test_a_report_with_a_gate_is_a_baseline(self, failing, tmp_path):
        failing.save(tmp_path / "next.json")
        again = gate(replace(failing, gate=None), Baseline.read(tmp_path / "next.json"))
        assert again.passes
        assert again.changes == ()

    def test_markdown(self, failing, judged):
        text = markdown.render(failing)
        assert "### Gate: fails (--fail-on regression)" in text
        assert text.index("### Gate") < text.index("### Around it")
        assert "- 1 of 2 outputs is worse than in main.json: `<b>`, relative L2" in text
        assert "| worse | `<b>` | 8.94e-02 | 8.05e-01 | 1.00e-01 | 9.00e-01 |" in text
        assert text.startswith("## ❌ fails: 1 of 2 outputs is worse than in main.json; 1 of 1 ")
        names = [f"layers.{i}" for i in range(300)]
        text = markdown.render(judged(dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.1)))
        assert len(text.encode()) <= markdown.LIMIT
        assert "… 290 more: 290 worse" in text

    def cases(self, comparison: tracer.Comparison, run: Run | None = None) -> dict[str, object]:
        root = etree.fromstring(junit.render(comparison, run).encode())
        etree.XMLSchema(
            etree.parse(Path(__file__).parents[3] / "builders" / "junit.xsd")
        ).assertValid(root)
        return {f"{c.get('classname')}.{c.get('name')}": c for c in root.iter("testcase")}

    def test_junit(self, failing):
        cases = self.cases(failing)
        failure = cases["trace_model.gate"].find("failure")
        assert failure.get("type") == "regression"
        assert failure.get("message").startswith("1 of 2 outputs is worse than in main.json; ")
        assert "1 of 3 modules gone, `c`" in failure.text
        # That the models diverge was not to fail.
        assert [name for name, case in cases.items() if case.find("failure") is not None] == [
            "trace_model.gate"
        ]

    def test_junit_of_other_outcomes(self, judged):
        cases = self.cases(judged({"a": 0.5}, {"a": 0.5}))
        assert all(len(case) == 0 for case in cases.values())
        assert "trace_model.gate" in cases
        cases = self.cases(judged({"a": 0.5}, {"a": 0.5}, fail_on="divergence"))
        failed = [name for name, case in cases.items() if case.find("failure") is not None]
        assert failed == ["(root).a", "trace_model.gate"]
        cases = self.cases(judged({"a": 0.0}, {"a": 0.0, "b": 0.0}))
        failed = [name for name, case in cases.items() if case.find("failure") is not None]
        assert failed == ["trace_model.gate"]

    def test_html(self, failing, judged):
        page = html.fromstring(html_of(failing))
        (card,) = page.xpath("//section[@id='gate']")
        assert card.xpath("./h2")[0].text == "Gate: fails (--fail-on regression)"
        assert [row.xpath("string(./td[1])") for row in card.xpath(".//tbody/tr")] == [
            *("worse", "gone")
        ]
        assert card.xpath(".//tbody/tr[1]/td[2]/button/@data-module") == ["<b>"]
        assert page.body.get("class") == "diverges"
        passing = html.fromstring(html_of(judged({"a": 0.5}, {"a": 0.5})))
        assert passing.body.get("class") == "expected"
        assert not html.fromstring(html_of(replace(failing, gate=None))).xpath("//*[@id='gate']")

    def test_html_of_many_changes(self, judged):
        names = [f"layers.{i}" for i in range(20)]
        page = html_of(judged(dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.1)), QUANTISED)
        assert "… 10 more: 10 worse" in page

    def test_the_terminal_shows_it_last(self, failing, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        failing.show()
        text = capsys.readouterr().out
        assert text.index("The error is introduced in the forward") < text.index(
            "gate: fails (--fail-on regression)"
        )
        assert max(map(len, text.splitlines())) <= 80
