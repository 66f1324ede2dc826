"""Wrappers of the layers that models are built of."""
# ruff: noqa: A002 - a forward keeps the argument names of the float class, `input` among them

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn

from wrappers.config import PTQConfig
from wrappers.module import QuantModule
from wrappers.registry import register


@register(nn.Linear)
class QuantLinear(QuantModule, nn.Linear):
    """A linear layer, which may carry a constant factor folded into its parameters."""

    output_scale = 1.0
    """The factor that its output has over that of the float layer."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("weight", role="weight", parameter="weight", channel_axis=0)
        self._add_point("act_in")
        self._add_point("act_out")

    def fold_output_scale(self, factor: float) -> None:
        """Multiply weight and bias, and with them every output, by `factor`.

        The layer then owns its parameters instead of sharing them with the float model.
        """
        self.weight = _scaled(self.weight, factor)
        if self.bias is not None:
            self.bias = _scaled(self.bias, factor)
        self.output_scale *= factor

    def to_reference_output(self, output: Tensor) -> Tensor:
        """The output as the float layer would give it."""
        return output if self.output_scale == 1.0 else output / self.output_scale

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x = self._quantize(input, "act_in")
        weight = self._quantize(self.weight, "weight")
        return self._quantize(F.linear(x, weight, self.bias), "act_out", owned=True)


def _scaled(parameter: Tensor, factor: float) -> nn.Parameter:
    return nn.Parameter(parameter.detach() * factor, requires_grad=parameter.requires_grad)
