"""What a call has changed in its arguments: the tensors in them, before it and after it."""

from collections.abc import Mapping

import torch

from tracer.measurement.pairs import Tensor
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.leaves import is_plain, version_of
from tracer.tensors.value_path import ValuePath, Walk

# Tensors by path: which it is, and how often it was edited.
Marks = Mapping[ValuePath, tuple[int, int | None]]


def marks(arguments: Mapping[str, object], walk: Walk | None = None) -> Marks:
    """The tensors in a call's arguments.

    Args:
        walk: knows what was walked before.
    """
    found = {}
    for name, value in arguments.items():
        if type(value) is torch.Tensor and not value.is_nested:
            found[ValuePath.of_written(name)] = id(value), version_of(value)
        elif value is not None and not is_plain(value):
            for path, leaf in ValuePath.of_written(name).leaves(value, walk=walk):
                if isinstance(leaf, Tensor):
                    found[path] = id(leaf), version(leaf)
    return found


def changes(before: Marks, now: Marks) -> set[ValuePath]:
    """Paths of what is another tensor now, or was edited, or is new."""
    return {path for path, mark in now.items() if before.get(path) != mark}


def version(value: Tensor) -> int | None:
    """A tensor's in-place version; what a trace holds never changes."""
    return 0 if isinstance(value, Fingerprint) else version_of(value)
