"""Counterfactual runs: what if the candidate were given the reference's value here?

A `Trial` puts the reference's argument, output or parameters instead of the candidate's at the
calls that its `Replacements` name. What disagrees after that was not caused by it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from tracer.execution.hooks import Answer, Call, NewArguments
from tracer.execution.torch_internals import as_written
from tracer.interventions.exchange import exchange
from tracer.interventions.substitution import give_argument, give_output
from tracer.measurement.arguments import CallPair
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallKey, Row
from tracer.tensors.kinds import copied
from tracer.tensors.known_mistakes import Fit, known_mistakes
from tracer.tensors.rebuilding import map_tensors
from tracer.tensors.value_path import OUTPUT, ValuePath


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
        transposed: whether the parameters are given transposed.
    """

    arguments: Mapping[CallKey, str] = field(default_factory=dict)
    handed: tuple[str, str] | None = None
    output: CallKey | None = None
    parameters: tuple[CallKey, tuple[str, ...]] | None = None
    spared: tuple[CallKey, tuple[str, ...]] | None = None
    transposed: bool = False

    def moved(self, old: str, new: str) -> "Replacements | None":
        """The same in another layer; None where something else than a value is replaced, or
        something outside the layer.

        Args:
            old, new: the names of the two layers.
        """
        calls = [*self.arguments, *([] if self.output is None else [self.output])]
        is_inside = all(f"{name}.".startswith(f"{old}.") for name, _ in calls)
        others = self.handed, self.parameters, self.spared
        if not calls or not is_inside or any(each is not None for each in others):
            return None

        def there(key: CallKey) -> CallKey:
            return new + key[0][len(old) :], key[1]

        return Replacements(
            arguments={there(key): name for key, name in self.arguments.items()},
            output=None if self.output is None else there(self.output),
        )


class Trial(Intervention):
    """The intervention of such a run.

    Attributes:
        applied: whether something was replaced.
        mistakes: the known mistakes that explain the watched row, as it was before replacement.
    """

    def __init__(
        self,
        replacements: Replacements,
        watch: Row | None,
        reference_modules: Mapping[str, nn.Module],
    ) -> None:
        """Takes what is to be replaced.

        Args:
            watch: the row that the known mistakes are fitted to.
            reference_modules: by name.
        """
        self.applied = False
        self.mistakes: list[Fit] = []
        self._replacements = replacements
        self._watch = watch
        self._reference_modules = reference_modules
        self._undo: list[Callable[[], None]] = []

    def before_start(self, calls: CallPair) -> Answer:
        """Replaces an argument, spares some, or lends the module the reference's parameters."""
        if self._watch is not None and not self._watch.is_output:
            self._fit(self._watch, calls)
        answer: Answer = None
        if (argument := self._argument_to_replace(calls.reference)) is not None:
            answer = self._noted(give_argument(calls, argument))
        spared, parameters = self._replacements.spared, self._replacements.parameters
        if spared is not None and spared[0] == calls.key:
            answer = self._spare_arguments(calls, spared[1])
        if parameters is not None and parameters[0] == calls.key:
            self._swap_parameters(calls, parameters[1])
        return answer

    def before_end(self, calls: CallPair) -> Answer:
        """Replaces the output, and puts the module's own parameters back."""
        if self._watch is not None and self._watch.is_output:
            self._fit(self._watch, calls)
        parameters = self._replacements.parameters
        if parameters is not None and parameters[0] == calls.key:
            self.restore()
        if calls.key == self._replacements.output:
            return self._noted(give_output(calls))
        return None

    def restore(self) -> None:
        """Puts a module's own parameters back."""
        while self._undo:
            self._undo.pop()()

    def _fit(self, watch: Row, calls: CallPair) -> None:
        """Fits the known mistakes to the watched value while both tensors are alive."""
        if calls.key != (watch.module, watch.call):
            return
        root = ValuePath(watch.value.kind, watch.value.argument)
        if root == OUTPUT:
            pair = calls.outputs()
        else:
            pair = next((r, c) for name, r, c in calls.arguments() if name == root.argument)
        r, c = (root.tensors(value).get(watch.value) for value in pair)
        if r is not None and c is not None:
            self.mistakes = known_mistakes(r, c, watch.limit)

    def _argument_to_replace(self, reference: Call) -> str | None:
        if self._replacements.handed is not None and reference.parent is not None:
            giver, argument = self._replacements.handed
            if reference.parent.name == giver and argument in reference.arguments:
                return argument
        return self._replacements.arguments.get((reference.name, reference.index))

    def _noted(self, answer: Answer) -> Answer:
        self.applied |= answer is not None
        return answer

    def _spare_arguments(self, calls: CallPair, names: tuple[str, ...]) -> NewArguments:
        own_names = [calls.names()[name] for name in names]
        given = calls.candidate.arguments
        copies = {name: map_tensors(given[name], copied) for name in own_names}
        given.update(copies)
        self.applied = True
        return NewArguments(copies)

    def _swap_parameters(self, calls: CallPair, names: tuple[str, ...]) -> None:
        candidate = as_written(calls.candidate.module)
        reference = as_written(self._reference_modules[calls.reference.name])
        for name in names:
            undo = exchange(candidate, reference, name, transposed=self._replacements.transposed)
            if undo is not None:
                self._undo.append(undo)
                self.applied = True
