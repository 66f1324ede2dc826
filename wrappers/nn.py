"""Wrappers of the layers that models are built of: linear, convolutions, embedding, norms,
activations, from torch and from transformers."""
# ruff: noqa: A002 - a forward keeps the argument names of the float class, `input` among them

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn
from transformers import activations as transformers_activations
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from wrappers.config import PTQConfig
from wrappers.module import QuantModule
from wrappers.offloading import is_offloaded, load_scaled
from wrappers.registry import register


class ScaledOutput(QuantModule):
    """Base of layers whose output is proportional to their parameters, `weight` and perhaps
    `bias`, so that they may carry a constant factor."""

    output_scale = 1.0
    """The factor that the output has over that of the float layer."""

    def fold_output_scale(self, factor: float) -> None:
        """Multiply the parameters, and with them every output, by `factor`.

        The layer then owns its parameters instead of sharing them with the float model, or loads
        them multiplied where they are loaded when needed.
        """
        self.output_scale *= factor
        if is_offloaded(self):
            load_scaled(self, factor)
            return
        for name, parameter in list(self.named_parameters(recurse=False)):
            scaled = parameter.detach() * factor
            setattr(self, name, nn.Parameter(scaled, requires_grad=parameter.requires_grad))

    def to_reference_output(self, output: Tensor) -> Tensor:
        """The output as the float layer would give it."""
        return output if self.output_scale == 1.0 else output / self.output_scale


class WeightedLayer(QuantModule):
    """Base of layers with one weight whose first dimension is the output channels."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("weight", role="weight", parameter="weight", channel_axis=0)
        self._add_point("act_in")
        self._add_point("act_out")


@register(nn.Linear)
class QuantLinear(ScaledOutput, WeightedLayer, nn.Linear):
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x = self._quantize(input, "act_in")
        weight = self._quantize(self.weight, "weight")
        return self._quantize(F.linear(x, weight, self.bias), "act_out", owned=True)


@register(nn.Conv2d)
class QuantConv2d(WeightedLayer, nn.Conv2d):
    """A convolution over images."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_channels, height, width] to [batch, out_channels, height', width']."""
        x = self._quantize(input, "act_in")
        weight = self._quantize(self.weight, "weight")
        return self._quantize(self._conv_forward(x, weight, self.bias), "act_out", owned=True)


@register(nn.Conv3d)
class QuantConv3d(WeightedLayer, nn.Conv3d):
    """A convolution over videos."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in_channels, time, height, width] to [batch, out_channels, time', ...]."""
        x = self._quantize(input, "act_in")
        weight = self._quantize(self.weight, "weight")
        return self._quantize(self._conv_forward(x, weight, self.bias), "act_out", owned=True)


@register(nn.Embedding)
class QuantEmbedding(QuantModule, nn.Embedding):
    """A table of vectors; the rows are its channels."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("weight", role="weight", parameter="weight", channel_axis=0)
        self._add_point("act_out")

    def forward(self, input: Tensor) -> Tensor:
        """[...] of indices to [..., embedding_dim]."""
        output = F.embedding(
            input,
            self._quantize(self.weight, "weight"),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        return self._quantize(output, "act_out", owned=True)


@register(nn.RMSNorm)
class QuantRMSNorm(QuantModule, nn.RMSNorm):
    """torch's root mean square norm."""

    def _setup(self, config: PTQConfig) -> None:
        if self.weight is not None:
            self._add_point("weight", role="weight", parameter="weight")
        self._add_point("act_in")
        self._add_point("act_out")

    def forward(self, x: Tensor) -> Tensor:
        """[..., *normalized_shape] to the same."""
        x = self._quantize(x, "act_in")
        weight = None if self.weight is None else self._quantize(self.weight, "weight")
        output = F.rms_norm(x, self.normalized_shape, weight, self.eps)
        return self._quantize(output, "act_out", owned=True)


class TransformersRMSNorm(ScaledOutput):
    """Base of the root mean square norms that transformers has in each model family: a `weight`
    and a `variance_epsilon`, the statistics in float32."""

    weight: nn.Parameter
    variance_epsilon: float

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("weight", role="weight", parameter="weight")
        self._add_point("act_in")
        self._add_point("act_out")

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., hidden] to the same."""
        hidden_states = self._quantize(hidden_states, "act_in")
        weight = self._quantize(self.weight, "weight")
        if torch.compiler.is_exporting() and hidden_states.dtype == weight.dtype == torch.float32:
            # The same numbers by the one operator that accelerators have for it.
            output = F.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)
            return self._quantize(output, "act_out", owned=True)
        wide = hidden_states.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        normalised = wide * torch.rsqrt(variance + self.variance_epsilon)
        output = weight * normalised.to(hidden_states.dtype)
        return self._quantize(output, "act_out", owned=True)


@register(LlamaRMSNorm)
class QuantLlamaRMSNorm(TransformersRMSNorm, LlamaRMSNorm):  # type: ignore[misc]
    """Llama's root mean square norm."""


@register(nn.LayerNorm)
class QuantLayerNorm(QuantModule, nn.LayerNorm):
    """A layer norm in the steps that an accelerator takes, each with its point."""

    def _setup(self, config: PTQConfig) -> None:
        for name in ("act_in", "mean", "centred", "square", "variance", "eps", "rsqrt"):
            self._add_point(name)
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
        x = self._quantize(input, "act_in").to(torch.float32 if half else input.dtype)
        mean = self._quantize(x.mean(dimensions, keepdim=True), "mean", owned=True)
        centred = self._quantize(x - mean, "centred", owned=True)
        square = self._quantize(centred * centred, "square", owned=True)
        variance = self._quantize(square.mean(dimensions, keepdim=True), "variance", owned=True)
        eps = self._quantize(variance.new_full((), self.eps), "eps", owned=True)
        rsqrt = self._quantize(torch.rsqrt(variance + eps), "rsqrt", owned=True)
        output = self._quantize(centred * rsqrt, "normalised", owned=True)
        if self.weight is not None:
            weight = self._quantize(self.weight, "weight")
            output = self._quantize(output * weight, "scaled", owned=True)
        if self.bias is not None:
            output = output + self._quantize(self.bias, "bias")
        return self._quantize(output.to(input.dtype), "act_out", owned=True)


class Activation(QuantModule):
    """Base of elementwise functions: the float class's own forward between two points."""

    inplace = False
    """The float class writes its result into its input."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("act_in")
        self._add_point("act_out")

    def forward(self, input: Tensor) -> Tensor:
        """[...] to the same."""
        x = self._quantize(input, "act_in")
        output: Tensor = self._quantize(super().forward(x), "act_out", owned=True)
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
        for name in ("act_in", "sigmoid", "mul", "act_out"):
            self._add_point(name)

    def forward(self, input: Tensor) -> Tensor:
        """[...] to the same."""
        x = self._quantize(input, "act_in")
        sigmoid = self._quantize(torch.sigmoid(x), "sigmoid", owned=True)
        product = self._quantize(x * sigmoid, "mul", owned=True)
        output = self._quantize(product, "act_out", owned=True)
        return input.copy_(output) if self.inplace else output


@register(nn.SiLU)
class QuantSiLU(SiLU, nn.SiLU):
    """torch's SiLU."""


@register(transformers_activations.SiLUActivation)
class QuantSiLUActivation(SiLU, transformers_activations.SiLUActivation):  # type: ignore[misc]
    """transformers' SiLU."""
