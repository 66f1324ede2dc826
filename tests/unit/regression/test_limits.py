"""Limits on PEIR, SQNR, cosine and relative L2: which apply, and what they find."""

import math
from dataclasses import replace

import pytest
import torch

from tracer.errors import UsageError
from tracer.regression.gating import gate
from tracer.regression.limits import Bound, Limits
from tracer.reports.narrator.gate import findings
from tracer.tensors.difference import Difference


@pytest.fixture
def noisy(make_row, make_comparison):
    """A comparison of one output, and its figures computed apart."""
    torch.manual_seed(0)
    r = torch.randn(400, dtype=torch.float64)
    c = r + 0.05 * torch.randn(400, dtype=torch.float64)
    d = r - c
    figures = {
        "peir": float(d.abs().max() / (r.max() - r.min())),
        "sqnr": float(10 * torch.log10((r * r).sum() / (d * d).sum())),
        "cosine": float(torch.nn.functional.cosine_similarity(r, c, dim=0)),
        "relative_l2": float(d.norm() / r.norm()),
    }
    row = replace(make_row("head", 0.5, agrees=False), difference=Difference.of(r, c))
    return make_comparison([row]), figures


NAMES = {"peir": "max_peir", "sqnr": "min_sqnr", "cosine": "min_cosine", "relative_l2": "max_l2"}


@pytest.mark.parametrize("measure", NAMES)
def test_on_either_side_of_the_figure(noisy, measure: str) -> None:
    comparison, figures = noisy
    figure, is_least = figures[measure], measure in ("sqnr", "cosine")
    for factor in (1 - 1e-6, 1 + 1e-6):
        decided = gate(comparison, **{NAMES[measure]: {"*": figure * factor}})
        assert decided.passes is ((factor < 1) == is_least)
        (limit,) = decided.limits
        assert (limit.measure, limit.bound) == (measure, figure * factor)
        assert limit.worst == pytest.approx(figure)
        assert limit.peir == (limit.bound if measure == "peir" else None)


def test_in_words(noisy) -> None:
    comparison, _ = noisy
    decided = gate(comparison, min_sqnr={"head": 60.0}, max_l2={"*": 0.5})
    assert [str(reason) for reason in decided.reasons][:1] == [
        "1 of 1 outputs is beyond the limit head: SQNR >= 60 dB: most `head`, SQNR 25.6 dB"
    ]
    assert (
        "1 output is within the limit *: relative L2 <= 0.5: relative L2 at most 0.0525"
        in findings(decided)
    )


def test_a_value_is_excused_by_all_of_its_limits_together(noisy) -> None:
    comparison, _ = noisy
    assert gate(comparison, min_sqnr={"*": 20.0}, min_cosine={"*": 0.9}).passes
    decided = gate(comparison, min_sqnr={"*": 20.0}, min_cosine={"*": 0.9999})
    assert [reason.kind for reason in decided.reasons] == ["limit", "diverges"]


def test_of_each_measure_the_last_counts() -> None:
    limits = Limits.of(max_peir={"*": 0.1, "head": 0.2}, min_sqnr={"head": 30.0, "*": 20.0})
    assert [str(bound) for bound in limits.matching("head")] == ["head=0.2", "*: SQNR >= 20 dB"]
    assert [str(bound) for bound in limits.matching("other")] == ["*=0.1", "*: SQNR >= 20 dB"]


@pytest.mark.parametrize("measure", NAMES)
def test_what_could_not_be_computed_is_beyond(make_row, measure: str) -> None:
    bound = Bound(measure, "*", -1.0 if measure == "cosine" else 0.0)
    assert not bound.holds(make_row("a", None))
    assert not bound.holds(make_row("a", math.nan))


@pytest.mark.parametrize(("given", "message"), [
    ({"min_cosine": {"a": 1.5}}, "a=1.5: expected a cosine from -1 to 1"),
    ({"min_sqnr": {"a": math.inf}}, "expected a finite SQNR in dB"),
    ({"max_l2": {"a": -1.0}}, "expected a finite relative L2 error of at least 0"),
    ({"min_sqnr": {"head": 3.0}}, "the limit head=3 matches none of the 1 modules"),
])  # fmt: skip
def test_that_are_none(given, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits.of(**given).check(["a"])


def test_a_negative_ratio_is_a_limit() -> None:
    Limits.of(min_sqnr={"a": -3.0}, min_cosine={"a": -0.5}).check(["a"])
