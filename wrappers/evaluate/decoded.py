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
from wrappers.deploy.runtime import Prompts, run_prefill, step_inputs
from wrappers.errors import ArgumentError, ModelInputError


@torch.no_grad()
def step_logits(
    past: nn.Module, decode: nn.Module, input_ids: Tensor, places: Sequence[int]
) -> Tensor:
    """Logits of single steps, each over a past that another model has made whole.

    Args:
        past: a causal LM that computes the keys and values of all tokens before a step.
        decode: a causal LM that takes one token at a time; see `Runtime`.
        input_ids: sequences without padding, [B, sequence].
        places: of which tokens, from 1 to sequence - 1.

    Returns:
        Logits [B, places, vocabulary].
    """
    length = input_ids.shape[1]
    _, slots = run_prefill(past, decode, Prompts.packed(input_ids), length, logits_to_keep=1)
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
    def forward(self, input_ids: Tensor, **unused: Any) -> CausalLMOutput:
        """Returns logits [B, sequence, vocabulary] of sequences without padding, [B, sequence]."""
        batch, length = input_ids.shape
        packed = Prompts.packed(input_ids[:, : self.prompt])
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
