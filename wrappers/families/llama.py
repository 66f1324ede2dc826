"""Llama: MLP, attention, decoder layer, model and causal LM, for prefill and decode.

The attention's variants are those of `wrappers.attention.causal`. The modules call each other as
transformers' do, with the same arguments, and with quantisation off give the same numbers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from wrappers.attention.cache import as_cache
from wrappers.attention.causal import (
    AttentionInputs,
    BatchedAttention,
    DecodeAttention,
    HeadByHeadAttention,
)
from wrappers.attention.masks import MaskBuilder, additive_mask, model_mask, quantized_mask
from wrappers.attention.rope import quantized_tables, rope_tables
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.registry import register
from wrappers.core.transformers_compat import (
    capture_outputs,
    merge_with_config_defaults,
    note_recordable_outputs,
)
from wrappers.layers.decoder_blocks import (
    CausalLM,
    DecoderLayer,
    GatedMLP,
    embedded,
    next_positions,
)
from wrappers.layers.norms import TransformersRMSNorm


@register(LlamaMLP)
class QuantLlamaMLP(GatedMLP, LlamaMLP):  # type: ignore[misc]
    """down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    product_point = "mul"


@register(LlamaAttention, variant="prefill")
class QuantLlamaAttentionPrefill(HeadByHeadAttention, LlamaAttention):  # type: ignore[misc]
    """Head by head, with the factor on the logits folded into k_proj."""


@register(LlamaAttention, variant="prefill_reference")
class QuantLlamaAttentionPrefillReference(BatchedAttention, LlamaAttention):  # type: ignore[misc]
    """All heads at once."""


@register(LlamaAttention, variant="decode")
class QuantLlamaAttentionDecode(DecodeAttention, LlamaAttention):  # type: ignore[misc]
    """Head by head over a cache, with the factor on the logits folded into k_proj."""


@register(LlamaDecoderLayer)
class QuantLlamaDecoderLayer(DecoderLayer, LlamaDecoderLayer):  # type: ignore[misc]
    """Attention and MLP, each on a normalised input and added to what came in."""

    residual_points = ("attn_residual_out", "mlp_residual_out")

    def _setup(self, config: PTQConfig) -> None:
        self.masks = MaskBuilder(config.attention_mask_fill_value)
        self._add_points("attn_mask", "cos", "sin", *self.residual_points)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[B, query, hidden] to the same; see `CausalAttention.forward` for the arguments."""
        cache = as_cache(past_key_values)
        layer_idx = self.self_attn.layer_idx
        mask = additive_mask(self.masks, attention_mask, hidden_states, cache, layer_idx)
        tables = rope_tables(position_embeddings, type(self))
        attend = partial(
            self._attend,
            attention_mask=quantized_mask(self, "attn_mask", mask),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache,
            position_embeddings=quantized_tables(self, self.self_attn, tables),
            **kwargs,
        )
        return self._residual_blocks(hidden_states, attend)

    def step(self, hidden_states: Tensor, inputs: AttentionInputs) -> Tensor:
        """As a graph for an accelerator does it."""
        attend = partial(self.self_attn.step, inputs=inputs.quantized(self, "attn_mask"))
        return self._residual_blocks(hidden_states, attend)


@register(LlamaModel)
class QuantLlamaModel(QuantModule, LlamaModel):  # type: ignore[misc]
    """Embedding, mask and rope tables once for all layers, the layers, the final norm."""

    config: LlamaConfig
    embed_tokens: nn.Module
    rotary_emb: nn.Module
    layers: nn.ModuleList
    norm: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        note_recordable_outputs(self)
        self.masks = MaskBuilder(config.attention_mask_fill_value)
        self._add_points("causal_mask", "cos", "sin")

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As `LlamaModel.forward`.

        Args:
            input_ids: [B, query].
            attention_mask: any kind that `MaskBuilder` takes.
            position_ids: [B or 1, query]; by default they go on after the cached positions.
                Without a mask and a cache, positions that start again begin another sequence.
            past_key_values: any kind that `as_cache` takes.
            inputs_embeds: [B, query, hidden], instead of `input_ids`.
            use_cache: whether to make a cache where none is given.
            **kwargs: passed on to the layers.

        Raises:
            ModelInputError: both or neither of `input_ids` and `inputs_embeds`, or a mask or cache
                of no known kind.
        """
        hidden_states = embedded(self.embed_tokens, input_ids, inputs_embeds)
        cache = as_cache(past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        mask = model_mask(
            self.masks, self.config, attention_mask, position_ids, hidden_states, cache
        )
        if position_ids is None:
            position_ids = next_positions(hidden_states, cache).unsqueeze(0)
        cos, sin = self.rotary_emb(hidden_states, position_ids=position_ids)
        mask = quantized_mask(self, "causal_mask", mask)
        tables = quantized_tables(self, self.layers[0].self_attn, (cos, sin))
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=tables,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=cache
        )

    def step(self, hidden_states: Tensor, inputs: AttentionInputs) -> Tensor:
        """From embeddings to the final norm, as a graph for an accelerator does it."""
        inputs = inputs.quantized(self, "causal_mask")
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer.step(hidden_states, inputs)  # type: ignore[operator]
        normalised: Tensor = self.norm(hidden_states)
        return normalised


@register(LlamaForCausalLM)
class QuantLlamaForCausalLM(CausalLM, LlamaForCausalLM):  # type: ignore[misc]
    """The model and its head, which have all the points: its forward is the float model's."""


@register(LlamaRMSNorm)
class QuantLlamaRMSNorm(TransformersRMSNorm, LlamaRMSNorm):  # type: ignore[misc]
    """Llama's root mean square norm."""
