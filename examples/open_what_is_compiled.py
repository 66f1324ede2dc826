"""A custom operator that writes to its argument and does not say so: compiled, the model is wrong.

python examples/open_what_is_compiled.py
"""

import torch
from torch import nn

import tracer


@torch.library.custom_op("example::rescale", mutates_args=())  # it should say ("x",)
def rescale(x: torch.Tensor) -> torch.Tensor:
    """Divides by the largest element, in place, and returns that."""
    largest = x.abs().amax()
    x.div_(largest)
    return largest


@rescale.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(())


class Rescaled(nn.Module):
    """A linear layer whose output is rescaled."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        """[batch, 16] to [batch, 16]."""
        y = self.linear(x)
        rescale(y)
        return y.tanh()


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 16), Rescaled(), nn.Linear(16, 16)).eval()
comparison = tracer.compare(model, torch.compile(model, backend="aot_eager"), torch.randn(4, 16))
print(comparison.verdict.explanation)
