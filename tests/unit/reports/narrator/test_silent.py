"""What is said of a quantised candidate that is silently wrong."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema

import tracer
from tracer.adapters.quantised.silent import SilentKind, SilentMistake, SilentMistakes
from tracer.reports import Run
from tracer.reports.json import document
from tracer.reports.narrator.silent import in_short
from tracer.reports.parts.headline import headline

MISTAKES = SilentMistakes(
    (
        SilentMistake(SilentKind.SCALE_OF_ONE, "layers.0.down", "input_scale", "1"),
        SilentMistake(SilentKind.SCALE_OF_ONE, "layers.1.down", "input_scale", "1"),
        SilentMistake(SilentKind.ZERO_POINT_OUTSIDE, "head", "weight_zero_point", "9", "-8 to 7"),
        SilentMistake(SilentKind.NOT_QUANTIZED, "head", "weight"),
    )
)


def test_one_line_for_each_kind_and_tensor() -> None:
    assert tracer.explain(MISTAKES).splitlines() == [
        "Silently wrong in the candidate:",
        "  a scale of exactly 1.0: `input_scale` of `layers.0.down` and 1 more module (1)",
        "  a zero point outside its range: `weight_zero_point` of `head` (9; expected -8 to 7)",
        "  not quantised, although its config says so: `weight` of `head`",
    ]
    assert in_short(MISTAKES) == "silently wrong in 3 modules"


def test_every_kind_has_its_words() -> None:
    for kind in SilentKind:
        said = tracer.explain(SilentMistakes((SilentMistake(kind, "a", "weight"),)))
        assert said.endswith(": `weight` of `a`")


def test_it_stands_first_where_differences_are_expected(make_row, make_comparison) -> None:
    comparison = make_comparison([make_row("a", 0.5)])
    comparison = replace(comparison, verdict=comparison.verdict.with_beside(MISTAKES))
    said = headline(comparison, expected=True)
    assert said.line.endswith("as expected of a quantised candidate; silently wrong in 3 modules")
    assert said.text.startswith("Silently wrong in the candidate:")


def test_the_schema_knows_it(make_row, make_comparison) -> None:
    comparison = make_comparison([make_row("a", 0.5)])
    comparison = replace(comparison, verdict=comparison.verdict.with_beside(MISTAKES))
    report = document(comparison, Run("a", "b"))
    file = Path(tracer.__file__).parent / "reports" / "report.schema.json"
    jsonschema.validate(report, json.loads(file.read_text()))
    (beside,) = report["verdict"]["beside"]
    assert beside["finding"] == "SilentMistakes"
    assert beside["found"][2]["expected"] == "-8 to 7"
