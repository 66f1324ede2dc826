"""Wrappers of norms, and the base of those that families have."""
# ruff: noqa: A002 - a forward keeps the argument names of the float class, `input` among them

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn

from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.registry import register
from wrappers.core.scaled_output import ScaledOutput


@register(nn.RMSNorm)
class QuantRMSNorm(QuantModule, nn.RMSNorm):
    """torch's root mean square norm."""

    def _setup(self, config: PTQConfig) -> None:
        if self.weight is not None:
            self._add_point("weight", role="weight", parameter="weight")
        self._add_points("act_in", "act_out")

    def forward(self, x: Tensor) -> Tensor:
        """[..., *normalized_shape] to the same."""
        x = self.quantize(x, "act_in")
        weight = None if self.weight is None else self.quantize(self.weight, "weight")
        output = F.rms_norm(x, self.normalized_shape, weight, self.eps)
        return self.quantize(output, "act_out", may_overwrite=True)


class TransformersRMSNorm(ScaledOutput):
    """Base of the root mean square norms that transformers has in each model family: a `weight`
    and a `variance_epsilon`, the statistics in float32."""

    weight: nn.Parameter
    variance_epsilon: float

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("weight", role="weight", parameter="weight")
        self._add_points("act_in", "act_out")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        hidden_states = self.quantize(hidden_states, "act_in")
        weight = self.quantize(self.weight, "weight")
        if torch.compiler.is_exporting() and hidden_states.dtype == weight.dtype == torch.float32:
            # The same numbers by the one operator that accelerators have for it.
            output = F.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
            return self.quantize(output, "act_out", may_overwrite=True)
        wide = hidden_states.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        normalised = wide * torch.rsqrt(variance + self.variance_epsilon)
        output = weight * normalised.to(hidden_states.dtype)
        return self.quantize(output, "act_out", may_overwrite=True)


@register(nn.LayerNorm)
class QuantLayerNorm(QuantModule, nn.LayerNorm):
    """A layer norm in the steps that an accelerator takes, each with its point."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_points("act_in", "mean", "centred", "square", "variance", "eps", "rsqrt")
        self._add_point("normalised")
        if self.weight is not None:
            self._add_point("weight", role="weight", parameter="weight")
        if self.bias is not None:
            self._add_point("bias", role="weight", parameter="bias")
        if self.weight is not None:
            self._add_point("scaled")
        self._add_point("act_out")

    def forward(self, input: Tensor) -> Tensor:
        """[..., *normalized_shape] to the same."""
        dimensions = tuple(range(-len(self.normalized_shape), 0))
        # The steps of half precision inputs are taken in float32, as torch's own operator does.
        half = input.dtype in (torch.float16, torch.bfloat16)
        x = self.quantize(input, "act_in").to(torch.float32 if half else input.dtype)
        mean = self.quantize(x.mean(dimensions, keepdim=True), "mean", may_overwrite=True)
        centred = self.quantize(x - mean, "centred", may_overwrite=True)
        square = self.quantize(centred * centred, "square", may_overwrite=True)
        variance = self.quantize(
            square.mean(dimensions, keepdim=True), "variance", may_overwrite=True
        )
        eps = self.quantize(variance.new_full((), self.eps), "eps", may_overwrite=True)
        rsqrt = self.quantize(torch.rsqrt(variance + eps), "rsqrt", may_overwrite=True)
        output = self.quantize(centred * rsqrt, "normalised", may_overwrite=True)
        if self.weight is not None:
            weight = self.quantize(self.weight, "weight")
            output = self.quantize(output * weight, "scaled", may_overwrite=True)
        if self.bias is not None:
            output = output + self.quantize(self.bias, "bias")
        return self.quantize(output.to(input.dtype), "act_out", may_overwrite=True)
