"""Huge values that both sides have alike."""

import math

import torch

from tracer.tensors.fills import may_have_fills, without_fills


def filled(fill: float = -1e9, count: int = 7) -> torch.Tensor:
    values = torch.linspace(-1.0, 1.0, 64)
    values[:count] = fill
    return values


def test_a_sample_shows_whether_there_may_be_fills() -> None:
    r = filled()
    assert may_have_fills(r, r + 0.5, 0.5, 1e9)
    assert not may_have_fills(r, r, 0.0, 1e9)  # nothing to hide
    assert not may_have_fills(r, r + 0.5, 0.5, math.inf)
    assert not may_have_fills(r.long(), r.long() + 1, 1.0, 1e9)
    many = torch.linspace(-1e9, 1e9, 64)
    assert not may_have_fills(many, many + 0.5, 0.5, 1e9)


def test_what_is_left_without_them() -> None:
    r = filled().double()
    left = without_fills(r, -r.where(r > -1e8, -r))
    assert left is not None
    assert left[0].tolist() == r[7:].tolist()
    assert left[1].tolist() == (-r[7:]).tolist()


def test_a_fill_that_only_one_side_has_is_none() -> None:
    r, c = filled().double(), filled(fill=3.0).double()
    left = without_fills(r, c)
    assert left is None or -1e9 in left[0].tolist()


def test_values_alone_are_no_fills() -> None:
    values = torch.linspace(-1.0, 1.0, 64).double()
    assert without_fills(values, values) is None
