"""Wrapping models whose weights accelerate loads when they are needed, from disk or from memory.

Its hooks stand around the forward of single modules, and in between the parameters lie on the meta
device, without values. A wrapper has a hook of its own that loads the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from wrappers.core.transformers_compat import loading_hook


def is_offloaded(module: nn.Module) -> bool:
    """Whether a module's own parameters are loaded when it is called."""
    return loading_hook(module) is not None


def parameter_of(module: nn.Module, name: str) -> Tensor:
    """A parameter with its values, which may have to be loaded."""
    parameter: Tensor = getattr(module, name)
    loader = loading_hook(module)
    if loader is None or not parameter.is_meta:
        return parameter
    loaded: Tensor = loader.weights_map[name]
    return loaded.to(parameter.dtype)


def load_scaled(module: nn.Module, factor: float) -> None:
    """Multiplies the own parameters of an offloaded module by a factor whenever they are loaded."""
    loader = loading_hook(module)
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
