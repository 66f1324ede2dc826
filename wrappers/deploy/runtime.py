"""Generates as an accelerator does: one prefill, then steps over a static cache.

    runtime = Runtime(prefill, decode, capacity=256)
    tokens = runtime.generate(input_ids, attention_mask, max_new_tokens=64)

    chat = runtime.conversation()
    answer = chat.generate(**processor(...), max_new_tokens=64)
    answer = chat.generate(**processor(...), max_new_tokens=64)     # goes on, with another image

Each of the two is a causal LM of transformers or a wrapped or quantised copy of one: the variant
`prefill` or `prefill_reference` for the first, `decode` for the second. A float model serves as
both.

Every step has the same shapes: one token for each sequence, a cache with a slot for each position
that it can hold, and a mask over the slots. A further turn is a step of more tokens, which the
decode model takes as well, with its images. Sequences may be of different lengths: prompts are
packed to the left first, whichever side they were padded on, and so are their slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from trace_model.annotations import checked
from wrappers.attention.cache import StepCache
from wrappers.attention.packed import PackedLayers
from wrappers.deploy.prompts import VISUAL, Prompts
from wrappers.deploy.sampling import Sampling
from wrappers.errors import ArgumentError, CacheFullError, ModelInputError
from wrappers.layers.decoder_blocks import cache_quantizers, key_factors


class Slots:
    """The static cache of a batch, and what a step over it takes.

    Attributes:
        layers: for each layer its keys and values, each [B, kv_heads, capacity, head_dim]; the keys
            as the decode model works with them. What is not in use is zero.
        lengths: how many slots of each sequence are in use, from the left, int64 [B].
        deltas: the position that comes next in each sequence, less its slots in use, int64 [B];
            images make it another than 0.
        capacity: how many positions of a sequence there is room for.
    """

    def __init__(
        self,
        layers: list[tuple[Tensor, Tensor]] | PackedLayers,
        lengths: Tensor,
        deltas: Tensor | None = None,
    ) -> None:
        self.layers = layers
        self.lengths = lengths
        self.deltas = torch.zeros_like(lengths) if deltas is None else deltas
        self.capacity: int = next(iter(layers))[0].shape[2]

    @classmethod
    def from_prefill(
        cls,
        cache: DynamicCache,
        lengths: Tensor,
        capacity: int,
        factors: Mapping[int, float],
        deltas: Tensor | None = None,
    ) -> Slots:
        """The cache of a prefill.

        Args:
            cache: keys and values of packed prompts.
            lengths: tokens of each, int64 [B].
            capacity: slots of each sequence, no less than the prompts are long.
            factors: by layer, the factor that the decode model's keys carry, where they do.
            deltas: what images make of the positions after them, int64 [B]; by default nothing.
        """
        layers = [
            (_padded(layer.keys * factors.get(i, 1.0), capacity), _padded(layer.values, capacity))
            for i, layer in enumerate(cache.layers)
        ]
        return cls(layers, lengths, deltas)._cleared()

    def mask(self, dtype: torch.dtype, tokens: int = 1) -> Tensor:
        """The additive mask of a step, [B, 1, tokens, capacity + tokens]: slots in use, and the new
        keys up to each token's own."""
        device = self.lengths.device
        free = torch.arange(self.capacity, device=device) >= self.lengths[:, None]
        later = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)
        rows = len(self.lengths), tokens, -1
        hidden = torch.cat([free[:, None].expand(rows), later.expand(rows)], dim=-1)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]

    def step(self) -> StepCache:
        """The cache of one step."""
        return StepCache(dict(enumerate(self.layers)))

    def without_last(self, count: int) -> Slots:
        """A copy as it was `count` positions earlier, all of them text."""
        return Slots(self.layers, self.lengths - count, self.deltas)._cleared()

    def up_to(self, lengths: Tensor) -> Slots:
        """A copy that holds only the first positions of each, int64 [B], all of them text."""
        return Slots(self.layers, lengths)._cleared()

    def packed(self, decode: nn.Module) -> Slots:
        """These slots, in codes where a quantised decode model has a `kv_cache`."""
        quantizers = cache_quantizers(decode)
        if not quantizers:
            return self
        layers = PackedLayers(self.layers, self.lengths, quantizers)
        return Slots(layers, self.lengths, self.deltas)

    @property
    def nbytes(self) -> int:
        """Bytes that the keys and values take."""
        if isinstance(self.layers, PackedLayers):
            return self.layers.nbytes
        return sum(states.nbytes for pair in self.layers for states in pair)

    def write(self, new: StepCache, counts: Tensor) -> None:
        """Puts the new keys and values of a step into the next slots of each sequence.

        Args:
            new: the cache that the step was given.
            counts: how many of the new positions of each are kept, from the first on, int64 [B];
                in a step of one token, whether it is, bool [B].
        """
        if isinstance(self.layers, PackedLayers):
            self.layers.append(new.new.values(), counts)
        else:
            keys, _ = next(iter(new.new.values()))
            kept = torch.arange(keys.shape[2], device=counts.device) < counts[:, None]
            rows, places = kept.nonzero(as_tuple=True)
            slots = self.lengths[rows] + places
            for (keys, values), (key, value) in zip(self.layers, new.new.values(), strict=True):
                keys[rows, :, slots] = key[rows, :, places]
                values[rows, :, slots] = value[rows, :, places]
        self.lengths = self.lengths + counts

    def _cleared(self) -> Slots:
        """A copy in which what is not in use is zero."""
        slots = torch.arange(self.capacity, device=self.lengths.device)
        free = (slots >= self.lengths[:, None])[:, None, :, None]
        layers = [
            (keys.masked_fill(free, 0.0), values.masked_fill(free, 0.0))
            for keys, values in self.layers
        ]
        return Slots(layers, self.lengths, self.deltas)


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

    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        """Returns the new tokens after one turn; see `Conversation.generate`."""
        return self.conversation().generate(input_ids, attention_mask, **options)

    def conversation(self) -> Conversation:
        """Turns of which each goes on after those before it, over one cache."""
        return Conversation(self)


class Conversation:
    """Turns of a batch over one static cache; `Runtime.conversation` begins one.

    Args:
        runtime: whose models read and write.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._slots: Slots | None = None
        self._last = torch.empty(0)  # of each sequence the last token, which no model has read

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
        **visual: Tensor | None,
    ) -> Tensor:
        """Returns the new tokens, int64 [B, at most max_new_tokens].

        Args:
            input_ids: the prompts, [B, prompt]; in a further turn what comes after the tokens so
                far, an end of text included where one was made.
            attention_mask: 1 for tokens and 0 for padding on either side, [B, prompt]; by default
                there is none.
            max_new_tokens: tokens for each sequence.
            sampling: how tokens are drawn; by default the likeliest is taken.
            eos_token_id: ends a sequence; the rest of its row is `pad_token_id`.
            pad_token_id: see above.
            **visual: what a processor returns of the images and videos of this turn.

        Raises:
            ModelInputError: a prompt without tokens or longer than the room that there is, another
                number of sequences than before, no new tokens wanted, or images or videos that the
                model does not take or that are not whole.
            CacheFullError: a sequence would outgrow the capacity; it holds the tokens so far.
        """
        if max_new_tokens < 1:
            raise ModelInputError(f"found max_new_tokens of {max_new_tokens}; expected at least 1")
        if unknown := visual.keys() - set(VISUAL):
            raise ModelInputError(
                f"found {', '.join(sorted(unknown))}; of images and videos, expected some of "
                f"{', '.join(VISUAL)}"
            )
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **visual}
        prompts = Prompts.packed({k: v for k, v in given.items() if v is not None})
        pick = _likeliest if sampling is None else sampling.chooser(input_ids.device)
        logits, slots = self._read(prompts)
        running = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        generated: list[Tensor] = []
        while True:
            tokens = pick(logits).where(running, pad_token_id)
            self._last = tokens.where(running, self._last) if generated else tokens
            generated.append(tokens)
            if eos_token_id is not None:
                running = running & (tokens != eos_token_id)
            if len(generated) == max_new_tokens or not running.any():
                return torch.stack(generated, dim=1)
            longest = int(slots.lengths[running].max())
            if longest == slots.capacity:
                raise CacheFullError(
                    f"the cache is full: a sequence has {longest} positions and the capacity is "
                    f"{slots.capacity}, after {len(generated)} of {max_new_tokens} new tokens. "
                    "Give more capacity or ask for fewer tokens; the error's `tokens` are those "
                    "so far",
                    torch.stack(generated, dim=1),
                )
            cache, decode = slots.step(), self._runtime.decode
            output = decode(**step_inputs(decode, tokens, slots, cache))
            slots.write(cache, running)
            logits = output.logits[:, -1]

    def _read(self, prompts: Prompts) -> tuple[Tensor, Slots]:
        """The logits after each prompt, [B, vocabulary], and the cache to go on from."""
        runtime, slots = self._runtime, self._slots
        if slots is not None:
            prompts = _going_on(prompts, slots, self._last)
        used = (
            0 if slots is None else int((slots.lengths + prompts.lengths).max()) - prompts.longest
        )
        if used + prompts.longest > runtime.capacity:
            after = f" after {used} positions" if used else ""
            raise ModelInputError(
                f"a prompt has {prompts.longest} tokens{after}, and the cache a capacity of "
                f"{runtime.capacity}: give more capacity or a shorter prompt"
            )
        ends, of_row = (prompts.lengths - 1).unique(return_inverse=True)
        if slots is None:
            logits, slots = run_prefill(
                runtime.prefill, runtime.decode, prompts, runtime.capacity, logits_to_keep=ends
            )
            self._slots = slots = slots.packed(runtime.decode)
        else:
            cache = slots.step()
            inputs, deltas = turn_inputs(runtime.decode, prompts, slots, cache)
            logits = runtime.decode(**inputs, logits_to_keep=ends).logits
            slots.write(cache, prompts.lengths)
            slots.deltas = slots.deltas + deltas
        return logits[torch.arange(len(of_row)), of_row], slots


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
    positions, deltas = prompts.positions(prefill)
    given = {"position_ids": positions} if prompts.pixels else {}
    output = prefill(
        **prompts.inputs(),
        **given,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=logits_to_keep,
    )
    factors = key_factors(decode)
    slots = Slots.from_prefill(cache, prompts.lengths, capacity, factors, deltas)
    return output.logits, slots


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
    inputs, _ = turn_inputs(decode, Prompts(tokens[:, None], torch.ones_like(tokens)), slots, cache)
    return inputs


def turn_inputs(
    decode: nn.Module, prompts: Prompts, slots: Slots, cache: StepCache
) -> tuple[dict[str, Any], Tensor]:
    """Returns the keyword arguments of a decode model for further tokens of each sequence.

    Args:
        decode: a causal LM.
        prompts: the tokens, with their images and videos.
        slots: the static cache.
        cache: of this step, over the layers of `slots`.

    Returns:
        The arguments, and what the images and videos make of the positions after them, [B].
    """
    positions, deltas = prompts.positions(decode)
    return {
        "input_ids": prompts.input_ids,
        "attention_mask": slots.mask(next(decode.parameters()).dtype, prompts.longest),
        "position_ids": positions + (slots.lengths + slots.deltas)[:, None],
        "past_key_values": cache,
        "use_cache": True,
        **prompts.pixels,
    }, deltas


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def _going_on(prompts: Prompts, slots: Slots, last: Tensor) -> Prompts:
    """A further turn, with the last token of the one before in front of it."""
    if len(prompts.lengths) != len(slots.lengths):
        raise ModelInputError(
            f"found a turn of {len(prompts.lengths)} sequences in a conversation of "
            f"{len(slots.lengths)}; give one for each"
        )
    return prompts.beginning_with(last)


def _padded(states: Tensor, capacity: int) -> Tensor:
    # states: [B, kv_heads, prompt, head_dim] -> [B, kv_heads, capacity, head_dim]
    return nn.functional.pad(states, (0, 0, 0, capacity - states.shape[2]))
