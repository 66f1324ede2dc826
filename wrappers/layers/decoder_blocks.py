"""What the decoder layers of all families share: the gated MLP, the residual blocks, and what a
model prepares for its layers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wrappers.attention.cache import KeyValueCache
from wrappers.attention.causal import AttentionInputs, CausalAttention, HeadByHeadAttention
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.point import Mode, QuantPoint
from wrappers.errors import ModelInputError
from wrappers.numerics.windowed import WindowedQuantizer


class GatedMLP(QuantModule):
    """Base of down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    product_point: ClassVar[str]
    """The point of the product that down_proj takes."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        self._add_points("act_in", self.product_point)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        x = self.quantize(x, "act_in")
        product = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        output: Tensor = self.down_proj(
            self.quantize(product, self.product_point, may_overwrite=True)
        )
        return output


class DecoderLayer(QuantModule):
    """Base of decoder layers: attention and MLP, each on a normalised input and added to what
    came in."""

    residual_points: ClassVar[tuple[str, str]]
    """The points of the sums after the attention and after the MLP."""

    self_attn: CausalAttention
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def _residual_blocks(self, hidden_states: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """[B, query, hidden] to the same.

        Args:
            hidden_states: what came in.
            attend: the attention over normalised hidden states.
        """
        after_attention, after_mlp = self.residual_points
        attended = attend(self.input_layernorm(hidden_states))
        residual = self.quantize(hidden_states + attended, after_attention, may_overwrite=True)
        transformed = self.mlp(self.post_attention_layernorm(residual))
        return self.quantize(residual + transformed, after_mlp, may_overwrite=True)

    def _attend(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        attended: Tensor
        attended, _ = self.self_attn(hidden_states=hidden_states, **arguments)
        return attended


class CausalLM(QuantModule):
    """Base of a text decoder and its head, which have all the points."""

    lm_head: nn.Module
    get_decoder: Callable[[], nn.Module]
    get_input_embeddings: Callable[[], nn.Module]

    def step(self, tokens: Tensor, inputs: AttentionInputs, **visual: Any) -> Tensor:
        """To logits [B, query, vocabulary], as a graph for an accelerator does it.

        Args:
            tokens: ids [B, query], or embeddings [B, query, hidden] with the features of images in
                their places.
            inputs: of the attention.
            **visual: what the decoder's `step` takes of images.
        """
        is_embedded = tokens.is_floating_point()
        embeddings = tokens if is_embedded else self.get_input_embeddings()(tokens)
        decoder: Any = self.get_decoder()
        logits: Tensor = self.lm_head(decoder.step(embeddings, inputs, **visual))
        return logits


def embedded(
    embed_tokens: nn.Module, input_ids: Tensor | None, inputs_embeds: Tensor | None
) -> Tensor:
    """Returns the embeddings [B, query, hidden] of whichever of the two was given.

    Raises:
        ModelInputError: both or neither.
    """
    if (input_ids is None) == (inputs_embeds is None):
        found = "neither" if input_ids is None else "both"
        raise ModelInputError(f"found {found} of input_ids and inputs_embeds; give exactly one")
    if inputs_embeds is not None:
        return inputs_embeds
    embeddings: Tensor = embed_tokens(input_ids)
    return embeddings


def next_positions(hidden_states: Tensor, cache: KeyValueCache | None) -> Tensor:
    """Returns the positions of `hidden_states` [B, query, hidden] after those cached, [query]."""
    past_length = 0 if cache is None else cache.get_seq_length()
    return torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_length


def cache_quantizers(
    model: nn.Module,
) -> dict[int, tuple[WindowedQuantizer, WindowedQuantizer]]:
    """Returns by layer how a quantised model has its cached keys and values rounded; nothing for
    one that does not. A point that is switched off or overridden rounds nothing."""
    return {
        module.layer_idx: (_rounding(module.points["kv_key"]), _rounding(module.points["kv_value"]))
        for module in model.modules()
        if isinstance(module, CausalAttention)
        and module.mode is Mode.QUANT
        and "kv_key" in module.points
    }


def _rounding(point: QuantPoint) -> WindowedQuantizer:
    if isinstance(point.quantizer, WindowedQuantizer) and not point.off:
        return point.quantizer
    return WindowedQuantizer(residual=sys.maxsize)


def key_factors(model: nn.Module) -> dict[int, float]:
    """Returns by layer the factor that the keys of its attention carry, where they do."""
    return {
        module.layer_idx: module.key_factor
        for module in model.modules()
        if isinstance(module, HeadByHeadAttention)
    }
