"""Qwen3-VL, vision: patch embedding, MLP, block, patch merger and vision model; the
attention is in `vision_attention`. The patch embedding is a linear layer in `prefill` and in
`decode`, where it reads the images of a further turn; a convolution in `prefill_reference`.

The modules call each other as transformers' do, with the same arguments, and with quantisation off
give the same numbers. With `PTQConfig(model_args={"grid_thw": [[1, 18, 28]]})` the grids are fixed:
what depends on them is constant, nothing is read back from a tensor, and `torch.export` captures
each module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own documentation uses
from torch import Tensor, nn
from transformers import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionBlock,
    Qwen3VLVisionMLP,
    Qwen3VLVisionModel,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionPatchMerger,
)

from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule, Wrap
from wrappers.core.registry import register
from wrappers.core.transformers_compat import (
    capture_outputs,
    merge_with_config_defaults,
    note_recordable_outputs,
)
from wrappers.errors import ModelInputError, WrapError
from wrappers.families.qwen3_vl.grids import (
    GRID_THW,
    Grid,
    GridLayout,
    fixed_grids,
    given_grids,
    interpolated,
    rotation_tables,
)
from wrappers.layers.linear import WeightedLayer


class LinearPatchProjection(WeightedLayer, nn.Conv3d):
    """A convolution whose kernel covers a patch once, as the linear layer that it then is."""

    reference_output_scale = 1.0  # its parameters are those of the convolution

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as in the float class
        """[patches, in_channels * frames * height * width], in one dimension or more, to
        [patches, out_channels]."""
        x = self.quantize(input.flatten(1), "act_in")
        weight = self.quantize(self.weight, "weight").flatten(1)
        return self.quantize(F.linear(x, weight, self.bias), "act_out", may_overwrite=True)

    def to_reference_input(self, name: str, value: Tensor) -> Tensor:
        """The patches as the convolution takes them."""
        return value.view(-1, self.in_channels, *self.kernel_size)

    def to_reference_output(self, output: Tensor) -> Tensor:
        """The output as the convolution gives it, [patches, out_channels, 1, 1, 1]."""
        return output[..., None, None, None]


@register(Qwen3VLVisionPatchEmbed, variant="decode")
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


class EnclosedModule(QuantModule):
    """Base of modules whose children do the work: the float class's own forward between points."""

    def _setup(self, config: PTQConfig) -> None:
        self._add_points("act_in", "act_out")

    def _enclosed(self, x: Tensor) -> Tensor:
        return self.quantize(super().forward(self.quantize(x, "act_in")), "act_out")


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
        self._add_points("act_in", "post_attn", "act_out")

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[patches, hidden] to the same; see `VisionAttention.forward` for the arguments."""
        hidden_states = self.quantize(hidden_states, "act_in")
        attended = self.attn(
            self.norm1(hidden_states),
            cu_seqlens=cu_seqlens,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        residual = self.quantize(hidden_states + attended, "post_attn", may_overwrite=True)
        transformed = self.mlp(self.norm2(residual))
        return self.quantize(residual + transformed, "act_out", may_overwrite=True)


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
        self._add_points("pos_embed", "pos_add", "rope_cos", "rope_sin")

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
            **kwargs: passed on to the blocks, but for what transformers lets callers compute
                beforehand: `cu_seqlens`, `position_ids`, and the interpolation's indices and
                weights.

        Returns:
            The last block's output [patches, hidden], its tokens [tokens, text hidden] as
            `pooler_output`, and likewise the tokens of the deepstack blocks.

        Raises:
            ModelInputError: no grids, or grids that do not fit the patches or those of the config.
        """
        layout = self._layout_for(grid_thw).to(hidden_states.device).with_precomputed(kwargs)
        hidden_states = self.patch_embed(hidden_states)
        patches = layout.position_ids.shape[0]
        if hidden_states.shape[0] != patches:
            raise ModelInputError(
                f"found pixels of {hidden_states.shape[0]} patches, and grids of {patches}: "
                "give grid_thw of just these images or videos"
            )
        embedded = interpolated(self.pos_embed, layout).to(hidden_states.dtype)
        embedded = self.quantize(embedded, "pos_embed", may_overwrite=True)
        hidden_states = self.quantize(hidden_states + embedded, "pos_add", may_overwrite=True)
        cos, sin = rotation_tables(self.rotary_pos_emb, hidden_states, layout)
        tables = self.quantize(cos, "rope_cos"), self.quantize(sin, "rope_sin")
        deepstack_features = []
        for i, block in enumerate(self.blocks):
            hidden_states = block(
                hidden_states, cu_seqlens=layout.cu_seqlens, position_embeddings=tables, **kwargs
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
            raise ModelInputError(
                "found no grid_thw; give the grid of each image or video, or fix them by "
                f"PTQConfig(model_args={{{GRID_THW!r}: [[time, height, width], ...]}})"
            )
        grids = given_grids(grid_thw, self.spatial_merge_size)
        if fixed is None:
            return self._layout(grids)
        if grids != self.fixed_grids:
            raise ModelInputError(
                f"found grid_thw {grid_thw.tolist()}, and model_args fixes {self.fixed_grids}: "
                "prepare the model for these grids, or without fixed ones"
            )
        return fixed

    def _layout(self, grids: Sequence[Grid]) -> GridLayout:
        return GridLayout.of(grids, merge_size=self.spatial_merge_size, side=self.num_grid_per_side)
