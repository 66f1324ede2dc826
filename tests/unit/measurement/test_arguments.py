"""Arguments of both sides, paired, and in the same form."""

import pytest
import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.measurement.arguments import CallPair, read_output, scale_between

HIDDEN, RESIDUAL = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
POSITIONS = torch.arange(10).view(2, 5)
IDS = torch.arange(10, 20).view(2, 5)
MASK = torch.ones(5, 5, dtype=torch.bool).tril()


class Scaled(nn.Module):
    """Twice what the reference returns, as it says."""

    reference_output_scale = 2.0

    def to_reference_output(self, output: torch.Tensor) -> torch.Tensor:
        return output / 2


def call(module: nn.Module | None = None, output: object = None, **arguments: object) -> Call:
    made = Call("m", 0, module or nn.Identity(), arguments, tuple(arguments), None, None)
    made.output = output
    return made


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
    assert CallPair(call(**reference), call(**candidate)).names() == names


def test_what_one_side_does_not_pass_is_none() -> None:
    pair = CallPair(call(x=1, y=2), call(x=1, z=3))
    # By position `y` is `z`.
    assert list(pair.arguments()) == [("x", 1, 1), ("y", 2, 3)]
    assert list(CallPair(call(x=1), call(x=1, z=3)).arguments()) == [("x", 1, 1), ("z", None, 3)]


def test_an_output_is_read_back() -> None:
    assert read_output("candidate", call(Scaled(), torch.tensor(4.0))) == 2.0
    with pytest.raises(ModelRunError, match="to_reference_output of the candidate's module 'm'"):
        read_output("candidate", call(Scaled(), "text"))


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        (nn.Identity(), nn.Identity(), 1.0),
        (nn.Identity(), Scaled(), 2.0),
        (Scaled(), Scaled(), 1.0),
    ],
)
def test_a_declared_scale(reference: nn.Module, candidate: nn.Module, expected: float) -> None:
    assert scale_between(reference, candidate) == expected
