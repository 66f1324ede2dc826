"""Numbers and other plain values that calls return beside tensors."""

import math
from collections.abc import Mapping
from typing import TypeGuard

import torch

from tracer.tensors.leaves import describe
from tracer.tensors.value_path import ValuePath


def is_number(value: object) -> TypeGuard[complex]:
    """Whether it is a number that a tensor can hold."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, float | complex)


def as_tensor(number: complex) -> torch.Tensor:
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
