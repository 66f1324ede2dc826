"""Counterfactual runs: what if the candidate were given the reference's value here?

An `Experiment` is a visitor that compares as any other, and puts the reference's argument, output
or parameters instead of the candidate's at the calls that `Replacements` name. What disagrees
after that was not caused by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tracer.execution.hooks import Answer, Call, NewArguments, Phase
from tracer.execution.torch_internals import as_written
from tracer.interventions.exchange import exchange
from tracer.interventions.forcing import Forcing
from tracer.interventions.substitution import give_argument, give_output
from tracer.measurement.arguments import argument_names, paired_arguments, read_output
from tracer.measurement.rows import CallKey, Row, inputs_of
from tracer.tensors.known_mistakes import Fit, known_mistakes
from tracer.tensors.leaves import map_tensors, tensor_leaves
from tracer.tensors.tolerance import Tolerance


@dataclass(frozen=True)
class Replacements:
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


class Experiment(Forcing):
    """A run in which the candidate is given some of the reference's values.

    Attributes:
        applied: whether something was replaced.
        failure: what a model raised in this run, in words; None if nothing.
        mistakes: the known mistakes that explain the watched row, as it was before replacement.
    """

    def __init__(
        self,
        tolerance: Tolerance,
        trial: Replacements,
        watch: Row | None,
        reference_modules: Mapping[str, nn.Module],
        *,
        forced: bool = False,
    ) -> None:
        """Takes what is to be replaced.

        Args:
            watch: the row that the known mistakes are fitted to.
            reference_modules: by name.
            forced: what goes on from each call is the reference's as well; see `Forcing`.
        """
        super().__init__(tolerance, None if forced else frozenset())
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
                answer = self._noted(give_argument(reference, candidate, argument))
            if self._trial.spared is not None and self._trial.spared[0] == key:
                answer = self._spare_arguments(reference, candidate, self._trial.spared[1])
            if self._swaps(key):
                self._swap_parameters(candidate.module, self._reference_modules[key[0]])
        else:
            self._look(reference, candidate, key, phase)
            if self._swaps(key):
                self.restore()
            if key == self._trial.output:
                answer = self._noted(give_output(reference, candidate))
        return super().visit(reference, candidate, phase) or answer

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

    def _noted(self, answer: Answer) -> Answer:
        self.applied |= answer is not None
        return answer

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

    def _swaps(self, key: CallKey) -> bool:
        return self._trial.parameters is not None and self._trial.parameters[0] == key

    def _swap_parameters(self, candidate: nn.Module, reference: nn.Module) -> None:
        assert self._trial.parameters is not None
        for name in self._trial.parameters[1]:
            undo = exchange(as_written(candidate), as_written(reference), name)
            if undo is not None:
                self._undo.append(undo)
                self.applied = True
