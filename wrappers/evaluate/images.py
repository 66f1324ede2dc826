"""Photos and a question as a model with images takes them, through its processor.

A processor is that of transformers, or anything with a `tokenizer`, `apply_chat_template` and the
same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from trace_model.images import open_image, size_limits
from wrappers.errors import MissingExtraError, ModelInputError


def opened(image: Any, folder: Path) -> Any:
    """An image of Pillow's as RGB, the right way up.

    Args:
        image: a path, or an image of Pillow's.
        folder: where a relative path starts from.

    Raises:
        MissingExtraError: Pillow is not installed.
        ModelInputError: there is no such file, or no image in it.
    """
    if find_spec("PIL") is None:
        raise MissingExtraError("images need Pillow: pip install 'pillow>=11.0'")

    def unreadable(reason: Exception) -> ModelInputError:
        return ModelInputError(f"found {image!r:.200}, no image that can be read: {reason}")

    place = folder / Path(image).expanduser() if isinstance(image, str | Path) else image
    return open_image(place, unreadable)


def asked(
    processor: Any, question: str, images: Sequence[Any], *, max_pixels: int | None = None
) -> dict[str, Tensor]:
    """Inputs of a chat in which a user shows images and asks, and the model is to answer.

    Args:
        processor: see this module.
        question: what is asked.
        images: of Pillow's.
        max_pixels: what larger ones are shrunk to; the processor's own limit if None.

    Raises:
        ModelInputError: the processor cannot take them, or `max_pixels` is too low.
    """
    limits = {} if max_pixels is None else _limits(processor, max_pixels)
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    try:
        chat = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        made = processor(
            text=[chat], images=list(images), images_kwargs=limits, return_tensors="pt"
        )
    # A template and an image processor raise what they like.
    except Exception as error:
        raise ModelInputError(
            f"the processor cannot take {len(images)} images and the question {question!r:.80}: "
            f"{error}"
        ) from error
    return dict(made)


def _limits(processor: Any, max_pixels: int) -> dict[str, Any]:
    if not hasattr(processor, "image_processor"):
        raise ModelInputError(
            f"a {type(processor).__name__} has no image_processor that could shrink images: leave "
            "out max_pixels"
        )
    return size_limits(processor.image_processor, max_pixels, ModelInputError)
