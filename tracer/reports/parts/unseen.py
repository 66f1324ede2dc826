"""What a comparison has not seen, grouped by the reason: one line says the same of many modules."""

from collections.abc import Mapping, Sequence

from tracer.comparison.result import Comparison
from tracer.measurement.rows import FormDifference

_MOST_REASONS = 4


def unpaired(comparison: Comparison) -> Mapping[str, Sequence[str]]:
    """The modules and calls on one side only, by the reason."""
    coverage = comparison.coverage
    groups: dict[str, list[str]] = {}
    for name in (*coverage.reference_only, *coverage.candidate_only):
        groups.setdefault(coverage.reasons[name], []).append(name)
    for side, name, call in coverage.unmatched_calls:
        groups.setdefault(f"called by the {side} only", []).append(f"{name}, call {call}")
    return groups


def fused(comparison: Comparison) -> Mapping[str, Sequence[str]]:
    """The modules that hold several of the other side's, by what they hold."""
    groups: dict[str, list[str]] = {}
    for holder, parts in comparison.coverage.fused.items():
        last = dict.fromkeys(f"`{name.rpartition('.')[2]}`" for name in parts)
        groups.setdefault(f"holds {', '.join(last)}", []).append(holder)
    return groups


def rename_rules(comparison: Comparison) -> Mapping[str, Sequence[str]]:
    """The rules that would pair by name what was paired by what it holds, as options."""
    rules = comparison.coverage.rename_rules.items()
    options = [f"--map '{pattern}={replacement}'" for pattern, replacement in rules]
    return {"as rename rules": options} if options else {}


def forms_in_short(comparison: Comparison) -> str:
    """Why values do not compare, with counts: "the candidate returns no cache: 10 tensors"."""
    counts: dict[tuple[str, str], int] = {}
    for form in comparison.form_differences:
        reason = _why_otherwise(form), "tensor" if form.value.is_result else "call"
        counts[reason] = counts.get(reason, 0) + 1
    said = [
        f"{reason}: {count} {unit}{'' if count == 1 else 's'}"
        for (reason, unit), count in counts.items()
    ]
    more = [f"{len(said) - _MOST_REASONS} more reasons"] if len(said) > _MOST_REASONS else []
    return "; ".join([*said[:_MOST_REASONS], *more])


def _why_otherwise(form: FormDifference) -> str:
    value, side = form.value, form.missing_on
    what = "the output"
    if not value.is_result:
        what = f"`{value.argument}`"
    elif value.inside:
        part = value.inside.partition(".")[0]
        what = f"`output.{part}`" if part.isdecimal() else f"`{part}`"
    if not side:
        return f"{what} is of another form"
    verb = "returns" if value.is_result else "is given"
    return f"the {side} {verb} no {'cache' if form.is_cache else what.removeprefix('the ')}"


def other_forms(comparison: Comparison) -> Mapping[str, Sequence[str]]:
    """The modules whose values come in forms that do not compare, by these forms."""
    groups: dict[str, list[str]] = {}
    for form in comparison.form_differences:
        said = f"{form.value.label}: {form.reference}; candidate {form.candidate}"
        groups.setdefault(said, []).append(form.module)
    return groups
