"""What is wrong with a quantised model and raises nothing: scales, zero points, what was left out.

A checkpoint that lacks a scale still loads, with whatever its place in memory holds; a scale of 1.0
is what one is often initialised with; a weight that no target matches stays as it was.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from tracer.adapters.quantised import compressed, torchao
from tracer.adapters.quantised.adapter import QuantizedTensor
from tracer.adapters.quantised.lookup import adapter_of, adapters
from tracer.text import figure

# So many equal scales are no chance.
_MANY = 8
_UNUSED = 1 / 8
_LOADED = "_mistakes_in_loading"


class SilentKind(StrEnum):
    """What is wrong."""

    SCALE_OF_ONE = "scale_of_one"
    SCALE_NOT_POSITIVE = "scale_not_positive"
    SCALE_NOT_FINITE = "scale_not_finite"
    UNFILLED = "unfilled"  # no tensor of the checkpoint, or no data, filled it
    ZERO_POINT_OUTSIDE = "zero_point_outside"
    NOT_QUANTIZED = "not_quantized"  # although the config says so
    IGNORED_YET_QUANTIZED = "ignored_yet_quantized"
    PER_TENSOR = "per_tensor"  # where the config says per channel or group


@dataclass(frozen=True)
class SilentMistake:
    """One thing that is wrong.

    Attributes:
        kind: what.
        module: the candidate's name of the module.
        tensor: which of its tensors, or which scale: "weight_scale".
        found, expected: both sides of it, in figures; empty where the kind says it all.
    """

    kind: SilentKind
    module: str
    tensor: str
    found: str = ""
    expected: str = ""


@dataclass(frozen=True)
class SilentMistakes:
    """All that is silently wrong with a candidate."""

    found: tuple[SilentMistake, ...]


def silent_mistakes(model: nn.Module) -> SilentMistakes | None:
    """What is silently wrong with a model that others quantised; None if nothing is."""
    loaded: tuple[SilentMistake, ...] = vars(model).get(_LOADED, ())
    known = {(mistake.module, mistake.tensor) for mistake in loaded}
    found = list(loaded)
    for name, adapter in adapters(model):
        for part, tensor in adapter.tensors.items():
            found += [m for m in _of(name, part, tensor) if (m.module, m.tensor) not in known]
    for mistake in _against_configs(model):
        if not any((m.kind, m.module) == (mistake.kind, mistake.module) for m in found):
            found.append(mistake)
    return SilentMistakes(tuple(found)) if found else None


def take_from_report(model: nn.Module, report: Mapping[str, Any]) -> dict[str, Any]:
    """Notes what a checkpoint lacks of scales, and has too much.

    Args:
        report: what transformers says of loading it.

    Returns:
        The report without what was noted: what is left makes the model another one.
    """
    mistakes: list[SilentMistake] = []

    def is_noted(key: str, kind: SilentKind, found: str = "", expected: str = "") -> bool:
        name, _, own = key.rpartition(".")
        adapter = adapter_of(_module(model, name))
        if adapter is None or own not in adapter.own or not own.endswith(("_scale", "_zero_point")):
            return False
        mistakes.append(SilentMistake(kind, name, own, found, expected))
        return True

    def is_coarser(stored: Sequence[int], expected: Sequence[int]) -> bool:
        return math.prod(stored) < math.prod(expected)

    missing = {k for k in report["missing_keys"] if not is_noted(k, SilentKind.UNFILLED)}
    mismatched = {
        (key, stored, expected)
        for key, stored, expected in report["mismatched_keys"]
        if not (key.endswith("_scale") and is_coarser(stored, expected))
        or not is_noted(key, SilentKind.PER_TENSOR, str(list(stored)), str(list(expected)))
    }
    ignored: dict[str, str] = {}
    for key in sorted(report["unexpected_keys"]):
        name, _, own = key.rpartition(".")
        is_of_weight = own in ("weight_scale", "weight_packed")
        if is_of_weight and _is_module(model, name) and adapter_of(_module(model, name)) is None:
            ignored.setdefault(name, own)
    for name, own in ignored.items():
        mistakes.append(
            SilentMistake(SilentKind.IGNORED_YET_QUANTIZED, name, "weight", f"its {own} is stored")
        )
    if mistakes:
        vars(model)[_LOADED] = tuple(
            sorted(_sharpened(model, mistakes), key=lambda m: (m.module, m.tensor))
        )
    return {**report, "missing_keys": missing, "mismatched_keys": mismatched}


def _sharpened(model: nn.Module, mistakes: list[SilentMistake]) -> Iterator[SilentMistake]:
    """Where a weight's scale is lacking, it may not have been quantised at all."""
    for mistake in mistakes:
        weight = getattr(_module(model, mistake.module), "weight", None)
        is_scale = mistake.kind is SilentKind.UNFILLED and mistake.tensor == "weight_scale"
        if is_scale and weight is not None and _was_float(weight):
            yield SilentMistake(SilentKind.NOT_QUANTIZED, mistake.module, "weight")
        yield mistake


def _was_float(weight: torch.Tensor) -> bool:
    """Whether a loaded weight holds floats as they were, or what a cast has left of them.

    A quantised one uses most of the range of its dtype.
    """
    values = weight.detach().float()
    if weight.dtype.itemsize > 1:
        return not torch.equal(values, values.round())
    of = torch.finfo if weight.is_floating_point() else torch.iinfo
    return bool(values.abs().max() < _UNUSED * of(weight.dtype).max)


def _of(module: str, part: str, tensor: QuantizedTensor) -> Iterator[SilentMistake]:
    """What is wrong with a tensor's scale and zero point."""
    if not tensor.is_seen:
        yield SilentMistake(SilentKind.UNFILLED, module, part, "it saw no data")
        return
    for name, scale in tensor.scales.items():
        label = name if name.startswith(part) else f"{part}.{name}"
        yield from _of_scale(module, label, scale.detach().flatten().float(), tensor)
    if tensor.zero_point is None or tensor.zero_points is None:
        return
    low, high = tensor.zero_points
    points = tensor.zero_point.detach().flatten().double()
    outside = points[(points < low) | (points > high)]
    if len(outside):
        expected = figure(low) if low == high else f"{figure(low)} to {figure(high)}"
        yield SilentMistake(
            SilentKind.ZERO_POINT_OUTSIDE,
            module,
            f"{part}_zero_point",
            _counted(outside[0].item(), len(outside), len(points)),
            expected,
        )


def _of_scale(
    module: str, name: str, scale: torch.Tensor, tensor: QuantizedTensor
) -> Iterator[SilentMistake]:
    wrong = {
        SilentKind.SCALE_NOT_FINITE: ~scale.isfinite(),
        SilentKind.SCALE_NOT_POSITIVE: scale <= 0,
        SilentKind.SCALE_OF_ONE: (scale == 1.0) & (not tensor.may_be_one),
    }
    for kind, mask in wrong.items():
        if mask.any():
            value = scale[mask][0].item()
            yield SilentMistake(kind, module, name, _counted(value, int(mask.sum()), len(scale)))
    if any(mask.any() for mask in wrong.values()) or "global" in name:
        return
    is_one = tensor.channels > 1 and len(scale) == 1
    is_equal = len(scale) >= _MANY and tensor.channels > 1 and bool((scale == scale[0]).all())
    if is_one or (is_equal and not tensor.may_be_one):
        found = "1 scale" if is_one else f"{len(scale)} equal scales, {figure(scale[0].item())}"
        yield SilentMistake(SilentKind.PER_TENSOR, module, name, found, f"{tensor.channels} scales")


def _counted(value: float, count: int, whole: int) -> str:
    return figure(value) + (f", {count} of {whole}" if whole > 1 else "")


def _against_configs(model: nn.Module) -> Iterator[SilentMistake]:
    missed, ignored = compressed.against_config(model)
    more_missed, more_ignored, whole = torchao.against_config(model)
    for kind, names in (
        (SilentKind.NOT_QUANTIZED, [*missed, *more_missed]),
        (SilentKind.IGNORED_YET_QUANTIZED, [*ignored, *more_ignored]),
        (SilentKind.PER_TENSOR, whole),
    ):
        for name in names:
            yield SilentMistake(kind, name, "weight")


def _is_module(model: nn.Module, name: str) -> bool:
    return _module(model, name) is not model or not name


def _module(model: nn.Module, name: str) -> nn.Module:
    """A module by its name; the model itself where there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return model
