"""Two tensors, or fingerprints instead of them, compared."""

import pytest
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


def sequence(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shape", "dim"), [((2, 5, 3), 1), ((5, 3), 0), ((2, 4, 5, 3), 2)])
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_longer_sequence_is_compared_where_both_are(shape, dim: int, where: str) -> None:
    r = sequence(*shape)
    more = sequence(*shape).narrow(dim, 0, 2) + 1.0
    c = torch.cat([r, more] if where == "first" else [more, r], dim)
    found = measured(r, c, TOLERANCE, none, is_mask=False)
    assert found is not None
    assert found.agrees
    assert str(found.remarks[0]) == f"compared at the {where} 5 of 7 positions"
    found = measured(r, c * 1.01, TOLERANCE, none, is_mask=False)
    assert found is not None
    assert found.difference is not None
    assert not found.agrees
    # What the candidate lacks, other channels, and two dimensions at once are apart.
    for left, right in ((c, r), (r.mT, c.mT), (r[:1], c)):
        found = measured(left, right, TOLERANCE, none, is_mask=False)
        assert found is not None
        assert (found.difference, found.agrees) == (None, False)


def test_tokens_that_one_side_pads() -> None:
    ids = torch.arange(10).reshape(2, 5)
    padded = torch.nn.functional.pad(ids, (0, 3))
    found = measured(ids, padded, TOLERANCE, none, is_mask=False)
    assert found is not None
    assert found.agrees
    zeros = torch.zeros(2, 5)
    found = measured(zeros[..., None], zeros.new_zeros(2, 8, 1), TOLERANCE, none, is_mask=False)
    assert found is not None
    assert not found.agrees  # all alike: that may be chance


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
