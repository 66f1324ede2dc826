"""Relations are told from values; what is unrelated has none."""

import pytest
import torch

from tracer.tensors.relations import Relation, relation_of

X = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(1))
FACTORS = 0.5 + torch.rand(16, generator=torch.Generator().manual_seed(2))
TURN = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3)))[0]
HEADS = X.view(3, 9, 4, 4).transpose(1, 2)
IMAGE = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        (X, 3.0 * X, Relation.SCALED),
        (X, -X, Relation.SCALED),
        (X, X * FACTORS, Relation.PER_CHANNEL),
        (X, X * FACTORS + FACTORS, Relation.PER_CHANNEL),
        (X, X.flip(-1), Relation.PERMUTED),
        (X, X @ TURN, Relation.ROTATED),
        (HEADS, HEADS.flip(1), Relation.PERMUTED),
        (HEADS, HEADS * FACTORS.view(4, 1, 4), Relation.PER_CHANNEL),
        (IMAGE, IMAGE * FACTORS[:5, None, None] + 1.0, Relation.PER_CHANNEL),
        (X.bfloat16(), (2.0 * X).bfloat16(), Relation.SCALED),
        (X, OTHER, None),
        (X, X + 0.1 * OTHER, None),
        (X, X * FACTORS + 0.01 * OTHER, None),
        (X, torch.zeros_like(X), None),
        (torch.zeros_like(X), X, None),
        (X, X.flip(0).flip(1), None),
        (X[:1, :1], 2.0 * OTHER[:1, :1], None),
        (X[..., 0], OTHER[..., 0], None),
        (X, X[..., :8], None),
        (X, X.where(X < 1, float("nan")), None),
        (X.long(), 2 * X.long(), None),
        (X[:0], X[:0], None),
    ],
)
def test_a_relation(reference, candidate, expected) -> None:
    assert relation_of(reference, candidate) == expected


def test_a_constant_may_be_rounded_by_folding() -> None:
    folded = (X.bfloat16() * FACTORS.bfloat16()).float()
    assert relation_of(X, folded) is None
    assert relation_of(X.bfloat16(), folded.bfloat16()) is Relation.PER_CHANNEL
