"""What a comparison has not seen, by the reason."""

from dataclasses import replace

from tracer.measurement.rows import FormDifference
from tracer.reports.parts.unseen import other_forms, unpaired


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
