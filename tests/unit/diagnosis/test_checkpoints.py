"""Whether two models hold the same checkpoint, counted."""

import copy

import pytest
import torch
from torch import nn

import tracer
from tracer.diagnosis.checkpoints import Checkpoints

X = torch.linspace(-1.0, 1.0, 24).reshape(3, 8)


def stack(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)), nn.Tanh())


def found(candidate: nn.Module, reference: nn.Module) -> Checkpoints | None:
    verdict = tracer.compare(reference, candidate, X).verdict
    assert not verdict.agrees
    return verdict.details.checkpoints


@pytest.mark.covers
def test_another_one() -> None:
    reference, other = stack(), stack(1)
    counted = found(other, reference)
    assert (counted.modules, counted.equal, counted.differing, counted.unpaired) == (5, 0, 5, 0)
    # Independently: the largest difference of a weight over the reference's interval.
    peirs = [
        ((r - c).abs().max() / (r.max() - r.min())).item()
        for r, c in zip(reference.parameters(), other.parameters(), strict=True)
    ]
    assert counted.largest == pytest.approx(max(peirs), rel=1e-5)
    verdict = tracer.compare(reference, other, X).verdict
    assert verdict.explanation.startswith("Another checkpoint? None of the reference's 5 modules")


@pytest.mark.covers
def test_a_few_wrong_parameters_are_not() -> None:
    candidate = stack()
    with torch.no_grad():
        for layer in candidate[:2]:
            layer.weight.mul_(1.5)
    assert found(candidate, stack()) is None


def test_a_wrong_computation_is_not() -> None:
    candidate = stack()
    candidate[5] = nn.Sigmoid()
    assert found(candidate, stack()) is None


def test_what_rounding_makes_of_parameters_is_not() -> None:
    candidate = copy.deepcopy(stack())
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.mul_(1 + 1e-7)
    candidate[5] = nn.Sigmoid()
    assert found(candidate, stack()) is None


@pytest.mark.covers
def test_of_a_few_modules_nothing_is_said() -> None:
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    assert found(other, small) is None
