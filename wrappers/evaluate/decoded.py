"""A prefill and a decode model instead of one causal LM, for what scores given tokens.

    model = DecodedModel(prefill, decode, prompt=8)
    model(input_ids).logits          # of the first 8 positions by the prefill, then step by step

Teacher-forced: each step reads the true token, over the static cache that the steps before it have
written, as `Runtime` does with the tokens that it chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from trace_model.annotations import checked
from wrappers.deploy.prompts import VISUAL, PromptBatch, Prompts
from wrappers.deploy.runtime import run_prefill, step_inputs
from wrappers.errors import ArgumentError, ModelInputError


@torch.no_grad()
def step_logits(
    past: nn.Module, decode: nn.Module, batch: PromptBatch, places: Sequence[int]
) -> Tensor:
    """Logits of single steps, each over a past that another model has made whole.

    Args:
        past: a causal LM that computes the keys and values of all tokens before a step.
        decode: a causal LM that takes one token at a time; see `Runtime`.
        batch: sequences without padding, [B, sequence], and their images.
        places: of which tokens, from 1 to sequence - 1, all after the images.

    Returns:
        Logits [B, places, vocabulary].

    Raises:
        ModelInputError: a place before the end of the images.
    """
    prompts = Prompts.packed(batch)
    input_ids, length = prompts.input_ids, prompts.longest
    _check_images(prompts, min(places, default=length))
    _, slots = run_prefill(past, decode, prompts, length, logits_to_keep=1)
    found = []
    for place in places:
        before = slots.without_last(length - place).packed(decode)
        found.append(
            decode(**step_inputs(decode, input_ids[:, place], before, before.step())).logits
        )
    return torch.cat(found, dim=1)


@checked(ArgumentError)
class DecodedModel(nn.Module):
    """Computes logits of whole sequences through a decode graph.

    Args:
        prefill: a causal LM that computes the past.
        decode: a causal LM that takes one token at a time; see `Runtime`.
        prompt: how many tokens of each sequence the prefill model reads.

    Raises:
        ModelInputError: a prompt of less than one token.
    """

    def __init__(self, prefill: nn.Module, decode: nn.Module, *, prompt: int = 1) -> None:
        if prompt < 1:
            raise ModelInputError(f"found a prompt of {prompt} tokens; expected at least 1")
        for model in (prefill, decode):
            if not hasattr(model, "config"):
                raise ModelInputError(
                    f"a {type(model).__name__} has no config; expected a causal LM of transformers"
                )
        super().__init__()
        self.prefill = prefill
        self.decode = decode
        self.prompt = prompt
        self.config = decode.config

    @property
    def device(self) -> torch.device:
        """Where the decode model is."""
        return next(self.decode.parameters()).device

    def get_input_embeddings(self) -> Any:
        """The decode model's, as transformers has it."""
        return self.decode.get_input_embeddings()  # type: ignore[operator]

    def tie_weights(self, **unused: Any) -> None:
        """Does nothing, for tools that tie what they are given: both models are whole."""

    @torch.no_grad()
    def forward(self, input_ids: Tensor, **others: Any) -> CausalLMOutput:
        """Returns logits [B, sequence, vocabulary] of sequences without padding, [B, sequence].

        Args:
            input_ids: the tokens.
            **others: what a processor returns of images and videos; all else is not used.

        Raises:
            ModelInputError: images beyond the prompt.
        """
        batch, length = input_ids.shape
        whole = Prompts.packed(
            {"input_ids": input_ids} | {k: v for k, v in others.items() if k in VISUAL}
        )
        _check_images(whole, self.prompt)
        packed = whole.up_to(self.prompt)
        logits, slots = run_prefill(self.prefill, self.decode, packed, length, logits_to_keep=0)
        slots = slots.packed(self.decode)
        found = [logits]
        running = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
        for place in range(self.prompt, length):
            cache = slots.step()
            given = step_inputs(self.decode, input_ids[:, place], slots, cache)
            found.append(self.decode(**given).logits)
            slots.write(cache, running)
        return CausalLMOutput(logits=torch.cat(found, dim=1))


def _check_images(prompts: Prompts, read: int) -> None:
    """Checks that the first tokens, which a prefill reads, hold all images."""
    end = int((prompts.lengths - prompts.text_after).max())
    if end > read:
        raise ModelInputError(
            f"images end at token {end} of a sequence, and the prefill reads {read}: give a longer "
            "prompt"
        )
