"""What a comparison is checked against: a baseline, limits, and what is to fail."""

from dataclasses import dataclass

from tracer.cli.requests import CompareRequest
from tracer.cli.resolve import Sides
from tracer.comparison.result import Comparison
from tracer.comparison.run import compare
from tracer.errors import InputError
from tracer.execution.session import named_modules
from tracer.regression.baseline import Baseline, open_baseline
from tracer.regression.gating import gate
from tracer.regression.limits import Limits
from tracer.traces.recorded import Recorded

# A baseline, or a trace that one is to be made of.
Former = Baseline | Recorded


@dataclass(frozen=True)
class Thresholds:
    """What a comparison is checked against.

    Attributes:
        baseline: None without one.
        limits: of each kind, as `tracer.gate` takes them: by globs of module names, in the order
            in which they were given last.
        fail_on: what is to fail; None where nothing was said.
        baseline_any: the baseline may be of another comparison.
    """

    baseline: Baseline | None
    limits: dict[str, dict[str, float]]
    fail_on: str | None
    baseline_any: bool = False

    def judge(self, comparison: Comparison, *, differences_expected: bool) -> Comparison:
        """The comparison with what the gate decides, where there is anything to decide by."""
        if self.baseline is None and not self.limits and self.fail_on is None:
            return comparison
        decided = gate(
            comparison,
            self.baseline,
            fail_on=self.fail_on,
            **self.limits,
            differences_expected=differences_expected,
            baseline_any=self.baseline_any,
        )
        return comparison.judged(decided)


def open_former(request: CompareRequest) -> Former | None:
    """Reads or opens the baseline, before any model is loaded."""
    return None if request.baseline is None else open_baseline(request.baseline)


def thresholds(request: CompareRequest, sides: Sides, former: Former | None) -> Thresholds:
    """What the options ask for, checked against the models before they are compared."""
    limits: dict[str, dict[str, float]] = {}
    for kind, given in request.limits.items():
        of_kind = limits.setdefault(kind, {})
        for glob, value in given:
            of_kind.pop(glob, None)
            of_kind[glob] = value
    Limits.of(**limits).check(named_modules(sides.reference))
    baseline = _measured(former, request, sides) if isinstance(former, Recorded) else former
    return Thresholds(baseline, limits, request.fail_on, request.baseline_any)


def _measured(former: Recorded, request: CompareRequest, sides: Sides) -> Baseline:
    """What the former candidate's trace gives, compared with the reference."""
    try:
        then = compare(
            sides.reference,
            former,
            sides.inputs,
            candidate_inputs=sides.candidate_inputs,
            map_inputs=dict(request.map_input),
            rename=dict(request.map),
            tolerance=request.tolerance,
            train=request.train,
            confirm=False,
        )
    except InputError as error:
        raise InputError(
            f"the baseline {former.name} was recorded on other inputs than these: give the options "
            f"that it was recorded with ({former.header['command']})"
        ) from error
    return Baseline.of(then, former.name)
