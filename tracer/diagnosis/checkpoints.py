"""Whether two models that diverge hold the same checkpoint at all."""

from dataclasses import dataclass

from torch import nn

from tracer.adapters.quantised.lookup import is_quantized
from tracer.diagnosis.parameters import ParameterDifference, ParameterKind, changed_parameters
from tracer.interventions.experiment import Experiment
from tracer.tensors.tolerance import Tolerance

# Of fewer modules nothing can be said: each may be the mistake.
_FEWEST = 4


@dataclass(frozen=True)
class Checkpoints:
    """How many of the reference's modules hold what the candidate holds.

    Attributes:
        modules: those with parameters of their own.
        equal: those whose parameters the candidate has as well.
        differing: those whose counterpart's are others; the rest have no counterpart.
        largest: the largest PEIR of these, of those of one shape.
    """

    modules: int
    equal: int
    differing: int
    largest: float

    @property
    def unpaired(self) -> int:
        """Those without a counterpart."""
        return self.modules - self.equal - self.differing


def other_checkpoint(experiment: Experiment) -> Checkpoints | None:
    """What two models hold, where the parameters of most modules are not the same; else None.

    Nothing is said of a model that others quantised, whose weights all differ.
    """
    pairing = experiment.session.pairing
    if is_quantized(experiment.session.candidate):
        return None
    held = {name: m for name, m in pairing.reference.items() if _own(m) and "[" not in name}
    if len(held) < _FEWEST:
        return None
    own_names = {name: own for own, name in pairing.pairs.items()}
    by_rows = pairing.held(is_candidate=False)
    equal, apart = 0, []
    for name, module in held.items():
        own = own_names.get(name)
        if name in by_rows:
            equal += 1
        elif own is not None:
            changed = _changed(module, pairing.candidate[own], experiment.tolerance)
            equal += not changed
            apart += [max(each.peir or 0.0 for each in changed)] if changed else []
    found = Checkpoints(len(held), equal, len(apart), max(apart, default=0.0))
    return found if 2 * equal < found.modules else None


def _changed(
    reference: nn.Module, candidate: nn.Module, tolerance: Tolerance
) -> list[ParameterDifference]:
    """How the own parameters of two modules differ, by more than they may by rounding."""
    inside = {name for module in (reference, candidate) for name, _ in module.named_children()}
    changed = changed_parameters(reference, candidate, tolerance, inside)
    own = dict(reference.named_parameters(recurse=False))
    return [
        each
        for name, each in changed.items()
        if name in own
        and each.kind is not ParameterKind.TRANSPOSED
        and not (each.peir is not None and each.peir <= tolerance.limit(*[own[name].dtype] * 2))
    ]


def _own(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters(recurse=False)}
