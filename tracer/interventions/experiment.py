"""What all further runs of a comparison share, and what one of them leaves behind."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.offload import lacks_values
from tracer.execution.session import Session
from tracer.execution.side import EventKey, Failure
from tracer.interventions.forcing import SameChoices
from tracer.measurement.comparer import Comparer
from tracer.measurement.intervention import Intervention
from tracer.measurement.progress import Phases
from tracer.measurement.rows import CallKey, CallRecord, Row, inputs_of
from tracer.tensors.roles import DEFAULT_ROLES, Roles
from tracer.tensors.tolerance import Tolerance
from tracer.text import first_line


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        comparer: what was compared in it.
        failure: what ended it early; None if nothing did.
    """

    comparer: Comparer
    failure: Failure | None

    @property
    def rows(self) -> list[Row]:
        return self.comparer.rows

    @property
    def records(self) -> Mapping[CallKey, CallRecord]:
        return self.comparer.records

    def row(self, like: Row) -> Row | None:
        """This run's row of the same value."""
        record = self.records.get((like.module, like.call))
        return None if record is None else record.row(like.value)

    def inputs(self, row: Row) -> Iterator[Row]:
        """The rows that a value was computed from; see `inputs_of`."""
        return inputs_of(row, self.records)


@dataclass(frozen=True)
class Experiment:
    """Runs both models again on the same inputs.

    Attributes:
        tolerance: how far pairs may lie apart.
        roles: what arguments are, as their names say.
        clone: events whose values are edited in place before they can be compared.
        rounding: the noise floor of values, as for a `Comparer`.
        same_choices: calls that give the reference's output in every run, as rounding alone has
            turned over what they choose.
        phases: are told of each run.
    """

    session: Session
    tolerance: Tolerance
    roles: Roles = DEFAULT_ROLES
    clone: frozenset[EventKey] = frozenset()
    same_choices: frozenset[CallKey] = frozenset()
    rounding: Mapping[tuple[str, int, str], float] = field(default_factory=dict)
    phases: Phases = field(default_factory=Phases, compare=False)

    @property
    def modules(self) -> tuple[Mapping[str, nn.Module], Mapping[str, nn.Module]]:
        """Both sides' modules by name, the reference's first."""
        return self.session.pairing.reference, self.session.pairing.candidate

    def choosing_alike(self, calls: Iterable[CallKey]) -> "Experiment":
        """The same, where further calls give the reference's output in every run."""
        return replace(self, same_choices=self.same_choices.union(calls))

    def rerun(
        self,
        *interventions: Intervention,
        relates: bool = True,
        only: frozenset[str] | None = None,
    ) -> Run:
        """Runs both models once more, with interventions in that order.

        Args:
            relates: known mistakes are looked for in what differs.
            only: the reference's names of the modules whose calls are compared; None for all.
        """
        if self.same_choices:
            only = None if only is None else only | {name for name, _ in self.same_choices}
            interventions = SameChoices(self.same_choices), *interventions
        comparer = Comparer(
            self.tolerance,
            interventions,
            roles=self.roles,
            progress=self.phases.next_run(),
            at_once=self.clone,
            relates=relates,
            is_on_host=self.session.is_on_host,
        )
        comparer.rounding = self.rounding
        return Run(comparer, self.session.run(comparer, self.clone, only=only).failure)

    def must_rerun(
        self,
        *interventions: Intervention,
        relates: bool = True,
        only: frozenset[str] | None = None,
    ) -> Run:
        """The same, where it has to come to its end.

        Raises:
            ModelRunError: a model raised.
        """
        run = self.rerun(*interventions, relates=relates, only=only)
        if run.failure is not None:
            raise ModelRunError(failure_in_words(run.failure)) from run.failure.exception
        return run


def failure_in_words(failure: Failure) -> str:
    """Which model raised what, and in which of its modules."""
    where = "outside its modules"
    if failure.call is not None:
        where = f"in module {failure.call.name!r}" if failure.call.name else "in its own forward"
        where += f" ({type(failure.call.module).__name__}, call {failure.call.index})"
    text = f"the {failure.side} raised {type(failure.exception).__name__} {where}: "
    hint = ""
    if failure.call is not None and lacks_values(failure.call.module):
        hint = "; its parameters lie on the meta device and hold no values: load the weights first"
    also = "" if failure.also is None else "; the candidate raised too"
    return f"{text}{first_line(str(failure.exception))}{hint}{also}"
