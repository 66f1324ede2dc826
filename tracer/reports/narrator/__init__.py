"""Findings in sentences: the only place that makes sentences of them.

>>> print(tracer.explain(comparison.verdict))
The error is introduced in the forward of `model.layers.0.mlp` itself: its inputs agree, its output
does not.
...
"""

from functools import singledispatch

from tracer.adapters.quantised.silent import SilentMistakes
from tracer.comparison.noise_floor import NoiseReading
from tracer.comparison.trace_limits import TraceLimit
from tracer.diagnosis.discrete import NearTie
from tracer.diagnosis.finding import RandomDraws, TightTolerance
from tracer.diagnosis.gradients import ForwardOnly, GradientsAgree
from tracer.diagnosis.optimised import Optimised
from tracer.diagnosis.structure import WrongStructure
from tracer.diagnosis.verdict import Verdict
from tracer.diagnosis.zoom.zoom import Zoomed
from tracer.isolation.compiled.result import CompiledInside
from tracer.isolation.result import Isolation
from tracer.reports.narrator import (
    inside,
    isolation,
    noise,
    optimised,
    randomness,
    silent,
    structure,
    ties,
    tolerances,
    traces,
    training,
    verdict,
    zoom,
)


@singledispatch
def lines(finding: object) -> list[str]:
    """The lines that say what was found.

    Raises:
        TypeError: it is no finding.
    """
    raise TypeError(f"expected a finding of the tracer's, found a {type(finding).__name__}")


def explain(finding: object) -> str:
    """What was found, in one or several lines.

    Args:
        finding: a verdict, or what zoom, isolation, the noise floor, a recording or the gate has
            found.

    Raises:
        TypeError: it is none of these.
    """
    return "\n".join(lines(finding))


@lines.register
def _(finding: Verdict) -> list[str]:
    return [*verdict.lines(finding), *(line for each in finding.beside for line in lines(each))]


lines.register(Zoomed)(zoom.lines)
lines.register(Isolation)(isolation.lines)
lines.register(CompiledInside)(inside.lines)
lines.register(NoiseReading)(noise.lines)
lines.register(TraceLimit)(traces.lines)
lines.register(RandomDraws)(randomness.lines)
lines.register(ForwardOnly)(training.forward_only)
lines.register(GradientsAgree)(training.gradients_agree)
lines.register(Optimised)(optimised.lines)
lines.register(WrongStructure)(structure.lines)
lines.register(NearTie)(ties.lines)
lines.register(TightTolerance)(tolerances.lines)
lines.register(SilentMistakes)(silent.lines)
