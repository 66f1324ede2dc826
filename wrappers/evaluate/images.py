"""Photos and a question as a model with images takes them, through its processor.

A processor is that of transformers, or anything with a `tokenizer`, `apply_chat_template` and the
same call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from wrappers.errors import MissingExtraError, ModelInputError


def opened(image: Any, folder: Path, max_pixels: int | None = None) -> Any:
    """An image of Pillow's as RGB, the right way up.

    Args:
        image: a path, or an image of Pillow's.
        folder: where a relative path starts from.
        max_pixels: what a larger one is shrunk to.

    Raises:
        MissingExtraError: Pillow is not installed.
        ModelInputError: there is no such file, or no image in it.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("images need Pillow: pip install 'pillow>=11.0'") from error
    try:
        if isinstance(image, str | Path):
            with Image.open(folder / Path(image).expanduser()) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
        else:
            image = image.convert("RGB")
    # Pillow raises SyntaxError for broken files of some formats.
    except (
        OSError,
        SyntaxError,
        ValueError,
        AttributeError,
        Image.DecompressionBombError,
    ) as error:
        raise ModelInputError(
            f"found {image!r:.200}, no image that can be read: {error}"
        ) from error
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        by = math.sqrt(max_pixels / (width * height))
        image = image.resize((max(1, int(width * by)), max(1, int(height * by))))
    return image


def asked(processor: Any, question: str, images: Sequence[Any]) -> dict[str, Tensor]:
    """Inputs of a chat in which a user shows images and asks, and the model is to answer.

    Raises:
        ModelInputError: the processor cannot take them.
    """
    content = [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]
    try:
        chat = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        made = processor(text=[chat], images=list(images), images_kwargs={}, return_tensors="pt")
    # A template and an image processor raise what they like.
    except Exception as error:
        raise ModelInputError(
            f"the processor cannot take {len(images)} images and the question {question!r:.80}: "
            f"{error}"
        ) from error
    return dict(made)
