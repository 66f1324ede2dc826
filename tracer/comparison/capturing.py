"""capture(): the arguments and outputs of some modules of both models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from trace_model.annotations import checked
from tracer.adapters.opening import Model, as_model
from tracer.comparison.run import raise_failure
from tracer.errors import UsageError
from tracer.execution.hooks import Answer, Call, Phase
from tracer.execution.inputs import Inputs
from tracer.execution.session import Session
from tracer.execution.side import EventKey
from tracer.execution.torch_internals import can_open_fused
from tracer.measurement.arguments import CallPair
from tracer.tensors.leaves import dtype_name
from tracer.tensors.roles import DEFAULT_ROLES, Roles
from tracer.tensors.value_path import OUTPUT, ValuePath


@dataclass(frozen=True)
class Captured:
    """The values of one leaf on both sides; see `capture`.

    Attributes:
        module, call, value: as for a Row.
        reference, candidate: copies of both tensors.
    """

    module: str
    call: int
    value: ValuePath
    reference: torch.Tensor
    candidate: torch.Tensor

    def __repr__(self) -> str:
        form = f"{dtype_name(self.reference.dtype)} {list(self.reference.shape)}"
        name, call = self.module or "the root", f", call {self.call}" if self.call else ""
        return f"<Captured: {self.value} of {name}{call}, {form}>"


@checked(UsageError, but=("inputs", "candidate_inputs"))
@can_open_fused
def capture(
    reference: Model,
    candidate: Model,
    inputs: Inputs | None = None,
    *,
    include: str | Sequence[str],
    candidate_inputs: Inputs | None = None,
    map_inputs: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    roles: Roles = DEFAULT_ROLES,
    inside: bool = False,
) -> list[Captured]:
    """Runs two models side by side and keeps the arguments and outputs of some modules.

    Args and errors are those of `compare`; `include` names the modules to keep.
    """
    session = Session(
        *(as_model(reference), as_model(candidate), inputs, rename, include),
        candidate_inputs=candidate_inputs,
        map_inputs=map_inputs,
    )
    collector = _Collector(roles)
    raise_failure(session.run(collector, frozenset()).failure, None)
    return collector.captured


class _Collector:
    """A visitor that keeps copies of the values."""

    observer = None

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self.captured: list[Captured] = []

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Copies the arguments of two calls that have started, or the outputs of two ended."""
        calls = CallPair(reference, candidate, self._roles)
        if phase is Phase.START:
            for name, r, c in calls.arguments():
                self._keep(reference, ValuePath.of_argument(name), r, c)
        else:
            self._keep(reference, OUTPUT, *calls.outputs())
        return None

    def stale(self, key: EventKey, paths: frozenset[str]) -> None:
        """What was edited in place meanwhile is kept as it is by then."""

    def _keep(self, call: Call, path: ValuePath, r: object, c: object) -> None:
        candidates = path.tensors(c)
        for leaf_path, leaf in path.tensors(r).items():
            if leaf_path in candidates:
                both = leaf.detach().clone(), candidates[leaf_path].detach().clone()
                self.captured.append(Captured(call.name, call.index, leaf_path, *both))
