"""The verdict: the first value that disagrees, where that began, and the evidence for it.

The rows are walked in execution order. From the first one that disagrees the error is followed
back to where it was introduced, then up through the callers as long as an argument already
disagreed there. What remains is put to the test by running both models again with the suspected
value replaced by the reference's: if the divergence is gone, the suspect is confirmed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tracer.diagnosis.origin import Finding, Origin, Search
from tracer.diagnosis.other_origins import other_findings
from tracer.execution.side import Failure
from tracer.interventions.experiment import Experiment
from tracer.measurement.comparer import Comparer
from tracer.measurement.remarks import RemarkKind
from tracer.measurement.rows import Row, first_divergence
from tracer.tensors.leaves import dtype_name
from tracer.tensors.value_path import OUTPUT, ValuePath
from tracer.text import FEW, figure, module_in_words, place, size


@dataclass(frozen=True)
class Symptom:
    """The first value that disagrees.

    Attributes:
        module, call: the reference's name of the module and the call index.
        value: the value's path: "output", "kwargs.hidden_states", ...
        peir: how far it is off; infinite where the shapes differ.
    """

    module: str
    call: int
    value: ValuePath
    peir: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", ValuePath.parse(self.value))


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    Attributes:
        agrees: every compared value agrees. Attention masks that differ without any effect on a
            computed value do not count.
        symptom, origin: None if it agrees.
        origins: every module that diverges although its inputs are right, in execution order; the
            first is `origin`.
        confirmed: giving the candidate the reference's value at the origin takes the divergence
            away.
        explanation: the finding in words, several lines.
        mistakes: known kinds of mistake that explain the first divergence, best first.
    """

    agrees: bool
    symptom: Symptom | None
    origin: Origin | None
    confirmed: bool
    explanation: str
    mistakes: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()


def judge(
    comparer: Comparer,
    experiment: Experiment,
    *,
    may_run: bool,
    one_sided: Sequence[tuple[str, str, int]] = (),
    failure: Failure | None = None,
) -> Verdict:
    """Judges the rows of a run.

    Args:
        comparer: the visitor of that run.
        experiment: runs both models again, for the counterfactual.
        may_run: whether it may; else every suspect is left unconfirmed.
        one_sided: (side, module, call index) of calls that the other side did not make.
        failure: what the candidate alone raised, if that ended the run.
    """
    first = first_divergence(comparer.rows)
    search = Search(comparer, experiment, may_run=may_run)
    if first is None:
        return _agreement(search) if failure is None else _raising(search, failure)
    start = search.trail.introduced_at(first)
    finding = search.examine(start)
    if start is not first and not finding.confirmed:
        finding = search.examine(first)
        if not finding.confirmed and may_run:
            finding = search.gradual(start, first, finding)
        start = first
    others = []
    if may_run and failure is None:
        others = other_findings(finding, start, search)
    lines = [
        f"First visible at {place(first)}{size(first)}.",
        "" if start is first else f"It was introduced at {place(start)}{size(start)}.",
        *finding.lines,
        *(f"It looks as if the candidate were {fit}." for fit in finding.mistakes[:2]),
        *_one_sided_calls(one_sided),
        _spread(comparer.rows, first),
        *_other_origins(others),
    ]
    return Verdict(
        agrees=False,
        symptom=Symptom(first.module, first.call, first.value, first.peir),
        origin=finding.origin,
        confirmed=finding.confirmed,
        explanation="\n".join(line for line in lines if line),
        mistakes=tuple(fit.mistake for fit in finding.mistakes),
        origins=(finding.origin, *(other.origin for other in others)),
    )


def _other_origins(others: Sequence[Finding]) -> list[str]:
    """A paragraph for each further origin."""
    if not others:
        return []
    count = "One more origin" if len(others) == 1 else f"{len(others)} more origins"
    lines = [f"{count}, each with the reference's values before it:"]
    for number, other in enumerate(others, start=2):
        first, *rest = other.lines
        lines += [f"{number}. {first}", *(f"   {line.strip()}" for line in rest)]
    return lines


def judge_ended(rows: Sequence[Row]) -> Verdict:
    """The verdict of a run that the user has ended: what was not compared does not agree.

    Where a divergence began is left open, since it takes further runs to tell.
    """
    lines = ["The run was ended by the user, before the models came to their end."]
    first = first_divergence(rows)
    if first is None:
        lines.append("What was compared until then agrees; a whole run says whether the rest does.")
        return Verdict(False, None, None, False, "\n".join(lines))
    lines.append(f"First visible at {place(first)}{size(first)}; a whole run says where it began.")
    symptom = Symptom(first.module, first.call, first.value, first.peir)
    return Verdict(False, symptom, None, False, "\n".join(lines))


def _raising(search: Search, failure: Failure) -> Verdict:
    """The candidate raised before any value had differed."""
    call = failure.call
    while call is not None and (record := search.trail.record_of(call.name, call.index)) is None:
        call = call.parent
    if call is None or record is None:
        return _agreement(search)
    finding = search.examine_failure(record)
    return Verdict(
        agrees=False,
        symptom=Symptom(record.module, record.call, OUTPUT, math.inf),
        origin=finding.origin,
        confirmed=finding.confirmed,
        explanation="\n".join(finding.lines),
        origins=(finding.origin,),
    )


def _agreement(search: Search) -> Verdict:
    rows = search.trail.rows
    measured = [row for row in rows if row.difference is not None]
    worst = max(measured, key=lambda row: row.error, default=None)
    text = "The models agree"
    if worst is not None and worst.error == 0.0:
        text += ": every compared value is equal"
    elif worst is not None:
        text += f": the largest PEIR is {figure(worst.peir)}, at {place(worst)}"
        details = [f"limit {figure(worst.limit)}"] if worst.limit else []
        details += [worst.note] if worst.note else []
        text += f" ({'; '.join(details)})" if details else ""
    nonfinite = sum(row.difference.reference_nonfinite for row in measured if row.difference)
    lines = [f"{text}."]
    if nonfinite:
        lines.append(
            f"{nonfinite} compared elements are NaN or infinite on both sides alike; the models "
            "agree on them, but look whether they should be there."
        )
    padded = [row for row in rows if row.has(RemarkKind.PADDED)]
    if padded:
        lines.append(
            f"{len(padded)} values differ at padded positions only, which nothing visible depends "
            f"on: first {place(padded[0])}."
        )
    masks = [row for row in rows if not row.agrees]
    if masks:
        lines.append(
            f"{len(masks)} attention masks let different positions through, without any effect on "
            f"a computed value: first {place(masks[0])}, {masks[0].note}."
        )
    coarse = [row for row in measured if search.tolerance.is_coarse(row.candidate_dtype, row.dtype)]
    if coarse:
        lines.append(
            f"{len(coarse)} values of the candidate are of a coarser dtype, which was allowed its "
            f"own rounding: first {place(coarse[0])}, {dtype_name(coarse[0].candidate_dtype)} for "
            f"{dtype_name(coarse[0].dtype)}."
        )
    settings = search.differing_settings()
    if settings:
        lines.append("Settings differ without an effect beyond the tolerance:")
        lines += [f"  {sentence}" for sentence in settings[:FEW]]
        lines += [f"  and {len(settings) - FEW} more"] if len(settings) > FEW else []
    return Verdict(True, None, None, False, "\n".join(lines))


def _spread(rows: Sequence[Row], first: Row) -> str:
    """How far the damage goes."""
    later = [row for row in rows if row.is_output and row.order > first.order]
    if not later:
        return ""
    wrong = sum(not row.agrees for row in later)
    last = later[-1]
    return (
        f"Of {len(later)} outputs after it, {wrong} disagree; {place(last)} ends at PEIR "
        f"{figure(last.peir)}."
    )


def _one_sided_calls(calls: Sequence[tuple[str, str, int]]) -> list[str]:
    """A line for each module that only one side called, without the modules inside it."""
    names = {(side, name) for side, name, _ in calls}
    lines = []
    for side, name, call in calls:
        above = name.split(".")
        inside = any((side, ".".join(above[:n])) in names for n in range(1, len(above)))
        if not inside:
            other = "candidate" if side == "reference" else "reference"
            index = f" (call {call})" if call else ""
            lines.append(f"The {side} calls {module_in_words(name)}{index}, the {other} does not.")
    return lines[:FEW]
