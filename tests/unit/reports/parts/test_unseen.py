"""What a comparison has not seen, by the reason."""

from dataclasses import replace

from tracer.measurement.rows import FormDifference
from tracer.reports.parts.unseen import forms_in_short, other_forms, unpaired


def test_grouped_by_reason(make_row, make_comparison) -> None:
    form = FormDifference(0, "a", 0, "kwargs.mask", "None", "float32 [1]", one_is_none=True)
    made = make_comparison([make_row("a")], form_differences=(form, replace(form, module="b")))
    coverage = replace(
        made.coverage,
        reference_only=("x", "y"),
        candidate_only=("z",),
        reasons={"x": "never called", "y": "never called", "z": "no such module"},
        unmatched_calls=(("candidate", "a", 1),),
    )
    assert unpaired(replace(made, coverage=coverage)) == {
        "never called": ["x", "y"],
        "no such module": ["z"],
        "called by the candidate only": ["a, call 1"],
    }
    assert other_forms(made) == {"mask: None; candidate float32 [1]": ["a", "b"]}


def form(value: str, **fields) -> FormDifference:
    return FormDifference(0, "a", 0, value, "float32 [1]", "None", **fields)


def test_forms_in_a_line_with_counts(make_row, make_comparison) -> None:
    gone = {"one_is_none": True, "missing_on": "candidate"}
    cache = [form(f"output.past_key_values.{i}", is_cache=True, **gone) for i in range(10)]
    others = (
        *(form("kwargs.position_ids", **gone), form("output.1", **gone)),
        *(form("kwargs.mask"), form("output"), form("output.hidden.0", missing_on="reference")),
    )
    made = make_comparison([make_row("a")], form_differences=(*cache, *others[:2]))
    assert forms_in_short(made) == (
        "the candidate returns no cache: 10 tensors; the candidate is given no `position_ids`: "
        "1 call; the candidate returns no `output.1`: 1 tensor"
    )
    made = replace(made, form_differences=others[1:])
    assert forms_in_short(made) == (
        "the candidate returns no `output.1`: 1 tensor; `mask` is of another form: 1 call; the "
        "output is of another form: 1 tensor; the reference returns no `hidden`: 1 tensor"
    )
    assert forms_in_short(replace(made, form_differences=())) == ""
