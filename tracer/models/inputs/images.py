"""Inputs of a Qwen3-VL with photos, through its processor.

>>> made, description = from_images(processor, InputSpec(images=paths), [open_image(paths[0])])
>>> description
'140 tokens: the default question with chelsea.png (18 x 28 patches, 126 tokens)'
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import trace_model.images
from tracer.errors import InputError
from tracer.models.inputs.processors import Processor, check_pillow, encode_chats
from tracer.models.inputs.text import GeneratedInputs, InputSpec, batch_in_words
from tracer.text import brief

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_QUESTION = "Describe this image."
QUESTIONS = (
    "What is in this picture?",
    "Which colours do you see, and where?",
    "Is anything here alive?",
    "Where was this taken, and at what time of the day?",
    "What would you see if you looked further to the left?",
    "Give this picture a title.",
    "List everything that you can see.",
    "What is closest to the camera, and what is far away?",
)


def open_image(path: Path) -> "Image":
    """An image file as RGB, the right way up.

    Raises:
        UsageError: Pillow is not installed.
        InputError: it is no image that can be read.
    """
    check_pillow()

    def unreadable(reason: Exception) -> InputError:
        return InputError(f"{path}: not an image that can be read ({brief(reason)})")

    image: Image = trace_model.images.open_image(path, unreadable)
    return image


def from_images(
    processor: "Processor", request: InputSpec, images: "Sequence[Image]"
) -> GeneratedInputs:
    """A question about images, as the processor's chat template puts it, and a description.

    One sequence shows all the images. In a batch, sequence i shows image i, or each the only one,
    and the question loses words from sequence to sequence, so that they have different lengths.

    Args:
        images: those that the request names, or others in their place.

    Raises:
        UsageError, InputError: as `encode_chats`.
    """
    question = DEFAULT_QUESTION if request.prompt is None else request.prompt
    words = question.split()
    shorter = [" ".join(words[:n]) for n in request.lengths(len(words))[1:]]
    made = encode_chats(
        processor,
        [question, *shorter],
        _shown(images, request.batch),
        padding=request.padding,
        max_pixels=request.max_pixels,
    )
    lengths = made["attention_mask"].sum(1).tolist()
    what = "the default question" if request.prompt is None else "the prompt"
    merged = processor.image_processor.merge_size**2
    grids = made["image_grid_thw"].tolist()
    each = [
        f"{path.name} ({rows} x {columns} patches, {rows * columns // merged} tokens)"
        # The only image of a batch is shown in each sequence, and named once.
        for path, (_, rows, columns) in zip(request.images, grids, strict=False)
    ]
    return made, f"{max(lengths)} tokens: {what} with {', '.join(each)}" + batch_in_words(
        lengths, request
    )


def crop(image: "Image", generator: torch.Generator) -> "Image":
    """A random part of an image, at least half of each side."""
    width, height = image.size
    sides = torch.rand(4, generator=generator).tolist()
    kept_width = max(1, round(width * (1 + sides[0]) / 2))
    kept_height = max(1, round(height * (1 + sides[1]) / 2))
    left = round((width - kept_width) * sides[2])
    top = round((height - kept_height) * sides[3])
    return image.crop((left, top, left + kept_width, top + kept_height))


def _shown(images: "Sequence[Image]", batch: int) -> "list[Sequence[Image]]":
    """The images of each sequence."""
    if batch == 1:
        return [images]
    return [[image] for image in (list(images) * batch if len(images) == 1 else images)]
