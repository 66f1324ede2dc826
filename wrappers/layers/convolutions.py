"""Wrappers of convolutions."""
# ruff: noqa: A002 - a forward keeps the argument names of the float class, `input` among them

from __future__ import annotations

from torch import Tensor, nn

from wrappers.core.registry import register
from wrappers.core.transformers_compat import convolved
from wrappers.layers.linear import WeightedLayer


@register(nn.Conv2d)
class QuantConv2d(WeightedLayer, nn.Conv2d):
    """A convolution over images."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_channels, height, width] to [batch, out_channels, height', width']."""
        x = self.quantize(input, "act_in")
        weight = self.quantize(self.weight, "weight")
        return self.quantize(convolved(self, x, weight), "act_out", may_overwrite=True)


@register(nn.Conv3d)
class QuantConv3d(WeightedLayer, nn.Conv3d):
    """A convolution over videos."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_channels, time, height, width] to [batch, out_channels, time', ...]."""
        x = self.quantize(input, "act_in")
        weight = self.quantize(self.weight, "weight")
        return self.quantize(convolved(self, x, weight), "act_out", may_overwrite=True)
