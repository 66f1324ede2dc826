"""Tolerance: the limits of dtypes, the tail of a peak, and what is no limit."""

import math

import pytest
import torch

from tracer.errors import UsageError
from tracer.tensors.difference import Difference
from tracer.tensors.tolerance import Tolerance


def test_limits_by_dtype() -> None:
    tolerance = Tolerance()
    fine = tolerance.limit(torch.float32, torch.float32)
    assert tolerance.limit(torch.float32, torch.bfloat16) > fine
    assert tolerance.limit(torch.float64, torch.float32) == fine
    assert tolerance.limit(torch.int64, torch.bool) == 0.0
    assert tolerance.limit(torch.int64, torch.float32) == fine
    assert tolerance.limit(torch.float8_e5m2, torch.float32) > tolerance.limit(
        torch.bfloat16, torch.bfloat16
    )
    reference = torch.tensor([0.0, 1.0])
    tolerance = Tolerance(0.1)
    for error, expected in ((0.05, True), (0.11, False)):
        difference = Difference.of(reference, reference + torch.tensor([0.0, error]))
        assert tolerance.agrees(difference, torch.float32, torch.float32) is expected
    difference = Difference.of(torch.tensor([0, 1_000_000]), torch.tensor([0, 1_000_001]))
    assert not Tolerance(0.5).agrees(difference, torch.int64, torch.int64)


def test_a_lone_peak_within_the_tail_agrees_by_the_error_as_a_whole() -> None:
    reference = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    candidate = reference.clone()
    candidate[5] += 2e-5 * (reference.max() - reference.min())
    difference = Difference.of(reference, candidate)
    assert Tolerance().agrees(difference, torch.float32, torch.float32)
    assert not Tolerance(1e-5).agrees(difference, torch.float32, torch.float32)
    candidate[5] += 5e-5 * (reference.max() - reference.min())
    beyond = Difference.of(reference, candidate)
    assert not Tolerance().agrees(beyond, torch.float32, torch.float32)


@pytest.mark.parametrize("limit", [-1e-9, math.nan, math.inf])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match="expected a finite PEIR"):
        Tolerance(limit)


@pytest.mark.parametrize(("dtype", "working", "expected"), [
    (torch.bfloat16, (), True), (torch.bfloat16, (torch.bfloat16,), False),
    (torch.float64, (), False), (torch.int64, (), False), (None, (), False),
])  # fmt: skip
def test_what_is_coarser_than_both_models(dtype, working, expected: bool) -> None:
    assert Tolerance(working=working).is_coarse(dtype, torch.float32) is expected
