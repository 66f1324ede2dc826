"""Which argument of one side is which of the other's."""

import pytest
import torch
from torch import nn

from tracer.execution.hooks import Call
from tracer.measurement.arguments import CallPair

HIDDEN, RESIDUAL = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
POSITIONS = torch.arange(10).view(2, 5)
IDS = torch.arange(10, 20).view(2, 5)
MASK = torch.ones(5, 5, dtype=torch.bool).tril()


def call(arguments: dict[str, object]) -> Call:
    return Call("m", 0, nn.Identity(), arguments, tuple(arguments), None, None)


@pytest.mark.parametrize(
    ("reference", "candidate", "names"),
    [
        ({"x": HIDDEN}, {"x": HIDDEN}, {"x": "x"}),
        ({"hidden_states": HIDDEN}, {"x": HIDDEN}, {"hidden_states": "x"}),
        # never by place against what they are
        (
            {"hidden_states": HIDDEN},
            {"positions": POSITIONS.flatten(), "hidden": HIDDEN.flatten(0, 1)},
            {"hidden_states": "hidden"},
        ),
        ({"input_ids": IDS}, {"positions": POSITIONS}, {}),
        (
            {"input_ids": IDS, "position_ids": POSITIONS},
            {"pos": POSITIONS, "tokens": IDS},
            {"input_ids": "tokens", "position_ids": "pos"},
        ),
        (
            {"x": HIDDEN, "attention_mask": MASK},
            {"bias_mask": MASK.float(), "h": HIDDEN},
            {"x": "h", "attention_mask": "bias_mask"},
        ),
        (
            {"x": HIDDEN, "attention_mask": None},
            {"mask": MASK, "h": HIDDEN},
            {"x": "h", "attention_mask": "mask"},
        ),
        ({"hidden": HIDDEN}, {"mask": HIDDEN}, {}),
        # by value where several could be meant, whatever their order
        ({"a": HIDDEN, "b": RESIDUAL}, {"c": RESIDUAL, "d": HIDDEN}, {"a": "d", "b": "c"}),
        ({"a": HIDDEN, "b": RESIDUAL}, {"c": HIDDEN + 1e-6, "d": HIDDEN * 3}, {"a": "c", "b": "d"}),
        # else by place
        ({"a": HIDDEN, "b": RESIDUAL}, {"c": -HIDDEN, "d": -RESIDUAL}, {"a": "c", "b": "d"}),
        ({"a": HIDDEN, "cache": None}, {"b": HIDDEN, "past": []}, {"a": "b", "cache": "past"}),
        (
            {"scale": 2.0, "name": "x"},
            {"kind": "x", "factor": 1},
            {"scale": "factor", "name": "kind"},
        ),
    ],
)
def test_names(
    reference: dict[str, object], candidate: dict[str, object], names: dict[str, str]
) -> None:
    assert CallPair(call(reference), call(candidate)).names() == names
