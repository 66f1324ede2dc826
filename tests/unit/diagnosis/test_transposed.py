"""A transposed weight is said to be one, once its transpose was tried."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import tracer


def model(kind: type, weight: torch.Tensor, *, bias: bool = True) -> nn.Module:
    layer = Conv1D(*weight.shape[::-1]) if kind is Conv1D else nn.Linear(*weight.shape[::-1], bias)
    layer.weight.data = weight.clone()
    if bias:
        layer.bias.data.fill_(1.0)
    return nn.Sequential(nn.Tanh(), layer).eval()


WEIGHT = torch.linspace(-1.0, 2.0, 64).reshape(8, 8) ** 2


@pytest.mark.parametrize(
    ("reference", "candidate", "words"),
    [
        (model(Conv1D, WEIGHT), model(nn.Linear, WEIGHT.T), None),
        (model(Conv1D, WEIGHT), model(nn.Linear, WEIGHT), "its class takes them transposed"),
        (model(nn.Linear, WEIGHT), model(nn.Linear, WEIGHT.T), "is the reference's, transposed"),
        (model(nn.Linear, WEIGHT), model(nn.Linear, WEIGHT, bias=False), "has none"),
    ],
)
def test_what_is_said_of_a_weight(reference, candidate, words) -> None:
    verdict = tracer.compare(reference, candidate, torch.randn(3, 8)).verdict
    assert verdict.agrees is (words is None)
    if words is not None:
        assert (verdict.origin.kind, verdict.confirmed) == ("parameter", True)
        assert words in verdict.explanation
