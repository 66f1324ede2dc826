"""The modules and parameters of a model, in PyTorch's order, without its generators.

`named_modules` passes each name up through a generator for every level above it, and a comparison
of small models goes through both of them a dozen times. What is private here is where a module
keeps its modules and parameters; the tests compare with PyTorch's own walks.
"""

from collections.abc import Iterator

import torch
from torch import nn


def named_modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """As `model.named_modules()`: each module once, under its first name."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = place = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append(place)
        if inside := module._modules:
            prefix = f"{name}." if name else ""
            waiting += [
                (prefix + own, child) for own, child in inside.items() if child is not None
            ][::-1]
    return found


def modules_of(*models: nn.Module) -> list[nn.Module]:
    """As `model.modules()`, of several models together."""
    found: dict[int, nn.Module] = {}
    waiting = [*reversed(models)]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            if inside := module._modules:
                waiting += [child for child in inside.values() if child is not None][::-1]
    return [*found.values()]


def all_parameters(model: nn.Module) -> Iterator[torch.Tensor]:
    """As `model.parameters()`."""
    seen: set[int] = set()
    for module in modules_of(model):
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter
