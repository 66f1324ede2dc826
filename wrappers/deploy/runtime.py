"""Generates as an accelerator does: one prefill, then steps over a static cache.

    runtime = Runtime(prefill, decode, capacity=256)
    tokens = runtime.generate(input_ids, attention_mask, max_new_tokens=64)

Each of the two is a causal LM of transformers or a wrapped or quantised copy of one: the variant
`prefill` or `prefill_reference` for the first, `decode` for the second. A float model serves as
both.

Every step has the same shapes: one token for each sequence, a cache with a slot for each position
that it can hold, and a mask over the slots. Sequences may be of different lengths: prompts are
packed to the left first, whichever side they were padded on, and so are their slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.generation import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trace_model.annotations import checked
from wrappers.attention.cache import StepCache
from wrappers.attention.packed import PackedLayers
from wrappers.errors import ArgumentError, CacheFullError, ModelInputError
from wrappers.layers.decoder_blocks import cache_quantizers, key_factors

PromptBatch = Tensor | Mapping[str, Tensor]
"""Token ids [B, prompt], or these as `input_ids` with an `attention_mask`, padded on any side."""

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


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, with the padding of each after its tokens.

    Attributes:
        input_ids: [B, longest].
        lengths: tokens of each, int64 [B].
    """

    input_ids: Tensor
    lengths: Tensor

    @classmethod
    def packed(cls, batch: PromptBatch) -> Prompts:
        """Moves padding to the end and cuts off what all have of it.

        Raises:
            ModelInputError: no token ids, a mask of another shape, or a row without tokens.
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
        return cls(input_ids.gather(1, order)[:, : int(lengths.max())], lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return self.input_ids.shape[1]

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a prefill model."""
        positions = torch.arange(self.longest, device=self.lengths.device)
        visible = positions < self.lengths[:, None]
        return {"input_ids": self.input_ids, "attention_mask": visible.long()}


class Slots:
    """The static cache of a batch, and what a step over it takes.

    Attributes:
        layers: for each layer its keys and values, each [B, kv_heads, capacity, head_dim]; the keys
            as the decode model works with them. What is not in use is zero.
        lengths: how many slots of each sequence are in use, from the left, int64 [B].
        capacity: how many positions of a sequence there is room for.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]] | PackedLayers, lengths: Tensor) -> None:
        self.layers = layers
        self.lengths = lengths
        self.capacity: int = next(iter(layers))[0].shape[2]

    @classmethod
    def from_prefill(
        cls, cache: DynamicCache, lengths: Tensor, capacity: int, factors: Mapping[int, float]
    ) -> Slots:
        """The cache of a prefill.

        Args:
            cache: keys and values of packed prompts.
            lengths: tokens of each, int64 [B].
            capacity: slots of each sequence, no less than the prompts are long.
            factors: by layer, the factor that the decode model's keys carry, where they do.
        """
        layers = [
            (_padded(layer.keys * factors.get(i, 1.0), capacity), _padded(layer.values, capacity))
            for i, layer in enumerate(cache.layers)
        ]
        return cls(layers, lengths)._cleared()

    def mask(self, dtype: torch.dtype) -> Tensor:
        """The additive mask of a step, [B, 1, 1, capacity + 1]: slots in use, and the new key."""
        slots = torch.arange(self.capacity + 1, device=self.lengths.device)
        hidden = (slots >= self.lengths[:, None]) & (slots < self.capacity)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None, None, :]

    def step(self) -> StepCache:
        """The cache of one step."""
        return StepCache(dict(enumerate(self.layers)))

    def without_last(self, count: int) -> Slots:
        """A copy as it was `count` positions earlier."""
        return Slots(self.layers, self.lengths - count)._cleared()

    def packed(self, decode: nn.Module) -> Slots:
        """These slots, in codes where a quantised decode model has a `kv_cache`."""
        quantizers = cache_quantizers(decode)
        if not quantizers:
            return self
        return Slots(PackedLayers(self.layers, self.lengths, quantizers), self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values take."""
        if isinstance(self.layers, PackedLayers):
            return self.layers.nbytes
        return sum(states.nbytes for pair in self.layers for states in pair)

    def write(self, new: StepCache, rows: Tensor) -> None:
        """Puts the new keys and values of a step into the next slot of each sequence.

        Args:
            new: the cache that the step was given.
            rows: which sequences go on, bool [B]; the others stay as they are.
        """
        batch = rows.nonzero().squeeze(-1)
        slots = self.lengths[batch]
        if isinstance(self.layers, PackedLayers):
            self.layers.append(new.new.values(), rows)
        else:
            for (keys, values), (key, value) in zip(self.layers, new.new.values(), strict=True):
                keys[batch, :, slots] = key[batch, :, 0]
                values[batch, :, slots] = value[batch, :, 0]
        self.lengths = self.lengths + rows

    def _cleared(self) -> Slots:
        """A copy in which what is not in use is zero."""
        slots = torch.arange(self.capacity, device=self.lengths.device)
        free = (slots >= self.lengths[:, None])[:, None, :, None]
        layers = [
            (keys.masked_fill(free, 0.0), values.masked_fill(free, 0.0))
            for keys, values in self.layers
        ]
        return Slots(layers, self.lengths)


@checked(ArgumentError)
class Runtime:
    """Prefill and decode over a static cache.

    Args:
        prefill: a causal LM that takes whole prompts.
        decode: a causal LM that takes one token at a time; `prefill` itself by default.
        capacity: how many positions of a sequence the cache holds.

    Raises:
        ModelInputError: a capacity below 1.
    """

    def __init__(
        self, prefill: nn.Module, decode: nn.Module | None = None, *, capacity: int
    ) -> None:
        if capacity < 1:
            raise ModelInputError(f"found a capacity of {capacity}; expected at least 1 position")
        self.prefill = prefill
        self.decode = prefill if decode is None else decode
        self.capacity = capacity

    @checked(ArgumentError)
    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int = 0,
    ) -> Tensor:
        """Returns the new tokens, int64 [B, at most max_new_tokens].

        Args:
            input_ids: the prompts, [B, prompt].
            attention_mask: 1 for tokens and 0 for padding on either side, [B, prompt]; by default
                there is none.
            max_new_tokens: tokens for each sequence.
            sampling: how tokens are drawn; by default the likeliest is taken.
            eos_token_id: ends a sequence; the rest of its row is `pad_token_id`.
            pad_token_id: see above.

        Raises:
            ModelInputError: a prompt without tokens or longer than the capacity, or no new tokens
                wanted.
            CacheFullError: a sequence would outgrow the capacity; it holds the tokens so far.
        """
        if max_new_tokens < 1:
            raise ModelInputError(f"found max_new_tokens of {max_new_tokens}; expected at least 1")
        given = {"input_ids": input_ids}
        if attention_mask is not None:
            given["attention_mask"] = attention_mask
        prompts = Prompts.packed(given)
        if prompts.longest > self.capacity:
            raise ModelInputError(
                f"a prompt has {prompts.longest} tokens, and the cache a capacity of "
                f"{self.capacity}: give more capacity or a shorter prompt"
            )
        pick = _likeliest if sampling is None else sampling.chooser(input_ids.device)
        logits, slots = self._run_prefill(prompts)
        running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        generated: list[Tensor] = []
        while True:
            tokens = pick(logits).where(running, pad_token_id)
            generated.append(tokens)
            if eos_token_id is not None:
                running = running & (tokens != eos_token_id)
            if len(generated) == max_new_tokens or not running.any():
                return torch.stack(generated, dim=1)
            longest = int(slots.lengths[running].max())
            if longest == self.capacity:
                raise CacheFullError(
                    f"the cache is full: a sequence has {longest} positions and the capacity is "
                    f"{self.capacity}, after {len(generated)} of {max_new_tokens} new tokens. Give "
                    "more capacity or ask for fewer tokens; the error's `tokens` are those so far",
                    torch.stack(generated, dim=1),
                )
            cache = slots.step()
            output = self.decode(**step_inputs(self.decode, tokens, slots, cache))
            slots.write(cache, running)
            logits = output.logits[:, -1]

    def _run_prefill(self, prompts: Prompts) -> tuple[Tensor, Slots]:
        """The logits after each prompt, [B, vocabulary], and the cache to go on from."""
        ends, of_row = (prompts.lengths - 1).unique(return_inverse=True)
        logits, slots = run_prefill(
            self.prefill, self.decode, prompts, self.capacity, logits_to_keep=ends
        )
        return logits[torch.arange(len(of_row)), of_row], slots.packed(self.decode)


def run_prefill(
    prefill: nn.Module,
    decode: nn.Module,
    prompts: Prompts,
    capacity: int,
    *,
    logits_to_keep: int | Tensor,
) -> tuple[Tensor, Slots]:
    """Runs prompts, and returns logits and the static cache to go on from.

    Args:
        prefill: a causal LM.
        decode: the causal LM that goes on, which decides the form of the keys.
        prompts: no longer than `capacity`.
        capacity: slots for each sequence.
        logits_to_keep: of which positions, or of how many of the last ones, 0 for all.

    Returns:
        The logits [B, kept, vocabulary], and the slots.
    """
    cache = DynamicCache()
    output = prefill(
        **prompts.inputs(), past_key_values=cache, use_cache=True, logits_to_keep=logits_to_keep
    )
    return output.logits, Slots.from_prefill(cache, prompts.lengths, capacity, key_factors(decode))


def step_inputs(
    decode: nn.Module, tokens: Tensor, slots: Slots, cache: StepCache
) -> dict[str, Any]:
    """Returns the keyword arguments of a decode model for one more token of each sequence.

    Args:
        decode: a causal LM.
        tokens: [B].
        slots: the static cache.
        cache: of this step, over the layers of `slots`.
    """
    return {
        "input_ids": tokens[:, None],
        "attention_mask": slots.mask(next(decode.parameters()).dtype),
        "position_ids": slots.lengths[:, None],
        "past_key_values": cache,
        "use_cache": True,
    }


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def _padded(states: Tensor, capacity: int) -> Tensor:
    # states: [B, kv_heads, prompt, head_dim] -> [B, kv_heads, capacity, head_dim]
    return nn.functional.pad(states, (0, 0, 0, capacity - states.shape[2]))
