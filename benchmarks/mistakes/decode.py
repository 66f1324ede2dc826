"""Mistakes in decode steps: of a float Llama, of the wrapped variant `decode`, of a static cache, and
of a wrapped Qwen3-VL after images."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

import wrappers
from benchmarks.mistakes import llama, qwen3_vl
from benchmarks.mistakes.decoder import Tensor, correct_mask, one_weight, update
from benchmarks.mistakes.llama import ATTENTION, MLP, hand_on, model
from benchmarks.mistakes.planting import Mistake, assign, given, method, parameter
from tracer.execution.stepping import Stepping, ending_in_steps, prompt_of
from wrappers.attention.cache import StepCache
from wrappers.deploy.prompts import Prompts
from wrappers.deploy.runtime import Slots, run_prefill, step_inputs

STEPS = 4


class Generation(Stepping):
    """A path that names neither stage is one of the model that takes the steps."""

    def get_submodule(self, target: str) -> nn.Module:
        stage = target.partition(".")[0]
        named = stage in ("", "prefill", "decode")
        return super().get_submodule(target if named else f"decode.{target}")


class StaticGeneration(Generation):
    """Over a static cache, as on an accelerator."""

    kind: type[Slots] = Slots

    def forward(self, **inputs: Tensor) -> Tensor:
        inputs = ending_in_steps(inputs, self.steps)
        prompts = Prompts.packed(prompt_of(inputs, self.steps))
        capacity = prompts.longest + self.steps + 1  # room for a mistake
        logits, slots = run_prefill(self.prefill, self.decode, prompts, capacity, logits_to_keep=0)
        slots = self.kind(slots.layers, slots.lengths)
        for tokens in inputs["input_ids"][:, -self.steps :].unbind(1):
            cache = slots.step()
            self.decode(**step_inputs(self.decode, tokens, slots, cache))
            slots.write(cache, torch.ones_like(tokens, dtype=torch.bool))
        return logits


def generates(reference: Any) -> Generation:
    """A copy of a float model, as it generates."""
    return Generation(copy.deepcopy(reference.stages[""]), steps=reference.steps)


def prefill_and_decode(reference: Any, kind: type[Generation] = Generation) -> Generation:
    """Both variants of a float model, wrapped, with quantisation off, as they generate."""
    prefill, decode = (
        wrappers.prepare(reference.stages[""], wrappers.PTQConfig(variant=variant))
        for variant in ("prefill", "decode")
    )
    return kind(prefill, decode, steps=reference.steps)


# A float model's own attention and mask.


def written_early(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """A step's key and value come one slot early, over those before, and leave their own empty."""
    length = past.get_seq_length(layer)
    keys, values = update(past, key, value, layer)
    if length:
        for states, new in ((keys, key), (values, value)):
            states[:, :, -2:] = torch.cat([new, torch.zeros_like(new)], dim=2)
    return keys, values


def stale(past: Any, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """A step writes what the step before it has written."""
    if past.get_seq_length(layer):
        cached = past.layers[layer]
        key, value = cached.keys[:, :, -1:], cached.values[:, :, -1:]
    return update(past, key, value, layer)


def one_short(model: Any, hidden: Tensor, mask: Any, past: Any) -> Tensor:
    """After a past the mask hides the new token from itself."""
    right = correct_mask(model, hidden, mask, past)
    if past.get_seq_length():
        right[..., -1] = torch.finfo(right.dtype).min
    return right


def first_hidden(model: Any, hidden: Tensor, mask: Any, past: Any) -> Tensor:
    """After a past the mask is one position late."""
    right = correct_mask(model, hidden, mask, past)
    return right.roll(1, -1) if past.get_seq_length() else right


OF_STEPS = [
    Mistake("key and value of a step one slot early", llama.attention(cache=written_early), ATTENTION, "computation"),
    Mistake("key and value of a step stale", llama.attention(cache=stale), ATTENTION, "computation"),
    Mistake("mask of a step one short", model(make_mask=one_short), "model", "attention_mask"),
    Mistake("mask of a step one late", model(make_mask=first_hidden), "model", "attention_mask"),
]  # fmt: skip
FLOAT = [*llama.GENERATION, *OF_STEPS]


# The wrapped attention of decode.


def updated(
    change: Callable[..., tuple[Tensor, Tensor]], path: str = ATTENTION
) -> Callable[[Any], None]:
    """The attention goes on with other keys and values, each [B, kv_heads, key, head_dim]."""

    def compute(module: Any, own: Any, *args: Any) -> tuple[Tensor, Tensor]:
        return change(module, *own(*args))

    return method(path, "_updated", compute)


def keys_late(module: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return keys.roll(1, 2), values


def last_is_stale(module: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return keys[:, :, [*range(keys.shape[2] - 1), -2]], values


def past_without_factor(module: Any, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([keys[:, :, :-1] / module.key_factor, keys[:, :, -1:]], dim=2), values


def unrotated(module: Any, own: Any, q: Tensor, k: Tensor, v: Tensor, inputs: Any) -> Any:
    """Keys are turned back before they are rotated."""
    heads = k.view(*k.shape[:-1], -1, module.head_dim)
    turned = torch.cat(heads.chunk(2, -1)[::-1], dim=-1)
    heads = heads * inputs.cos.unsqueeze(2) - turned * inputs.sin.unsqueeze(2)
    return own(q, heads.flatten(-2), v, inputs)


def additive(change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """The model of the steps makes another mask."""

    def plant(candidate: Any) -> None:
        masks = candidate.get_submodule("model").masks
        own = masks.additive
        masks.additive = lambda mask, **kwargs: change(own(mask, **kwargs))

    return plant


def last_hidden(mask: Tensor) -> Tensor:
    return torch.cat([mask[..., :-1], torch.full_like(mask[..., -1:], -120.0)], dim=-1)


WRAPPED = [
    Mistake("keys of the past one slot late", updated(keys_late), ATTENTION, "computation"),
    Mistake("key of the step stale", updated(last_is_stale), ATTENTION, "computation"),
    Mistake("keys and values of another layer", llama.neighbours_cache, ATTENTION, "computation", line="layer_idx"),
    Mistake("key of the step not rotated", method(ATTENTION, "_attend_heads", unrotated), ATTENTION, "computation"),
    Mistake("keys of the past without the folded factor", updated(past_without_factor), ATTENTION, "computation"),
    Mistake("keys cached with the folded factor", assign(ATTENTION, "key_factor", lambda f: 1.0), ATTENTION, "computation", line="_factor"),
    Mistake("keys cached with the folded factor by the prefill", assign(f"prefill.{ATTENTION}", "key_factor", lambda f: 1.0), ATTENTION, "computation", line="_factor"),
    Mistake("mask of a step one short", additive(last_hidden), "model", "attention_mask"),
    Mistake("mask of a step one late", additive(partial(torch.roll, shifts=1, dims=-1)), "model", "attention_mask"),
    Mistake("padding of the past shown", additive(torch.zeros_like), "model", "attention_mask"),
    Mistake("one weight of the decode model", parameter(f"{MLP}.up_proj", one_weight), f"{MLP}.up_proj", "parameter"),
    Mistake("one weight of the prefill model", parameter(f"prefill.{MLP}.up_proj", one_weight), f"{MLP}.up_proj", "parameter"),
    Mistake("rope tables exchanged", llama.after("model.rotary_emb", lambda tables: tables[::-1]), "model.rotary_emb", "computation"),
    Mistake("next position off by one", hand_on(position_ids=lambda ids: ids + 1), "", "position_ids"),
    Mistake("token of another sequence", hand_on(input_ids=lambda ids: ids.roll(1, 0)), "", "input_ids"),
    Mistake("padding forgotten after the prefill", hand_on(attention_mask=torch.ones_like), "", "attention_mask"),
    Mistake("sequences of the cache exchanged", hand_on(past_key_values=llama.reordered), "", "past_key_values"),
    Mistake("stale last position in the cache", hand_on(past_key_values=llama.repeated), "", "past_key_values"),
]  # fmt: skip


# The static cache.


class WrittenLate(Slots):
    """Writes one slot late."""

    def write(self, new: StepCache, rows: Tensor) -> None:
        self.lengths = self.lengths + 1
        super().write(new, rows)
        self.lengths = self.lengths - 1


class WrittenEarly(Slots):
    """Writes over the last slot in use."""

    def write(self, new: StepCache, rows: Tensor) -> None:
        self.lengths = self.lengths - 1
        super().write(new, rows)
        self.lengths = self.lengths + 1


class NotWritten(Slots):
    """What a step returns is lost."""

    def write(self, new: StepCache, rows: Tensor) -> None:
        self.lengths = self.lengths + rows


class OtherLayer(Slots):
    """Two layers are given each other's slots."""

    def step(self) -> StepCache:
        return StepCache(dict(enumerate([self.layers[i] for i in (0, 2, 1, 3)])))


class OneShort(Slots):
    """The mask hides the last slot in use."""

    def mask(self, dtype: torch.dtype) -> Tensor:
        short = Slots(self.layers, self.lengths - 1)
        return short.mask(dtype)


class OneLong(Slots):
    """The mask shows a slot that is not in use."""

    def mask(self, dtype: torch.dtype) -> Tensor:
        long = Slots(self.layers, self.lengths + 1)
        return long.mask(dtype)


class OfTheLongest(Slots):
    """The mask is that of the longest sequence for all."""

    def mask(self, dtype: torch.dtype) -> Tensor:
        return Slots(self.layers, self.lengths.max().expand_as(self.lengths)).mask(dtype)


class Unscaled(Slots):
    """Keys of the prefill are taken over without the folded factor."""

    def __init__(self, layers: Any, lengths: Tensor) -> None:
        head_dim = layers[0][0].shape[-1]
        super().__init__([(keys * head_dim**0.5, values) for keys, values in layers], lengths)


def slots(kind: type[Slots]) -> Callable[[Any], None]:
    return assign("", "kind", lambda own: kind)


STATIC = [
    Mistake("slot written one late", slots(WrittenLate), "", "past_key_values"),
    Mistake("slot written one early", slots(WrittenEarly), "", "past_key_values"),
    Mistake("slot not written", slots(NotWritten), "", "past_key_values"),
    Mistake("slots of another layer", slots(OtherLayer), "", "past_key_values"),
    Mistake("keys of the prefill without the folded factor", slots(Unscaled), "", "past_key_values"),
    Mistake("mask one short", slots(OneShort), "", "attention_mask"),
    Mistake("mask one long", slots(OneLong), "", "attention_mask"),
    Mistake("mask of the longest for all", slots(OfTheLongest), "", "attention_mask"),
]  # fmt: skip


# A wrapped Qwen3-VL, after images.


def offset(change: Callable[[Tensor], Tensor]) -> Callable[[Any], None]:
    """The steps count on with another offset than that of the images."""
    return method("", "step_inputs", lambda stepping, own, *args: own(*args[:-1], change(args[-1])))


def features_again(self: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    """The text model takes what was added for the images of the prompt for the new token too."""
    hidden = kwargs["inputs_embeds"]
    shown = torch.ones(hidden.shape[:2], dtype=torch.bool)
    kwargs["visual_pos_masks"] = shown
    kwargs["deepstack_visual_embeds"] = [torch.ones_like(hidden[shown])] * self.deepstack_layers
    return own(*args, **kwargs)


QWEN_ATTENTION, TEXT = qwen3_vl.ATTENTION, qwen3_vl.TEXT
QWEN3_VL = [
    Mistake("offset of the images ignored", offset(torch.zeros_like), "", "position_ids"),
    Mistake("offset of the images twice", offset(lambda deltas: 2 * deltas), "", "position_ids"),
    Mistake("offset of the images exchanged between sequences", offset(lambda deltas: deltas.flip(0)), "", "position_ids"),
    Mistake("next position off by one", hand_on(position_ids=lambda ids: ids + 1), "", "position_ids"),
    Mistake("offset of the images forgotten by the model", given(TEXT, position_ids=lambda ids: ids + 7), "model", "position_ids"),
    Mistake("rotate-half sign", method(QWEN_ATTENTION, "sine_table", llama.other_sine), QWEN_ATTENTION, "computation"),
    Mistake("deepstack added again in a step", method(TEXT, "forward", features_again), TEXT, "computation"),
    Mistake("keys of the past one slot late", updated(keys_late, QWEN_ATTENTION), QWEN_ATTENTION, "computation"),
    Mistake("key of the step stale", updated(last_is_stale, QWEN_ATTENTION), QWEN_ATTENTION, "computation"),
    Mistake("keys of the past without the folded factor", updated(past_without_factor, QWEN_ATTENTION), QWEN_ATTENTION, "computation"),
    Mistake("keys of a step not normalised", parameter(f"{QWEN_ATTENTION}.k_norm", torch.ones_like), f"{QWEN_ATTENTION}.k_norm", "parameter"),
    Mistake("padding of the past shown", hand_on(attention_mask=torch.ones_like), "", "attention_mask"),
]  # fmt: skip
