"""Which leaves belong together, and what of them can be compared."""

import pytest
import torch

from tracer.measurement.leaf_pairs import LeafKind, have_tensors_alike, leaf_pairs
from tracer.tensors.leaves import LeftOut, Opaque, Unused
from tracer.tensors.value_path import OUTPUT

X = torch.arange(4.0)
PATH = OUTPUT.inner("x")


def kinds(left: object, *right: object, reads_numbers: bool = True) -> list[LeafKind]:
    candidate = dict.fromkeys([PATH], *right) if right else {}
    found = leaf_pairs({PATH: left}, candidate, reads_numbers=reads_numbers)
    return [pair.kind for pair in found]


@pytest.mark.parametrize(
    ("left", "right", "kind"),
    [
        (X, X + 1, LeafKind.TENSORS),
        (X, X[:2], LeafKind.TENSORS),
        (2.0, 2.0, LeafKind.EQUAL),
        (None, None, LeafKind.EQUAL),
        (2.0, "2", LeafKind.APART),
        (X, None, LeafKind.APART),
        (X, 2.0, LeafKind.APART),
        (X, Unused("nothing uses it"), LeafKind.UNUSED),
        (X, LeftOut("too large"), LeafKind.LEFT_OUT),
        (Opaque("a lock"), Opaque("a lock"), LeafKind.NOT_COMPARABLE),
        (X.to("meta"), X, LeafKind.NOT_COMPARABLE),
        (X.to("meta"), X[:2], LeafKind.TENSORS),  # their shapes are
    ],
)
def test_what_a_pair_is(left: object, right: object, kind: LeafKind) -> None:
    assert kinds(left, right) == [kind]


def test_what_the_candidate_does_not_have() -> None:
    assert kinds(2.0) == [LeafKind.MISSING]
    assert kinds(X) == [LeafKind.APART]  # a tensor, and None
    assert kinds(None) == []


def test_a_number_may_be_in_a_tensor() -> None:
    (pair,) = leaf_pairs({PATH: 2}, {PATH: torch.tensor([2])}, reads_numbers=True)
    assert pair.kind is LeafKind.TENSORS
    assert torch.equal(pair.left, pair.right)
    assert kinds(2, torch.tensor([2]), reads_numbers=False) == [LeafKind.APART]
    assert kinds(2, torch.tensor([2, 2])) == [LeafKind.APART]


def test_tensors_under_the_same_paths() -> None:
    other = OUTPUT.inner("y")
    assert have_tensors_alike({PATH: X, other: None}, {PATH: X + 1, other: 2})
    assert not have_tensors_alike({PATH: X, other: None}, {PATH: None, other: X})
    assert not have_tensors_alike({PATH: X}, {other: X})
