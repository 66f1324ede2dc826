"""The processor of a Qwen3-VL, which makes a model's inputs of texts and images.

transformers' own needs torchvision, for its videos alone. Where that is missing, `PilProcessor`
does the same by Pillow: equal tokens and grids, and pixels that differ as two ways to resize do.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from trace_model.images import size_limits
from tracer.errors import InputError, ModelLoadError, UsageError
from tracer.execution.limits import time_limit
from tracer.models.builtin import Tokens
from tracer.text import brief

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import Qwen3VLProcessor

Processor: TypeAlias = "Qwen3VLProcessor | PilProcessor"


def load_processor(
    name: str, source: Path | str, *, trust_remote_code: bool = False
) -> "Processor":
    """The processor of a local folder or a hub id.

    Args:
        name: how the user called it, for messages.

    Raises:
        UsageError: Pillow is not installed.
        ModelLoadError: there is none of a Qwen3-VL, or it cannot be used.
    """
    check_pillow()
    options = {"trust_remote_code": trust_remote_code}
    try:
        found = _load(source, options)
    # transformers raises whatever its many parts raise; to the caller it is one error.
    except Exception as error:
        raise ModelLoadError(
            f"{name}: no processor can be loaded: {brief(error)}; expected the folder or hub id of "
            "a Qwen3-VL, with preprocessor_config.json and the files of its tokenizer"
        ) from error
    if not hasattr(found, "image_processor"):
        raise ModelLoadError(
            f"{name}: found a {type(found).__name__}, which takes no images: give the folder or "
            "hub id of a Qwen3-VL's processor"
        )
    unknown = [token for token, number in _ids(found).items() if number is None]
    if unknown:
        raise ModelLoadError(
            f"{name}: the tokenizer lacks the tokens for {', '.join(unknown)}: give the folder or "
            "hub id of a Qwen3-VL's processor"
        )
    if found.chat_template is None:
        raise ModelLoadError(
            f"{name}: the processor has no chat template: expected chat_template.jinja in it"
        )
    return found


def check_pillow() -> None:
    """Raises a UsageError where Pillow is not installed."""
    if importlib.util.find_spec("PIL") is None:
        raise UsageError("images need Pillow, which is not installed: pip install 'pillow>=11.0'")


def tokens_of(processor: "Processor") -> Tokens:
    """The processor's vocabulary."""
    tokenizer = processor.tokenizer
    return Tokens(
        vocabulary=max(tokenizer.get_vocab().values()) + 1,
        padding=tokenizer.pad_token_id,
        **_ids(processor),
    )


def check_processor(model: nn.Module, processor: "Processor", name: str) -> None:
    """Checks that a processor cuts images and marks them as a Qwen3-VL expects it.

    Raises:
        UsageError: sizes of patches or ids of tokens differ.
    """
    config: Any = model.config
    vision, images, ids = config.vision_config, processor.image_processor, _ids(processor)
    for what, found, expected in (
        ("patch size", images.patch_size, vision.patch_size),
        ("temporal patch size", images.temporal_patch_size, vision.temporal_patch_size),
        ("merge size", images.merge_size, vision.spatial_merge_size),
        ("image token", ids["image"], config.image_token_id),
        ("video token", ids["video"], config.video_token_id),
    ):
        if found != expected:
            raise UsageError(
                f"the processor has the {what} {found}, and {name} has {expected}: give the "
                "processor that the model was made for"
            )


def encode_chats(
    processor: "Processor",
    texts: Sequence[str],
    images: Sequence[Sequence["Image"]],
    *,
    padding: str = "right",
    max_pixels: int | None = None,
) -> dict[str, torch.Tensor]:
    """Inputs of chats in which a user shows images and says one text, and the model is to answer.

    Args:
        texts: one for each sequence.
        images: those of each sequence, before its text.
        padding: the side that is padded.
        max_pixels: what images are shrunk to; the processor's own limit if None.

    Returns:
        input_ids, attention_mask, mm_token_type_ids: int64 [batch, sequence]; pixel_values:
        float32 [patches, channels * frames * height * width]; image_grid_thw: int64 [images, 3].

    Raises:
        UsageError: a text holds what stands for an image or video, or `max_pixels` is too low.
        InputError: an image cannot be cut into patches.
    """
    for text in texts:
        for token in (processor.image_token, processor.video_token):
            if token in text:
                raise UsageError(f"the prompt holds {token!r}, for which images are put: remove it")
    try:
        with time_limit("the chat template"):
            chats = [
                processor.apply_chat_template(
                    [{"role": "user", "content": [*[{"type": "image"}] * len(shown), _text(text)]}],
                    add_generation_prompt=True,
                    tokenize=False,
                )
                for text, shown in zip(texts, images, strict=True)
            ]
    except UsageError:
        raise
    except Exception as error:  # a template raises what it likes
        raise InputError(
            f"the chat template of the processor cannot be used: {type(error).__name__}: "
            f"{brief(error)}"
        ) from error
    try:
        made = processor(
            text=chats,
            images=[image for shown in images for image in shown],
            images_kwargs=size_limits(processor.image_processor, max_pixels, UsageError),
            padding=True,
            padding_side=padding,
            return_tensors="pt",
        )
    except ValueError as error:
        raise InputError(f"the images cannot be cut into patches: {brief(error)}") from error
    return dict(made)


class PilProcessor:
    """Stands in for `Qwen3VLProcessor` without torchvision; for texts and images."""

    def __init__(self, source: Path | str, **options: Any) -> None:
        from transformers import AutoTokenizer, Qwen3VLProcessor
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
            Qwen2VLImageProcessorPil,
        )

        self.tokenizer = AutoTokenizer.from_pretrained(source, **options)
        self.image_processor = Qwen2VLImageProcessorPil.from_pretrained(source)
        settings, _ = Qwen3VLProcessor.get_processor_dict(source)
        self.chat_template = settings.get("chat_template", self.tokenizer.chat_template)
        self.image_token, self.video_token, self.vision_start_token, self.vision_end_token = (
            getattr(self.tokenizer, f"{name}_token", default) for name, default in _TOKENS.items()
        )

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> str:
        """The text of a conversation, with one token for each image."""
        return str(
            self.tokenizer.apply_chat_template(
                conversation, chat_template=self.chat_template, **options
            )
        )

    def __call__(
        self,
        *,
        text: Sequence[str],
        images: Sequence["Image"],
        images_kwargs: Mapping[str, Any],
        **options: Any,
    ) -> dict[str, torch.Tensor]:
        """As `Qwen3VLProcessor`: each image's token becomes as many as it has merged patches."""
        patches = self.image_processor(list(images), return_tensors="pt", **images_kwargs)
        merged = self.image_processor.merge_size**2
        counts = iter((patches["image_grid_thw"].prod(-1) // merged).tolist())
        token = re.compile(re.escape(self.image_token))
        expanded = [token.sub(lambda _: self.image_token * next(counts), chat) for chat in text]
        made = self.tokenizer(expanded, **options)
        kinds = (made["input_ids"] == _ids(self)["image"]).long()
        return {**made, "mm_token_type_ids": kinds, **patches}


# What the parts of a Qwen3-VL's processor call these tokens, unless the tokenizer names others.
_TOKENS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}


def _load(source: Path | str, options: dict[str, Any]) -> Any:
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        return PilProcessor(source, **options)
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(source, **options)


def _ids(processor: Any) -> dict[str, Any]:
    """The ids of a processor's special tokens; None for those that it does not know."""
    tokenizer = processor.tokenizer
    vocabulary = tokenizer.get_vocab()
    return {
        name: vocabulary.get(getattr(processor, f"{name}_token", default))
        for name, default in _TOKENS.items()
    }


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
