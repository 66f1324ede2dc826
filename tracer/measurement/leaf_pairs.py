"""Which leaves of two values belong together, and what of each pair can be compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from tracer.measurement.pairs import Tensor
from tracer.measurement.plain_values import as_tensors, equal, is_comparable, is_left_out
from tracer.tensors.leaves import Unused
from tracer.tensors.value_path import ValuePath


class LeafKind(Enum):
    """What a pair of leaves is."""

    TENSORS = "two tensors"
    EQUAL = "plain values that are equal"
    APART = "forms that do not compare, or plain values that differ"
    MISSING = "a value that the candidate does not have"
    UNUSED = "a value that a graph does not have, since nothing uses it"
    LEFT_OUT = "a value of which a recording holds nothing"
    NOT_COMPARABLE = "values of a kind that cannot be compared"

    __hash__ = object.__hash__  # each is one object; that of `Enum` takes a call of Python


@dataclass(frozen=True, slots=True)
class LeafPair:
    """A leaf of the reference's and the candidate's of the same path; None where it has none."""

    kind: LeafKind
    path: ValuePath
    left: object
    right: object


def leaf_pairs(
    reference: Mapping[ValuePath, object],
    candidate: Mapping[ValuePath, object],
    *,
    reads_numbers: bool,
) -> Iterator[LeafPair]:
    """Each of the reference's leaves with its counterpart.

    A None that the candidate does not have is no leaf.

    Args:
        reads_numbers: a number and a tensor of one element are two tensors.
    """
    for path, left in reference.items():
        right = candidate.get(path)
        if isinstance(left, Unused) or isinstance(right, Unused):
            kind = LeafKind.UNUSED
        elif is_left_out(left) or is_left_out(right):
            kind = LeafKind.LEFT_OUT
        elif not is_comparable(left, path, candidate):
            kind = LeafKind.NOT_COMPARABLE
        elif isinstance(left, Tensor) and isinstance(right, Tensor):
            kind = LeafKind.TENSORS
        elif is_any_tensor(left, right) or (path in candidate and not equal(left, right)):
            numbers = as_tensors(left, right) if reads_numbers else None
            kind = LeafKind.APART if numbers is None else LeafKind.TENSORS
            left, right = numbers or (left, right)
        elif path in candidate:
            kind = LeafKind.EQUAL
        elif left is not None:
            kind = LeafKind.MISSING
        else:
            continue
        yield LeafPair(kind, path, left, right)


def have_tensors_alike(
    reference: Mapping[ValuePath, object], candidate: Mapping[ValuePath, object]
) -> bool:
    """Whether both have tensors under the same paths."""
    sides = (
        {path for path, leaf in side.items() if isinstance(leaf, Tensor)}
        for side in (reference, candidate)
    )
    return next(sides) == next(sides)


def is_any_tensor(*values: object) -> bool:
    """Whether any of the values is a tensor, or what a trace holds in its place."""
    return any(isinstance(value, Tensor) for value in values)
