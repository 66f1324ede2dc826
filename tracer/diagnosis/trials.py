"""Evidence: runs with one of the reference's values in place, and what they show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tracer.diagnosis.healing import MOST_ERROR, Healing
from tracer.diagnosis.propagation import INHERITED
from tracer.interventions.experiment import Experiment, Run, failure_in_words
from tracer.interventions.forcing import Forcing
from tracer.interventions.trial import Replacements, Trial
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallRecord, Row, first_divergence
from tracer.tensors.known_mistakes import Fit

# What is replaced must make the error of the output smaller than this part of what it was.
_NO_BETTER, _HALF = 0.999, 0.5


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
    OUTPUT_AGREES = "output_agrees"  # the model's, whatever differs inside and heals
    OUTPUT_BETTER = "output_better"  # the model's error falls by half and more
    AFTER_AGREES = "after_agrees"  # everything after the call
    RUNS = "runs"  # the candidate no longer raises
    GRADIENTS_AGREE = "gradients_agree"
    GRADIENTS_DIFFER = "gradients_differ"
    GRAPH_WHOLE = "graph_whole"  # gradients agree where the graph is not left at one line
    OWN_GRADIENTS = "own_gradients"  # they differ with the reference's modules inside
    UNCOMPILED = "uncompiled"  # the model's output agrees where the module is not compiled
    TRAINED = "trained"  # they agree where both sides train the parameters


_UNCONFIRMED = (
    *(Outcome.NOT_TRIED, Outcome.NOT_REPLACED, Outcome.RAISED),
    *(Outcome.STILL_THERE, Outcome.STILL_DIVERGES, Outcome.GRADIENTS_DIFFER),
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


@dataclass(frozen=True)
class TrialRun(Run):
    """A finished trial.

    Attributes:
        applied: whether something was replaced.
        mistakes: known kinds of mistake that explain the watched value.
    """

    applied: bool
    mistakes: tuple[Fit, ...]


class Evidence:
    """Runs the trials of one divergence.

    Attributes:
        may_run: whether anything may be tried.
    """

    def __init__(
        self, comparer: Comparer, experiment: Experiment, *, may_run: bool, forced: bool
    ) -> None:
        """Takes a finished run.

        Args:
            forced: that run, and each trial, goes on with the reference's values; see `Forcing`.
        """
        self.may_run = may_run
        self._forced = forced
        self._rows = comparer.rows
        self._experiment = experiment
        healing = Healing(comparer)
        self._at_output = healing.is_otherwise() and not forced
        self._error = healing.output_error()

    def run(self, replacements: Replacements, watch: Row | None = None) -> TrialRun:
        """Runs a trial, which must be possible; `watch` is fitted with the known mistakes."""
        assert self.may_run
        trial = Trial(replacements, watch, self._experiment.modules[0])
        try:
            run = self._experiment.rerun(trial, *([Forcing()] if self._forced else []))
        finally:
            trial.restore()
        return TrialRun(run.comparer, run.failure, trial.applied, tuple(trial.mistakes))

    def run_together(self, trials: Sequence[Replacements]) -> Run:
        """A run with all of some trials."""
        made = [Trial(each, None, self._experiment.modules[0]) for each in trials]
        try:
            return self._experiment.rerun(*made, *([Forcing()] if self._forced else []))
        finally:
            for each in made:
                each.restore()

    def output_error(self, trials: Sequence[Replacements]) -> float:
        """How far the model's output is from the reference's with all of some trials."""
        run = self.run_together(trials)
        return math.inf if run.failure is not None else Healing(run.comparer).output_error()

    def output_distance(self, replacements: Replacements) -> float:
        """How far the model's output is from the reference's with a trial, within the tolerance."""
        run = self.run(replacements)
        is_shown = run.failure is None and run.applied
        return Healing(run.comparer).output_distance() if is_shown else math.inf

    def clears(self, trial: Replacements, start: Row) -> Proof | None:
        """The proof, if a trial makes the value agree; None if it does not.

        Of a value that agreed all the same, and was followed back to, the error has to fall.
        """
        if not self.may_run:
            return None
        run = self.run(trial)
        after = run.row(start) if run.failure is None else None
        if after is None or not after.agrees:
            return None
        if start.agrees and after.error > INHERITED * start.error:
            return None
        if self._is_no_better(run):
            return None
        return Proof(Outcome.FALLS, trial, (start, after), self._final(run))

    def confirm(self, trial: Replacements, start: Row) -> Proof:
        """Runs with the reference's value in place: what is left of the divergence?"""
        if not self.may_run:
            return Proof(Outcome.NOT_TRIED)
        run = self.run(trial, watch=start)
        proof = self._outcome(trial, start, run)
        mistakes = run.mistakes
        if trial.parameters is not None:
            # With the reference's parameters in place there was nothing left to fit.
            mistakes = self.run(Replacements(), watch=start).mistakes if proof.confirmed else ()
        return replace(proof, mistakes=mistakes)

    def confirm_inside(self, record: CallRecord, otherwise: Proof) -> Proof:
        """Whether everything after a call agrees once it returns the reference's output."""
        if not self.may_run or not record.module:
            return otherwise
        trial = Replacements(output=record.key)
        run = self.run(trial)
        again = run.records.get(record.key)
        if run.failure is not None or not run.applied or again is None:
            return otherwise
        if first_divergence([row for row in run.rows if row.order > again.end]) is not None:
            return otherwise
        final = self._final(run)
        return Proof(Outcome.AFTER_AGREES, trial, final=final, mistakes=otherwise.mistakes)

    def _outcome(self, trial: Replacements, start: Row, run: TrialRun) -> Proof:
        """What a trial led to."""
        if run.failure is not None:
            return Proof(Outcome.RAISED, trial, error=failure_in_words(run.failure))
        if not run.applied:
            return Proof(Outcome.NOT_REPLACED, trial)
        after = run.row(start)
        if self._forced:
            # Nothing is inherited: what disagrees elsewhere has other causes.
            gone = after is not None and (after.agrees or after.error <= INHERITED * start.error)
            if after is None or not gone:
                return Proof(Outcome.STILL_THERE, trial)
            return Proof(Outcome.FALLS, trial, (start, after))
        if first_divergence(run.rows) is None:
            return Proof(Outcome.ALL_AGREES, trial, final=self._final(run))
        healing = Healing(run.comparer)
        if healing.output_agrees() and self._error:
            return Proof(Outcome.OUTPUT_AGREES, trial, final=self._final(run))
        if self._at_output and healing.output_error() < _HALF * self._error:
            return Proof(Outcome.OUTPUT_BETTER, trial, final=self._final(run))
        left = next(healing.unhealed(), None)
        if left is None or self._is_no_better(run):
            return Proof(Outcome.STILL_DIVERGES, trial, remaining=first_divergence(run.rows))
        remains = Proof(Outcome.STILL_DIVERGES, trial, remaining=left)
        if after is None or after.error > INHERITED * start.error or left.order < after.order:
            return remains
        if trial.parameters is not None:
            return Proof(Outcome.ANOTHER_REMAINS, trial, (start, after), remaining=left)
        inherited = max((row.error for row in run.inputs(left)), default=0.0)
        if inherited >= INHERITED * left.error:
            return remains
        return Proof(Outcome.ANOTHER_FOLLOWS, trial, remaining=left)

    def _is_no_better(self, run: TrialRun) -> bool:
        """Whether the model's output is no closer to the reference's with what was replaced, which
        also spoils what agreed without it."""
        if not self._at_output or not self._error:
            return False
        error = Healing(run.comparer).output_error()
        if not _NO_BETTER * self._error < error < MOST_ERROR:
            return False
        then = (run.row(row) for row in self._rows if row.agrees)
        return any(row is not None and not row.agrees for row in then)

    def _final(self, run: Run) -> tuple[Row, Row] | None:
        """The model's own output before and after, where it had disagreed."""
        last = next((row for row in reversed(self._rows) if row.is_output), None)
        after = None if last is None else run.row(last)
        if last is None or after is None or last.agrees:
            return None
        return last, after
