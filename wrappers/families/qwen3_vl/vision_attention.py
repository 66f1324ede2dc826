"""Qwen3-VL, vision: attention within each frame of an image or video.

| | `prefill` | `prefill_reference` |
|---|---|---|
| heads | one by one, sliced out of the fused projection | all at once |
| rotate-half | (x2, x1), sine table half negated | (-x2, x1) |

`decode` is as `prefill`: a decode model reads the images of further turns.

In both the factor 1 / sqrt(head_dim) is applied to the logits. In the text model `prefill` folds it
into what makes the keys; here queries, keys and values come out of one projection, whose output has
one range, and keys shrunk by a factor would be left with a fraction of its steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention

from wrappers.attention.core import AttentionOptions, attend_batched, attend_by_head
from wrappers.attention.rope import (
    ROPE_POINTS,
    RotateHalf,
    negate_and_swap_observed,
    negate_first_half,
    rope_tables,
    rotate,
    swap,
)
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule
from wrappers.core.point import Mode, Quantize
from wrappers.core.registry import register
from wrappers.errors import ModelInputError
from wrappers.families.qwen3_vl.grids import GRID_THW, fixed_grids, segment_lengths


class VisionAttention(QuantModule):
    """What both variants of the attention share; a variant says how heads are rotated and attend.

    Patches attend to those of their own segment only: a frame of an image or video.
    """

    config: Qwen3VLVisionConfig
    num_heads: int
    head_dim: int
    scaling: float
    attention_dropout: float
    qkv: nn.Module
    proj: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        grids = fixed_grids(config, self.config.spatial_merge_size)
        self.fixed_segments = None if grids is None else segment_lengths(grids)
        points = ["hidden", "cos", "sin"]
        points += [f"{states}_{point}" for states in "qk" for point in ROPE_POINTS]
        points += ["logits_raw", "scale", "logits", "softmax", "attn_out", "attn_out_h"]
        self._add_points(*points)

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Attends as the float class does.

        Args:
            hidden_states: [patches, hidden].
            cu_seqlens: where segments begin and end, integers [segments + 1]; not needed where
                the config fixes the grids.
            position_embeddings: cos and sin, each [patches, head_dim].
            **kwargs: not used: what the float model passes to other implementations of attention.

        Returns:
            [patches, hidden].

        Raises:
            ModelInputError: no position embeddings, or segments that do not fit the patches or the
                grids of the config.
        """
        cos, sin = rope_tables(position_embeddings, type(self))
        lengths = self._segment_lengths(cu_seqlens, hidden_states.shape[0])
        hidden = self.quantize(hidden_states, "hidden")
        # Rotated in float32 whatever the model's type, as in the float model.
        cos = self.quantize(cos, "cos").float()
        sin = self.quantize(self._sine_table(sin), "sin").float()
        outputs = self._attend_segments(self.qkv(hidden).unsqueeze(0), cos, sin, lengths)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        projected: Tensor = self.proj(output.squeeze(0))
        return projected

    def _segment_lengths(self, cu_seqlens: Tensor | None, patches: int) -> list[int]:
        lengths = self.fixed_segments
        if lengths is None and cu_seqlens is None:
            raise ModelInputError(
                f"{type(self).__name__} was called without cu_seqlens, and no grids are fixed: "
                f"give either, the latter as PTQConfig(model_args={{{GRID_THW!r}: ...}})"
            )
        if cu_seqlens is not None and (lengths is None or not torch.compiler.is_compiling()):
            given = cu_seqlens.diff().tolist()
            if lengths not in (None, given):
                raise ModelInputError(
                    f"found cu_seqlens of segments of {given} patches, and the grids that "
                    f"model_args fixes have segments of {lengths}: prepare the model for these "
                    "grids, or without fixed ones"
                )
            lengths = given
        assert lengths is not None
        if sum(lengths) != patches or min(lengths, default=0) < 0:
            raise ModelInputError(
                f"found segments of {lengths} patches, {sum(lengths)} in all, and hidden states "
                f"of {patches}: expected cu_seqlens that rise from 0 to the number of patches"
            )
        return lengths

    @abstractmethod
    def _sine_table(self, sin: Tensor) -> Tensor:
        """The float model's sine table in the form of this variant."""

    @abstractmethod
    def _rotate_half(self, quantize: Quantize) -> RotateHalf:
        """How halves change places in this variant."""

    @abstractmethod
    def _attend_segments(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        """From the fused projection to what `proj` takes, for each segment.

        Args:
            qkv: queries, keys and values before rotation, [1, patches, 3 * heads * head_dim].
            cos: [patches, head_dim].
            sin: the same, in the form of this variant.
            lengths: patches of each segment.

        Returns:
            For each segment [1, its patches, heads * head_dim].
        """

    def _rotate(self, states: Tensor, cos: Tensor, sin: Tensor, prefix: str) -> Tensor:
        # states: [..., patches, head_dim]
        def quantize(x: Tensor, name: str, *, may_overwrite: bool = False) -> Tensor:
            return self.quantize(x, f"{prefix}_{name}", may_overwrite=may_overwrite)

        rotated = rotate(states.float(), cos, sin, self._rotate_half(quantize), quantize)
        return rotated.to(states.dtype)

    def _options(self) -> AttentionOptions:
        return AttentionOptions(
            quantize=self.quantize,
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            whole_tensors=self.mode is Mode.CALIBRATE,
            fold=self.mode is not Mode.QUANT,
        )


@register(Qwen3VLVisionAttention, variant="decode")
@register(Qwen3VLVisionAttention, variant="prefill")
class QuantQwen3VLVisionAttentionPrefill(VisionAttention, Qwen3VLVisionAttention):  # type: ignore[misc]
    """Head by head, as an accelerator computes it."""

    def _sine_table(self, sin: Tensor) -> Tensor:
        return negate_first_half(sin)

    def _rotate_half(self, quantize: Quantize) -> RotateHalf:
        return swap

    def _attend_segments(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        starts = range(0, qkv.shape[-1], self.head_dim)
        # First the heads of the queries, then those of the keys, then those of the values.
        heads = [qkv[..., start : start + self.head_dim] for start in starts]
        queries = [self._rotate(head, cos, sin, "q") for head in heads[: self.num_heads]]
        keys = [
            self._rotate(head, cos, sin, "k") for head in heads[self.num_heads : -self.num_heads]
        ]
        values = heads[-self.num_heads :]
        segments = (
            zip(*(_segments(head, lengths) for head in states), strict=True)
            for states in (queries, keys, values)
        )
        options = self._options()
        return [
            attend_by_head(query, key, value, options).output
            for query, key, value in zip(*segments, strict=True)
        ]


@register(Qwen3VLVisionAttention, variant="prefill_reference")
class QuantQwen3VLVisionAttentionPrefillReference(VisionAttention, Qwen3VLVisionAttention):  # type: ignore[misc]
    """All heads at once, for fast evaluation."""

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        self._add_points("q_neg", "k_neg")

    def _sine_table(self, sin: Tensor) -> Tensor:
        return sin

    def _rotate_half(self, quantize: Quantize) -> RotateHalf:
        return negate_and_swap_observed(quantize)

    def _attend_segments(
        self, qkv: Tensor, cos: Tensor, sin: Tensor, lengths: Sequence[int]
    ) -> list[Tensor]:
        # three times [1, heads, patches, head_dim]
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query = self._rotate(query, cos, sin, "q")
        key = self._rotate(key, cos, sin, "k")
        segments = [_segments(states, lengths) for states in (query, key, value)]
        options = self._options()
        return [
            attend_batched(query, key, value, options).output
            for query, key, value in zip(*segments, strict=True)
        ]


def _segments(states: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """[..., patches, head_dim] cut into the patches of each segment."""
    if len(lengths) == 1:
        return [states]
    ends = accumulate(lengths)
    return [states[..., end - length : end, :] for end, length in zip(ends, lengths, strict=True)]
