"""A model piece by piece, each as a graph of static shapes: what an accelerator loads one by one.

    for piece in text_pieces(quantized, "prefill", tokens=32):
        piece.inputs                # ("hidden.0", "cos", "sin", "mask")
        piece.outputs               # ("hidden.1", "key.0", "value.0")

| piece | takes | gives |
|---|---|---|
| embedding | input_ids | hidden.0 |
| layer i | hidden.i, cos, sin, mask | hidden.i+1, key.i, value.i |
| layer i in decode | the same, past_key.i and past_value.i | the same |
| head: the last norm and lm_head | hidden.n | logits |

A piece takes what one before it gives under that name; what none gives comes from the caller. What
the text model quantises for all its layers (tables and mask) each layer does itself, so that the
pieces together compute what the whole model does. In which form the tables and masks are, and what
the keys carry, `wrappers.deploy.steps` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wrappers.attention.causal import AttentionInputs
from wrappers.deploy.steps import Step
from wrappers.errors import ExportError

_MASKS = ("causal_mask", "attention_mask")


@dataclass(frozen=True)
class Piece:
    """A part of a model that is exported alone.

    Attributes:
        name: of the file.
        stage: "vision", "prefill" or "decode".
        module: name of the module in the model.
        graph: what is exported.
        example: what it is called with.
        inputs, outputs: names of the values that it takes and gives.
    """

    name: str
    stage: str
    module: str
    graph: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class TextModel:
    """The text decoder of a wrapped causal LM or model with images."""

    name: str
    module: Any
    head: nn.Module


def text_model(model: nn.Module) -> TextModel:
    """The wrapped text decoder of a model, and its head.

    Raises:
        ExportError: there is none.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "step") and hasattr(module, "embed_tokens")
    ]
    head = getattr(model, "lm_head", None)
    if len(found) != 1 or not isinstance(head, nn.Module):
        raise ExportError(
            f"a {type(model).__name__} has {len(found)} wrapped text models and "
            f"{'a' if head is not None else 'no'} head: expected a wrapped causal LM, or a model "
            "with images and its head"
        )
    return TextModel(*found[0], head)


def text_pieces(
    model: nn.Module,
    stage: str,
    *,
    tokens: int | None = None,
    past: int | None = None,
    added: dict[int, Piece] | None = None,
    fused: Piece | None = None,
) -> list[Piece]:
    """Embedding, decoder layers and head, in order.

    Args:
        model: a wrapped or quantised causal LM, or a model with images.
        stage: "prefill" or "decode".
        tokens, past: as for `Step.example_inputs`.
        added: what comes after some of the layers, by their numbers; see `visual_pieces`.
        fused: what comes after the embedding.

    Raises:
        ExportError: the model has no text decoder, or no head.
        WrapError, ModelInputError: as `Step`.
    """
    text = text_model(model)
    layers = list(text.module.layers)
    hidden, *others = Step(_InModel(layers[0], text.module)).example_inputs(
        tokens=tokens, past=past
    )
    ids = torch.zeros(hidden.shape[:2], dtype=torch.int64, device=hidden.device)
    embedding = _Embedding(text.module, quantizes=fused is None)
    found = [
        Piece(
            *(f"{stage}.embedding", stage, f"{text.name}.embed_tokens", embedding, (ids,)),
            *(("input_ids",), ("hidden.0" if fused is None else "embeddings",)),
        )
    ]
    found += [] if fused is None else [fused]
    for index, layer in enumerate(layers):
        pasts = (f"past_key.{index}", f"past_value.{index}") if len(others) > 3 else ()
        last = f"hidden.{index + 1}"
        after = (added or {}).get(index)
        found.append(
            Piece(
                f"{stage}.layer.{index}",
                stage,
                f"{text.name}.layers.{index}",
                Step(_InModel(layer, text.module)),
                (hidden, *others),
                (f"hidden.{index}", "cos", "sin", "mask", *pasts),
                (last if after is None else after.inputs[0], f"key.{index}", f"value.{index}"),
            )
        )
        found += [] if after is None else [after]
    head = nn.Sequential(text.module.norm, text.head)
    last = f"hidden.{len(layers)}"
    found.append(Piece(f"{stage}.head", stage, "lm_head", head, (hidden,), (last,), ("logits",)))
    return found


class _InModel(nn.Module):
    """A decoder layer with what its text model quantises for all of them."""

    def __init__(self, layer: nn.Module, text: Any) -> None:
        super().__init__()
        self.layer = layer
        # In a tuple it is no child: a graph would hold all its parameters.
        self._text = (text,)
        self._mask = next(point for point in text.points if point in _MASKS)

    def step(self, hidden_states: Tensor, inputs: AttentionInputs) -> Tensor:
        """As the layer's own."""
        inputs = inputs.quantized(self._text[0], self._mask)
        output: Tensor = self.layer.step(hidden_states, inputs)  # type: ignore[operator]
        return output


class _Embedding(nn.Module):
    """Token ids to embeddings, after the text model's point of them where it has one."""

    def __init__(self, text: Any, *, quantizes: bool) -> None:
        super().__init__()
        self.embed_tokens = text.embed_tokens
        self._text = (text,)
        self._quantizes = quantizes and "inputs_embeds" in text.points

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, query] to [B, query, hidden]."""
        embeddings: Tensor = self.embed_tokens(input_ids)
        if not self._quantizes:
            return embeddings
        quantized: Tensor = self._text[0].quantize(embeddings, "inputs_embeds")
        return quantized
