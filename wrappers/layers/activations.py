"""Wrappers of activation functions, from torch and from transformers."""
# ruff: noqa: A002 - a forward keeps the argument names of the float class, `input` among them

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import activations as transformers_activations

from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.registry import register


class Activation(QuantModule):
    """Base of elementwise functions: the float class's own forward between two points."""

    inplace = False
    """The float class writes its result into its input."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_points("act_in", "act_out")

    def forward(self, input: Tensor) -> Tensor:
        """[...] to the same."""
        x = self.quantize(input, "act_in")
        output: Tensor = self.quantize(super().forward(x), "act_out", may_overwrite=True)
        return input.copy_(output) if self.inplace else output


@register(nn.ReLU)
class QuantReLU(Activation, nn.ReLU):
    """max(x, 0)."""


@register(nn.Sigmoid)
class QuantSigmoid(Activation, nn.Sigmoid):
    """1 / (1 + exp(-x))."""


@register(nn.Tanh)
class QuantTanh(Activation, nn.Tanh):
    """The hyperbolic tangent."""


@register(nn.GELU)
class QuantGELU(Activation, nn.GELU):
    """torch's GELU, exact or by tanh."""


@register(transformers_activations.GELUActivation)
class QuantGELUActivation(Activation, transformers_activations.GELUActivation):  # type: ignore[misc]
    """transformers' exact GELU."""


@register(transformers_activations.GELUTanh)
class QuantGELUTanh(Activation, transformers_activations.GELUTanh):  # type: ignore[misc]
    """transformers' GELU by tanh, in one operator."""


@register(transformers_activations.NewGELUActivation)
class QuantNewGELU(Activation, transformers_activations.NewGELUActivation):  # type: ignore[misc]
    """transformers' GELU by tanh, written out."""


@register(transformers_activations.FastGELUActivation)
class QuantFastGELU(Activation, transformers_activations.FastGELUActivation):  # type: ignore[misc]
    """transformers' GELU by tanh, with rounded constants."""


@register(transformers_activations.QuickGELUActivation)
class QuantQuickGELU(Activation, transformers_activations.QuickGELUActivation):  # type: ignore[misc]
    """transformers' GELU by sigmoid."""


class SiLU(Activation):
    """Base of the SiLU in the steps that an accelerator takes: x * sigmoid(x)."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_points("act_in", "sigmoid", "mul", "act_out")

    def point_meanings(self) -> dict[str, str]:
        """As for all wrappers; `mul` is not what it is in an MLP."""
        return super().point_meanings() | {"mul": "x * sigmoid(x) inside SiLU"}

    def forward(self, input: Tensor) -> Tensor:
        """[...] to the same."""
        x = self.quantize(input, "act_in")
        sigmoid = self.quantize(torch.sigmoid(x), "sigmoid", may_overwrite=True)
        product = self.quantize(x * sigmoid, "mul", may_overwrite=True)
        output = self.quantize(product, "act_out", may_overwrite=True)
        return input.copy_(output) if self.inplace else output


@register(nn.SiLU)
class QuantSiLU(SiLU, nn.SiLU):
    """torch's SiLU."""


@register(transformers_activations.SiLUActivation)
class QuantSiLUActivation(SiLU, transformers_activations.SiLUActivation):  # type: ignore[misc]
    """transformers' SiLU."""
