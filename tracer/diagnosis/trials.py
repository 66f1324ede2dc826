"""Evidence: runs with one of the reference's values in place, and what they show."""

from dataclasses import dataclass

from tracer.diagnosis.propagation import INHERITED
from tracer.interventions.experiment import Experiment, Run, failure_in_words
from tracer.interventions.forcing import Forcing
from tracer.interventions.trial import Replacements, Trial
from tracer.measurement.comparer import Comparer
from tracer.measurement.rows import CallRecord, Row, first_divergence
from tracer.tensors.known_mistakes import Fit
from tracer.text import figure, module_in_words, place

# What is said where nothing may be tried.
NOT_TRIED = "Not confirmed: a second run was not asked for."


@dataclass(frozen=True)
class Proof:
    """What a run with the reference's value in place has shown.

    Attributes:
        confirmed: the divergence was gone.
        text: the same in words, with figures.
        mistakes: known kinds of mistake that explain it.
        trial: what was replaced.
    """

    confirmed: bool
    text: str
    mistakes: tuple[Fit, ...] = ()
    trial: Replacements | None = None


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

    def run(self, replacements: Replacements, watch: Row | None = None) -> TrialRun:
        """Runs a trial, which must be possible; `watch` is fitted with the known mistakes."""
        assert self.may_run
        trial = Trial(replacements, watch, self._experiment.modules[0])
        try:
            run = self._experiment.rerun(trial, *([Forcing()] if self._forced else []))
        finally:
            trial.restore()
        return TrialRun(run.comparer, run.failure, trial.applied, tuple(trial.mistakes))

    def clears(self, trial: Replacements, start: Row, given: str) -> Proof | None:
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
        falls = f"{_falls(start, after)}{self._final(run)}"
        return Proof(True, f"Confirmed: with {given}, {falls}.", trial=trial)

    def confirm(self, trial: Replacements, start: Row, given: str) -> Proof:
        """Runs with the reference's value in place and says what is left of the divergence."""
        if not self.may_run:
            return Proof(False, NOT_TRIED)
        run = self.run(trial, watch=start)
        confirmed, text = self._outcome(trial, start, run)
        mistakes = run.mistakes
        if trial.parameters is not None:
            # With the reference's parameters in place there was nothing left to fit.
            mistakes = self.run(Replacements(), watch=start).mistakes if confirmed else ()
        word = "Confirmed" if confirmed else "Not confirmed"
        return Proof(confirmed, f"{word}: with {given}, {text}.", mistakes, trial)

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
        text = (
            f"Confirmed: with the reference's output of {module_in_words(record.module)}, "
            f"everything after it agrees{self._final(run)}."
        )
        return Proof(True, text, otherwise.mistakes, trial)

    def _outcome(self, trial: Replacements, start: Row, run: TrialRun) -> tuple[bool, str]:
        """Whether a trial took the divergence away, and what it led to in words."""
        if run.failure is not None:
            return False, failure_in_words(run.failure)
        if not run.applied:
            return False, "which cannot be put in its place, nothing was shown"
        after = run.row(start)
        if self._forced:
            # Nothing is inherited: what disagrees elsewhere has other causes.
            gone = after is not None and (after.agrees or after.error <= INHERITED * start.error)
            if after is None or not gone:
                return False, "it is still there"
            return True, _falls(start, after)
        left = first_divergence(run.rows)
        if left is None:
            return True, f"everything agrees{self._final(run)}"
        remains = f"it still diverges at {place(left)}"
        if after is None or after.error > INHERITED * start.error or left.order < after.order:
            return False, remains
        if trial.parameters is not None:
            return True, f"{_falls(start, after)}; a divergence at {place(left)} remains"
        inherited = max((row.error for row in run.inputs(left)), default=0.0)
        if inherited >= INHERITED * left.error:
            return False, remains
        return True, (
            f"it is gone; another divergence follows at {place(left)}, PEIR {figure(left.peir)}, "
            "from inputs that agree"
        )

    def _final(self, run: Run) -> str:
        """How the model's own output changes: ", and PEIR at ... falls from 0.6 to 5e-07"."""
        last = next((row for row in reversed(self._rows) if row.is_output), None)
        after = None if last is None else run.row(last)
        if last is None or after is None or last.agrees:
            return ""
        return f", and {_falls(last, after)}"


def _falls(before: Row, after: Row) -> str:
    return f"PEIR at {place(before)} falls from {figure(before.peir)} to {figure(after.peir)}"
