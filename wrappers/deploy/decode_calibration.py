"""Calibration of a decode model: on what it meets after a float or a quantised prefill.

    calibrate_decode(prefill, decode, batches, steps=16, source="float")
    quantized = wrappers.convert(decode)

Of each prompt in a batch the last `steps` tokens are taken one at a time, as they would be in
generation; the keys and values before them are those that the prefill model computes. Where there
are images, a turn comes before these steps: each prompt from its first image on, appended to what
comes before it, as a further turn of a conversation is. Which model the prefill is makes two
objectives:

| source | the prefill model | the objective |
|---|---|---|
| `float` | not quantised | to decode as the float model does, on the float model's past |
| `quantized` | quantised, as it is deployed | to decode well on a past that has its errors |

Inputs are made one by one as they are asked for, and memory holds the cache of one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import nn

from trace_model.annotations import checked
from wrappers.core.module import iter_wrappers
from wrappers.core.point import Mode
from wrappers.deploy.prompts import PromptBatch, Prompts
from wrappers.deploy.runtime import run_prefill, step_inputs, turn_inputs
from wrappers.errors import ArgumentError, ModeError, ModelInputError
from wrappers.quantize import Progress, calibrate, convert, set_mode, warn_of_dropped

Source = Literal["float", "quantized"]

_ADVICE = {
    "batches": "each is token ids [batch, prompt], or a mapping that holds them as input_ids, such "
    "as torch.tensor([[1, 5, 7]])"
}


@checked(ArgumentError, but=("source",), advice=_ADVICE)
def decode_inputs(
    prefill: nn.Module,
    decode: nn.Module,
    batches: Iterable[PromptBatch],
    *,
    steps: int,
    source: Source,
) -> Iterator[dict[str, Any]]:
    """Yields keyword arguments of the decode model, `steps` for each batch of prompts, and one more
    before them for a batch with images.

    Args:
        prefill: the causal LM that computes the past: float or wrapped, and quantised just if
            `source` says so. It observes nothing meanwhile.
        decode: the wrapped causal LM that the inputs are for; it is not run.
        batches: of prompts, each token ids [B, prompt], or these as `input_ids` with an
            `attention_mask` and what a processor returns of images and videos; every row longer
            than `steps`, and with as many tokens of text after its last image.
        steps: how many of the last tokens of each row are decoded.
        source: where the past comes from, see this module's table.

    Raises:
        ModelInputError: an unknown source, fewer than one step, or, when its turn comes, a prompt
            that is too short, ends in too little text, or has images that are not whole.
        ModeError: the prefill model, when it begins, is not what `source` says.
    """
    _check_options(steps, source)
    return _inputs(prefill, decode, batches, steps, source, together=False)


@checked(ArgumentError, but=("source",), advice=_ADVICE)
def calibrate_decode(
    prefill: nn.Module,
    decode: nn.Module,
    batches: Iterable[PromptBatch],
    *,
    steps: int,
    source: Source,
    progress: Progress | None = None,
) -> None:
    """Calibrates the decode model alone; see `decode_inputs` for the arguments and errors.

    Args:
        progress: as in `calibrate`; it counts steps.
    """
    inputs = decode_inputs(prefill, decode, batches, steps=steps, source=source)
    calibrate(decode, inputs, progress=progress)


@checked(ArgumentError, but=("source",), advice=_ADVICE)
def calibrate_both(
    prefill: nn.Module,
    decode: nn.Module,
    batches: Iterable[PromptBatch],
    *,
    steps: int,
    source: Source,
    progress: Progress | None = None,
) -> None:
    """Calibrates two wrapped models of one float model on the same prompts.

    With `float` both observe in one pass. With `quantized` the prefill model is calibrated and
    converted first, and the prompts are gone through twice.

    Args:
        prefill: wrapped, in a variant of prefill; quantised afterwards if `source` is `quantized`.
        decode: wrapped, in the variant `decode`.
        batches: as for `decode_inputs`; not an iterator if they are gone through twice.
        steps: as for `decode_inputs`.
        source: as for `decode_inputs`.
        progress: as in `calibrate`; it counts steps.

    Raises:
        ModelInputError: see `decode_inputs`; or batches that can be gone through once only.
        ModeError: a model has no wrappers.
    """
    _check_options(steps, source)
    if source == "float":
        set_mode(prefill, Mode.CALIBRATE)
        inputs = _inputs(prefill, decode, batches, steps, source, together=True)
        calibrate(decode, inputs, progress=progress)
        warn_of_dropped(prefill)
        return
    if isinstance(batches, Iterator):
        raise ModelInputError(
            "the batches are gone through twice, first for the prefill, and an iterator is "
            "used up then: give a list or another iterable that can begin again"
        )
    calibrate(prefill, (Prompts.packed(batch).inputs() for batch in batches))
    convert(prefill)
    calibrate_decode(prefill, decode, batches, steps=steps, source=source, progress=progress)


def take_weights(decode: nn.Module, prefill: nn.Module) -> None:
    """Gives a prepared decode model the weights of its prefill model, which an algorithm may have
    rounded, and with them the weight points that it has locked.

    Args:
        decode: prepared from the float model that `prefill` was, or one that computes the same.
        prefill: in the variant `prefill`, in which weights are what they are in `decode`.
    """
    wrapped = dict(iter_wrappers(prefill))
    for name, wrapper in iter_wrappers(decode):
        source = wrapped[name]
        for own_name, parameter in source.named_parameters(recurse=False):
            setattr(wrapper, own_name, parameter)
        states = source.point_states()
        wrapper.load_point_states(
            {point: states[point] for point, each in source.points.items() if each.locked}
        )


def check_prompts(packed: Prompts, steps: int) -> None:
    """Checks that each prompt of a batch has so many tokens to decode, and one before them.

    Raises:
        ModelInputError: one is too short, or ends in too little text.
    """
    shortest = int(packed.lengths.min())
    if int(packed.text_after.min()) < steps < shortest:
        raise ModelInputError(
            f"a prompt ends in {int(packed.text_after.min())} tokens of text after its images, and "
            f"{steps} are to be decoded, which images cannot be: give a longer text after them or "
            "fewer steps"
        )
    if shortest <= steps:
        raise ModelInputError(
            f"a prompt has {shortest} tokens, and {steps} are to be decoded after at least "
            "one: give longer prompts or fewer steps"
        )


def _check_options(steps: int, source: Source) -> None:
    if source not in ("float", "quantized"):
        raise ModelInputError(f"found the source {source!r}; expected 'float' or 'quantized'")
    if steps < 1:
        raise ModelInputError(f"found {steps} steps; expected at least 1")


def _check_source(prefill: nn.Module, source: Source) -> None:
    quantized = any(wrapper.mode is Mode.QUANT for _, wrapper in iter_wrappers(prefill))
    if quantized != (source == "quantized"):
        found = "quantised" if quantized else "not quantised"
        raise ModeError(
            f"the source is {source!r}, and the prefill model is {found}: give the model that "
            "the past is to come from"
        )


def _inputs(
    prefill: nn.Module,
    decode: nn.Module,
    batches: Iterable[PromptBatch],
    steps: int,
    source: Source,
    *,
    together: bool,
) -> Iterator[dict[str, Any]]:
    """See `decode_inputs`; `together`: the prefill model is being calibrated too."""
    _check_source(prefill, source)
    for batch in batches:
        # What one needs is gone before the next.
        yield from _inputs_of_batch(prefill, decode, batch, steps, together=together)


def _inputs_of_batch(
    prefill: nn.Module, decode: nn.Module, batch: PromptBatch, steps: int, *, together: bool
) -> Iterator[dict[str, Any]]:
    packed = Prompts.packed(batch)
    check_prompts(packed, steps)
    logits_to_keep = 0 if together else 1  # observers are to see all
    with torch.no_grad(), ExitStack() as stack:
        for _, wrapper in () if together else iter_wrappers(prefill):
            stack.enter_context(wrapper.not_observing())
        _, slots = run_prefill(
            prefill, decode, packed, packed.longest, logits_to_keep=logits_to_keep
        )
    if packed.pixels:
        places = packed.first_visual.clamp(max=packed.lengths - 1)
        past, turn = slots.up_to(places), packed.after(places)
        yield turn_inputs(decode, turn, past, past.step())[0]
    for count in range(steps, 0, -1):
        past = slots.without_last(count)
        token = packed.input_ids.gather(1, past.lengths[:, None]).squeeze(1)
        yield step_inputs(decode, token, past, past.step())
