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


def other_forms(comparison: Comparison) -> Mapping[str, Sequence[str]]:
    """The modules whose values come in forms that do not compare, by these forms."""
    groups: dict[str, list[str]] = {}
    for form in comparison.form_differences:
        said = f"{form.value.label}: {form.reference}; candidate {form.candidate}"
        groups.setdefault(said, []).append(form.module)
    return groups
