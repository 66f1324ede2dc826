"""Evidence: runs with one of the reference's values in place, and what they show."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from torch import nn

from tracer.diagnosis.propagation import INHERITED
from tracer.execution.lockstep import Visitor
from tracer.interventions.trial import Experiment, Replacements
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallRecord, Row, first_divergence
from tracer.tensors.known_mistakes import Fit
from tracer.tensors.tolerance import Tolerance

# Runs both models with a visitor; says what was raised if one of them raised, else None.
Rerun = Callable[[Visitor], str | None]


class Outcome(StrEnum):
    """What a run with the reference's value in place has led to."""

    NOT_TRIED = "not_tried"  # nothing may be run again
    NOT_REPLACED = "not_replaced"  # the value cannot be put there
    RAISED = "raised"  # a model did
    STILL_THERE = "still_there"
    STILL_DIVERGES = "still_diverges"  # what remains is no other divergence
    FALLS = "falls"  # the error of the value does
    ANOTHER_REMAINS = "another_remains"  # likewise, and there is another divergence
    ANOTHER_FOLLOWS = "another_follows"  # it is gone; another begins from inputs that agree
    ALL_AGREES = "all_agrees"
    AFTER_AGREES = "after_agrees"  # everything after the call
    RUNS = "runs"  # the candidate no longer raises


_UNCONFIRMED = (
    *(Outcome.NOT_TRIED, Outcome.NOT_REPLACED, Outcome.RAISED),
    *(Outcome.STILL_THERE, Outcome.STILL_DIVERGES),
)


@dataclass(frozen=True)
class Proof:
    """What a run with the reference's value in place has shown.

    Attributes:
        outcome: what it led to.
        trial: what was replaced; None where nothing was tried.
        falls: the value before and after, where its error fell.
        final: the model's own output before and after, where it had disagreed.
        remaining: the divergence that is left.
        error: what a model raised.
        mistakes: known kinds of mistake that explain the divergence.
    """

    outcome: Outcome
    trial: Replacements | None = None
    falls: tuple[Row, Row] | None = None
    final: tuple[Row, Row] | None = None
    remaining: Row | None = None
    error: str = ""
    mistakes: tuple[Fit, ...] = ()

    @property
    def confirmed(self) -> bool:
        """Whether the divergence was gone."""
        return self.outcome not in _UNCONFIRMED


class Evidence:
    """Runs the trials of one divergence.

    Attributes:
        rerun: runs both models again; None where nothing may be tried.
    """

    def __init__(
        self,
        comparer: Comparer,
        tolerance: Tolerance,
        rerun: Rerun | None,
        reference_modules: Mapping[str, nn.Module],
        *,
        forced: bool = False,
    ) -> None:
        """Takes a finished run.

        Args:
            forced: that run, and each trial, goes on with the reference's values; see `Forcing`.
        """
        self.rerun = rerun
        self._forced = forced
        self._rows = comparer.rows
        self._tolerance = tolerance
        self._reference_modules = reference_modules

    def run(self, trial: Replacements, watch: Row | None = None) -> Experiment:
        """Runs a trial, which must be possible; `watch` is fitted with the known mistakes."""
        assert self.rerun is not None
        experiment = Experiment(
            self._tolerance, trial, watch, self._reference_modules, forced=self._forced
        )
        try:
            experiment.failure = self.rerun(experiment)
        finally:
            experiment.restore()
        return experiment

    def clears(self, trial: Replacements, start: Row) -> Proof | None:
        """The proof, if a trial makes the value agree; None if it does not.

        Of a value that agreed all the same, and was followed back to, the error has to fall.
        """
        if self.rerun is None:
            return None
        experiment = self.run(trial)
        after = experiment.row(start) if experiment.failure is None else None
        if after is None or not after.agrees:
            return None
        if start.agrees and after.error > INHERITED * start.error:
            return None
        return Proof(Outcome.FALLS, trial, (start, after), self._final(experiment))

    def confirm(self, trial: Replacements, start: Row) -> Proof:
        """Runs with the reference's value in place: what is left of the divergence?"""
        if self.rerun is None:
            return Proof(Outcome.NOT_TRIED)
        experiment = self.run(trial, watch=start)
        proof = self._outcome(trial, start, experiment)
        mistakes = experiment.mistakes
        if trial.parameters is not None:
            # With the reference's parameters in place there was nothing left to fit.
            mistakes = self.run(Replacements(), watch=start).mistakes if proof.confirmed else []
        return replace(proof, mistakes=tuple(mistakes))

    def confirm_inside(self, record: CallRecord, otherwise: Proof) -> Proof:
        """Whether everything after a call agrees once it returns the reference's output."""
        if self.rerun is None or not record.module:
            return otherwise
        trial = Replacements(output=record.key)
        experiment = self.run(trial)
        again = experiment.records.get(record.key)
        if experiment.failure is not None or not experiment.applied or again is None:
            return otherwise
        if first_divergence([row for row in experiment.rows if row.order > again.end]) is not None:
            return otherwise
        final = self._final(experiment)
        return Proof(Outcome.AFTER_AGREES, trial, final=final, mistakes=otherwise.mistakes)

    def _outcome(self, trial: Replacements, start: Row, experiment: Experiment) -> Proof:
        """What a trial led to."""
        if experiment.failure is not None:
            return Proof(Outcome.RAISED, trial, error=experiment.failure)
        if not experiment.applied:
            return Proof(Outcome.NOT_REPLACED, trial)
        after = experiment.row(start)
        if self._forced:
            # Nothing is inherited: what disagrees elsewhere has other causes.
            gone = after is not None and (after.agrees or after.error <= INHERITED * start.error)
            if after is None or not gone:
                return Proof(Outcome.STILL_THERE, trial)
            return Proof(Outcome.FALLS, trial, (start, after))
        left = first_divergence(experiment.rows)
        if left is None:
            return Proof(Outcome.ALL_AGREES, trial, final=self._final(experiment))
        remains = Proof(Outcome.STILL_DIVERGES, trial, remaining=left)
        if after is None or after.error > INHERITED * start.error or left.order < after.order:
            return remains
        if trial.parameters is not None:
            return Proof(Outcome.ANOTHER_REMAINS, trial, (start, after), remaining=left)
        inherited = max((row.error for row in experiment.inputs(left)), default=0.0)
        if inherited >= INHERITED * left.error:
            return remains
        return Proof(Outcome.ANOTHER_FOLLOWS, trial, remaining=left)

    def _final(self, experiment: Experiment) -> tuple[Row, Row] | None:
        """The model's own output before and after, where it had disagreed."""
        last = next((row for row in reversed(self._rows) if row.is_output), None)
        after = None if last is None else experiment.row(last)
        if last is None or after is None or last.agrees:
            return None
        return last, after
