"""What it means for a comparison that one side is a recording.

It cannot be run again, so that some things cannot be asked for and a cause may stay a suspect; it
may hold less than the model had, which the verdict and the coverage say.
"""

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from tracer.diagnosis.trials import NOT_TRIED
from tracer.diagnosis.verdict import Verdict
from tracer.errors import UsageError
from tracer.execution.session import named_modules
from tracer.execution.standin import StandIn
from tracer.measurement.coverage import Coverage
from tracer.text import listed
from tracer.traces.recorded import Recorded, checksums_of

_MOST_NAMED = 3


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
    reason = why_not_run_again(reference, candidate)
    explanation = verdict.explanation
    if reason:
        explanation = explanation.replace(NOT_TRIED, f"Not confirmed: {reason}.")
    lines = [explanation]
    if not verdict.agrees:
        lines += _weights(reference, candidate)
    for side, model in sides:
        lines += _limits(side, model, verdict)
    agrees = verdict.agrees and all(model.file.is_complete for _, model in sides)
    return replace(verdict, agrees=agrees, explanation="\n".join(lines))


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
            notes.append(_ended(side, model))
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


def _ended(side: str, recording: Recorded) -> str:
    calls = sum(recording.called.values())
    return f"the recording of the {side} was ended early, in its call {calls}"


def _limits(side: str, recording: Recorded, verdict: Verdict) -> Iterator[str]:
    if not recording.file.is_complete:
        text = _ended(side, recording)
        rest = "; what was compared until then agrees" if verdict.agrees else ""
        yield f"{text[0].upper()}{text[1:]}{rest}."
    if recording.values == "fingerprints":
        yield (
            f"The recording of the {side} holds fingerprints: how far values lie apart is "
            "estimated, within 38 % below and 113 % above."
        )
    elif recording.values == "outputs" and not verdict.agrees and verdict.symptom is not None:
        yield (
            f"The recording of the {side} holds outputs alone: whether the inputs of a module "
            "agree is not known, so that it may begin in what calls it."
        )


def _weights(reference: nn.Module, candidate: nn.Module) -> list[str]:
    """A sentence where parameters of the same name are not those of the recording."""
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
    names = listed([f"`{name}`" for name in differ], _MOST_NAMED)
    return [f"{len(differ)} of {len(references)} parameters are not those recorded: {names}."]
