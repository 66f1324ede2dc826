"""Counterfactual runs: what if the candidate were given the reference's value here?

An `Experiment` is a visitor that compares as any other, and puts the reference's argument, output
or parameters in the place of the candidate's at the calls that a `Trial` names. What disagrees
after that was not caused by it.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tracer.calls import Answer, Call, NewArguments, NewOutput, Phase
from tracer.comparer import Comparer
from tracer.difference import Tolerance
from tracer.fits import Fit, known_mistakes
from tracer.forms import (
    argument_names,
    is_of_one_form,
    output_factor,
    paired_arguments,
    read_output,
)
from tracer.parameters import as_written, exchange
from tracer.rows import CallKey, Row, inputs_of
from tracer.values import (
    deep_copy,
    is_stateful,
    leaves,
    map_tensors,
    replace_leaves,
    tensor_leaves,
)


@dataclass(frozen=True)
class Trial:
    """What to replace in a run: the same argument of some calls, an output, or parameters.

    Attributes:
        arguments: the argument to replace by call.
        handed: the reference's name of a module, and an argument to replace in all calls that this
            module makes.
        output: the call whose output is replaced, with what it leaves in its arguments.
        parameters: a call, and the names of what its module holds and is given.
        spared: a call, and the names of arguments of which it is given copies of its own.
    """

    arguments: Mapping[CallKey, str] = field(default_factory=dict)
    handed: tuple[str, str] | None = None
    output: CallKey | None = None
    parameters: tuple[CallKey, tuple[str, ...]] | None = None
    spared: tuple[CallKey, tuple[str, ...]] | None = None


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
        self._undo: list[Callable[[], None]] = []

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Compares what the candidate goes on with."""
        key = reference.name, reference.index
        answer: Answer = None
        if phase is Phase.START:
            self._look(reference, candidate, key, phase)
            if (argument := self._argument_to_replace(reference)) is not None:
                answer = self._replace_argument(reference, candidate, argument)
            if self._trial.spared is not None and self._trial.spared[0] == key:
                answer = self._spare_arguments(reference, candidate, self._trial.spared[1])
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
        while self._undo:
            self._undo.pop()()

    def _look(self, reference: Call, candidate: Call, key: CallKey, phase: Phase) -> None:
        """Fits the known mistakes to the watched value while both tensors are alive."""
        watch = self._watch
        if watch is None or key != (watch.module, watch.call):
            return
        if watch.is_output != (phase is Phase.END):
            return
        root, _, path = watch.value.partition(".")
        if root == "output":
            pair = read_output("reference", reference), read_output("candidate", candidate)
        else:
            name = path.partition(".")[0]
            root = f"{root}.{name}"
            pair = next((r, c) for n, r, c in paired_arguments(reference, candidate) if n == name)
        r, c = (dict(tensor_leaves(value, root)).get(watch.value) for value in pair)
        if r is not None and c is not None:
            self.mistakes = known_mistakes(r, c, watch.limit)

    def _argument_to_replace(self, reference: Call) -> str | None:
        if self._trial.handed is not None and reference.parent is not None:
            giver, argument = self._trial.handed
            if reference.parent.name == giver and argument in reference.arguments:
                return argument
        return self._trial.arguments.get((reference.name, reference.index))

    def _replace_argument(self, reference: Call, candidate: Call, name: str) -> Answer:
        if not is_of_one_form(reference, candidate, "to_reference_input"):
            return None  # the candidate's form of it cannot be made from the reference's
        own_name = argument_names(reference, candidate).get(name, name)
        dtypes = _float_dtypes({k: v for k, v in candidate.arguments.items() if k != own_name})
        given = _in_place_of(
            candidate.arguments.get(own_name), reference.arguments.get(name), dtypes
        )
        candidate.arguments[own_name] = given
        self.applied = True
        return NewArguments({own_name: given})

    def _spare_arguments(
        self, reference: Call, candidate: Call, names: tuple[str, ...]
    ) -> NewArguments:
        own_names = argument_names(reference, candidate)
        copies = {
            own_names[name]: map_tensors(candidate.arguments[own_names[name]], torch.Tensor.clone)
            for name in names
        }
        candidate.arguments.update(copies)
        self.applied = True
        return NewArguments(copies)

    def _replace_output(self, reference: Call, candidate: Call) -> Answer:
        factor = _factor_over(reference, candidate)
        if factor is None:
            return None
        dtypes = _float_dtypes(candidate.arguments)
        for name, own_name in argument_names(reference, candidate).items():
            left = reference.arguments[name], candidate.arguments[own_name]
            if all(map(is_stateful, left)):
                _leave(*left, dtypes)
        output = _in_place_of(candidate.output, reference.output, dtypes)
        if factor != 1.0:
            output = map_tensors(output, lambda tensor: tensor * factor)
        candidate.output = output
        self.applied = True
        return NewOutput(output)

    def _swaps(self, key: CallKey) -> bool:
        return self._trial.parameters is not None and self._trial.parameters[0] == key

    def _swap_parameters(self, candidate: nn.Module, reference: nn.Module) -> None:
        assert self._trial.parameters is not None
        for name in self._trial.parameters[1]:
            undo = exchange(as_written(candidate), as_written(reference), name)
            if undo is not None:
                self._undo.append(undo)
                self.applied = True


def _factor_over(reference: Call, candidate: Call) -> float | None:
    """What the reference's output is multiplied by to take the candidate's place."""
    if is_of_one_form(reference, candidate, "to_reference_output"):
        return 1.0
    factors = output_factor(reference.module), output_factor(candidate.module)
    return None if factors[0] is None or factors[1] is None else factors[1] / factors[0]


def _leave(reference: object, candidate: object, dtypes: set[torch.dtype]) -> None:
    """Makes the candidate's list, dict or object hold what the reference's does."""
    value: Any = _in_place_of(candidate, reference, dtypes)
    if value is candidate:
        return
    if isinstance(candidate, list):
        candidate[:] = value
    elif isinstance(candidate, MutableMapping):
        candidate.clear()
        candidate.update(value)
    else:
        vars(candidate).update(vars(value))


def _in_place_of(candidate: object, reference: object, dtypes: set[torch.dtype]) -> object:
    """A copy of the reference's value in the candidate's structure and on its devices.

    Floats take the candidate's dtype, unless the reference's is among `dtypes`, those that the
    candidate works in at this call: another dtype is then part of what went wrong.
    """
    theirs, mine = dict(leaves(reference, "value")), dict(leaves(candidate, "value"))
    tensors = dict(tensor_leaves(candidate, "value"))
    if not tensors or tensors.keys() != dict(tensor_leaves(reference, "value")).keys():
        return deep_copy(reference, lambda tensor: tensor.detach().clone())
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
