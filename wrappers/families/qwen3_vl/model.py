"""Qwen3-VL, whole: images and videos instead of their tokens, and the head that generates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl import modeling_qwen3_vl
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)
from transformers.utils.generic import can_return_tuple

from wrappers.attention.cache import as_cache
from wrappers.core.config import PTQConfig
from wrappers.core.module import QuantModule, Wrap
from wrappers.core.registry import register
from wrappers.errors import ModelInputError
from wrappers.families.qwen3_vl.text import DEEPSTACK_LAYERS
from wrappers.layers.decoder_blocks import CausalLM, embedded


@register(Qwen3VLModel)
class QuantQwen3VLModel(QuantModule, Qwen3VLModel):  # type: ignore[misc]
    """The vision model's features where images and videos have their tokens, with 3-D positions,
    and the text model over them."""

    config: Qwen3VLConfig
    visual: nn.Module
    language_model: nn.Module
    rope_deltas: Tensor | None
    get_input_embeddings: Callable[[], nn.Module]
    get_image_features: Callable[..., Any]
    get_video_features: Callable[..., Any]
    get_placeholder_mask: Callable[..., tuple[Tensor, Tensor]]
    compute_3d_position_ids: Callable[..., Tensor | None]

    @classmethod
    def from_float(cls, source: nn.Module, config: PTQConfig, wrap: Wrap) -> Self:
        float_config: Any = source.config
        # The text model's own config does not say how many layers take features; the vision
        # model may give more than there are layers.
        layers = min(
            len(float_config.vision_config.deepstack_visual_indexes),
            float_config.text_config.num_hidden_layers,
        )
        config = config.with_model_args(**{DEEPSTACK_LAYERS: layers})
        return super().from_float(source, config, wrap)

    def _setup(self, config: PTQConfig) -> None:
        self._add_point("mm_fusion")

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `Qwen3VLModel.forward`.

        Args:
            input_ids: [B, sequence], with one token for each merged patch of an image or video.
            attention_mask: any kind that `MaskBuilder` takes.
            position_ids: see `QuantQwen3VLTextModel.forward`; by default computed from the tokens
                and grids.
            past_key_values: any kind that `as_cache` takes.
            inputs_embeds: [B, sequence, hidden], instead of `input_ids`.
            pixel_values: the patches of all images, [patches, channels * frames * height * width].
            pixel_values_videos: the patches of all videos, likewise.
            image_grid_thw: for each image its patches in time, height and width, [images, 3].
            video_grid_thw: the same for each video.
            mm_token_type_ids: 0 for text, 1 for image, 2 for video, [B, sequence].
            mm_encoder_outputs: features already computed, under "image" and "video".
            **kwargs: passed on to the vision model and the text model.

        Raises:
            ModelInputError: both or neither of `input_ids` and `inputs_embeds`, both pixels and
                features, or a mask or cache of no known kind.
            ValueError: the tokens of images or videos are not as many as their features.
        """
        fused = embedded(self.get_input_embeddings(), input_ids, inputs_embeds)
        outputs = dict(mm_encoder_outputs or {})
        for modality, pixels, grid, encode in (
            ("image", pixel_values, image_grid_thw, self.get_image_features),
            ("video", pixel_values_videos, video_grid_thw, self.get_video_features),
        ):
            if pixels is None:
                continue
            if outputs.get(modality) is not None:
                raise ModelInputError(
                    f"found both pixels and mm_encoder_outputs of {modality}; give one of them"
                )
            outputs[modality] = encode(pixels, grid, return_dict=True, **kwargs)

        masks, deepstack = [], []
        for index, modality in enumerate(("image", "video")):
            if outputs.get(modality) is None:
                continue
            features = torch.cat(list(outputs[modality].pooler_output)).to(
                fused.device, fused.dtype
            )
            mask = self.get_placeholder_mask(
                input_ids, inputs_embeds=fused, **{f"{modality}_features": features}
            )[index]
            fused = fused.masked_scatter(mask, features)
            masks.append(mask[..., 0])
            deepstack.append([_joined(layer) for layer in outputs[modality].deepstack_features])
        if masks:
            fused = self.quantize(fused, "mm_fusion", may_overwrite=True)

        cache = as_cache(past_key_values)
        if position_ids is None:
            position_ids = self.compute_3d_position_ids(
                input_ids=input_ids,
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                inputs_embeds=fused,
                attention_mask=attention_mask,
                past_key_values=cache,
                mm_token_type_ids=mm_token_type_ids,
            )
        visual_pos_masks, deepstack_visual_embeds = _merged(masks, deepstack)
        output = self.language_model(
            input_ids=None,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            inputs_embeds=fused,
            visual_pos_masks=visual_pos_masks,
            deepstack_visual_embeds=deepstack_visual_embeds,
            **kwargs,
        )
        # Releases before 5.2x give the offsets of rope along with the output of the text model.
        with_deltas = getattr(modeling_qwen3_vl, "Qwen3VLModelOutputWithPast", None)
        return (
            output if with_deltas is None else with_deltas(**output, rope_deltas=self.rope_deltas)
        )


@register(Qwen3VLForConditionalGeneration)
class QuantQwen3VLForConditionalGeneration(
    CausalLM,
    Qwen3VLForConditionalGeneration,  # type: ignore[misc]
):
    """The model and its head, which have all the points: its forward is the float model's."""


def _joined(features: Tensor | Sequence[Tensor]) -> Tensor:
    """The features of all images: early releases of version 5 do not split them by image."""
    return features if isinstance(features, Tensor) else torch.cat(list(features))


def _merged(
    masks: list[Tensor], deepstack: list[list[Tensor]]
) -> tuple[Tensor | None, list[Tensor] | None]:
    """The positions of images and videos together, and their deepstack features in that order."""
    if not masks:
        return None, None
    if len(masks) == 1:
        return masks[0], deepstack[0]
    image, video = masks
    visual = image | video
    merged = []
    for image_features, video_features in zip(*deepstack, strict=True):
        # [visual positions, hidden]
        features = image_features.new_empty(int(visual.sum()), image_features.shape[-1])
        features[image[visual]] = image_features
        features[video[visual]] = video_features
        merged.append(features)
    return visual, merged
