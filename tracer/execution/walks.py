"""The modules and parameters of a model, in PyTorch's order, without its generators.

`named_modules` passes each name up through a generator for every level above it, and a comparison
of small models goes through both of them a dozen times. What is private here is where a module
keeps its modules and parameters; the tests compare with PyTorch's own walks.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import nn


def named_modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `model.named_modules()`: each module once, under its first name."""
    found = {id(model): ("", model)}
    _collect_named(model._modules, "", found)
    return [*found.values()]


def _collect_named(
    inside: Mapping[str, nn.Module | None], prefix: str, found: dict[int, tuple[str, nn.Module]]
) -> None:
    for own, module in inside.items():
        if module is not None and id(module) not in found:
            name = prefix + own
            found[id(module)] = name, module
            if deeper := module._modules:
                _collect_named(deeper, f"{name}.", found)


def modules_of(*models: nn.Module) -> list[nn.Module]:
    """As `model.modules()`, of several models together."""
    found: dict[int, nn.Module] = {}
    _collect(models, found)
    return [*found.values()]


def _collect(modules: Iterable[nn.Module | None], found: dict[int, nn.Module]) -> None:
    for module in modules:
        if module is not None and id(module) not in found:
            found[id(module)] = module
            if inside := module._modules:
                _collect(inside.values(), found)


def all_parameters(model: nn.Module) -> list[torch.Tensor]:
    """As `model.parameters()`."""
    return parameters_in(modules_of(model))


def parameters_in(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """The own parameters of the modules, each once."""
    return _each_once([module._parameters for module in modules])


def buffers_in(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """The own buffers of the modules, each once."""
    return _each_once([module._buffers for module in modules])


def _each_once(places: Iterable[Mapping[str, torch.Tensor | None]]) -> list[torch.Tensor]:
    return [*{id(t): t for place in places for t in place.values() if t is not None}.values()]
