"""A run in which the candidate goes on with the reference's values, so that no error is inherited.

At the start of each chosen call the candidate is given the reference's arguments, and at its end
the reference's output takes the place of its own, each after it was compared. A row is then the
error of that call alone: that of a leaf is its own computation; what a parent hands to its children
and returns is made in its own lines, from values that are right.
"""

from collections.abc import Callable, Container

from tracer.execution.hooks import Answer, Call, NewArguments, Phase
from tracer.interventions.substitution import give_argument, give_output
from tracer.measurement.arguments import paired_arguments
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallKey, Row, argument_of
from tracer.tensors.leaves import is_stateful
from tracer.tensors.masks import is_mask_name
from tracer.tensors.tolerance import Tolerance


class Forcing(Comparer):
    """The visitor of such a run: see the module's docstring.

    Attention masks and caches stay as the candidate has them: the one may have a form of its own
    with the same meaning, the other must stay the same object; what calls leave in a cache is
    replaced with their output.

    Attributes:
        unforced: calls whose arguments or output had to stay, because they have a form of the
            candidate's own that cannot be made from the reference's. What comes after them inherits
            their error.
    """

    def __init__(
        self,
        tolerance: Tolerance,
        modules: Container[str] | None = None,
        *,
        exact: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Chooses what is forced.

        Args:
            modules: the reference's names of the modules whose calls are forced; None for all.
            exact: values within the tolerance are replaced, too.
        """
        super().__init__(tolerance, progress)
        self.unforced: set[CallKey] = set()
        self._modules = modules
        self._exact = exact

    def visit(self, reference: Call, candidate: Call, phase: Phase) -> Answer:
        """Compares, then replaces what the candidate goes on with."""
        super().visit(reference, candidate, phase)
        record = self.records.get((reference.name, reference.index))
        if record is None or (self._modules is not None and reference.name not in self._modules):
            return None
        if phase is Phase.START:
            wrong = {argument_of(v) for v, r in record.arguments.items() if self._is_wrong(r)}
            return self._force_arguments(reference, candidate, wrong)
        if any(self._is_wrong(row) for row in record.outputs):
            return self._force_output(reference, candidate)
        return None

    def goes_on(self, row: Row) -> bool:
        """Whether what is computed from a value inherits an error: it is wrong, and had to stay."""
        return not row.agrees and (row.module, row.call) in self.unforced

    def _is_wrong(self, row: Row) -> bool:
        return not row.agrees or (self._exact and row.error > 0.0)

    def _force_arguments(self, reference: Call, candidate: Call, wrong: set[str]) -> Answer:
        values: dict[str, object] = {}
        for name, r, c in list(paired_arguments(reference, candidate)):
            if name not in wrong or is_mask_name(name) or is_stateful(r) or is_stateful(c):
                continue
            answer = give_argument(reference, candidate, name)
            if answer is None:
                self.unforced.add((reference.name, reference.index))
            else:
                values.update(answer.values)
        return NewArguments(values) if values else None

    def _force_output(self, reference: Call, candidate: Call) -> Answer:
        answer = give_output(reference, candidate)
        if answer is None:
            self.unforced.add((reference.name, reference.index))
        return answer
