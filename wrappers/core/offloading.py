"""Wrapping models whose weights accelerate loads when they are needed, from disk or from memory.

Its hooks stand around the forward of single modules, and in between the parameters lie on the meta
device, without values. A wrapper has a hook of its own that loads the same weights.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wrappers.core.transformers_compat import load_from, loading_hook


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


def replace_loaded(module: nn.Module, name: str, value: Tensor) -> None:
    """Has an offloaded module load another value of one of its parameters, or one more parameter.

    The value lies in a temporary file, which is removed when no module loads it any more.
    """
    before = getattr(module, name)
    wanted = before is not None and before.requires_grad
    empty = torch.empty_like(value, device="meta")
    setattr(module, name, nn.Parameter(empty, requires_grad=wanted))
    load_from(module, _Replaced(loading_hook(module).weights_map, name, value), name)


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


class _Replaced(Mapping[str, Tensor]):
    """Weights by name, one of which is another one, in a file of its own."""

    def __init__(self, weights: Mapping[str, Tensor], name: str, value: Tensor) -> None:
        self._weights = weights
        self._name = name
        handle, self._file = tempfile.mkstemp(prefix="trace_model-", suffix=".pt")
        weakref.finalize(self, os.unlink, self._file)
        with os.fdopen(handle, "wb") as file:
            torch.save(value.detach().cpu(), file)

    def __getitem__(self, name: str) -> Tensor:
        if name == self._name:
            loaded: Tensor = torch.load(self._file, weights_only=True)
            return loaded
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._weights, self._name]))

    def __len__(self) -> int:
        return len(dict.fromkeys(self))
