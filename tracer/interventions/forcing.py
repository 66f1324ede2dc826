"""A run in which the candidate goes on with the reference's values, so that no error is inherited.

At the start of each chosen call the candidate is given the reference's arguments, and at its end
the reference's output replaces its own, each after it was compared. A row is then the error of that
call alone: that of a leaf is its own computation; what a parent passes to its children and returns
is made in its own forward, from values that are right.
"""

from collections.abc import Container
from enum import Enum

from tracer.execution.hooks import Answer, NewArguments
from tracer.interventions.substitution import give_argument, give_output
from tracer.measurement.arguments import CallPair
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.rows import CallKey, CallRecord, Row
from tracer.tensors.leaves import is_stateful


class Replaced(Enum):
    """Which of the candidate's values are replaced."""

    WRONG = "wrong"
    INEXACT = "inexact"
    ALL = "all"

    def has(self, row: Row) -> bool:
        """Whether a value is one of them."""
        is_inexact = self is Replaced.INEXACT and row.error > 0.0
        return self is Replaced.ALL or not row.agrees or is_inexact


class Forcing(Intervention):
    """The intervention of such a run: see the module's docstring.

    Attention masks and caches stay as the candidate has them: the one may have a form of its own
    with the same meaning, the other must stay the same object; what calls leave in a cache is
    replaced with their output.

    Attributes:
        unforced: calls whose arguments or output had to stay, because they have a form of the
            candidate's own that cannot be made from the reference's. What comes after them inherits
            their error.
    """

    def __init__(
        self, modules: Container[str] | None = None, replaced: Replaced = Replaced.WRONG
    ) -> None:
        """Chooses what is forced.

        Args:
            modules: the reference's names of the modules whose calls are forced; None for all.
            replaced: which of their values are.
        """
        self.unforced: set[CallKey] = set()
        self._modules = modules
        self._replaced = replaced

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Replaces the arguments."""
        if not self._is_chosen(record):
            return None
        rows = record.arguments.items()
        wrong = {value.argument for value, row in rows if self._replaced.has(row)}
        values: dict[str, object] = {}
        for name, r, c in list(calls.arguments()):
            if name not in wrong or calls.roles.is_mask(name) or is_stateful(r) or is_stateful(c):
                continue
            answer = give_argument(calls, name)
            if answer is None:
                self.unforced.add(calls.key)
            else:
                values.update(answer.values)
        return NewArguments(values) if values else None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Replaces the output."""
        if not self._is_chosen(record) or not any(map(self._replaced.has, record.outputs)):
            return None
        answer = give_output(calls)
        if answer is None:
            self.unforced.add(calls.key)
        return answer

    def goes_on(self, row: Row) -> bool:
        """Whether what is computed from a value inherits an error: it is wrong, and had to stay."""
        return not row.agrees and (row.module, row.call) in self.unforced

    def _is_chosen(self, record: CallRecord) -> bool:
        return self._modules is None or record.module in self._modules


class SameChoices(Intervention):
    """Gives some calls the reference's arguments, and what they give the reference's output: what
    was chosen otherwise there, and follows from it, does not count.

    Where the candidate chooses otherwise even so, what it passes to calls inside has nothing to be
    compared with, and what differs there is taken out.
    """

    def __init__(self, calls: Container[CallKey]) -> None:
        self._calls = calls
        self._forcing = Forcing(replaced=Replaced.ALL)

    def on_start(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Replaces the arguments."""
        return self._forcing.on_start(calls, record, run) if record.key in self._calls else None

    def before_end(self, calls: CallPair) -> Answer:
        """Replaces the output."""
        return give_output(calls) if calls.key in self._calls else None

    def on_end(self, calls: CallPair, record: CallRecord, run: Comparer) -> Answer:
        """Takes out what differs inside."""
        if record.key in self._calls:
            inside = [each for each in run.records.values() if each.start > record.start]
            wrong = {row.order for row in run.rows if row.order > record.start and not row.agrees}
            run.rows[:] = [row for row in run.rows if row.order not in wrong]
            for each in inside:
                kept = {path: r for path, r in each.arguments.items() if r.order not in wrong}
                each.arguments = kept
                each.outputs = [row for row in each.outputs if row.order not in wrong]
                each.form_differences.clear()
        return None
