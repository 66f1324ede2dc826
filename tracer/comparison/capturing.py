"""capture(): the arguments and outputs of some modules of both models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from tracer.execution.hooks import Answer, Call, Phase
from tracer.execution.session import Inputs, Session
from tracer.execution.side import EventKey
from tracer.measurement.arguments import paired_arguments, read_output
from tracer.tensors.leaves import tensor_leaves

if TYPE_CHECKING:
    pass
from tracer.comparison.run import raise_failure


@dataclass(frozen=True)
class Captured:
    """The values of one leaf on both sides; see `capture`.

    Attributes:
        module, call, value: as for a Row.
        reference, candidate: copies of both tensors.
    """

    module: str
    call: int
    value: str
    reference: torch.Tensor
    candidate: torch.Tensor


def capture(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Inputs | None = None,
    *,
    include: str | Sequence[str],
    rename: Mapping[str, str] | None = None,
) -> list[Captured]:
    """Runs two models side by side and keeps the arguments and outputs of some modules.

    Args and errors are those of `compare`; `include` names the modules to keep.
    """
    session = Session(reference, candidate, inputs, rename, include)
    collector = _Collector()
    raise_failure(session.run(collector, frozenset()), None)
    return collector.captured


class _Collector:
    """A visitor that keeps copies of the values."""

    def __init__(self) -> None:
        self.captured: list[Captured] = []

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Copies the arguments of two calls that have started, or the outputs of two ended."""
        if phase is Phase.START:
            for name, r, c in paired_arguments(reference, candidate):
                self._keep(reference, f"kwargs.{name}", r, c)
        else:
            outputs = read_output("reference", reference), read_output("candidate", candidate)
            self._keep(reference, "output", *outputs)
        return None

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """What was edited in place meanwhile is kept as it is by then."""

    def _keep(self, call: Call, path: str, r: object, c: object) -> None:
        candidates = dict(tensor_leaves(c, path))
        for leaf_path, leaf in tensor_leaves(r, path):
            if leaf_path in candidates:
                both = leaf.detach().clone(), candidates[leaf_path].detach().clone()
                self.captured.append(Captured(call.name, call.index, leaf_path, *both))
