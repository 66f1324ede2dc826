"""What the sequences of an evaluation begin with: a token, or a prompt with images.

opening = Opening.of(processor(text=chat, images=[photo], return_tensors="pt"))
perplexity(model, texts, bos=opening)          # each window goes on after the photo
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wrappers.deploy.prompts import KINDS, Prompts
from wrappers.errors import ModelInputError


@dataclass(frozen=True)
class Opening:
    """Tokens that each sequence begins with, and the images and videos among them.

    Attributes:
        ids: the tokens.
        kinds: 0 for those of text, 1 of images, 2 of videos.
        pixels: patches and grids of the images and videos, as a processor names them.
    """

    ids: tuple[int, ...]
    kinds: tuple[int, ...]
    pixels: Mapping[str, Tensor]

    @classmethod
    def of(cls, inputs: Mapping[str, Tensor]) -> Opening:
        """What a processor returns for one sequence.

        Raises:
            ModelInputError: several sequences, none with images, or images that are not whole.
        """
        prompts = Prompts.packed(inputs)
        if len(prompts.lengths) != 1 or prompts.kinds is None:
            what = "no images" if prompts.kinds is None else f"{len(prompts.lengths)} sequences"
            raise ModelInputError(f"found {what}; expected one sequence with images or videos")
        return cls(
            tuple(prompts.input_ids[0].tolist()), tuple(prompts.kinds[0].tolist()), prompts.pixels
        )


Beginning = int | Opening | None
"""A token, such as BOS, a prompt with images, or nothing."""


def head_of(beginning: Beginning) -> tuple[int, ...]:
    """Its tokens."""
    if isinstance(beginning, Opening):
        return beginning.ids
    return () if beginning is None else (beginning,)


def with_images(ids: Tensor, beginning: Beginning) -> dict[str, Tensor]:
    """Token ids [B, sequence], all of which begin so, as keyword arguments of a causal LM."""
    if not isinstance(beginning, Opening):
        return {"input_ids": ids}
    kinds = torch.zeros_like(ids)
    kinds[:, : len(beginning.ids)] = torch.tensor(beginning.kinds, device=ids.device)
    pixels = {
        name: value.to(ids.device).repeat(len(ids), *[1] * (value.ndim - 1))
        for name, value in beginning.pixels.items()
    }
    return {"input_ids": ids, KINDS: kinds, **pixels}
