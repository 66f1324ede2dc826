"""Arguments of both sides, paired, and in the same form."""

import pytest
import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.measurement.arguments import CallPair, read_output, scale_between


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
    ("reference", "candidate", "expected"),
    [
        (("x", "y"), ("x", "y"), {"x": "x", "y": "y"}),
        (("hidden", "y"), ("states", "y"), {"hidden": "states", "y": "y"}),
        (("x", "y"), ("y", "x"), {"x": "x", "y": "y"}),
        (("x",), ("x", "more"), {"x": "x"}),
    ],
)
def test_names(reference: tuple[str, ...], candidate: tuple[str, ...], expected: object) -> None:
    pair = CallPair(*(call(**dict.fromkeys(names, 1)) for names in (reference, candidate)))
    assert pair.names() == expected


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
