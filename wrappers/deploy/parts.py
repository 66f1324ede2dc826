"""The parts of a wrapped model that are exported alone, each with inputs of its shapes.

module, inputs = exported_part(quantized, "layer", layer=3, tokens=64)
export(module, inputs, "layer.pt2")
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from wrappers.attention.causal import DecodeAttention
from wrappers.deploy.steps import EXAMPLE_TOKENS, Step
from wrappers.errors import ExportError
from wrappers.layers.decoder_blocks import DecoderLayer

Part = Literal["attention", "mlp", "layer", "model"]
PARTS: tuple[Part, ...] = get_args(Part)


def exported_part(
    model: nn.Module,
    part: Part,
    *,
    layer: int = 0,
    tokens: int | None = None,
    past: int | None = None,
    seed: int = 0,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A part of a wrapped model as a graph, and example inputs for it.

    Args:
        model: wrapped or quantised.
        part: the attention, the MLP or the whole of a decoder layer, or the model.
        layer: which one, from 0.
        tokens, past, seed: as for `Step.example_inputs`; an MLP has no past.

    Raises:
        ExportError: an unknown part, no such layer, or a past of an MLP.
        WrapError: the model has no graph of a step.
        ModelInputError: as `Step.example_inputs`.
    """
    if part not in PARTS:
        raise ExportError(f"found the part {part!r}; expected {', '.join(PARTS)}")
    if part == "model":
        step = Step(_whole(model))
        return step, step.example_inputs(tokens=tokens, past=past, seed=seed)
    layers = [module for module in model.modules() if isinstance(module, DecoderLayer)]
    if not 0 <= layer < len(layers):
        raise ExportError(
            f"found layer {layer}, and {type(model).__name__} has {len(layers)} wrapped decoder "
            f"layers{f': expected 0 to {len(layers) - 1}' if layers else ''}"
        )
    chosen = layers[layer]
    if part != "mlp":
        step = Step(chosen if part == "layer" else chosen.self_attn)
        return step, step.example_inputs(tokens=tokens, past=past, seed=seed)
    if past:
        raise ExportError(f"found a past of {past} positions, and an MLP takes none: leave it out")
    parameter = next(chosen.mlp.parameters())
    if tokens is None:
        tokens = 1 if isinstance(chosen.self_attn, DecodeAttention) else EXAMPLE_TOKENS
    shape = 1, tokens, chosen.self_attn.config.hidden_size
    hidden_states = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return chosen.mlp, (hidden_states.to(parameter.device, parameter.dtype),)


def _whole(model: nn.Module) -> nn.Module:
    """The outermost module that has a graph of a step: of a model with images, its text model."""
    found = (module for module in model.modules() if hasattr(module, "step"))
    return next(found, model)
