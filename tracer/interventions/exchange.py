"""One module is given what another one holds: a parameter, a buffer, or a plain attribute."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tracer.execution.fusions import Part
from tracer.execution.offload import load_instead, value_of
from tracer.execution.torch_internals import as_written, buffers_of, parameters_of
from tracer.interventions.substitution import device_of
from tracer.measurement.arguments import declared_rows, scale_between
from tracer.tensors.leaves import children
from tracer.tensors.rebuilding import deep_copy, replace_leaves


def exchange(
    candidate: nn.Module, reference: nn.Module, name: str, *, transposed: bool = False
) -> Callable[[], None] | None:
    """Gives one module what the other holds under a name, and returns what puts it back.

    None where that is not possible.

    Args:
        transposed: whether it is given the transpose of that.
    """
    if isinstance(candidate, Part) or isinstance(reference, Part):
        return _exchange_rows(candidate, reference, name)
    owner, _, last = name.rpartition(".")
    try:
        owners = candidate.get_submodule(owner), reference.get_submodule(owner)
        places = [(parameters_of(module), buffers_of(module)) for module in owners]
    except AttributeError:  # an attribute, or one side alone has such a module
        places = []
    for mine, theirs in zip(*places, strict=True):
        value, found = theirs.get(last), mine.get(last)
        if value is None or last not in mine or (found is not None and found.shape != value.shape):
            continue
        value = value_of(owners[1], last, value).detach()
        like = value if found is None else value_of(owners[0], last, found)
        factor = scale_between(reference, candidate) if not owner else 1.0
        value = value.mT if transposed else value
        rows = declared_rows(reference, candidate) if not owner else None
        if rows is not None:
            value = value[rows.argsort().to(value.device)]
        given = value.to(like.device, like.dtype)
        given = given if factor in (1.0, None) else given * factor
        return _put(owners[0], mine, last, _as_parameter(given, found))
    return _exchange_attribute(candidate, reference, name)


def _exchange_rows(
    candidate: nn.Module, reference: nn.Module, name: str
) -> Callable[[], None] | None:
    found, value = (dict(m.named_parameters()).get(name) for m in (candidate, reference))
    if found is None or value is None or found.shape != value.shape:
        return None
    given = value_of(reference, name, value).detach().to(found.device, found.dtype)
    if isinstance(candidate, Part):
        return candidate.give(name, given)
    return _put(candidate, parameters_of(candidate), name, _as_parameter(given, found))


def _put(
    owner: nn.Module, place: dict[str, torch.Tensor | None], name: str, value: torch.Tensor
) -> Callable[[], None]:
    """Lets a module hold a value, and its hook load it; returns what puts the former back."""
    found = place[name]
    place[name] = value
    load_as_before = load_instead(owner, name, value)

    def undo() -> None:
        place[name] = found
        load_as_before()

    return undo


def plain_attributes(module: nn.Module) -> dict[str, object]:
    """The plain attributes that are of interest to others."""
    return {name: v for name, v in vars(as_written(module)).items() if name[:1] != "_"}


def attribute_at(module: nn.Module, path: str) -> object:
    """What lies at a path of `_tensors_beside`; None if nothing."""
    value: object = plain_attributes(module)
    for key in path.split("."):
        value = dict(children(value)).get(key)
    return value


def _exchange_attribute(
    candidate: nn.Module, reference: nn.Module, path: str
) -> Callable[[], None] | None:
    found, value = attribute_at(candidate, path), attribute_at(reference, path)
    if found is None or value is None:
        return None
    name = path.partition(".")[0]
    held: Any = vars(candidate)[name]

    def put(new: object) -> None:
        vars(candidate)[name] = replace_leaves(held, name, {path: new})

    device = device_of({name: found})
    put(deep_copy(value, lambda tensor: tensor.detach().to(device, copy=True)))

    def undo() -> None:
        put(found)
        vars(candidate)[name] = held

    return undo


def _as_parameter(value: torch.Tensor, found: torch.Tensor | None) -> torch.Tensor:
    if isinstance(found, nn.Parameter):
        return nn.Parameter(value, requires_grad=False)
    return value
