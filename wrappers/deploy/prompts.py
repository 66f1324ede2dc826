"""Prompts of a batch as a prefill or a decode graph reads them: packed to the left, whichever side
they were padded on, with their images and videos.

    prompts = Prompts.packed(processor(text=texts, images=images, return_tensors="pt"))
    positions, deltas = prompts.positions(model)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from wrappers.errors import ModelInputError

PromptBatch = Tensor | Mapping[str, Tensor]
"""Token ids [B, prompt], or these as `input_ids` with an `attention_mask`, padded on any side, and
with what else a processor returns of images and videos."""

KINDS = "mm_token_type_ids"
"""Says of each token whether it is text (0), or of an image (1) or a video (2)."""

PIXELS = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
"""Of each modality the patches, and for each image or video how many there are in time, height and
width."""

VISUAL = (*(name for names in PIXELS.values() for name in names), KINDS)
"""All that a processor returns of images and videos."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, with the padding of each after its tokens.

    Attributes:
        input_ids: [B, longest].
        lengths: tokens of each, int64 [B].
        kinds: of the tokens, see `KINDS`, [B, longest]; None without images and videos.
        pixels: patches and grids by the names in `PIXELS`; empty without images and videos.
    """

    input_ids: Tensor
    lengths: Tensor
    kinds: Tensor | None = None
    pixels: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def packed(cls, batch: PromptBatch) -> Prompts:
        """Moves padding to the end and cuts off what all have of it.

        Raises:
            ModelInputError: no token ids, a mask of another shape, a row without tokens, or a part
                of what belongs to images or videos.
        """
        if not isinstance(batch, Tensor | Mapping):
            raise ModelInputError(
                f"a batch of prompts is a {type(batch).__name__}; expected token ids [batch, "
                "prompt], or a mapping that holds them as input_ids"
            )
        given = {"input_ids": batch} if isinstance(batch, Tensor) else batch
        if "input_ids" not in given:
            raise ModelInputError(
                f"a batch of prompts holds {', '.join(given)}; expected input_ids"
            )
        input_ids, mask = given["input_ids"], given.get("attention_mask")
        if input_ids.is_floating_point():
            raise ModelInputError(f"found input_ids of {input_ids.dtype}; expected integers")
        if input_ids.ndim != 2:
            raise ModelInputError(
                f"found input_ids of shape {list(input_ids.shape)}; expected [batch, sequence]"
            )
        mask = torch.ones_like(input_ids) if mask is None else mask
        if mask.shape != input_ids.shape:
            raise ModelInputError(
                f"found an attention_mask of shape {list(mask.shape)} for prompts of shape "
                f"{list(input_ids.shape)}; expected the same [batch, sequence]"
            )
        visible = mask.bool()
        lengths = visible.sum(dim=1)
        if lengths.numel() == 0 or not lengths.all():
            raise ModelInputError("a prompt holds no tokens; give at least one in each row")
        order = visible.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        order = order[:, : int(lengths.max())]
        kinds, pixels = _visual(given)
        return cls(
            input_ids.gather(1, order),
            lengths,
            None if kinds is None else kinds.gather(1, order),
            pixels,
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return self.input_ids.shape[1]

    @property
    def first_visual(self) -> Tensor:
        """Where the first image or video of each begins, int64 [B]; its length without any."""
        if self.kinds is None:
            return self.lengths
        visual = self._visible() & (self.kinds != 0)
        return torch.where(visual.any(dim=1), visual.int().argmax(dim=1), self.lengths)

    @property
    def text_after(self) -> Tensor:
        """How many tokens of each come after its last image or video, int64 [B]."""
        if self.kinds is None:
            return self.lengths
        visual = self._visible() & (self.kinds != 0)
        places = torch.arange(1, self.longest + 1, device=self.lengths.device)
        return self.lengths - (visual * places).amax(dim=1)

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a prefill model."""
        given = {"input_ids": self.input_ids, "attention_mask": self._visible().long()}
        return {**given, **self.pixels, **({} if self.kinds is None else {KINDS: self.kinds})}

    def positions(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """The positions of the tokens, from 0, and what images and videos make of those after.

        Args:
            model: a causal LM; one that takes images counts the positions of prompts with images.

        Returns:
            Positions [1, longest], or those in time, height and width, [3, B, longest]; and for
            each sequence its next position less its tokens, int64 [B].

        Raises:
            ModelInputError: images, and a model that takes none; or fewer grids than images.
        """
        if self.kinds is None:
            positions = torch.arange(self.longest, device=self.lengths.device)
            return positions[None], torch.zeros_like(self.lengths)
        counting: Any = getattr(model, "base_model", model)
        if not hasattr(counting, "get_rope_index"):
            raise ModelInputError(
                f"found {', '.join(self.pixels)}, and a {type(model).__name__} takes no images"
            )
        try:
            positions, deltas = counting.get_rope_index(
                self.input_ids,
                attention_mask=self._visible().long(),
                mm_token_type_ids=self.kinds,
                **{grid: self.pixels.get(grid) for _, grid in PIXELS.values()},
            )
        except StopIteration as error:
            raise ModelInputError(
                f"{KINDS} shows more images or videos than there are grids: give one for each"
            ) from error
        return positions, deltas.squeeze(1)

    def beginning_with(self, tokens: Tensor) -> Prompts:
        """The same with one token [B] of text before each."""
        kinds = None if self.kinds is None else nn.functional.pad(self.kinds, (1, 0))
        ids = torch.cat([tokens[:, None], self.input_ids], dim=1)
        return replace(self, input_ids=ids, lengths=self.lengths + 1, kinds=kinds)

    def after(self, places: Tensor) -> Prompts:
        """What each has from a place on, int64 [B]; with all images and videos."""
        lengths = self.lengths - places
        order = places[:, None] + torch.arange(int(lengths.max()), device=lengths.device)
        order = order.clamp(max=self.longest - 1)
        kinds = None if self.kinds is None else self.kinds.gather(1, order)
        return replace(
            self, input_ids=self.input_ids.gather(1, order), lengths=lengths, kinds=kinds
        )

    def up_to(self, count: int) -> Prompts:
        """The first tokens of each; with all images and videos."""
        kinds = None if self.kinds is None else self.kinds[:, :count]
        lengths = self.lengths.clamp(max=count)
        return replace(self, input_ids=self.input_ids[:, :count], lengths=lengths, kinds=kinds)

    def _visible(self) -> Tensor:
        places = torch.arange(self.longest, device=self.lengths.device)
        return places < self.lengths[:, None]


def _visual(given: Mapping[str, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The kinds of the tokens, or None without images and videos; and the patches and grids."""
    found = {name: given[name] for name in VISUAL if given.get(name) is not None}
    kinds = found.pop(KINDS, None)
    for names in PIXELS.values():
        lacking = [name for name in names if name not in found]
        if len(lacking) == 1:
            raise ModelInputError(
                f"found {' without '.join(sorted(names, key=lacking.__contains__))}; give both, "
                "as the processor returns them"
            )
    if found and kinds is None:
        raise ModelInputError(
            f"found {', '.join(found)} without {KINDS}, by which images and text are told apart; "
            "the processor returns it: give all that it returns"
        )
    if kinds is None or not (found or kinds.any()):
        return None, {}
    if kinds.shape != given["input_ids"].shape:
        raise ModelInputError(
            f"found {KINDS} of shape {list(kinds.shape)} for prompts of shape "
            f"{list(given['input_ids'].shape)}; expected the same [batch, sequence]"
        )
    for number, (kind, names) in enumerate(PIXELS.items(), start=1):
        if bool((kinds == number).any()) != (names[0] in found):
            raise ModelInputError(
                f"{KINDS} and {names[0]} do not agree on whether there is a {kind}; give what the "
                "processor returns"
            )
    return kinds, found
