"""What a comparison has not seen, grouped by the reason: one line says the same of many modules."""

from collections.abc import Mapping, Sequence

from tracer.comparison.result import Comparison


def unpaired(comparison: Comparison) -> Mapping[str, Sequence[str]]:
    """The modules and calls on one side only, by the reason."""
    coverage = comparison.coverage
    groups: dict[str, list[str]] = {}
    for name in (*coverage.reference_only, *coverage.candidate_only):
        groups.setdefault(coverage.reasons[name], []).append(name)
    for side, name, call in coverage.unmatched_calls:
        groups.setdefault(f"called by the {side} only", []).append(f"{name}, call {call}")
    return groups


def other_forms(comparison: Comparison) -> Mapping[str, Sequence[str]]:
    """The modules whose values come in forms that do not compare, by these forms."""
    groups: dict[str, list[str]] = {}
    for form in comparison.form_differences:
        said = f"{form.value.label}: {form.reference}; candidate {form.candidate}"
        groups.setdefault(said, []).append(form.module)
    return groups
