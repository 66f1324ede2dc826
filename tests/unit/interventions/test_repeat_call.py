"""A call is made again as if for the first time."""

import pytest
import torch
from torch import nn

from tracer.errors import ModelRunError
from tracer.execution.hooks import Call
from tracer.interventions.repeat_call import Recall


class Counts(nn.Module):
    """Keeps a state, draws a number, and edits its argument."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        x += 1
        return x + self.calls + torch.rand(1)


def test_as_for_the_first_time() -> None:
    module, x = Counts(), torch.ones(1)
    again = Recall(Call("m", 0, module, {"x": x}, ("x",), None, None))
    first = module(x)
    for _ in range(2):
        output, arguments = again()
        assert torch.equal(output, first)
        assert arguments["x"] == 2.0
    assert (module.calls, x) == (1.0, 2.0)


def test_what_raises_is_said() -> None:
    call = Call("m", 0, nn.Linear(2, 2), {"input": torch.ones(3)}, ("input",), None, None)
    with pytest.raises(ModelRunError, match=r"module 'm' .* when it was called again"):
        Recall(call)()
