"""Values are found in other forms, and not where they are alike by chance."""

import pytest
import torch
from torch import Tensor

from tracer.diagnosis.zoom.matching import Match, factor_between, is_rearranged, is_same, match
from tracer.measurement.padding import Padding

LIMIT = 1e-5


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


X = random(2, 4, 6, 8)


def found(value: Tensor, *others: Tensor, paddings: tuple[Padding, ...] = ()) -> list[Match]:
    return match([value], others, LIMIT, paddings)[0]


@pytest.mark.parametrize(("value", "is_whole", "is_ordered"), [
    pytest.param(X.clone(), True, True, id="whole"),
    pytest.param(X.reshape(8, 48), True, True, id="reshaped"),
    pytest.param(X.transpose(1, 2), True, False, id="permuted"),
    pytest.param(X.transpose(1, 2).flatten(2), True, False, id="permuted and reshaped"),
    pytest.param(X.permute(3, 1, 0, 2), True, False, id="all dimensions permuted"),
    pytest.param(X[:, 2], False, True, id="head"),
    pytest.param(X[1], False, True, id="sequence"),
    pytest.param(X[:, :, 3].clone(), False, True, id="position"),
    pytest.param(X[..., 4:], False, True, id="half"),
    pytest.param(X[:, 1].mT, False, False, id="head transposed"),
    pytest.param(X.double(), True, True, id="float64"),
])  # fmt: skip
def test_forms(value: Tensor, is_whole: bool, is_ordered: bool) -> None:
    best = found(value, random(7, 5), X)[0]
    assert best == Match(1, 1.0, is_whole, is_ordered)
    assert best.is_exact


@pytest.mark.parametrize("factor", [0.35, -1.0, -2.5, 8.0])
def test_factors(factor: float) -> None:
    (best,) = {(m.other, m.is_whole) for m in found(X * factor, X)}
    assert best == (0, True)
    assert found(X * factor, X)[0].factor == pytest.approx(factor, rel=1e-6)
    (half,) = found(X[..., :4] * factor, X)
    assert half.factor == pytest.approx(factor, rel=1e-6)
    assert not half.is_exact


def test_rounding_is_allowed_and_exact_ones_come_first() -> None:
    assert found(X * (1 + 1e-7), X)[0].is_exact
    changed = X.clone()
    changed[0, 0, 0, 0] += 1e-2
    assert not found(changed, X)
    matches = found(X, 2 * X, X, X[:, :2])
    assert [m.other for m in matches][:1] == [1]
    assert {m.other for m in matches if not m.is_exact} == {0}


@pytest.mark.parametrize("value", [
    pytest.param(torch.zeros(3, 4), id="zeros"),
    pytest.param(torch.full((3, 4), 0.5), id="constant"),
    pytest.param(torch.tensor([1.0, 2.0]), id="tiny"),
    pytest.param(torch.tensor(3.0), id="scalar"),
    pytest.param(torch.empty(0, 4), id="empty"),
])  # fmt: skip
def test_values_that_tell_nothing(value: Tensor) -> None:
    assert not found(value, value.clone())


def test_two_levels_have_no_factor() -> None:
    mask = torch.ones(6, 6).tril()
    assert found(mask.bool(), mask)[0].is_exact
    assert not found(3 * mask, mask)


@pytest.mark.parametrize("order", ["roll", "flip", "repeat"])
def test_another_order_within_a_dimension_is_another_value(order: str) -> None:
    changed = {"roll": X.roll(1, 1), "flip": X.flip(1), "repeat": X[:, :2].repeat(1, 2, 1, 1)}
    assert not found(changed[order], X, X[:, :2].repeat_interleave(2, 1))


def test_values_of_other_kinds() -> None:
    ids = torch.arange(40).view(4, 10)
    assert found(ids[2], ids)[0].is_exact
    turned = torch.view_as_complex(random(5, 2))
    assert found(turned, turned.clone())[0].is_exact
    hidden = X.masked_fill(X > 1, -torch.inf)
    assert found(hidden, hidden.clone())[0].is_exact
    assert not found(hidden, X.masked_fill(X > 1, torch.nan))
    undefined = X.masked_fill(X > 1, torch.nan)
    assert found(undefined, undefined.clone())[0].is_exact


@pytest.mark.parametrize("fill", [-120.0, -1e4, -1e9, -torch.inf])
def test_masks_hide_by_different_numbers(fill: float) -> None:
    visible = torch.ones(6, 6, dtype=torch.bool).tril()
    logits = random(2, 4, 6, 6)
    theirs = logits.masked_fill(~visible, torch.finfo(torch.float32).min)
    assert found(logits.masked_fill(~visible, fill), theirs)[0].is_exact
    assert not any(m.is_exact for m in found((0.5 * logits).masked_fill(~visible, fill), theirs))


def test_padded_positions_do_not_count() -> None:
    visible = torch.ones(2, 6, dtype=torch.bool)
    visible[0, :2] = False
    padding = Padding(visible, frozenset({6}))
    changed = X.clone()
    changed[0, :, :2] = torch.nan
    assert not found(changed, X)
    assert found(changed, X, paddings=(padding,))[0].is_exact
    flat = random(12, 5)
    other = flat.clone()
    other[:2] = 0.0
    assert found(other, flat, paddings=(padding,))[0].is_exact


def test_factors_and_rearrangements() -> None:
    assert factor_between(X * -0.25, X, LIMIT) == pytest.approx(-0.25)
    assert factor_between(X, X, LIMIT) == pytest.approx(1.0)
    assert factor_between(X + 1, X, LIMIT) is None
    assert factor_between(X[0], X, LIMIT) is None
    assert factor_between(torch.zeros(4), torch.zeros(4), LIMIT) is None
    assert is_same(X.view(-1), X, LIMIT)
    assert not is_same(X.mT, X, LIMIT)
    assert not is_same(X[0], X, LIMIT)
    assert is_rearranged(X.roll(1, 1), X, LIMIT)
    assert not is_rearranged(X + 0.1, X, LIMIT)
    assert not is_rearranged(X[0], X, LIMIT)
    assert (match([X], [], LIMIT, ()), match([], [X], LIMIT, ())) == ([[]], [])
