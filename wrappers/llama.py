"""Llama: MLP, attention, decoder layer, model and causal LM, for the variants of prefill.

| | `prefill` | `prefill_reference` |
|---|---|---|
| heads | one by one, sliced out of the projections | all at once |
| shared key/value heads | used again | as `repeat_interleave` would expand them |
| 1 / sqrt(head_dim) | folded into k_proj | applied to the logits |
| rotate-half | (x2, x1), sine table half negated | (-x2, x1) |

Only the attention differs. The modules call each other as transformers' do, with the same
arguments, and with quantisation off give the same numbers; k_proj of `prefill` carries the folded
factor and reads its output back by `to_reference_output`. A cache holds keys without it.

A query that may look at nothing (padding on the left) gets what the model's attention
implementation makes of its own masks: the mean of all values in `eager`, zero in the others. Adding
a finite fill value to the whole row would give neither.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY, capture_outputs

from wrappers.attention.cache import KeyValueCache, ScaledKeys, as_cache, cache_extent
from wrappers.attention.core import AttentionResult, attend_batched, attend_by_head
from wrappers.attention.masks import MaskBuilder, packed_sequences
from wrappers.attention.rope import negate_and_swap, negate_first_half, rotate, swap
from wrappers.config import PTQConfig
from wrappers.errors import InputError, WrapError
from wrappers.module import Mode, QuantModule
from wrappers.nn import QuantLinear
from wrappers.registry import register

ROPE_POINTS = ("x1", "x2", "cat", "cos", "sin", "rot")


@register(LlamaMLP)
class QuantLlamaMLP(QuantModule, LlamaMLP):  # type: ignore[misc]
    """down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("act_in")
        self._add_point("mul")

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        x = self._quantize(x, "act_in")
        product = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        output: Tensor = self.down_proj(self._quantize(product, "mul", owned=True))
        return output


class QuantLlamaAttention(QuantModule, LlamaAttention):  # type: ignore[misc]
    """What all variants of the attention share; a variant says how heads are rotated and attend.

    `forward` brings what a caller may give into one form; `attend` is the arithmetic with static
    shapes that is left.
    """

    config: LlamaConfig
    layer_idx: int
    head_dim: int
    scaling: float
    attention_dropout: float
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        self.masks = MaskBuilder(config.attention_mask_fill_value)
        points = ["hidden", "cos", "sin", "attn_mask"]
        points += [f"{states}_{point}" for states in "qk" for point in ROPE_POINTS]
        points += ["new_k", "new_v", "present_key", "present_value"]
        points += ["logits", "mask_add", "softmax", "attn_out", "attn_weights", "attn_out_h"]
        for point in points:
            self._add_point(point)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends as `LlamaAttention.forward`, which see.

        Args:
            hidden_states: [B, query, hidden].
            position_embeddings: cos and sin, each [B or 1, query, head_dim].
            attention_mask: any kind that `MaskBuilder` takes; None is causal.
            past_key_values: any kind that `as_cache` takes; the new keys and values go into it.
            **kwargs: not used, as in the float model.

        Returns:
            The output [B, query, hidden], and the weights [B, heads, query, key] where the
            configured implementation returns them (`eager`), else None.

        Raises:
            InputError: no position embeddings, or a mask or cache of no known kind.
        """
        cos, sin = _tables(position_embeddings, type(self))
        cache = as_cache(past_key_values)
        mask = _additive_mask(self.masks, attention_mask, hidden_states, cache, self.layer_idx)
        return self.attend(
            hidden_states,
            cos,
            self._sine_table(sin),
            mask,
            cache,
            exact_mask=None if self.mode is Mode.QUANT else self.masks.exact(mask),
            hidden_rows=self.masks.hidden_rows(mask).squeeze(1),
        )

    def attend(
        self,
        hidden_states: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        cache: KeyValueCache | None = None,
        *,
        exact_mask: Tensor | None = None,
        hidden_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends, given everything in the form that the arithmetic uses.

        Args:
            hidden_states: [B, query, hidden].
            cos: [B or 1, query, head_dim].
            sin: the same, in the form of this variant.
            mask: additive within [fill value, 0], [B or 1, 1, query, key].
            cache: where the new keys and values go, and the earlier ones come from.
            exact_mask: what is added in place of the mask, for when nothing is quantised; see
                `MaskBuilder.exact`.
            hidden_rows: which queries may look at nothing, [B or 1, query, 1]; None if it does
                not matter what such a query gets.
        """
        hidden = self._quantize(hidden_states, "hidden")
        cos, sin = self._quantize(cos, "cos"), self._quantize(sin, "sin")
        mask = self._quantize(mask, "attn_mask")
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        if hidden_rows is not None:
            # A query of zeros looks at all keys alike, if all are masked alike.
            query = query.masked_fill(hidden_rows, 0.0)
        result = self._attend_heads(query, key, value, cos, sin, mask, exact_mask, cache)
        output = result.output
        if hidden_rows is not None and not self._eager:
            output = output.masked_fill(hidden_rows, 0.0)
        return self.o_proj(output), result.weights if self._eager else None

    @property
    def _eager(self) -> bool:
        # What transformers takes for an attention of its own outside any model.
        implementation: str | None = self.config._attn_implementation
        return implementation in (None, "eager")

    @abstractmethod
    def _sine_table(self, sin: Tensor) -> Tensor:
        """The float model's sine table in the form of this variant."""

    @abstractmethod
    def _attend_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        exact_mask: Tensor | None,
        cache: KeyValueCache | None,
    ) -> AttentionResult:
        """From the projections, each [B, query, heads * head_dim], to what o_proj takes."""

    def _options(self, mask: Tensor, exact_mask: Tensor | None) -> dict[str, Any]:
        calibrating = self.mode is Mode.CALIBRATE
        return {
            "mask": mask if exact_mask is None else exact_mask,
            "observed_mask": mask if calibrating else None,
            "quantize": self._quantize,
            "dropout": self.attention_dropout if self.training else 0.0,
            # Every point is observed, whether its result is asked for or not.
            "keep_weights": calibrating or self._eager,
        }

    def _rope_point(self, states: str, x: Tensor, name: str, *, owned: bool = False) -> Tensor:
        return self._quantize(x, f"{states}_{name}", owned=owned)


@register(LlamaAttention, variant="prefill")
class QuantLlamaAttentionPrefill(QuantLlamaAttention):
    """Attention as an accelerator computes it, head by head."""

    k_proj: QuantLinear

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        if not isinstance(self.k_proj, QuantLinear):
            raise WrapError(
                f"{config.scope}.k_proj is a {type(self.k_proj).__name__}, into which the factor "
                "on the logits cannot be folded; give a model whose k_proj is an nn.Linear "
                "(merge adapters, dequantise), or use the variant 'prefill_reference'"
            )
        self.k_proj.fold_output_scale(self.scaling)

    def _sine_table(self, sin: Tensor) -> Tensor:
        return negate_first_half(sin)

    def _attend_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        exact_mask: Tensor | None,
        cache: KeyValueCache | None,
    ) -> AttentionResult:
        rotate_q = partial(self._rope_point, "q")
        rotate_k = partial(self._rope_point, "k")
        queries = [rotate(head, cos, sin, swap, rotate_q) for head in self._heads(query)]
        keys = [rotate(head, cos, sin, swap, rotate_k) for head in self._heads(key)]
        keys = [self._quantize(head, "new_k", owned=True) for head in keys]
        values = [self._quantize(head, "new_v") for head in self._heads(value)]
        if cache is not None:
            unscaled = ScaledKeys(cache, self.k_proj.output_scale)
            all_keys, all_values = unscaled.update(
                torch.stack(keys, dim=1), torch.stack(values, dim=1), self.layer_idx
            )
            keys, values = list(all_keys.unbind(1)), list(all_values.unbind(1))
        keys = [self._quantize(head, "present_key") for head in keys]
        values = [self._quantize(head, "present_value") for head in values]
        return attend_by_head(queries, keys, values, **self._options(mask, exact_mask))

    def _heads(self, states: Tensor) -> list[Tensor]:
        # [B, query, heads * head_dim] -> heads times [B, query, head_dim]
        starts = range(0, states.shape[-1], self.head_dim)
        return [states[..., start : start + self.head_dim] for start in starts]


@register(LlamaAttention, variant="prefill_reference")
class QuantLlamaAttentionPrefillReference(QuantLlamaAttention):
    """Attention with all heads at once, for fast evaluation."""

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        self._add_point("logits_raw")
        self._add_point("scale")

    def _sine_table(self, sin: Tensor) -> Tensor:
        return sin

    def _attend_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor,
        exact_mask: Tensor | None,
        cache: KeyValueCache | None,
    ) -> AttentionResult:
        query, key, value = self._heads(query), self._heads(key), self._heads(value)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        query = rotate(query, cos, sin, negate_and_swap, partial(self._rope_point, "q"))
        key = rotate(key, cos, sin, negate_and_swap, partial(self._rope_point, "k"))
        key = self._quantize(key, "new_k", owned=True)
        value = self._quantize(value, "new_v")
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        key = self._quantize(key, "present_key")
        value = self._quantize(value, "present_value")
        options = self._options(mask, exact_mask)
        return attend_batched(query, key, value, scaling=self.scaling, **options)

    def _heads(self, states: Tensor) -> Tensor:
        # [B, query, heads * head_dim] -> [B, heads, query, head_dim]
        heads = states.shape[-1] // self.head_dim
        return states.view(*states.shape[:-1], heads, self.head_dim).transpose(1, 2)


@register(LlamaDecoderLayer)
class QuantLlamaDecoderLayer(QuantModule, LlamaDecoderLayer):  # type: ignore[misc]
    """Attention and MLP, each on a normalised input and added to what came in."""

    self_attn: QuantLlamaAttention
    mlp: nn.Module
    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        self.masks = MaskBuilder(config.attention_mask_fill_value)
        for point in ("attn_mask", "cos", "sin", "attn_residual_out", "mlp_residual_out"):
            self._add_point(point)

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
        """[B, query, hidden] to the same; see `QuantLlamaAttention.forward` for the arguments."""
        cache = as_cache(past_key_values)
        mask = _additive_mask(
            self.masks, attention_mask, hidden_states, cache, self.self_attn.layer_idx
        )
        cos, sin = _tables(position_embeddings, type(self))
        residual = hidden_states
        hidden_states, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=self._quantize(mask, "attn_mask"),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache,
            position_embeddings=(self._quantize(cos, "cos"), self._quantize(sin, "sin")),
            **kwargs,
        )
        residual = self._quantize(residual + hidden_states, "attn_residual_out", owned=True)
        hidden_states = self.mlp(self.post_attention_layernorm(residual))
        return self._quantize(residual + hidden_states, "mlp_residual_out", owned=True)


@register(LlamaModel)
class QuantLlamaModel(QuantModule, LlamaModel):  # type: ignore[misc]
    """Embedding, mask and rope tables once for all layers, the layers, the final norm."""

    config: LlamaConfig
    embed_tokens: nn.Module
    rotary_emb: nn.Module
    layers: nn.ModuleList
    norm: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        # transformers notes for each class, when it is constructed, which outputs its models can
        # record (output_hidden_states and the like); wrappers are not constructed. Early releases
        # of version 5 keep a plain dict with the class's name as key.
        by_name = type(_CAN_RECORD_REGISTRY) is dict
        _CAN_RECORD_REGISTRY[str(type(self)) if by_name else self] = self._can_record_outputs
        self.masks = MaskBuilder(config.attention_mask_fill_value)
        for point in ("causal_mask", "cos", "sin"):
            self._add_point(point)

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
            inputs_embeds: [B, query, hidden], in place of `input_ids`.
            use_cache: whether to make a cache where none is given.
            **kwargs: handed on to the layers.

        Raises:
            InputError: both or neither of `input_ids` and `inputs_embeds`, or a mask or cache of
                no known kind.
        """
        if (input_ids is None) == (inputs_embeds is None):
            found = "neither" if input_ids is None else "both"
            raise InputError(f"found {found} of input_ids and inputs_embeds; give exactly one")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = as_cache(past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        causal = getattr(self.config, "is_causal", True)
        if position_ids is None:
            past_length = 0 if cache is None else cache.get_seq_length()
            position_ids = torch.arange(hidden_states.shape[1], device=hidden_states.device)
            position_ids = (position_ids + past_length).unsqueeze(0)
        elif attention_mask is None and cache is None and causal:
            attention_mask = packed_sequences(position_ids)
        mask = _additive_mask(self.masks, attention_mask, hidden_states, cache, causal=causal)
        cos, sin = self.rotary_emb(hidden_states, position_ids=position_ids)
        mask = self._quantize(mask, "causal_mask")
        tables = self._quantize(cos, "cos"), self._quantize(sin, "sin")
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


@register(LlamaForCausalLM)
class QuantLlamaForCausalLM(QuantModule, LlamaForCausalLM):  # type: ignore[misc]
    """The model and its head, which have all the points: its forward is the float model's."""


def _additive_mask(
    masks: MaskBuilder,
    attention_mask: Tensor | None,
    hidden_states: Tensor,
    cache: KeyValueCache | None,
    layer_idx: int = 0,
    *,
    causal: bool = True,
) -> Tensor:
    batch_size, query_length = hidden_states.shape[:2]
    extent = cache_extent(cache, query_length, layer_idx)
    return masks.additive(
        attention_mask,
        batch_size=batch_size,
        query_length=query_length,
        past_length=extent.past_length,
        key_length=extent.key_length,
        dtype=hidden_states.dtype,
        device=hidden_states.device,
        causal=causal,
    )


def _tables(
    position_embeddings: tuple[Tensor, Tensor] | None, called: type
) -> tuple[Tensor, Tensor]:
    if position_embeddings is None:
        raise InputError(
            f"{called.__name__} was called without position_embeddings; give the pair (cos, sin) "
            "that the model's rotary_emb returns"
        )
    return position_embeddings
