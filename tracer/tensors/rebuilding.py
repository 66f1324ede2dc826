"""Nested values made again: with other leaves, or as they are now.

Containers are made in their own type, everything else is kept by reference, and an object that is
no container (a cache) is changed in place where the model holds on to it.
"""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tracer.tensors.kinds import copied as own_copy
from tracer.tensors.leaves import children, is_container, tensor_leaves


def replace_leaves(value: object, path: str, replacements: Mapping[str, object]) -> object:
    """The same nested value with the leaves at the given paths replaced.

    Containers on the way are rebuilt in their own type, everything else is kept by reference. An
    object that is no container (a cache) is changed in place, since the model holds on to it.
    """
    if path in replacements:
        return replacements[path]
    if not any(key.startswith(f"{path}.") for key in replacements):
        return value
    parts = [
        (key, replace_leaves(child, f"{path}.{key}", replacements))
        for key, child in children(value)
    ]
    if is_container(value):
        return _rebuilt(value, parts)
    for key, child in parts:
        setattr(value, key, child)
    return value


def snapshot(value: object) -> object:
    """The same nested value as it is now, in containers and objects of its own.

    A list or a cache that is filled further leaves its snapshot alone. Tensors are not copied, and
    neither are objects that hold none.
    """
    return _snapshot(value, ())


def deep_copy(value: object, copied: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """The same nested value, nothing of which is shared: caches and other objects are copied too.

    Args:
        copied: makes the copy of each tensor; by default a clone that is free of its graph.
    """
    copied = copied or own_copy
    memo = {id(tensor): copied(tensor) for _, tensor in tensor_leaves(value, "")}
    return copy.deepcopy(value, memo)


def map_tensors(value: object, function: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """The same nested value with a function applied to each tensor leaf; see `replace_leaves`."""
    changed = {path: function(tensor) for path, tensor in tensor_leaves(value, "value")}
    return replace_leaves(value, "value", changed) if changed else value


def _snapshot(value: object, above: tuple[int, ...]) -> object:
    if isinstance(value, torch.Tensor) or id(value) in above:
        return value
    if not is_container(value) and not any(tensor_leaves(value, "")):
        return value
    parts = [(key, _snapshot(child, (*above, id(value)))) for key, child in children(value)]
    if is_container(value):
        return _rebuilt(value, parts)
    taken = copy.copy(value)
    for key, child in parts:
        setattr(taken, key, child)
    return taken


def _rebuilt(value: object, parts: Sequence[tuple[str, object]]) -> object:
    """A container of the same type with other parts, given in the order of `children`."""
    items = [child for _, child in parts]
    if isinstance(value, torch.Tensor):
        tensors = [item for item in items if isinstance(item, torch.Tensor)]
        return torch.nested.as_nested_tensor(tensors, layout=value.layout)
    if isinstance(value, Mapping):
        if not isinstance(value, dict | UserDict):
            return type(value)(dict(zip(value, items, strict=True)))  # type: ignore[call-arg]
        mapping = copy.copy(value)
        for key, child in zip(value, items, strict=True):
            mapping[key] = child
        return mapping
    if isinstance(value, list):
        sequence = copy.copy(value)
        sequence[:] = items
        return sequence
    if isinstance(value, tuple):
        if all(old is new for old, new in zip(value, items, strict=True)):
            return value
        # The results of `torch.max` and the like have a constructor of their own.
        is_result = hasattr(value, "n_sequence_fields") or isinstance(value, torch.Size)
        return type(value)(items) if is_result else tuple.__new__(type(value), items)
    if dataclasses.is_dataclass(value):
        record = copy.copy(value)
        for name, child in parts:
            object.__setattr__(record, name, child)
        return record
    _, context = pytree.SUPPORTED_NODES[type(value)].flatten_fn(value)
    return pytree.SUPPORTED_NODES[type(value)].unflatten_fn(items, context)
