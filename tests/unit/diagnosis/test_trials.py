"""Trials: what a run with one of the reference's values in place has shown, as data."""

import copy

import pytest
import torch
from torch import nn

import tracer
from tracer.diagnosis.trials import Outcome, Proof
from tracer.interventions.trial import Replacements


@pytest.fixture
def reference():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).eval()


def wrong(model, *places):
    """A copy of the model with a wrong weight in each of these layers."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for place in places:
            model[place].weight[0] += 1.0
    return model


def proof_of(reference, candidate, **options):
    verdict = tracer.compare(reference, candidate, torch.randn(3, 6), **options).verdict
    return verdict.details.findings[0].proof


def test_the_reference_s_parameters_take_a_divergence_away(reference):
    proof = proof_of(reference, wrong(reference, 0))
    assert (proof.outcome, proof.confirmed) == (Outcome.ALL_AGREES, True)
    assert proof.trial.parameters == (("0", 0), ("weight",))
    before, after = proof.final
    assert (before.module, after.module) == ("", "")
    assert before.peir > 0.01 > after.peir == 0.0


@pytest.mark.covers
def test_what_a_trial_leaves(reference):
    proof = proof_of(reference, wrong(reference, 0, 2))
    assert (proof.outcome, proof.confirmed) == (Outcome.ANOTHER_REMAINS, True)
    assert (proof.remaining.module, proof.remaining.value) == ("2", "output")
    before, after = proof.falls
    assert (before.module, (before.agrees, after.agrees)) == ("0", (False, True))
    proof = proof_of(reference, wrong(reference, 0), confirm=False)
    assert proof == Proof(Outcome.NOT_TRIED)
    assert not proof.confirmed


@pytest.mark.parametrize("outcome", Outcome)
def test_which_outcomes_confirm(outcome):
    unconfirmed = {"not_tried", "not_replaced", "raised", "still_there", "still_diverges"}
    unconfirmed.add("gradients_differ")
    assert Proof(outcome, Replacements()).confirmed == (outcome not in unconfirmed)
