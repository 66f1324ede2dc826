"""Numbers and other plain values that calls return beside tensors."""

import math
from collections.abc import Mapping
from typing import TypeGuard

import torch

from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.leaves import LeftOut, Opaque, describe
from tracer.tensors.value_path import ValuePath


def is_comparable(left: object, path: ValuePath, candidate: Mapping[ValuePath, object]) -> bool:
    """Whether a leaf has a value that the candidate's of the same path can be compared with.

    Args:
        candidate: all of its leaves. Where a trace holds nothing of a value, nor of its parts.
    """
    right = candidate.get(path)
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape != right.shape or not (left.is_meta or right.is_meta)
    if isinstance(left, Opaque):
        return False
    parts = path.split(".")
    above = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return not any(isinstance(candidate.get(ValuePath.parse(p)), Opaque) for p in above)


def is_form(left: object, right: object) -> bool:
    """Whether plain values that differ say no more than on what, or how finely, a model computes.

    None stands for a part that is not there.
    """
    both = left, right
    if all(isinstance(value, torch.dtype) for value in both):
        return all(value.is_floating_point for value in both)  # type: ignore[attr-defined]
    return left is None or all(isinstance(value, torch.device) for value in both)


def is_left_out(value: object) -> bool:
    """Whether a recording has not even a fingerprint of a value."""
    return isinstance(value, LeftOut) and not isinstance(value, Fingerprint)


def as_tensors(left: object, right: object) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Two numbers as what they are compared as, one of which may be in a tensor of one element."""
    shape = next((v.shape for v in (left, right) if isinstance(v, torch.Tensor)), torch.Size())
    if shape.numel() != 1:
        return None
    found = []
    for value in (left, right):
        if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_meta:
            found.append(value)
        elif is_number(value):
            found.append(_as_tensor(value).reshape(shape))
    return (found[0], found[1]) if len(found) == 2 else None


def is_number(value: object) -> TypeGuard[complex]:
    """Whether it is a number that a tensor can hold."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float | complex)


def _as_tensor(number: complex) -> torch.Tensor:
    """A number as what it is compared as."""
    is_integer = isinstance(number, int)
    wide = torch.complex128 if isinstance(number, complex) else torch.float64
    return torch.tensor(number, dtype=None if is_integer else wide)


def equal(left: object, right: object) -> bool:
    """Whether two plain values are equal, floats but for their rounding."""
    if isinstance(left, float) and isinstance(right, float | int):
        both_nan = math.isnan(left) and math.isnan(right)
        return both_nan or math.isclose(left, right, rel_tol=1e-6)
    return bool(left == right)


def summary(parts: Mapping[ValuePath, object]) -> str:
    """What a call has returned, in a few words."""
    described = [f"{path} ({describe(value)})" for path, value in list(parts.items())[:3]]
    return ", ".join(described) + (", ..." if len(parts) > 3 else "") if described else "nothing"
