"""The reference's value in the candidate's place, where the two have other forms of it."""

import torch
from torch import nn

from tracer.execution.hooks import Call
from tracer.interventions.substitution import give_argument, give_output
from tracer.measurement.arguments import CallPair


class Flat(nn.Module):
    """Takes and returns what the reference does in two dimensions, in one."""

    def to_reference_input(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.view(2, -1)

    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        return output.view(2, -1)


class Transposed(nn.Module):
    """The same numbers in another order."""

    def to_reference_input(self, name: str, value: torch.Tensor) -> torch.Tensor:
        return value.T

    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        return output.T


def call(module: nn.Module, value: object, output: object) -> Call:
    return Call("m", 0, module, {"x": value}, ("x",), None, None, output)


THEIRS = torch.arange(4.0).view(2, 2)


def test_another_shape_is_taken_on():
    reference = call(nn.Identity(), THEIRS, THEIRS + 1)
    candidate = call(Flat(), torch.zeros(4), torch.zeros(4))
    answer = give_argument(CallPair(reference, candidate), "x")
    assert torch.equal(answer.values["x"], torch.arange(4.0))
    assert torch.equal(give_output(CallPair(reference, candidate)).value, torch.arange(4.0) + 1)
    assert torch.equal(candidate.output, torch.arange(4.0) + 1)


class Projected(nn.Module):
    """Returns without the dimensions of size 1 that the reference's output ends with."""

    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        return output[..., None, None]


def test_dimensions_that_were_dropped_at_the_end():
    candidate = call(Projected(), None, torch.zeros(2, 2))
    calls = CallPair(call(nn.Identity(), None, THEIRS[..., None, None]), candidate)
    assert torch.equal(give_output(calls).value, THEIRS)


def test_another_order_is_not():
    reference = call(nn.Identity(), THEIRS, THEIRS)
    own = torch.zeros(2, 2)
    candidate = call(Transposed(), own, own)
    assert give_argument(CallPair(reference, candidate), "x") is None
    assert give_output(CallPair(reference, candidate)) is None
    assert candidate.arguments["x"] is candidate.output is own


def test_another_size_or_kind_is_not():
    for own in (torch.zeros(6), (torch.zeros(5),), None):
        candidate = call(Flat(), own, own)
        reference = call(nn.Identity(), THEIRS, THEIRS)
        assert give_argument(CallPair(reference, candidate), "x") is None
        assert give_output(CallPair(reference, candidate)) is None
