"""A verdict in words: the cause, where it was first seen, and how sure that is.

The error is introduced in the forward of `model.layers.0.mlp` itself: its inputs agree, its output
does not.
  reference: transformers/models/llama/modeling_llama.py:182
  candidate: port/mlp.py:40
First visible at output of `model.layers.0.mlp`, PEIR 0.331 (limit 1e-05).
Confirmed: with the reference's output of `model.layers.0.mlp`, everything agrees.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tracer.diagnosis.alike import Alike, alike, layers_of
from tracer.diagnosis.checkpoints import Checkpoints
from tracer.diagnosis.finding import Finding, FindingKind, Origin
from tracer.diagnosis.healing import Region
from tracer.diagnosis.parameters import ParameterDifference, ParameterKind, Setting
from tracer.diagnosis.trials import Outcome, Proof
from tracer.diagnosis.verdict import Agreement, Divergence, Ended, Verdict
from tracer.interventions.trial import Replacements
from tracer.measurement.rows import Row
from tracer.reports.narrator.names import Names
from tracer.tensors.leaves import dtype_name
from tracer.text import FEW, few, figure, module_in_words, short_line, size

_MOST_SETTINGS, _MOST_MISTAKES, _MOST_REGIONS = 6, 2, 8


def lines(verdict: Verdict) -> list[str]:
    """What a comparison found."""
    names = Names(verdict.names)
    match verdict.details:
        case Agreement() as agreement:
            return list(_agreement(agreement, names))
        case Ended() as ended:
            return _ended(ended, names)
        case Divergence() as divergence:
            return list(_divergence(divergence, verdict.why_not_tried, names))


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


def _divergence(divergence: Divergence, why_not_tried: str, names: Names) -> Iterator[str]:
    first, introduced = divergence.first, divergence.introduced
    group, *others = alike(divergence.findings)
    finding = group.first
    if divergence.checkpoints is not None:
        yield _checkpoints(divergence.checkpoints)
    yield from _cause(finding, names)
    if group.others:
        yield f"The same in {elsewhere(group, names)}."
    if first is not None:
        yield f"First visible at {names.place(first)}{size(first)}."
    if introduced is not None:
        yield f"The error was introduced at {names.place(introduced)}{size(introduced)}."
    yield from _evidence(finding, why_not_tried, names)
    for fit in finding.mistakes[:_MOST_MISTAKES]:
        yield f"It matches a known mistake: {fit.mistake} (residual {fit.residual:.2g})."
    for side, name, call in divergence.one_sided[:FEW]:
        other = "candidate" if side == "reference" else "reference"
        index = f" (call {call})" if call else ""
        yield f"The {side} calls {names.module(name)}{index}, the {other} does not."
    if divergence.spread is not None:
        spread = divergence.spread
        yield (
            f"Of {spread.outputs} outputs after it, {spread.disagreeing} disagree; "
            f"{names.place(spread.last)} ends at PEIR {figure(spread.last.peir)}."
        )
    yield from _other_origins(others, why_not_tried, names)
    unexplained = sum(each.unexplained for each in divergence.findings)
    if unexplained:
        yield f"{unexplained} more values disagree although their inputs are right."


def _other_origins(others: Sequence[Alike], why_not_tried: str, names: Names) -> Iterator[str]:
    """Further origins: those that a run has confirmed, and how many there may be besides."""
    confirmed = [group for group in others if group.first.confirmed]
    if confirmed:
        count = "One more origin" if len(confirmed) == 1 else f"{len(confirmed)} more origins"
        yield f"{count}, each with the reference's values before it:"
    for number, group in enumerate(confirmed, start=2):
        head, *rest = _cause(group.first, names)
        yield f"{number}. {head}"
        if group.others:
            rest.append(f"The same in {elsewhere(group, names)}.")
        rest += _evidence(group.first, why_not_tried, names)
        yield from (f"   {line.strip()}" for line in rest)
    suspects = sum(1 + len(group.others) for group in others if not group.first.confirmed)
    if suspects:
        places = "One more place is suspected" if suspects == 1 else f"{suspects} more places are"
        yield f"{places}{'' if suspects == 1 else ' suspected'}, which no run has confirmed."


def elsewhere(group: Alike, names: Names) -> str:
    """The modules of further findings of a kind: "layers 1 to 4"."""
    modules = [names.own(finding.origin.module) for finding in group.others]
    layers = layers_of(names.own(group.first.origin.module), modules)
    if layers is None or not layers.kind or len(modules) == 1:
        return few([module_in_words(module) for module in modules], ", ")
    *runs, last = _runs(layers.numbers)
    numbers = f"{', '.join(runs)} and {last}" if runs else last
    return f"{layers.kind} {numbers}"


def _runs(numbers: Sequence[int]) -> list[str]:
    """Numbers in words, those that follow on one another as one: "1 to 4"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = []
    for run in runs:
        said += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else [str(number) for number in run]
    return said


def _checkpoints(found: Checkpoints) -> str:
    """That these may be two checkpoints, with the counts."""
    rest = [f"{found.differing} differ{'s' if found.differing == 1 else ''}"]
    rest[0] += f" (by up to PEIR {figure(found.largest)})" if found.largest else ""
    hint = ""
    if found.unpaired:
        verb = "has" if found.unpaired == 1 else "have"
        rest.append(f"{found.unpaired} {verb} no counterpart")
        hint = " If it is the same one, pair the modules by rename rules (--map)."
    how_many = f"Only {found.equal}" if found.equal else "None"
    return (
        f"Another checkpoint? {how_many} of the reference's {found.modules} modules with "
        f"parameters hold equal ones in the candidate; {', '.join(rest)}.{hint}"
    )


def _cause(finding: Finding, names: Names) -> Iterator[str]:
    """The origin: what goes wrong there, and the lines of both sides."""
    yield _what(finding, names)
    if finding.kind is FindingKind.PASSED:
        reference, candidate = finding.passed
        if finding.peir is not None:
            candidate = f"PEIR {figure(finding.peir)} away"
        yield from _both_lines(finding.origin, f"{reference}, at ", f"{candidate}, at ")
    elif finding.kind not in _WITHOUT_LINES:
        for name, other in list(finding.equals.items())[:FEW]:
            yield f"Its `{name}` equals the reference's `{other}`."
        yield from _both_lines(finding.origin)


def _evidence(finding: Finding, why_not_tried: str, names: Names) -> Iterator[str]:
    """What else differs there, and what a run has shown."""
    yield from map(_setting, finding.settings[:_MOST_SETTINGS])
    if len(finding.settings) > _MOST_SETTINGS:
        yield f"{len(finding.settings) - _MOST_SETTINGS} more settings differ."
    if finding.form_alone:
        yield (
            "If the form alone differs, give the candidate's module a method "
            "`to_reference_output(output)` that reads it back."
        )
    if finding.proof is not None:
        yield _proof(finding.proof, why_not_tried, names)


_WITHOUT_LINES = (FindingKind.RAISES, FindingKind.GROWS, FindingKind.OPTIMISED)
_INTRODUCED = "The error is introduced in the forward of {module} itself"
_CAUSES = {
    FindingKind.EDITED: "{module} edits its argument {names} in place, which is used again after "
    "it; the reference's does not.",
    FindingKind.PASSED: "{giver} passes a wrong `{argument}` to {other}{more}:",
    FindingKind.BEFORE_CALL: _INTRODUCED + ": what it computes for {other} is wrong{after}.",
    FindingKind.AFTER_CALLS: _INTRODUCED + ", after its last call ({other}), which still agreed.",
    FindingKind.INSIDE: _INTRODUCED + ": its inputs agree, its output does not.",
    FindingKind.COMPILED: "{module} is compiled: its inside cannot be seen. Its inputs agree, its "
    "output does not.",
    FindingKind.SCRIPTED: "{module} is scripted: its inside cannot be seen. Its inputs agree, its "
    "output does not.",
    FindingKind.MISCOMPILED: "Compiled, {module} does not compute what it does as it is written.",
    FindingKind.LEFT: "What {module} leaves in its argument {names} is wrong.",
    FindingKind.PARAMETERS: "The inputs of {module} agree, its {names} {differ} ({how}).",
    FindingKind.RAISES: "{module} of the candidate raises; nothing else had differed.",
    FindingKind.BACKWARD: "The error is introduced in the backward of {module} itself: of the same "
    "gradient of its output it makes another gradient of {names}.",
    FindingKind.FROZEN: "{module} does not train its {names}, which the reference trains: "
    "`requires_grad` is False.",
    FindingKind.NOT_FROZEN: "{module} trains its {names}, which the reference does not: "
    "`requires_grad` is True.",
    FindingKind.OPTIMISED: "Run whole, with its optimisations, the runtime computes the "
    "{other_side}'s file otherwise: all values agree as it computes the operations, and its output "
    "{names} does not (PEIR {peir}).",
    FindingKind.GROWS: "No single value causes the divergence: the error grows from PEIR "
    "{growth}, as accumulated rounding does. If that much is expected, give a tolerance above it.",
}


def _what(finding: Finding, names: Names) -> str:
    module, since = names.module(finding.origin.module), finding.since
    growth = ""
    if finding.growth is not None:
        start, first = finding.growth
        growth = f"{figure(start.peir)} at {names.place(start)} to {figure(first.peir)} here"
    return _CAUSES[finding.kind].format(
        module=module,
        names=_named(finding.names or finding.parameters),
        giver="What runs it" if finding.from_outside else module,
        argument=finding.origin.argument,
        other="" if finding.other is None else names.module(finding.other),
        more=f" and {finding.more_calls} more" if finding.more_calls else "",
        after="" if since is None else f", after {names.module(since)} still agreed",
        differ="differs" if len(finding.parameters) == 1 else "differ",
        how=few([_difference(each) for each in finding.parameters.values()], "; "),
        growth=growth,
        other_side=finding.other,
        peir="" if finding.peir is None else figure(finding.peir),
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
_WITHOUT_VALUES = {
    Outcome.UNCOMPILED: "with it left uncompiled, the whole agrees",
    Outcome.GRADIENTS_AGREE: "with the reference's module in its place, all gradients before it "
    "agree",
    Outcome.GRADIENTS_DIFFER: "with the reference's module in its place, gradients still differ",
    Outcome.GRAPH_WHOLE: "where the graph is not left at that line, its gradients agree",
    Outcome.OWN_GRADIENTS: "with the reference's modules in the place of all that it calls, its "
    "gradients still differ",
    Outcome.TRAINED: "trained on both sides, its gradients agree",
}


def _proof(proof: Proof, why_not_tried: str, names: Names) -> str:
    """What was tried, and what it led to."""
    if proof.outcome in _WITHOUT_VALUES:
        sure = "Confirmed" if proof.confirmed else "Not confirmed"
        return f"{sure}: {_WITHOUT_VALUES[proof.outcome]}."
    if proof.trial is None:
        return f"Not confirmed: {why_not_tried or 'a second run was not asked for'}."
    kind, given_names = given(proof.trial)
    what = f"the reference's {_named(given_names)}"
    if kind == "copies":
        what = f"a copy of {_named(given_names)} for it"
    elif kind == "output":
        what = f"the reference's output of {names.module(given_names[0])}"
    led_to = _OUTCOMES[proof.outcome].format(
        error=proof.error,
        falls="" if proof.falls is None else _fall(*proof.falls, names),
        left="" if proof.remaining is None else names.place(proof.remaining),
        peir="" if proof.remaining is None else figure(proof.remaining.peir),
    )
    finally_ = "" if proof.final is None else f", and {_fall(*proof.final, names)}"
    return f"{'C' if proof.confirmed else 'Not c'}onfirmed: with {what}, {led_to}{finally_}."


def _fall(before: Row, after: Row, names: Names) -> str:
    return f"PEIR at {names.place(before)} falls from {figure(before.peir)} to {figure(after.peir)}"


def _named(names: Iterable[str] | Mapping[str, object]) -> str:
    return few([f"`{name}`" for name in names], " and ")


def _agreement(agreement: Agreement, names: Names) -> Iterator[str]:
    if agreement.regions:
        yield "The models are equivalent: their outputs agree, values inside differ and heal."
        for region in agreement.regions[:_MOST_REGIONS]:
            yield _region(region, names)
        if len(agreement.regions) > _MOST_REGIONS:
            yield f"  and {len(agreement.regions) - _MOST_REGIONS} more"
    else:
        yield f"The models agree{_largest(agreement.worst, names)}."
    if agreement.nonfinite:
        yield (
            f"{agreement.nonfinite} compared elements are NaN or infinite on both sides alike; the "
            "models agree on them, but look whether they should be there."
        )
    if agreement.padded.first is not None:
        yield (
            f"{agreement.padded.count} values differ at padded positions only, which nothing "
            f"visible depends on: first {names.place(agreement.padded.first)}."
        )
    if agreement.masks.first is not None:
        first = agreement.masks.first
        yield (
            f"{agreement.masks.count} attention masks let different positions through, without any "
            f"effect on a computed value: first {names.place(first)}, {first.note}."
        )
    if agreement.coarse.first is not None:
        first = agreement.coarse.first
        yield (
            f"{agreement.coarse.count} values of the candidate are of a coarser dtype, which was "
            f"allowed its own rounding: first {names.place(first)}, "
            f"{dtype_name(first.candidate_dtype)} for {dtype_name(first.dtype)}."
        )
    settings = agreement.settings
    if settings:
        yield "Settings differ without an effect beyond the tolerance:"
    for module, setting in settings[:FEW]:
        yield f"  {_setting(setting, f'{names.module(module)}: its')}"
    if len(settings) > FEW:
        yield f"  and {len(settings) - FEW} more"


def _region(region: Region, names: Names) -> str:
    start, end = names.module(region.module), names.module(region.heals_at)
    how = "differing" if region.relation is None else region.relation.value
    count = f" ({region.places} places)" if region.places > 1 else ""
    return f"  from {start} to {end}: {how}{count}"


def _largest(worst: Row | None, names: Names) -> str:
    if worst is None:
        return ""
    if worst.error == 0.0:
        return ": every compared value is equal"
    details = [f"limit {figure(worst.limit)}"] if worst.limit else []
    details += [worst.note] if worst.note else []
    brackets = f" ({'; '.join(details)})" if details else ""
    return f": the largest PEIR is {figure(worst.peir)}, at {names.place(worst)}{brackets}"


def _ended(ended: Ended, names: Names) -> list[str]:
    lines = ["The run was ended by the user, before the models came to their end."]
    if ended.raised:
        lines = [f"The {ended.raised} raised, before the models came to their end."]
    if ended.first is None:
        rest = "What was compared until then agrees; a whole run says whether the rest does."
    else:
        first = f"{names.place(ended.first)}{size(ended.first)}"
        rest = f"First visible at {first}; a whole run says where it began."
    return [*lines, rest]
