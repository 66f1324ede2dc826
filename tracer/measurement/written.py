"""What a call has changed in its arguments: the tensors in them, before it and after it."""

from collections.abc import Mapping

import torch

from tracer.measurement.pairs import Tensor
from tracer.tensors.leaves import is_plain, leaves, version_of
from tracer.tensors.value_path import ValuePath, Walk

# Tensors by argument and path in it: which it is, and how often it was edited.
Marks = Mapping[tuple[str, str], tuple[int, int | None]]


def marks(arguments: Mapping[str, object], walk: Walk | None = None) -> Marks:
    """The tensors in a call's arguments.

    Args:
        walk: knows what was walked before.
    """
    found = {}
    for name, value in arguments.items():
        if type(value) is torch.Tensor and not value.is_nested:
            found[name, ""] = id(value), version_of(value)
        elif value is not None and not is_plain(value):
            for path, leaf in (walk or leaves)(value, ""):
                if isinstance(leaf, Tensor):
                    found[name, path[1:]] = id(leaf), version_of(leaf)
    return found


def changes(before: Marks, now: Marks) -> set[ValuePath]:
    """Paths of what is another tensor now, or was edited, or is new."""
    return {
        ValuePath.of_written(name).inner(path)
        for (name, path), mark in now.items()
        if before.get((name, path)) != mark
    }
