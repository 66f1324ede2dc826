"""Qwen3-VL, vision: patch embedding, attention, MLP, block, patch merger and vision model, for the
variants of prefill.

| | `prefill` | `prefill_reference` |
|---|---|---|
| patch embedding | a linear layer | a convolution |
| heads | one by one, sliced out of the fused projection | all at once |
| rotate-half | (x2, x1), sine table half negated | (-x2, x1) |

In both the factor 1 / sqrt(head_dim) is applied to the logits. In the text model `prefill` folds it
into what makes the keys; here queries, keys and values come out of one projection, whose output has
one range, and keys shrunk by a factor would be left with a fraction of its steps.

The modules call each other as transformers' do, with the same arguments, and with quantisation off
give the same numbers. With `PTQConfig(model_args={"grid_thw": [[1, 18, 28]]})` the grids are fixed:
what depends on them is constant, nothing is read back from a tensor, and `torch.export` captures
each module.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn
from transformers import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionAttention,
    Qwen3VLVisionBlock,
    Qwen3VLVisionMLP,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionPatchMerger,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from wrappers.attention.core import attend_batched, attend_by_head
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
from wrappers.core.module import QuantModule, Wrap
from wrappers.core.point import Mode, Quantize
from wrappers.core.registry import register
from wrappers.core.transformers_compat import note_recordable_outputs
from wrappers.errors import InputError, WrapError
from wrappers.families.qwen3_vl.grids import (
    GRID_THW,
    Grid,
    GridLayout,
    fixed_grids,
    given_grids,
    interpolated,
    rotation_tables,
    segment_lengths,
)
from wrappers.layers.linear import WeightedLayer


class LinearPatchProjection(WeightedLayer, nn.Conv3d):
    """A convolution whose kernel covers a patch once, as the linear layer that it then is."""

    reference_output_scale = 1.0  # its parameters are those of the convolution

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in the float class
        """[patches, in_channels * frames * height * width], in one dimension or more, to
        [patches, out_channels]."""
        x = self._quantize(input.flatten(1), "act_in")
        weight = self._quantize(self.weight, "weight").flatten(1)
        return self._quantize(F.linear(x, weight, self.bias), "act_out", may_overwrite=True)

    def to_reference_input(self, name: str, value: Tensor) -> Tensor:
        """The patches as the convolution takes them."""
        return value.view(-1, self.in_channels, *self.kernel_size)

    def to_reference_output(self, output: Tensor) -> Tensor:
        """The output as the convolution gives it, [patches, out_channels, 1, 1, 1]."""
        return output[..., None, None, None]


@register(Qwen3VLVisionPatchEmbed, variant="prefill")
class QuantQwen3VLVisionPatchEmbedPrefill(QuantModule, Qwen3VLVisionPatchEmbed):  # type: ignore[misc]
    """The projection of each patch, which has all the points, as a linear layer."""

    in_channels: int
    temporal_patch_size: int
    patch_size: int
    proj: LinearPatchProjection

    @classmethod
    def from_float(cls, source: nn.Module, config: PTQConfig, wrap: Wrap) -> Self:
        def wrap_projection(child: nn.Module, config: PTQConfig) -> nn.Module:
            if type(child) is not nn.Conv3d:
                raise WrapError(
                    f"{config.scope} is a {type(child).__name__}, which cannot be computed as a "
                    "linear layer; give a model where it is the float model's own nn.Conv3d "
                    "(merge adapters, dequantise), or use the variant 'prefill_reference'"
                )
            return LinearPatchProjection.from_float(child, config, wrap)

        return super().from_float(source, config, wrap_projection)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[patches, in_channels * frames * height * width] to [patches, hidden]."""
        width = self.in_channels * self.temporal_patch_size * self.patch_size**2
        patches = hidden_states.view(-1, width).to(self.proj.weight.dtype)
        output: Tensor = self.proj(patches)
        return output


@register(Qwen3VLVisionPatchEmbed)
class QuantQwen3VLVisionPatchEmbed(QuantModule, Qwen3VLVisionPatchEmbed):  # type: ignore[misc]
    """The convolution has all the points: its forward is the float model's."""


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
        for point in points:
            self._add_point(point)

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
            **kwargs: not used: what the float model hands to other implementations of attention.

        Returns:
            [patches, hidden].

        Raises:
            InputError: no position embeddings, or segments that do not fit the patches or the
                grids of the config.
        """
        cos, sin = rope_tables(position_embeddings, type(self))
        lengths = self._segment_lengths(cu_seqlens, hidden_states.shape[0])
        hidden = self._quantize(hidden_states, "hidden")
        # Rotated in float32 whatever the model's type, as in the float model.
        cos = self._quantize(cos, "cos").float()
        sin = self._quantize(self._sine_table(sin), "sin").float()
        outputs = self._attend_segments(self.qkv(hidden).unsqueeze(0), cos, sin, lengths)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        projected: Tensor = self.proj(output.squeeze(0))
        return projected

    def _segment_lengths(self, cu_seqlens: Tensor | None, patches: int) -> list[int]:
        lengths = self.fixed_segments
        if lengths is None and cu_seqlens is None:
            raise InputError(
                f"{type(self).__name__} was called without cu_seqlens, and no grids are fixed: "
                f"give either, the latter as PTQConfig(model_args={{{GRID_THW!r}: ...}})"
            )
        if cu_seqlens is not None and (lengths is None or not torch.compiler.is_compiling()):
            given = cu_seqlens.diff().tolist()
            if lengths not in (None, given):
                raise InputError(
                    f"found cu_seqlens of segments of {given} patches, and the grids that "
                    f"model_args fixes have segments of {lengths}: prepare the model for these "
                    "grids, or without fixed ones"
                )
            lengths = given
        assert lengths is not None
        if sum(lengths) != patches or min(lengths, default=0) < 0:
            raise InputError(
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
            return self._quantize(x, f"{prefix}_{name}", may_overwrite=may_overwrite)

        rotated = rotate(states.float(), cos, sin, self._rotate_half(quantize), quantize)
        return rotated.to(states.dtype)

    def _options(self) -> dict[str, Any]:
        return {
            "mask": None,
            "scaling": self.scaling,
            "quantize": self._quantize,
            "dropout": self.attention_dropout if self.training else 0.0,
            "observed_masks": (),
            "keep_weights": False,
            "whole_tensors": self.mode is Mode.CALIBRATE,
        }


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
        return [
            attend_by_head(*states, **self._options()).output
            for states in zip(*segments, strict=True)
        ]


@register(Qwen3VLVisionAttention, variant="prefill_reference")
class QuantQwen3VLVisionAttentionPrefillReference(VisionAttention, Qwen3VLVisionAttention):  # type: ignore[misc]
    """All heads at once, for fast evaluation."""

    def _setup(self, config: PTQConfig) -> None:
        super()._setup(config)
        self._add_point("q_neg")
        self._add_point("k_neg")

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
        segments = (_segments(states, lengths) for states in (query, key, value))
        fold = self.mode is not Mode.QUANT
        return [
            attend_batched(*states, fold=fold, **self._options()).output
            for states in zip(*segments, strict=True)
        ]


def _segments(states: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """[..., patches, head_dim] cut into the patches of each segment."""
    if len(lengths) == 1:
        return [states]
    ends = accumulate(lengths)
    return [states[..., end - length : end, :] for end, length in zip(ends, lengths, strict=True)]


class EnclosedModule(QuantModule):
    """Base of modules whose children do the work: the float class's own forward between points."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("act_in")
        self._add_point("act_out")

    def _enclosed(self, x: Tensor) -> Tensor:
        return self._quantize(super().forward(self._quantize(x, "act_in")), "act_out")


@register(Qwen3VLVisionMLP)
class QuantQwen3VLVisionMLP(EnclosedModule, Qwen3VLVisionMLP):  # type: ignore[misc]
    """linear_fc2(act_fn(linear_fc1(x)))."""

    def forward(self, hidden_state: Tensor) -> Tensor:
        """[patches, hidden] to the same."""
        return self._enclosed(hidden_state)


@register(Qwen3VLVisionPatchMerger)
class QuantQwen3VLVisionPatchMerger(EnclosedModule, Qwen3VLVisionPatchMerger):  # type: ignore[misc]
    """Makes one token of each block of patches; the norm comes before or after they are joined."""

    def forward(self, x: Tensor) -> Tensor:
        """[patches, hidden] to [tokens, hidden of the text model]."""
        return self._enclosed(x)


@register(Qwen3VLVisionBlock)
class QuantQwen3VLVisionBlock(QuantModule, Qwen3VLVisionBlock):  # type: ignore[misc]
    """Attention and MLP, each on a normalised input and added to what came in."""

    norm1: nn.Module
    norm2: nn.Module
    attn: nn.Module
    mlp: nn.Module

    def _setup(self, config: PTQConfig) -> None:
        for point in ("act_in", "post_attn", "act_out"):
            self._add_point(point)

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[patches, hidden] to the same; see `VisionAttention.forward` for the arguments."""
        hidden_states = self._quantize(hidden_states, "act_in")
        attended = self.attn(
            self.norm1(hidden_states),
            cu_seqlens=cu_seqlens,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        residual = self._quantize(hidden_states + attended, "post_attn", may_overwrite=True)
        transformed = self.mlp(self.norm2(residual))
        return self._quantize(residual + transformed, "act_out", may_overwrite=True)


@register(Qwen3VLVisionModel)
class QuantQwen3VLVisionModel(QuantModule, Qwen3VLVisionModel):  # type: ignore[misc]
    """Patches and their places embedded, rope tables once for all blocks, the blocks with mergers
    after some of them (deepstack), the last merger.

    `PTQConfig.model_args["grid_thw"]` fixes the grids of all images and videos of a call.
    """

    config: Qwen3VLVisionConfig
    spatial_merge_size: int
    num_grid_per_side: int
    deepstack_visual_indexes: list[int]
    patch_embed: nn.Module
    pos_embed: nn.Module
    rotary_pos_emb: nn.Module
    blocks: nn.ModuleList
    merger: nn.Module
    deepstack_merger_list: nn.ModuleList

    def _setup(self, config: PTQConfig) -> None:
        note_recordable_outputs(self)
        self.fixed_grids = fixed_grids(config, self.spatial_merge_size)
        self.fixed_layout = None if self.fixed_grids is None else self._layout(self.fixed_grids)
        for point in ("pos_embed", "pos_add", "rope_cos", "rope_sin"):
            self._add_point(point)

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self, hidden_states: Tensor, grid_thw: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithDeepstackFeatures:
        """As `Qwen3VLVisionModel.forward`.

        Args:
            hidden_states: pixels, [patches, in_channels * frames * height * width].
            grid_thw: for each image or video its patches in time, height and width, integers
                [images, 3]; not needed where the config fixes the grids.
            **kwargs: handed on to the blocks, but for what transformers lets callers compute
                beforehand: `cu_seqlens`, `position_ids`, and the interpolation's indices and
                weights.

        Returns:
            The last block's output [patches, hidden], its tokens [tokens, text hidden] as
            `pooler_output`, and likewise the tokens of the deepstack blocks.

        Raises:
            InputError: no grids, or grids that do not fit the patches or those of the config.
        """
        layout = self._layout_for(grid_thw).to(hidden_states.device).with_precomputed(kwargs)
        hidden_states = self.patch_embed(hidden_states)
        patches = layout.position_ids.shape[0]
        if hidden_states.shape[0] != patches:
            raise InputError(
                f"found pixels of {hidden_states.shape[0]} patches, and grids of {patches}: "
                "give grid_thw of just these images or videos"
            )
        embedded = interpolated(self.pos_embed, layout).to(hidden_states.dtype)
        embedded = self._quantize(embedded, "pos_embed", may_overwrite=True)
        hidden_states = self._quantize(hidden_states + embedded, "pos_add", may_overwrite=True)
        cos, sin = rotation_tables(self.rotary_pos_emb, hidden_states, layout)
        tables = self._quantize(cos, "rope_cos"), self._quantize(sin, "rope_sin")
        deepstack_features = []
        for i, block in enumerate(self.blocks):
            hidden_states = block(
                hidden_states,
                cu_seqlens=layout.cu_seqlens,
                position_embeddings=tables,
                **kwargs,
            )
            if i in self.deepstack_visual_indexes:
                merger = self.deepstack_merger_list[self.deepstack_visual_indexes.index(i)]
                deepstack_features.append(merger(hidden_states))
        return BaseModelOutputWithDeepstackFeatures(
            last_hidden_state=hidden_states,
            pooler_output=self.merger(hidden_states),
            deepstack_features=deepstack_features,
        )

    def _layout_for(self, grid_thw: Tensor | None) -> GridLayout:
        fixed = self.fixed_layout
        if fixed is not None and (grid_thw is None or torch.compiler.is_compiling()):
            return fixed
        if grid_thw is None:
            raise InputError(
                "found no grid_thw; give the grid of each image or video, or fix them by "
                f"PTQConfig(model_args={{{GRID_THW!r}: [[time, height, width], ...]}})"
            )
        grids = given_grids(grid_thw, self.spatial_merge_size)
        if fixed is None:
            return self._layout(grids)
        if grids != self.fixed_grids:
            raise InputError(
                f"found grid_thw {grid_thw.tolist()}, and model_args fixes {self.fixed_grids}: "
                "prepare the model for these grids, or without fixed ones"
            )
        return fixed

    def _layout(self, grids: Sequence[Grid]) -> GridLayout:
        return GridLayout.of(grids, merge_size=self.spatial_merge_size, side=self.num_grid_per_side)
