"""What a runtime's own optimisations change of a graph: the file is run whole once more with them.

The tracer computes a file in parts and without them. So a file may agree in every value, and what
is deployed may not; then the optimiser is the cause, and no module is.
"""

from dataclasses import dataclass, replace

import torch

from tracer.adapters.graph import GraphModel
from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind
from tracer.diagnosis.verdict import Divergence, Symptom, Verdict
from tracer.execution.session import Session
from tracer.tensors.difference import Difference
from tracer.tensors.tolerance import Tolerance
from tracer.tensors.value_path import ValuePath


@dataclass(frozen=True)
class Optimised:
    """A graph that its runtime computes otherwise with its optimisations.

    Attributes:
        side: "reference" or "candidate".
        output: the graph's output that differs most.
        peir: by how much; infinite where the shapes differ.
        limit: up to which it would agree.
    """

    side: str
    output: str
    peir: float
    limit: float


def optimised(session: Session, tolerance: Tolerance) -> Optimised | None:
    """The first side whose runtime changes its outputs; None if there is none.

    Raises:
        ModelRunError: the runtime cannot run the file.
    """
    sides = ("reference", session.reference), ("candidate", session.candidate)
    for side, model in sides:
        if not isinstance(model, GraphModel):
            continue
        with torch.no_grad():
            computed = model.deployed(*session.arguments(side))
        worst = max(
            (found for each in computed if (found := _differing(side, *each, tolerance))),
            key=lambda found: found.peir,
            default=None,
        )
        if worst is not None:
            return worst
    return None


def with_optimised(verdict: Verdict, found: Optimised) -> Verdict:
    """The verdict with what an optimiser changes: the cause if nothing else is."""
    if not verdict.agrees:
        return verdict.with_beside(found)
    origin = Origin("", None, OriginKind.COMPUTATION, None, None)
    finding = Finding(
        origin, FindingKind.OPTIMISED, names=(found.output,), peir=found.peir, other=found.side
    )
    return replace(
        verdict,
        agrees=False,
        symptom=Symptom("", 0, ValuePath.parse("output"), found.peir),
        origin=origin,
        origins=(origin,),
        details=Divergence((finding,)),
    )


def _differing(
    side: str, name: str, plain: torch.Tensor, other: torch.Tensor, tolerance: Tolerance
) -> Optimised | None:
    limit = tolerance.limit(plain.dtype, other.dtype)
    if plain.shape != other.shape:
        return Optimised(side, name, float("inf"), limit)
    difference = Difference.of(plain, other)
    if tolerance.agrees(difference, plain.dtype, other.dtype):
        return None
    return Optimised(side, name, difference.peir, limit)
