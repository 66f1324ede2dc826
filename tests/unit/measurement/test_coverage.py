"""How much was compared, and why not the rest."""

import copy

import torch
from torch import nn

import tracer
from tracer.measurement.coverage import Coverage

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class Turned(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return super().forward(input).flip(-1)

    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        return output.flip(-1)


def coverage(candidate: nn.Module, reference: nn.Module) -> Coverage:
    return tracer.compare(reference, candidate, X, confirm=False).coverage


def test_everything() -> None:
    net = Net()
    found = coverage(copy.deepcopy(net), net)
    assert tuple(found.paired_modules) == ("", "first", "second")
    assert (found.reference_only, found.candidate_only, dict(found.reasons)) == ((), (), {})
    assert (found.compared_calls, found.compared_elements) == (3, 3 * 12)
    assert found.unread_parameters == ()
    assert str(found) == "3 of 3 modules, 3 calls, 36 elements compared"


def test_what_one_side_lacks_or_does_not_call() -> None:
    net = Net()
    candidate = copy.deepcopy(net)
    candidate.second, candidate.third = nn.Identity(), nn.Identity()
    net.fourth = nn.Tanh()
    candidate.forward = lambda x: candidate.first(x)
    found = coverage(candidate, net)
    assert tuple(found.paired_modules) == ("", "first")
    assert found.reference_only == ("second", "fourth")
    assert found.reasons["second"] == "called by the reference, not by the candidate"
    assert found.reasons["fourth"] == "the candidate has no such module"
    assert found.candidate_only == ("third",)
    assert found.unmatched_calls == (("reference", "second", 0),)


def test_parameters_of_another_form_are_not_compared_and_counted() -> None:
    net = Net()
    candidate = copy.deepcopy(net)
    candidate.second.__class__ = Turned
    found = coverage(candidate, net)
    assert found.unread_parameters == ("second",)
    assert str(found).endswith("; own parameters not read back in 1 modules")
    candidate.second.reference_output_scale = 1.0
    assert coverage(candidate, net).unread_parameters == ()
