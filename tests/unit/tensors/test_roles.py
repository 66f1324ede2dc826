"""Roles: what arguments are, as their names say, and as the user says."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import tracer
from tracer.measurement.remarks import RemarkKind
from tracer.tensors.roles import DEFAULT_ROLES, Roles


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("attention_mask", True),
        ("Mask.0", True),
        ("masks.full_attention", True),
        ("batch.key_padding_mask", True),
        ("position_ids", False),
        ("", False),
        (None, False),
    ],
)
def test_masks(path: str | None, expected: bool) -> None:
    assert DEFAULT_ROLES.is_mask(path) is expected


def test_another_name() -> None:
    roles = Roles(masks=("attn_bias",))
    assert roles.is_mask("attn_bias.0")
    assert not roles.is_mask("attention_mask")


class Biased(nn.Module):
    """Is given its mask under a name that does not say so."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.fill = fill
        self.inner = Inner()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.ones(3, 3, dtype=torch.bool).triu(1)
        return self.inner(x, attn_bias=torch.zeros(3, 3).masked_fill(hidden, self.fill))


class Inner(nn.Module):
    def forward(self, x: torch.Tensor, attn_bias: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x + attn_bias, dim=-1)


@pytest.mark.parametrize(
    ("options", "is_mask"), [({}, False), ({"roles": Roles(masks=("attn_bias",))}, True)]
)
def test_a_user_says_what_a_mask_is(options: dict[str, Any], is_mask: bool) -> None:
    reference, candidate = Biased(-1e9), Biased(-120.0)
    comparison = tracer.compare(reference, copy.deepcopy(candidate), torch.randn(3, 3), **options)
    row = next(row for row in comparison.rows if row.value == "kwargs.attn_bias")
    assert (row.is_mask, row.agrees) == (is_mask, is_mask)
    by_meaning = [remark.kind for remark in row.remarks] == [RemarkKind.BY_MEANING]
    assert by_meaning is is_mask
    # No computed value shows the other numbers.
    assert comparison.verdict.outcome == ("agrees" if is_mask else "equivalent")
    strict = tracer.compare(reference, candidate, torch.randn(3, 3), strict=True, **options)
    assert strict.verdict.agrees is is_mask
