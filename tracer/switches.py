"""What causes the error of a module: with one of its switches off at a time, how far does it fall?

A module of the candidate's that can leave out a part of what it does says so by two methods, and
nothing else is known of it (`Switchable`). Quantised modules give their quantization points: "uint4
weight".

The module is called again right where it has ended, with the reference's inputs, once for each of
its switches and those of the modules inside it: that costs calls of one module, not of the model.
Where only its own lines are looked at, the switches of the modules inside are all off meanwhile:
what is left is made in its own lines, as it is seen in its output.
"""

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from tracer.calls import Answer, Call, Phase
from tracer.difference import Difference, Tolerance
from tracer.forcing import Forcing
from tracer.forms import read_output
from tracer.recall import call_again, inputs_kept
from tracer.rows import CallKey, CallRecord
from tracer.values import tensor_leaves

# A switch that takes away less than this part of the error explains nothing.
_LEAST_FALL = 0.05
_MOST_CAUSES = 5


@dataclass(frozen=True)
class Cause:
    """A switch of the candidate's, and what it does to the error of a module.

    Attributes:
        point: its name, after that of the module inside that it belongs to: "q_proj.weight".
        kind: what it is in words: "uint4 weight".
        before, after: the relative L2 error of the module's output with everything in it at work,
            and with this switch off; over all its calls, of the output's worst leaf. For a module
            of which only the own lines are looked at, both are without the modules inside.
    """

    point: str
    kind: str
    before: float
    after: float


@runtime_checkable
class Switchable(Protocol):
    """A module that can leave out parts of what it does."""

    def switches(self) -> Mapping[str, str]:
        """The parts by name, each in a few words."""
        ...

    def switched_off(self, name: str) -> AbstractContextManager[None]:
        """Leaves out a part for a while."""
        ...


@dataclass(frozen=True)
class _Switch:
    point: str
    kind: str
    owner: Switchable
    name: str

    @property
    def is_own(self) -> bool:
        """Whether it belongs to the module itself, and not to one inside."""
        return self.point == self.name


# The differences of an output's leaves by path, over all calls.
_Sums = dict[str, Difference]


class SwitchTrials(Forcing):
    """The visitor of a run in which some modules are called again with a switch off."""

    def __init__(
        self,
        tolerance: Tolerance,
        modules: Container[str] | None,
        watched: Container[str],
        *,
        own_lines: bool,
    ) -> None:
        """Chooses what is looked at.

        Args:
            modules: as for `Forcing`.
            watched: the reference's names of the modules that are called again.
            own_lines: only the switches of the modules themselves are tried.
        """
        super().__init__(tolerance, modules, exact=True)
        self._watched = watched
        self._own_lines = own_lines
        self._inputs: dict[CallKey, dict[str, object]] = {}
        self._sums: dict[str, dict[_Switch | None, _Sums]] = defaultdict(dict)

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Tries the switches of a watched module at its end."""
        answer = super().visit(reference, candidate, phase)
        key = reference.name, reference.index
        record = self.records.get(key)
        if record is None or reference.name not in self._watched:
            return answer
        if phase is Phase.START:
            if any(switches_of(candidate.module)):
                self._inputs[key] = inputs_kept(candidate.arguments)
        elif key in self._inputs:
            self._try(record, reference, candidate, self._inputs.pop(key))
        return answer

    def causes(self, module: str) -> tuple[Cause, ...]:
        """The switches that explain most of a module's error, the first one most of all."""
        sums = self._sums.get(module, {})
        before = _relative(sums.get(None, {}))
        found = [
            Cause(switch.point, switch.kind, before, _relative(measured))
            for switch, measured in sums.items()
            if switch is not None
        ]
        explain = [cause for cause in found if cause.after < (1 - _LEAST_FALL) * before]
        return tuple(sorted(explain, key=lambda cause: cause.after)[:_MOST_CAUSES])

    def _try(
        self, record: CallRecord, reference: Call, candidate: Call, inputs: dict[str, object]
    ) -> None:
        switches = list(switches_of(candidate.module))
        off = [switch for switch in switches if self._own_lines and not switch.is_own]
        for tried in (None, *(switch for switch in switches if switch not in off)):
            with ExitStack() as stack:
                for switch in (*off, tried) if tried is not None else off:
                    stack.enter_context(switch.owner.switched_off(switch.name))
                output = call_again(
                    candidate.name, candidate.module, inputs_kept(inputs), candidate.positional
                )
            sums = self._sums[record.module].setdefault(tried, {})
            outputs = (
                read_output("reference", reference),
                read_output("candidate", replace(candidate, output=output)),
            )
            self._add_up(sums, record, *outputs)

    def _add_up(self, sums: _Sums, record: CallRecord, r: object, c: object) -> None:
        candidates = dict(tensor_leaves(c, "output"))
        for path, left in tensor_leaves(r, "output"):
            right = candidates.get(path)
            if right is None or left.shape != right.shape or not _is_inexact(left):
                continue
            shown = self._at_visible_positions(record, left, right)
            difference = Difference.of(left, right) if shown is None else shown
            sums[path] = sums[path].merge(difference) if path in sums else difference


def switches_of(module: nn.Module) -> Iterator[_Switch]:
    """The switches of a module and of those inside it."""
    for path, owner in module.named_modules():
        if isinstance(owner, Switchable):
            for name, kind in owner.switches().items():
                yield _Switch(f"{path}.{name}".lstrip("."), kind, owner, name)


def _relative(sums: _Sums) -> float:
    """The relative L2 error of the worst leaf."""
    errors = (float("inf") if d.mismatched else d.relative_l2 for d in sums.values())
    return max(errors, default=0.0)


def _is_inexact(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
