"""Values of both sides brought to one form: form is notation.

    (tensor,) against tensor           the sole tensor of each
    ModelOutput against a tuple        part by part, in order
    [batch * sequence, hidden]         read as [batch, sequence, hidden]
    [sequence, batch, hidden]          with the dimensions in the reference's order

Leaves under the same path belong together. Where the two sides nest their tensors otherwise, the
parts of containers belong together in order, and a value of one tensor with its own content.
"""

import itertools
from collections.abc import Mapping
from enum import StrEnum

import torch

from tracer.tensors.leaves import children, leaves


class Form(StrEnum):
    """How a candidate's value is laid out, where that is not as the reference's is."""

    NESTED = "nested otherwise"
    RESHAPED = "flattened or unflattened"
    PERMUTED = "dimensions in another order"


def nested_otherwise(reference: object, candidate: object) -> dict[str, str]:
    """The candidate's path by the reference's, of tensors that belong together under other paths.

    Empty where both sides nest their tensors alike.
    """
    left, right = _tensors(reference), _tensors(candidate)
    if left.keys() == right.keys():
        return {}
    return {
        own: other for own, other in _names(reference, candidate, "", "").items() if own != other
    }


def in_shape_of(
    reference: torch.Tensor, candidate: torch.Tensor
) -> tuple[torch.Tensor, Form] | None:
    """A candidate's tensor of another shape in the reference's, if it has as many elements.

    Leading dimensions that were merged or split, and those of size 1 that were dropped, are read
    back; so is another order of dimensions, where only one fits or gives the very same values.
    """
    if reference.shape == candidate.shape or reference.numel() != candidate.numel():
        return None
    if not reference.numel() or reference.dim() == 0 or candidate.dim() == 0:
        return None
    orders = _orders(reference.shape, candidate.shape)
    if orders:
        if len(orders) > 1:
            there = candidate.to(reference.device)
            orders = [o for o in orders if torch.equal(reference, there.permute(o))][:1]
        return (candidate.permute(orders[0]), Form.PERMUTED) if orders else None
    if reference.shape[-1] == candidate.shape[-1] or 1 in (reference.dim(), candidate.dim()):
        return candidate.reshape(reference.shape), Form.RESHAPED
    return None


def _orders(reference: torch.Size, candidate: torch.Size) -> list[tuple[int, ...]]:
    """The orders of the candidate's dimensions that have the reference's shape."""
    if sorted(reference) != sorted(candidate) or len(reference) > 5:
        return []
    return [
        order
        for order in itertools.permutations(range(len(candidate)))
        if tuple(candidate[dim] for dim in order) == tuple(reference)
    ]


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) or hasattr(leaf, "shape")


def _tensors(value: object) -> dict[str, object]:
    return {path.removeprefix("."): leaf for path, leaf in leaves(value, "") if _is_tensor(leaf)}


def _names(reference: object, candidate: object, own: str, other: str) -> dict[str, str]:
    left, right = _tensors(reference), _tensors(candidate)
    if not left or not right:
        return {}
    if len(left) == len(right) == 1 or _is_tensor(reference) or _is_tensor(candidate):
        # A bare tensor is the first one of what the other side returns.
        first, second = next(iter(left)), next(iter(right))
        if len(left) != len(right) and _shape(left[first]) != _shape(right[second]):
            return {}
        return {_joined(own, first): _joined(other, second)}
    parts = _parts(reference), _parts(candidate)
    common = parts[0].keys() & parts[1].keys()
    if common and len(common) == min(map(len, parts)):
        pairs = [(key, key) for key in parts[0] if key in common]
    else:
        pairs = list(zip(parts[0], parts[1], strict=False))
    found: dict[str, str] = {}
    for mine, theirs in pairs:
        inner = parts[0][mine], parts[1][theirs]
        found |= _names(*inner, _joined(own, mine), _joined(other, theirs))
    return found


def _parts(value: object) -> Mapping[str, object]:
    """The parts of a container that hold tensors, by key."""
    return {key: part for key, part in children(value) if _tensors(part)}


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}".strip(".")


def _shape(leaf: object) -> object:
    return getattr(leaf, "shape", None)
