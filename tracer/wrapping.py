"""Candidates that wrappers make: wrapped, quantised, and the decode variant.

The wrappers are imported where they are needed, and known by their public names only.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tracer.choices import CANDIDATES, NEED_WRAPPERS
from tracer.errors import UsageError
from tracer.stepping import Stepping
from tracer.words import listed

Progress = Callable[[Iterable[Any]], Iterable[Any]]

# How many of the last tokens of each prompt a single decode step is calibrated on.
_CALIBRATED_STEPS = 8


def wrapped(model: nn.Module, activation: str, weight: str, variant: str) -> nn.Module:
    """The model wrapped for quantisation, with quantisation off."""
    import wrappers

    config = wrappers.PTQConfig(
        activation=wrappers.affine(activation), weight=wrappers.affine(weight), variant=variant
    )
    return wrappers.prepare(model, config).eval()


def check_wrappers(model: nn.Module, name: str, kind: str) -> None:
    """Refuses a model of which only linear layers, norms and the like would be wrapped.

    Raises:
        UsageError: there are no wrappers for its class.
    """
    from transformers import PreTrainedModel

    import wrappers

    # A head of another kind may stand on a model that has wrappers.
    classes = {type(model), type(getattr(model, "base_model", model))}
    wrapped = wrappers.registry.wrapped_classes()
    if classes.intersection(wrapped):
        return
    known = [cls.__name__ for cls in wrapped if issubclass(cls, PreTrainedModel)]
    others = ", ".join(other for other in CANDIDATES if other not in NEED_WRAPPERS)
    raise UsageError(
        f"there are no wrappers for {type(model).__name__}, so {name} has no candidate "
        f"{kind!r}; there are for {listed(sorted(known))}; without wrappers work {others}, or the "
        "path of a model"
    )


def quantized(
    wrapped: nn.Module, batches: Iterable[dict[str, Any]], progress: Progress | None
) -> nn.Module:
    """A wrapped model, calibrated and quantised."""
    import wrappers

    wrappers.calibrate(wrapped, batches, progress=progress)
    return wrappers.convert(wrapped)


def decoding(
    model: nn.Module,
    wrap: Callable[[str], nn.Module],
    prompts: Sequence[dict[str, torch.Tensor]] | None,
    steps: int | None,
    progress: Progress | None,
) -> nn.Module:
    """The decode variant, after a prefill where there are steps; quantised if there are prompts."""
    import wrappers

    decode = wrap("decode")
    if steps is None:
        if prompts is None:
            return decode
        shortest = min(_shortest(prompt) for prompt in prompts)
        count = max(1, min(_CALIBRATED_STEPS, shortest - 1))
        inputs = wrappers.decode_inputs(model, decode, prompts, steps=count, source="float")
        return quantized(decode, inputs, progress)
    prefill = wrap("prefill")
    if prompts is not None:
        wrappers.calibrate_both(
            prefill, decode, prompts, steps=steps, source="float", progress=progress
        )
        prefill, decode = wrappers.convert(prefill), wrappers.convert(decode)
    return Stepping(prefill, decode, steps=steps)


def _shortest(prompt: Mapping[str, torch.Tensor]) -> int:
    """Tokens of the shortest row."""
    mask = prompt.get("attention_mask")
    return prompt["input_ids"].shape[1] if mask is None else int(mask.sum(dim=1).min())
