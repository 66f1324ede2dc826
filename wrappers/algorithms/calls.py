"""The order in which linear layers run, and forwards that end where some of them have run."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from wrappers.algorithms.stage import listening, run
from wrappers.errors import CalibrationWarning, ModelInputError
from wrappers.quantize import ModelInputs, listed

Hear = Callable[[str, nn.Module, Tensor, Tensor], None]
"""Is told of a call: (name, module, input, output)."""


class _Reached(Exception):  # noqa: N818 - no error: the rest of a forward is not needed
    """All layers of a group have run."""


def call_groups(
    wrapped: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[ModelInputs]
) -> tuple[list[list[str]], bool]:
    """Layers that read one tensor, in the order in which they run; and whether each ran once."""
    groups: list[list[str]] = []
    found: set[str] = set()
    calls: Counter[str] = Counter()
    last: Tensor | None = None

    def hear(name: str, layer: nn.Module, x: Tensor, output: Tensor) -> None:
        nonlocal last
        calls[name] += 1
        if name in found:
            last = None
            return
        found.add(name)
        if x is last:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = x

    once = True
    with listening(dict(layers), hear):
        for batch in batches:
            calls.clear()
            run(wrapped, batch)
            once = once and set(calls.values()) <= {1}
            if len(found) == len(layers):
                break
    return groups, once


def stopping_at(
    model: nn.Module, group: Sequence[str], hear: Hear, batch: ModelInputs, *, stop: bool
) -> None:
    """Runs a model over a batch, tells of the calls of a group, and stops after its last one.

    Args:
        model: of any kind.
        group: names of modules, in the order in which they run.
        hear: is told of each call.
        batch: the inputs.
        stop: each runs once, so that nothing after the last of them is needed.
    """

    def listen(name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        hear(name, module, x, output)
        if stop and name == group[-1]:
            raise _Reached

    with listening({name: model.get_submodule(name) for name in group}, listen), suppress(_Reached):
        run(model, batch)


@dataclass(frozen=True)
class Call:
    """The arguments of a call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, module: nn.Module) -> Tensor:
        """What a module makes of them: its output, or the first of its outputs."""
        output = module(*self.args, **self.kwargs)
        first: Tensor = output if isinstance(output, Tensor) else output[0]
        return first


def calls_of(model: nn.Module, name: str, batch: ModelInputs, *, stop: bool) -> list[Call]:
    """The calls of a module while a model runs over a batch, without caches.

    Args:
        model: of any kind.
        name: of the module.
        batch: the inputs.
        stop: it runs once, so that nothing from there on is needed.

    Raises:
        ModelInputError: the batch brings a cache, which each run would make longer.
    """
    if isinstance(batch, Mapping) and batch.get("past_key_values") is not None:
        raise ModelInputError(
            "blocks are run again by themselves, without a cache, and a calibration input has "
            "past_key_values: give whole sequences"
        )
    calls: list[Call] = []

    def hear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept = {key: None if isinstance(v, Cache) else v for key, v in kwargs.items()}
        calls.append(Call(args, kept))
        if stop:
            raise _Reached

    handle = model.get_submodule(name).register_forward_pre_hook(hear, with_kwargs=True)
    try:
        with suppress(_Reached):
            run(model, batch)
    finally:
        handle.remove()
    return calls


def warn_of_missed(
    stage: str, wanted: Mapping[str, nn.Module], groups: Sequence[Sequence[str]]
) -> None:
    """Warns of what a stage is to work on and no calibration input reached."""
    missed = sorted(wanted.keys() - {name for group in groups for name in group})
    if missed:
        warnings.warn(
            f"no input reached {listed(missed)}: {stage} leaves them as they are",
            CalibrationWarning,
            stacklevel=3,
        )
