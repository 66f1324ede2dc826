"""Parameters that one side trains and the other does not."""

import pytest

from tests.builders.training import IDS, Net
from tracer.diagnosis.finding import FindingKind
from tracer.diagnosis.frozen import frozen_findings, gradient_origin, trained_alike
from tracer.execution.session import Session
from tracer.measurement.gradients import shared_parameters


def pairing_of(reference: Net, candidate: Net):
    return Session(reference, candidate, IDS, None, "*").pairing


def test_both_sides_train_them_for_a_while() -> None:
    reference, candidate = Net(), Net()
    candidate.head.requires_grad_(False)
    reference.embed.requires_grad_(False)
    parameters = shared_parameters(pairing_of(reference, candidate), "")
    with pytest.raises(KeyboardInterrupt), trained_alike(parameters):
        assert candidate.head.weight.requires_grad
        assert reference.embed.weight.requires_grad
        raise KeyboardInterrupt
    assert not candidate.head.weight.requires_grad
    assert not reference.embed.weight.requires_grad
    assert candidate.embed.weight.requires_grad


def test_a_finding_for_each_module_that_one_side_trains() -> None:
    reference, candidate = Net(), Net()
    candidate.head.requires_grad_(False)
    reference.embed.requires_grad_(False)
    pairing = pairing_of(reference, candidate)
    frozen = [p for p in shared_parameters(pairing, "") if p.is_frozen]
    found = {f.origin.module: f for f in frozen_findings(frozen, (), pairing)}
    assert found.keys() == {"embed", "head"}
    assert (found["head"].kind, found["head"].names) == (FindingKind.FROZEN, ("weight", "bias"))
    assert (found["embed"].kind, found["embed"].names) == (FindingKind.NOT_FROZEN, ("weight",))
    assert all(finding.confirmed for finding in found.values())


def test_an_origin_has_the_candidates_name_where_it_is_another() -> None:
    pairing = pairing_of(Net(), Net())
    assert gradient_origin("head", ("a", "b"), pairing).candidate_module is None
    renamed = pairing.under("left", "right")
    origin = gradient_origin("left.head", ("a", "b"), renamed)
    assert (origin.candidate_module, origin.reference_line) == ("right.head", "a")
    assert origin.candidate_line == "b"
