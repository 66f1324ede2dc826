"""How a runtime draws tokens from logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trace_model.annotations import checked
from wrappers.errors import ArgumentError, ModelInputError

PickTokens = Callable[[Tensor], Tensor]
"""Takes logits [B, vocabulary] and returns tokens [B]."""


@checked(ArgumentError)
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; each limit is off at its default.

    Args:
        temperature: divides the logits.
        top_k: the number of likeliest tokens that are kept; 0 keeps all.
        top_p: the least probability that the likeliest tokens, which are kept, have together.
        seed: of the draws.

    Raises:
        ModelInputError: a limit out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ModelInputError(
                f"found {self}; expected a temperature above 0, top_k from 0 up, and top_p above "
                "0 and at most 1"
            )

    def chooser(self, device: torch.device) -> PickTokens:
        """Draws from logits, with its own random state."""
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.temperature)])
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(self.top_p))
        generator = torch.Generator(device).manual_seed(self.seed)

        def draw(logits: Tensor) -> Tensor:
            probabilities = warpers(None, logits.float()).softmax(-1)
            return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)

        return draw
