"""Causal attention in each variant, which the text decoders of all families share.

| | `prefill` | `prefill_reference` |
|---|---|---|
| class | `HeadByHeadAttention` | `BatchedAttention` |
| heads | one by one, sliced out of the projections | all at once |
| shared key/value heads | used again | as `repeat_interleave` would expand them |
| 1 / sqrt(head_dim) | folded into what makes the keys | applied to the logits |
| rotate-half | (x2, x1), sine table half negated | (-x2, x1) |

`decode` is `DecodeAttention`: as `prefill`, and what was cached before has points of its own.

A family's wrapper mixes one of the two in front of its float class. The module that the factor is
folded into reads its output back by `to_reference_output`. A cache holds keys without the factor.

A query that may look at nothing (padding on the left) gets what the model's attention
implementation makes of its own masks: the mean of all values in `eager`, zero in the others. Adding
a finite fill value to the whole row would give neither.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from wrappers.attention.cache import (
    KeyValueCache,
    PartKind,
    RoundedPast,
    ScaledKeys,
    StepCache,
    as_cache,
    update_in_parts,
)
from wrappers.attention.core import (
    AttentionOptions,
    AttentionResult,
    attend_batched,
    attend_by_head,
)
from wrappers.attention.masks import MaskBuilder, additive_mask, quantized_mask
from wrappers.attention.rope import (
    ROPE_POINTS,
    RotateHalf,
    negate_and_swap,
    negate_first_half,
    rope_tables,
    rotate,
    swap,
)
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.point import Mode, Quantize
from wrappers.core.quantizers import is_monotone
from wrappers.core.scaled_output import ScaledOutput
from wrappers.core.transformers_compat import attends_eagerly
from wrappers.errors import WrapError


@dataclass(frozen=True)
class AttentionInputs:
    """What attention takes besides hidden states, in the form that the arithmetic uses.

    Attributes:
        cos: [B or 1, query, head_dim].
        sin: the same, in the form of the variant.
        mask: additive within [fill value, 0], [B or 1, 1, query, key].
        cache: where the new keys and values go, and the earlier ones come from.
        exact_mask: what is added instead of the mask, for when nothing is quantised; see
            `MaskBuilder.exact`.
        hidden_rows: which queries may look at nothing, [B or 1, query, 1]; None if it does not
            matter what such a query gets.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor
    cache: KeyValueCache | None = None
    exact_mask: Tensor | None = None
    hidden_rows: Tensor | None = None

    def quantized(self, module: QuantModule, mask_point: str) -> AttentionInputs:
        """These inputs after the points of a module: cos, sin and that of the mask."""
        return replace(
            self,
            cos=module.quantize(self.cos, "cos"),
            sin=module.quantize(self.sin, "sin"),
            mask=quantized_mask(module, mask_point, self.mask),
        )


class CausalAttention(QuantModule):
    """What all variants of the attention share; a variant says how heads are rotated and attend.

    `forward` brings what a caller may give into one form; `attend` is the arithmetic with static
    shapes that is left.
    """

    config: PreTrainedConfig
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
        self._add_points(*points)
        for name, spec in () if config.kv_cache is None else config.kv_cache.specs().items():
            self._add_point(name, role="cache", default=spec)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attends as the float class does.

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
            ModelInputError: no position embeddings, or a mask or cache of no known kind.
        """
        cos, sin = rope_tables(position_embeddings, type(self))
        cache = as_cache(past_key_values)
        mask = additive_mask(self.masks, attention_mask, hidden_states, cache, self.layer_idx)
        inputs = AttentionInputs(
            cos,
            self.sine_table(sin),
            mask,
            cache,
            exact_mask=None if self.mode is Mode.QUANT else self.masks.exact(mask),
            hidden_rows=self.masks.hidden_rows(mask).squeeze(1),
        )
        return self.attend(hidden_states, inputs)

    def attend(
        self, hidden_states: Tensor, inputs: AttentionInputs
    ) -> tuple[Tensor, Tensor | None]:
        """Attends, given everything in the form that the arithmetic uses.

        Args:
            hidden_states: [B, query, hidden].
            inputs: everything else.
        """
        hidden = self.quantize(hidden_states, "hidden")
        inputs = inputs.quantized(self, "attn_mask")
        query, key, value = self._project(hidden)
        hidden_rows = inputs.hidden_rows
        if hidden_rows is not None:
            # A query of zeros looks at all keys alike, if all are masked alike.
            query = query.masked_fill(hidden_rows, 0.0)
        result = self._attend_heads(query, key, value, inputs)
        output = result.output
        if hidden_rows is not None and not attends_eagerly(self.config):
            output = output.masked_fill(hidden_rows, 0.0)
        return self.o_proj(output), result.weights if attends_eagerly(self.config) else None

    def step(self, hidden_states: Tensor, inputs: AttentionInputs) -> Tensor:
        """Attends as a graph for an accelerator does, see `attend`."""
        output, _ = self.attend(hidden_states, inputs)
        return output

    def _through_points(self, cache: KeyValueCache) -> KeyValueCache:
        """A cache whose past is rounded, unless that is done where it is kept."""
        if "kv_key" not in self.points or isinstance(cache, StepCache):
            return cache
        return RoundedPast(cache, self.quantize)

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values before rotation, each [B, query, heads * head_dim]."""
        return self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)

    @abstractmethod
    def sine_table(self, sin: Tensor) -> Tensor:
        """The float model's sine table in the form of this variant, or the other way round."""

    @abstractmethod
    def _attend_heads(
        self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs
    ) -> AttentionResult:
        """From the projections, each [B, query, heads * head_dim], to what o_proj takes."""

    def _options(self, inputs: AttentionInputs) -> AttentionOptions:
        calibrating = self.mode is Mode.CALIBRATE
        return AttentionOptions(
            quantize=self.quantize,
            mask=inputs.mask if inputs.exact_mask is None else inputs.exact_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            observed_masks=self.masks.to_observe(inputs.mask) if calibrating else (),
            # Every point is observed, whether its result is asked for or not.
            keep_weights=calibrating or attends_eagerly(self.config),
        )

    def _rope_point(
        self, states: str, x: Tensor, name: str, *, may_overwrite: bool = False
    ) -> Tensor:
        return self.quantize(x, f"{states}_{name}", may_overwrite=may_overwrite)


class HeadByHeadAttention(CausalAttention):
    """Attention as an accelerator computes it, head by head."""

    keys_from: ClassVar[str] = "k_proj"
    """The child that makes the keys, last before they are rotated, and takes the factor."""

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        keys = getattr(self, self.keys_from)
        if not isinstance(keys, ScaledOutput):
            raise WrapError(
                f"{config.scope}.{self.keys_from} is a {type(keys).__name__}, into which the "
                "factor on the logits cannot be folded; give a model where it is the float "
                "model's own class (merge adapters, dequantise), or use the variant "
                "'prefill_reference'"
            )
        if keys.output_scale == 1.0:  # else it is shared with a layer before
            keys.fold_output_scale(self.scaling)
        self.key_factor = keys.output_scale

    def sine_table(self, sin: Tensor) -> Tensor:
        return negate_first_half(sin)

    def _attend_heads(
        self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs
    ) -> AttentionResult:
        cos, sin, cache = inputs.cos, inputs.sin, inputs.cache
        rotate_q = partial(self._rope_point, "q")
        rotate_k = partial(self._rope_point, "k")
        queries = [rotate(head, cos, sin, swap, rotate_q) for head in self._heads(query)]
        keys = [rotate(head, cos, sin, swap, rotate_k) for head in self._heads(key)]
        keys = [self.quantize(head, "new_k", may_overwrite=True) for head in keys]
        values = [self.quantize(head, "new_v") for head in self._heads(value)]
        if cache is None:
            keys = [self.quantize(head, "present_key") for head in keys]
            values = [self.quantize(head, "present_value") for head in values]
        else:
            holds_factor = isinstance(cache, StepCache)
            all_keys, all_values = self._updated(
                self._through_points(cache if holds_factor else ScaledKeys(cache, self.key_factor)),
                torch.stack(keys, dim=1),
                torch.stack(values, dim=1),
            )
            # Before the heads are taken apart: past and new, joined, have a range of their own.
            keys = list(self.quantize(all_keys, "present_key").unbind(1))
            values = list(self.quantize(all_values, "present_value").unbind(1))
        return attend_by_head(queries, keys, values, self._options(inputs))

    def _updated(self, cache: KeyValueCache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, from new ones, each [B, kv_heads, query, head_dim]."""
        return cache.update(keys, values, self.layer_idx)

    def _heads(self, states: Tensor) -> list[Tensor]:
        # [B, query, heads * head_dim] -> heads times [B, query, head_dim]
        starts = range(0, states.shape[-1], self.head_dim)
        return [states[..., start : start + self.head_dim] for start in starts]


class DecodeAttention(HeadByHeadAttention):
    """Attention of new positions, one or more, over a cache: what was cached before has points of
    its own, since it comes into a decode graph from outside."""

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        self._add_points("past_key", "past_value")

    def _updated(self, cache: KeyValueCache, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        all_keys, all_values = [], []
        for part in update_in_parts(cache, keys, values, self.layer_idx):
            past = part.kind is PartKind.PAST
            all_keys.append(self.quantize(part.key, "past_key") if past else part.key)
            all_values.append(self.quantize(part.value, "past_value") if past else part.value)
        return torch.cat(all_keys, dim=2), torch.cat(all_values, dim=2)


class BatchedAttention(CausalAttention):
    """Attention with all heads at once, for fast evaluation."""

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        self._add_points("logits_raw", "scale")

    def sine_table(self, sin: Tensor) -> Tensor:
        return sin

    def _attend_heads(
        self, query: Tensor, key: Tensor, value: Tensor, inputs: AttentionInputs
    ) -> AttentionResult:
        query, key, value = self._heads(query), self._heads(key), self._heads(value)
        cos, sin = inputs.cos.unsqueeze(1), inputs.sin.unsqueeze(1)
        query = self._rotate(query, cos, sin, "q")
        key = self._rotate(key, cos, sin, "k")
        key = self.quantize(key, "new_k", may_overwrite=True)
        value = self.quantize(value, "new_v")
        if inputs.cache is not None:
            cache = self._through_points(inputs.cache)
            key, value = cache.update(key, value, self.layer_idx)
        key = self.quantize(key, "present_key")
        value = self.quantize(value, "present_value")
        # What is counted is counted for hidden keys too.
        monotone = all(
            is_monotone(point.quantizer) and not point.counting for point in self.points.values()
        )
        options = replace(self._options(inputs), scaling=self.scaling, monotone=monotone)
        return attend_batched(query, key, value, options)

    def _rotate(self, states: Tensor, cos: Tensor, sin: Tensor, name: str) -> Tensor:
        quantize = partial(self._rope_point, name)
        return rotate(states, cos, sin, self._rotate_half(quantize), quantize)

    def _rotate_half(self, quantize: Quantize) -> RotateHalf:
        return negate_and_swap

    def _heads(self, states: Tensor) -> Tensor:
        # [B, query, heads * head_dim] -> [B, heads, query, head_dim]
        heads = states.shape[-1] // self.head_dim
        return states.view(*states.shape[:-1], heads, self.head_dim).transpose(1, 2)
