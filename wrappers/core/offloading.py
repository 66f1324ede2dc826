"""Wrapping models whose weights accelerate loads when they are needed, from disk or from memory.

Its hooks stand around the forward of single modules, and in between the parameters lie on the meta
device, without values. A wrapper has a hook of its own that loads the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

# What accelerate puts on a module, beside its hook; the last ones so that it is not moved.
_ADDED = ("_hf_hook", "_old_forward", "forward", "to", "cuda", "npu", "xpu", "mlu", "sdaa", "musa")


def is_hooked(module: nn.Module) -> bool:
    """Whether accelerate's hook is the reason why a module has a forward of its own."""
    return "_hf_hook" in vars(module) and "_old_forward" in vars(module)


def without_hook(state: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a hooked module without those that its hook has added."""
    return {name: value for name, value in state.items() if name not in _ADDED}


def take_hook(module: nn.Module, source: nn.Module) -> None:
    """Gives a copy of a hooked module such a hook, which loads the same weights."""
    from accelerate.hooks import add_hook_to_module

    hook = copy.copy(cast(Any, source._hf_hook))
    if hasattr(hook, "hooks"):
        hook.hooks = tuple(copy.copy(part) for part in hook.hooks)
    add_hook_to_module(module, hook)


def is_offloaded(module: nn.Module) -> bool:
    """Whether a module's own parameters are loaded when it is called."""
    return _loader(module) is not None


def parameter_of(module: nn.Module, name: str) -> Tensor:
    """A parameter with its values, which may have to be loaded."""
    parameter: Tensor = getattr(module, name)
    loader = _loader(module)
    if loader is None or not parameter.is_meta:
        return parameter
    loaded: Tensor = loader.weights_map[name]
    return loaded.to(parameter.dtype)


def load_scaled(module: nn.Module, factor: float) -> None:
    """Multiplies the own parameters of an offloaded module by a factor whenever they are loaded."""
    loader = _loader(module)
    dtypes = {name: p.dtype for name, p in module.named_parameters(recurse=False)}
    loader.weights_map = _Scaled(loader.weights_map, factor, dtypes)


class _Scaled(Mapping[str, Tensor]):
    """Weights by name, multiplied by a factor in the dtypes that they are used in."""

    def __init__(
        self, weights: Mapping[str, Tensor], factor: float, dtypes: Mapping[str, Any]
    ) -> None:
        self._weights = weights
        self._factor = factor
        self._dtypes = dtypes

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[name].detach().to(self._dtypes[name]) * self._factor

    def __iter__(self) -> Iterator[str]:
        return iter(self._dtypes)

    def __len__(self) -> int:
        return len(self._dtypes)


def _loader(module: nn.Module) -> Any:
    """The hook that loads a module's own parameters; None if there is none."""
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        if getattr(part, "offload", False):
            return part
    return None
