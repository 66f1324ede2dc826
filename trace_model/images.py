"""Images as a model with images takes them: RGB, the right way up, of a number of pixels at most.

`tracer` and `wrappers` read them, each with errors of its own.
"""

from collections.abc import Callable
from os import PathLike
from typing import Any


def open_image(image: Any, error: Callable[[Exception], Exception]) -> Any:
    """An image of Pillow's, which is installed, as RGB and the right way up.

    Args:
        image: a path, or an image of Pillow's.
        error: what is raised, made of the reason, where there is no image that can be read.
    """
    from PIL import Image, ImageOps

    try:
        if not isinstance(image, str | PathLike):
            return image.convert("RGB")
        with Image.open(image) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    # Pillow raises SyntaxError for broken files of some formats.
    except (
        OSError,
        SyntaxError,
        ValueError,
        AttributeError,
        Image.DecompressionBombError,
    ) as reason:
        raise error(reason) from reason


def size_limits(
    image_processor: Any, max_pixels: int | None, error: Callable[[str], Exception]
) -> dict[str, Any]:
    """Options of a Qwen3-VL's image processor that shrink what has more pixels.

    Args:
        image_processor: of transformers.
        max_pixels: None for the processor's own limit.
        error: what is raised, made of a sentence, where not one token has so few pixels.
    """
    if max_pixels is None:
        return {}
    token = (image_processor.patch_size * image_processor.merge_size) ** 2
    if max_pixels < token:
        raise error(f"max pixels {max_pixels}: expected at least {token}, those of one token")
    least = image_processor.size["shortest_edge"]
    # A small image is enlarged to the least size, which may not lie above the limit.
    size = {"shortest_edge": least if least <= max_pixels else token, "longest_edge": max_pixels}
    return {"size": size}
