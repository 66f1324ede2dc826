"""Bias correction: adds to each linear layer the mean by which quantisation shifts its outputs.

    corrected = BiasCorrection()(model, config, batches)  # a prepared model

What is aimed at are the outputs with quantisation off; after GPTQ, those of the weights from before
it. Layers are corrected in the order in which they run, so that each is measured behind those that
have been corrected; a layer without a bias gets one. Time: as GPTQ, two forwards for one of its.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wrappers.algorithms.calls import call_groups, stopping_at
from wrappers.algorithms.stage import (
    as_prepared,
    before_rounding,
    checked,
    copied,
    replace_parameter,
    set_unquantized,
    weighted_layers,
)
from wrappers.core.config import PTQConfig
from wrappers.quantize import ModelInputs, calibrate, convert


@dataclass(frozen=True)
class BiasCorrection:
    """The stage; it has no options."""

    rewrites_float: ClassVar[bool] = False

    def __call__(
        self, model: nn.Module, config: PTQConfig, batches: Sequence[ModelInputs]
    ) -> nn.Module:
        """A prepared model with corrected biases, quantisation off.

        Raises:
            ModelInputError: there are no batches.
        """
        checked(batches)
        quantized = copied(as_prepared(model, config))
        result = copied(quantized)
        set_unquantized(result)
        reference = copied(before_rounding(result))
        calibrate(quantized, batches)
        convert(quantized)
        layers = weighted_layers(quantized)
        groups, once = call_groups(quantized, layers, batches)
        for group in groups:
            expected = _mean_outputs(reference, group, batches, stop=once)
            found = _mean_outputs(quantized, group, batches, stop=once)
            for name in group:
                shift = expected[name] - found[name]
                for each in (quantized, result):
                    _add_to_bias(each.get_submodule(name), shift)
        return result


def _mean_outputs(
    model: nn.Module, group: list[str], batches: Sequence[ModelInputs], *, stop: bool
) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(group, 0)

    def hear(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        rows = output.detach().flatten(0, -2).to(torch.float64)
        totals[name] = totals[name] + rows.sum(0) if name in totals else rows.sum(0)
        counts[name] += len(rows)

    for batch in batches:
        stopping_at(model, group, hear, batch, stop=stop)
    return {name: total / counts[name] for name, total in totals.items()}


def _add_to_bias(layer: nn.Module, shift: Tensor) -> None:
    weight = layer.get_parameter("weight")
    bias = layer._parameters["bias"]
    corrected = shift if bias is None else bias.detach().to(torch.float64) + shift
    replace_parameter(layer, "bias", corrected.to(weight.dtype))
