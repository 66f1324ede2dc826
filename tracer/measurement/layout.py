"""Values of both sides brought to one form: form is notation.

    (tensor,) against tensor           the sole tensor of each
    ModelOutput against a tuple        part by part, in order
    [batch * sequence, hidden]         read as [batch, sequence, hidden]
    [sequence, batch, hidden]          with the dimensions in the reference's order, where they match

Leaves under the same path belong together. Where the two sides nest their tensors otherwise, the
parts of containers belong together in order, and a value of one tensor with its own content.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch

from tracer.tensors.leaves import children, leaves


class Form(StrEnum):
    """How a candidate's value is laid out otherwise than the reference's."""

    NESTED = "nested otherwise"
    RESHAPED = "flattened or unflattened"
    PERMUTED = "dimensions in another order"


@dataclass(frozen=True)
class Aligned:
    """The leaves of two nested values that belong together.

    Attributes:
        names: the candidate's path by the reference's, for those under another path.
        reference, candidate: each side's leaves, the candidate's under the reference's paths.
    """

    names: Mapping[str, str]
    reference: Mapping[str, object]
    candidate: Mapping[str, object]


def align(reference: object, candidate: object, path: str) -> Aligned:
    """Pairs the leaves of two nested values.

    Args:
        path: of both values, such as "output".
    """
    left, right = dict(leaves(reference, path)), dict(leaves(candidate, path))
    names: dict[str, str] = {}
    if _tensors(left).keys() != _tensors(right).keys():
        names = _names(reference, candidate, path, path)
        taken = set(names.values())
        names = {own: other for own, other in names.items() if own != other}
        right = {
            **{other: leaf for other, leaf in right.items() if other not in taken},
            **{own: right[other] for own, other in names.items()},
            **{other: right[other] for other in taken - set(names.values())},
        }
    return Aligned(names, left, right)


def in_form_of(
    reference: torch.Tensor, candidate: torch.Tensor
) -> tuple[torch.Tensor, Form] | None:
    """A candidate's tensor of another shape in the reference's shape, if it has the same elements.

    Leading dimensions that were merged or split, and those of size 1 that were dropped, are read
    back; so is one order of dimensions, if just one fits.
    """
    if reference.shape == candidate.shape or reference.numel() != candidate.numel():
        return None
    if not reference.numel() or reference.dim() == 0 or candidate.dim() == 0:
        return None
    orders = orders_of(reference.shape, candidate.shape)
    if orders:
        return (candidate.permute(orders[0]), Form.PERMUTED) if len(orders) == 1 else None
    if reference.shape[-1] == candidate.shape[-1] or 1 in (reference.dim(), candidate.dim()):
        return candidate.reshape(reference.shape), Form.RESHAPED
    return None


def orders_of(reference: torch.Size, candidate: torch.Size) -> "list[tuple[int, ...]]":
    """The orders of the candidate's dimensions in which it has the reference's shape, but for the
    order that it is in."""
    if len(reference) != len(candidate) or not 2 <= len(reference) <= 5:
        return []
    if sorted(reference) != sorted(candidate):
        return []
    return [
        order
        for order in itertools.permutations(range(len(candidate)))
        if tuple(candidate[dim] for dim in order) == tuple(reference)
        and order != tuple(range(len(order)))
    ]


def _tensors(found: Mapping[str, object]) -> dict[str, object]:
    return {path: leaf for path, leaf in found.items() if _is_tensor(leaf)}


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) or hasattr(leaf, "shape")


def _names(reference: object, candidate: object, own: str, other: str) -> dict[str, str]:
    """The candidate's path by the reference's, of the leaves of two values that belong together."""
    left, right = _tensors(dict(leaves(reference, own))), _tensors(dict(leaves(candidate, other)))
    if len(left) == len(right) == 1:
        return {next(iter(left)): next(iter(right))}
    if not left or not right:
        return {}
    if _is_tensor(candidate) and own in left:
        return {own: other}
    parts = _parts(reference, own), _parts(candidate, other)
    if _is_tensor(candidate) or _is_tensor(reference):
        # A bare tensor is the first one of what the other side returns.
        first = next(iter(left)), next(iter(right))
        return {first[0]: first[1]} if _same_elements(left[first[0]], right[first[1]]) else {}
    common = parts[0].keys() & parts[1].keys()
    if common and (len(common) == len(parts[1]) or len(common) == len(parts[0])):
        pairs = [(key, key) for key in parts[0] if key in common]
    else:
        pairs = list(zip(parts[0], parts[1], strict=False))
    found: dict[str, str] = {}
    for mine, theirs in pairs:
        found |= _names(parts[0][mine], parts[1][theirs], f"{own}.{mine}", f"{other}.{theirs}")
    return found


def _parts(value: object, path: str) -> dict[str, object]:
    """The parts of a container that hold tensors, by key."""
    return {
        key: part
        for key, part in children(value)
        if any(_is_tensor(leaf) for _, leaf in leaves(part, path))
    }


def _same_elements(r: object, c: object) -> bool:
    sizes = [getattr(value, "shape", None) for value in (r, c)]
    return sizes[0] is not None and sizes[0] == sizes[1]
