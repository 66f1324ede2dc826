"""Qwen3-VL, text: MLP, attention, decoder layer and text model, for prefill and decode.

The attention's variants are those of `wrappers.attention.causal`, with a norm over each head of the
queries and keys. Where the factor on the logits is folded, it is therefore folded into k_norm: in
k_proj, the norm after it would take it out again.

The text model adds the features of the vision model's inner blocks (deepstack) to the hidden
states after its first layers, at the positions of images and videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, Qwen3VLTextConfig
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextAttention,
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextMLP,
    Qwen3VLTextModel,
    Qwen3VLTextRMSNorm,
)

from wrappers.attention.cache import KeyValueCache, as_cache
from wrappers.attention.causal import (
    AttentionInputs,
    BatchedAttention,
    CausalAttention,
    DecodeAttention,
    HeadByHeadAttention,
)
from wrappers.attention.masks import MaskBuilder, model_mask, quantized_mask
from wrappers.attention.rope import RotateHalf, negate_and_swap_observed, quantized_tables
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.point import Mode, Quantize
from wrappers.core.registry import register
from wrappers.core.transformers_compat import (
    capture_outputs,
    merge_with_config_defaults,
    note_recordable_outputs,
)
from wrappers.errors import ConfigError, ModelInputError
from wrappers.layers.decoder_blocks import DecoderLayer, GatedMLP, embedded, next_positions
from wrappers.layers.norms import TransformersRMSNorm

DEEPSTACK_LAYERS = "deepstack_layers"
"""The key of `PTQConfig.model_args`: after how many of its layers the text model takes features."""


@register(Qwen3VLTextRMSNorm)
class QuantQwen3VLTextRMSNorm(TransformersRMSNorm, Qwen3VLTextRMSNorm):  # type: ignore[misc]
    """Qwen3-VL's root mean square norm, over hidden states or over each head."""


@register(Qwen3VLTextMLP)
class QuantQwen3VLTextMLP(GatedMLP, Qwen3VLTextMLP):  # type: ignore[misc]
    """down_proj(act_fn(gate_proj(x)) * up_proj(x))."""

    product_point = "gated_out"

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        self._add_point("act_out")

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] to [..., hidden]."""
        return self.quantize(super().forward(x), "act_out")


class NormalisedHeads(CausalAttention):
    """Attention whose queries and keys are normalised, each head by itself."""

    q_norm: nn.Module
    k_norm: nn.Module

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query = self._normalised(self.q_norm, self.q_proj(hidden))
        key = self._normalised(self.k_norm, self.k_proj(hidden))
        return query, key, self.v_proj(hidden)

    def _normalised(self, norm: nn.Module, states: Tensor) -> Tensor:
        # The norm sees [B, query, heads, head_dim], as in the float model; both are views.
        heads: Tensor = norm(states.unflatten(-1, (-1, self.head_dim)))
        return heads.flatten(-2)


@register(Qwen3VLTextAttention, variant="prefill")
class QuantQwen3VLTextAttentionPrefill(
    NormalisedHeads,
    HeadByHeadAttention,
    Qwen3VLTextAttention,  # type: ignore[misc]
):
    """Head by head, with the factor on the logits folded into k_norm."""

    keys_from = "k_norm"


@register(Qwen3VLTextAttention, variant="prefill_reference")
class QuantQwen3VLTextAttentionPrefillReference(
    NormalisedHeads,
    BatchedAttention,
    Qwen3VLTextAttention,  # type: ignore[misc]
):
    """All heads at once."""

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        self._add_points("q_neg", "k_neg")

    def _rotate_half(self, quantize: Quantize) -> RotateHalf:
        return negate_and_swap_observed(quantize)


@register(Qwen3VLTextAttention, variant="decode")
class QuantQwen3VLTextAttentionDecode(
    NormalisedHeads,
    DecodeAttention,
    Qwen3VLTextAttention,  # type: ignore[misc]
):
    """Head by head over a cache, with the factor on the logits folded into k_norm."""

    keys_from = "k_norm"


@register(Qwen3VLTextDecoderLayer)
class QuantQwen3VLTextDecoderLayer(DecoderLayer, Qwen3VLTextDecoderLayer):  # type: ignore[misc]
    """Attention and MLP, each on a normalised input and added to what came in."""

    residual_points = ("post_attn", "act_out")

    def _setup(self, config: PTQConfig) -> None:
        self._add_points("act_in", *self.residual_points)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        **kwargs: Any,
    ) -> Tensor:
        """[B, query, hidden] to the same; see `CausalAttention.forward` for the arguments."""
        attend = partial(
            self._attend,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        return self._residual_blocks(self.quantize(hidden_states, "act_in"), attend)

    def step(self, hidden_states: Tensor, inputs: AttentionInputs) -> Tensor:
        """As a graph for an accelerator does it."""
        attend = partial(self.self_attn.step, inputs=inputs)
        return self._residual_blocks(self.quantize(hidden_states, "act_in"), attend)


@register(Qwen3VLTextModel)
class QuantQwen3VLTextModel(QuantModule, Qwen3VLTextModel):  # type: ignore[misc]
    """Embedding, mask and rope tables once for all layers, the layers with the visual features
    added after the first of them, the final norm.

    `PTQConfig.model_args["deepstack_layers"]` says how many layers those are: 0 unless it is
    wrapped as part of a whole Qwen3-VL, which knows.
    """

    config: Qwen3VLTextConfig
    embed_tokens: nn.Module
    rotary_emb: nn.Module
    layers: nn.ModuleList
    norm: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        note_recordable_outputs(self)
        self.masks = MaskBuilder(config.attention_mask_fill_value)
        self.deepstack_layers = _deepstack_layers(config, len(self.layers))
        self._add_points("inputs_embeds", "attention_mask", "cos", "sin")
        for i in range(self.deepstack_layers):
            self._add_points(f"deepstack_visual_embeds_{i}", f"deepstack_sum_{i}")

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
        visual_pos_masks: Tensor | None = None,
        deepstack_visual_embeds: Sequence[Tensor] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As `Qwen3VLTextModel.forward`.

        Args:
            input_ids: [B, query].
            attention_mask: any kind that `MaskBuilder` takes.
            position_ids: [B or 1, query]; [3, B or 1, query] with times, rows and columns, or
                [1, B or 1, query] for all three; or [4, B or 1, query] with the positions in the
                text before these. By default they go on after the cached positions. Without a
                mask and a cache, positions in the text that start again begin another sequence.
            past_key_values: any kind that `as_cache` takes.
            inputs_embeds: [B, query, hidden], instead of `input_ids`.
            use_cache: whether to make a cache where none is given.
            visual_pos_masks: which positions are images or videos, bool [B, query].
            deepstack_visual_embeds: for each of the first layers the features to add at those
                positions: [visual positions, hidden], in their order; or, for graphs with static
                shapes, [B, query, hidden] with anything at the other positions.
            **kwargs: passed on to the layers.

        Raises:
            ModelInputError: both or neither of `input_ids` and `inputs_embeds`; a mask or cache of
                no known kind; visual features without their positions, for more layers than
                configured, or of another number than positions.
        """
        hidden_states = embedded(self.embed_tokens, input_ids, inputs_embeds)
        hidden_states = self.quantize(hidden_states, "inputs_embeds")
        features = self._checked_features(visual_pos_masks, deepstack_visual_embeds)
        cache = as_cache(past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        text_positions, positions = _positions(position_ids, hidden_states, cache)
        given = None if position_ids is None else text_positions
        mask = model_mask(self.masks, self.config, attention_mask, given, hidden_states, cache)
        cos, sin = self.rotary_emb(hidden_states, positions)
        mask = quantized_mask(self, "attention_mask", mask)
        tables = quantized_tables(self, self.layers[0].self_attn, (cos, sin))
        for i, layer in enumerate(self.layers):
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_ids=text_positions,
                past_key_values=cache,
                position_embeddings=tables,
                **kwargs,
            )
            if visual_pos_masks is not None and i < len(features):
                hidden_states = self._add_features(
                    hidden_states, visual_pos_masks.to(hidden_states.device), features[i], i
                )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=cache
        )

    def step(
        self,
        hidden_states: Tensor,
        inputs: AttentionInputs,
        visual_pos_masks: Tensor | None = None,
        deepstack_visual_embeds: Sequence[Tensor] = (),
    ) -> Tensor:
        """From embeddings to the final norm, as a graph for an accelerator does it.

        Args:
            hidden_states: embeddings with the visual features in their places.
            inputs: of the attention.
            visual_pos_masks: which positions are images or videos, bool [B, query].
            deepstack_visual_embeds: for each of the first layers [B, query, hidden].
        """
        features = self._checked_features(visual_pos_masks, deepstack_visual_embeds)
        hidden_states = self.quantize(hidden_states, "inputs_embeds")
        inputs = inputs.quantized(self, "attention_mask")
        for i, layer in enumerate(self.layers):
            hidden_states = layer.step(hidden_states, inputs)  # type: ignore[operator]
            if visual_pos_masks is not None and i < len(features):
                hidden_states = self._add_features(hidden_states, visual_pos_masks, features[i], i)
        normalised: Tensor = self.norm(hidden_states)
        return normalised

    def _checked_features(
        self, visual_pos_masks: Tensor | None, features: Sequence[Tensor] | None
    ) -> Sequence[Tensor]:
        features = () if features is None else features
        if len(features) > 0 and visual_pos_masks is None:
            raise ModelInputError(
                f"found deepstack_visual_embeds for {len(features)} layers without "
                "visual_pos_masks; give the positions that they belong to, bool [batch, sequence]"
            )
        # Features beyond the last layer have no place, in the float model either.
        if min(len(features), len(self.layers)) > self.deepstack_layers:
            raise ModelInputError(
                f"found deepstack_visual_embeds for {len(features)} layers, and the text model is "
                f"wrapped for {self.deepstack_layers}; wrap the whole model, or give "
                f"PTQConfig(model_args={{{DEEPSTACK_LAYERS!r}: {len(features)}}})"
            )
        return features

    def _add_features(
        self, hidden_states: Tensor, positions: Tensor, features: Tensor, index: int
    ) -> Tensor:
        # hidden_states: [B, query, hidden]; positions: [B, query]
        features = features.to(hidden_states.device, hidden_states.dtype)
        visual = positions.unsqueeze(-1)
        if features.ndim == 2:
            if not torch.compiler.is_compiling() and len(features) != int(positions.sum()):
                raise ModelInputError(
                    f"found deepstack_visual_embeds of {len(features)} positions for layer "
                    f"{index}, and visual_pos_masks with {int(positions.sum())}; give one row for "
                    "each position of an image or video"
                )
            features = torch.zeros_like(hidden_states).masked_scatter(visual, features)
        features = self._quantize_at(positions, features, f"deepstack_visual_embeds_{index}")
        total = hidden_states + features
        total = self._quantize_at(positions, total, f"deepstack_sum_{index}", may_overwrite=True)
        return torch.where(visual, total, hidden_states)

    def _quantize_at(
        self, positions: Tensor, x: Tensor, point: str, *, may_overwrite: bool = False
    ) -> Tensor:
        # An observer sees only what counts. All of it is fake-quantised, since a shape that
        # depends on data could not be exported; what does not count is not used.
        if self.mode is Mode.CALIBRATE:
            self.quantize(x[positions], point)
            return x
        return self.quantize(x, point, may_overwrite=may_overwrite)


def _deepstack_layers(config: PTQConfig, layers: int) -> int:
    count = config.model_args.get(DEEPSTACK_LAYERS, 0)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= layers:
        raise ConfigError(
            f"model_args[{DEEPSTACK_LAYERS!r}] is {count!r}: expected how many of the "
            f"{layers} layers of the text model are followed by visual features"
        )
    return count


def _positions(
    position_ids: Tensor | None, hidden_states: Tensor, cache: KeyValueCache | None
) -> tuple[Tensor | None, Tensor]:
    """Positions in the text, [B or 1, query] or None; those of rope, [3 or 1, B or 1, query]."""
    if position_ids is None:
        positions = next_positions(hidden_states, cache)
        position_ids = positions.unsqueeze(0).expand(hidden_states.shape[0], -1)
    if position_ids.ndim == 2:
        return position_ids, position_ids.expand(3, *position_ids.shape)
    if position_ids.ndim == 3 and position_ids.shape[0] == 4:
        return position_ids[0], position_ids[1:]
    if position_ids.ndim == 3 and position_ids.shape[0] in (1, 3):
        return None, position_ids
    raise ModelInputError(
        f"found position_ids of shape {list(position_ids.shape)}; expected [batch, sequence], or "
        "3 of these: time, row and column, perhaps with the positions in the text before them; "
        "or 1 that stands for all three"
    )
