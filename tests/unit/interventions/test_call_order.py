"""Calls of one module in another order on the other side."""

import pytest
import torch
from torch import nn

import tracer

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
KINDS = ["full", "sliding", "chunked"]


class Table(nn.Module):
    def forward(self, x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        angles = x * (1 + KINDS.index(kind))
        return angles.cos(), angles.sin()


class Net(nn.Module):
    def __init__(self, order: list[str], wrong: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last, self.order, self.wrong = Table(), nn.Linear(4, 4), order, wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tables = {kind: self.table(x + self.wrong * (kind == "full"), kind) for kind in self.order}
        for n, kind in enumerate(KINDS):
            x = x * tables[kind][0] + (n + 1) * tables[kind][1]
        return self.last(x)


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0], [1, 2, 0]])
def test_they_are_paired_by_what_they_return(order: list[int]) -> None:
    comparison = tracer.compare(Net(KINDS), Net([KINDS[n] for n in order]), X)
    assert comparison.verdict.agrees
    assert comparison.form_differences == ()
    assert comparison.coverage.unmatched_calls == ()
    assert [row.call for row in comparison.rows if row.module == "table"] != []


def test_what_is_wrong_is_still_found() -> None:
    comparison = tracer.compare(Net(KINDS), Net(KINDS, wrong=1.0), X)
    assert not comparison.verdict.agrees
    assert comparison.verdict.origin is not None
    assert comparison.verdict.origin.module == ""
