"""Two tensors, or fingerprints instead of them, compared."""

import torch

from tracer.measurement.pairs import difference_at, estimated, measured
from tracer.measurement.remarks import RemarkKind
from tracer.tensors.difference import Difference
from tracer.tensors.fingerprints import Fingerprint
from tracer.tensors.tolerance import Tolerance

X = torch.linspace(-1, 1, 12).view(1, 3, 4)
OFF = X + torch.tensor([0.0, 0.0, 0.5]).view(1, 3, 1)  # at the last position
TOLERANCE = Tolerance()


def none() -> None:
    """No padded positions are known."""


def visible() -> Difference | None:
    """The last position is padded."""
    return difference_at((1, torch.tensor([[True, True, False]])), X, OFF)


def test_equal_values_agree() -> None:
    found = measured(X, X.clone(), TOLERANCE, none, is_mask=False)
    assert found is not None
    assert (found.agrees, found.remarks) == (True, ())


def test_another_value_differs_unless_it_is_padded() -> None:
    found = measured(X, OFF, TOLERANCE, none, is_mask=False)
    assert found is not None
    assert not found.agrees
    found = measured(X, OFF, TOLERANCE, visible, is_mask=False)
    assert found is not None
    assert found.agrees
    assert [remark.kind for remark in found.remarks] == [RemarkKind.PADDED]


def test_other_shapes() -> None:
    found = measured(X, X[:, :2], TOLERANCE, none, is_mask=False)
    assert found is not None
    assert (found.difference, found.agrees) == (None, False)
    assert [remark.kind for remark in found.remarks] == [RemarkKind.SHAPES]


def test_masks_go_by_what_they_let_through() -> None:
    seen = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    additive = torch.zeros(1, 1, 3, 3).masked_fill(~seen, -120.0)
    found = measured(seen, additive, TOLERANCE, none, is_mask=True)
    assert found is not None
    assert found.agrees
    assert [remark.kind for remark in found.remarks] == [RemarkKind.BY_MEANING]
    found = measured(seen, torch.zeros(1, 1, 3, 3), TOLERANCE, none, is_mask=True)
    assert found is not None
    assert not found.agrees


def test_a_fingerprint_instead_of_a_tensor() -> None:
    held = Fingerprint.of(X)
    same = estimated(held, X, TOLERANCE, none, is_mask=False)
    other = estimated(held, OFF, TOLERANCE, none, is_mask=False)
    assert same is not None
    assert other is not None
    assert (same.agrees, other.agrees) == (True, False)
    assert {remark.kind for remark in other.remarks} == {RemarkKind.ESTIMATED}
    assert estimated(held, OFF, TOLERANCE, none, is_mask=True) is None
