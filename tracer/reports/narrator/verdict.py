"""A verdict in words: the cause, where it was first seen, and how sure that is.

First visible at output of `model.layers.0.mlp`, PEIR 0.331 (limit 1e-05).
It is introduced in the forward of `model.layers.0.mlp` itself: its inputs agree, its output does
not.
  reference: transformers/models/llama/modeling_llama.py:182
  candidate: port/mlp.py:40
Confirmed: with the reference's output of `model.layers.0.mlp`, everything agrees.
"""

from collections.abc import Iterable, Iterator, Mapping

from tracer.diagnosis.finding import Finding, FindingKind, Origin
from tracer.diagnosis.healing import Region
from tracer.diagnosis.parameters import ParameterDifference, ParameterKind, Setting
from tracer.diagnosis.trials import Outcome, Proof
from tracer.diagnosis.verdict import Agreement, Divergence, Ended, Verdict
from tracer.interventions.trial import Replacements
from tracer.measurement.rows import Row
from tracer.tensors.leaves import dtype_name
from tracer.text import FEW, few, figure, module_in_words, place, short_line, size

_MOST_SETTINGS, _MOST_MISTAKES, _MOST_REGIONS = 6, 2, 8


def lines(verdict: Verdict) -> list[str]:
    """What a comparison found."""
    match verdict.details:
        case Agreement() as agreement:
            return list(_agreement(agreement))
        case Ended() as ended:
            return _ended(ended)
        case Divergence() as divergence:
            return list(_divergence(divergence, verdict.why_not_tried))


def given(trial: Replacements) -> tuple[str, list[str]]:
    """What the candidate was given in a trial: "argument", "parameters", "output" or "copies", and
    the names of it; of an output, the module's."""
    if trial.spared is not None:
        return "copies", list(trial.spared[1])
    if trial.parameters is not None:
        return "parameters", list(trial.parameters[1])
    if trial.output is not None:
        return "output", [trial.output[0]]
    return "argument", list(dict.fromkeys(trial.arguments.values()))


def _divergence(divergence: Divergence, why_not_tried: str) -> Iterator[str]:
    first, introduced = divergence.first, divergence.introduced
    finding, *others = divergence.findings
    if first is not None:
        yield f"First visible at {place(first)}{size(first)}."
    if introduced is not None:
        yield f"It was introduced at {place(introduced)}{size(introduced)}."
    yield from _finding(finding, why_not_tried)
    for fit in finding.mistakes[:_MOST_MISTAKES]:
        yield f"It matches a known mistake: {fit.mistake} (residual {fit.residual:.2g})."
    for side, name, call in divergence.one_sided[:FEW]:
        other = "candidate" if side == "reference" else "reference"
        index = f" (call {call})" if call else ""
        yield f"The {side} calls {module_in_words(name)}{index}, the {other} does not."
    if divergence.spread is not None:
        spread = divergence.spread
        yield (
            f"Of {spread.outputs} outputs after it, {spread.disagreeing} disagree; "
            f"{place(spread.last)} ends at PEIR {figure(spread.last.peir)}."
        )
    if others:
        count = "One more origin" if len(others) == 1 else f"{len(others)} more origins"
        yield f"{count}, each with the reference's values before it:"
    for number, further in enumerate(others, start=2):
        head, *rest = _finding(further, why_not_tried)
        yield f"{number}. {head}"
        yield from (f"   {line.strip()}" for line in rest)


def _finding(finding: Finding, why_not_tried: str) -> Iterator[str]:
    """The origin and the evidence for it."""
    yield _cause(finding)
    if finding.kind is FindingKind.PASSED:
        reference, candidate = finding.passed
        if finding.peir is not None:
            candidate = f"PEIR {figure(finding.peir)} away"
        yield from _both_lines(finding.origin, f"{reference}, at ", f"{candidate}, at ")
    elif finding.kind not in (FindingKind.RAISES, FindingKind.GROWS):
        for name, other in list(finding.equals.items())[:FEW]:
            yield f"Its `{name}` equals the reference's `{other}`."
        yield from _both_lines(finding.origin)
    yield from map(_setting, finding.settings[:_MOST_SETTINGS])
    if len(finding.settings) > _MOST_SETTINGS:
        yield f"{len(finding.settings) - _MOST_SETTINGS} more settings differ."
    if finding.form_alone:
        yield (
            "If the form alone differs, give the candidate's module a method "
            "`to_reference_output(output)` that reads it back."
        )
    if finding.proof is not None:
        yield _proof(finding.proof, why_not_tried)
    if finding.unexplained:
        yield f"{finding.unexplained} more values disagree although their inputs are right."


_INTRODUCED = "It is introduced in the forward of {module} itself"
_CAUSES = {
    FindingKind.EDITED: "{module} edits its argument {names} in place, which is used again after "
    "it; the reference's does not.",
    FindingKind.PASSED: "{giver} passes a wrong `{argument}` to {other}{more}:",
    FindingKind.BEFORE_CALL: _INTRODUCED + ": what it computes for {other} is wrong{after}.",
    FindingKind.AFTER_CALLS: _INTRODUCED + ", after its last call ({other}), which still agreed.",
    FindingKind.INSIDE: _INTRODUCED + ": its inputs agree, its output does not.",
    FindingKind.LEFT: "What {module} leaves in its argument {names} is wrong.",
    FindingKind.PARAMETERS: "The inputs of {module} agree, its {names} {differ} ({how}).",
    FindingKind.RAISES: "{module} of the candidate raises; nothing else had differed.",
    FindingKind.BACKWARD: "It is introduced in the backward of {module} itself: of the same "
    "gradient of its output it makes another gradient of {names}.",
    FindingKind.FROZEN: "{module} does not train its {names}, which the reference trains: "
    "`requires_grad` is False.",
    FindingKind.NOT_FROZEN: "{module} trains its {names}, which the reference does not: "
    "`requires_grad` is True.",
    FindingKind.GROWS: "No single value causes it: the error grows from PEIR {growth}, as "
    "accumulated rounding does. If that much is expected, give a tolerance above it.",
}


def _cause(finding: Finding) -> str:
    module, since = module_in_words(finding.origin.module), finding.since
    growth = ""
    if finding.growth is not None:
        start, first = finding.growth
        growth = f"{figure(start.peir)} at {place(start)} to {figure(first.peir)} here"
    return _CAUSES[finding.kind].format(
        module=module,
        names=_named(finding.names or finding.parameters),
        giver="What runs it" if finding.from_outside else module,
        argument=finding.origin.argument,
        other=module_in_words(finding.other or ""),
        more=f" and {finding.more_calls} more" if finding.more_calls else "",
        after="" if since is None else f", after {module_in_words(since)} still agreed",
        differ="differs" if len(finding.parameters) == 1 else "differ",
        how=few([_difference(each) for each in finding.parameters.values()], "; "),
        growth=growth,
    )


def _both_lines(origin: Origin, reference: str = "", candidate: str = "") -> list[str]:
    return [
        f"  reference: {reference}{short_line(origin.reference_line)}",
        f"  candidate: {candidate}{short_line(origin.candidate_line)}",
    ]


_DIFFERENCES = {
    ParameterKind.REFERENCE_ONLY: "the candidate has none",
    ParameterKind.CANDIDATE_ONLY: "the reference has none",
    ParameterKind.CHECKSUMS: "its checksum is not the recorded one",
    ParameterKind.SHAPES: "shape {values[0]} against {values[1]}",
    ParameterKind.FORMS: "{values[0]} against {values[1]}",
    ParameterKind.VALUES: "PEIR {peir}, most at {index}: {values[0]} against {values[1]}",
    ParameterKind.PARTS: "{parts}",
    ParameterKind.TRANSPOSED: "it is the reference's, transposed",
    ParameterKind.UNTRANSPOSED: "it has the same numbers, and its class takes them transposed",
}


def _difference(difference: ParameterDifference) -> str:
    """How a parameter differs, to stand in brackets."""
    both = difference.reference, difference.candidate
    return _DIFFERENCES[difference.kind].format(
        values=[figure(value) if isinstance(value, float) else value for value in both],
        peir=figure(difference.peir or 0.0),
        index=list(difference.index),
        parts=", ".join(f"`{name}` {_difference(each)}" for name, each in difference.parts.items()),
    )


def _setting(setting: Setting, its: str = "Its") -> str:
    what = "class" if setting.name is None else f"`{setting.name}`"
    return (
        f"{its} {what} is {setting.reference} in the reference and {setting.candidate} in the "
        "candidate."
    )


_OUTCOMES = {
    Outcome.NOT_REPLACED: "which cannot be put there, nothing was shown",
    Outcome.RAISED: "{error}",
    Outcome.STILL_THERE: "it is still there",
    Outcome.STILL_DIVERGES: "it still diverges at {left}",
    Outcome.FALLS: "{falls}",
    Outcome.ANOTHER_REMAINS: "{falls}; a divergence at {left} remains",
    Outcome.ANOTHER_FOLLOWS: "it is gone; another divergence follows at {left}, PEIR {peir}, from "
    "inputs that agree",
    Outcome.ALL_AGREES: "everything agrees",
    Outcome.OUTPUT_AGREES: "the model's output agrees",
    Outcome.OUTPUT_BETTER: "the model's output gets better",
    Outcome.AFTER_AGREES: "everything after it agrees",
    Outcome.RUNS: "it does not raise",
}
_OF_GRADIENTS = {
    Outcome.GRADIENTS_AGREE: "with the reference's module in its place, all gradients before it "
    "agree",
    Outcome.GRADIENTS_DIFFER: "with the reference's module in its place, gradients still differ",
    Outcome.GRAPH_WHOLE: "where the graph is not left at that line, its gradients agree",
    Outcome.OWN_GRADIENTS: "with the reference's modules in the place of all that it calls, its "
    "gradients still differ",
    Outcome.TRAINED: "trained on both sides, its gradients agree",
}


def _proof(proof: Proof, why_not_tried: str) -> str:
    """What was tried, and what it led to."""
    if proof.outcome in _OF_GRADIENTS:
        sure = "Confirmed" if proof.confirmed else "Not confirmed"
        return f"{sure}: {_OF_GRADIENTS[proof.outcome]}."
    if proof.trial is None:
        return f"Not confirmed: {why_not_tried or 'a second run was not asked for'}."
    kind, names = given(proof.trial)
    what = f"the reference's {_named(names)}"
    if kind == "copies":
        what = f"a copy of {_named(names)} for it"
    elif kind == "output":
        what = f"the reference's output of {module_in_words(names[0])}"
    led_to = _OUTCOMES[proof.outcome].format(
        error=proof.error,
        falls="" if proof.falls is None else _fall(*proof.falls),
        left="" if proof.remaining is None else place(proof.remaining),
        peir="" if proof.remaining is None else figure(proof.remaining.peir),
    )
    finally_ = "" if proof.final is None else f", and {_fall(*proof.final)}"
    return f"{'C' if proof.confirmed else 'Not c'}onfirmed: with {what}, {led_to}{finally_}."


def _fall(before: Row, after: Row) -> str:
    return f"PEIR at {place(before)} falls from {figure(before.peir)} to {figure(after.peir)}"


def _named(names: Iterable[str] | Mapping[str, object]) -> str:
    return few([f"`{name}`" for name in names], " and ")


def _agreement(agreement: Agreement) -> Iterator[str]:
    if agreement.regions:
        yield "The models are equivalent: their outputs agree, values inside differ and heal."
        yield from map(_region, agreement.regions[:_MOST_REGIONS])
        if len(agreement.regions) > _MOST_REGIONS:
            yield f"  and {len(agreement.regions) - _MOST_REGIONS} more"
    else:
        yield f"The models agree{_largest(agreement.worst)}."
    if agreement.nonfinite:
        yield (
            f"{agreement.nonfinite} compared elements are NaN or infinite on both sides alike; the "
            "models agree on them, but look whether they should be there."
        )
    if agreement.padded.first is not None:
        yield (
            f"{agreement.padded.count} values differ at padded positions only, which nothing "
            f"visible depends on: first {place(agreement.padded.first)}."
        )
    if agreement.masks.first is not None:
        first = agreement.masks.first
        yield (
            f"{agreement.masks.count} attention masks let different positions through, without any "
            f"effect on a computed value: first {place(first)}, {first.note}."
        )
    if agreement.coarse.first is not None:
        first = agreement.coarse.first
        yield (
            f"{agreement.coarse.count} values of the candidate are of a coarser dtype, which was "
            f"allowed its own rounding: first {place(first)}, "
            f"{dtype_name(first.candidate_dtype)} for {dtype_name(first.dtype)}."
        )
    settings = agreement.settings
    if settings:
        yield "Settings differ without an effect beyond the tolerance:"
    for module, setting in settings[:FEW]:
        yield f"  {_setting(setting, f'{module_in_words(module)}: its')}"
    if len(settings) > FEW:
        yield f"  and {len(settings) - FEW} more"


def _region(region: Region) -> str:
    start, end = module_in_words(region.module), module_in_words(region.heals_at)
    how = "differing" if region.relation is None else region.relation.value
    count = f" ({region.places} places)" if region.places > 1 else ""
    return f"  from {start} to {end}: {how}{count}"


def _largest(worst: Row | None) -> str:
    if worst is None:
        return ""
    if worst.error == 0.0:
        return ": every compared value is equal"
    details = [f"limit {figure(worst.limit)}"] if worst.limit else []
    details += [worst.note] if worst.note else []
    brackets = f" ({'; '.join(details)})" if details else ""
    return f": the largest PEIR is {figure(worst.peir)}, at {place(worst)}{brackets}"


def _ended(ended: Ended) -> list[str]:
    lines = ["The run was ended by the user, before the models came to their end."]
    if ended.raised:
        lines = [f"The {ended.raised} raised, before the models came to their end."]
    if ended.first is None:
        rest = "What was compared until then agrees; a whole run says whether the rest does."
    else:
        first = f"{place(ended.first)}{size(ended.first)}"
        rest = f"First visible at {first}; a whole run says where it began."
    return [*lines, rest]
