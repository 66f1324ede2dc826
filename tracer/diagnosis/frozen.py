"""Parameters that one side trains and the other does not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind
from tracer.diagnosis.trials import Outcome, Proof
from tracer.execution.hooks import definition
from tracer.execution.pairing import Pairing
from tracer.measurement.gradients import Parameter
from tracer.measurement.rows import Row


@contextmanager
def trained_alike(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Parameters that one side alone trains are trained by both for a while."""
    frozen = [
        tensor
        for parameter in parameters
        for tensor in (parameter.reference, parameter.candidate)
        if not tensor.requires_grad
    ]
    try:
        for tensor in frozen:
            tensor.requires_grad_()
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)


def frozen_findings(
    frozen: Sequence[Parameter], left: Sequence[Row], pairing: Pairing
) -> list[Finding]:
    """A finding for each module with parameters that one side alone trains.

    Args:
        frozen: these parameters.
        left: the gradients that differ once both sides train them, for no other reason.
    """
    still = {(row.module, row.value.in_argument) for row in left}
    own_names = {name: own for own, name in pairing.pairs.items()}
    findings = []
    for name in dict.fromkeys(parameter.module for parameter in frozen):
        own = [parameter for parameter in frozen if parameter.module == name]
        agree = not any((name, parameter.name) in still for parameter in own)
        sides = pairing.reference.get(name), pairing.candidate.get(own_names.get(name, ""))
        lines = [None if side is None else line_of(side) for side in sides]
        kind = FindingKind.FROZEN if own[0].reference.requires_grad else FindingKind.NOT_FROZEN
        findings.append(
            Finding(
                gradient_origin(name, lines, pairing),
                kind,
                Proof(Outcome.TRAINED if agree else Outcome.GRADIENTS_DIFFER),
                names=tuple(parameter.name for parameter in own),
            )
        )
    return findings


def gradient_origin(module: str, lines: Sequence[str | None], pairing: Pairing) -> Origin:
    """The origin of a gradient that is wrong.

    Args:
        module: the reference's name.
        lines: the reference's and the candidate's.
    """
    own = next((own for own, name in pairing.pairs.items() if name == module), module)
    candidate_module = None if own == module else own
    return Origin(module, None, OriginKind.GRADIENT, lines[0], lines[1], candidate_module)


def line_of(module: nn.Module) -> str | None:
    """Where a module's forward is defined."""
    defined = definition(module)
    return None if defined is None else str(defined)
