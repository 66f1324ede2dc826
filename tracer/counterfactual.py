"""Counterfactual runs: what if the candidate were given the reference's value here?

An `Experiment` is a visitor that compares as any other, and puts the reference's argument, output
or parameters in the place of the candidate's at the calls that a `Trial` names. What disagrees
after that was not caused by it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tracer.calls import Answer, Call, NewArguments, NewOutput, Phase
from tracer.comparer import Comparer
from tracer.difference import Tolerance
from tracer.fits import Fit, known_mistakes
from tracer.forms import argument_names, paired_arguments, reference_output
from tracer.parameters import as_written
from tracer.rows import CallKey, Row, inputs_of
from tracer.values import leaves, map_tensors, replace_leaves, tensor_leaves


@dataclass(frozen=True)
class Trial:
    """What to replace in a run: the same argument of some calls, an output, or parameters.

    Attributes:
        arguments: the argument to replace by call.
        output: the call whose output is replaced.
        parameters: a call, and the names of the parameters and buffers that its module is given.
    """

    arguments: Mapping[CallKey, str] = field(default_factory=dict)
    output: CallKey | None = None
    parameters: tuple[CallKey, tuple[str, ...]] | None = None


class Experiment(Comparer):
    """A run in which the candidate is given some of the reference's values.

    Attributes:
        applied: whether something was replaced.
        failure: what a model raised in this run, in words; None if nothing.
        mistakes: the known mistakes that explain the watched row, as it was before replacement.
    """

    def __init__(
        self,
        tolerance: Tolerance,
        trial: Trial,
        watch: Row | None,
        reference_modules: Mapping[str, nn.Module],
    ) -> None:
        super().__init__(tolerance)
        self.applied = False
        self.failure: str | None = None
        self.mistakes: list[Fit] = []
        self._trial = trial
        self._watch = watch
        self._reference_modules = reference_modules
        self._swapped: list[tuple[dict[str, torch.Tensor | None], str, torch.Tensor | None]] = []

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Compares what the candidate goes on with."""
        key = reference.name, reference.index
        answer: Answer = None
        if phase is Phase.START:
            self._look(reference, candidate, key, phase)
            if key in self._trial.arguments:
                answer = self._replace_argument(reference, candidate, self._trial.arguments[key])
            if self._swaps(key):
                self._swap_parameters(candidate.module, self._reference_modules[key[0]])
        else:
            self._look(reference, candidate, key, phase)
            if self._swaps(key):
                self.restore()
            if key == self._trial.output:
                answer = self._replace_output(reference, candidate)
        super().visit(reference, candidate, phase)
        return answer

    def row(self, like: Row) -> Row | None:
        """This run's row of the same value."""
        record = self.records.get((like.module, like.call))
        if record is None:
            return None
        if not like.is_output:
            return record.arguments.get(like.value)
        return next((row for row in record.outputs if row.value == like.value), None)

    def inputs(self, row: Row) -> list[Row]:
        """The rows that a value was computed from; see `inputs_of`."""
        return list(inputs_of(row, self.records))

    def restore(self) -> None:
        """Puts a module's own parameters back."""
        while self._swapped:
            place, name, value = self._swapped.pop()
            place[name] = value

    def _look(self, reference: Call, candidate: Call, key: CallKey, phase: Phase) -> None:
        """Fits the known mistakes to the watched value while both tensors are alive."""
        watch = self._watch
        if watch is None or key != (watch.module, watch.call):
            return
        if watch.is_output != (phase is Phase.END):
            return
        if watch.is_output:
            pair = reference.output, reference_output(candidate)
        else:
            pair = next(
                (r, c) for n, r, c in paired_arguments(reference, candidate) if n == watch.argument
            )
        root = "output" if watch.is_output else f"kwargs.{watch.argument}"
        r, c = (dict(tensor_leaves(value, root)).get(watch.value) for value in pair)
        if r is not None and c is not None:
            self.mistakes = known_mistakes(r, c, watch.limit)

    def _replace_argument(self, reference: Call, candidate: Call, name: str) -> Answer:
        if hasattr(candidate.module, "to_reference_input"):
            return None  # its own form of the argument cannot be made from the reference's
        own_name = argument_names(reference, candidate).get(name, name)
        dtypes = _float_dtypes({k: v for k, v in candidate.arguments.items() if k != own_name})
        given = _in_place_of(
            candidate.arguments.get(own_name), reference.arguments.get(name), dtypes
        )
        candidate.arguments[own_name] = given
        self.applied = True
        return NewArguments({own_name: given})

    def _replace_output(self, reference: Call, candidate: Call) -> Answer:
        if hasattr(candidate.module, "to_reference_output"):
            return None
        dtypes = _float_dtypes(candidate.arguments)
        candidate.output = _in_place_of(candidate.output, reference.output, dtypes)
        self.applied = True
        return NewOutput(candidate.output)

    def _swaps(self, key: CallKey) -> bool:
        return self._trial.parameters is not None and self._trial.parameters[0] == key

    def _swap_parameters(self, candidate: nn.Module, reference: nn.Module) -> None:
        assert self._trial.parameters is not None
        own, theirs = as_written(candidate), as_written(reference)
        for path in self._trial.parameters[1]:
            owner, _, name = path.rpartition(".")
            try:
                places = _places(own.get_submodule(owner)), _places(theirs.get_submodule(owner))
            except AttributeError:  # one side alone has such a module
                continue
            for mine, other in zip(*places, strict=True):
                value, found = other.get(name), mine.get(name)
                if value is None or name not in mine:
                    continue
                if found is not None and found.shape != value.shape:
                    continue
                like = value if found is None else found
                self._swapped.append((mine, name, found))
                mine[name] = _as_parameter(value.detach().to(like), found)
                self.applied = True


def _places(module: nn.Module) -> tuple[dict[str, torch.Tensor | None], ...]:
    """Where a module keeps its parameters and its buffers."""
    parameters: dict[str, torch.Tensor | None] = module._parameters  # type: ignore[assignment]
    return parameters, module._buffers


def _in_place_of(candidate: object, reference: object, dtypes: set[torch.dtype]) -> object:
    """A copy of the reference's value in the candidate's structure and on its devices.

    Floats take the candidate's dtype, unless the reference's is among `dtypes`, those that the
    candidate works in at this call: another dtype is then part of what went wrong.
    """
    theirs, mine = dict(leaves(reference, "value")), dict(leaves(candidate, "value"))
    tensors = dict(tensor_leaves(candidate, "value"))
    if not tensors or tensors.keys() != dict(tensor_leaves(reference, "value")).keys():
        return map_tensors(copy.copy(reference), torch.Tensor.clone)
    copies: dict[str, object] = {path: theirs[path] for path in mine if path in theirs}
    for path, own in tensors.items():
        value = theirs[path]
        assert isinstance(value, torch.Tensor)
        is_cast = own.is_floating_point() and value.is_floating_point()
        dtype = own.dtype if is_cast and value.dtype not in dtypes else value.dtype
        copies[path] = value.detach().to(own.device, dtype, copy=True)
    return replace_leaves(candidate, "value", copies)


def _float_dtypes(arguments: Mapping[str, object]) -> set[torch.dtype]:
    return {
        leaf.dtype for _, leaf in tensor_leaves(dict(arguments), "") if leaf.is_floating_point()
    }


def _as_parameter(value: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor:
    if isinstance(found, nn.Parameter):
        return nn.Parameter(value, requires_grad=False)
    return value
