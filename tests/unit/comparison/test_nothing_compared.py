"""When there is no verdict: nothing that the models return was compared."""

import copy

import pytest
import torch
from torch import nn

from tests.builders.comparing import agreed
from tracer.comparison.run import compare
from tracer.errors import NothingComparedError

X = torch.linspace(-1.0, 1.0, 32).reshape(4, 8)


def test_outputs_of_models_with_nothing_in_common() -> None:
    with pytest.raises(NothingComparedError, match="no output of the candidate could"):
        compare(nn.Linear(8, 4), nn.Linear(8, 3), X)
    reference = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    candidate = nn.ModuleDict({"other": nn.Bilinear(8, 8, 8)})
    candidate.forward = lambda input: candidate["other"](input, input)  # noqa: A006
    with pytest.raises(NothingComparedError, match=r"such as 0, 1.*such as other"):
        compare(reference, candidate, X)


def test_models_that_have_little_in_common() -> None:
    """A wholly different computation of the same thing is what one may want to know of."""
    reference = nn.Sequential(nn.Tanh())
    candidate = nn.ModuleDict({"other": nn.Identity()})
    candidate.forward = lambda input: torch.tanh(candidate["other"](input))  # noqa: A006
    assert tuple(agreed(reference, candidate, X).coverage.paired_modules) == ("",)
    assert agreed(nn.Identity(), nn.Identity(), X).coverage.compared_elements == 32
    nothing = nn.Identity()
    nothing.forward = lambda x: None
    with pytest.raises(NothingComparedError):
        compare(nothing, copy.deepcopy(nothing), X)
