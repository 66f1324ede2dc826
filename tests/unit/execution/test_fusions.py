"""What is in one module on one side and in several on the other: found by rows, seen as parts."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import tracer
from tracer.diagnosis.finding import OriginKind
from tracer.execution.pairing import pair

HEADS, SIZE, WIDTH = 4, 3, 12
X = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
# By the layout, the order of [q, k, v] by [head] by [row of a head] in the fused weight.
LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flat": lambda t: t,
    "by head": lambda t: t.transpose(0, 1),
    "two groups": lambda t: t.unflatten(1, (2, 2)).transpose(0, 1),
}


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.q(x).tanh() * self.k(x).sigmoid() + self.v(x))


class Fused(nn.Module):
    def __init__(self, split: Split, layout: str, *, turned: bool = False) -> None:
        super().__init__()
        places = torch.arange(3 * WIDTH).view(3, HEADS, SIZE)
        self.order = LAYOUTS[layout](places).flatten()
        parts = [split.q, split.k, split.v]
        weight, bias = (torch.cat([getattr(m, n).data for m in parts]) for n in ("weight", "bias"))
        weight = weight[self.order]
        self.c = Conv1D(3 * WIDTH, WIDTH) if turned else nn.Linear(WIDTH, 3 * WIDTH)
        self.c.weight.data.copy_(weight.t() if turned else weight)
        self.c.bias.data.copy_(bias[self.order])
        self.out = copy.deepcopy(split.o)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused = torch.empty(*x.shape[:-1], 3 * WIDTH)
        fused[..., self.order] = self.c(x)
        q, k, v = fused.chunk(3, -1)
        return self.out(q.tanh() * k.sigmoid() + v)


@pytest.fixture
def split() -> Split:
    torch.manual_seed(0)
    return Split()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_found_in_any_layout_and_their_outputs_compared(
    split: Split, layout: str, turned: bool
) -> None:
    fused = Fused(split, layout, turned=turned)
    pairing = pair(split, fused)
    assert pairing.pairs == {"": "", "out": "o", "c[q]": "q", "c[k]": "k", "c[v]": "v"}
    comparison = tracer.compare(split, fused, X)
    assert comparison.verdict.agrees
    assert {row.module for row in comparison.rows if row.is_output} == {"", "q", "k", "v", "o"}
    assert comparison.coverage.reference_only == comparison.coverage.candidate_only == ()
    assert dict(comparison.coverage.fused) == {"c": ("q", "k", "v")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_may_be_fused(split: Split, layout: str) -> None:
    comparison = tracer.compare(Fused(split, layout), split, X)
    assert comparison.verdict.agrees
    modules = {row.module for row in comparison.rows if row.is_output}
    assert modules == {"", "c[q]", "c[k]", "c[v]", "out"}
    assert comparison.coverage.reference_only == comparison.coverage.candidate_only == ()
    assert str(comparison.coverage).startswith("5 of 5 modules")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, WIDTH])
def test_wrong_rows_are_named_at_the_module_that_they_belong_to(
    split: Split, layout: str, turned: bool, count: int
) -> None:
    fused = Fused(split, layout, turned=turned)
    rows = (fused.order // WIDTH == 1).nonzero().flatten()[:count]  # of k
    with torch.no_grad():
        (fused.c.weight.t() if turned else fused.c.weight)[rows] *= -2.0
    before = fused.c.weight
    verdict = tracer.compare(split, fused, X).verdict
    assert verdict.origin is not None
    assert (verdict.origin.module, verdict.origin.kind) == ("k", OriginKind.PARAMETER)
    assert verdict.confirmed
    assert "`weight`" in verdict.explanation
    assert fused.c.weight is before


def test_wrong_rows_of_the_one_that_is_split(split: Split) -> None:
    fused = Fused(split, "by head")
    with torch.no_grad():
        split.k.weight[2] *= -2.0
    verdict = tracer.compare(fused, split, X).verdict
    assert verdict.origin is not None
    assert (verdict.origin.module, verdict.origin.kind) == ("c[k]", OriginKind.PARAMETER)
    assert verdict.confirmed


def test_coarser_parameters_are_compared_in_their_dtype(split: Split) -> None:
    pairing = pair(split, Fused(split, "by head").bfloat16())
    assert pairing.pairs["c[k]"] == "k"


def test_experts_in_one_tensor_are_held_without_outputs() -> None:
    torch.manual_seed(0)
    many = nn.Module()
    many.each = nn.ModuleList(nn.Linear(6, 4, bias=False) for _ in range(3))
    one = nn.Module()
    one.inside = nn.Module()
    one.inside.weight = nn.Parameter(torch.stack([expert.weight.data for expert in many.each]))
    pairing = pair(one, many)
    assert pairing.held(is_candidate=False) == {"inside"}
    assert pairing.held(is_candidate=True) == {"each.0", "each.1", "each.2"}
    assert "inside" not in pairing.pairs.values()


def test_what_holds_only_some_of_the_rows_is_not_fused(split: Split) -> None:
    other = nn.Module()
    other.c = nn.Linear(WIDTH, 3 * WIDTH)
    other.c.weight.data[:WIDTH] = split.q.weight.data
    assert pair(split, other).fusions == ()


class Experts(nn.Module):
    """Three layers, in one parameter or in several modules, of which each row takes one."""

    def __init__(self, weights: torch.Tensor, *, is_one: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        if is_one:
            self.inside = nn.Module()
            self.inside.weight = nn.Parameter(weights.clone())
        else:
            self.each = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in weights)
            for expert, weight in zip(self.each, weights, strict=True):
                expert.weight.data.copy_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        if hasattr(self, "inside"):
            return sum(nn.functional.linear(x, weight) for weight in self.inside.weight)
        return sum(expert(x) for expert in self.each)


@pytest.mark.parametrize("is_one", [True, False])
def test_wrong_rows_of_experts_are_named(is_one: bool) -> None:
    weights = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    models = [nn.Sequential(Experts(weights, is_one=each)) for each in (is_one, not is_one)]
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1))
    assert tracer.compare(*models, x).verdict.agrees
    one = models[0 if is_one else 1][0].inside
    with torch.no_grad():
        one.weight[1, 2:4] *= -2.0
    verdict = tracer.compare(*models, x).verdict
    assert verdict.origin is not None
    assert (verdict.origin.module, verdict.origin.kind) == ("0", OriginKind.PARAMETER)
    assert verdict.confirmed
    assert ("`inside[0.each.1].weight`" if is_one else "`each.1.weight`") in verdict.explanation
