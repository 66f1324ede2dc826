"""What is found of one divergence."""

from tracer.diagnosis.finding import Finding, FindingKind, Origin, OriginKind
from tracer.diagnosis.trials import Outcome, Proof
from tracer.interventions.trial import Replacements

ORIGIN = Origin("mlp", None, OriginKind.COMPUTATION, None, None)


def test_without_a_trial_nothing_is_confirmed() -> None:
    found = Finding(ORIGIN, FindingKind.INSIDE)
    assert (found.confirmed, found.mistakes, found.trial) == (False, (), None)


def test_what_a_trial_has_shown() -> None:
    trial = Replacements(output=("mlp", 0))
    found = Finding(ORIGIN, FindingKind.INSIDE, Proof(Outcome.ALL_AGREES, trial))
    assert (found.confirmed, found.trial) == (True, trial)
