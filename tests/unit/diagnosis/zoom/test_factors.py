"""Constants that values are multiplied by."""

import pytest
import torch

from tracer.diagnosis.zoom.factors import Factors, of_size, scaled_input
from tracer.diagnosis.zoom.operations import OperationLog

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("compute", "factor"),
    [
        (lambda x: x * 0.5, 0.5),
        (lambda x: x / 4, 0.25),
        (lambda x: -x, -1.0),
        (lambda x: x + 1, None),
        (lambda x: x * x, None),
    ],
)
def test_by_what_a_step_multiplies(compute, factor: float | None) -> None:
    log = OperationLog()
    log.begin()
    try:
        made = compute(X)
    finally:
        log.end()
    found = scaled_input(log, log.steps[-1], 1e-6)
    assert log.known(made) is not None
    if factor is None:
        assert found is None
    else:
        assert found == (log.known(X), pytest.approx(factor))


@pytest.mark.parametrize(
    ("factors", "factor", "expected"),
    [
        ([(1, -1.0), (2, 0.5)], -1.0, [(1, -1.0)]),
        ([(1, -1.0), (2, 0.5)], 0.5, [(2, 0.5)]),
    ],
)
def test_those_that_can_have_made_it(factors: Factors, factor: float, expected: Factors) -> None:
    assert of_size(factors, factor) == expected
