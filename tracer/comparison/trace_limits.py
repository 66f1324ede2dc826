"""What it means for a comparison that one side is a recording.

It cannot be run again, so that some things cannot be asked for and a cause may stay a suspect; it
may hold less than the model had, which the verdict and the coverage say.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import nn

from tracer.diagnosis.verdict import Verdict
from tracer.errors import UsageError
from tracer.execution.session import named_modules
from tracer.execution.standin import StandIn
from tracer.measurement.coverage import Coverage
from tracer.traces.recorded import Recorded, checksums_of


class TraceLimitKind(StrEnum):
    """What a recording lacks."""

    ENDED = "ended"  # it was ended early
    FINGERPRINTS = "fingerprints"  # errors are estimated
    OUTPUTS = "outputs"  # it holds no arguments
    OTHER_PARAMETERS = "other_parameters"  # they are not those of the other side


@dataclass(frozen=True)
class TraceLimit:
    """What a recording means for a verdict.

    Attributes:
        kind: what it lacks.
        side: "reference" or "candidate".
        calls: how many it holds, where it was ended.
        agrees: what was compared until then does.
        parameters: names of those that are others, of the `checked` that there are.
    """

    kind: TraceLimitKind
    side: str = ""
    calls: int = 0
    agrees: bool = False
    parameters: tuple[str, ...] = ()
    checked: int = 0


def is_recorded(*models: nn.Module) -> bool:
    """Whether any of them is a recording."""
    return any(isinstance(model, Recorded) for model in models)


def why_not_run_again(reference: nn.Module, candidate: nn.Module) -> str:
    """Why a cause cannot be confirmed, in a clause; the empty string if it can."""
    sides = ("candidate", candidate), ("reference", reference)
    reasons = [m.why_not_run_again(side) for side, m in sides if isinstance(m, StandIn)]
    return next(filter(None, reasons), "")


def check_asked(
    reference: nn.Module,
    candidate: nn.Module,
    *,
    isolate: bool,
    what_if: bool,
    noise_floor: bool,
    zoom: bool,
    debugger: bool,
) -> None:
    """Checks that nothing is asked for that needs a model where there is a recording.

    Raises:
        UsageError: something is.
    """
    reason = why_not_run_again(reference, candidate)
    if isolate and reason:
        raise UsageError(f"isolate: {reason}; record --values all, of the reference")
    if isinstance(reference, Recorded):
        for name, is_asked in (("what_if", what_if), ("noise_floor", noise_floor)):
            if is_asked:
                raise UsageError(f"{name} runs the reference's modules, and it is a recording")
    if zoom and is_recorded(reference, candidate):
        raise UsageError("zoom looks at the operations of both models, and one is a recording")
    if isinstance(candidate, Recorded) and debugger:
        raise UsageError("the debugger stands in the candidate's code, and it is a recording")


def with_recordings(verdict: Verdict, reference: nn.Module, candidate: nn.Module) -> Verdict:
    """The verdict with what recordings mean for it."""
    sides = [
        (side, model)
        for side, model in (("reference", reference), ("candidate", candidate))
        if isinstance(model, Recorded)
    ]
    if not sides:
        return verdict
    limits = [] if verdict.agrees else _other_parameters(reference, candidate)
    for side, model in sides:
        limits += _limits(side, model, verdict)
    agrees = verdict.agrees and all(model.file.is_complete for _, model in sides)
    reason = why_not_run_again(reference, candidate)
    return replace(verdict, agrees=agrees, why_not_tried=reason).with_beside(*limits)


def covering_recordings(coverage: Coverage, reference: nn.Module, candidate: nn.Module) -> Coverage:
    """The coverage with what was not recorded, and why."""
    reasons = dict(coverage.reasons)
    notes: list[str] = []
    unmatched = coverage.unmatched_calls
    for side, model in (("reference", reference), ("candidate", candidate)):
        if not isinstance(model, Recorded):
            continue
        missing = _missing(model)
        reasons.update({name: why for name, why in missing.items() if name in reasons})
        if not model.file.is_complete:
            notes.append(ended_early(side, _calls(model)))
            unmatched = tuple(call for call in unmatched if call[0] == side)
    return replace(coverage, reasons=reasons, unmatched_calls=unmatched, recordings=tuple(notes))


def _missing(recording: Recorded) -> dict[str, str]:
    """Why modules are not in a recording, by name."""
    called = recording.called
    missing = dict.fromkeys(recording.unavailable, "not recorded")
    if not recording.file.is_complete:
        late = "the recording ends before its first call"
        missing |= {
            n: late for n in recording.header["modules"] if n not in called and n not in missing
        }
    return missing


def ended_early(side: str, calls: int) -> str:
    """What the coverage says of a recording that was ended, in a clause."""
    return f"the recording of the {side} was ended early, in its call {calls}"


def _calls(recording: Recorded) -> int:
    return sum(recording.called.values())


def _limits(side: str, recording: Recorded, verdict: Verdict) -> Iterator[TraceLimit]:
    if not recording.file.is_complete:
        yield TraceLimit(TraceLimitKind.ENDED, side, _calls(recording), verdict.agrees)
    if recording.values == "fingerprints":
        yield TraceLimit(TraceLimitKind.FINGERPRINTS, side)
    elif recording.values == "outputs" and not verdict.agrees and verdict.symptom is not None:
        yield TraceLimit(TraceLimitKind.OUTPUTS, side)


def _other_parameters(reference: nn.Module, candidate: nn.Module) -> list[TraceLimit]:
    """Whether parameters of the same name are not those of the recording."""
    references, candidates = (
        {
            f"{name}.{own}".strip("."): known
            for name, module in named_modules(model).items()
            for own, known in checksums_of(module).items()
        }
        for model in (reference, candidate)
    )
    differ = [
        name
        for name, r in references.items()
        if (c := candidates.get(name)) is not None
        and (r.dtype, r.shape) == (c.dtype, c.shape)
        and r.digest != c.digest
    ]
    if not differ:
        return []
    kind = TraceLimitKind.OTHER_PARAMETERS
    return [TraceLimit(kind, parameters=tuple(differ), checked=len(references))]
