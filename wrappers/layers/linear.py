"""Wrappers of the layers that models are built of: linear, convolutions, embedding, norms,
activations, from torch and from transformers."""
# ruff: noqa: A002 - a forward keeps the argument names of the float class, `input` among them

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn

from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.registry import register
from wrappers.core.scaled_output import ScaledOutput


class WeightedLayer(QuantModule):
    """Base of layers with one weight whose first dimension is the output channels."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("weight", role="weight", parameter="weight", channel_axis=0)
        self._add_points("act_in", "act_out")


@register(nn.Linear)
class QuantLinear(ScaledOutput, WeightedLayer, nn.Linear):
    """A linear layer."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        x = self.quantize(input, "act_in")
        weight = self.quantize(self.weight, "weight")
        return self.quantize(F.linear(x, weight, self.bias), "act_out", may_overwrite=True)


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
            self.quantize(self.weight, "weight"),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
        return self.quantize(output, "act_out", may_overwrite=True)
